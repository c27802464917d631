//! Files of a directory that are read one after the other.
//!
//! Who reads a tree (`tar`, `grep -r`, `cp -a`) opens the files of each directory in the order in which it lists them,
//! and waits for the disk once or twice for each. The listing tells which come next: a thread of its own opens them and
//! has their beginnings read while the reader is busy with the first. Nothing changes by it but what the kernel has
//! cached of the lower layers. It begins when reads wait for the disk, and ends when what it asks for is in memory.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;

use super::Overlay;
use super::types::{Errno, Result};
use crate::merge::listing::hash_position;
use crate::merge::{Listing, Source};
use crate::node::{FileHandle, NodeId, NodeRef};

/// Directories that are remembered; each process that reads a tree is in one.
const RUNS: usize = 8;
/// Files in order, before it is taken for a run.
const CAUTIOUS: u32 = 3;
/// And after one run that was one to the end.
const CONFIDENT: u32 = 1;
/// Files after which a run is believed to have been one.
const BELIEVED: u32 = 8;
/// For each file that was read, a run may have passed over so many entries: those read before, directories, links.
const SPARSE: usize = 4;
/// Files that are asked for at once.
const WINDOW: usize = 32;
/// How much of each, in bytes: what the kernel's own readahead begins with at most.
const BEGINNING: u64 = 128 << 10;

/// Finds runs, and hands them to the thread.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// Leaf lock.
    state: Mutex<State>,
    work: Condvar,
    /// A thread is there.
    attended: AtomicBool,
    /// There are runs that go on.
    running: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    runs: VecDeque<Run>,
    jobs: VecDeque<Job>,
    confident: bool,
    over: bool,
}

/// Files of one directory that were read in the order of its listing.
#[derive(Clone, Copy, Debug)]
struct Run {
    dir: NodeId,
    /// Positions in the listing.
    first: u64,
    last: u64,
    count: u32,
    next: Next,
}

/// When the thread is to be called for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// When there are files enough.
    Enough,
    /// When a file behind this position is read.
    Behind(u64),
    /// It has been called.
    Asked,
    /// Not any more.
    Never,
}

/// What the thread is to do.
#[derive(Debug)]
struct Job {
    dir: NodeRef,
    run: Run,
}

impl State {
    /// Takes note of a file that is read from the start; the run for which the thread is to be called.
    fn note(&mut self, dir: NodeId, position: u64, waits: bool) -> Option<Run> {
        let fresh = Run { dir, first: position, last: position, count: 1, next: Next::Enough };
        let enough = if self.confident { CONFIDENT } else { CAUTIOUS };
        let Some(at) = self.runs.iter().position(|run| run.dir == dir) else {
            if !waits {
                return None;
            }
            if self.runs.len() == RUNS {
                self.runs.pop_front();
            }
            self.runs.push_back(fresh);
            return self.call(self.runs.len() - 1, enough);
        };
        let run = self.runs.get_mut(at)?;
        if position > run.last {
            (run.last, run.count) = (position, run.count + 1);
        } else if waits && run.next != Next::Asked {
            *run = fresh;
        }
        self.call(at, enough)
    }

    fn call(&mut self, at: usize, enough: u32) -> Option<Run> {
        let run = self.runs.get_mut(at)?;
        let due = match run.next {
            Next::Enough => run.count >= enough,
            Next::Behind(position) => run.last > position,
            Next::Asked | Next::Never => false,
        };
        if !due {
            return None;
        }
        run.next = Next::Asked;
        Some(*run)
    }

    /// Calls the thread. With as many directories waiting as are remembered, it does not keep up.
    fn ask(&mut self, job: Job) {
        if self.jobs.len() < RUNS {
            self.jobs.push_back(job);
        } else {
            self.settle(job.run.dir, Some(Next::Never));
        }
    }

    /// What the thread found: `None` if it was no run.
    fn settle(&mut self, dir: NodeId, next: Option<Next>) {
        if let Some(run) = self.runs.iter_mut().find(|run| run.dir == dir) {
            run.next = next.unwrap_or(Next::Never);
            if next.is_none() || run.count >= BELIEVED {
                self.confident = next.is_some();
            }
        }
    }
}

impl ReadAhead {
    /// The next thing to do; `None` at the end.
    fn wait(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.over {
                return None;
            }
            match state.jobs.pop_front() {
                Some(job) => return Some(job),
                None => self.work.wait(&mut state),
            }
        }
    }

    /// Ends the thread.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.over = true;
        state.jobs.clear();
        self.work.notify_all();
    }
}

impl Overlay {
    /// Reads ahead until [`Self::announce_end`]. To be called by a thread of its own; without one, nothing is read ahead.
    pub fn read_ahead(&self) {
        self.read_ahead.attended.store(true, Ordering::Relaxed);
        while let Some(job) = self.read_ahead.wait() {
            let next = self.follow(&job).unwrap_or_else(|errno| {
                tracing::debug!("not read ahead: {errno}");
                None
            });
            let mut state = self.read_ahead.state.lock();
            state.settle(job.run.dir, next);
            let running = state.runs.iter().any(|run| run.next != Next::Never);
            self.read_ahead.running.store(running, Ordering::Relaxed);
        }
    }

    /// The first read of a lower file, from its start: what is in memory goes into `buffer`. How many bytes.
    pub(super) fn first_read(&self, handle: &FileHandle, file: &OwnedFd, buffer: &mut [u8]) -> usize {
        if !self.read_ahead.attended.load(Ordering::Relaxed) || handle.real.read().upper {
            return 0;
        }
        let (read, waits) = match in_memory(file, buffer) {
            Ok(read) => (read, false),
            Err(Errno::AGAIN) => (0, true),
            Err(_) => return 0,
        };
        if (waits || self.read_ahead.running.load(Ordering::Relaxed))
            && let Some((parent, name)) = handle.node.name()
        {
            let mut state = self.read_ahead.state.lock();
            if let Some(run) = state.note(parent.id(), hash_position(name.to_bytes()), waits) {
                state.ask(Job { dir: parent, run });
                self.read_ahead.work.notify_one();
            }
            self.read_ahead.running.store(true, Ordering::Relaxed);
        }
        read
    }

    /// Has the next files of a run read; when to go on. `None`: it is no run.
    fn follow(&self, job: &Job) -> Result<Option<Next>> {
        let is_listed = |dir: &NodeRef| dir.dir().is_some_and(|dir| dir.state.lock().lower_listing.is_some());
        let was_listed = is_listed(&job.dir);
        let followed = match self.lower_listing(&job.dir)? {
            Some(listing) => self.follow_in(job, &listing),
            None => Ok(None),
        };
        if !was_listed {
            Self::drop_listing(&job.dir);
        }
        followed
    }

    fn follow_in(&self, Job { dir, run }: &Job, listing: &Listing) -> Result<Option<Next>> {
        let passed = listing.after(run.first.saturating_sub(1)).take_while(|listed| listed.position <= run.last);
        let limit = SPARSE.saturating_mul(run.count as usize);
        if passed.take(limit + 1).count() > limit {
            return Ok(None);
        }
        let files = listing.after(run.last).filter_map(|listed| match listed.source {
            Source::Lower(index) if listed.kind == libc::DT_REG => Some((listed, index)),
            _ => None,
        });
        let mut files: Vec<(u16, u64, u64, CString)> = files
            .take(WINDOW)
            .map(|(listed, index)| (index, listed.ino, listed.position, listed.name.to_owned()))
            .collect();
        let next = match files.get(WINDOW / 2) {
            Some((_, _, position, _)) if files.len() == WINDOW => Next::Behind(*position),
            _ => Next::Never,
        };
        // In the order in which the disk has them.
        files.sort_unstable();
        let mut waits = false;
        for (index, _, _, name) in &files {
            let file = self.lower_dir(dir, usize::from(*index))?.open_file(name)?;
            if let Err(Errno::AGAIN) = in_memory(&file, &mut [0]) {
                waits = true;
                rustix::fs::fadvise(&file, 0, NonZeroU64::new(BEGINNING), Advice::WillNeed)?;
            }
        }
        Ok(Some(if waits { next } else { Next::Never }))
    }
}

/// Reads from the start of a file what is in memory; AGAIN if nothing is.
fn in_memory(file: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
    rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], 0, ReadWriteFlags::NOWAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: NodeId = NodeId(7);

    fn note(state: &mut State, positions: impl IntoIterator<Item = u64>, waits: bool) -> Vec<(u64, u32)> {
        let asked = positions.into_iter().filter_map(|position| state.note(DIR, position, waits));
        asked.map(|run| (run.last, run.count)).collect()
    }

    #[test]
    fn what_is_in_memory_begins_nothing() {
        let mut state = State::default();
        assert_eq!(note(&mut state, 1..100, false), []);
        assert!(state.runs.is_empty());
    }

    #[test]
    fn some_files_in_order_that_wait_are_a_run() {
        let mut state = State::default();
        assert_eq!(note(&mut state, [10, 20, 30, 40, 50], true), [(30, 3)], "and the thread is called once");
        assert_eq!(note(&mut state, [90, 80, 70, 60, 50, 40], true), [], "it is at work");
        let mut other = State::default();
        assert_eq!(note(&mut other, (0..100).rev(), true), [], "against the order");
        assert_eq!(note(&mut other, [10, 10, 10, 10], true), [], "the same again");
    }

    #[test]
    fn a_run_goes_on_where_the_thread_said() {
        let mut state = State::default();
        note(&mut state, [10, 20, 30], true);
        state.settle(DIR, Some(Next::Behind(100)));
        assert_eq!(note(&mut state, [40, 60, 80, 100], false), []);
        assert_eq!(note(&mut state, [110, 120], false), [(110, 8)], "they need not wait any more");
        state.settle(DIR, Some(Next::Never));
        assert_eq!(note(&mut state, [130, 140, 150, 160], true), []);
        assert_eq!(note(&mut state, [10, 20, 30], true), [(10, 1)], "a new one; the last is believed");
    }

    #[test]
    fn after_what_was_no_run_it_is_careful_again() {
        let mut state = State { confident: true, ..State::default() };
        assert_eq!(note(&mut state, [10], true), [(10, 1)]);
        state.settle(DIR, None);
        state.runs.clear();
        assert_eq!(note(&mut state, [10, 20, 30], true), [(30, 3)]);
    }

    #[test]
    fn only_some_directories_are_remembered() {
        let mut state = State::default();
        for dir in 0..100 {
            state.note(NodeId(dir), 10, true);
            assert!(state.runs.len() <= RUNS);
        }
        assert!(state.runs.iter().all(|run| run.dir.0 >= 100 - RUNS as u64), "the last ones");
    }
}
