//! A backend is what the model is compared with: it carries out operations and can be inspected.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use crate::common::stack::Layers;
use crate::common::sys::{self, RenameFlags};
use crate::common::{Driver, Errno, Mount, Stack};
use crate::ops::{Layer, Op, SLOTS, bytes, layer_text};

/// The result of an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Done,
    Content(Vec<u8>),
    Names(Vec<String>),
    /// Mode, size, link count.
    Stat(u32, u64, u64),
    Error(Errno),
}

/// Everything visible of one entry.
#[derive(Clone, Debug)]
pub struct Seen {
    pub kind: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: (u32, u32),
    pub nlink: u64,
    pub size: u64,
    pub mtime: i64,
    pub ino: u64,
    /// Number and type in the listing.
    pub listed: (u64, u32),
    pub content: Option<Vec<u8>>,
    pub target: Option<String>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// A union under test.
pub trait Backend {
    /// Carries out one operation; `step` seeds the bytes that it writes.
    fn apply(&mut self, op: &Op, step: u64) -> Outcome;

    /// The whole tree except the root.
    fn tree(&mut self) -> Result<BTreeMap<String, Seen>, String>;

    /// The union that the last [`Op::Fork`] made.
    fn forked(&mut self) -> Option<&mut dyn Backend> {
        None
    }

    /// True for the kernel's overlayfs, which differs in two ways: a descriptor opened before a copy-up does not
    /// see later writes, and the listing of a directory may show the wrong number for a hard link.
    fn is_kernel(&self) -> bool;

    /// True if a descriptor opened before a copy-up sees later writes.
    fn is_coherent(&self) -> bool {
        !self.is_kernel()
    }

    /// True if link counts are those of the mount. If checkpoint layers came from another mount, removed names count.
    fn counts_links(&self) -> bool {
        true
    }

    /// True if the names of a lower hard link stay one file (`index=on`).
    fn is_indexed(&self) -> bool {
        false
    }

    /// Ends it and checks the final conditions; panics if one is not met.
    fn finish(self: Box<Self>);
}

/// A directory in which operations are carried out, and the files that are open there.
pub struct Place {
    root: PathBuf,
    handles: [Option<File>; SLOTS],
}

/// A real mount.
pub struct Mounted {
    /// Dropped before the layers that it stands on.
    fork: Option<Box<Self>>,
    /// Dropped before the mount, which its open files keep busy.
    place: Place,
    mount: Option<Mount>,
    indexed: bool,
    coherent: bool,
}

impl Mounted {
    pub fn new(layers: &[Layer], driver: Driver) -> Self {
        Self::with_options(layers, driver, &[])
    }

    pub fn with_options(layers: &[Layer], driver: Driver, options: &[&str]) -> Self {
        let stack = layers.iter().fold(Stack::new(), |stack, layer| stack.lower(&layer_text(layer)));
        let stack = options.iter().fold(stack, |stack, option| stack.option(option));
        let indexed = options.contains(&"index=on");
        let coherent = !options.contains(&"passthrough=all");
        Self::on(stack.mount(driver), indexed, coherent)
    }

    fn on(mount: Mount, indexed: bool, coherent: bool) -> Self {
        Self { fork: None, place: Place::new(mount.root().to_owned()), mount: Some(mount), indexed, coherent }
    }

    fn make_fork(&mut self, driver: Driver) {
        if let Some(last) = self.fork.take() {
            last.finish();
        }
        let layers = self.mount.as_mut().expect("mounted").fork();
        self.fork = Some(Box::new(Self::on(layers.mount(driver), self.indexed, self.coherent)));
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("mounted")
    }

    /// Mounts the layers again, changed by `change`.
    fn mount_again(&mut self, driver: Driver, change: impl FnOnce(Layers) -> Layers) {
        self.place.handles = Default::default();
        self.mount = self.mount.take().map(|mount| change(mount.unmount()).mount(driver));
    }
}

impl Place {
    pub fn new(root: PathBuf) -> Self {
        Self { root, handles: Default::default() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The whole tree except the root.
    pub fn tree(&self) -> Result<BTreeMap<String, Seen>, String> {
        let mut found = BTreeMap::new();
        walk(&self.root, "", &mut found)?;
        Ok(found)
    }

    pub fn try_apply(&mut self, op: &Op, step: u64) -> Result<Outcome, Errno> {
        match op {
            Op::Create { path, length } => sys::create(&self.at(path), &bytes(step, *length))?,
            Op::WriteAt { path, offset, length } => sys::write_at(&self.at(path), *offset, &bytes(step, *length))?,
            Op::Append { path, length } => sys::append(&self.at(path), &bytes(step, *length))?,
            Op::Truncate { path, size } => sys::truncate(&self.at(path), *size)?,
            Op::Overwrite { path, length } => sys::overwrite(&self.at(path), &bytes(step, *length))?,
            Op::Read { path } => return Ok(Outcome::Content(sys::read(&self.at(path))?)),
            Op::Mkdir { path, mode } => sys::mkdir(&self.at(path), *mode)?,
            Op::Rmdir { path } => sys::rmdir(&self.at(path))?,
            Op::Unlink { path } => sys::unlink(&self.at(path))?,
            Op::Rename { from, to } => sys::rename(&self.at(from), &self.at(to))?,
            Op::RenameNoReplace { from, to } => {
                sys::rename_with(&self.at(from), &self.at(to), RenameFlags::NOREPLACE)?;
            }
            Op::Exchange { from, to } => sys::rename_with(&self.at(from), &self.at(to), RenameFlags::EXCHANGE)?,
            Op::Link { old, new } => sys::link(&self.at(old), &self.at(new))?,
            Op::Symlink { path, target } => sys::symlink(target, &self.at(path))?,
            Op::Mknod { path, mode, rdev } => sys::mknod(&self.at(path), *mode, *rdev)?,
            Op::Chmod { path, mode } => sys::chmod(&self.at(path), *mode)?,
            Op::Chown { path, uid, gid } => sys::chown(&self.at(path), Some(*uid), Some(*gid))?,
            Op::Utimens { path, mtime } => sys::utimens(&self.at(path), (*mtime, 0), (*mtime, 0))?,
            Op::SetXattr { path, name, value } => sys::setxattr(&self.at(path), name, value)?,
            Op::RemoveXattr { path, name } => sys::removexattr(&self.at(path), name)?,
            Op::Readdir { path } => {
                let list = sys::readdir(&self.at(path))?;
                let mut names: Vec<String> = list.into_iter().map(|e| e.name.into_string().expect("text")).collect();
                names.sort();
                return Ok(Outcome::Names(names));
            }
            Op::Open { slot, path, write } => {
                let flags = if *write { OFlags::RDWR } else { OFlags::RDONLY };
                let file = sys::open(&self.at(path), flags | OFlags::NOFOLLOW, 0)?;
                self.handles[*slot] = Some(file);
            }
            Op::HandleWrite { slot, offset, length } => {
                sys::pwrite(self.handle(*slot), &bytes(step, *length), *offset)?;
            }
            Op::HandleRead { slot } => return Ok(Outcome::Content(sys::read_file(self.handle(*slot))?)),
            Op::HandleTruncate { slot, size } => rustix::fs::ftruncate(self.handle(*slot), *size)?,
            Op::HandleChmod { slot, mode } => rustix::fs::fchmod(self.handle(*slot), Mode::from_raw_mode(*mode))?,
            Op::HandleStat { slot } => {
                let stat = rustix::fs::fstat(self.handle(*slot))?;
                return Ok(Outcome::Stat(stat.st_mode & 0o7777, stat.st_size.cast_unsigned(), stat.st_nlink));
            }
            Op::Close { slot } => self.handles[*slot] = None,
            Op::Remount { .. }
            | Op::Restack { .. }
            | Op::Checkpoint
            | Op::Rollback
            | Op::Fork { .. }
            | Op::InFork(_) => {
                panic!("a directory cannot be mounted again")
            }
        }
        Ok(Outcome::Done)
    }

    fn handle(&self, slot: usize) -> &File {
        self.handles[slot].as_ref().expect("an open slot")
    }
}

impl Backend for Mounted {
    fn apply(&mut self, op: &Op, step: u64) -> Outcome {
        match op {
            Op::Remount { driver } => self.mount_again(*driver, |layers| layers),
            Op::Restack { driver } => self.mount_again(*driver, Layers::restack),
            Op::Checkpoint => drop(self.mount.as_mut().expect("mounted").checkpoint()),
            Op::Rollback => self.mount.as_mut().expect("mounted").roll_back(),
            Op::Fork { driver } => self.make_fork(*driver),
            _ => return self.place.try_apply(op, step).unwrap_or_else(Outcome::Error),
        }
        Outcome::Done
    }

    fn tree(&mut self) -> Result<BTreeMap<String, Seen>, String> {
        self.place.tree()
    }

    fn is_indexed(&self) -> bool {
        self.indexed
    }

    fn is_kernel(&self) -> bool {
        self.mount().driver() == Driver::Overlayfs
    }

    fn is_coherent(&self) -> bool {
        self.coherent && !self.is_kernel()
    }

    fn forked(&mut self) -> Option<&mut dyn Backend> {
        self.fork.as_deref_mut().map(|fork| fork as &mut dyn Backend)
    }

    fn finish(mut self: Box<Self>) {
        if let Some(fork) = self.fork.take() {
            fork.finish();
        }
        self.place.handles = Default::default();
        drop(self.mount.take());
    }
}

fn walk(root: &Path, directory: &str, found: &mut BTreeMap<String, Seen>) -> Result<(), String> {
    let list = sys::readdir(&root.join(directory)).map_err(|error| format!("readdir {directory:?}: {error}"))?;
    for entry in list {
        let name = entry.name.into_string().map_err(|name| format!("odd name {name:?}"))?;
        let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
        let seen =
            look(root, &path, (entry.ino, entry.kind)).map_err(|error| format!("{path:?} is listed but: {error}"))?;
        let is_dir = seen.kind == libc::S_IFDIR;
        if found.insert(path.clone(), seen).is_some() {
            return Err(format!("{path:?} is listed twice"));
        }
        if is_dir {
            walk(root, &path, found)?;
        }
    }
    Ok(())
}

fn look(root: &Path, path: &str, listed: (u64, FileType)) -> Result<Seen, Errno> {
    let full = root.join(path);
    let stat = sys::lstat(&full)?;
    let kind = stat.st_mode & libc::S_IFMT;
    let mut xattrs = BTreeMap::new();
    for name in sys::listxattr(&full)? {
        let value = sys::getxattr(&full, &name)?;
        xattrs.insert(name, value);
    }
    let target = match kind {
        libc::S_IFLNK => Some(sys::readlink(&full)?.to_string_lossy().into_owned()),
        _ => None,
    };
    Ok(Seen {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)),
        nlink: stat.st_nlink,
        size: stat.st_size.cast_unsigned(),
        mtime: stat.st_mtime,
        ino: stat.st_ino,
        listed: (listed.0, listed.1.as_raw_mode()),
        content: if kind == libc::S_IFREG { Some(sys::read(&full)?) } else { None },
        target,
        xattrs,
    })
}
