//! The `metal-candle` command-line tool.

use std::process::ExitCode;

fn main() -> ExitCode {
    metal_candle_cli::main()
}
