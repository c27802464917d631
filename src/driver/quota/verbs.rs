//! What the verbs tell of the blocks that they take and free.

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
    /// Reserves what a copy of the first `length` bytes of `source` takes. A directory takes what it must.
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

    /// Reserves what a copy of the first `length` bytes of `file` takes.
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
        // The blocks of a compressed file tell too little.
        let data: u64 = written(file, &range)?.iter().map(|data| data.end.min(whole) - data.start).sum();
        usage.grant(data.max(blocks))
    }

    /// Reserves what a symbolic link takes to a target of `length` bytes.
    ///
    /// # Errors
    /// `NOSPC`
    pub(in crate::driver) fn grant_symlink(&self, length: u64) -> Result<Grant<'_>> {
        let Some(usage) = &self.usage else { return Ok(Grant::UNLIMITED) };
        usage.grant(if length < LONG_SYMLINK { 0 } else { usage.block })
    }

    /// Reserves what a new directory in `parent` takes. Not every file system gives one blocks.
    ///
    /// # Errors
    /// `NOSPC`; those of `statx(2)`.
    pub(in crate::driver) fn grant_directory(&self, parent: &UpperDir) -> Result<Grant<'_>> {
        let Some(usage) = &self.usage else { return Ok(Grant::UNLIMITED) };
        usage.grant(bytes(&parent.stat_self()?).min(usage.block))
    }

    /// Reserves `bytes` that a file takes from another directory.
    ///
    /// # Errors
    /// `NOSPC`
    pub(in crate::driver) fn grant_whole(&self, stat: &Stat) -> Result<Grant<'_>> {
        let Some(usage) = &self.usage else { return Ok(Grant::UNLIMITED) };
        usage.grant(bytes(stat))
    }

    /// Reserves what a write of `length` bytes at `offset` of an open file takes, and how many of the bytes may be written.
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

    /// Reserves what `fallocate(2)` takes.
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

    /// Reserves what a copy of `length` bytes between two open files and offsets takes, and how many of the bytes may be copied.
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
        // What the source does not have is not written.
        let wanted = Stat::of(source.0, c"")?.size.saturating_sub(source.1).min(length as u64);
        let (grant, granted) = self.grant_write(target.0, target.1, wanted)?;
        Ok((grant, if granted < wanted { usize::try_from(granted).unwrap_or(length) } else { length }))
    }

    /// Fails if no name and no attribute may be added: more is held than may be.
    ///
    /// # Errors
    /// `NOSPC`
    pub(in crate::driver) fn check_growth(&self) -> Result<()> {
        match self.usage.as_ref().map(Usage::figures) {
            Some((limit, used)) if used > limit => Err(Errno::NOSPC),
            _ => Ok(()),
        }
    }

    /// A file with the attributes `stat` came into the upper.
    pub(in crate::driver) fn count_new(&self, stat: &Stat) {
        if let Some(usage) = &self.usage {
            usage.grow(bytes(stat));
        }
    }

    /// Counts what `act` changes of the directories `dirs` themselves.
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

    /// Counts what `act` changes of the node's file or directory in the upper.
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

    /// Counts what a write to the open file `handle` has changed. `preallocated`: blocks behind its end are the user's wish.
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

    /// A file of the upper was opened.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub(in crate::driver) fn count_opened(&self, handle: HandleId, node: &NodeRef, file: BorrowedFd<'_>) -> Result<()> {
        let Some(usage) = &self.usage else { return Ok(()) };
        let stat = Stat::of(file, c"")?;
        let tracked = usage.track(node, &stat);
        // It may have been removed, and be opened again by a descriptor of a process that did not have it open.
        usage.revive(&tracked, node, &stat);
        usage.handles.lock().insert(handle.0, tracked);
        Ok(())
    }

    /// An open file was closed, and its node knows it.
    pub(in crate::driver) fn count_closed(&self, handle: HandleId, open: Arc<OpenFile>) {
        let Some(usage) = &self.usage else { return };
        let Some(tracked) = usage.handles.lock().remove(&handle.0) else { return };
        let (node, writable) = (open.node.clone(), open.writable);
        // The file system may take blocks back now.
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

    /// A name of the node's file, or its directory, is gone from the upper: it is counted no more if that was the last one and
    /// nobody has it open. True if that is so now.
    pub(in crate::driver) fn count_removed(&self, node: &NodeRef, held: &UpperDir) -> bool {
        let Some(usage) = &self.usage else { return false };
        let stat = match held.stat_self() {
            Ok(stat) => stat,
            Err(errno) => {
                tracing::debug!("size=: a removed file is counted on: {errno}");
                return false;
            }
        };
        // An abandoned file keeps its names in a directory that is the upper no more.
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

    /// The kernel may forget the node in a moment.
    pub(in crate::driver) fn count_again(&self, node: &NodeRef) {
        if let Some(usage) = &self.usage
            && let Some(tracked) = usage.written(node)
        {
            self.settle_upper(usage, &tracked, node);
            usage.let_go(tracked);
        }
    }

    /// The kernel has forgotten the node.
    pub(in crate::driver) fn count_forgotten(&self, node: &NodeRef) {
        if let Some(usage) = &self.usage {
            usage.forget(node);
        }
    }

    /// Counts what the node's file in the upper has now. The names are held before the account, as in verbs that remove a name.
    fn settle_upper(&self, usage: &Usage, tracked: &Tracked, node: &NodeRef) {
        let settled = self.on_upper(node, |dir, name| {
            // It may have been removed meanwhile.
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

    /// A removed file gets a name again.
    pub(in crate::driver) fn count_revived(&self, node: &NodeRef, stat: &Stat) {
        if let Some(usage) = self.usage.as_ref().filter(|_| node.is_uncounted()) {
            let tracked = usage.track(node, stat);
            usage.revive(&tracked, node, stat);
            usage.let_go(tracked);
        }
    }

    /// The mount's limit and what is used of it, in bytes.
    pub(in crate::driver) fn quota(&self) -> Option<(u64, u64)> {
        self.usage.as_ref().map(Usage::figures)
    }

    /// Another directory is the upper, and nobody else is in the union: counts what it holds.
    pub(in crate::driver) fn count_successor(&self) {
        if let (Some(usage), Some(upper)) = (&self.usage, self.stack.upper())
            && let Err(errno) = usage.recount(upper)
        {
            tracing::error!("size=: the new upperdir is not counted: {errno}");
        }
    }
}
