//! Loss over data, and the logits behind it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::batches::{self, Batch, BatchOptions};
use super::data::Example;
use super::loss::{BatchShape, Programs, Purpose, batch_inputs, record_loss};
use super::tensors::write_tensors;
use crate::graph::Graph;
use crate::models::{AdapterParameters, Decoder};
use crate::tensor::{DType, HostTensor, TensorSpec};
use crate::{Error, Result};

/// What an evaluation found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy of the evaluated tokens, in nats.
    pub loss: f64,
    /// How many tokens were evaluated.
    pub tokens: usize,
}

impl Evaluation {
    /// `e` to the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Evaluates a model on examples, shortest first. `progress` is told how many batches of how many are done.
pub fn evaluate(
    model: &Decoder,
    adapter: Option<&AdapterParameters>,
    examples: &[Example],
    options: &BatchOptions,
    stop: &AtomicBool,
    progress: &dyn Fn(usize, usize),
) -> Result<Evaluation> {
    let none = AdapterParameters::default();
    let adapter = adapter.unwrap_or(&none);
    let batches = batches::in_order(examples, options)?;
    let mut programs = Programs::default();
    let (mut loss, mut tokens) = (0.0, 0);
    for (index, batch) in batches.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            let advice = "nothing was written; run it again".to_owned();
            return Err(Error::Interrupted { step: index, advice });
        }
        progress(index, batches.len());
        let shape = BatchShape::of(batch);
        let program = programs.get(shape, Purpose::Evaluate, || {
            let (graph, output) = record_loss(model, adapter, shape, false, 0.0, false)?;
            model.device().compile(&graph, &[output], &[])
        })?;
        let inputs = batch_inputs(batch)?;
        let outputs = program.run(&inputs.iter().collect::<Vec<_>>())?;
        loss += f64::from(outputs[0].as_slice::<f32>()?[0]);
        tokens += batch.supervised.len();
    }
    progress(batches.len(), batches.len());
    model.check_files()?;
    if tokens == 0 {
        return Err(Error::invalid("evaluation", "no token of the data is evaluated"));
    }
    let loss = loss / tokens as f64;
    if !loss.is_finite() {
        let advice = "look for broken values in the model or the adapter".to_owned();
        return Err(Error::NonFinite { step: 0, what: "loss".to_owned(), value: loss, advice });
    }
    Ok(Evaluation { loss, tokens })
}

/// Writes the logits of every evaluated position, in the order of the examples: `logits` f32 `[n, vocab]`, `targets`
/// u32 `[n]` (the tokens that follow), `positions` u32 `[n]` (the last token that was read, as an index into `ids`),
/// `ids` u32 `[tokens]` (all tokens, one example after the other) and `lengths` u32 `[examples]` (how many of them
/// belong to each example).
pub fn write_logits(
    model: &Decoder,
    adapter: Option<&AdapterParameters>,
    examples: &[Example],
    options: &BatchOptions,
    path: &Path,
) -> Result<()> {
    let vocab = model.config().vocab;
    let (mut logits, mut targets, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ids, mut lengths) = (Vec::new(), Vec::new());
    for example in examples {
        let batches = batches::in_order(std::slice::from_ref(example), options)?;
        let found = logits_of(model, adapter, &batches[0])?;
        logits.extend_from_slice(&found.as_slice::<f32>()?[..batches[0].targets.len() * vocab]);
        targets.extend_from_slice(&batches[0].targets);
        positions.extend(batches[0].supervised.iter().map(|&position| ids.len() as u32 + position));
        ids.extend_from_slice(&example.tokens);
        lengths.push(example.tokens.len() as u32);
    }
    let tensors = [
        ("logits".to_owned(), HostTensor::from_slice(&logits, [targets.len(), vocab])?),
        ("targets".to_owned(), HostTensor::from_slice(&targets, [targets.len()])?),
        ("positions".to_owned(), HostTensor::from_slice(&positions, [positions.len()])?),
        ("ids".to_owned(), HostTensor::from_slice(&ids, [ids.len()])?),
        ("lengths".to_owned(), HostTensor::from_slice(&lengths, [lengths.len()])?),
    ];
    write_tensors(path, &tensors)
}

/// The logits at the supervised positions of a batch, padded to a bucket.
fn logits_of(model: &Decoder, adapter: Option<&AdapterParameters>, batch: &Batch) -> Result<HostTensor> {
    let graph = Graph::new();
    let tokens = TensorSpec::u32([batch.rows * batch.length]);
    let ids = graph.input("ids", tokens.clone());
    let positions = graph.input("positions", tokens);
    let picked = graph.input("rows", TensorSpec::u32([BatchShape::of(batch).supervised]));
    let hidden = model.record_sequences(&graph, &ids, &positions, batch.rows, adapter, None, false)?;
    let logits = model.record_logits(&graph, &hidden.embedding(&picked, DType::F32)?, adapter)?;
    let (graph, logits) = graph.fused(&[logits])?;
    let [ids, positions, picked, ..] = batch_inputs(batch)?;
    Ok(model.device().compile(&graph, &logits, &[])?.run(&[&ids, &positions, &picked])?.remove(0))
}

/// Cuts a text's tokens into sequences of at most `length`, which follow each other: each begins with the last token
/// of the one before, so that every token but the first is evaluated once.
pub fn windows(tokens: &[u32], length: usize) -> Result<Vec<Example>> {
    if length < 2 || tokens.len() < 2 {
        return Err(Error::invalid(
            "evaluation",
            "needs a text of at least two tokens and a length of 2 or more",
        ));
    }
    let starts = (0..tokens.len() - 1).step_by(length - 1);
    Ok(starts
        .map(|start| {
            let tokens = tokens[start..tokens.len().min(start + length)].to_vec();
            Example { supervised: (0..tokens.len()).map(|position| position > 0).collect(), tokens }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_evaluate_every_token_but_the_first_once() {
        let tokens: Vec<u32> = (0..10).collect();
        let windows = windows(&tokens, 4).unwrap();
        let evaluated: Vec<u32> = windows.iter().flat_map(|w| w.tokens[1..].to_vec()).collect();
        assert_eq!(evaluated, (1..10).collect::<Vec<u32>>());
        assert!(windows.iter().all(|w| w.tokens.len() <= 4 && !w.supervised[0] && w.supervised[1]));
        assert!(super::windows(&[1], 4).is_err());
    }
}
