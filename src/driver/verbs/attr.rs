//! Attributes, and `statfs`.

use std::ffi::{CStr, OsString};
use std::os::fd::AsFd;

use rustix::fs::OFlags;

use crate::driver::Union;
use crate::driver::node::NodeRef;
use crate::driver::types::{Attr, Caller, Errno, HandleId, NodeId, Result, SetAttr, SetTime, StatFs, Validity};
use crate::union::layer::{FileType, Stat, TimeTo, Times, UpperDir};

impl Union {
    /// Attributes of a node.
    pub(in crate::driver) fn attr(&self, node: &NodeRef) -> Result<Attr> {
        self.note_told(node);
        Ok(self.show(node, &self.real_stat(node)?))
    }

    /// Attributes of a node, and how long they are valid.
    ///
    /// # Errors
    /// `STALE`; those of `statx(2)`.
    pub(crate) fn getattr(&self, node: NodeId, handle: Option<HandleId>) -> Result<(Attr, Validity)> {
        let asked = node;
        let node = self.node(asked)?;
        let open = handle.and_then(|id| self.handles.get(id.0)).filter(|open| NodeRef::ptr_eq(&open.node, &node));
        if let Some(open) = open {
            let real = open.real.read();
            // If a lower file has been copied up since, its upper file has other attributes.
            let layer = node.state().layer();
            if let Some(fd) = real.of_layer(layer) {
                let stat = self.shown_stat_of(fd.as_fd(), Stat::of(fd.as_fd(), c"")?)?;
                return Ok((self.show(&node, &stat), Self::validity_for(&node, asked)));
            }
        }
        let attr = self.attr(&node)?;
        Ok((attr, Self::validity_for(&node, asked)))
    }

    /// Changes attributes; returns the new ones.
    ///
    /// # Errors
    /// `ROFS`; those of copy-up, `chown(2)`, `chmod(2)`, `truncate(2)`, `utimensat(2)`.
    pub(crate) fn setattr(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: Option<HandleId>,
        set: &SetAttr,
    ) -> Result<(Attr, Validity)> {
        let asked = node;
        let node = self.node(asked)?;
        node.check_attributes(set, handle.is_some())?;
        match set.size {
            Some(size) => self.copy_up_to(&node, Some(size))?,
            None => self.copy_up_attributes(&node)?,
        }
        let changed = self.change_attributes(caller, &node, handle, set);
        self.forget_inheritance(&node);
        let stat = changed.inspect_err(|_| {
            // Part of the change may have happened, but the kernel keeps its cached attributes.
            if let Some(kernel) = self.kernel() {
                kernel.invalidate_attr(asked);
            }
        })?;
        self.changed_under(&node, asked);
        Ok((self.show(&node, &stat), Self::validity_for(&node, asked)))
    }

    /// Changes attributes of the node's upper file; returns all attributes afterwards.
    fn change_attributes(
        &self,
        caller: &Caller,
        node: &NodeRef,
        handle: Option<HandleId>,
        set: &SetAttr,
    ) -> Result<Stat> {
        if let Some(size) = set.size {
            self.counting(node, || self.truncate(node, handle, size))?;
        }
        self.on_upper(node, |dir, name| {
            match &self.permissions {
                None => self.set_owner_and_mode(caller, node, dir, name, set)?,
                Some(permissions) => self.set_kept(permissions, caller, dir, name, set)?,
            }
            if set.atime.is_some() || set.mtime.is_some() {
                let to = |time: Option<SetTime>| {
                    time.map(|time| match time {
                        SetTime::Now => TimeTo::Now,
                        SetTime::At(time) => TimeTo::At(time),
                    })
                };
                dir.set_times(name, &Times { atime: to(set.atime), mtime: to(set.mtime) })?;
            }
            self.shown_stat(dir, name, dir.stat(name)?.ok_or(Errno::STALE)?)
        })
    }

    fn set_owner_and_mode(
        &self,
        caller: &Caller,
        node: &NodeRef,
        dir: &UpperDir,
        name: &CStr,
        set: &SetAttr,
    ) -> Result<()> {
        if (set.uid.is_some() || set.gid.is_some()) && !self.squashes() {
            let (uid, gid) = (set.uid.map(|u| self.uid_on_disk(u)), set.gid.map(|g| self.gid_on_disk(g)));
            dir.set_owner(name, uid, gid)?;
        }
        if let Some(mode) = set.mode {
            let is_special = node.file_type == FileType::Special;
            let is_users = is_special && dir.stat(name)?.is_some_and(|stat| stat.is_users_device());
            dir.set_mode(name, (mode & 0o7777) | if is_users { libc::S_ISVTX } else { 0 })?;
        } else if set.kill_suidgid && set.uid.is_none() && set.gid.is_none() {
            let stat = dir.stat(name)?.ok_or(Errno::STALE)?;
            if let Some(mode) = mode_without_set_id(caller, &stat) {
                dir.set_mode(name, mode)?;
            }
        }
        Ok(())
    }

    fn truncate(&self, node: &NodeRef, handle: Option<HandleId>, size: u64) -> Result<()> {
        if node.file_type != FileType::Regular {
            return Err(if node.file_type == FileType::Directory { Errno::ISDIR } else { Errno::INVAL });
        }
        if let Some(open) = handle.and_then(|id| self.handles.get(id.0))
            && open.writable
            && let Some(fd) = open.real.read().of_layer(node.state().layer())
        {
            return rustix::fs::ftruncate(fd, size);
        }
        let file = self.on_upper(node, |dir, name| dir.open_writable(name, OFlags::WRONLY))?;
        rustix::fs::ftruncate(file, size)
    }

    /// Target of a symlink.
    ///
    /// # Errors
    /// `INVAL` if the node is no symlink; errors of `readlinkat(2)`.
    pub(crate) fn readlink(&self, node: NodeId) -> Result<OsString> {
        let node = self.node(node)?;
        self.on_real(&node, |dir, name| dir.read_link(name))
    }

    /// Numbers of the upper's file system, or of the topmost layer's if there is no upper.
    ///
    /// # Errors
    /// Those of `fstatvfs(2)`.
    pub(crate) fn statfs(&self) -> Result<StatFs> {
        let vfs = match (self.stack.upper(), self.stack.lowers().first()) {
            (Some(upper), _) => rustix::fs::fstatvfs(upper.root().open_self()?)?,
            (None, Some(lower)) => rustix::fs::fstatvfs(lower.root().open_self()?)?,
            (None, None) => return Err(Errno::IO),
        };
        let (blocks, bfree, bavail) = match self.quota() {
            None => (vfs.f_blocks, vfs.f_bfree, vfs.f_bavail),
            Some((limit, used)) => {
                let rest = limit.saturating_sub(used) / vfs.f_frsize.max(1);
                (limit / vfs.f_frsize.max(1), rest.min(vfs.f_bfree), rest.min(vfs.f_bavail))
            }
        };
        Ok(StatFs {
            frsize: vfs.f_frsize,
            bsize: vfs.f_bsize,
            blocks,
            bfree,
            bavail,
            files: vfs.f_files,
            ffree: vfs.f_ffree,
            namelen: u32::try_from(crate::driver::NAME_MAX).unwrap_or(u32::MAX),
        })
    }
}

/// The permission bits that remain after a change by a caller without the right to keep set-id bits (kernel:
/// `setattr_should_drop_suidgid`); `None` if there is nothing to clear.
pub(in crate::driver) fn mode_without_set_id(caller: &Caller, stat: &Stat) -> Option<u32> {
    let mode = stat.mode & 0o7777;
    let mut kept = mode & !libc::S_ISUID;
    // Without group execution, the bit matters only for processes outside the group.
    if mode & libc::S_ISGID != 0 && (mode & libc::S_IXGRP != 0 || !crate::driver::owner::is_in_group(caller, stat.gid))
    {
        kept &= !libc::S_ISGID;
    }
    (kept != mode).then_some(kept)
}
