//! `metal-candle generate`.

use std::io::Read;

use metal_candle::inference::{Finish, GenerateOptions, Generation, Generator, SamplingOptions};
use serde_json::{Value, json};

use crate::args::{GenerateArgs, SamplingArgs};
use crate::failure::Failure;
use crate::model::Loaded;
use crate::profiling::Profiling;
use crate::session::{Session, print, print_line};
use metal_candle::counts::counted;

pub(crate) fn run(args: &GenerateArgs, session: &Session) -> anyhow::Result<()> {
    let options = options(&args.sampling)?;
    args.sampling.without_effect().into_iter().for_each(|text| session.note(text));
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| {
                Failure::input(format!("standard input: {e}"), "pass text in UTF-8, or --prompt")
            })?;
            piped(&text).to_owned()
        }
    };
    if prompt.trim().is_empty() {
        return Err(Failure::input("the prompt is empty", "pass one: --prompt \"…\"").into());
    }
    let (loaded, adapter) = Loaded::from_args(&args.model, session)?;
    let tokens = tokens(&loaded, &prompt, args.sampling.system.as_deref(), args.raw)?;
    let mut generator = Generator::new(&loaded.decoder, adapter.as_ref())?;
    let mut failed = None;
    let profiling = Profiling::begin(&args.profiling, loaded.decoder.device());
    let generation = generator.generate(&loaded.files.tokenizer, &tokens, &options, &mut |text| {
        if !args.json
            && let Err(error) = print(text)
        {
            failed = Some(error);
        }
        failed.is_none() && !session.interrupt.requested()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    if !args.json {
        print_line("")?;
    }
    profiling.finish(session)?;
    if args.json {
        return print_line(&summary(&generation, tokens.len()).to_string());
    }
    session.note(rates(&generation));
    session.check_interrupt("generating").map_err(Into::into)
}

/// A prompt that was piped in, without the line ends that close it and the byte-order mark that Windows puts before it.
fn piped(text: &str) -> &str {
    text.trim_start_matches('\u{feff}').trim_end_matches(['\n', '\r'])
}

/// Checked options.
pub(crate) fn options(args: &SamplingArgs) -> anyhow::Result<GenerateOptions> {
    let sampling = SamplingOptions {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    };
    sampling.validate()?;
    if args.max_tokens == 0 {
        return Err(Failure::input("max-tokens is 0", "use 1 or more").into());
    }
    if args.stop.iter().any(String::is_empty) {
        return Err(
            Failure::input("stop: is an empty text", "leave it out, or name the text to stop at").into()
        );
    }
    Ok(GenerateOptions { max_tokens: args.max_tokens, sampling, stop: args.stop.clone(), eos: None })
}

/// The prompt's tokens: by the chat template if there is one, else as they are.
pub(crate) fn tokens(
    loaded: &Loaded,
    prompt: &str,
    system: Option<&str>,
    raw: bool,
) -> anyhow::Result<Vec<u32>> {
    let mut messages: Vec<Value> =
        system.map(|text| json!({"role": "system", "content": text})).into_iter().collect();
    messages.push(json!({"role": "user", "content": prompt}));
    let tokenizer = &loaded.files.tokenizer;
    Ok(match &loaded.files.chat_template {
        Some(template) if !raw => {
            tokenizer.encode(&template.render(&template.readable(&messages), None, true)?, false)?
        }
        template => {
            if system.is_some() {
                let why =
                    if raw { "--raw leaves out the chat template" } else { "the model has no chat template" };
                let cause = format!("--system has no effect here: {why}, in which the system message goes");
                let advice = match template {
                    Some(_) => "leave out --raw or --system",
                    None => "write it into the prompt, or use a model tuned for chat",
                };
                return Err(Failure::input(cause, advice).into());
            }
            tokenizer.encode_prompt(prompt)?
        }
    })
}

fn summary(generation: &Generation, prompt_tokens: usize) -> Value {
    let finish = match generation.finish {
        Finish::EndOfText => "end",
        Finish::Stop => "stop",
        Finish::Length => "length",
        _ => "cancelled",
    };
    json!({
        "text": generation.text,
        "tokens": generation.tokens,
        "finish": finish,
        "prompt_tokens": prompt_tokens,
        "prefill_seconds": generation.prefill_seconds,
        "decode_seconds": generation.decode_seconds,
    })
}

/// Rates of prefill and decoding.
pub(crate) fn rates(generation: &Generation) -> String {
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    format!(
        "[prompt {}, {:.0} tokens/s; answer {}, {:.1} tokens/s]",
        counted(generation.prompt_tokens, "token"),
        rate(generation.prompt_tokens, generation.prefill_seconds),
        counted(generation.tokens.len(), "token"),
        rate(generation.tokens.len().saturating_sub(1), generation.decode_seconds)
    )
}

#[cfg(test)]
mod tests {
    use super::piped;

    #[test]
    fn line_ends_and_marks_of_every_system_are_left_out_of_a_piped_prompt() {
        for text in ["a b", "a b\n", "a b\r\n", "\u{feff}a b\r\n\r\n"] {
            assert_eq!(piped(text), "a b", "{text:?}");
        }
        assert_eq!(piped(" a\r\nb "), " a\r\nb ");
    }
}
