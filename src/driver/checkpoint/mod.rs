//! Checkpoints: the upper becomes the topmost lower layer, and an empty directory the upper, while the mount is in use.
//!
//! 1. What takes time is done before, with the gate open: the new upper is prepared ([`Successor`]).
//! 2. With the gate closed (`Overlay::exclusive`): files that are open for writing get names in the new upper, and a copy of
//!    their content for the layer is made (`writers`); one rename exchanges the directories, which is the checkpoint; the
//!    stack gets one more layer. Nodes learn it later (`node/settle`).
//! 3. With the gate open again: the copies take the names in the layer, and everything is written to the disk.
//!
//! No verb waits for more than the second step, and for that only so long: if verbs that hold the gate do not end, others are
//! let through and it is tried again.

mod writers;

pub(in crate::driver) use writers::find_names;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::driver::types::Errno;
use crate::driver::{Overlay, Union};
use crate::marks::chain::ChainId;
use crate::union::layer::{Below, LayerId};
pub use crate::union::layer::{ChangeError, Successor};

/// How long verbs wait for one that holds the gate, so that it can be closed.
const PATIENCE: Duration = Duration::from_micros(300);
/// How long they are let through then, at first and at most.
const OPEN: Duration = Duration::from_micros(500);
const MOST_OPEN: Duration = Duration::from_millis(10);
/// After this long the change is given up: a verb does not end.
const LIMIT: Duration = Duration::from_secs(600);

/// What a checkpoint came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The id of the layer that was the upper.
    pub id: ChainId,
    /// How long verbs had to wait at most.
    pub paused: Duration,
    /// Files that went to the new upper because they are open for writing.
    pub moved_files: usize,
}

/// What a mount consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackState {
    /// The id of the upper, if it has one.
    pub upper: Option<ChainId>,
    /// The visible lower layers with their ids, topmost first.
    pub lowers: Vec<(PathBuf, Option<ChainId>)>,
    /// Files in the upper that are open for writing, or mapped for it.
    pub writers: usize,
}

/// Changes of the stack of layers of a mount.
#[derive(Debug, Default)]
pub(in crate::driver) struct Changes {
    /// Held while the stack is changed, with the steps before and after. The first of all locks.
    one: Mutex<()>,
    count: AtomicU64,
    /// In microseconds.
    longest_pause: AtomicU64,
}

impl Overlay {
    /// Makes the upper the topmost lower layer, at `place`, where nothing is yet, and an empty directory of id `id` the upper.
    /// With `sync`, everything is on the disk when this returns, unless the mount flushes nothing.
    ///
    /// # Errors
    /// One line. The state is that before, unless the line says that it is not.
    pub fn checkpoint(&self, place: &Path, id: ChainId, sync: bool) -> Result<Checkpoint, ChangeError> {
        let _one = self.changes.one.lock();
        let mut successor = {
            let union = self.enter();
            union.check_can_change()?;
            union.learn_names_of_writers();
            union.stack.prepare_successor(place, id, Below::Upper)?
        };
        let old = successor.old_id();
        let (pivoted, paused) = self.exclusive(|union| union.pivot(&mut successor))?;
        let moved = pivoted?;
        let moved_files = moved.len();
        let flushes = self.enter().flushes();
        for replacement in moved {
            replacement.run(&successor, flushes)?;
        }
        if moved_files > 0 {
            let ended = self.enter().upper().and_then(|upper| upper.end_moving());
            ended.map_err(|errno| ChangeError::new(place, errno))?;
        }
        if sync && flushes {
            successor.settle()?;
            self.sync().map_err(|errno| ChangeError::new(place, errno))?;
        }
        Ok(Checkpoint { id: old, paused, moved_files })
    }

    /// Another mount is about to use the layers `layers`: files that are open leave them, and this mount does not write to them
    /// any more. Those of them that were never its upper it does not write to anyway.
    ///
    /// # Errors
    /// One line.
    pub fn share(&self, layers: &[PathBuf]) -> Result<(), ChangeError> {
        let _one = self.changes.one.lock();
        // Most of the work is done with the gate open.
        self.enter().take_open_files_out(layers)?;
        let (shared, _) = self.exclusive(|union| {
            let ids = union.take_open_files_out(layers)?;
            ids.into_iter().for_each(|id| union.stack.disown(id));
            Ok(())
        })?;
        shared
    }

    /// What the mount consists of.
    pub fn state(&self) -> StackState {
        let union = self.enter();
        let lowers = union.stack.lowers().iter();
        StackState {
            upper: union.stack.upper_chain().map(|chain| chain.id),
            lowers: lowers.map(|layer| (layer.path().to_owned(), layer.chain().map(|chain| chain.id))).collect(),
            writers: union.count_writers(),
        }
    }

    /// Number of changes of the stack, and the longest time that verbs waited for one.
    pub fn pauses(&self) -> (u64, Duration) {
        let longest = self.changes.longest_pause.load(Ordering::Relaxed);
        (self.changes.count.load(Ordering::Relaxed), Duration::from_micros(longest))
    }

    /// Closes the gate for `act`; what it returns, and how long verbs had to wait.
    fn exclusive<R>(&self, act: impl FnOnce(&mut Union) -> R) -> Result<(R, Duration), ChangeError> {
        let start = Instant::now();
        let mut open = OPEN;
        loop {
            let closing = Instant::now();
            if let Some(mut union) = self.union.try_write_for(PATIENCE) {
                let done = act(&mut union);
                drop(union);
                let paused = closing.elapsed();
                let micros = u64::try_from(paused.as_micros()).unwrap_or(u64::MAX);
                self.changes.longest_pause.fetch_max(micros, Ordering::Relaxed);
                self.changes.count.fetch_add(1, Ordering::Relaxed);
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

impl Union {
    /// Refuses what a mount with these options cannot do.
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
        match lacks.into_iter().find(|(lacks, _)| *lacks) {
            Some((_, what)) => Err(ChangeError::refused(format!("a mount with {what} has no checkpoints"))),
            None => Ok(()),
        }
    }

    /// Moves the files that the kernel reads directly from `layers` to the upper. The ids of the layers that were the upper.
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

    /// Makes the successor the upper. Nobody else is in the union. The copies that must take names in the layer then.
    fn pivot(&mut self, successor: &mut Successor) -> Result<Vec<writers::Replacement>, ChangeError> {
        let fail =
            |errno| ChangeError { errno, line: format!("not all could be copied: {}", std::io::Error::from(errno)) };
        successor.refresh().map_err(fail)?;
        let moving = self.begin_moving(successor).map_err(fail)?;
        let layer = self.stack.pivot(successor)?;
        // From here on it is done: nothing may fail any more.
        if let Ok(layer) = self.stack.lower(layer) {
            self.origins.learn(layer);
        }
        self.nodes.begin_upper(layer, &self.upper_id, self.stack.upper_id());
        Ok(self.end_moving(moving, layer))
    }
}
