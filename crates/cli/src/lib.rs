//! The `metal-candle` command-line tool, as a library for its binary and for the fuzz target of settings.

// They panic where the stream cannot be written; `console` is the way to print.
#![deny(clippy::print_stderr, clippy::print_stdout)]
#![deny(unsafe_code)]

mod adapter_source;
mod aliases;
mod args;
mod base_name;
mod bench;
mod builtin;
mod cache;
mod commands;
mod config_file;
mod console;
mod data_source;
mod download;
mod exact;
mod failure;
mod fetch;
mod hub;
mod interrupt;
mod memory;
mod model;
mod model_name;
mod model_source;
mod output;
mod pip;
mod plot;
mod profiling;
mod progress;
mod record;
mod session;
mod settings;
mod snapshot;
mod template_vars;
mod usage;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use crate::args::Command;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::session::Session;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match usage::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let level = if cli.verbose { "metal_candle=debug" } else { "warn" };
    tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_writer(console::Notes::default)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .log_internal_errors(false)
        .init();
    let interrupt = match Interrupt::install() {
        Ok(interrupt) => interrupt,
        Err(error) => return report(&error, &Interrupt::default()),
    };
    let session = Session::new(interrupt.clone(), Progress::new(cli.quiet));
    match run(&cli.command, &session) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error, &interrupt),
    }
}

fn run(command: &Command, session: &Session) -> anyhow::Result<()> {
    match command {
        Command::Train(args) => commands::train::run(args, session),
        Command::Generate(args) => commands::generate::run(args, session),
        Command::Chat(args) => commands::chat::run(args, session),
        Command::Run(args) => commands::run::run(args, session),
        Command::List(args) => commands::list::run(args),
        Command::Eval(args) => commands::eval::run(args, session),
        Command::Data(args) => commands::data::run(args, session),
        Command::Merge(args) => commands::merge::run(args, session),
        Command::Pull(args) => commands::pull::run(args, session),
        Command::Doctor(args) => commands::doctor::run(args),
        Command::Bench(args) => commands::bench::run(args, session),
        Command::Tune(args) => commands::tune::run(args, session),
        Command::Template => commands::template::run(),
    }
}

/// One line of cause, one of advice.
fn report(error: &anyhow::Error, interrupt: &Interrupt) -> ExitCode {
    Failure::of(error, interrupt).report()
}

/// Reads a configuration file as `train --config` does, for a model of 30 layers and 100 examples. Returns the cause and
/// the advice if it is refused.
pub fn check_settings(path: &Path) -> Result<(), [String; 2]> {
    let check = || -> Result<(), Failure> {
        let flags = config_file::read(path)?.flags.with_built_in_defaults().with_defaults();
        let flags = flags.with_layers(30)?.with_steps(100)?;
        flags.validation()?;
        flags.lora()?;
        flags.options(false).map(|_| ())
    };
    check().map_err(|failure| [failure.cause, failure.advice])
}
