//! Open directories, kept in a bounded cache: never one descriptor per inode.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

/// Which directory: a node's number, and which of its layers.
pub type Key = (u64, u32);

const SHARDS: usize = 16;

/// A second-chance cache of open directories. Those in use stay open after they were evicted, until dropped.
#[derive(Debug)]
pub struct FdCache<T> {
    shards: Vec<Mutex<Shard<T>>>,
    per_shard: usize,
}

#[derive(Debug)]
struct Shard<T> {
    open: HashMap<Key, Slot<T>>,
    /// Keys in the order of the hand; may name directories that are closed already.
    hand: VecDeque<Key>,
}

#[derive(Debug)]
struct Slot<T> {
    dir: T,
    used: bool,
}

impl<T: Clone> FdCache<T> {
    /// A cache of at most about `capacity` descriptors.
    pub fn new(capacity: usize) -> Self {
        let shard = || Mutex::new(Shard { open: HashMap::new(), hand: VecDeque::new() });
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), per_shard: (capacity / SHARDS).max(4) }
    }

    fn shard(&self, key: Key) -> Option<&Mutex<Shard<T>>> {
        let hash = key.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(key.1).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.shards.get((hash >> 60) as usize % SHARDS)
    }

    /// The open directory, if it is in the cache.
    pub fn get(&self, key: Key) -> Option<T> {
        let mut shard = self.shard(key)?.lock();
        let slot = shard.open.get_mut(&key)?;
        slot.used = true;
        Some(slot.dir.clone())
    }

    /// Puts an open directory in, and another one out if there is no room.
    pub fn insert(&self, key: Key, dir: T) {
        let Some(shard) = self.shard(key) else { return };
        let mut shard = shard.lock();
        let Shard { open, hand } = &mut *shard;
        while open.len() >= self.per_shard {
            let Some(oldest) = hand.pop_front() else { break };
            match open.get_mut(&oldest) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    hand.push_back(oldest);
                }
                Some(_) => {
                    open.remove(&oldest);
                }
                None => {}
            }
        }
        if open.insert(key, Slot { dir, used: false }).is_none() {
            hand.push_back(key);
        }
        // Keys of removed slots linger in the queue; do not let them pile up.
        if hand.len() > 2 * self.per_shard {
            hand.retain(|key| open.contains_key(key));
        }
    }

    /// Closes everything.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.open.clear();
            shard.hand.clear();
        }
    }

    /// Closes a directory that will not be used again.
    pub fn remove(&self, key: Key) {
        if let Some(shard) = self.shard(key) {
            shard.lock().open.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_capacity_and_keeps_what_is_used() {
        let cache = FdCache::new(SHARDS * 8);
        cache.insert((0, 0), 0u64);
        for n in 1..10_000u64 {
            cache.insert((n, 0), n);
            assert_eq!(cache.get((0, 0)), Some(0), "used all the time, evicted after {n}");
        }
        let open: usize = cache.shards.iter().map(|s| s.lock().open.len()).sum();
        assert!(open <= SHARDS * 8, "{open}");
        let queued: usize = cache.shards.iter().map(|s| s.lock().hand.len()).sum();
        assert!(queued <= SHARDS * 17, "{queued}");
        cache.remove((0, 0));
        assert_eq!(cache.get((0, 0)), None);
        cache.clear();
        assert_eq!(cache.shards.iter().map(|s| s.lock().open.len()).sum::<usize>(), 0);
    }
}
