//! Exact answers: how many answers of a data set the model gives as they are written there.

use std::ops::Range;

use metal_candle::inference::{Finish, GenerateOptions, Generator};
use metal_candle::models::AdapterParameters;
use metal_candle::training::batches::BatchOptions;
use metal_candle::training::{Example, Miss, inexact_answers};

use crate::model::Loaded;
use crate::session::Session;

/// Number of answers that the model gives exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExactAnswers {
    /// Number of examples whose greedy answer equals theirs, its end included.
    pub(crate) exact: usize,
    /// Number of examples compared.
    pub(crate) examples: usize,
}

impl ExactAnswers {
    /// Compares greedy answers with those of the examples.
    ///
    /// One forward pass finds the answers that are reproduced token for token. The others are decoded for as long as
    /// they agree with the expected text, since the same text can be made of other tokens.
    pub(crate) fn count(
        loaded: &Loaded,
        adapter: Option<&AdapterParameters>,
        examples: &[Example],
        options: &BatchOptions,
        session: &Session,
    ) -> anyhow::Result<Self> {
        let stop = session.interrupt.flag();
        let inexact = inexact_answers(&loaded.decoder, adapter, examples, options, &stop, &|_, _| ())?;
        let mut generator = Generator::new(&loaded.decoder, adapter)?;
        let mut exact = examples.len() - inexact.len();
        for miss in inexact {
            session.check_interrupt("counting exact answers")?;
            exact += usize::from(same_text(loaded, &mut generator, &examples[miss.example], miss)?);
        }
        Ok(Self { exact, examples: examples.len() })
    }

    /// Returns the share of exact answers in percent.
    pub(crate) fn percent(self) -> f64 {
        100.0 * self.exact as f64 / self.examples as f64
    }
}

/// Returns true if greedy decoding gives the text of the example's only answer and ends there. A chat with several
/// answers needs a prompt for each of them and is not decoded.
fn same_text(
    loaded: &Loaded,
    generator: &mut Generator<'_>,
    example: &Example,
    miss: Miss,
) -> anyhow::Result<bool> {
    let Some(answer) = only_answer(&example.supervised) else { return Ok(false) };
    let tokenizer = &loaded.files.tokenizer;
    let expected = tokenizer.decode(&example.tokens[answer.clone()])?;
    // The text up to and including the first token that differs. Decoding goes on only if it agrees with the answer.
    let mut begun = example.tokens[answer.start..miss.position].to_vec();
    begun.push(miss.predicted);
    if !agrees(&expected, &tokenizer.decode(&begun)?) {
        return Ok(false);
    }
    let options = GenerateOptions { max_tokens: 2 * answer.len() + 8, ..GenerateOptions::default() };
    let mut text = String::new();
    let answered =
        generator.generate(tokenizer, &example.tokens[..answer.start], &options, &mut |piece| {
            text += piece;
            expected.starts_with(&text)
        })?;
    Ok(answered.finish == Finish::EndOfText && answered.text == expected)
}

/// Returns true if `begun` can still become `expected`: it is its beginning, apart from a character whose bytes are not
/// complete yet.
fn agrees(expected: &str, begun: &str) -> bool {
    expected.starts_with(begun.trim_end_matches(char::REPLACEMENT_CHARACTER))
}

/// Returns the trained positions if they are one run.
fn only_answer(trained: &[bool]) -> Option<Range<usize>> {
    let start = trained.iter().position(|&trained| trained)?;
    let length = trained[start..].iter().take_while(|&&trained| trained).count();
    (!trained[start + length..].contains(&true)).then_some(start..start + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_has_left_the_expected_text_is_not_decoded_further() {
        assert!(agrees("9:30 am", "9:3"));
        assert!(agrees("Zoë", "Zo\u{fffd}"));
        assert!(agrees("9:30", "9:30"));
        assert!(!agrees("9:30", "9:15"));
        assert!(!agrees("9:30", "9:30 am"));
    }

    #[test]
    fn only_a_single_run_of_trained_tokens_is_an_answer() {
        assert_eq!(only_answer(&[false, true, true, false]), Some(1..3));
        assert_eq!(only_answer(&[false, true]), Some(1..2));
        assert_eq!(only_answer(&[false, true, false, true]), None);
        assert_eq!(only_answer(&[false, false]), None);
    }
}
