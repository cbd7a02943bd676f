//! Batches of examples of similar length.

use super::data::Example;
use crate::ops::philox;
use crate::{Error, Result};

/// Rows are padded to a multiple of this, so that few programs serve all batches.
const LENGTH_STEP: usize = 8;

/// How batches are made.
#[derive(Debug, Clone, Copy)]
pub struct BatchOptions {
    /// Sequences in a batch.
    pub batch_size: usize,
    /// The longest sequence; examples are cut to it before.
    pub max_length: usize,
    /// Decides the order.
    pub seed: u64,
}

/// Sequences side by side, padded at the end to one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// How many sequences.
    pub rows: usize,
    /// The padded length.
    pub length: usize,
    /// Token ids, `[rows·length]`; padding is 0.
    pub ids: Vec<u32>,
    /// Where the next token is trained: indices into the `rows·length` positions. Never padding.
    pub supervised: Vec<u32>,
    /// The next tokens there.
    pub targets: Vec<u32>,
    /// Tokens that are not padding.
    pub real_tokens: usize,
}

impl Batch {
    /// Positions that are computed.
    pub fn padded_tokens(&self) -> usize {
        self.rows * self.length
    }

    fn new(examples: &[&Example]) -> Self {
        let longest = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(0);
        let (rows, length) = (examples.len(), longest.next_multiple_of(LENGTH_STEP));
        let mut batch = Self {
            rows,
            length,
            ids: vec![0; rows * length],
            supervised: Vec::new(),
            targets: Vec::new(),
            real_tokens: 0,
        };
        for (row, example) in examples.iter().enumerate() {
            let start = row * length;
            batch.ids[start..][..example.tokens.len()].copy_from_slice(&example.tokens);
            batch.real_tokens += example.tokens.len();
            for (position, &token) in example.tokens.iter().enumerate().skip(1) {
                if example.supervised[position] {
                    batch.supervised.push((start + position - 1) as u32);
                    batch.targets.push(token);
                }
            }
        }
        batch
    }
}

/// The batches of one pass over the data, in an order that depends on the seed and the epoch only. Examples of similar
/// length go together, those of equal length in random order; then the batches are shuffled.
pub fn shuffled(examples: &[Example], options: &BatchOptions, epoch: usize) -> Result<Vec<Batch>> {
    check(examples, options)?;
    let mut random = Random { seed: options.seed, epoch: epoch as u32, draws: 0 };
    let mut order: Vec<usize> = (0..examples.len()).collect();
    random.shuffle(&mut order);
    order.sort_by_key(|&index| examples[index].tokens.len());
    let mut batches = grouped(examples, &order, options.batch_size);
    random.shuffle(&mut batches);
    Ok(batches)
}

/// Batches by length, the same every time.
pub fn in_order(examples: &[Example], options: &BatchOptions) -> Result<Vec<Batch>> {
    check(examples, options)?;
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&index| examples[index].tokens.len());
    Ok(grouped(examples, &order, options.batch_size))
}

fn check(examples: &[Example], options: &BatchOptions) -> Result<()> {
    if options.batch_size == 0 {
        return Err(Error::invalid("batch size", "is 0; use 1 or more"));
    }
    for (index, Example { tokens, supervised }) in examples.iter().enumerate() {
        if tokens.len() != supervised.len() {
            let message =
                format!("has {} tokens and {} marks of supervision", tokens.len(), supervised.len());
            return Err(Error::invalid(format!("example {}", index + 1), message));
        }
    }
    Ok(())
}

fn grouped(examples: &[Example], order: &[usize], size: usize) -> Vec<Batch> {
    let batch =
        |indices: &[usize]| Batch::new(&indices.iter().map(|&index| &examples[index]).collect::<Vec<_>>());
    order.chunks(size).map(batch).collect()
}

/// Random numbers that depend on seed, epoch and their own number.
struct Random {
    seed: u64,
    epoch: u32,
    draws: u32,
}

impl Random {
    /// Fisher and Yates' shuffle.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let words = philox([self.draws, 0, self.epoch, 2], [self.seed as u32, (self.seed >> 32) as u32]);
            self.draws += 1;
            let wide = u64::from(words[0]) << 32 | u64::from(words[1]);
            items.swap(last, ((u128::from(wide) * (last as u128 + 1)) >> 64) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(length: usize, first: u32) -> Example {
        let tokens = (first..first + length as u32).collect();
        Example { tokens, supervised: (0..length).map(|position| position >= length / 2).collect() }
    }

    fn options(batch_size: usize, seed: u64) -> BatchOptions {
        BatchOptions { batch_size, max_length: 512, seed }
    }

    #[test]
    fn positions_point_at_trained_tokens_and_never_at_padding() {
        let examples = [example(4, 10), example(6, 100)];
        let batch = &in_order(&examples, &options(2, 0)).unwrap()[0];
        assert_eq!((batch.rows, batch.length, batch.real_tokens, batch.padded_tokens()), (2, 8, 10, 16));
        assert_eq!(batch.ids[..5], [10, 11, 12, 13, 0]);
        // Tokens 2 and 3 of the first row, 3 to 5 of the second, each predicted from the position before it.
        assert_eq!(batch.supervised, [1, 2, 10, 11, 12]);
        assert_eq!(batch.targets, [12, 13, 103, 104, 105]);
    }

    #[test]
    fn every_example_comes_once_an_epoch_in_a_repeatable_order() {
        let examples: Vec<Example> = (0..50).map(|i| example(2 + i * 7 % 90, 1000 * i as u32)).collect();
        let epoch = |seed, epoch| shuffled(&examples, &options(4, seed), epoch).unwrap();
        let firsts = |batches: &[Batch]| -> Vec<u32> {
            let rows =
                |batch: &Batch| (0..batch.rows).map(|row| batch.ids[row * batch.length]).collect::<Vec<_>>();
            batches.iter().flat_map(rows).collect()
        };
        let one = epoch(1, 0);
        let mut all = firsts(&one);
        all.sort_unstable();
        assert_eq!(all, (0..50).map(|i| 1000 * i).collect::<Vec<u32>>());
        assert_eq!(one, epoch(1, 0));
        assert_ne!(firsts(&one), firsts(&epoch(1, 1)));
        assert_ne!(firsts(&one), firsts(&epoch(2, 0)));
        let waste: usize = one.iter().map(|batch| batch.padded_tokens() - batch.real_tokens).sum();
        let total: usize = one.iter().map(Batch::padded_tokens).sum();
        // Neighbours by length differ by 2 tokens at the most here, and 8 is the step: at most 9 of a mean of 50 wasted.
        assert!((waste as f64) < 0.18 * total as f64, "{waste} of {total}");
        assert!(shuffled(&examples, &options(0, 0), 0).is_err());
    }

    #[test]
    fn an_example_with_a_mark_too_few_is_refused() {
        let mut examples = [example(4, 10), example(6, 100)];
        examples[1].supervised.pop();
        for error in [
            shuffled(&examples, &options(2, 0), 0).unwrap_err(),
            in_order(&examples, &options(2, 0)).unwrap_err(),
        ] {
            assert!(error.to_string().contains("example 2: has 6 tokens and 5 marks"), "{error}");
        }
    }
}
