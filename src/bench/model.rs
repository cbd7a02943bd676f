//! A training step, prefill and decode of a model: the job of `metal-candle bench train` and `bench generate`, and of
//! `cargo bench --bench model`.

use std::path::Path;
use std::time::Instant;

use crate::inference::Generator;
use crate::models::{AdapterParameters, Decoder};
use crate::training::batches::Batch;
use crate::training::{
    Adapter, Example, LoraConfig, OptimizerOptions, Schedule, ScheduleKind, Targets, TrainOptions, Trainer,
};
use crate::{Error, Result};

/// How large a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Sequences of a training batch.
    pub rows: usize,
    /// Tokens of each.
    pub length: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Tokens generated after it.
    pub tokens: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { rows: 4, length: 128, prompt: 256, tokens: 64 }
    }
}

/// Token ids without meaning, the same on every machine: `(100 + i·7919 mod 40000) mod vocabulary`.
pub fn token_ids(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| ((100 + i * 7919 % 40_000) % vocab) as u32).collect()
}

/// LoRA training of r = 8 on q and v: every token but each row's last is trained, AdamW at 1e-4.
pub struct Training<'a> {
    trainer: Trainer<'a>,
    batch: Batch,
}

/// The sequences of a training batch.
pub fn training_rows(sizes: Sizes, vocab: usize) -> Vec<Vec<u32>> {
    token_ids(sizes.rows * sizes.length, vocab).chunks(sizes.length.max(1)).map(<[u32]>::to_vec).collect()
}

/// What a [`Training`] borrows: a trainer wants examples, though here every step is given its batch.
#[derive(Debug, Clone)]
pub struct TrainingData {
    sizes: Sizes,
    examples: Vec<Example>,
}

impl TrainingData {
    /// For a model.
    ///
    /// # Errors
    /// A size is 0, or longer than the model's context.
    pub fn new(sizes: Sizes, model: &Decoder) -> Result<Self> {
        let (vocab, context) = (model.config().vocab, model.config().context);
        if sizes.rows == 0 || sizes.length < 2 || sizes.length > context {
            let message = format!(
                "{} x {} tokens: at least one row of 2 to {context} tokens is needed",
                sizes.rows, sizes.length
            );
            return Err(Error::invalid("training batch", message));
        }
        let tokens = token_ids(sizes.length, vocab);
        let supervised = vec![true; sizes.length];
        Ok(Self { sizes, examples: vec![Example { tokens, supervised }] })
    }
}

impl<'a> Training<'a> {
    /// A run with the adapter that its seed gives, always the same; nothing is written to `out` by steps.
    pub fn new(model: &'a Decoder, data: &'a TrainingData, out: &Path) -> Result<Self> {
        let sizes = data.sizes;
        let config = LoraConfig {
            targets: Targets::List(vec!["q_proj".to_owned(), "v_proj".to_owned()]),
            ..LoraConfig::default()
        };
        let schedule = Schedule {
            kind: ScheduleKind::Constant,
            learning_rate: 1e-4,
            warmup: 0,
            steps: usize::MAX,
            minimum: 0.0,
        };
        let options = TrainOptions {
            steps: usize::MAX,
            batch_size: sizes.rows,
            accumulation: 1,
            max_length: sizes.length,
            schedule,
            optimizer: OptimizerOptions::default(),
            eval_every: 0,
            report_every: 1,
            save_every: 0,
            keep_checkpoints: 1,
            patience: 0,
            seed: 0,
            checkpoint_layers: false,
            resume: false,
        };
        let trainer = Trainer::new(model, config, None, options, &data.examples, &[], out)?;
        let ids: Vec<u32> = training_rows(sizes, model.config().vocab).concat();
        let supervised: Vec<u32> =
            (0..ids.len()).filter(|i| i % sizes.length != sizes.length - 1).map(|i| i as u32).collect();
        let batch = Batch {
            rows: sizes.rows,
            length: sizes.length,
            targets: supervised.iter().map(|&at| ids[at as usize + 1]).collect(),
            supervised,
            real_tokens: ids.len(),
            ids,
        };
        Ok(Self { trainer, batch })
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        self.batch.real_tokens
    }

    /// The adapter as it is now.
    pub fn adapter(&self) -> Result<Adapter> {
        self.trainer.adapter_now()
    }

    /// Forward, backward and update: the seconds, and the loss before the update. The loss and the gradients' norm are in
    /// the host's memory when it returns.
    pub fn step(&mut self) -> Result<(f64, f64)> {
        let begun = Instant::now();
        let done = self.trainer.train_on(std::slice::from_ref(&self.batch))?;
        Ok((begun.elapsed().as_secs_f64(), done.loss))
    }
}

/// A prompt and its most probable continuation.
pub struct Generation<'a> {
    generator: Generator<'a>,
    prompt: Vec<u32>,
    tokens: usize,
}

/// Seconds of a prompt and of the tokens after it, and these.
#[derive(Debug, Clone, PartialEq)]
pub struct Continued {
    /// Seconds until the prompt's last logits were there.
    pub prefill: f64,
    /// Seconds until those after the last token were there.
    pub decode: f64,
    /// The tokens.
    pub tokens: Vec<u32>,
}

impl<'a> Generation<'a> {
    /// With a cache that is large enough, and everything compiled.
    pub fn new(model: &'a Decoder, adapter: Option<&'a AdapterParameters>, sizes: Sizes) -> Result<Self> {
        if sizes.tokens == 0 {
            return Err(Error::invalid("tokens", "is 0; generate at least one"));
        }
        let mut job = Self {
            generator: Generator::new(model, adapter)?,
            prompt: token_ids(sizes.prompt, model.config().vocab),
            tokens: sizes.tokens,
        };
        if sizes.prompt + sizes.tokens >= model.config().context {
            let message = format!(
                "{} tokens and {} more: the model's context is {}",
                sizes.prompt,
                sizes.tokens,
                model.config().context
            );
            return Err(Error::invalid("prompt", message));
        }
        job.generator.read(&job.prompt, job.tokens + 1)?;
        job.run()?;
        Ok(job)
    }

    /// The prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// The logits after the prompt.
    pub fn logits(&mut self) -> Result<Vec<f32>> {
        self.generator.reset();
        self.generator.next_logits(&self.prompt)
    }

    /// Reads the prompt anew and goes on by the most probable token; every token's logits are in the host's memory
    /// before the next.
    pub fn run(&mut self) -> Result<Continued> {
        self.generator.reset();
        let mut all = self.prompt.clone();
        let begun = Instant::now();
        let mut logits = self.generator.next_logits(&all)?;
        let prefill = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        for _ in 0..self.tokens {
            let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            all.push(best.map_or(0, |(id, _)| id as u32));
            logits = self.generator.next_logits(&all)?;
        }
        let decode = begun.elapsed().as_secs_f64();
        Ok(Continued { prefill, decode, tokens: all.split_off(self.prompt.len()) })
    }
}
