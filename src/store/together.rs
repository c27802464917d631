//! Unpacks several layers of one image in parallel.
//!
//! A layer is extracted while those below it are still being extracted. It waits for them only if it needs their
//! content (a parent that it does not name, a hard link to a lower file). The result is the same as in sequence, and
//! so is the reported error: that of the lowest layer with an error.
//!
//! Threads take the layers from the lowest up, and wait only for layers below their own. So with any number of
//! threads, the lowest incomplete layer waits only for its input.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::image::digest::Digest;
use crate::image::unpack::{Lowers, UnpackOptions, Unpacked};
use crate::store::transaction::{AddedLayer, Staged, Transaction, check_diff_id};
use crate::store::{ImageError, Result, StoredLayer};

/// Maximum number of layers in parallel: each has its threads and buffers.
const TOGETHER: usize = 4;
/// Interval at which progress is reported.
const TELL: Duration = Duration::from_millis(50);

/// A layer to be unpacked.
pub struct NewLayer<'a> {
    /// Its name in messages.
    pub name: String,
    /// The expected digest of its tar.
    pub expected: Digest,
    /// Its tar, compressed or not.
    pub input: Box<dyn Read + Send + 'a>,
}

/// A place in an image's stack.
pub enum Slot<'a> {
    /// The layer already exists.
    There(StoredLayer),
    /// The layer must be unpacked.
    New(NewLayer<'a>),
}

/// Events of a new layer, in the order of the stack.
pub enum LayerEvent {
    /// It is the next layer that is reported.
    Begins,
    /// This many more bytes of its input were read.
    Advances(u64),
    /// It was unpacked and has the expected digest.
    Ends,
    /// It failed, and so do those above it.
    Fails,
}

/// Splits a stack into parts whose layers may be unpacked in parallel. A layer that occurs twice is unpacked once:
/// the second one waits for the next part.
pub fn rounds<'l, T>(layers: &'l [T], diff_id: impl Fn(&T) -> Digest, options: &UnpackOptions) -> Vec<&'l [T]> {
    let mut rounds = Vec::new();
    let mut rest = layers;
    while !rest.is_empty() {
        let twice = |at: usize| rest.iter().take(at).any(|earlier| diff_id(earlier) == diff_id(&rest[at]));
        let together = match options.threads {
            true => (1..rest.len()).find(|&at| twice(at)).unwrap_or(rest.len()),
            false => 1,
        };
        let (now, later) = rest.split_at(together);
        rounds.push(now);
        rest = later;
    }
    rounds
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Open,
    Complete,
    Failed,
}

/// The states of all slots.
struct Board {
    /// Protects the states; every change wakes the waiting threads.
    states: Mutex<Vec<SlotState>>,
    changed: Condvar,
}

impl Board {
    fn set(&self, slot: usize, state: SlotState) {
        if let Some(entry) = self.states.lock().get_mut(slot) {
            *entry = state;
        }
        self.changed.notify_all();
    }

    /// Waits until all slots below are complete; returns false if one has failed.
    fn wait_below(&self, slot: usize) -> bool {
        let mut states = self.states.lock();
        loop {
            let below = states.get(..slot).unwrap_or_default();
            if below.contains(&SlotState::Failed) {
                return false;
            }
            if below.iter().all(|state| *state == SlotState::Complete) {
                return true;
            }
            self.changed.wait(&mut states);
        }
    }

    /// True if a slot below has failed.
    fn fails_below(&self, slot: usize) -> bool {
        self.states.lock().iter().take(slot).any(|state| *state == SlotState::Failed)
    }

    /// True if a slot is still being unpacked.
    fn is_at_work(&self) -> bool {
        let states = self.states.lock();
        states.contains(&SlotState::Open) && !states.contains(&SlotState::Failed)
    }

    /// Waits for a short time; returns the slot's state.
    fn look(&self, slot: usize) -> SlotState {
        let mut states = self.states.lock();
        let state = |states: &Vec<SlotState>| states.get(slot).copied().unwrap_or(SlotState::Failed);
        if state(&states) == SlotState::Open {
            self.changed.wait_for(&mut states, TELL);
        }
        state(&states)
    }
}

/// Marks its slot as failed if it is dropped before it is complete: a thread that panics must not block others.
struct Mark<'b> {
    board: &'b Board,
    slot: usize,
    outcome: SlotState,
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.board.set(self.slot, self.outcome);
    }
}

struct Job<'a> {
    slot: usize,
    staged: Staged,
    layer: Mutex<NewLayer<'a>>,
    read: AtomicU64,
    unpacked: Mutex<Option<Result<Unpacked>>>,
}

impl Transaction<'_> {
    /// Unpacks the new layers of a stack (the lowest first). Returns all its layers.
    ///
    /// # Errors
    /// Those of [`Transaction::add_layer`]; none of the layers may be published then.
    pub(crate) fn add_layers(
        &mut self,
        slots: Vec<Slot<'_>>,
        options: &UnpackOptions,
        tell: &mut dyn FnMut(usize, LayerEvent),
    ) -> Result<Vec<AddedLayer>> {
        let (mut fds, mut states, mut jobs, mut there) = (Vec::<OwnedFd>::new(), Vec::new(), Vec::new(), Vec::new());
        for (slot, content) in slots.into_iter().enumerate() {
            match content {
                Slot::There(layer) => {
                    fds.push(layer.open_diff()?);
                    states.push(SlotState::Complete);
                    there.push(Some(layer));
                }
                Slot::New(layer) => {
                    let staged = self.stage_layer()?;
                    fds.push(staged.open()?);
                    states.push(SlotState::Open);
                    there.push(None);
                    let layer = Mutex::new(layer);
                    jobs.push(Job { slot, staged, layer, read: AtomicU64::new(0), unpacked: Mutex::new(None) });
                }
            }
        }
        let board = Board { states: Mutex::new(states), changed: Condvar::new() };
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let next = AtomicUsize::new(0);
        let written = Mutex::new(Ok(()));
        let this = &*self;
        let work = || {
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                run(job, &board, &fds, options);
            }
            // This thread has no more work, so it flushes finished layers to the disk while the others go on.
            if board.is_at_work() {
                let outcome = this.write_out();
                if outcome.is_err() {
                    *written.lock() = outcome;
                }
            }
        };
        std::thread::scope(|scope| {
            let workers = std::thread::available_parallelism().map_or(1, usize::from).min(TOGETHER).min(jobs.len());
            (0..workers).for_each(|_| drop(scope.spawn(work)));
            for job in &jobs {
                tell(job.slot, LayerEvent::Begins);
                loop {
                    let state = board.look(job.slot);
                    tell(job.slot, LayerEvent::Advances(job.read.swap(0, Ordering::Relaxed)));
                    match state {
                        SlotState::Open => {}
                        SlotState::Complete => break tell(job.slot, LayerEvent::Ends),
                        SlotState::Failed => break tell(job.slot, LayerEvent::Fails),
                    }
                }
            }
        });
        let mut stack: Vec<StoredLayer> = Vec::new();
        let mut added = Vec::new();
        let mut jobs = jobs.into_iter();
        for layer in there {
            let layer = match layer {
                Some(layer) => AddedLayer { layer, compressed: None },
                None => {
                    let failed = || ImageError::refused("unpacking", "a thread failed");
                    let job = jobs.next().ok_or_else(failed)?;
                    let unpacked = job.unpacked.into_inner().ok_or_else(failed)??;
                    let layer = job.layer.into_inner();
                    self.take_in(job.staged, &layer.name, &stack, Some(&layer.expected), unpacked)?
                }
            };
            stack.push(layer.layer.clone());
            added.push(layer);
        }
        written.into_inner()?;
        Ok(added)
    }
}

/// Unpacks one layer, unless one below it has already failed.
fn run(job: &Job<'_>, board: &Board, fds: &[BorrowedFd<'_>], options: &UnpackOptions) {
    let mut mark = Mark { board, slot: job.slot, outcome: SlotState::Failed };
    let lowers: Vec<BorrowedFd<'_>> = fds.get(..job.slot).unwrap_or_default().iter().rev().copied().collect();
    let ready = || board.wait_below(job.slot);
    let mut layer = job.layer.lock();
    let name = layer.name.clone();
    let expected = layer.expected;
    let mut input = Counted { inner: &mut layer.input, read: &job.read, goes_on: &|| !board.fails_below(job.slot) };
    let unpacked = job.staged.fill(&name, &Lowers { dirs: &lowers, ready: &ready }, &mut input, options);
    // Checked before other layers build on it, and before more is read in vain.
    let unpacked = unpacked.and_then(|unpacked| check_diff_id(&name, &expected, &unpacked).map(|()| unpacked));
    let is_complete = unpacked.is_ok();
    if is_complete {
        mark.outcome = SlotState::Complete;
    }
    *job.unpacked.lock() = Some(unpacked);
    drop(mark);
    if is_complete {
        job.staged.list();
    }
}

/// Counts the bytes read, and stops when they are no longer needed.
struct Counted<'c, R> {
    inner: R,
    read: &'c AtomicU64,
    goes_on: &'c dyn Fn() -> bool,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !(self.goes_on)() {
            return Err(io::Error::other("a layer below could not be unpacked"));
        }
        let count = self.inner.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_is_there_twice_waits() {
        let layers = *b"abcabbd";
        let split = |threads| {
            let options = UnpackOptions { threads, ..UnpackOptions::default() };
            rounds(&layers, |layer| Digest::of(&[*layer]), &options).into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        assert_eq!(split(true), [&b"abc"[..], b"ab", b"bd"]);
        assert_eq!(split(false), layers.map(|layer| vec![layer]));
        assert!(rounds(&[], |layer: &Digest| *layer, &UnpackOptions::default()).is_empty());
    }
}
