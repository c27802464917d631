//! Checkpoints: the upper becomes the topmost lower layer, and an empty directory becomes the upper, while the mount is
//! in use.
//!
//! 1. With the gate open, the new upper is prepared ([`Successor`]). This is the slow part.
//! 2. With the gate closed (`Overlay::exclusive`), files that are open for writing get names in the new upper, and their
//!    content is copied for the layer (`writers`). One rename exchanges the directories: this is the checkpoint. The
//!    stack gets one more layer. Nodes are brought up to date at their next use (`node/settle`).
//! 3. With the gate open again, the copies take their names in the layer, and everything is flushed to the disk.
//!
//! Verbs wait only for the second step, and only for a bounded time: if a verb that already holds the gate does not end,
//! the gate opens for the others and is closed again later.

mod plan;
mod switch;
mod writers;

use writers::Unfinished;
pub(in crate::driver) use writers::find_names;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::driver::types::Errno;
use crate::driver::{Overlay, Union};
use crate::marks::chain::ChainId;
use crate::union::layer::chain::new_id;
use crate::union::layer::{Below, LayerId};
pub use crate::union::layer::{ChangeError, Successor};
pub use switch::{Kept, Switched};

/// How long one attempt to close the gate makes verbs wait for a verb that still holds it.
const PATIENCE: Duration = Duration::from_micros(300);
/// How long the gate then stays open before the next attempt: the first time, and at most.
const OPEN: Duration = Duration::from_micros(500);
const MOST_OPEN: Duration = Duration::from_millis(10);
/// Gives up after this long, because some verb does not end.
const LIMIT: Duration = Duration::from_secs(600);

/// Result of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The id of the layer that was the upper.
    pub id: ChainId,
    /// The longest time that verbs had to wait.
    pub paused: Duration,
    /// Number of files that moved to the new upper because they are open for writing.
    pub moved_files: usize,
}

/// How long verbs waited for changes of the stack of layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pauses {
    /// Number of changes so far.
    pub count: u64,
    /// The pause of the last one.
    pub last: Duration,
    /// The longest pause.
    pub longest: Duration,
}

/// The parts of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackState {
    /// The id of the upper, if it has one.
    pub upper: Option<ChainId>,
    /// The visible lower layers with their ids, topmost first.
    pub lowers: Vec<(PathBuf, Option<ChainId>)>,
    /// Number of files in the upper that are open or mapped for writing.
    pub writers: usize,
}

/// Changes of the stack of layers of a mount.
#[derive(Debug, Default)]
pub(in crate::driver) struct Changes {
    /// Held while the stack is changed, including the steps before and after; it is taken before all other locks. It
    /// protects what the last checkpoint could not finish.
    one: Mutex<Option<Unfinished>>,
    /// Leaf lock.
    pauses: Mutex<Pauses>,
}

impl Overlay {
    /// Makes the upper the topmost lower layer, and an empty directory with the id `id` the new upper. The layer is moved
    /// to `place`, which must not exist yet. With `sync`, everything is on the disk when this returns, unless the mount
    /// never flushes.
    ///
    /// # Errors
    /// One line of text. The mount is as before, unless the line says that it is not.
    pub fn checkpoint(&self, place: &Path, id: ChainId, sync: bool) -> Result<Checkpoint, ChangeError> {
        let mut unfinished = self.changes.one.lock();
        self.finish(&mut unfinished).map_err(|errno| after("the last checkpoint is still not finished", errno))?;
        self.write_back();
        let mut successor = {
            let union = self.enter();
            union.check_can_change()?;
            union.learn_names_of_writers();
            union.stack.prepare_successor(place, id, Below::Upper)?
        };
        let old = successor.old_id();
        let (pivoted, paused) = self.exclusive(|union| union.pivot(&mut successor))?;
        let replacements = pivoted?;
        let moved_files = replacements.len();
        let settled = if sync && self.enter().flushes() { Some(successor.settle()) } else { None };
        *unfinished = Some(Unfinished { successor, replacements, has_moved: moved_files > 0 });
        self.finish(&mut unfinished).map_err(|errno| after("the checkpoint is made, but is not finished", errno))?;
        if let Some(settled) = settled {
            let synced = settled.map_err(|error| error.errno).and_then(|()| self.sync());
            synced.map_err(|errno| after("the checkpoint is made, but may not be on the disk", errno))?;
        }
        Ok(Checkpoint { id: old, paused, moved_files })
    }

    /// Finishes the last checkpoint, if it is not finished.
    fn finish(&self, unfinished: &mut Option<Unfinished>) -> Result<(), Errno> {
        let Some(last) = unfinished else { return Ok(()) };
        let flushes = self.enter().flushes();
        last.replace(flushes)?;
        if last.has_moved {
            self.enter().upper()?.end_moving()?;
        }
        *unfinished = None;
        Ok(())
    }

    /// Like [`Self::checkpoint`] with everything on the disk, and a new random id for the upper.
    ///
    /// # Errors
    /// As [`Self::checkpoint`]; also if no random number can be read.
    pub fn checkpoint_at(&self, place: &Path) -> Result<Checkpoint, ChangeError> {
        let id = new_id().map_err(|error| ChangeError { errno: Errno::IO, line: format!("no new id: {error}") })?;
        self.checkpoint(place, id, true)
    }

    /// Prepares for another mount that is about to use the layers `layers`: open files leave them, and this mount does not
    /// write to them any more. Layers that were never its upper are not written in any case.
    ///
    /// # Errors
    /// One line of text.
    pub fn share(&self, layers: &[PathBuf]) -> Result<(), ChangeError> {
        let mut unfinished = self.changes.one.lock();
        self.finish(&mut unfinished).map_err(|errno| after("the last checkpoint is still not finished", errno))?;
        // Most of the work is done with the gate open.
        self.enter().take_open_files_out(layers)?;
        let (shared, _) = self.exclusive(|union| {
            let ids = union.take_open_files_out(layers)?;
            ids.into_iter().for_each(|id| union.stack.disown(id));
            Ok(())
        })?;
        shared
    }

    /// Describes the mount.
    pub fn state(&self) -> StackState {
        let union = self.enter();
        let lowers = union.stack.lowers().iter();
        StackState {
            upper: union.stack.upper_chain().map(|chain| chain.id),
            lowers: lowers.map(|layer| (layer.path().to_owned(), layer.chain().map(|chain| chain.id))).collect(),
            writers: union.count_writers(),
        }
    }

    /// How long verbs waited for the changes of the stack so far.
    pub fn pauses(&self) -> Pauses {
        *self.changes.pauses.lock()
    }

    /// Calls `act` with the gate closed. Returns its result and how long verbs had to wait.
    fn exclusive<R>(&self, act: impl FnOnce(&mut Union) -> R) -> Result<(R, Duration), ChangeError> {
        let start = Instant::now();
        let mut open = OPEN;
        loop {
            let closing = Instant::now();
            if let Some(mut union) = self.union.try_write_for(PATIENCE) {
                let done = act(&mut union);
                drop(union);
                let paused = closing.elapsed();
                let pauses = &mut *self.changes.pauses.lock();
                *pauses = Pauses { count: pauses.count + 1, last: paused, longest: pauses.longest.max(paused) };
                return Ok((done, paused));
            }
            if start.elapsed() > LIMIT {
                return Err(ChangeError {
                    errno: Errno::BUSY,
                    line: "the mount is busy: a request does not end".to_owned(),
                });
            }
            std::thread::sleep(open);
            open = (open * 2).min(MOST_OPEN);
        }
    }
}

/// An error in a step that comes after `what`.
fn after(what: &str, errno: Errno) -> ChangeError {
    ChangeError { errno, line: format!("{what}: {}", std::io::Error::from(errno)) }
}

impl Union {
    /// Fails if the mount's options, layers or limits do not allow a checkpoint.
    fn check_can_change(&self) -> Result<(), ChangeError> {
        let Some(upper) = self.stack.upper().filter(|upper| !upper.is_read_only()) else {
            return Err(ChangeError { errno: Errno::ROFS, line: "the mount is read-only".to_owned() });
        };
        let work = upper.work().map_err(|errno| ChangeError { errno, line: "there is no workdir".to_owned() })?;
        let lacks = [
            (self.config.index, "index=on"),
            (self.config.metacopy, "metacopy=on"),
            (!upper.keeps_marks(), "an upperdir whose file system keeps no extended attributes"),
            (!work.capabilities().exchange, "an upperdir whose file system lacks RENAME_EXCHANGE"),
        ];
        // Each layer holds two descriptors, and directories that are kept open may take a quarter of the limit.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        let layers = self.stack.lowers().len();
        if layers as u64 >= limit / 4 {
            let line =
                format!("a mount of {layers} layers that may have {limit} files open has no further checkpoints");
            return Err(ChangeError { errno: Errno::MFILE, line });
        }
        match lacks.into_iter().find(|(lacks, _)| *lacks) {
            Some((_, what)) => Err(ChangeError::refused(format!("a mount with {what} has no checkpoints"))),
            None => Ok(()),
        }
    }

    /// Copies files that the kernel reads directly from `layers` up. Returns the ids of those layers that were the upper.
    fn take_open_files_out(&self, layers: &[PathBuf]) -> Result<Vec<LayerId>, ChangeError> {
        let fail = |errno| ChangeError { errno, line: format!("an open file stays: {}", std::io::Error::from(errno)) };
        let ids = self.stack.own_layers(layers)?;
        for node in self.handles.passed_through() {
            let layer = node.state().lower().map(|(_, layer)| layer);
            if layer.is_some_and(|layer| ids.contains(&layer)) && !node.is_removed() {
                self.copy_up(&node).map_err(fail)?;
            }
        }
        Ok(ids)
    }

    /// Makes the successor the upper. The gate is closed. Returns the copies that must take names in the layer next.
    fn pivot(&mut self, successor: &mut Successor) -> Result<Vec<writers::Replacement>, ChangeError> {
        let fail =
            |errno| ChangeError { errno, line: format!("not all could be copied: {}", std::io::Error::from(errno)) };
        successor.refresh().map_err(fail)?;
        let moving = self.begin_moving(successor).map_err(fail)?;
        let layer = self.stack.pivot(successor)?;
        // The checkpoint is made: from here on nothing may fail.
        if let Ok(layer) = self.stack.lower(layer) {
            self.origins.learn(layer);
        }
        self.nodes.begin_upper(layer, &self.upper_id, self.stack.upper_id());
        let replacements = self.end_moving(moving, layer);
        self.count_successor();
        Ok(replacements)
    }
}
