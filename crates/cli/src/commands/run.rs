//! `metal-candle run`: `generate` with a prompt, `chat` without one.

use std::io::IsTerminal;

use super::{chat, generate};
use crate::args::{ChatArgs, RunArgs};
use crate::failure::Failure;
use crate::session::Session;

pub(crate) fn run(args: &RunArgs, session: &Session) -> anyhow::Result<()> {
    let mut generate = args.generate.clone();
    if let Some(name) = &args.name {
        generate.model.model = Some(name.clone());
    }
    if !args.words.is_empty() {
        generate.prompt = Some(args.words.join(" "));
    }
    if generate.prompt.is_none() && std::io::stdin().is_terminal() {
        if generate.raw || generate.json {
            return Err(Failure::usage("--raw and --json need a prompt", "add one: --prompt \"…\"").into());
        }
        let args = ChatArgs { model: generate.model, sampling: generate.sampling };
        return chat::run(&args, session);
    }
    generate::run(&generate, session)
}
