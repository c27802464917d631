//! Detects random reads of an open file.
//!
//! When a program reads at random, the kernel asks for single pages, and its readahead on the lower file finds no
//! pattern: each request waits for the disk. A program that has read many places of a file will read more of them, and a
//! disk delivers a hundred pages in little more time than one. (In a simulation, 20,000 random reads of 4 KiB from 512
//! MiB wait for the disk 720 times instead of 18,557.) The kernel reads around faults of a mapping from the first one on
//! (`do_sync_mmap_readahead`). We wait for a few reads first, so that a short look into a large file stays cheap.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Number of random reads before we react.
const LOOKS: u32 = 16;
/// Longest read that counts, in bytes: longer ones gain little.
const SHORT: usize = 64 << 10;
/// Bytes that are read around a place, at first; doubles after each [`STEP`] waits, up to the last.
const FIRST: u64 = 128 << 10;
const LAST: u64 = 1 << 20;
const STEP: u32 = 64;
const DOUBLINGS: u32 = (LAST / FIRST).ilog2();
/// Marks a file that is not read around any more.
const NEVER: u32 = u32::MAX;

/// The read pattern of an open file. Threads may overwrite each other's counts; they are estimates.
#[derive(Debug, Default)]
pub struct ReadPattern {
    /// Where the last read ended.
    end: AtomicU64,
    /// Short reads that began elsewhere.
    looks: AtomicU32,
    /// The number of those, after the first ones, that had to wait for the disk.
    waits: AtomicU32,
}

/// What the driver does about a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Nothing.
    Plain,
    /// The first read, at the start of the file.
    First,
    /// Find out whether the file may be read around at all.
    Ask,
    /// If it is not in memory, read its surroundings too.
    HereAndThere,
}

impl ReadPattern {
    /// Notes a read of `length` bytes at `offset`.
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

    /// Stops reading around the file.
    pub fn give_up(&self) {
        self.looks.store(NEVER, Ordering::Relaxed);
    }

    /// Notes that the read at `offset` is not in memory; returns where to begin reading, and how many bytes.
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
