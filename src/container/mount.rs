//! Mounts and unmounts a container's stack.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, unmount,
};
use serde::{Deserialize, Serialize};

use super::{Container, Record, rootless};
use crate::confined::mountinfo;
use crate::image::snapshot::XattrPermissions;
use crate::image::{ImageError, IoContext, Result};
use crate::store::checkpoints::CheckpointLayer;
use crate::store::{Store, StoredLayer};

/// Longest wait for a driver to end after its mount is gone.
const DRIVER_PATIENCE: Duration = Duration::from_secs(60);

/// Longest wait for users of a mount: processes that are killed with their container end a moment later.
const USER_PATIENCE: Duration = Duration::from_secs(3);

/// The program or file system that mounts a stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The `stratafs` program.
    #[default]
    Stratafs,
    /// The kernel's overlayfs; needs root.
    Overlay,
}

/// The directories of a union.
struct Stack {
    /// The topmost first.
    lowers: Vec<PathBuf>,
    writable: Option<(PathBuf, PathBuf)>,
    mountpoint: PathBuf,
}

impl Container {
    /// Mounts it; returns the mountpoint. If it is mounted already, it stays mounted, unless its driver died.
    ///
    /// # Errors
    /// When a directory is missing, or the driver reports failure.
    pub fn mount(&self, store: &Store) -> Result<&Path> {
        let _change = self.lock_change()?;
        if self.is_alive()? {
            return Ok(&self.record.mountpoint);
        }
        if self.is_mounted()? {
            self.unmount_locked(true)?;
        }
        if self.record.rootless && self.holder()?.is_some() {
            return Err(ImageError::refused(&self.name, "is mounted in another namespace; use exec, or stop it first"));
        }
        if self.record.driver == Driver::Stratafs {
            self.layers(store)?.iter().for_each(StoredLayer::ensure_inventory);
        }
        // Until the driver has opened the layers, none of them is merged or removed.
        let _chains = store.lock_chains_if_any()?;
        let lowers = self.lower_dirs(store, &self.chain(store)?)?;
        let writable = (!self.record.read_only).then(|| (self.dir.join("upper"), self.dir.join("work")));
        let stack = Stack { lowers, writable, mountpoint: self.record.mountpoint.clone() };
        match self.record.driver {
            Driver::Stratafs => mount_stratafs(&stack, &self.record, &self.name)?,
            Driver::Overlay => mount_overlay(&stack)?,
        }
        Ok(&self.record.mountpoint)
    }

    /// The directories below its upper, or below another upper on `chain`, the topmost first.
    pub(super) fn lower_dirs(&self, store: &Store, chain: &[CheckpointLayer]) -> Result<Vec<PathBuf>> {
        let layers = self.layers(store)?;
        let mut lowers =
            distinct(chain.iter().map(CheckpointLayer::dir).chain(layers.iter().rev().map(StoredLayer::diff)));
        // overlayfs needs two layers if none is writable, and every driver needs one. An empty one changes nothing.
        if lowers.len() < 1 + usize::from(self.record.read_only) {
            lowers.push(self.dir.join("empty"));
        }
        Ok(lowers)
    }

    /// Unmounts it. With `lazily`, at once, even if it is in use.
    ///
    /// # Errors
    /// When it is not mounted, or stays in use for 3 seconds.
    pub fn unmount(&self, lazily: bool) -> Result<()> {
        let _change = self.lock_change()?;
        self.unmount_locked(lazily)
    }

    fn unmount_locked(&self, lazily: bool) -> Result<()> {
        if !self.is_mounted()? {
            return Err(ImageError::refused(&self.name, "is not mounted"));
        }
        let deadline = Instant::now() + USER_PATIENCE;
        while !self.try_unmount(lazily)? {
            if Instant::now() > deadline {
                let mountpoint = self.record.mountpoint.display().to_string();
                return Err(ImageError::refused(mountpoint, "is in use; end what uses it, or --lazy"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if lazily || !rustix::process::geteuid().is_root() { Ok(()) } else { self.wait_for_driver() }
    }

    /// Unmounts it; returns false if it is in use.
    fn try_unmount(&self, lazily: bool) -> Result<bool> {
        let mountpoint = &self.record.mountpoint;
        if !rustix::process::geteuid().is_root() {
            let mut command = Command::new("fusermount3");
            command.env("LC_ALL", "C").arg("-u").args(lazily.then_some("-z")).arg("--").arg(mountpoint);
            return match succeed(command, "fusermount3") {
                Err(error) if error.to_string().ends_with("esource busy") => Ok(false),
                done => done.map(|()| true),
            };
        }
        let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        match unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
            Err(rustix::io::Errno::BUSY) => Ok(false),
            // Another process has unmounted it.
            Err(rustix::io::Errno::INVAL) if !self.is_mounted()? => Ok(true),
            done => done.at(mountpoint).map(|()| true),
        }
    }

    /// The driver releases the upper a moment after the mount is gone; until then, the upper cannot be mounted again.
    fn wait_for_driver(&self) -> Result<()> {
        if self.record.read_only || self.record.driver != Driver::Stratafs {
            return Ok(());
        }
        let upper = self.open_upper()?;
        let deadline = Instant::now() + DRIVER_PATIENCE;
        while flock(&upper, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// True if its mountpoint has a mount.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub fn is_mounted(&self) -> Result<bool> {
        let table = fs::read(mountinfo::OWN).at(mountinfo::OWN)?;
        Ok(is_mountpoint_in(&table, &self.record.mountpoint))
    }

    /// True if a container is mounted, here or in a user's namespace, even if its record is damaged.
    pub fn is_in_use(store: &Store, name: &str) -> bool {
        let Ok(container) = Self::open(store, name).or_else(|_| Self::without_record(store, name)) else {
            return false;
        };
        let below = || mounts_below(container.dir()).map_or(true, |mounts| !mounts.is_empty());
        // When in doubt, it counts as mounted.
        container.is_mounted().unwrap_or(true) || below() || container.holder().map_or(true, |holder| holder.is_some())
    }

    /// True if it is mounted and its driver answers.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub fn is_alive(&self) -> Result<bool> {
        // Asks statfs(2): the kernel might answer stat(2) from its cache.
        let answers = || match rustix::fs::statfs(&self.record.mountpoint) {
            // The driver was killed; its changes are in the upper directory.
            Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED) => false,
            _ => true,
        };
        Ok(self.is_mounted()? && answers())
    }

    /// Has the kernel write back this container's changes to its upper directory.
    ///
    /// # Errors
    /// When the mount does not answer.
    pub fn sync(&self) -> Result<()> {
        if self.write_back()? || !self.is_mounted()? {
            return Ok(());
        }
        let mountpoint = &self.record.mountpoint;
        rustix::fs::syncfs(fs::File::open(mountpoint).at(mountpoint)?).at(mountpoint)
    }
}

/// The directories of a stack, topmost first, without duplicates. overlayfs refuses a directory that occurs twice (ELOOP). If two
/// layers are equal, the upper one shows everything that the lower one has, so only the upper one is kept.
fn distinct(dirs: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut kept: Vec<PathBuf> = Vec::new();
    for dir in dirs {
        if !kept.contains(&dir) {
            kept.push(dir);
        }
    }
    kept
}

/// Mountpoints at or below `dir`, the innermost first.
pub(super) fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read(mountinfo::OWN).at(mountinfo::OWN)?;
    let points = mountinfo::parse(&table).map(|mount| mount.point);
    let mut mounts: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    mounts.reverse();
    Ok(mounts)
}

/// True if `path` is a mountpoint, according to a process' mount table.
pub(super) fn is_mountpoint_in(table: &[u8], path: &Path) -> bool {
    mountinfo::parse(table).any(|mount| mount.point == path)
}

/// Longest option string that names all layers by their full paths. The kernel accepts 128 KiB in one argument.
const LONG_OPTIONS: usize = 96 << 10;

/// The `lowerdir` option, and the directory to which relative paths in it refer. In a long chain, checkpoint layers are named
/// relative to the store's.
fn lowerdir(lowers: &[PathBuf]) -> (OsString, &Path) {
    let is_long = lowers.iter().map(|lower| lower.as_os_str().len() + 1).sum::<usize>() > LONG_OPTIONS;
    let among = lowers.first().and_then(|lower| lower.parent()?.parent()).filter(|_| is_long);
    let base = among.unwrap_or(Path::new("/"));
    let mut option = OsString::from("lowerdir=");
    for (number, lower) in lowers.iter().enumerate() {
        if number > 0 {
            option.push(":");
        }
        option.push(escaped_option(among.and_then(|base| lower.strip_prefix(base).ok()).unwrap_or(lower)));
    }
    (option, base)
}

fn mount_stratafs(stack: &Stack, record: &Record, name: &str) -> Result<()> {
    let (mut options, base) = lowerdir(&stack.lowers);
    if let Some((upper, work)) = &stack.writable {
        options.push(",upperdir=");
        options.push(escaped_option(upper));
        options.push(",workdir=");
        options.push(escaped_option(work));
    }
    options.push(format!(",fsname=strata-{name}"));
    if let Some(bytes) = record.options.upper_size.filter(|_| stack.writable.is_some()) {
        options.push(format!(",size={bytes}"));
    }
    if rustix::process::geteuid().is_root() {
        options.push(",allow_other,default_permissions,suid,dev");
    }
    // Passed in either case: otherwise the layers would decide.
    options.push(match record.permissions() {
        XattrPermissions::Containers => ",xattr_permissions=2",
        _ => ",xattr_permissions=0",
    });
    if record.rootless && !rustix::process::geteuid().is_root() {
        // Outside a namespace, files must appear to belong to the user, or the user could not change them.
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        options.push(format!(",uidmapping=0:{uid}:1,gidmapping=0:{gid}:1"));
    } else if let Some((uid, gid)) = record.options.keep_id.filter(|_| record.rootless) {
        options.push(rootless::mount_options(uid, gid));
    }
    let program = stratafs_program();
    let mut command = Command::new(&program);
    command.current_dir(base).arg("-o").arg(options).arg(&stack.mountpoint);
    succeed(command, &program.display().to_string())
}

/// The program that mounts: the one beside this program, or else the one in PATH.
pub fn stratafs_program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|program| program.with_file_name("stratafs"));
    beside.filter(|program| program.is_file()).unwrap_or_else(|| PathBuf::from("stratafs"))
}

/// A path as the value of a mount option, with `\:`, `\,` and `\\` escaped.
pub fn escaped_option(path: &Path) -> OsString {
    escaped(path, b":,\\")
}

/// A path with a backslash before each of the bytes `special`.
fn escaped(path: &Path, special: &[u8]) -> OsString {
    let mut bytes = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if special.contains(&byte) {
            bytes.push(b'\\');
        }
        bytes.push(byte);
    }
    OsString::from_vec(bytes)
}

/// Runs a program to its end; on failure its error output is the reason.
fn succeed(mut command: Command, name: &str) -> Result<()> {
    let output = command.output().at(name)?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let told = told.trim();
    let told = told.strip_prefix("stratafs: ").unwrap_or(told).replace('\n', "; ");
    let reason = if told.is_empty() { format!("failed ({})", output.status) } else { told };
    Err(ImageError::refused(name, reason))
}

/// Mounts with the kernel's overlayfs (`Documentation/filesystems/overlayfs.rst`). The new mount calls accept
/// any number of layers with any names; `lowerdir+` needs Linux >= 6.7.
fn mount_overlay(stack: &Stack) -> Result<()> {
    let mountpoint = &stack.mountpoint;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).at(mountpoint)?;
    let set = |key: &str, value: &OsStr| {
        fsconfig_set_string(&context, key, value).map_err(|error| {
            ImageError::refused(
                mountpoint.display().to_string(),
                format!("overlayfs refuses {key}={}: {error}", value.display()),
            )
        })
    };
    set("source", OsStr::new("strata"))?;
    for lower in &stack.lowers {
        set("lowerdir+", lower.as_os_str())?;
    }
    if let Some((upper, work)) = &stack.writable {
        // In these two the kernel treats a backslash as an escape (`ovl_mount_dir`), but not in `lowerdir+`.
        set("upperdir", &escaped(upper, b"\\"))?;
        set("workdir", &escaped(work, b"\\"))?;
        set("redirect_dir", OsStr::new("on"))?;
    }
    fsconfig_create(&context).at(mountpoint)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).at(mountpoint)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mount, "", rustix::fs::CWD, mountpoint, flags).at(mountpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_chains_are_named_from_the_directory_of_layers() {
        let dirs = |count: usize| {
            let layer = |number: usize| format!("/store/checkpoints/{number:032x}/layer").into();
            (0..count).map(layer).chain([PathBuf::from("/store/layers/a:b/diff")]).collect::<Vec<_>>()
        };
        let (option, base) = (lowerdir(&dirs(1)).0, lowerdir(&dirs(1)).1.to_owned());
        let whole = format!("lowerdir=/store/checkpoints/{:032x}/layer:/store/layers/a\\:b/diff", 0);
        assert_eq!((option.to_str(), base.as_path()), (Some(whole.as_str()), Path::new("/")));
        let many = dirs(2000);
        let (option, base) = lowerdir(&many);
        assert_eq!(base, Path::new("/store/checkpoints"));
        let option = option.into_string().expect("text");
        assert!(option.starts_with(&format!("lowerdir={:032x}/layer:{:032x}/layer:", 0, 1)), "{option}");
        assert!(option.ends_with(":/store/layers/a\\:b/diff") && option.len() < 128 << 10);
    }

    #[test]
    fn option_escapes() {
        assert_eq!(escaped_option(Path::new(r"/a:b,c\d")), OsStr::new(r"/a\:b\,c\\d"));
    }
}
