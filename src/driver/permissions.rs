//! Owner, mode and type kept in an attribute of the file (`xattr_permissions`). They let chown, chmod, mknod
//! and set-id bits work and survive on an ordinary user's mount.
//!
//! The real file belongs to the mounting user. If it stands for a device, pipe or socket, it is a regular file.
//! With `user.*` attributes, a symlink cannot store its owner: it shows the real one, and a change of owner
//! that is not permitted is ignored. POSIX ACLs are off, since they would contradict the kept mode.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use crate::config::OverlayConfig;
use crate::confined::xattr::Target;
use crate::driver::copy_up::stage::Kept;
use crate::driver::types::{Caller, Errno, Result, SetAttr};
use crate::driver::verbs::attr::mode_without_set_id;
use crate::driver::{OpenError, Union};
use crate::marks::override_stat::{FileKind, OverrideKey, OverrideStat, PREFIX};
use crate::union::layer::{Dir, FileType, LayerDir, LayerStack, Stat, UpperDir, describe, override_key, read_override};

/// A file's capabilities, as an ordinary user's mount stores them.
const KEPT_CAPABILITY: &CStr = c"user.containers.override_security.capability";

/// Where owner, mode and type are kept.
#[derive(Clone, Copy, Debug)]
pub(in crate::driver) struct Permissions {
    key: OverrideKey,
}

impl Permissions {
    /// The setting of the mount's options. Without the option, the marks on the layers' roots decide.
    ///
    /// # Errors
    /// Those of reading the attributes.
    pub(in crate::driver) fn of(config: &OverlayConfig, stack: &LayerStack) -> Result<Option<Self>> {
        let upper = stack.upper().map(|upper| upper.root().as_dir());
        let roots = upper.into_iter().chain(stack.lowers().iter().map(|layer| layer.root()));
        let key = override_key(config.xattr_permissions, roots.map(AsFd::as_fd))?;
        Ok(key.map(|key| Self { key }))
    }

    /// True if the attribute is in `security.*`: the mounter is privileged, and files of every type can have it.
    fn is_privileged(self) -> bool {
        self.key == OverrideKey::Privileged
    }

    /// Makes sure that the upper's file system takes the attribute.
    ///
    /// # Errors
    /// One line that says what does not work.
    pub(in crate::driver) fn probe(&self, stack: &LayerStack) -> std::result::Result<(), OpenError> {
        let Some(work) = stack.upper().and_then(|upper| upper.work().ok()) else { return Ok(()) };
        let probed = work.stage_file(0o600, false).and_then(|staged| {
            let (dir, name) = staged.dir_and_name().ok_or(Errno::IO)?;
            dir.set_xattr(name, self.key.name(), b"0:0:0600:file", 0)
        });
        probed.map_err(|errno| {
            let key = self.key.name().to_string_lossy();
            OpenError(format!("xattr_permissions: the upperdir's file system does not take {key}: {}", describe(errno)))
        })
    }

    /// `stat` with the kept owner, mode and type of the file at `place` instead of the real ones.
    fn apply(&self, target: Target<'_>, stat: Stat, place: impl FnOnce() -> PathBuf) -> Result<Stat> {
        let Some(kept) = read_override(target, self.key, place)? else { return Ok(stat) };
        let real = FileKind::of(stat.mode, stat.rdev);
        let shown = kept.shown_kind(real);
        let (kind, rdev) = if shown == real { (stat.mode & libc::S_IFMT, stat.rdev) } else { shown.mode_and_number() };
        Ok(Stat { uid: kept.uid, gid: kept.gid, mode: kind | kept.mode, rdev, ..stat })
    }

    /// The attribute's value for a file that is to show `stat`.
    fn value(stat: &Stat) -> String {
        let kind = Some(FileKind::of(stat.mode, stat.rdev));
        OverrideStat { uid: stat.uid, gid: stat.gid, mode: stat.mode & 0o7777, kind }.encode()
    }

    /// What copy-up stores with the copy of a file that shows `stat`.
    pub(in crate::driver) fn kept(self, stat: &Stat) -> Kept {
        Kept { key: self.key.name(), value: Self::value(stat), privileged: self.is_privileged() }
    }

    /// Makes `name` in `dir` show the owner and mode of `stat`. The real file keeps its owner, who can always use it.
    pub(in crate::driver) fn keep(&self, dir: &UpperDir, name: &CStr, stat: &Stat) -> Result<()> {
        if stat.file_type() == FileType::Symlink && !self.is_privileged() {
            return dir.set_owner(name, Some(stat.uid), Some(stat.gid)).or_else(tolerate_ownerless_symlink);
        }
        dir.set_xattr(name, self.key.name(), Self::value(stat).as_bytes(), 0)?;
        if stat.file_type() == FileType::Symlink { Ok(()) } else { dir.set_mode(name, real_mode(stat.mode)) }
    }

    /// The name under which the mount's attribute `key` is stored; `None` if users may not have it.
    pub(in crate::driver) fn stored_key(&self, key: &[u8]) -> Option<Vec<u8>> {
        if key == self.key.name().to_bytes() || key.starts_with(PREFIX.as_bytes()) {
            return None;
        }
        if key.starts_with(b"security.") && !self.is_privileged() {
            return Some([PREFIX.as_bytes(), key].concat());
        }
        Some(key.to_vec())
    }

    /// The name under which the mount shows the stored attribute `key`; `None` if it is hidden.
    pub(in crate::driver) fn shown_key<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        if key == self.key.name().to_bytes() {
            return None;
        }
        match key.strip_prefix(PREFIX.as_bytes()) {
            Some(inner) if inner.starts_with(b"security.") && !self.is_privileged() => Some(inner),
            Some(_) => None,
            None => Some(key),
        }
    }
}

/// Permission bits of the real file for one that shows `mode`.
pub(in crate::driver) fn real_mode(mode: u32) -> u32 {
    let owner = if mode & libc::S_IFMT == libc::S_IFDIR { 0o700 } else { 0o600 };
    (mode & 0o777) | owner
}

/// A symlink cannot have the attribute, and an ordinary user cannot give it away, so it stays the mounter's.
fn tolerate_ownerless_symlink(errno: Errno) -> Result<()> {
    match errno {
        Errno::PERM | Errno::INVAL => Ok(()),
        errno => Err(errno),
    }
}

/// The mode of `stat` after its owner changed (kernel: `setattr_should_drop_suidgid`).
fn mode_after_chown(stat: &Stat) -> u32 {
    if stat.is_dir() {
        return stat.mode;
    }
    let executable = stat.mode & libc::S_IXGRP != 0;
    stat.mode & !(libc::S_ISUID | if executable { libc::S_ISGID } else { 0 })
}

impl Union {
    /// The attributes to show for `name` in `dir`; the real ones are `stat`.
    pub(in crate::driver) fn shown_stat(&self, dir: &Dir, name: &CStr, stat: Stat) -> Result<Stat> {
        match &self.permissions {
            None => Ok(stat),
            Some(permissions) => permissions.apply(Target { dir: dir.as_fd(), name }, stat, || dir.shown_path(name)),
        }
    }

    /// The attributes to show for `name` in a directory of a lower layer; the real ones are `stat`.
    pub(in crate::driver) fn shown_lower_stat(&self, dir: &LayerDir<'_>, name: &CStr, stat: Stat) -> Result<Stat> {
        if self.permissions.is_none() || dir.has_no_xattrs(name) {
            return Ok(stat);
        }
        self.shown_stat(&dir.open()?, name, stat)
    }

    /// The attributes to show for an open file; the real ones are `stat`.
    pub(in crate::driver) fn shown_stat_of(&self, file: BorrowedFd<'_>, stat: Stat) -> Result<Stat> {
        match &self.permissions {
            None => Ok(stat),
            Some(permissions) => {
                let target = Target { dir: file, name: c"" };
                permissions.apply(target, stat, || target.shown_path())
            }
        }
    }

    /// Sets the permission bits that `name` in `dir` shows.
    pub(in crate::driver) fn set_shown_mode(&self, dir: &UpperDir, name: &CStr, mode: u32) -> Result<()> {
        let Some(permissions) = &self.permissions else { return dir.set_mode(name, mode) };
        let stat = self.shown_stat(dir, name, dir.stat(name)?.ok_or(Errno::STALE)?)?;
        permissions.keep(dir, name, &Stat { mode: (stat.mode & libc::S_IFMT) | mode, ..stat })
    }

    /// The part of setattr that changes owner and mode, for kept permissions.
    pub(in crate::driver) fn set_kept(
        &self,
        permissions: &Permissions,
        caller: &Caller,
        dir: &UpperDir,
        name: &CStr,
        set: &SetAttr,
    ) -> Result<()> {
        let old = self.shown_stat(dir, name, dir.stat(name)?.ok_or(Errno::STALE)?)?;
        let mut new = old;
        let chown = (set.uid.is_some() || set.gid.is_some()) && !self.squashes();
        if chown {
            new.uid = set.uid.map_or(old.uid, |uid| self.uid_on_disk(uid));
            new.gid = set.gid.map_or(old.gid, |gid| self.gid_on_disk(gid));
            new.mode = mode_after_chown(&old);
        }
        if let Some(mode) = set.mode {
            new.mode = (old.mode & libc::S_IFMT) | (mode & 0o7777);
        } else if set.kill_suidgid
            && !chown
            && let Some(mode) = mode_without_set_id(caller, &old)
        {
            new.mode = (old.mode & libc::S_IFMT) | mode;
        }
        if chown || set.size.is_some() {
            self.drop_kept_capability(dir, name, &old)?;
        }
        if chown || new.mode != old.mode { permissions.keep(dir, name, &new) } else { Ok(()) }
    }

    /// A change of a file's content drops its capabilities. The real file system does that only for its own attribute, and the
    /// driver does not see passed-through writes. So this is done when the file is opened for writing.
    pub(in crate::driver) fn drop_kept_capability(&self, dir: &UpperDir, name: &CStr, stat: &Stat) -> Result<()> {
        if self.permissions.as_ref().is_none_or(|kept| kept.is_privileged()) || stat.file_type() != FileType::Regular {
            return Ok(());
        }
        match dir.remove_xattr(name, KEPT_CAPABILITY) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}
