//! `metal-candle run`: `generate` with a prompt, `chat` without one.

use std::io::IsTerminal;
use std::path::Path;

use super::{chat, generate};
use crate::args::{ChatArgs, GenerateArgs, RunArgs};
use crate::failure::Failure;
use crate::model_source;
use crate::output::{quoted, quoted_text};
use crate::session::Session;

pub(crate) fn run(args: &RunArgs, session: &Session) -> anyhow::Result<()> {
    let mut generate = args.generate.clone();
    if let Some(name) = &args.name {
        check_name(name, args)?;
        generate.model.model = Some(name.clone());
    }
    if !args.words.is_empty() {
        generate.prompt = Some(args.words.join(" "));
    }
    if generate.prompt.is_none() && std::io::stdin().is_terminal() {
        return chat::run(&for_chat(generate)?, session);
    }
    generate::run(&generate, session)
}

/// Refuses a prompt or an adapter in the place of the model.
fn check_name(name: &str, args: &RunArgs) -> Result<(), Failure> {
    let is_adapter = Path::new(name).join("adapter_config.json").is_file();
    let prompt = match args.words.join(" ") {
        words if is_adapter && words.is_empty() => String::new(),
        words if is_adapter => format!(" --prompt {}", quoted_text(&words)),
        _ => format!(" --prompt {}", quoted_text(name)),
    };
    if is_adapter {
        let advice =
            format!("pass it by its flag: metal-candle run --adapter {}{prompt}", quoted(Path::new(name)));
        return Err(Failure::usage(format!("{name}: is an adapter, not a model"), advice));
    }
    let Err(refused) = model_source::parse(name) else { return Ok(()) };
    let is_prompt = args.words.is_empty()
        && (name.contains(char::is_whitespace) || args.generate.model.adapter.is_some());
    if !is_prompt {
        return Err(refused);
    }
    let cause = format!("'{name}' is not a model, which `metal-candle run` takes first, as ollama does");
    let advice = match &args.generate.model.adapter {
        Some(adapter) => format!("for a prompt: metal-candle run --adapter {}{prompt}", quoted(adapter)),
        None => format!("for a prompt: metal-candle run {} {}", model_source::DEFAULT, quoted_text(name)),
    };
    Err(Failure::usage(cause, advice))
}

/// The flags of `generate` as flags of `chat`. Those that `chat` does not have are refused.
fn for_chat(args: GenerateArgs) -> Result<ChatArgs, Failure> {
    let GenerateArgs { model, sampling, prompt: _, raw, json, profiling } = args;
    let given = [
        ("--raw", raw),
        ("--json", json),
        ("--profile", profiling.profile),
        ("--trace", profiling.trace.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Failure::usage(format!("{flag} needs a prompt"), "add one: --prompt \"…\"")),
        None => Ok(ChatArgs { model, sampling }),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn flags_that_a_chat_does_not_take_are_refused() {
        let of = |flags: &str| {
            let words = ["metal-candle", "run", "m"].into_iter().chain(flags.split_whitespace());
            let Command::Run(args) = Cli::parse_from(words).command else { unreachable!() };
            for_chat(args.generate).map(|args| args.sampling.max_tokens).map_err(|failure| failure.cause)
        };
        for flag in ["--raw", "--json", "--profile", "--trace x.json"] {
            let name = flag.split(' ').next().unwrap();
            assert_eq!(of(flag), Err(format!("{name} needs a prompt")));
        }
        assert_eq!(of("--max-tokens 7 --temperature 1 --template-var a=1"), Ok(7));
    }
}
