//! The verbs' side of the count: reserving before a change, counting after it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use crate::driver::Union;
use crate::driver::copy_up::stage::CopySource;
use crate::driver::node::{NodeRef, OpenFile};
use crate::driver::quota::{Grant, Tracked, Usage, bytes, written};
use crate::driver::types::{Errno, HandleId, Result};
use crate::union::layer::{FileType, Stat, UpperDir};

/// A symbolic link of this length or more may need a block.
const LONG_SYMLINK: u64 = 60;

impl Union {
    /// Reserves the blocks for a copy of the first `length` bytes of `source`. A directory is never refused.
    ///
    /// # Errors
    /// `NOSPC`; those of opening the file and of `lseek(2)`.
    pub(in crate::driver) fn grant_copy(&self, source: &CopySource<'_>, length: Option<u64>) -> Result<Grant<'_>> {
        match (source.stat.file_type(), source.content) {
            _ if self.usage.is_none() => Ok(Grant::UNLIMITED),
            (FileType::Symlink, _) => self.grant_symlink(source.stat.size),
            (FileType::Regular, _) if length == Some(0) => Ok(Grant::UNLIMITED),
            (FileType::Regular, Some(content)) => self.grant_content(content, length),
            (FileType::Regular, None) => self.grant_content(source.dir.open_file(source.name)?.as_fd(), length),
            (FileType::Directory | FileType::Special, _) => Ok(Grant::UNLIMITED),
        }
    }

    /// Reserves the blocks for a copy of the first `length` bytes of `file`.
    ///
    /// # Errors
    /// `NOSPC`; those of `lseek(2)`.
    pub(in crate::driver) fn grant_content(&self, file: BorrowedFd<'_>, length: Option<u64>) -> Result<Grant<'_>> {
        let Some(usage) = &self.usage else { return Ok(Grant::UNLIMITED) };
        let stat = Stat::of(file, c"")?;
        let range = 0..length.map_or(stat.size, |length| length.min(stat.size));
        let whole = range.end.checked_next_multiple_of(usage.block).unwrap_or(u64::MAX);
        let blocks = bytes(&stat);
        if blocks >= whole {
            return usage.grant(whole);
        }
        // A compressed file has fewer blocks than its copy will have.
        let data: u64 = written(file, &range)?.iter().map(|data| data.end.min(whole) - data.start).sum();
        usage.grant(data.max(blocks))
    }

    /// Reserves the block of a symbolic link to a target of `length` bytes.
    ///
    /// # Errors
    /// `NOSPC`
    pub(in crate::driver) fn grant_symlink(&self, length: u64) -> Result<Grant<'_>> {
        let Some(usage) = &self.usage else { return Ok(Grant::UNLIMITED) };
        usage.grant(if length < LONG_SYMLINK { 0 } else { usage.block })
    }

    /// Reserves the block of a new directory in `parent`, if directories of this file system take blocks.
    ///
    /// # Errors
    /// `NOSPC`; those of `statx(2)`.
    pub(in crate::driver) fn grant_directory(&self, parent: &UpperDir) -> Result<Grant<'_>> {
        let Some(usage) = &self.usage else { return Ok(Grant::UNLIMITED) };
        usage.grant(bytes(&parent.stat_self()?).min(usage.block))
    }

    /// Reserves `bytes` for a file that comes from another directory.
    ///
    /// # Errors
    /// `NOSPC`
    pub(in crate::driver) fn grant_whole(&self, stat: &Stat) -> Result<Grant<'_>> {
        let Some(usage) = &self.usage else { return Ok(Grant::UNLIMITED) };
        usage.grant(bytes(stat))
    }

    /// Reserves the blocks for a write of `length` bytes at `offset` of an open file. Returns how many of the bytes may be written, too.
    ///
    /// # Errors
    /// `NOSPC` if none may; those of `ioctl(2)` and `lseek(2)`.
    pub(in crate::driver) fn grant_write(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        length: u64,
    ) -> Result<(Grant<'_>, u64)> {
        let Some(usage) = self.usage.as_ref().filter(|_| length > 0) else { return Ok((Grant::UNLIMITED, length)) };
        usage.grant_range(file, &(offset..offset.saturating_add(length)))
    }

    /// Reserves the blocks for `fallocate(2)`.
    ///
    /// # Errors
    /// `NOSPC`; those of `ioctl(2)` and `lseek(2)`.
    pub(in crate::driver) fn grant_allocation(
        &self,
        file: BorrowedFd<'_>,
        mode: FallocateFlags,
        offset: u64,
        length: u64,
    ) -> Result<Grant<'_>> {
        if mode.contains(FallocateFlags::PUNCH_HOLE) {
            return Ok(Grant::UNLIMITED);
        }
        let (grant, granted) = self.grant_write(file, offset, length)?;
        if granted < length { Err(Errno::NOSPC) } else { Ok(grant) }
    }

    /// Reserves the blocks for a copy of `length` bytes between two open files and offsets. Returns how many of the bytes may be copied, too.
    ///
    /// # Errors
    /// `NOSPC` if none may; those of `statx(2)`, `ioctl(2)` and `lseek(2)`.
    pub(in crate::driver) fn grant_range_copy(
        &self,
        source: (BorrowedFd<'_>, u64),
        target: (BorrowedFd<'_>, u64),
        length: usize,
    ) -> Result<(Grant<'_>, usize)> {
        if self.usage.is_none() {
            return Ok((Grant::UNLIMITED, length));
        }
        // Nothing is written for bytes behind the end of the source.
        let wanted = Stat::of(source.0, c"")?.size.saturating_sub(source.1).min(length as u64);
        let (grant, granted) = self.grant_write(target.0, target.1, wanted)?;
        Ok((grant, if granted < wanted { usize::try_from(granted).unwrap_or(length) } else { length }))
    }

    /// Fails if the limit is exceeded: then no name and no attribute may be added.
    ///
    /// # Errors
    /// `NOSPC`
    pub(in crate::driver) fn check_growth(&self) -> Result<()> {
        match self.usage.as_ref().map(Usage::figures) {
            Some((limit, used)) if used > limit => Err(Errno::NOSPC),
            _ => Ok(()),
        }
    }

    /// Counts a new file of the upper, which has the attributes `stat`.
    pub(in crate::driver) fn count_new(&self, stat: &Stat) {
        if let Some(usage) = &self.usage {
            usage.grow(bytes(stat));
        }
    }

    /// Calls `act`, and counts how it changes the blocks of the directories `dirs` themselves.
    ///
    /// # Errors
    /// Those of `act`, and of `statx(2)` before it.
    pub(in crate::driver) fn counting_dirs<R>(&self, dirs: &[&UpperDir], act: impl FnOnce() -> Result<R>) -> Result<R> {
        let Some(usage) = &self.usage else { return act() };
        let tracked: Vec<Tracked> =
            dirs.iter().map(|dir| Ok(usage.track_dir(&dir.stat_self()?))).collect::<Result<_>>()?;
        let done = act();
        for (tracked, dir) in tracked.into_iter().zip(dirs) {
            usage.settle(&tracked, || dir.stat_self().map(Some));
            usage.let_go(tracked);
        }
        done
    }

    /// Calls `act`, and counts how it changes the blocks of the node's file or directory in the upper.
    ///
    /// # Errors
    /// Those of `act`, and of `statx(2)` before it.
    pub(in crate::driver) fn counting<R>(&self, node: &NodeRef, act: impl FnOnce() -> Result<R>) -> Result<R> {
        let Some(usage) = self.usage.as_ref().filter(|_| !node.is_uncounted()) else { return act() };
        let tracked = usage.track(node, &self.upper_stat(node)?);
        let done = act();
        self.settle_upper(usage, &tracked, node);
        usage.let_go(tracked);
        done
    }

    /// Counts the blocks that a write to the open file `handle` has added. `preallocated`: the user asked for blocks behind its end.
    pub(in crate::driver) fn count_written(&self, handle: HandleId, file: BorrowedFd<'_>, preallocated: bool) {
        let Some((usage, tracked)) = self.usage.as_ref().and_then(|usage| Some((usage, usage.of_handle(handle)?)))
        else {
            return;
        };
        if preallocated {
            tracked.account.charged.lock().preallocated = true;
        }
        usage.settle(&tracked, || Stat::of(file, c"").map(Some));
        usage.let_go(tracked);
    }

    /// Notes that a file of the upper was opened.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub(in crate::driver) fn count_opened(&self, handle: HandleId, node: &NodeRef, file: BorrowedFd<'_>) -> Result<()> {
        let Some(usage) = &self.usage else { return Ok(()) };
        let stat = Stat::of(file, c"")?;
        let tracked = usage.track(node, &stat);
        // A removed file may be opened again, through a descriptor of another process.
        usage.revive(&tracked, node, &stat);
        usage.handles.lock().insert(handle.0, tracked);
        Ok(())
    }

    /// Notes that an open file was closed. The node's state shows that already.
    pub(in crate::driver) fn count_closed(&self, handle: HandleId, open: Arc<OpenFile>) {
        let Some(usage) = &self.usage else { return };
        let Some(tracked) = usage.handles.lock().remove(&handle.0) else { return };
        let (node, writable) = (open.node.clone(), open.writable);
        // The file system may free blocks now.
        drop(open);
        let (is_open, orphan) = {
            let state = node.state();
            (state.open().is_some(), state.orphan().cloned())
        };
        match orphan {
            Some(held) if !is_open => {
                let is_gone = self.count_removed(&node, &held);
                usage.end_lingering(u64::from(is_gone));
            }
            None if writable => {
                tracked.account.charged.lock().preallocated |= !is_open;
                self.settle_upper(usage, &tracked, &node);
                usage.keep(&node, tracked.clone());
            }
            _ => {}
        }
        usage.let_go(tracked);
    }

    /// Notes that the node's file or directory has lost a name in the upper. After the last name, it is taken out of the count
    /// unless it is open. True if it is out of the count.
    pub(in crate::driver) fn count_removed(&self, node: &NodeRef, held: &UpperDir) -> bool {
        let Some(usage) = &self.usage else { return false };
        let stat = match held.stat_self() {
            Ok(stat) => stat,
            Err(errno) => {
                tracing::debug!("size=: a removed file is counted on: {errno}");
                return false;
            }
        };
        // An abandoned file keeps its names in a directory that is no longer the upper.
        if !stat.is_dir() && stat.nlink > 0 && !node.is_abandoned() {
            return false;
        }
        if node.file_state().is_some_and(|state| state.open().is_some()) {
            usage.begin_lingering();
            return false;
        }
        let removed = usage.remove(node, &stat);
        if removed {
            usage.forget(node);
        }
        removed
    }

    /// Prepares for the kernel forgetting the node.
    pub(in crate::driver) fn count_again(&self, node: &NodeRef) {
        if let Some(usage) = &self.usage
            && let Some(tracked) = usage.written(node)
        {
            self.settle_upper(usage, &tracked, node);
            usage.let_go(tracked);
        }
    }

    /// Notes that the kernel has forgotten the node.
    pub(in crate::driver) fn count_forgotten(&self, node: &NodeRef) {
        if let Some(usage) = &self.usage {
            usage.forget(node);
        }
    }

    /// Counts the present blocks of the node's file in the upper. The names are locked before the account, as in verbs that remove a name.
    fn settle_upper(&self, usage: &Usage, tracked: &Tracked, node: &NodeRef) {
        let settled = self.on_upper(node, |dir, name| {
            // The file may have been removed meanwhile.
            usage.settle(tracked, || if node.is_uncounted() { Ok(None) } else { dir.stat(name) });
            Ok(())
        });
        if let Err(errno) = settled {
            tracing::debug!("size=: a file is not counted again: {errno}");
        }
    }

    fn upper_stat(&self, node: &NodeRef) -> Result<Stat> {
        self.on_upper(node, |dir, name| dir.stat(name)?.ok_or(Errno::STALE))
    }

    /// Notes that a removed file gets a name again.
    pub(in crate::driver) fn count_revived(&self, node: &NodeRef, stat: &Stat) {
        if let Some(usage) = self.usage.as_ref().filter(|_| node.is_uncounted()) {
            let tracked = usage.track(node, stat);
            usage.revive(&tracked, node, stat);
            usage.let_go(tracked);
        }
    }

    /// The mount's limit and usage, in bytes.
    pub(in crate::driver) fn quota(&self) -> Option<(u64, u64)> {
        self.usage.as_ref().map(Usage::figures)
    }

    /// Counts the new upper. The gate is closed: no other thread is in the union.
    pub(in crate::driver) fn count_successor(&self) {
        if let (Some(usage), Some(upper)) = (&self.usage, self.stack.upper())
            && let Err(errno) = usage.recount(upper)
        {
            tracing::error!("size=: the new upperdir is not counted: {errno}");
        }
    }
}
