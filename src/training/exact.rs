//! Exact answers: which of a data set's answers greedy decoding reproduces token for token.

use std::sync::atomic::{AtomicBool, Ordering};

use super::batches::{self, Batch, BatchOptions};
use super::data::Example;
use super::loss::{BatchShape, Programs, Purpose, batch_inputs};
use crate::graph::Graph;
use crate::models::{AdapterParameters, Decoder};
use crate::tensor::{DType, TensorSpec};
use crate::{Error, Result};

/// First trained token of an example that is not the model's most probable one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Miss {
    /// Index of the example.
    pub example: usize,
    /// Index of the token in the example.
    pub position: usize,
    /// The most probable token there.
    pub predicted: u32,
}

/// Finds the examples whose trained tokens are not each the model's most probable token after the tokens before it.
/// Returns the first miss of each, in the order of the examples.
///
/// Greedy decoding picks the most probable token at every step. If every pick given the right prefix is right, decoding
/// never leaves that prefix, so `generate` with temperature 0 returns the answers of all other examples token for token,
/// the end token included. One forward pass per batch replaces one decode step per token. An example that is returned
/// may still get the right text by other tokens: only decoding it can tell.
///
/// `progress` receives the numbers of finished batches and of all batches.
///
/// # Errors
/// Returns an error if `examples` is empty, if an example has no trained token, or if `stop` was set.
pub fn inexact_answers(
    model: &Decoder,
    adapter: Option<&AdapterParameters>,
    examples: &[Example],
    options: &BatchOptions,
    stop: &AtomicBool,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<Miss>> {
    let untrained = |example: &Example| !example.supervised.iter().skip(1).any(|&trained| trained);
    if examples.is_empty() {
        return Err(Error::invalid("exact answers", "there is no example to compare"));
    }
    if let Some(index) = examples.iter().position(untrained) {
        return Err(Error::invalid(format!("example {}", index + 1), "has no trained token to compare"));
    }
    if options.batch_size == 0 {
        return Err(Error::invalid("batch size", "is 0; use 1 or more"));
    }
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&index| examples[index].tokens.len());
    let chunks: Vec<&[usize]> = order.chunks(options.batch_size).collect();
    let mut programs = Programs::default();
    let mut missed = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let rows: Vec<Example> = chunk.iter().map(|&index| examples[index].clone()).collect();
        let batch = &batches::in_order(&rows, options)?[0];
        if stop.load(Ordering::Relaxed) {
            let advice = "nothing was written; run it again".to_owned();
            return Err(Error::Interrupted { step: index, advice });
        }
        progress(index, chunks.len());
        let shape = BatchShape::of(batch);
        let program = programs.get(shape, Purpose::Evaluate, || {
            let graph = Graph::new();
            let tokens = TensorSpec::u32([shape.rows * shape.length]);
            let ids = graph.input("ids", tokens.clone());
            let positions = graph.input("positions", tokens);
            let picked = graph.input("rows", TensorSpec::u32([shape.supervised]));
            let hidden =
                model.record_sequences(&graph, &ids, &positions, shape.rows, adapter, None, false)?;
            let picked = hidden.embedding(&picked, DType::F32)?;
            let logits = model.record_logits(&graph, &picked, adapter)?;
            let (graph, best) = graph.fused(&[logits.arg_max()?])?;
            model.device().compile(&graph, &best, &[])
        })?;
        let [ids, positions, picked, ..] = batch_inputs(batch)?;
        let best = program.run(&[&ids, &positions, &picked])?.remove(0);
        let misses = first_misses(batch, best.as_slice::<u32>()?);
        missed.extend(misses.map(|miss| Miss { example: chunk[miss.example], ..miss }));
    }
    progress(chunks.len(), chunks.len());
    missed.sort_unstable_by_key(|miss| miss.example);
    Ok(missed)
}

/// Returns the first miss of each row of a batch that has one; a row's index stands for the example's.
fn first_misses(batch: &Batch, predicted: &[u32]) -> impl Iterator<Item = Miss> {
    let mut first: Vec<Option<Miss>> = vec![None; batch.rows];
    for ((&place, target), &predicted) in batch.supervised.iter().zip(&batch.targets).zip(predicted) {
        // The logits of a position predict the token after it.
        let (example, position) = (place as usize / batch.length, place as usize % batch.length + 1);
        let earlier = first[example].is_some_and(|miss| miss.position <= position);
        if *target != predicted && !earlier {
            first[example] = Some(Miss { example, position, predicted });
        }
    }
    first.into_iter().flatten()
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
        let misses = |predicted: &[u32]| first_misses(batch, predicted).collect::<Vec<_>>();
        let miss = |example, position, predicted| Miss { example, position, predicted };
        assert_eq!(misses(&[3, 4, 5, 6]), []);
        assert_eq!(misses(&[3, 9, 5, 6]), [miss(0, 3, 9)]);
        assert_eq!(misses(&[3, 4, 8, 9]), [miss(1, 2, 8)]);
        assert_eq!(misses(&[9, 4, 5, 7]), [miss(0, 2, 9), miss(1, 3, 7)]);
    }
}
