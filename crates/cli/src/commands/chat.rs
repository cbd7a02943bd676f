//! `metal-candle chat`.

use std::io::{BufRead, IsTerminal};

use metal_candle::inference::Generator;
use serde_json::{Value, json};

use super::generate::{options, rates};
use crate::args::ChatArgs;
use crate::failure::Failure;
use crate::model::Loaded;
use crate::session::{Session, print, print_line};

pub(crate) fn run(args: &ChatArgs, session: &Session) -> anyhow::Result<()> {
    let options = options(&args.sampling)?;
    args.sampling.without_effect().into_iter().for_each(|text| session.note(text));
    let (loaded, adapter) = Loaded::from_args(&args.model, session)?;
    let Some(template) = &loaded.files.chat_template else {
        let cause = format!("{} has no chat template", loaded.files.name);
        return Err(
            Failure::input(cause, "use a model tuned for chat, or `metal-candle generate --raw`").into()
        );
    };
    let mut generator = Generator::new(&loaded.decoder, adapter.as_ref())?;
    let system = || -> Vec<Value> {
        args.sampling.system.iter().map(|text| json!({"role": "system", "content": text})).collect()
    };
    let mut messages = system();
    let person = std::io::stdin().is_terminal();
    session.note(format!("{}: /reset forgets the conversation, /quit ends it", loaded.files.name));
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if person {
            print("> ")?;
        }
        let Some(line) = lines.next() else { break };
        let line = line.map_err(|e| Failure::input(format!("standard input: {e}"), "type text in UTF-8"))?;
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            "/reset" => {
                messages = system();
                generator.reset();
                session.note("forgotten");
                continue;
            }
            text => messages.push(json!({"role": "user", "content": text})),
        }
        session.interrupt.clear();
        let text = template.render(&template.readable(&messages), None, true)?;
        let prompt = loaded.files.tokenizer.encode(&text, false)?;
        let mut failed = None;
        let answer = generator.generate(&loaded.files.tokenizer, &prompt, &options, &mut |text| {
            failed = print(text).err();
            failed.is_none() && !session.interrupt.requested()
        });
        if let Some(error) = failed {
            return Err(error);
        }
        match answer {
            Ok(answer) => {
                print_line("")?;
                session.note(rates(&answer));
                messages.push(json!({"role": "assistant", "content": answer.text}));
            }
            // A conversation that outgrew the context is told, and can be begun anew.
            Err(error) => {
                session.note(format!("error: {error}; /reset begins anew"));
                messages.pop();
            }
        }
    }
    Ok(())
}
