//! Names that other tools use for our commands, flags and keys.
//!
//! One table serves the command line and configuration files: a word of [`ALIASES`] means the same as ours and is accepted
//! wherever ours is, with `-` or `_` between its parts. What has no equal meaning here is refused with the word that we
//! use: [`FOREIGN_FLAGS`] and [`FOREIGN_COMMANDS`].

use std::ffi::OsString;

use clap::Command;

/// A word of another tool with the meaning of one of our flags.
pub(crate) struct Alias {
    /// The tool that uses it.
    pub(crate) tool: &'static str,
    /// Its word, without the leading `--`.
    pub(crate) word: &'static str,
    /// Our flag.
    pub(crate) flag: &'static str,
    /// The commands in which it has this meaning; empty for all that have the flag.
    pub(crate) commands: &'static [&'static str],
}

const fn alias(tool: &'static str, word: &'static str, flag: &'static str) -> Alias {
    Alias { tool, word, flag, commands: &[] }
}

const fn alias_in(
    commands: &'static [&'static str],
    tool: &'static str,
    word: &'static str,
    flag: &'static str,
) -> Alias {
    Alias { tool, word, flag, commands }
}

const TRAIN: &[&str] = &["train"];
const USE: &[&str] = &["generate", "chat", "run", "eval", "merge", "data"];

/// Words with the same meaning as ours.
pub(crate) static ALIASES: &[Alias] = &[
    alias("mlx-lm", "max-seq-length", "max-length"),
    alias("mlx-lm", "steps-per-eval", "eval-every"),
    alias("mlx-lm", "steps-per-report", "report-every"),
    alias("mlx-lm", "grad-accumulation-steps", "accumulation"),
    alias("mlx-lm", "lora-layers", "num-layers"),
    alias_in(TRAIN, "mlx-lm", "adapter-path", "out"),
    alias_in(USE, "mlx-lm", "adapter-path", "adapter"),
    alias("mlx-lm", "adapter-file", "adapter"),
    alias_in(&["merge"], "mlx-lm", "save-path", "out"),
    alias("mlx-lm", "temp", "temperature"),
    alias("mlx-lm", "system-prompt", "system"),
    alias("mlx-lm", "extra-eos-token", "stop"),
    alias("PEFT", "r", "rank"),
    alias("PEFT", "lora-r", "rank"),
    alias("PEFT", "lora-rank", "rank"),
    alias("PEFT", "lora-alpha", "alpha"),
    alias("PEFT", "lora-dropout", "dropout"),
    alias("PEFT", "use-rslora", "rslora"),
    alias("PEFT", "target-modules", "targets"),
    alias("PEFT", "lora-target-modules", "targets"),
    alias("PEFT", "exclude-modules", "exclude"),
    alias("PEFT", "layers-to-transform", "layers"),
    alias("PEFT", "peft-model-id", "adapter"),
    alias("transformers", "model-name-or-path", "model"),
    alias("transformers", "pretrained-model-name-or-path", "model"),
    alias_in(TRAIN, "transformers", "output-dir", "out"),
    alias("transformers", "per-device-train-batch-size", "batch-size"),
    alias_in(&["eval"], "transformers", "per-device-eval-batch-size", "batch-size"),
    alias("transformers", "gradient-accumulation-steps", "accumulation"),
    alias("transformers", "num-train-epochs", "epochs"),
    alias("transformers", "max-steps", "steps"),
    alias("transformers", "lr", "learning-rate"),
    alias("transformers", "lr-scheduler-type", "schedule"),
    alias("transformers", "warmup-steps", "warmup"),
    alias("transformers", "logging-steps", "report-every"),
    alias("transformers", "eval-steps", "eval-every"),
    alias("transformers", "save-steps", "save-every"),
    alias("transformers", "save-total-limit", "keep-checkpoints"),
    alias("transformers", "gradient-checkpointing", "grad-checkpoint"),
    alias("transformers", "early-stopping-patience", "patience"),
    alias("transformers", "overwrite-output-dir", "overwrite"),
    alias("transformers", "max-new-tokens", "max-tokens"),
    alias("transformers", "torch-dtype", "dtype"),
    alias("TRL", "max-seq-len", "max-length"),
    alias("TRL", "dataset-name", "data"),
    alias("TRL", "dataset", "data"),
    alias("axolotl", "base-model", "model"),
    alias("axolotl", "lora-model-dir", "adapter"),
    alias("axolotl", "micro-batch-size", "batch-size"),
    alias("axolotl", "num-epochs", "epochs"),
    alias("axolotl", "sequence-len", "max-length"),
    alias("axolotl", "lr-scheduler", "schedule"),
    alias("axolotl", "peft-use-rslora", "rslora"),
    alias("axolotl", "lora-exclude-modules", "exclude"),
    alias("axolotl", "peft-layers-to-transform", "layers"),
    alias("axolotl", "val-set-size", "valid-size"),
    alias("LLaMA-Factory", "val-size", "valid-size"),
    alias("LLaMA-Factory", "cutoff-len", "max-length"),
    alias("LLaMA-Factory", "lora-target", "targets"),
    alias("LLaMA-Factory", "adapter-name-or-path", "adapter"),
    alias("llama.cpp", "predict", "max-tokens"),
    alias("llama.cpp", "n-predict", "max-tokens"),
    alias("llama.cpp", "repeat-penalty", "repetition-penalty"),
    alias("llama.cpp", "reverse-prompt", "stop"),
    alias("llama.cpp", "lora", "adapter"),
    alias("llama.cpp", "hf-repo", "model"),
    alias("llama.cpp", "n-threads", "threads"),
    alias("ollama", "num-predict", "max-tokens"),
    alias("ollama", "num-thread", "threads"),
    alias("vLLM", "max-model-len", "max-length"),
];

/// One-letter words; the tool is llama.cpp except for `-c` of mlx-lm's trainer.
static SHORT_ALIASES: &[(char, &str, &[&str])] = &[
    ('c', "config", TRAIN),
    ('n', "max-tokens", &["generate", "chat", "run"]),
    ('s', "seed", &["generate", "chat", "run"]),
    ('t', "threads", &[]),
    ('r', "stop", &["generate", "chat", "run"]),
    ('f', "data", &["eval"]),
];

/// llama.cpp's words of several letters behind one hyphen.
static ONE_HYPHEN: &[(&str, &str)] = &[
    ("-hf", "--model"),
    ("-hfr", "--model"),
    ("-sys", "--system"),
    ("-hff", "--hf-file"),
    ("-ngl", "--n-gpu-layers"),
    ("-cnv", "--conversation"),
    ("-no-cnv", "--no-conversation"),
    ("-fa", "--flash-attn"),
    ("-st", "--single-turn"),
];

/// Our commands by the names that other tools have for them.
static COMMANDS: &[(&str, &str, &str)] = &[
    ("mlx-lm", "lora", "train"),
    ("TRL", "sft", "train"),
    ("OpenAI", "finetune", "train"),
    ("OpenAI", "fine-tune", "train"),
    ("mlx-lm", "fuse", "merge"),
    ("axolotl", "merge-lora", "merge"),
    ("llama.cpp", "export-lora", "merge"),
    ("mlx-lm", "evaluate", "eval"),
    ("llama.cpp", "perplexity", "eval"),
    ("axolotl", "inference", "generate"),
    ("transformers", "download", "pull"),
    ("mlx-lm", "benchmark", "bench"),
    ("ollama", "ls", "list"),
];

/// A tool, its words that have no counterpart here, and what to use instead of them.
type Foreign = (&'static str, &'static [&'static str], &'static str);

const NO_SERVER: &str = "there is no server; `metal-candle generate --json` answers one prompt for a program";
const ANSWERS_ONLY: &str = "use --train-on completion, which is the default";
const ADAMW: &str = "leave it out: the optimizer is AdamW, with --weight-decay";
const OWN_TEMPLATE: &str = "leave it out: the model's own chat template is used; --raw leaves it out";
const OWN_CONTEXT: &str = "leave it out: the context is the model's own";

/// Commands of other tools that have no counterpart.
static FOREIGN_COMMANDS: &[Foreign] = &[
    (
        "ollama",
        &["show"],
        "`metal-candle list` shows the models, and `metal-candle train --model NAME --dry-run` the size of one",
    ),
    ("ollama", &["rm"], "delete the folder that `metal-candle list` names"),
    ("ollama", &["ps"], "nothing runs in the background: a model is loaded by the command that uses it"),
    ("ollama", &["serve"], NO_SERVER),
    ("mlx-lm", &["server"], NO_SERVER),
    ("ollama", &["create"], "`metal-candle merge` makes a model of a base and an adapter"),
    ("ollama", &["push"], "upload the adapter's folder with `hf upload`: its files are PEFT's"),
    ("ollama", &["cp"], "copy the folder that `metal-candle list` names"),
    ("mlx-lm", &["convert"], "models are read as they are on the hub; --dtype bf16 halves the memory"),
    ("mlx-lm", &["manage"], "`metal-candle list` shows what the cache holds"),
    (
        "llama.cpp",
        &["quantize"],
        "models are not quantized here; a GGUF file that is quantized already can be used with --model",
    ),
    (
        "axolotl",
        &["preprocess"],
        "rows become tokens when training starts: `metal-candle train --data … --dry-run`",
    ),
    ("TRL", &["dpo", "grpo"], "only supervised fine-tuning is implemented: `metal-candle train`"),
    ("hf", &["login"], "set HF_TOKEN, or run `hf auth login`: its token is used"),
];

/// Flags of other tools that have no flag of the same meaning; those of no certain tool have "".
pub(crate) static FOREIGN_FLAGS: &[Foreign] = &[
    ("mlx-lm", &["mask-prompt"], ANSWERS_ONLY),
    ("mlx-lm", &["test"], "run `metal-candle eval --data DATA/test.jsonl --adapter OUT` after training"),
    ("mlx-lm", &["test-batches"], "`metal-candle eval` evaluates all of its data"),
    ("mlx-lm", &["val-batches"], "leave it out: the whole validation set is evaluated"),
    ("mlx-lm", &["fine-tune-type"], "leave it out for LoRA, the only kind that is trained"),
    ("mlx-lm", &["optimizer"], ADAMW),
    (
        "mlx-lm",
        &["resume-adapter-file"],
        "use --adapter with the adapter's folder, or --resume to go on with an interrupted run",
    ),
    (
        "mlx-lm",
        &["wandb", "report-to", "project-name"],
        "read OUT/metrics.jsonl: it has one JSON object for each report",
    ),
    ("mlx-lm", &["clear-cache-threshold"], "leave it out: memory is planned before the run"),
    (
        "mlx-lm",
        &["de-quantize", "dequantize"],
        "leave it out: merged weights are never quantized; --dtype chooses their type",
    ),
    ("mlx-lm", &["export-gguf"], "convert the merged folder with llama.cpp's convert_hf_to_gguf.py"),
    ("mlx-lm", &["upload-repo"], "upload the merged folder with `hf upload`"),
    ("mlx-lm", &["hf-path"], "use --model with the hub id"),
    ("mlx-lm", &["max-kv-size"], "leave it out: the cache holds the model's whole context"),
    ("mlx-lm", &["ignore-chat-template"], "use --raw"),
    ("mlx-lm", &["use-default-chat-template"], OWN_TEMPLATE),
    ("mlx-lm", &["chat-template-config"], "use --template-var NAME=JSON"),
    ("mlx-lm", &["trust-remote-code"], "leave it out: no code of a model is ever run"),
    ("mlx-lm", &["prefill-step-size"], "leave it out: long prompts are read in pieces anyway"),
    ("transformers", &["bf16"], "use --dtype bf16"),
    ("transformers", &["fp16"], "use --dtype f16"),
    ("transformers", &["do-sample"], "use --temperature above 0"),
    ("transformers", &["num-beams"], "leave it out: answers are sampled or greedy"),
    (
        "transformers",
        &["resume-from-checkpoint"],
        "use --resume: it takes the newest checkpoint in the output folder",
    ),
    ("transformers", &["optim"], ADAMW),
    ("transformers", &["adam-beta1"], "leave it out: it is 0.9"),
    ("transformers", &["adam-beta2"], "leave it out: it is 0.999"),
    ("transformers", &["adam-epsilon"], "leave it out: it is 1e-8"),
    ("transformers", &["per-device-eval-batch-size"], "use --batch-size: it holds for validation too"),
    ("transformers", &["evaluation-strategy", "eval-strategy"], "use --eval-every STEPS"),
    ("transformers", &["save-strategy"], "use --save-every STEPS"),
    ("TRL", &["assistant-only-loss", "completion-only-loss"], ANSWERS_ONLY),
    ("TRL", &["packing"], "leave it out: batches are formed of rows of similar length"),
    ("PEFT", &["use-dora"], "leave it out: only LoRA is trained"),
    ("PEFT", &["modules-to-save"], "leave it out: whole modules are not trained, only adapters"),
    (
        "PEFT",
        &["load-in-4bit", "load-in-8bit"],
        "use --dtype bf16: quantized weights are not kept while training",
    ),
    ("axolotl", &["train-on-inputs"], "use --train-on all"),
    ("axolotl", &["lora-target-linear"], "use --targets all-linear, which is the default"),
    ("llama.cpp", &["ctx-size"], OWN_CONTEXT),
    (
        "llama.cpp",
        &["n-gpu-layers", "gpu-layers"],
        "use --device metal or --device cpu: a model is on one device as a whole",
    ),
    ("llama.cpp", &["file"], "read the prompt from standard input: metal-candle generate < FILE"),
    ("llama.cpp", &["interactive", "conversation"], "use `metal-candle chat`"),
    ("llama.cpp", &["no-conversation"], "use `metal-candle generate --raw`"),
    ("llama.cpp", &["single-turn"], "use `metal-candle generate`"),
    ("llama.cpp", &["flash-attn"], "leave it out: attention is always fused"),
    ("llama.cpp", &["hf-file"], "use --model ORG/NAME:FILE.gguf"),
    ("llama.cpp", &["lora-scaled"], "use --adapter: an adapter's scale is the one it was trained with"),
    (
        "llama.cpp",
        &["ignore-eos"],
        "leave it out: an answer ends where the model ends it, or after --max-tokens",
    ),
    ("llama.cpp", &["grammar"], "leave it out: answers are not constrained"),
    (
        "llama.cpp",
        &["jinja"],
        "leave it out: the model's chat template is always used, unless --raw is given",
    ),
    ("llama.cpp", &["chat-template"], OWN_TEMPLATE),
    ("llama.cpp", &["presence-penalty", "frequency-penalty"], "use --repetition-penalty"),
    ("llama.cpp", &["no-mmap"], "leave it out: files are mapped only while they are loaded"),
    ("llama.cpp", &["mlock"], "leave it out: weights are not paged out by us"),
    ("llama.cpp", &["log-disable"], "use --quiet"),
    ("llama.cpp", &["no-display-prompt"], "leave it out: the prompt is not printed"),
    ("ollama", &["format"], "use --json for a JSON object with text, tokens and times"),
    ("ollama", &["num-ctx"], OWN_CONTEXT),
    ("ollama", &["think"], "use --template-var enable_thinking=true"),
    ("ollama", &["keepalive"], "leave it out: a model is loaded by the command that uses it"),
    ("", &["greedy"], "leave it out: --temperature 0, the default, takes the most probable token"),
    ("", &["prompt-file"], "read the prompt from standard input: metal-candle generate < FILE"),
    (
        "ollama",
        &["insecure"],
        "leave it out: certificates are always checked; SSL_CERT_FILE adds one of your own",
    ),
];

/// Leaves out how mlx-lm is started: `python -m mlx_lm lora`, `mlx_lm.lora` and `mlx_lm lora` are its command `lora`.
pub(crate) fn without_module(words: Vec<OsString>) -> Vec<OsString> {
    let text = |index: usize| words.get(index).and_then(|word| word.to_str()).unwrap_or_default();
    let is_python = matches!(text(1), "python" | "python3") && text(2) == "-m";
    let at = if is_python { 3 } else { 1 };
    let name = text(at);
    let command = match name.split_once('.') {
        Some(("mlx_lm" | "mlx-lm", command)) => Some(OsString::from(command)),
        _ if matches!(name, "mlx_lm" | "mlx-lm") => None,
        _ => return words,
    };
    words[..1].iter().cloned().chain(command).chain(words[at + 1..].iter().cloned()).collect()
}

/// Adds every alias to the command line, and lets every flag take a negative number, so that its range can be named.
pub(crate) fn apply(mut command: Command) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    for name in names {
        let found: Vec<&'static str> =
            COMMANDS.iter().filter(|(_, _, ours)| *ours == name).map(|(_, word, _)| *word).collect();
        command = command.mut_subcommand(&name, |subcommand| with_flags(subcommand, &name).aliases(found));
    }
    command
}

fn with_flags(command: Command, name: &str) -> Command {
    let mut taken: Vec<String> =
        command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect();
    let short: Vec<char> = command.get_arguments().filter_map(|arg| arg.get_short()).collect();
    let known = |flag: &str| command.get_arguments().any(|arg| arg.get_long() == Some(flag));
    let names: Vec<String> = ALIASES
        .iter()
        .filter(|alias| holds_in(alias.commands, name) && known(alias.flag))
        .map(|alias| format!("  --{} ({}) is --{}", alias.word, alias.tool, alias.flag))
        .collect();
    let command = match command.get_after_help().map(ToString::to_string) {
        Some(help) if !names.is_empty() => {
            let names = names.join("\n");
            command.after_long_help(format!("{help}\n\nNames of other tools that mean the same:\n{names}"))
        }
        _ => command,
    };
    command.mut_args(|mut arg| {
        if arg.get_action().takes_values() {
            arg = arg.allow_negative_numbers(true);
        }
        let Some(long) = arg.get_long().map(str::to_owned) else { return arg };
        let words = ALIASES.iter().filter(|a| a.flag == long && holds_in(a.commands, name)).map(|a| a.word);
        let mut spellings = Vec::new();
        for word in std::iter::once(long.as_str()).chain(words) {
            for spelling in [word.to_owned(), word.replace('-', "_")] {
                if spelling != long && !taken.contains(&spelling) {
                    taken.push(spelling.clone());
                    spellings.push(spelling);
                }
            }
        }
        for (letter, flag, commands) in SHORT_ALIASES {
            if *flag == long && holds_in(commands, name) && !short.contains(letter) {
                arg = arg.short_alias(*letter);
            }
        }
        arg.aliases(spellings)
    })
}

fn holds_in(commands: &[&str], name: &str) -> bool {
    commands.is_empty() || commands.contains(&name)
}

/// Spells llama.cpp's words of several letters behind one hyphen with two, and joins a flag with a negative number such as
/// `-1e-4`, which the command line's parser does not recognize as one.
pub(crate) fn with_two_hyphens(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut plain = false;
    let mut found: Vec<OsString> = Vec::new();
    for word in words {
        plain |= word == "--";
        let text = word.to_str().unwrap_or_default();
        let is_number = text.starts_with('-') && text.contains(['e', 'E']) && text.parse::<f64>().is_ok();
        let is_flag =
            |last: &OsString| last.to_str().is_some_and(|last| last.starts_with("--") && !last.contains('='));
        let theirs = ONE_HYPHEN.iter().find(|(theirs, _)| !plain && text == *theirs);
        match (theirs, found.last_mut()) {
            (Some((_, ours)), _) => found.push((*ours).into()),
            (None, Some(last)) if is_number && !plain && is_flag(last) => {
                last.push("=");
                last.push(&word);
            }
            _ => found.push(word),
        }
    }
    found
}

/// Our flag for a word of another tool in a command, without the leading hyphens.
pub(crate) fn flag_of(word: &str, command: &str) -> Option<&'static Alias> {
    let word = word.replace('_', "-");
    ALIASES.iter().find(|alias| alias.word == word && holds_in(alias.commands, command))
}

/// The tool that has this flag, and what to use instead of it.
pub(crate) fn foreign_flag(word: &str) -> Option<(&'static str, &'static str)> {
    let word = word.trim_start_matches('-').replace('_', "-");
    let word = match word.as_str() {
        "c" => "ctx-size",
        "f" => "file",
        "i" => "conversation",
        other => other,
    };
    FOREIGN_FLAGS.iter().find(|(_, flags, _)| flags.contains(&word)).map(|(tool, _, advice)| (*tool, *advice))
}

/// The tool that has this command, and what to use instead of it.
pub(crate) fn foreign_command(word: &str) -> Option<(&'static str, &'static str)> {
    FOREIGN_COMMANDS
        .iter()
        .find(|(_, names, _)| names.contains(&word))
        .map(|(tool, _, advice)| (*tool, *advice))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    /// Every entry must refer to a flag that exists, or it helps nobody.
    #[test]
    fn every_alias_refers_to_a_flag_of_ours() {
        let command = Cli::command();
        for alias in ALIASES {
            let exists = command.get_subcommands().any(|c| {
                holds_in(alias.commands, c.get_name())
                    && c.get_arguments().any(|arg| arg.get_long() == Some(alias.flag))
            });
            assert!(exists, "{} of {} refers to --{}", alias.word, alias.tool, alias.flag);
        }
        for (tool, word, ours) in COMMANDS {
            assert!(command.find_subcommand(ours).is_some(), "{word} of {tool} refers to {ours}");
        }
    }

    /// The advice names flags and commands; all of them must exist.
    #[test]
    fn every_flag_in_an_advice_exists() {
        let command = Cli::command();
        let advices = FOREIGN_FLAGS
            .iter()
            .map(|(_, _, advice)| advice)
            .chain(FOREIGN_COMMANDS.iter().map(|(_, _, a)| a));
        for advice in advices {
            for word in advice.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
                let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) else { continue };
                let known =
                    command.get_arguments().chain(command.get_subcommands().flat_map(Command::get_arguments));
                // It comes with the chat templates.
                let exists =
                    flag == "template-var" || known.into_iter().any(|arg| arg.get_long() == Some(flag));
                assert!(exists, "'{advice}' names --{flag}");
            }
        }
    }

    #[test]
    fn no_word_has_two_meanings_in_one_command() {
        apply(Cli::command()).debug_assert();
        for (index, alias) in ALIASES.iter().enumerate() {
            let twice = ALIASES[index + 1..].iter().any(|other| {
                let both =
                    alias.commands.is_empty() || alias.commands.iter().any(|c| holds_in(other.commands, c));
                other.word == alias.word && other.flag != alias.flag && both
            });
            assert!(!twice, "{}", alias.word);
        }
    }

    #[test]
    fn commands_of_mlx_lm_are_found_however_it_is_started() {
        let found = |line: &str| {
            let words = without_module(line.split(' ').map(OsString::from).collect());
            words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        for line in ["m mlx_lm.lora --train", "m mlx_lm lora --train", "m python -m mlx_lm lora --train"] {
            assert_eq!(found(line), "m lora --train");
        }
        assert_eq!(found("m python3 -m mlx_lm.generate"), "m generate");
        for other in ["m python -m trl sft", "m train mlx_lm.lora", "m"] {
            assert_eq!(found(other), other);
        }
    }

    #[test]
    fn words_with_one_hyphen_become_flags_before_the_separator_only() {
        let words = ["x", "-hf", "a/b", "--rate", "-1e-4", "--", "-sys"].map(OsString::from);
        let found = with_two_hyphens(words.into_iter());
        assert_eq!(found, ["x", "--model", "a/b", "--rate=-1e-4", "--", "-sys"].map(OsString::from));
    }
}
