//! Sets of encoders' numbers. Numbers that are in use at one time lie close together, so that a bit a number is small
//! and quick to unite: the model unites such sets at every command.

use crate::ordering::Number;

/// Numbers of encoders.
#[derive(Debug, Clone, Default)]
pub(crate) struct EncoderSet {
    /// The number of bit 0 of the first word, divided by 64.
    first: usize,
    words: Vec<u64>,
}

impl EncoderSet {
    fn place(number: Number) -> (usize, u64) {
        ((number / 64) as usize, 1 << (number % 64))
    }

    /// Makes room for the words `from..to`.
    fn cover(&mut self, from: usize, to: usize) {
        if self.words.is_empty() {
            self.first = from;
        }
        if from < self.first {
            let missing = self.first - from;
            self.words.splice(0..0, std::iter::repeat_n(0, missing));
            self.first = from;
        }
        let length = self.words.len().max(to.saturating_sub(self.first));
        self.words.resize(length, 0);
    }

    /// Adds a number.
    pub(crate) fn insert(&mut self, number: Number) {
        let (word, bit) = Self::place(number);
        self.cover(word, word + 1);
        self.words[word - self.first] |= bit;
    }

    /// Takes a number out.
    pub(crate) fn remove(&mut self, number: Number) {
        let (word, bit) = Self::place(number);
        if let Some(found) = word.checked_sub(self.first).and_then(|at| self.words.get_mut(at)) {
            *found &= !bit;
        }
    }

    /// Whether it holds a number.
    pub(crate) fn contains(&self, number: Number) -> bool {
        let (word, bit) = Self::place(number);
        word.checked_sub(self.first).and_then(|at| self.words.get(at)).is_some_and(|found| found & bit != 0)
    }

    /// Whether it holds every number of another set.
    pub(crate) fn contains_all(&self, other: &Self) -> bool {
        other.words.iter().enumerate().all(|(at, &wanted)| {
            let word = (other.first + at).checked_sub(self.first).and_then(|at| self.words.get(at));
            wanted & !word.copied().unwrap_or(0) == 0
        })
    }

    /// Adds the numbers of another set.
    pub(crate) fn unite(&mut self, other: &Self) {
        if other.words.is_empty() {
            return;
        }
        self.cover(other.first, other.first + other.words.len());
        let words = &mut self.words[other.first - self.first..];
        words.iter_mut().zip(&other.words).for_each(|(mine, theirs)| *mine |= theirs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_a_plain_set() {
        let numbers = [700, 3, 64, 63, 128, 129, 640, 3];
        let (mut left, mut right) = (EncoderSet::default(), EncoderSet::default());
        for (at, &number) in numbers.iter().enumerate() {
            if at % 2 == 0 { left.insert(number) } else { right.insert(number) }
        }
        let mut both = left.clone();
        both.unite(&right);
        let held: Vec<Number> = (0..1000).filter(|&number| both.contains(number)).collect();
        assert_eq!(held, [3, 63, 64, 128, 129, 640, 700]);
        assert!(both.contains_all(&left) && both.contains_all(&right));
        assert!(!left.contains_all(&right));
        both.remove(64);
        assert!(!both.contains(64) && !both.contains_all(&left));
        let mut other_way = right;
        other_way.unite(&left);
        assert!(other_way.contains(3) && other_way.contains(700));
    }
}
