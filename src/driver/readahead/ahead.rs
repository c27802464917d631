//! Reads ahead in directories whose files are read one after the other.
//!
//! A program that reads a tree opens the files of each directory in the order of its listing (`tar`, `grep -r`, `cp -a`) or
//! of their names (`cat *`, `git`, `rsync`). It waits for the disk once or twice for each file. The listing shows which
//! files come next: a separate thread opens them and has their beginnings read while the program works on the first. The
//! only effect is on the kernel's cache of the lower layers (and on access times, if the driver may not open files without
//! changing them). It starts when reads wait for the disk, and ends when the files are in memory already.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;

use crate::driver::Union;
use crate::driver::node::{Name, NodeId, NodeRef, OpenFile};
use crate::driver::types::{Errno, Result};
use crate::union::layer::Dir;
use crate::union::merge::listing::{Listed, candidate};
use crate::union::merge::{Listing, Source};

/// Number of runs that are remembered: two orders for each of several directories. Each process that reads a tree is in one run.
const RUNS: usize = 16;
/// Number of files in order that start a run.
const CAUTIOUS: u32 = 3;
/// Number of files in order that start a run, if the last run in that order was a real one.
const CONFIDENT: u32 = 1;
/// Threshold multiplier after a false start in the same directory.
const BURNT: u32 = 4;
/// Number of files after which a run counts as a real one.
const BELIEVED: u32 = 8;
/// Entries that a run may skip for each file it reads: files read before, directories, links.
const SPARSE: usize = 4;
/// Number of files requested at once; the second applies while a run has fewer than [`CAUTIOUS`] files.
const WINDOW: usize = 32;
const FIRST_WINDOW: usize = 8;
/// Number of successive files found in memory after which reading ahead stops.
const LAPSE: u32 = 256;
/// Bytes read of each file: the largest initial readahead of the kernel.
const BEGINNING: u64 = 128 << 10;
/// Largest directory, in entries, that is sorted by name for each window.
const SORTED: usize = 4096;

/// Finds runs, and passes them to the thread.
#[derive(Debug, Default)]
pub(in crate::driver) struct ReadAhead {
    /// Leaf lock.
    state: Mutex<AheadState>,
    work: Condvar,
    /// True if the thread is there.
    attended: AtomicBool,
    /// True if a run goes on.
    running: AtomicBool,
}

#[derive(Debug, Default)]
struct AheadState {
    runs: VecDeque<Run>,
    jobs: VecDeque<Job>,
    /// The order of the last run that counted as a real one.
    believed: Option<Order>,
    /// Files found in memory since the last one that was not, or since the thread was called.
    in_memory: u32,
    over: bool,
}

/// The order in which files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Listing,
    Names,
}

/// The place of a file in an order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Position in the listing.
    Listed(u64),
    Named(Name),
}

impl Rank {
    fn order(&self) -> Order {
        match self {
            Self::Listed(_) => Order::Listing,
            Self::Named(_) => Order::Names,
        }
    }
}

/// Files of one directory that were read in order.
#[derive(Clone, Debug)]
struct Run {
    dir: NodeId,
    first: Rank,
    last: Rank,
    /// Number of files from the first to the last.
    count: u32,
    /// Number of files since it began; `first` moves on with what was looked at.
    total: u32,
    /// Number of files that call the thread.
    enough: u32,
    due: Due,
}

/// When the thread is to be called for a run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Due {
    /// When the run has enough files.
    Enough,
    /// When a file after this place is read.
    Behind(Rank),
    /// The thread has been called.
    Asked,
    /// Never again.
    Never,
}

/// What the thread is to do.
#[derive(Debug)]
pub(in crate::driver) struct Job {
    dir: NodeRef,
    run: Run,
}

/// The listing of the last directory, kept while its files are read: a large one must not be made anew for each window.
#[derive(Debug)]
pub(in crate::driver) struct HeldListing {
    dir: NodeId,
    /// The generation of the stack in which the listing was made.
    generation: u64,
    listing: Arc<Listing>,
}

impl AheadState {
    fn find(&mut self, dir: NodeId, order: Order) -> Option<&mut Run> {
        self.runs.iter_mut().find(|run| run.dir == dir && run.first.order() == order)
    }

    /// Notes a file that is read from its start; returns the run for which the thread must be called.
    fn note(&mut self, dir: NodeId, place: Rank, waits: bool) -> Option<Run> {
        let order = place.order();
        let enough = if self.believed == Some(order) { CONFIDENT } else { CAUTIOUS };
        if let Some(run) = self.find(dir, order) {
            run.add(place, waits, enough);
        } else if waits {
            self.remember(Run::new(dir, place, enough));
        }
        let run = self.find(dir, order)?;
        let due = match &run.due {
            Due::Enough => run.count >= run.enough,
            Due::Behind(place) => run.last > *place,
            Due::Asked | Due::Never => false,
        };
        if !due {
            return None;
        }
        run.due = Due::Asked;
        Some(run.clone())
    }

    fn remember(&mut self, run: Run) {
        if self.runs.len() == RUNS
            && let Some(oldest) = self.runs.pop_front()
            && oldest.total < CAUTIOUS
        {
            // The run was a false start.
            self.believed.take_if(|believed| *believed == oldest.first.order());
        }
        self.runs.push_back(run);
    }

    /// True if some process reads files in order from the disk. `waits`: the last file had to wait for the disk;
    /// `called`: the thread was called.
    fn is_running(&mut self, waits: bool, called: bool) -> bool {
        self.in_memory = if waits || called { 0 } else { self.in_memory.saturating_add(1) };
        if self.in_memory > LAPSE {
            self.runs.clear();
        }
        self.runs.iter().any(|run| run.due != Due::Never)
    }

    /// Calls the thread. If as many directories wait as are remembered, the thread does not keep up.
    fn ask(&mut self, job: Job) {
        if self.jobs.len() < RUNS {
            self.jobs.push_back(job);
        } else {
            self.settle(&job.run, Some(Due::Never));
        }
    }

    /// Applies the thread's answer about a run, `then` as it was at that time; `None` means that it is no run.
    fn settle(&mut self, then: &Run, next: Option<Due>) {
        let order = then.first.order();
        let Some(run) = self.find(then.dir, order) else { return };
        let Some(next) = next else {
            run.due = Due::Never;
            run.enough = run.enough.max(CAUTIOUS).saturating_mul(BURNT);
            self.believed.take_if(|believed| *believed == order);
            return;
        };
        run.due = next;
        // Entries that were looked at need not be looked at again.
        run.first = then.last.clone();
        run.count = run.count.saturating_sub(then.count) + 1;
        if run.total >= BELIEVED {
            self.believed = Some(order);
        }
    }
}

impl Run {
    fn new(dir: NodeId, place: Rank, enough: u32) -> Self {
        Self { dir, first: place.clone(), last: place, count: 1, total: 1, enough, due: Due::Enough }
    }

    /// Adds one more file. A file that does not come after the last one begins a new run, if it waits for the disk.
    fn add(&mut self, place: Rank, waits: bool, enough: u32) {
        if place > self.last {
            self.last = place;
            self.count += 1;
            self.total += 1;
        } else if waits && self.due != Due::Asked {
            let burnt = self.enough > CAUTIOUS;
            *self = Self::new(self.dir, place, if burnt { self.enough } else { enough });
        }
    }

    fn window(&self) -> usize {
        if self.total < CAUTIOUS { FIRST_WINDOW } else { WINDOW }
    }

    /// The entries of the directory in the order of the run: the number of those passed, and those after the last one
    /// read. Returns `None` if there are too many.
    fn entries<'l>(&self, listing: &'l Listing) -> Option<(usize, Vec<Listed<'l>>)> {
        match (&self.first, &self.last) {
            (Rank::Listed(first), Rank::Listed(last)) => {
                let passed = listing.after(first.saturating_sub(1)).take_while(|listed| listed.position <= *last);
                let passed = passed.take(self.most_passed() + 1).count();
                Some((passed, listing.after(*last).filter(is_file).take(self.window()).collect()))
            }
            (Rank::Named(first), Rank::Named(last)) => {
                let mut all: Vec<Listed<'_>> = listing.iter().take(SORTED + 1).collect();
                if all.len() > SORTED {
                    return None;
                }
                all.sort_unstable_by_key(|listed| listed.name);
                let behind = all.partition_point(|listed| *listed.name <= **last);
                let passed = behind - all.partition_point(|listed| *listed.name < **first).min(behind);
                Some((passed, all.into_iter().skip(behind).filter(is_file).take(self.window()).collect()))
            }
            _ => None,
        }
    }

    fn most_passed(&self) -> usize {
        SPARSE.saturating_mul(self.count as usize)
    }

    /// The place of an entry in the order of the run.
    fn rank_of(&self, listed: &Listed<'_>) -> Rank {
        match self.first.order() {
            Order::Listing => Rank::Listed(listed.position),
            Order::Names => Rank::Named(Name::from(listed.name)),
        }
    }
}

fn is_file(listed: &Listed<'_>) -> bool {
    listed.kind == libc::DT_REG && matches!(listed.source, Source::Lower(_))
}

impl ReadAhead {
    /// Notes that the thread is there.
    pub(in crate::driver) fn attend(&self) {
        self.attended.store(true, Ordering::Relaxed);
    }

    /// The next job; `None` at the end.
    pub(in crate::driver) fn wait(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.over {
                return None;
            }
            let Some(mut job) = state.jobs.pop_front() else {
                self.work.wait(&mut state);
                continue;
            };
            // The run may have gone on in the meantime.
            if let Some(run) = state.find(job.run.dir, job.run.first.order()) {
                job.run = run.clone();
            }
            return Some(job);
        }
    }

    /// Notes a file that is read from its start.
    fn note(&self, parent: &NodeRef, name: &Name, waits: bool) {
        let mut state = self.state.lock();
        let mut called = false;
        for place in [Rank::Listed(candidate(name.to_bytes(), 0)), Rank::Named(name.clone())] {
            if let Some(run) = state.note(parent.id(), place, waits) {
                state.ask(Job { dir: parent.clone(), run });
                self.work.notify_one();
                called = true;
            }
        }
        self.running.store(state.is_running(waits, called), Ordering::Relaxed);
    }

    fn settle(&self, run: &Run, next: Option<Due>) {
        let mut state = self.state.lock();
        state.settle(run, next);
        self.running.store(state.is_running(false, true), Ordering::Relaxed);
    }

    /// Ends the thread.
    pub(in crate::driver) fn end(&self) {
        let mut state = self.state.lock();
        state.over = true;
        state.jobs.clear();
        self.work.notify_all();
    }
}

impl Union {
    /// Does one job of the thread that reads ahead. `kept` is the listing of the last directory.
    pub(in crate::driver) fn read_ahead(&self, job: &Job, kept: &mut Option<HeldListing>) {
        let next = self.follow(job, kept).unwrap_or_else(|errno| {
            tracing::debug!("not read ahead: {errno}");
            None
        });
        if !matches!(next, Some(Due::Behind(_))) {
            *kept = None;
        }
        self.read_ahead.settle(&job.run, next);
    }

    /// The first read of a lower file, from its start: copies what is in memory into `buffer`. Returns the number of bytes.
    pub(super) fn first_read(&self, handle: &OpenFile, file: &OwnedFd, buffer: &mut [u8]) -> usize {
        // With metacopy, a listed file may have its content elsewhere.
        let attended = self.read_ahead.attended.load(Ordering::Relaxed) && !self.config.metacopy;
        if !attended || handle.real.read().is_upper() {
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
            self.read_ahead.note(&parent, &name, waits);
        }
        read
    }

    /// Has the next files of a run read; returns when to go on. Returns `None` if it is no run. `kept` is the
    /// listing of the last directory.
    fn follow(&self, job: &Job, kept: &mut Option<HeldListing>) -> Result<Option<Due>> {
        let is_current = |kept: &HeldListing| kept.dir == job.run.dir && kept.generation == self.stack.generation();
        let listing = match kept.take().filter(|kept| is_current(kept) && !kept.listing.is_broken()) {
            Some(kept) => Some(kept.listing),
            None => {
                let is_listed = job.dir.dir().is_some_and(|dir| dir.lower_listing().is_some());
                let listing = self.lower_listing(&job.dir)?;
                if !is_listed {
                    self.nodes.drop_single_listing(&job.dir);
                }
                listing
            }
        };
        let Some(listing) = listing else { return Ok(None) };
        let next = self.follow_in(job, &listing);
        *kept = Some(HeldListing { dir: job.run.dir, generation: self.stack.generation(), listing });
        next
    }

    fn follow_in(&self, Job { dir, run }: &Job, listing: &Listing) -> Result<Option<Due>> {
        let Some((passed, files)) = run.entries(listing) else { return Ok(None) };
        if passed > run.most_passed() {
            return Ok(None);
        }
        let next = match files.get(run.window() / 2) {
            Some(middle) if files.len() == run.window() => Due::Behind(run.rank_of(middle)),
            _ => Due::Never,
        };
        let mut files: Vec<_> = files.iter().filter_map(on_disk).collect();
        files.sort_unstable();
        let mut waits = false;
        let lowers = dir.dir().ok_or(Errno::NOTDIR)?.lowers();
        for (index, _, name) in files {
            let part = lowers.get(usize::from(index)).ok_or(Errno::IO)?;
            match have_read(&self.lower_dir(dir, part)?, name) {
                Ok(waited) => waits |= waited,
                // The program's own read reports the error.
                Err(errno) => tracing::debug!("{name:?} is not read ahead: {errno}"),
            }
        }
        Ok(Some(if waits { next } else { Due::Never }))
    }
}

/// The lower part that has a file, with a key that sorts files in their likely order on the disk.
fn on_disk<'l>(listed: &Listed<'l>) -> Option<(u16, u64, &'l CStr)> {
    match listed.source {
        Source::Lower(index) => Some((index, listed.id.map_or(0, |id| id.ino), listed.name)),
        Source::Upper => None,
    }
}

/// Has the beginning of a file read if it is not in memory; returns true if it was not.
fn have_read(dir: &Dir, name: &CStr) -> Result<bool> {
    let file = dir.open_file(name)?;
    let waits = in_memory(&file, &mut [0]) == Err(Errno::AGAIN);
    if waits {
        rustix::fs::fadvise(&file, 0, NonZeroU64::new(BEGINNING), Advice::WillNeed)?;
    }
    Ok(waits)
}

/// Reads from the start of a file what is in memory; `AGAIN` if nothing is.
fn in_memory(file: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
    rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], 0, ReadWriteFlags::NOWAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: NodeId = NodeId(7);

    /// Simulates reads at `positions`; returns the calls of the thread: last position and number of files.
    fn read(state: &mut AheadState, positions: impl IntoIterator<Item = u64>, waits: bool) -> Vec<(u64, u32)> {
        let asked = positions.into_iter().filter_map(|position| state.note(DIR, Rank::Listed(position), waits));
        asked.map(|run| (if let Rank::Listed(last) = run.last { last } else { 0 }, run.count)).collect()
    }

    /// Applies the thread's answer to the run as it is.
    fn settle(state: &mut AheadState, next: Option<Due>) {
        let run = state.find(DIR, Order::Listing).expect("it is remembered").clone();
        state.settle(&run, next);
    }

    #[test]
    fn what_is_in_memory_begins_nothing() {
        let mut state = AheadState::default();
        assert_eq!(read(&mut state, 1..100, false), []);
        assert!(state.runs.is_empty());
    }

    #[test]
    fn some_files_in_order_that_wait_are_a_run() {
        let mut state = AheadState::default();
        assert_eq!(read(&mut state, [10, 20, 30, 40, 50], true), [(30, 3)], "and the thread is called once");
        assert_eq!(read(&mut state, [90, 80, 70, 60, 50, 40], true), [], "it is at work");
        let mut other = AheadState::default();
        assert_eq!(read(&mut other, (0..100).rev(), true), [], "against the order");
        assert_eq!(read(&mut other, [10, 10, 10, 10], true), [], "the same again");
    }

    #[test]
    fn a_run_goes_on_where_the_thread_said() {
        let mut state = AheadState::default();
        read(&mut state, [10, 20, 30], true);
        settle(&mut state, Some(Due::Behind(Rank::Listed(100))));
        assert_eq!(read(&mut state, [40, 60, 80, 100], false), []);
        assert_eq!(read(&mut state, [110, 120], false), [(110, 6)], "they need not wait any more");
        settle(&mut state, Some(Due::Never));
        assert_eq!(read(&mut state, [130, 140, 150, 160], true), []);
        assert_eq!(read(&mut state, [10, 20, 30], true), [(10, 1)], "a new one; the last is believed");
    }

    #[test]
    fn after_what_was_no_run_it_is_careful_again() {
        let mut state = AheadState { believed: Some(Order::Listing), ..AheadState::default() };
        assert_eq!(read(&mut state, [10], true), [(10, 1)]);
        settle(&mut state, None);
        state.runs.clear();
        assert_eq!(read(&mut state, [10, 20, 30], true), [(30, 3)]);
    }

    #[test]
    fn what_was_no_run_must_be_a_long_one() {
        let mut state = AheadState::default();
        read(&mut state, [10, 20, 30], true);
        settle(&mut state, None);
        assert_eq!(read(&mut state, [1, 2, 3, 4], true), []);
        let enough = u64::from(CAUTIOUS * BURNT);
        assert_eq!(read(&mut state, 5..100, true), [(enough, CAUTIOUS * BURNT)]);
    }

    #[test]
    fn belief_ends_with_runs_that_are_none() {
        let mut state = AheadState { believed: Some(Order::Listing), ..AheadState::default() };
        for dir in 0..100 {
            let run = state.note(NodeId(dir), Rank::Listed(10), true);
            assert!(run.is_none_or(|run| run.window() == FIRST_WINDOW));
        }
        assert_eq!(state.believed, None);
    }

    #[test]
    fn runs_lapse_when_all_is_in_memory() {
        let mut state = AheadState::default();
        read(&mut state, [10], true);
        assert!((0..LAPSE).all(|_| state.is_running(false, false)));
        assert!(!state.is_running(false, false));
        assert!(state.runs.is_empty());
    }

    #[test]
    fn the_orders_have_nothing_to_do_with_each_other() {
        let mut state = AheadState { believed: Some(Order::Listing), ..AheadState::default() };
        let mut named = |name: &CStr| state.note(DIR, Rank::Named(Name::from(name)), true).map(|run| run.count);
        assert_eq!([c"a", c"b", c"c"].map(&mut named), [None, None, Some(3)]);
        assert_eq!(read(&mut state, [10], true), [(10, 1)]);
    }

    #[test]
    fn only_some_directories_are_remembered() {
        let mut state = AheadState::default();
        for dir in 0..100 {
            state.note(NodeId(dir), Rank::Listed(10), true);
            assert!(state.runs.len() <= RUNS);
        }
        assert!(state.runs.iter().all(|run| run.dir.0 >= 100 - RUNS as u64), "the last ones");
    }
}
