//! Exact answers: which of a data set's answers greedy decoding reproduces token for token.

use std::sync::atomic::{AtomicBool, Ordering};

use super::batches::{self, Batch, BatchOptions};
use super::data::Example;
use super::loss::{BatchShape, Programs, Purpose, batch_inputs};
use crate::graph::{Graph, LazyTensor};
use crate::models::{AdapterParameters, Decoder};
use crate::tensor::{DType, TensorSpec};
use crate::{Error, Result};

/// Finds the examples whose trained tokens are not each the model's most probable token after the tokens before it.
/// Returns their indices in ascending order.
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
) -> Result<Vec<usize>> {
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
            let (graph, best) = record_best(model, adapter, shape)?;
            model.device().compile(&graph, &best, &[])
        })?;
        let [ids, positions, picked, ..] = batch_inputs(batch)?;
        let best = program.run(&[&ids, &positions, &picked])?.remove(0);
        missed.extend(rows_with_a_miss(batch, best.as_slice::<u32>()?).map(|row| chunk[row]));
    }
    progress(chunks.len(), chunks.len());
    missed.sort_unstable();
    Ok(missed)
}

/// Records the most probable token at every trained position of a batch.
pub(super) fn record_best(
    model: &Decoder,
    adapter: Option<&AdapterParameters>,
    shape: BatchShape,
) -> Result<(Graph, Vec<LazyTensor>)> {
    let graph = Graph::new();
    let tokens = TensorSpec::u32([shape.rows * shape.length]);
    let ids = graph.input("ids", tokens.clone());
    let positions = graph.input("positions", tokens);
    let picked = graph.input("rows", TensorSpec::u32([shape.supervised]));
    let hidden = model.record_sequences(&graph, &ids, &positions, shape.rows, adapter, None, false)?;
    let picked = hidden.embedding(&picked, DType::F32)?;
    let logits = model.record_logits(&graph, &picked, adapter)?;
    graph.fused(&[logits.arg_max()?])
}

/// Returns the rows of a batch in which a predicted token differs from its target.
fn rows_with_a_miss(batch: &Batch, predicted: &[u32]) -> impl Iterator<Item = usize> {
    let mut missed = vec![false; batch.rows];
    for ((&position, target), predicted) in batch.supervised.iter().zip(&batch.targets).zip(predicted) {
        missed[position as usize / batch.length] |= target != predicted;
    }
    missed.into_iter().enumerate().filter_map(|(row, missed)| missed.then_some(row))
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
        let misses = |predicted: &[u32]| rows_with_a_miss(batch, predicted).collect::<Vec<_>>();
        assert_eq!(misses(&[3, 4, 5, 6]), [] as [usize; 0]);
        assert_eq!(misses(&[3, 9, 5, 6]), [0]);
        assert_eq!(misses(&[3, 4, 9, 9]), [1]);
        assert_eq!(misses(&[9, 4, 5, 9]), [0, 1]);
    }
}
