//! Exact answers: how many of a data set's answers greedy decoding would reproduce token for token.

use std::sync::atomic::{AtomicBool, Ordering};

use super::batches::{self, Batch, BatchOptions};
use super::data::Example;
use super::loss::{BatchShape, Programs, Purpose, batch_inputs};
use crate::graph::Graph;
use crate::models::{AdapterParameters, Decoder};
use crate::tensor::{DType, TensorSpec};
use crate::{Error, Result};

/// Number of answers that a model reproduces exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExactAnswers {
    /// Number of examples whose trained tokens are all reproduced.
    pub exact: usize,
    /// Number of examples compared.
    pub examples: usize,
}

impl ExactAnswers {
    /// Share of exact answers, from 0 to 1.
    pub fn share(&self) -> f64 {
        self.exact as f64 / self.examples as f64
    }
}

/// Counts the examples whose trained tokens are each the model's most probable token after the tokens before it.
///
/// Greedy decoding picks the most probable token at every step. If every pick given the right prefix is right, decoding
/// never leaves that prefix, so the count equals the number of answers that `generate` with temperature 0 returns token
/// for token, the end token included. One forward pass per batch replaces one decode step per token.
///
/// `progress` receives the numbers of finished batches and of all batches.
///
/// # Errors
/// Returns an error if `examples` is empty, if an example has no trained token, or if `stop` was set.
pub fn exact_answers(
    model: &Decoder,
    adapter: Option<&AdapterParameters>,
    examples: &[Example],
    options: &BatchOptions,
    stop: &AtomicBool,
    progress: &dyn Fn(usize, usize),
) -> Result<ExactAnswers> {
    let untrained = |example: &Example| !example.supervised.iter().skip(1).any(|&trained| trained);
    if examples.is_empty() {
        return Err(Error::invalid("exact answers", "there is no example to compare"));
    }
    if let Some(index) = examples.iter().position(untrained) {
        return Err(Error::invalid(format!("example {}", index + 1), "has no trained token to compare"));
    }
    let batches = batches::in_order(examples, options)?;
    let mut programs = Programs::default();
    let mut exact = 0;
    for (index, batch) in batches.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            let advice = "nothing was written; run it again".to_owned();
            return Err(Error::Interrupted { step: index, advice });
        }
        progress(index, batches.len());
        let shape = BatchShape::of(batch);
        let program = programs.get(shape, Purpose::Evaluate, || {
            let graph = Graph::new();
            let tokens = TensorSpec::u32([shape.rows * shape.length]);
            let ids = graph.input("ids", tokens.clone());
            let positions = graph.input("positions", tokens);
            let picked = graph.input("rows", TensorSpec::u32([shape.supervised]));
            let hidden =
                model.record_sequences(&graph, &ids, &positions, shape.rows, adapter, None, false)?;
            let logits = model.record_logits(&graph, &hidden.embedding(&picked, DType::F32)?, adapter)?;
            let (graph, best) = graph.fused(&[logits.arg_max()?])?;
            model.device().compile(&graph, &best, &[])
        })?;
        let [ids, positions, picked, ..] = batch_inputs(batch)?;
        let best = program.run(&[&ids, &positions, &picked])?.remove(0);
        exact += batch.rows - rows_with_a_miss(batch, best.as_slice::<u32>()?);
    }
    progress(batches.len(), batches.len());
    Ok(ExactAnswers { exact, examples: examples.len() })
}

/// Number of rows of a batch in which a predicted token differs from its target.
fn rows_with_a_miss(batch: &Batch, predicted: &[u32]) -> usize {
    let mut missed = vec![false; batch.rows];
    for ((&position, target), predicted) in batch.supervised.iter().zip(&batch.targets).zip(predicted) {
        missed[position as usize / batch.length] |= target != predicted;
    }
    missed.into_iter().filter(|&missed| missed).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_token_makes_its_row_a_miss_and_no_other() {
        let example = |tokens: [u32; 4]| Example {
            tokens: tokens.to_vec(),
            supervised: vec![false, false, true, true],
        };
        let options = BatchOptions { batch_size: 2, max_length: 8, seed: 0 };
        let batch = &batches::in_order(&[example([1, 2, 3, 4]), example([1, 2, 5, 6])], &options).unwrap()[0];
        assert_eq!(rows_with_a_miss(batch, &[3, 4, 5, 6]), 0);
        assert_eq!(rows_with_a_miss(batch, &[3, 9, 5, 6]), 1);
        assert_eq!(rows_with_a_miss(batch, &[3, 4, 9, 9]), 1);
        assert_eq!(rows_with_a_miss(batch, &[9, 4, 5, 9]), 2);
    }
}
