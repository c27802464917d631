//! The pivot: one rename exchanges the upper and an empty directory.
//!
//! A [`Successor`] is prepared beside the mount: its root looks like the upper's root, and its chain mark names the layer
//! below it. Files that must stay writable get further names in it ([`Successor::carry`]). Then [`Successor::exchange`]
//! makes it the upper. Before that call nothing has changed; after it, everything has.
//!
//! The directories are reached through the paths that were given to the mount, not through its private copies of mounts:
//! the kernel refuses a rename between two mounts, and the successor may be anywhere on the file system.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::confined;
use crate::marks::chain::{Chain, ChainId};
use crate::marks::{Mark, Namespace};
use crate::sys::xattr::{self, Target};
use crate::union::layer::chain::{chain_namespace, copy_root, new_id, read_chain, write_chain};
use crate::union::layer::switch::NextLowers;
use crate::union::layer::{Layer, LayerId, LayerStack, OpenError, Stat, UpperLayer, describe};

/// Why the stack of layers was not changed: one line, and an error number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}")]
pub struct ChangeError {
    /// For programs.
    pub errno: Errno,
    /// For people.
    pub line: String,
}

impl ChangeError {
    /// Says what failed with `path`.
    pub(crate) fn new(path: &Path, errno: Errno) -> Self {
        Self { errno, line: format!("{}: {}", path.display(), describe(errno)) }
    }

    /// Says that a change is not possible.
    pub(crate) fn refused(line: impl Into<String>) -> Self {
        Self { errno: Errno::OPNOTSUPP, line: line.into() }
    }
}

/// The places of the upper and the work directory, for renaming them.
#[derive(Debug)]
pub(super) struct UpperLocation {
    /// The upper, without symbolic links.
    pub(super) path: PathBuf,
    /// The work directory `workdir/work`.
    pub(super) work: PathBuf,
    /// The upper's parent, opened through the same mount as the upper and the work directory.
    pub(super) parent: super::UpperDir,
    /// Its name there.
    pub(super) name: CString,
}

/// An empty directory that will become the upper. Dropping it before the exchange removes the directory.
#[derive(Debug)]
pub struct Successor {
    /// The directory's parent and its name there. The old upper is moved to this place.
    beside: OwnedFd,
    name: CString,
    path: PathBuf,
    /// The parent of the upper, and the upper's name there.
    above: OwnedFd,
    upper_name: CString,
    upper_path: PathBuf,
    /// The two directories, open for reading.
    root: OwnedFd,
    old: OwnedFd,
    /// Attributes of the old root that were given to the new one.
    copied: Stat,
    namespace: Namespace,
    old_id: ChainId,
    /// The old upper, opened as a layer, if it will become one.
    layer: Option<Layer>,
    is_done: bool,
}

pub(super) fn open_dir(path: &Path) -> Result<OwnedFd, ChangeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| ChangeError::new(path, errno))
}

fn c_name(name: Option<&OsStr>) -> Option<CString> {
    name.and_then(|name| CString::new(name.as_bytes()).ok())
}

/// The layer that a successor names as the one below it.
#[derive(Clone, Copy, Debug)]
pub enum Below<'a> {
    /// The upper, which becomes a layer.
    Upper,
    /// The topmost of these. The mount will show the attributes of its root.
    Layers(&'a NextLowers),
}

impl Successor {
    /// Makes the directory `path`, which gets the id `id`. Gives the upper a chain mark if it has none.
    ///
    /// # Errors
    /// Nothing is left on an error.
    pub(super) fn prepare(
        upper: &UpperLayer,
        path: &Path,
        id: ChainId,
        below: Below<'_>,
        lower: Option<ChainId>,
    ) -> Result<Self, ChangeError> {
        let place = upper.location().ok_or_else(|| ChangeError::refused("the upperdir cannot change places"))?;
        let fail = |errno| ChangeError::new(path, errno);
        let old = open_dir(&place.path)?;
        let copied = Stat::of(old.as_fd(), c"").map_err(|errno| ChangeError::new(&place.path, errno))?;
        if upper.root().stat_self().map_err(fail)?.id() != copied.id() {
            let line = format!("{} is not the upperdir any more", place.path.display());
            return Err(ChangeError { errno: Errno::STALE, line });
        }
        let namespace = chain_namespace(old.as_fd()).map_err(|errno| ChangeError::new(&place.path, errno))?;
        let old_id = id_of(&old, namespace, lower).map_err(|errno| ChangeError::new(&place.path, errno))?;
        let above = open_dir(place.path.parent().unwrap_or(Path::new("/")))?;
        let (parent, name) = path.parent().zip(c_name(path.file_name())).ok_or_else(|| fail(Errno::INVAL))?;
        let beside = open_dir(parent)?;
        rustix::fs::mkdirat(&beside, &name, Mode::RWXU).map_err(fail)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = match rustix::fs::openat(&beside, &name, flags, Mode::empty()) {
            Ok(root) => root,
            Err(errno) => {
                rustix::fs::unlinkat(&beside, &name, AtFlags::REMOVEDIR).map_err(fail)?;
                return Err(fail(errno));
            }
        };
        let mut successor = Self {
            beside,
            name,
            path: path.to_owned(),
            above,
            upper_name: place.name.clone(),
            upper_path: place.path.clone(),
            root,
            old,
            copied,
            namespace,
            old_id,
            layer: None,
            is_done: false,
        };
        if Stat::of(successor.root.as_fd(), c"").map_err(fail)?.device != copied.device {
            return Err(fail(Errno::XDEV));
        }
        let below = match below {
            Below::Upper => {
                successor.layer = Some(successor.old_layer()?);
                copy_root(successor.old.as_fd(), successor.root.as_fd()).map_err(fail)?;
                Some(old_id)
            }
            Below::Layers(next) => {
                copy_root(next.root.as_fd(), successor.root.as_fd()).map_err(fail)?;
                next.top
            }
        };
        write_chain(successor.root.as_fd(), namespace, &Chain { id, below }).map_err(fail)?;
        match rustix::fs::flock(&successor.root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(fail(errno)),
        }
        if !upper.is_volatile() {
            rustix::fs::fsync(&successor.root).and_then(|()| rustix::fs::fsync(&successor.beside)).map_err(fail)?;
        }
        Ok(successor)
    }

    /// The old upper's id.
    pub(crate) fn old_id(&self) -> ChainId {
        self.old_id
    }

    fn old_layer(&self) -> Result<Layer, ChangeError> {
        let old = rustix::io::fcntl_dupfd_cloexec(&self.old, 0);
        let layer = old.and_then(|old| Layer::of_root(super::Dir::root(old)));
        let mut layer = layer.map_err(|errno| ChangeError::new(&self.upper_path, errno))?;
        layer.path.clone_from(&self.path);
        let chain = read_chain(self.old.as_fd(), self.namespace);
        layer.chain = chain.map_err(|errno| ChangeError::new(&self.upper_path, errno))?;
        Ok(layer)
    }

    /// Copies the attributes of the root again, because they may have changed.
    pub(crate) fn refresh(&mut self) -> Result<(), Errno> {
        let now = Stat::of(self.old.as_fd(), c"")?;
        if (now.ctime, now.mtime) != (self.copied.ctime, self.copied.mtime) {
            copy_root(self.old.as_fd(), self.root.as_fd())?;
            self.copied = now;
        }
        Ok(())
    }

    /// Gives the file `name` of the upper's directory `dir` the same name in the successor, with the directories above it.
    ///
    /// # Errors
    /// Those of making directories and names.
    pub(crate) fn carry(&self, dir: &CStr, name: &CStr) -> Result<(), Errno> {
        let (from, to) = self.make_dirs(dir)?;
        confined::keeping_times(to.as_fd(), || match rustix::fs::linkat(&from, name, &to, name, AtFlags::empty()) {
            Err(Errno::EXIST) => Ok(()),
            done => done,
        })
    }

    /// Opens the directory `path` in the upper and in the successor. In the successor, it is made if necessary.
    fn make_dirs(&self, path: &CStr) -> Result<(OwnedFd, OwnedFd), Errno> {
        let dup = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 0);
        let (mut from, mut to) = (dup(&self.old)?, dup(&self.root)?);
        self.copy_marks(&from, &to)?;
        for component in path.to_bytes().split(|&byte| byte == b'/').filter(|component| !component.is_empty()) {
            let name = CString::new(component).map_err(|_| Errno::INVAL)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = rustix::fs::openat(&from, &name, flags, Mode::empty())?;
            let made = confined::keeping_times(to.as_fd(), || rustix::fs::mkdirat(&to, &name, Mode::RWXU));
            let copy = rustix::fs::openat(&to, &name, flags, Mode::empty());
            match made {
                Err(Errno::EXIST) => {}
                made => {
                    made?;
                    self.copy_marks(&below, copy.as_ref().map_err(|errno| *errno)?)?;
                    copy_root(below.as_fd(), copy.as_ref().map_err(|errno| *errno)?.as_fd())?;
                }
            }
            (from, to) = (below, copy?);
        }
        Ok((from, to))
    }

    /// Copies a directory's origin and the marks that describe the files in it.
    fn copy_marks(&self, from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
        for mark in [Mark::Impure, Mark::Origin] {
            let key = CString::new(self.namespace.xattr(mark)).map_err(|_| Errno::INVAL)?;
            if let Some(value) = confined::xattr::value(Target { dir: from.as_fd(), name: c"" }, &key)? {
                xattr::set(Target { dir: to.as_fd(), name: c"" }, &key, &value, 0)?;
            }
        }
        Ok(())
    }

    /// Marks the successor as sharing files with the layer below, until [`UpperLayer::end_moving`].
    pub(crate) fn begin_moving(&self) -> Result<(), Errno> {
        xattr::set(Target { dir: self.root.as_fd(), name: c"" }, moving_key(self.namespace), b"y", 0)
    }

    /// Exchanges the successor and the upper.
    ///
    /// # Errors
    /// That of `renameat2(2)`. Nothing has changed on an error.
    pub(super) fn exchange(&mut self) -> Result<(), ChangeError> {
        let flags = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(&self.above, &self.upper_name, &self.beside, &self.name, flags)
            .map_err(|errno| ChangeError::new(&self.path, errno))?;
        // A second exchange undoes the first.
        self.is_done = !self.is_done;
        Ok(())
    }

    /// Makes sure that the exchange is on the disk.
    ///
    /// # Errors
    /// Those of `fsync(2)`.
    pub(crate) fn settle(&self) -> Result<(), ChangeError> {
        for (dir, path) in [(&self.above, &self.upper_path), (&self.beside, &self.path)] {
            rustix::fs::fsync(dir).map_err(|errno| ChangeError::new(path, errno))?;
        }
        Ok(())
    }

    /// The former upper, at its new place.
    pub(crate) fn left(&self) -> &OwnedFd {
        &self.old
    }

    /// The new upper.
    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.is_done
            && let Err(errno) = confined::remove_tree(self.beside.as_fd(), &self.name)
        {
            tracing::warn!("{}: left behind: {errno}", self.path.display());
        }
    }
}

/// The id of the upper `root`. If it has none, it gets one. `lower` is the id of the layer below it.
fn id_of(root: &OwnedFd, namespace: Namespace, lower: Option<ChainId>) -> Result<ChainId, Errno> {
    if let Some(chain) = read_chain(root.as_fd(), namespace)? {
        return Ok(chain.id);
    }
    let id = new_id().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    confined::keeping_times(root.as_fd(), || write_chain(root.as_fd(), namespace, &Chain { id, below: lower }))?;
    rustix::fs::fsync(root)?;
    Ok(id)
}

/// Name of the mark set by [`Successor::begin_moving`].
pub(super) const fn moving_key(namespace: Namespace) -> &'static CStr {
    match namespace {
        Namespace::Trusted => c"trusted.overlay.stratafs.moving",
        Namespace::User => c"user.overlay.stratafs.moving",
        Namespace::FuseOverlayfs => c"user.fuseoverlayfs.stratafs.moving",
    }
}

/// The chain mark of the directory `root`, which is at `path`.
fn chain_of(root: &super::Dir, path: &Path) -> Result<Option<Chain>, OpenError> {
    let read = chain_namespace(root.as_fd()).and_then(|namespace| read_chain(root.as_fd(), namespace));
    match read {
        // The file system has no attributes.
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
        Err(Errno::IO) => Err(OpenError(format!("{}: damaged checkpoint mark", path.display()))),
        read => read.map_err(|errno| OpenError(format!("{}: checkpoint mark: {}", path.display(), describe(errno)))),
    }
}

impl Layer {
    /// Reads the layer's chain mark.
    ///
    /// # Errors
    /// The mark is damaged or cannot be read.
    pub(super) fn find_chain(&mut self) -> Result<(), OpenError> {
        self.chain = chain_of(&self.root, &self.path)?;
        Ok(())
    }
}

impl LayerStack {
    /// Checks that each layer lies directly on the layer that its chain mark names, and completes what a crash of a mount
    /// with this upper interrupted.
    ///
    /// # Errors
    /// One line that names the missing layer.
    pub(super) fn check_chain(&self) -> Result<(), OpenError> {
        let mut needed = None;
        if let Some(upper) = &self.upper {
            let path = upper.path();
            needed = chain_of(upper.root().as_dir(), path)?
                .and_then(|chain| Some((format!("upperdir {}", path.display()), chain.below?)));
        }
        for layer in self.lowers() {
            if let Some((above, id)) = needed.take() {
                self.check_below(&above, id, layer.chain)?;
            }
            needed =
                layer.chain.and_then(|chain| Some((format!("lower layer {}", layer.path.display()), chain.below?)));
        }
        if let Some((above, id)) = needed {
            self.check_below(&above, id, None)?;
        }
        match &self.upper {
            Some(upper) if !upper.is_read_only() => {
                upper.recover_moving(self.lowers().first().map(|layer| layer.path.as_path()))
            }
            _ => Ok(()),
        }
    }

    /// The chain mark of the upper.
    pub(crate) fn upper_chain(&self) -> Option<Chain> {
        let root = self.upper()?.root();
        chain_namespace(root.as_fd()).and_then(|namespace| read_chain(root.as_fd(), namespace)).ok()?
    }

    fn check_below(&self, above: &str, id: ChainId, found: Option<Chain>) -> Result<(), OpenError> {
        if found.is_some_and(|chain| chain.id == id) {
            return Ok(());
        }
        let known = self.lowers().iter().find(|layer| layer.chain.is_some_and(|chain| chain.id == id));
        let path = known.map(|layer| format!(" ({})", layer.path.display())).unwrap_or_default();
        Err(OpenError(format!("{above} needs the checkpoint layer {id}{path} directly below it")))
    }

    /// Prepares a directory that can replace the upper.
    ///
    /// # Errors
    /// One line of text.
    pub(crate) fn prepare_successor(
        &self,
        path: &Path,
        id: ChainId,
        below: Below<'_>,
    ) -> Result<Successor, ChangeError> {
        let upper = self.upper().filter(|upper| !upper.is_read_only());
        let upper =
            upper.ok_or_else(|| ChangeError { errno: Errno::ROFS, line: "the mount is read-only".to_owned() })?;
        let lower = self.lowers().first().and_then(|layer| layer.chain).map(|chain| chain.id);
        Successor::prepare(upper, path, id, below, lower)
    }

    /// Makes the upper the topmost lower layer, and the successor the upper. Returns the id of the layer.
    ///
    /// # Errors
    /// One line of text. Nothing has changed on an error.
    pub(crate) fn pivot(&mut self, successor: &mut Successor) -> Result<LayerId, ChangeError> {
        let mut layer = successor.layer.take().ok_or_else(|| ChangeError::refused("the upperdir stays"))?;
        let upper = self.upper_mut().ok_or_else(|| ChangeError::refused("there is no upperdir"))?;
        upper.replace(successor)?;
        let id = self.upper_id;
        layer.id = id;
        layer.fs = self.filesystems.add_root(layer.device);
        (layer.was_upper, layer.is_own) = (true, true);
        self.lowers.insert(0, layer);
        self.visible += 1;
        self.begin_generation();
        Ok(id)
    }

    /// The ids of the layers at `paths` that were this mount's upper and that no other mount uses.
    ///
    /// # Errors
    /// One of `paths` is not a directory.
    pub(crate) fn own_layers(&self, paths: &[PathBuf]) -> Result<Vec<LayerId>, ChangeError> {
        let mut found = Vec::new();
        for path in paths {
            let fail = |errno| ChangeError::new(path, errno);
            let id = Stat::of(open_dir(path)?.as_fd(), c"").map_err(fail)?.id();
            for layer in self.lowers().iter().filter(|layer| layer.is_own) {
                if layer.root.stat_self().map_err(fail)?.id() == id {
                    found.push(layer.id);
                }
            }
        }
        Ok(found)
    }

    /// Notes that other mounts may use the layer: this mount never writes to it again.
    pub(crate) fn disown(&mut self, id: LayerId) {
        let position = self.position(id);
        if let Some(layer) = self.lowers.get_mut(position) {
            layer.is_own = false;
        }
    }

    /// Notes that another directory is the upper now.
    pub(super) fn begin_generation(&mut self) {
        self.upper_id = self.upper_id.next();
        self.generation += 1;
        if let Some(stat) = self.upper.as_ref().and_then(|upper| upper.root().stat_self().ok()) {
            self.traps.replace_upper(stat.id());
        }
    }
}
