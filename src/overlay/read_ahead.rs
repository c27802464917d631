//! Files of a directory that are read one after the other.
//!
//! Who reads a tree opens the files of each directory in the order in which it lists them (`tar`, `grep -r`, `cp -a`) or in
//! that of their names (`cat *`, `git`, `rsync`), and waits for the disk once or twice for each. The listing tells which
//! come next: a thread of its own opens them and has their beginnings read while the reader is busy with the first.
//! Nothing changes by it but what the kernel has cached of the lower layers. It begins when reads wait for the disk, and
//! ends when what it asks for is in memory.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;

use super::Overlay;
use super::types::{Errno, Result};
use crate::merge::listing::{Listed, hash_position};
use crate::merge::{Listing, Source};
use crate::node::{FileHandle, Name, NodeId, NodeRef};

/// Runs that are remembered: two orders for each of some directories. Each process that reads a tree is in one.
const RUNS: usize = 16;
/// Files in order, before it is taken for a run.
const CAUTIOUS: u32 = 3;
/// And after one run in that order that was one to the end.
const CONFIDENT: u32 = 1;
/// Files after which a run is believed to have been one.
const BELIEVED: u32 = 8;
/// For each file that was read, a run may have passed over so many entries: those read before, directories, links.
const SPARSE: usize = 4;
/// Files that are asked for at once.
const WINDOW: usize = 32;
/// How much of each, in bytes: what the kernel's own readahead begins with at most.
const BEGINNING: u64 = 128 << 10;
/// Entries of the largest directory that is put into the order of names for each window.
const SORTED: usize = 4096;

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
    /// The order of the last run that was believed.
    believed: Option<Order>,
    over: bool,
}

/// In which order files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Listing,
    Names,
}

/// Where a file is in an order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Position in the listing.
    Listed(u64),
    Named(Name),
}

impl Place {
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
    first: Place,
    last: Place,
    count: u32,
    next: Next,
}

/// When the thread is to be called for a run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// When there are files enough.
    Enough,
    /// When a file behind this place is read.
    Behind(Place),
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
    fn find(&mut self, dir: NodeId, order: Order) -> Option<&mut Run> {
        self.runs.iter_mut().find(|run| run.dir == dir && run.first.order() == order)
    }

    /// Takes note of a file that is read from the start; the run for which the thread is to be called.
    fn note(&mut self, dir: NodeId, place: Place, waits: bool) -> Option<Run> {
        let order = place.order();
        let enough = if self.believed == Some(order) { CONFIDENT } else { CAUTIOUS };
        if self.find(dir, order).is_none() && waits {
            if self.runs.len() == RUNS {
                self.runs.pop_front();
            }
            let run = Run { dir, first: place.clone(), last: place, count: 1, next: Next::Enough };
            self.runs.push_back(run);
        } else {
            self.find(dir, order)?.add(place, waits);
        }
        let run = self.find(dir, order)?;
        let due = match &run.next {
            Next::Enough => run.count >= enough,
            Next::Behind(place) => run.last > *place,
            Next::Asked | Next::Never => false,
        };
        if !due {
            return None;
        }
        run.next = Next::Asked;
        Some(run.clone())
    }

    /// Calls the thread. With as many directories waiting as are remembered, it does not keep up.
    fn ask(&mut self, job: Job) {
        if self.jobs.len() < RUNS {
            self.jobs.push_back(job);
        } else {
            self.settle(&job.run, Some(Next::Never));
        }
    }

    /// What the thread found about a run: `None` if it was none.
    fn settle(&mut self, run: &Run, next: Option<Next>) {
        let order = run.first.order();
        let Some(run) = self.find(run.dir, order) else { return };
        let (count, is_run) = (run.count, next.is_some());
        run.next = next.unwrap_or(Next::Never);
        if is_run && count >= BELIEVED {
            self.believed = Some(order);
        } else if !is_run {
            self.believed.take_if(|believed| *believed == order);
        }
    }
}

impl Run {
    /// One more file. One that is not behind the last begins a new run, if it waits for the disk.
    fn add(&mut self, place: Place, waits: bool) {
        if place > self.last {
            self.last = place;
            self.count += 1;
        } else if waits && self.next != Next::Asked {
            *self = Self { dir: self.dir, first: place.clone(), last: place, count: 1, next: Next::Enough };
        }
    }

    /// The entries of the directory in the order of the run: how many it has come by, and those behind its last. `None`:
    /// they are too many.
    fn entries<'l>(&self, listing: &'l Listing) -> Option<(usize, Vec<Listed<'l>>)> {
        match (&self.first, &self.last) {
            (Place::Listed(first), Place::Listed(last)) => {
                let passed = listing.after(first.saturating_sub(1)).take_while(|listed| listed.position <= *last);
                let passed = passed.take(self.most_passed() + 1).count();
                Some((passed, listing.after(*last).filter(is_file).take(WINDOW).collect()))
            }
            (Place::Named(first), Place::Named(last)) => {
                let mut all: Vec<Listed<'_>> = listing.iter().take(SORTED + 1).collect();
                if all.len() > SORTED {
                    return None;
                }
                all.sort_unstable_by_key(|listed| listed.name);
                let behind = all.partition_point(|listed| *listed.name <= **last);
                let passed = behind - all.partition_point(|listed| *listed.name < **first).min(behind);
                Some((passed, all.into_iter().skip(behind).filter(is_file).take(WINDOW).collect()))
            }
            _ => None,
        }
    }

    fn most_passed(&self) -> usize {
        SPARSE.saturating_mul(self.count as usize)
    }

    /// The place of an entry in the order of the run.
    fn place_of(&self, listed: &Listed<'_>) -> Place {
        match self.first.order() {
            Order::Listing => Place::Listed(listed.position),
            Order::Names => Place::Named(Name::from(listed.name)),
        }
    }
}

fn is_file(listed: &Listed<'_>) -> bool {
    listed.kind == libc::DT_REG && matches!(listed.source, Source::Lower(_))
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

    /// Takes note of a file that is read from the start.
    fn note(&self, parent: &NodeRef, name: &Name, waits: bool) {
        let mut state = self.state.lock();
        for place in [Place::Listed(hash_position(name.to_bytes())), Place::Named(name.clone())] {
            if let Some(run) = state.note(parent.id(), place, waits) {
                state.ask(Job { dir: parent.clone(), run });
                self.work.notify_one();
            }
        }
        self.running.store(true, Ordering::Relaxed);
    }

    fn settle(&self, run: &Run, next: Option<Next>) {
        let mut state = self.state.lock();
        state.settle(run, next);
        let running = state.runs.iter().any(|run| run.next != Next::Never);
        self.running.store(running, Ordering::Relaxed);
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
            self.read_ahead.settle(&job.run, next);
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
            self.read_ahead.note(&parent, &name, waits);
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
        let Some((passed, files)) = run.entries(listing) else { return Ok(None) };
        if passed > run.most_passed() {
            return Ok(None);
        }
        let next = match files.get(WINDOW / 2) {
            Some(middle) if files.len() == WINDOW => Next::Behind(run.place_of(middle)),
            _ => Next::Never,
        };
        let mut files: Vec<_> = files.iter().filter_map(on_disk).collect();
        files.sort_unstable();
        let mut waits = false;
        for (index, _, name) in files {
            let file = self.lower_dir(dir, usize::from(index))?.open_file(name)?;
            if let Err(Errno::AGAIN) = in_memory(&file, &mut [0]) {
                waits = true;
                rustix::fs::fadvise(&file, 0, NonZeroU64::new(BEGINNING), Advice::WillNeed)?;
            }
        }
        Ok(Some(if waits { next } else { Next::Never }))
    }
}

/// Which of the directory's lower parts has a file, in the order in which a disk is likely to have them.
fn on_disk<'l>(listed: &Listed<'l>) -> Option<(u16, u64, &'l CStr)> {
    match listed.source {
        Source::Lower(index) => Some((index, listed.ino, listed.name)),
        Source::Upper => None,
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

    /// Reads files at positions; for which the thread is called: the last position, and how many files.
    fn read(state: &mut State, positions: impl IntoIterator<Item = u64>, waits: bool) -> Vec<(u64, u32)> {
        let asked = positions.into_iter().filter_map(|position| state.note(DIR, Place::Listed(position), waits));
        asked.map(|run| (if let Place::Listed(last) = run.last { last } else { 0 }, run.count)).collect()
    }

    fn settle(state: &mut State, next: Option<Next>) {
        let run = state.find(DIR, Order::Listing).expect("it is remembered").clone();
        state.settle(&run, next);
    }

    #[test]
    fn what_is_in_memory_begins_nothing() {
        let mut state = State::default();
        assert_eq!(read(&mut state, 1..100, false), []);
        assert!(state.runs.is_empty());
    }

    #[test]
    fn some_files_in_order_that_wait_are_a_run() {
        let mut state = State::default();
        assert_eq!(read(&mut state, [10, 20, 30, 40, 50], true), [(30, 3)], "and the thread is called once");
        assert_eq!(read(&mut state, [90, 80, 70, 60, 50, 40], true), [], "it is at work");
        let mut other = State::default();
        assert_eq!(read(&mut other, (0..100).rev(), true), [], "against the order");
        assert_eq!(read(&mut other, [10, 10, 10, 10], true), [], "the same again");
    }

    #[test]
    fn a_run_goes_on_where_the_thread_said() {
        let mut state = State::default();
        read(&mut state, [10, 20, 30], true);
        settle(&mut state, Some(Next::Behind(Place::Listed(100))));
        assert_eq!(read(&mut state, [40, 60, 80, 100], false), []);
        assert_eq!(read(&mut state, [110, 120], false), [(110, 8)], "they need not wait any more");
        settle(&mut state, Some(Next::Never));
        assert_eq!(read(&mut state, [130, 140, 150, 160], true), []);
        assert_eq!(read(&mut state, [10, 20, 30], true), [(10, 1)], "a new one; the last is believed");
    }

    #[test]
    fn after_what_was_no_run_it_is_careful_again() {
        let mut state = State { believed: Some(Order::Listing), ..State::default() };
        assert_eq!(read(&mut state, [10], true), [(10, 1)]);
        settle(&mut state, None);
        state.runs.clear();
        assert_eq!(read(&mut state, [10, 20, 30], true), [(30, 3)]);
    }

    #[test]
    fn the_orders_have_nothing_to_do_with_each_other() {
        let mut state = State { believed: Some(Order::Listing), ..State::default() };
        let mut named = |name: &CStr| state.note(DIR, Place::Named(Name::from(name)), true).map(|run| run.count);
        assert_eq!([c"a", c"b", c"c"].map(&mut named), [None, None, Some(3)]);
        assert_eq!(read(&mut state, [10], true), [(10, 1)]);
    }

    #[test]
    fn only_some_directories_are_remembered() {
        let mut state = State::default();
        for dir in 0..100 {
            state.note(NodeId(dir), Place::Listed(10), true);
            assert!(state.runs.len() <= RUNS);
        }
        assert!(state.runs.iter().all(|run| run.dir.0 >= 100 - RUNS as u64), "the last ones");
    }
}
