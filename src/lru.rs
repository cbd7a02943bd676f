//! A map of bounded size that forgets what was unused for longest.

use std::collections::HashMap;
use std::hash::Hash;

/// At most `capacity` entries.
pub(crate) struct Lru<K, V> {
    entries: HashMap<K, (V, u64)>,
    clock: u64,
    capacity: usize,
}

impl<K: Eq + Hash, V: Clone> Lru<K, V> {
    /// An empty map for at least one entry.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { entries: HashMap::new(), clock: 0, capacity: capacity.max(1) }
    }

    /// A copy of an entry, which counts as using it.
    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        self.clock += 1;
        let (value, used) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(value.clone())
    }

    /// Inserts an entry, after the oldest has made room for it.
    pub(crate) fn put(&mut self, key: K, value: V) {
        self.clock += 1;
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&key) {
            let oldest = self.entries.values().map(|&(_, used)| used).min();
            self.entries.retain(|_, &mut (_, used)| Some(used) != oldest);
        }
        self.entries.insert(key, (value, self.clock));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_unused_for_longest_goes() {
        let mut map = Lru::new(2);
        map.put("a", 1);
        map.put("b", 2);
        assert_eq!(map.get(&"a"), Some(1));
        map.put("c", 3);
        assert_eq!((map.get(&"a"), map.get(&"b"), map.get(&"c")), (Some(1), None, Some(3)));
        map.put("c", 4);
        assert_eq!((map.get(&"a"), map.get(&"c")), (Some(1), Some(4)));
    }
}
