//! The memory that a run will need, known before it begins.

use super::batches::{self, Batch};
use super::data::Example;
use super::exact::record_best;
use super::loss::{BatchShape, Purpose};
use super::trainer::{TrainOptions, Trainer};
use crate::Result;
use crate::tensor::resident;

/// Memory of a process beside tensors where the system does not report it: code, tokenizer, threads.
const PROCESS: usize = 64 << 20;

/// What a run takes for the first time: pages of code, stacks, compiled programs. Measured on a small model.
const FIRST_RUN: usize = 6 << 20;

/// Memory and size of a run, known before it starts.
#[derive(Debug, Clone, Copy)]
pub struct Estimate {
    /// Parameters that train.
    pub trainable: usize,
    /// Parameters of the model's matrices.
    pub total: usize,
    /// Bytes of the model's matrices.
    pub weights: usize,
    /// Bytes of the adapter, its gradients and the optimizer's state.
    pub optimizer: usize,
    /// Bytes of the intermediates of the largest batch.
    pub activations: usize,
    /// Bytes of everything else: the program, tokenizer, data, and copies of the adapter while a checkpoint is written.
    pub host: usize,
    /// Bytes that the process has in memory already, or 0 where the system does not report it.
    pub resident: usize,
    /// Bytes that the process has had in memory at most so far, or 0 where the system does not report it.
    pub peak: usize,
}

impl Estimate {
    /// Peak of the run: the sum of all parts, or what the process needed already if that is more.
    pub fn bytes(&self) -> usize {
        (self.weights + self.optimizer + self.activations + self.host).max(self.peak)
    }
}

impl Trainer<'_> {
    /// What the run will need, from the plans of its largest batches.
    pub fn estimate(&self) -> Result<Estimate> {
        let (weights, optimizer) = (self.model.bytes(), self.optimizer.bytes());
        let adapter = optimizer / 4;
        let train = batches::shuffled(self.train, &self.batch_options(), 0)?;
        let valid = batches::in_order(self.valid, &self.batch_options())?;
        let mut activations = self.largest_arena(&train, Purpose::Update)?;
        if self.options.accumulation > 1 {
            activations = activations.max(self.largest_arena(&train, Purpose::Accumulate)?);
        }
        activations = activations.max(self.largest_arena(&valid, Purpose::Evaluate)?);
        let memory = resident();
        // So far only the adapter of the optimizer's buffers has been written to, and all weights have been read.
        let process = memory.map_or(PROCESS, |memory| memory.now.saturating_sub(weights + adapter));
        let tokens =
            |batches: &[Batch]| batches.iter().map(|b| 4 * b.ids.len() + 8 * b.targets.len()).sum::<usize>();
        // A checkpoint holds copies of adapter, means and squares, and the larger of its files as bytes.
        let host = process + FIRST_RUN + 5 * adapter + tokens(&train);
        Ok(Estimate {
            trainable: self.modules.iter().map(|m| m.rank * (m.in_features + m.out_features)).sum(),
            total: self.model.matrix_parameters(),
            weights,
            optimizer,
            activations,
            host,
            resident: memory.map_or(0, |memory| memory.now),
            peak: memory.map_or(0, |memory| memory.peak),
        })
    }

    /// [`Trainer::estimate_beside`] with other options, of which those about batches and layers count.
    pub fn estimate_with(&mut self, options: TrainOptions, held_out: &[Example]) -> Result<Estimate> {
        let own = std::mem::replace(&mut self.options, options);
        let estimate = self.estimate_beside(held_out);
        self.options = own;
        estimate
    }

    /// [`Trainer::estimate`] of a run beside which the exact answers of these examples are counted
    /// ([`inexact_answers`](super::inexact_answers)), whose logits are computed at once.
    pub fn estimate_beside(&self, held_out: &[Example]) -> Result<Estimate> {
        let mut estimate = self.estimate()?;
        for batch in batches::in_order(held_out, &self.batch_options())? {
            let (graph, best) = record_best(self.model, Some(self.parameters()), BatchShape::of(&batch))?;
            let bytes = self.model.device().plan(&graph, &best, &[])?.arena_bytes;
            estimate.activations = estimate.activations.max(bytes);
        }
        Ok(estimate)
    }

    /// The arena of the batch that needs the largest: the one with most positions, with most trained tokens, or with the
    /// longest rows.
    fn largest_arena(&self, batches: &[Batch], purpose: Purpose) -> Result<usize> {
        let shapes = batches.iter().map(BatchShape::of);
        let by = |key: fn(&BatchShape) -> (usize, usize)| shapes.clone().max_by_key(key);
        let mut largest: Vec<BatchShape> = [
            by(|shape| (shape.rows * shape.length, shape.supervised)),
            by(|shape| (shape.supervised, shape.rows * shape.length)),
            by(|shape| (shape.length, shape.rows)),
        ]
        .into_iter()
        .flatten()
        .collect();
        largest.dedup();
        let mut bytes = 0;
        for shape in largest {
            let (graph, outputs, updates) = self.record(shape, purpose)?;
            bytes = bytes.max(self.model.device().plan(&graph, &outputs, &updates)?.arena_bytes);
        }
        Ok(bytes)
    }
}
