//! How an open file is read.
//!
//! The kernel asks for one page of what it has not cached when a program reads here and there, and its readahead on the
//! lower file has nothing to go by either: each request waits for the disk. Who has read many places of a file will read
//! more of them, and a disk gives a hundred pages in little more time than one. (By a simulation, 20,000 random reads of
//! 4 KiB from 512 MiB wait 720 times for the disk, not 18,557 times.) A mapping is read so by the kernel from the first
//! fault on (`do_sync_mmap_readahead`); we wait for some reads, so that a look into a large file costs what it did.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Reads here and there, before we care.
const LOOKS: u32 = 16;
/// Longest read of that kind, in bytes: a longer one gains little.
const SHORT: usize = 64 << 10;
/// First length of what is read around a place, in bytes; it doubles after each [`STEP`] waits, up to the last.
const FIRST: u64 = 128 << 10;
const LAST: u64 = 1 << 20;
const STEP: u32 = 64;
const DOUBLINGS: u32 = (LAST / FIRST).ilog2();
/// No more of this.
const NEVER: u32 = u32::MAX;

/// What is known of the reads of an open file. Threads may overwrite each other's counts; it is an estimate.
#[derive(Debug, Default)]
pub struct ReadPattern {
    /// Where the last read ended.
    end: AtomicU64,
    /// Short reads that did not begin there.
    looks: AtomicU32,
    /// Of those after the first, how many had to wait for the disk.
    waits: AtomicU32,
}

/// What to do about a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Nothing.
    Plain,
    /// It is the first one, from the start of the file.
    First,
    /// It is time to find out whether the file may be read around at all.
    Ask,
    /// If it is not in memory, its surroundings are to be read as well.
    HereAndThere,
}

impl ReadPattern {
    /// Takes note of a read of `length` bytes at `offset`.
    pub fn note(&self, offset: u64, length: usize) -> Reading {
        let end = self.end.swap(offset + length as u64, Ordering::Relaxed);
        if end == 0 && offset == 0 {
            return Reading::First;
        }
        let goes_on = end == offset;
        let looks = self.looks.load(Ordering::Relaxed);
        if goes_on || length > SHORT || looks == NEVER {
            return Reading::Plain;
        }
        if looks > LOOKS {
            return Reading::HereAndThere;
        }
        self.looks.store(looks + 1, Ordering::Relaxed);
        if looks == LOOKS { Reading::Ask } else { Reading::Plain }
    }

    /// The file is not to be read around.
    pub fn give_up(&self) {
        self.looks.store(NEVER, Ordering::Relaxed);
    }

    /// Takes note that the read at `offset` is not in memory: where to begin reading, and how much.
    pub fn surroundings(&self, offset: u64) -> (u64, u64) {
        let waits = self.waits.load(Ordering::Relaxed);
        self.waits.store(waits.saturating_add(1), Ordering::Relaxed);
        let length = FIRST << (waits / STEP).min(DOUBLINGS);
        (offset - offset % length, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    #[test]
    fn reading_on_is_none_of_our_business() {
        let pattern = ReadPattern::default();
        assert_eq!(pattern.note(0, PAGE), Reading::First);
        for page in 1..1000 {
            assert_eq!(pattern.note(page * PAGE as u64, PAGE), Reading::Plain);
        }
        for look in 0..1000 {
            assert_eq!(pattern.note(look * (3 << 20), 1 << 20), Reading::Plain, "long ones");
        }
    }

    #[test]
    fn some_looks_are_free() {
        let pattern = ReadPattern::default();
        let mut last = 0;
        let mut place = || {
            last += 1 << 20;
            last
        };
        for _ in 0..LOOKS {
            assert_eq!(pattern.note(place(), PAGE), Reading::Plain);
        }
        assert_eq!(pattern.note(place(), PAGE), Reading::Ask);
        assert_eq!(pattern.note(place(), PAGE), Reading::HereAndThere);
        let here = place();
        assert_eq!(pattern.note(here, PAGE), Reading::HereAndThere);
        assert_eq!(pattern.note(here + PAGE as u64, PAGE), Reading::Plain, "it goes on where the last one ended");
        pattern.give_up();
        assert_eq!(pattern.note(place(), PAGE), Reading::Plain);
        assert_eq!(pattern.note(place(), PAGE), Reading::Plain);
    }

    #[test]
    fn surroundings_grow_and_hold_the_place() {
        let pattern = ReadPattern::default();
        let offset = 12_345_678;
        let mut lengths = Vec::new();
        for _ in 0..100 * STEP {
            let (begin, length) = pattern.surroundings(offset);
            assert!((begin..begin + length).contains(&offset));
            lengths.push(length);
        }
        lengths.dedup();
        assert_eq!(lengths, [128 << 10, 256 << 10, 512 << 10, 1 << 20]);
    }
}
