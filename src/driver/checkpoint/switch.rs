//! Rollback: the mount gets other lower layers and an empty upper while it is in use.
//!
//! 1. With the gate open, the layers are opened and the new upper is prepared.
//! 2. With the gate closed, the abandoned state becomes a layer if it is to be kept, as at a checkpoint. `plan` decides what each
//!    node that the kernel knows becomes, one rename exchanges the upper, and the nodes are changed. From then on, requests are
//!    answered from the new layers, even if they come through a name that the kernel has cached.
//! 3. With the gate open again, the kernel is told which names and directories have changed. Meanwhile it waits for requests on
//!    those directories, so no request may wait for this thread.
//!
//! `FUSE_NOTIFY_INC_EPOCH` makes the kernel look up all names again, but `d_invalidate()` then unmounts everything that is mounted in
//! the tree. So the driver invalidates names one by one, and directories that stay are not dropped.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::after;
use super::plan::{News, Plan, appeared};
use crate::driver::node::NodeRef;
use crate::driver::types::{Errno, KernelRef};
use crate::driver::{Overlay, Union};
use crate::marks::chain::ChainId;
use crate::union::layer::{Below, ChangeError, LayerId, MergedLowers, NextLowers, Past, Successor, UpperDir};

/// Where the abandoned state becomes a layer.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// Path of the layer, which must not exist yet.
    pub place: &'a Path,
    /// Id of the temporary upper between the two exchanges.
    pub id: ChainId,
}

/// Result of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switched {
    /// The longest time that verbs had to wait.
    pub paused: Duration,
    /// Number of nodes that the mount no longer shows.
    pub abandoned: usize,
}

/// The parts of the old stack that are still needed.
struct OldStack {
    past: Past,
    upper: UpperDir,
    news: News,
    abandoned: usize,
}

impl Overlay {
    /// Makes `lowers` (topmost first) the lower layers, and an empty directory with the id `id` the upper. The old upper moves to
    /// `place`, which must not exist yet, and then belongs to the caller. With `kept`, the old upper becomes a layer at the path in
    /// `kept`, and another directory moves to `place`. Everything is on the disk when this returns, unless the mount never flushes.
    ///
    /// Open files that are not the same in the new layers behave as deleted ones. When this returns, the kernel has forgotten each
    /// changed name that nothing is mounted below. Anything mounted on a lost directory is unmounted.
    ///
    /// # Errors
    /// One line. Nothing has changed, unless the line says otherwise; with `kept`, the layer may have been made.
    pub fn switch(
        &self,
        place: &Path,
        id: ChainId,
        lowers: &[PathBuf],
        kept: Option<Kept<'_>>,
    ) -> Result<Switched, ChangeError> {
        let mut unfinished = self.changes.one.lock();
        self.finish(&mut unfinished).map_err(|errno| after("the last checkpoint is still not finished", errno))?;
        let (next, mut keeper, mut successor) = {
            let union = self.enter();
            union.check_can_change()?;
            let next = union.stack.prepare_lowers(lowers, &union.config)?;
            let keeper = match kept {
                None => None,
                Some(kept) => {
                    union.learn_names_of_writers();
                    Some(union.stack.prepare_successor(kept.place, kept.id, Below::Upper)?)
                }
            };
            let successor = union.stack.prepare_successor(place, id, Below::Layers(&next))?;
            (next, keeper, successor)
        };
        let (turned, paused) = self.exclusive(|union| union.turn(next, keeper.as_mut(), &mut successor))?;
        let old = turned?;
        self.tell(&old);
        if self.enter().flushes() {
            successor.settle()?;
            keeper.as_ref().map_or(Ok(()), Successor::settle)?;
            self.sync().map_err(|errno| ChangeError::new(place, errno))?;
        }
        Ok(Switched { paused, abandoned: old.abandoned })
    }

    /// Makes `lowers` (topmost first) the lower layers. They show the same tree as the present ones, some of which were merged. The
    /// upper stays. Users notice nothing, except that a directory that was not looked up yet may get another inode number.
    ///
    /// # Errors
    /// One line of text. Nothing has changed on an error.
    pub fn use_merged(&self, lowers: &[PathBuf]) -> Result<(), ChangeError> {
        let _one = self.changes.one.lock();
        let merged = {
            let union = self.enter();
            union.check_can_change()?;
            union.stack.prepare_merged(lowers, &union.config)?
        };
        self.exclusive(|union| union.turn_to_merged(merged))?.0
    }

    /// Tells the kernel what has changed. The gate is open.
    fn tell(&self, old: &OldStack) {
        let kernel = self.enter().kernel.get().map(|attached| Arc::clone(&attached.kernel));
        if let Some(kernel) = kernel {
            old.tell_gone(&kernel);
            for changed in &old.news.changed {
                // The gate must not be held while the kernel is told.
                let names = appeared(&self.enter(), &old.past, &old.upper, changed);
                match names {
                    Ok(names) => {
                        names.iter().for_each(|name| kernel.invalidate_entry(changed.node.id(), text(name)));
                    }
                    Err(errno) => tracing::error!("names that appear again may not be seen: {errno}"),
                }
                kernel.invalidate_pages(changed.node.id());
            }
        }
        self.enter().has_told.store(true, std::sync::atomic::Ordering::Release);
    }
}

fn text(name: &CStr) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}

impl OldStack {
    fn tell_gone(&self, kernel: &KernelRef) {
        for ((parent, name), node) in &self.news.gone {
            match node.is_abandoned() {
                true => kernel.delete_entry(parent.id(), text(name), node.id()),
                // The node has other names.
                false => kernel.invalidate_entry(parent.id(), text(name)),
            }
        }
    }
}

impl Union {
    /// The gate is closed: no other thread is in the union.
    fn turn(
        &mut self,
        next: NextLowers,
        keeper: Option<&mut Successor>,
        successor: &mut Successor,
    ) -> Result<OldStack, ChangeError> {
        if let Some(keeper) = keeper {
            self.keep(keeper)?;
        }
        let fail =
            |errno| ChangeError { errno, line: format!("the layers cannot be read: {}", std::io::Error::from(errno)) };
        let upper = self.upper().map_err(fail)?.root().clone();
        let before = self.stack.upper_id();
        let past = self.stack.replace_lowers(next);
        let planned = self.plan(&past, false).map_err(fail).and_then(|plan| {
            self.stack.replace_upper(successor)?;
            Ok(plan)
        });
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => {
                self.stack.restore_lowers(past);
                return Err(error);
            }
        };
        // The switch is made: from here on, nothing may fail.
        self.has_told.store(false, std::sync::atomic::Ordering::Release);
        // New layers have higher ids than the old upper.
        self.former_links.forget_above(self.stack.ids().find(|id| *id <= before).unwrap_or(LayerId::LOWEST));
        self.stack.lowers().iter().for_each(|layer| self.origins.learn(layer));
        let abandoned = plan.abandoned.len();
        let news = self.rebase(plan);
        self.count_successor();
        Ok(OldStack { past, upper, news, abandoned })
    }

    /// The gate is closed: no other thread is in the union.
    fn turn_to_merged(&mut self, merged: MergedLowers) -> Result<(), ChangeError> {
        let fail = |errno| ChangeError {
            errno,
            line: format!("the merged layers cannot be used: {}", std::io::Error::from(errno)),
        };
        let past = self.stack.replace_merged(merged);
        let planned = self.plan(&past, true).map_err(fail).and_then(|plan| match plan.lost.is_empty() {
            true => Ok(plan),
            false => Err(ChangeError::refused("the merged layers show something else")),
        });
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => {
                self.stack.restore_unmerged(past);
                return Err(error);
            }
        };
        for (node, parts) in plan.dirs {
            self.nodes.replace_lowers(&node, parts.lowers);
        }
        for (node, layer) in plan.files {
            self.nodes.rebase_file(&node, layer);
        }
        for (node, remains) in plan.abandoned {
            self.nodes.abandon(&node, remains);
        }
        self.nodes.descriptors().clear();
        Ok(())
    }

    /// Makes the upper a layer, as at a checkpoint. It is not written any more after that.
    fn keep(&mut self, keeper: &mut Successor) -> Result<(), ChangeError> {
        let mut moved = self.pivot(keeper)?;
        if moved.is_empty() {
            return Ok(());
        }
        let flushes = self.flushes();
        let replaced = moved.iter_mut().try_for_each(|replacement| replacement.run(keeper.left(), flushes));
        let ended = replaced.and_then(|()| self.upper()?.end_moving());
        ended.map_err(|errno| after("the checkpoint is made, but is not finished", errno))
    }

    /// Changes the nodes.
    fn rebase(&self, plan: Plan) -> News {
        let Plan { dirs, files, names, lost, abandoned, news } = plan;
        for (node, parts) in dirs {
            self.nodes.rebase_dir(&node, parts);
        }
        for (node, layer) in files {
            self.nodes.rebase_file(&node, layer);
        }
        for ((parent, name), node) in names {
            self.nodes.lose_name(&parent, &name, &node);
        }
        for (node, remains) in abandoned {
            self.nodes.abandon(&node, remains);
        }
        let shrunk: Vec<NodeRef> = lost.into_iter().map(|((parent, _), _)| parent).collect();
        self.nodes.end_rebasing(&self.upper_id, self.stack.upper_id(), &shrunk);
        news
    }

    /// The error for a directory that the mount no longer shows. Until the kernel has been told about all changes, a request may
    /// come by the directory's path; ESTALE makes the kernel look that path up again.
    pub(in crate::driver) fn gone(&self) -> Errno {
        if self.has_told.load(std::sync::atomic::Ordering::Acquire) { Errno::NOENT } else { Errno::STALE }
    }
}
