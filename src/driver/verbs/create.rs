//! New files and directories.
//!
//! If the upper has nothing under the name, and a file made there directly gets the right owner and permissions, it
//! is made directly. Otherwise it is made in the work directory and published in one step, over a whiteout if
//! necessary, so that a crash leaves no file with the wrong owner.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::confined::is_zero_device;
use crate::driver::acl;
use crate::driver::node::handle::RealFile;
use crate::driver::node::{Inheritance, LookupRef, NamesWrite, NewEntry, Node, NodeRef, Turn};
use crate::driver::quota::Grant;
use crate::driver::types::{Attr, Caller, Entry, Errno, NodeId, Opened, Result};
use crate::driver::{Union, permissions};
use crate::marks::{AUFS_OPAQUE, Mark};
use crate::union::layer::{LayerDir, Staged, Stat, UpperDir};
use crate::union::merge::{Found, Source, is_mark_name};

/// Mode with which a device is made, before it has its final owner.
pub(in crate::driver) fn mode_at_first(mode: u32, rdev: (u32, u32)) -> u32 {
    if is_zero_device(mode, rdev) { mode & !(libc::S_ISUID | libc::S_ISGID) } else { mode & !0o7000 }
}

/// The kind of file to make.
enum New<'a> {
    Regular { flags: OFlags },
    Directory,
    Symlink(&'a OsStr),
    Special { rdev: (u32, u32) },
}

/// The owner and permissions that a new file shall have.
struct Ownership {
    uid: u32,
    gid: u32,
    /// Type and permission bits after the umask.
    mode: u32,
    /// Device number.
    rdev: (u32, u32),
    inherited: Inheritance,
}

impl Union {
    /// Makes a device, fifo, socket or empty regular file. `mode` holds type and permission bits, before the umask.
    ///
    /// # Errors
    /// `EXIST`, `ROFS`, `PERM` for reserved names; those of the upper.
    pub(crate) fn mknod(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        rdev: (u32, u32),
    ) -> Result<Entry> {
        if mode & libc::S_IFMT == libc::S_IFREG {
            let (node, attr, _) = self.make(caller, parent, name, mode, &New::Regular { flags: OFlags::RDWR })?;
            return Ok(self.entry(node, attr));
        }
        // A device 0:0 without the sticky bit would be a whiteout.
        let mode = if is_zero_device(mode, rdev) { mode | libc::S_ISVTX } else { mode };
        let (node, attr, _) = self.make(caller, parent, name, mode, &New::Special { rdev })?;
        Ok(self.entry(node, attr))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`Self::mknod`].
    pub(crate) fn mkdir(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry> {
        let mode = libc::S_IFDIR | (mode & 0o7777);
        let (node, attr, _) = self.make(caller, parent, name, mode, &New::Directory)?;
        Ok(self.entry(node, attr))
    }

    /// Makes a symlink.
    ///
    /// # Errors
    /// As [`Self::mknod`].
    pub(crate) fn symlink(&self, caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry> {
        let (node, attr, _) = self.make(caller, parent, name, libc::S_IFLNK | 0o777, &New::Symlink(target))?;
        Ok(self.entry(node, attr))
    }

    /// Makes a regular file and opens it with `flags` (those of `open(2)`).
    ///
    /// # Errors
    /// As [`Self::mknod`].
    pub(crate) fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        flags: u32,
        _kill_suidgid: bool,
    ) -> Result<(Entry, Opened)> {
        let mode = libc::S_IFREG | (mode & 0o7777);
        let new = New::Regular { flags: self.backing_flags(flags) };
        let (node, attr, file) = self.make(caller, parent, name, mode, &new)?;
        let file = RealFile::Upper(Arc::new(file.ok_or(Errno::IO)?), self.stack.upper_id());
        let opened = self.install(&node, node.id(), file, flags, attr.mode)?;
        Ok((self.entry(node, attr), opened))
    }

    /// Makes a regular file without a name and opens it.
    ///
    /// # Errors
    /// `OPNOTSUPP` if the upper's file system does not support such files; otherwise as [`Self::mknod`].
    pub(crate) fn tmpfile(&self, caller: &Caller, parent: NodeId, mode: u32, flags: u32) -> Result<(Entry, Opened)> {
        let parent = self.dir_node(parent)?;
        parent.check_addition()?;
        self.copy_up(&parent)?;
        let dir = self.upper_dir(&parent)?;
        let owner = self.ownership(caller, &parent, &dir, libc::S_IFREG | (mode & 0o7777))?;
        let file = dir.create_tmpfile(self.mode_at_first(&owner) & 0o777)?;
        let held = self.upper()?.hold(file.try_clone().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?);
        self.correct_owner(&held, c"", &owner)?;
        let stat = self.shown_stat(&held, c"", held.stat_self()?)?;
        let found = Found::single(stat, Source::Upper);
        let node = self.admit_nameless(found, held);
        let attr = self.show(&node, &stat);
        let opened =
            self.install(&node, node.id(), RealFile::Upper(Arc::new(file), self.stack.upper_id()), flags, attr.mode)?;
        Ok((self.entry(node, attr), opened))
    }

    fn make(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        new: &New<'_>,
    ) -> Result<(LookupRef<'_>, Attr, Option<OwnedFd>)> {
        self.upper()?;
        let parent = self.dir_node(parent)?;
        let name = self.creatable_name(name)?;
        parent.check_addition()?;
        self.copy_up(&parent)?;
        let dir = self.upper_dir(&parent)?;
        let mut owner = self.ownership(caller, &parent, &dir, mode)?;
        if let New::Special { rdev } = new {
            owner.rdev = *rdev;
        }
        let mut turn = Turn::begin();
        let names = NamesWrite::lock(&mut turn, &parent)?;
        if parent.is_removed() {
            return Err(Errno::NOENT);
        }
        self.check_growth()?;
        let grant = match new {
            New::Directory => self.grant_directory(&dir)?,
            New::Symlink(target) => self.grant_symlink(target.len() as u64)?,
            New::Regular { .. } | New::Special { .. } => Grant::UNLIMITED,
        };
        let deleted_by_name = matches!(new, New::Directory) && self.is_deleted_by_name(&parent, &dir, &name)?;
        let (file, stat, over_whiteout) = self.counting_dirs(&[&dir], || {
            let at_once = (self.is_right_at_once(&owner) && !deleted_by_name && !is_mark_name(&name))
                .then(|| self.make_at_once(&dir, &name, &owner, new));
            match at_once {
                None | Some(Err(Errno::EXIST)) => self.make_staged(&parent, &dir, &name, &owner, new, deleted_by_name),
                Some(made) => made.map(|(file, stat)| (file, stat, false)),
            }
        })?;
        self.count_new(&stat);
        drop(grant);
        self.nodes.note_addition(&names, &name, Some(NewEntry { id: Some(stat.id()), kind: (stat.mode >> 12) as u8 }));
        let found = Found::single(stat, Source::Upper);
        let node = self.admit(&names, &name, found)?;
        if owner.inherited.default_acl.is_none() {
            self.note_new(&node);
        }
        if over_whiteout && let Some(dir) = node.dir() {
            dir.note_upper_part(|part| part.opaque = true);
        }
        drop(names);
        self.changed_dirs(&[&parent]);
        let attr = self.show(&node, &stat);
        Ok((node, attr, file))
    }

    /// Owner, permissions and what is inherited (kernel: `inode_init_owner`, `posix_acl_create`).
    fn ownership(&self, caller: &Caller, parent: &NodeRef, dir: &UpperDir, mode: u32) -> Result<Ownership> {
        let inherited = self.inheritance(parent, dir)?;
        let mut mode = mode;
        if inherited.default_acl.is_none() && mode & libc::S_IFMT != libc::S_IFLNK {
            mode &= !(caller.umask & 0o777);
        }
        if inherited.group.is_some() && mode & libc::S_IFMT == libc::S_IFDIR {
            mode |= libc::S_ISGID;
        }
        let (uid, gid) = self.owner_of_new(caller)?;
        Ok(Ownership { uid, gid: inherited.group.unwrap_or(gid), mode, rdev: (0, 0), inherited })
    }

    /// What new entries of the directory inherit; read once and kept until its attributes change.
    fn inheritance(&self, parent: &NodeRef, dir: &UpperDir) -> Result<Inheritance> {
        let known = parent.dir().ok_or(Errno::NOTDIR)?;
        if let Some(known) = known.upper_part(|part| part.inheritance.clone()) {
            return Ok(known);
        }
        let stat = self.shown_stat(dir, c"", dir.stat_self()?)?;
        let default_acl = match self.upper()?.has_acls() {
            true => dir.xattr(c"", c"system.posix_acl_default")?.map(Arc::from),
            false => None,
        };
        let group = (stat.mode & libc::S_ISGID != 0).then_some(stat.gid);
        let inheritance = Inheritance { group, default_acl };
        known.note_upper_part(|part| part.inheritance = Some(inheritance.clone()));
        Ok(inheritance)
    }

    /// Returns the open file, if it is a regular one, and the attributes.
    fn make_at_once(
        &self,
        dir: &UpperDir,
        name: &CStr,
        owner: &Ownership,
        new: &New<'_>,
    ) -> Result<(Option<OwnedFd>, Stat)> {
        // Set-id bits are added only when the owner is right: until then, the file must not run with the wrong identity.
        let mode = self.mode_at_first(owner);
        let file = match new {
            New::Regular { flags } => Some(dir.create_file(name, mode & 0o777, *flags)?),
            New::Directory => {
                dir.make_dir(name, mode & 0o777)?;
                None
            }
            New::Symlink(target) => {
                dir.make_symlink(name, target)?;
                None
            }
            New::Special { .. } if self.permissions.is_some() => {
                drop(dir.create_file(name, mode & 0o777, OFlags::WRONLY)?);
                None
            }
            New::Special { rdev } => {
                dir.make_node(name, mode, *rdev)?;
                None
            }
        };
        let finished = self.correct_owner(dir, name, owner).and_then(|()| match &file {
            Some(file) => self.shown_stat(dir, name, Stat::of(file.as_fd(), c"")?),
            None => self.shown_stat(dir, name, dir.stat(name)?.ok_or(Errno::IO)?),
        });
        match finished {
            Ok(stat) => Ok((file, stat)),
            Err(errno) => {
                // On failure the name is removed again, so that no half-made file remains.
                match new {
                    New::Directory => dir.remove_dir(name)?,
                    _ => dir.remove_file(name)?,
                }
                Err(errno)
            }
        }
    }

    /// Type and permission bits with which a file is made, before it has its final owner.
    fn mode_at_first(&self, owner: &Ownership) -> u32 {
        match &self.permissions {
            None => owner.mode & !0o7000,
            Some(_) => (owner.mode & libc::S_IFMT) | permissions::real_mode(owner.mode),
        }
    }

    /// Stores owner and mode of a new file in an attribute, if the mount does so; otherwise returns `false`.
    fn keep_owner(&self, dir: &UpperDir, name: &CStr, owner: &Ownership) -> Result<bool> {
        let Some(permissions) = &self.permissions else { return Ok(false) };
        let stat = dir.stat(name)?.ok_or(Errno::IO)?;
        let Ownership { uid, gid, mode, rdev, .. } = *owner;
        permissions.keep(dir, name, &Stat { uid, gid, mode, rdev, ..stat })?;
        Ok(true)
    }

    /// True if [`Self::correct_owner`] has nothing to do.
    fn is_right_at_once(&self, owner: &Ownership) -> bool {
        let (uid, gid) = self.own_ids;
        let gid_is_right = owner.inherited.group.is_some() || gid == owner.gid;
        // An ordinary user's mount cannot give files away, so every owner counts as right.
        let is_owner = (uid == owner.uid && gid_is_right) || uid != 0;
        self.permissions.is_none() && is_owner && owner.mode & 0o7000 == 0
    }

    /// Sets what differs from the attributes that the file system gave the new file.
    fn correct_owner(&self, dir: &UpperDir, name: &CStr, owner: &Ownership) -> Result<()> {
        if self.keep_owner(dir, name, owner)? {
            return Ok(());
        }
        let (uid, gid) = self.own_ids;
        // In a set-group-id directory, the file system itself has set the group.
        let gid_is_right = owner.inherited.group.is_some() || gid == owner.gid;
        if uid != owner.uid || !gid_is_right {
            match dir.set_owner(name, Some(owner.uid), Some(owner.gid)) {
                // On an ordinary user's mount, all files belong to that user.
                Err(Errno::PERM | Errno::INVAL) if uid != 0 => {}
                done => done?,
            }
        }
        let set_id = owner.mode & 0o7000;
        let inherited_only = owner.mode & libc::S_IFMT == libc::S_IFDIR && set_id == libc::S_ISGID;
        if set_id != 0 && !(inherited_only && owner.inherited.group.is_some()) {
            let mode = dir.stat(name)?.ok_or(Errno::IO)?.mode & 0o777;
            dir.set_mode(name, mode | set_id)?;
        }
        Ok(())
    }

    /// Returns the open file, if it is a regular one, its attributes, and true if it replaced a whiteout.
    /// `deleted_by_name` is true if `.wh.NAME` deletes the name in the lower layers.
    fn make_staged(
        &self,
        parent: &NodeRef,
        dir: &UpperDir,
        name: &CStr,
        owner: &Ownership,
        new: &New<'_>,
        deleted_by_name: bool,
    ) -> Result<(Option<OwnedFd>, Stat, bool)> {
        let over_whiteout = dir.stat(name)?.is_some();
        let hides = over_whiteout || deleted_by_name;
        if over_whiteout && !self.is_whiteout_in_upper(parent, dir, name)? {
            return Err(Errno::EXIST);
        }
        let upper = self.upper()?;
        let work = upper.work()?;
        let mode = self.mode_at_first(owner) & 0o777;
        let staged = match new {
            New::Regular { .. } => work.stage_file(mode, false)?,
            New::Directory => work.stage_dir(mode)?,
            New::Symlink(target) => work.stage_symlink(target)?,
            New::Special { .. } if self.permissions.is_some() => work.stage_file(mode, false)?,
            New::Special { rdev } => work.stage_node(mode_at_first(owner.mode, *rdev), *rdev)?,
        };
        self.finish_staged(&staged, owner, new, hides)?;
        let (staged_dir, staged_name) = staged.dir_and_name().ok_or(Errno::IO)?;
        self.mark_plain(staged_dir, staged_name, name)?;
        // Every step that can fail comes before publication.
        let stat = self.shown_stat(staged_dir, staged_name, staged.stat()?)?;
        let file = match new {
            // The staged descriptor can read and write; the caller's may be allowed less.
            New::Regular { flags } => Some(staged_dir.open_writable(staged_name, *flags & OFlags::ACCMODE)?),
            _ => None,
        };
        match (over_whiteout, new) {
            (false, _) => drop(staged.publish_new(dir, name)?),
            (true, New::Directory) => staged.publish_over_whiteout(dir, name)?,
            (true, _) => drop(staged.publish_over(dir, name)?),
        }
        Ok((file, stat, hides))
    }

    /// Stages a character device 0:0 without permissions, as `caller` would make it in `parent`.
    pub(in crate::driver) fn stage_device(
        &self,
        caller: &Caller,
        parent: &NodeRef,
        dir: &UpperDir,
    ) -> Result<Staged<'_>> {
        let rdev = (0, 0);
        let owner = Ownership { rdev, ..self.ownership(caller, parent, dir, libc::S_IFCHR | libc::S_ISVTX)? };
        let work = self.upper()?.work()?;
        let staged = match self.permissions {
            Some(_) => work.stage_file(self.mode_at_first(&owner) & 0o777, false)?,
            None => work.stage_node(mode_at_first(owner.mode, rdev), rdev)?,
        };
        self.finish_staged(&staged, &owner, &New::Special { rdev }, false)?;
        Ok(staged)
    }

    /// Gives a staged file what it would have inherited from its directory.
    fn finish_staged(&self, staged: &Staged<'_>, owner: &Ownership, new: &New<'_>, over_whiteout: bool) -> Result<()> {
        let (dir, name) = staged.dir_and_name().ok_or(Errno::IO)?;
        let hides = over_whiteout && matches!(new, New::Directory);
        if self.keep_owner(dir, name, owner)? {
            return if hides { self.mark_opaque(dir, name) } else { Ok(()) };
        }
        let (uid, gid) = self.own_ids;
        if (uid, gid) != (owner.uid, owner.gid) {
            match dir.set_owner(name, Some(owner.uid), Some(owner.gid)) {
                Err(Errno::PERM | Errno::INVAL) if uid != 0 => {}
                done => done?,
            }
        }
        if matches!(new, New::Symlink(_)) {
            return Ok(());
        }
        let is_dir = matches!(new, New::Directory);
        let mut mode = owner.mode;
        if let Some(default) = &owner.inherited.default_acl
            && let Some(inherited) = acl::inherit(default, owner.mode)
        {
            mode = inherited.mode;
            if let Some(access) = inherited.access {
                dir.set_xattr(name, c"system.posix_acl_access", &access, 0)?;
            }
            if is_dir {
                dir.set_xattr(name, c"system.posix_acl_default", default, 0)?;
            }
        }
        dir.set_mode(name, mode & 0o7777)?;
        if hides { self.mark_opaque(dir, name) } else { Ok(()) }
    }

    /// Makes the upper directory `name` hide everything below it, by an attribute, or by an entry if the file system
    /// has no attributes.
    pub(in crate::driver) fn mark_opaque(&self, dir: &UpperDir, name: &CStr) -> Result<()> {
        let upper = self.upper()?;
        if upper.keeps_marks() {
            return dir.set_xattr(name, &upper.mark_key(Mark::Opaque), b"y", 0);
        }
        let held = if name.is_empty() { dir.clone() } else { dir.open_upper_dir(name)? };
        let entry = CString::new(AUFS_OPAQUE).map_err(|_| Errno::INVAL)?;
        match held.create_file(&entry, 0o600, OFlags::WRONLY) {
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// True if `.wh.NAME` in the upper deletes the name `name` of `parent` in the lower layers.
    fn is_deleted_by_name(&self, parent: &Node, dir: &UpperDir, name: &CStr) -> Result<bool> {
        let has_lowers = parent.dir().is_some_and(|dir| dir.has_lowers());
        Ok(has_lowers && crate::union::merge::is_deleted_by_name(dir, name)?)
    }

    /// True if the upper has a whiteout under `name`; false if it has something else or nothing.
    pub(in crate::driver) fn is_whiteout_in_upper(&self, parent: &Node, dir: &UpperDir, name: &CStr) -> Result<bool> {
        let Some(stat) = dir.stat(name)? else { return Ok(false) };
        let by_xattr = parent.dir().is_some_and(|dir| dir.upper_part(|part| part.xattr_whiteouts));
        crate::union::merge::listing::is_whiteout(&LayerDir::Held(dir.as_dir().clone()), name, &stat, by_xattr)
    }
}
