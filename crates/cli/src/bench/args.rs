//! The command line of `bench`.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use metal_candle::bench::model::Sizes;

use crate::bench::process::Library;
use crate::profiling::ProfileArgs;

#[derive(Debug, Args)]
#[command(arg_required_else_help = true, args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: Option<BenchWhat>,
    /// Show where the MLX figures of the plan come from; `bench explain-plan` takes options.
    #[arg(long)]
    pub(crate) explain_plan: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchWhat {
    /// Single operations: latency, throughput and chain.
    #[command(after_help = "Examples:\n  metal-candle bench ops --filter rms_norm\n  \
                            metal-candle bench ops --peers candle,torch,mlx --json ops.json\n\nOn Linux MLX runs with \
                            OpenBLAS preloaded: the product in its wheel is thirty times slower.")]
    Ops(BenchOpsArgs),
    /// A LoRA step of a model, forward, backward and update.
    #[command(after_help = "Example:\n  metal-candle bench train --peers torch,mlx --rounds 7 --markdown")]
    Train(BenchModelArgs),
    /// A prompt and its continuation by a model.
    #[command(after_help = "Example:\n  metal-candle bench generate --peers torch,candle,mlx,llama.cpp")]
    Generate(BenchModelArgs),
    /// The MLX figures of the plan, with their flaw and without it.
    #[command(after_help = "Example:\n  metal-candle bench explain-plan --markdown")]
    ExplainPlan(ExplainArgs),
    /// candle, as a peer of `ops`.
    #[command(hide = true)]
    CandlePeer {
        /// cpu or metal.
        #[arg(long, default_value = "cpu")]
        device: String,
    },
}

/// Number of measurements.
fn rounds() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::<usize>::new().range(1..=10_000)
}

#[derive(Debug, Args)]
pub(crate) struct BenchOpsArgs {
    /// auto, cpu, metal or cuda.
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Threads of the cpu; 0 for one a core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Type of all tensors: f32, bf16 or f16.
    #[arg(long, default_value = "f32")]
    pub(crate) dtype: String,
    /// Libraries to measure in turns with ours (a list).
    #[arg(long, value_delimiter = ',')]
    pub(crate) peers: Vec<Library>,
    /// Only operations whose name or shape contains this; may be given several times.
    #[arg(long)]
    pub(crate) filter: Vec<String>,
    /// Number of measurements; medians and the middle half are shown.
    #[arg(long, default_value_t = 5, value_parser = rounds())]
    pub(crate) rounds: usize,
    /// Print Markdown tables.
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Write everything that was measured to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// On a Mac: write the throughput into the table of docs/MPS_BENCHMARKS.md.
    #[arg(long, value_name = "FILE")]
    pub(crate) fill: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) profiling: ProfileArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchModelArgs {
    /// A folder, a GGUF file, a hub id or a short name [default: METAL_CANDLE_MODEL, else smollm2-135m]
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// auto, cpu, metal or cuda.
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Threads of the cpu; 0 for one a core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Type of the stored weights: f32, bf16 or f16.
    #[arg(long, default_value = "f32")]
    pub(crate) dtype: String,
    /// Libraries to measure in turns with ours (a list).
    #[arg(long, value_delimiter = ',')]
    pub(crate) peers: Vec<Library>,
    /// Number of measurements; medians and the middle half are shown.
    #[arg(long, default_value_t = 5, value_parser = rounds())]
    pub(crate) rounds: usize,
    /// Sequences of a training batch [default: 4]
    #[arg(long)]
    pub(crate) batch_size: Option<usize>,
    /// Tokens of a training sequence [default: 128]
    #[arg(long)]
    pub(crate) length: Option<usize>,
    /// Tokens of the prompt [default: 256]
    #[arg(long)]
    pub(crate) prompt: Option<usize>,
    /// Tokens generated after it [default: 64]
    #[arg(long)]
    pub(crate) tokens: Option<usize>,
    /// Print a Markdown table.
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Write everything that was measured to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) profiling: ProfileArgs,
}

impl BenchModelArgs {
    /// Sizes of the job.
    pub(crate) fn sizes(&self) -> Sizes {
        let default = Sizes::default();
        Sizes {
            rows: self.batch_size.unwrap_or(default.rows),
            length: self.length.unwrap_or(default.length),
            prompt: self.prompt.unwrap_or(default.prompt),
            tokens: self.tokens.unwrap_or(default.tokens),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// auto, cpu, metal or cuda.
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Threads of the cpu; 0 for one a core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Number of measurements of each loop of a hundred results.
    #[arg(long, default_value_t = 5, value_parser = rounds())]
    pub(crate) rounds: usize,
    /// Print a Markdown table.
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Write everything that was measured to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl Default for ExplainArgs {
    fn default() -> Self {
        Self { device: "auto".to_owned(), threads: 0, rounds: 5, markdown: false, json: None }
    }
}
