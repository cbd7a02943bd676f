//! The summed loss of a batch as a program: what training differentiates and evaluation reads.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::batches::Batch;
use crate::Result;
use crate::backend::Program;
use crate::graph::{Graph, LazyTensor};
use crate::models::{AdapterParameters, Decoder};
use crate::tensor::{DType, HostTensor, TensorSpec};

/// Supervised positions are padded to a multiple of this, so that few programs serve all batches.
const SUPERVISED_STEP: usize = 32;
/// How many programs are kept; recording one anew takes less time than running it once.
const MAX_PROGRAMS: NonZeroUsize = NonZeroUsize::new(32).expect("is not zero");

/// What a program does with the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Purpose {
    /// Reads it.
    Evaluate,
    /// Adds up its gradients: all batches of a step but the last.
    Accumulate,
    /// Adds its gradients to those of the step, and updates the adapter by them: the last batch of a step.
    Update,
}

/// Programs by what decides their shapes.
pub(super) struct Programs(LruCache<(BatchShape, Purpose), Program>);

impl Default for Programs {
    fn default() -> Self {
        Self(LruCache::new(MAX_PROGRAMS))
    }
}

impl Programs {
    /// The program for a shape, made by `compile` if it is not kept.
    pub(super) fn get(
        &mut self,
        shape: BatchShape,
        purpose: Purpose,
        compile: impl FnOnce() -> Result<Program>,
    ) -> Result<Program> {
        if let Some(program) = self.0.get(&(shape, purpose)) {
            return Ok(program.clone());
        }
        let program = compile()?;
        self.0.put((shape, purpose), program.clone());
        Ok(program)
    }
}

/// The shapes of a batch's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BatchShape {
    pub(super) rows: usize,
    pub(super) length: usize,
    /// Supervised positions with their padding.
    pub(super) supervised: usize,
}

impl BatchShape {
    pub(super) fn of(batch: &Batch) -> Self {
        let supervised = batch.supervised.len().max(1).next_multiple_of(SUPERVISED_STEP);
        Self { rows: batch.rows, length: batch.length, supervised }
    }
}

/// Records the summed loss of the supervised positions of a batch. Inputs: ids, positions `[rows·length]`, then
/// rows, targets and weights of the supervised positions, and the dropout's seed if training.
pub(super) fn record_loss(
    model: &Decoder,
    adapter: &AdapterParameters,
    shape: BatchShape,
    train: bool,
    dropout: f32,
    checkpoint: bool,
) -> Result<(Graph, LazyTensor)> {
    let BatchShape { rows, length, supervised } = shape;
    let graph = Graph::new();
    let tokens = TensorSpec::u32([rows * length]);
    let ids = graph.input("ids", tokens.clone());
    let positions = graph.input("positions", tokens);
    let picked = graph.input("rows", TensorSpec::u32([supervised]));
    let targets = graph.input("targets", TensorSpec::u32([supervised]));
    let weights = graph.input("weights", TensorSpec::f32([supervised]));
    let dropout = if train {
        let seed = graph.input("seed", TensorSpec::u32([2]));
        (dropout > 0.0).then_some((dropout, seed))
    } else {
        None
    };
    let hidden =
        model.record_sequences(&graph, &ids, &positions, rows, Some(adapter), dropout.clone(), checkpoint)?;
    let hidden = hidden.embedding(&picked, DType::F32)?;
    let loss = model.record_loss(&graph, &hidden, &targets, &weights, Some(adapter), dropout.as_ref())?;
    let (graph, mut fused) = graph.fused(&[loss])?;
    Ok((graph, fused.remove(0)))
}

/// The tensors that [`record_loss`] takes, without the seed.
pub(super) fn batch_inputs(batch: &Batch) -> Result<[HostTensor; 5]> {
    let count = batch.supervised.len();
    let bucket = BatchShape::of(batch).supervised;
    let padded = |values: &[u32]| {
        let mut values = values.to_vec();
        values.resize(bucket, 0);
        HostTensor::from_slice(&values, [bucket])
    };
    let tokens = batch.rows * batch.length;
    let positions: Vec<u32> = (0..tokens).map(|index| (index % batch.length) as u32).collect();
    let weights: Vec<f32> = (0..bucket).map(|index| if index < count { 1.0 } else { 0.0 }).collect();
    Ok([
        HostTensor::from_slice(&batch.ids, [tokens])?,
        HostTensor::from_slice(&positions, [tokens])?,
        padded(&batch.supervised)?,
        padded(&batch.targets)?,
        HostTensor::from_slice(&weights, [bucket])?,
    ])
}
