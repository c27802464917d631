//! The writable layer.

use std::ffi::{CStr, CString};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::config::OverlayConfig;
use crate::confined::WritableDir;
use crate::marks::{Mark, Namespace};
use crate::union::layer::order::Order;
use crate::union::layer::pivot::UpperLocation;
use crate::union::layer::{Capabilities, ChangeError, OpenError, Stat, Successor, WorkDir, describe};

/// A directory of the upper layer or of the work directory. Only these two create one.
#[derive(Clone, Debug)]
pub struct UpperDir(WritableDir);

impl Deref for UpperDir {
    type Target = WritableDir;
    fn deref(&self) -> &WritableDir {
        &self.0
    }
}

impl AsFd for UpperDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl UpperDir {
    /// Wraps an open directory of the upper layer or the work directory.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(WritableDir::new(fd))
    }

    /// Reopens the directories `dirs` through one private copy of their mount.
    fn private<const N: usize>(dirs: [&Self; N]) -> Result<[Self; N], Errno> {
        WritableDir::share_copy(dirs.map(|dir| &dir.0)).map(|copies| copies.map(Self))
    }

    /// Wraps an open file of the layer.
    fn hold(&self, file: OwnedFd) -> Self {
        Self(self.0.hold(file))
    }

    /// Opens the subdirectory `name`.
    ///
    /// # Errors
    /// Those of `openat(2)`; `NOTDIR` also for a symlink.
    pub(crate) fn open_upper_dir(&self, name: &CStr) -> Result<Self, Errno> {
        Ok(Self(self.0.open_writable_dir(name)?))
    }
}

/// The form of deletions in the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpperWhiteouts {
    /// A character device 0:0.
    Device,
    /// An empty regular file with the whiteout mark, in a directory whose opaque mark is `x`.
    Xattr(Namespace),
}

/// The writable layer and what its file system can do.
#[derive(Debug)]
pub struct UpperLayer {
    root: UpperDir,
    /// The path given to the mount, for messages.
    path: PathBuf,
    /// Its place; absent on a read-only mount, and if the upper cannot be replaced.
    place: Option<UpperLocation>,
    /// Absent on a read-only mount.
    work: Option<WorkDir>,
    /// `workdir/work`'s parent, where the volatile mark is.
    work_parent: Option<UpperDir>,
    /// `workdir/index`, on a mount with `index=on`.
    index: Option<UpperDir>,
    namespace: Namespace,
    acls: bool,
    /// What the file system can do; absent on a read-only mount.
    capabilities: Option<Capabilities>,
    volatile: bool,
    order: Order,
    /// Hold the locks on the upper and the work directory that keep other mounts out: exclusive, or shared after the
    /// mount is gone.
    locks: Vec<OwnedFd>,
}

/// How long a mount waits for another one that uses its upper. That one may be about to notice that it was unmounted.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// How long a mount waits for one that is known to be ending: it may have to write all of a volatile mount to a slow disk.
const ENDING_PATIENCE: Duration = Duration::from_secs(600);

impl UpperLayer {
    pub(super) fn open(config: &OverlayConfig, upper: &Path, work: Option<&Path>) -> Result<Self, OpenError> {
        let fail = |what: &str, path: &Path, why: String| OpenError(format!("{what} {}: {why}", path.display()));
        let root = open_upper(upper).map_err(|e| fail("upperdir", upper, describe(e)))?;
        let upper_stat = root.stat_self().map_err(|e| fail("upperdir", upper, describe(e)))?;
        let read_only = config.read_only || is_read_only(&root);
        if read_only && !config.read_only {
            // Printed before the daemon closes the caller's stderr. The kernel refuses to mount.
            tracing::warn!(?upper, "the upper's file system is read-only; so is the mount");
        }
        let mut layer = Self {
            acls: !config.no_acl && supports_acls(&root),
            root,
            path: upper.to_owned(),
            place: None,
            work: None,
            work_parent: None,
            index: None,
            namespace: if config.userxattr { Namespace::User } else { Namespace::Trusted },
            capabilities: None,
            volatile: config.volatile,
            order: Order::Unknown,
            locks: Vec::new(),
        };
        let Some(work) = work.filter(|_| !read_only) else { return Ok(layer) };
        layer.locks.push(lock("upperdir", upper)?);
        let parent = open_upper(work).map_err(|e| fail("workdir", work, describe(e)))?;
        let work_stat = parent.stat_self().map_err(|e| fail("workdir", work, describe(e)))?;
        if work_stat.device != upper_stat.device || work_stat.mount != upper_stat.mount {
            let why = format!("not on the same file system (and mount) as upperdir {}", upper.display());
            return Err(fail("workdir", work, why));
        }
        layer.locks.push(lock("workdir", work)?);
        let parent = layer.enter_private_copy(parent, upper, work);
        let dir = prepare_work(&parent, config.volatile).map_err(|why| fail("workdir", work, why))?;
        let capabilities = Capabilities::probe(&dir, config.userxattr).map_err(|errno| match errno {
            Errno::OPNOTSUPP => fail(
                "upperdir",
                upper,
                "its file system has neither devices nor extended attributes to mark removals by".to_owned(),
            ),
            errno => fail("workdir", work, describe(errno)),
        })?;
        layer.namespace = capabilities.marks.unwrap_or(Namespace::User);
        layer.order = Order::of(&layer.root, &upper_stat);
        tracing::info!("upperdir {}: {capabilities}; order of writes: {:?}", upper.display(), layer.order);
        if let Some(limits) = capabilities.limits() {
            tracing::warn!("upperdir {}: programs are refused what its file system lacks: {limits}", upper.display());
        }
        layer.capabilities = Some(capabilities.clone());
        layer.work = Some(WorkDir::new(dir, capabilities));
        layer.work_parent = Some(parent);
        Ok(layer)
    }

    /// Reopens the upper, its parent and the work directory `work`, which are at `upper_path` and `work_path`, through one
    /// private copy of their mount, if this process may make one. Returns the work directory.
    fn enter_private_copy(&mut self, work: UpperDir, upper_path: &Path, work_path: &Path) -> UpperDir {
        let place = (upper_path.canonicalize().ok()).zip(work_path.canonicalize().ok());
        let place = place.and_then(|(path, work)| {
            let parent = open_upper(path.parent()?).ok()?;
            let name = CString::new(path.file_name()?.as_bytes()).ok()?;
            let of_mount = |dir: &UpperDir| dir.stat_self().ok().map(|stat| stat.mount);
            let is_movable = of_mount(&parent) == of_mount(&self.root);
            is_movable.then(|| UpperLocation { path, work: work.join("work"), parent, name })
        });
        if let Some(place) = place {
            let copied = UpperDir::private([&self.root, &work, &place.parent]);
            let (root, work, parent) = match copied {
                Ok([root, work, parent]) => (root, work, parent),
                Err(errno) => {
                    tracing::debug!("the upper has no mount of its own: {errno}");
                    (self.root.clone(), work, place.parent)
                }
            };
            (self.root, self.place) = (root, Some(UpperLocation { parent, ..place }));
            return work;
        }
        match UpperDir::private([&self.root, &work]) {
            Ok([root, work]) => {
                self.root = root;
                work
            }
            Err(errno) => {
                tracing::debug!("the upper has no mount of its own: {errno}");
                work
            }
        }
    }

    /// Its root.
    pub fn root(&self) -> &UpperDir {
        &self.root
    }

    /// The path given to the mount, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its place, if it can be replaced.
    pub(super) fn location(&self) -> Option<&UpperLocation> {
        self.place.as_ref()
    }

    /// The path of the work directory `workdir/work`, for uses that must not go through the private copy of the mount.
    pub(crate) fn work_path(&self) -> Option<&Path> {
        self.place.as_ref().map(|place| place.work.as_path())
    }

    /// Exchanges the upper and `successor`.
    ///
    /// # Errors
    /// One line of text. Nothing has changed on an error.
    pub(super) fn replace(&mut self, successor: &mut Successor) -> Result<(), ChangeError> {
        let place = self.place.as_ref().ok_or_else(|| ChangeError::refused("the upperdir cannot change places"))?;
        let fail = |errno| ChangeError::new(&place.path, errno);
        let lock = rustix::io::fcntl_dupfd_cloexec(successor.root(), 0).map_err(fail)?;
        let expected = Stat::of(successor.root().as_fd(), c"").map_err(fail)?;
        successor.exchange()?;
        let found = place.parent.open_upper_dir(&place.name).and_then(|root| Ok((root.stat_self()?, root)));
        match found {
            Ok((stat, root)) if stat.id() == expected.id() => self.root = root,
            found => {
                successor.exchange()?;
                return Err(fail(found.err().unwrap_or(Errno::STALE)));
            }
        }
        // Closing the descriptor of the old directory releases its lock.
        if let Some(held) = self.locks.first_mut() {
            *held = lock;
        }
        Ok(())
    }

    /// The work directory.
    ///
    /// # Errors
    /// `ROFS` on a read-only mount.
    pub fn work(&self) -> Result<&WorkDir, Errno> {
        self.work.as_ref().ok_or(Errno::ROFS)
    }

    /// The index directory.
    pub fn index(&self) -> Option<&UpperDir> {
        self.index.as_ref()
    }

    /// Opens the index directory; makes it if necessary.
    ///
    /// # Errors
    /// `ROFS` on a read-only mount; those of `mkdirat(2)` and `openat(2)`.
    pub(super) fn open_index(&mut self) -> Result<(), Errno> {
        let parent = self.work_parent.as_ref().ok_or(Errno::ROFS)?;
        match parent.make_dir(c"index", 0o700) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        self.index = Some(parent.open_upper_dir(c"index")?);
        Ok(())
    }

    /// True if the layer is read-only.
    pub(crate) fn is_read_only(&self) -> bool {
        self.work.is_none()
    }

    /// Wraps an open file of this layer, with or without a name, for writing.
    pub fn hold(&self, file: OwnedFd) -> UpperDir {
        self.root.hold(file)
    }

    /// The name space in which marks are written.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// Full name of the attribute that holds `mark`.
    pub(crate) fn mark_key(&self, mark: Mark) -> CString {
        CString::new(self.namespace.xattr(mark)).unwrap_or_default()
    }

    /// True if a new file that inherits no ACL has no extended attributes.
    pub(crate) fn makes_bare_files(&self) -> bool {
        self.capabilities.as_ref().is_some_and(|can| can.bare_files)
    }

    /// The form in which whiteouts are written.
    pub(crate) fn whiteout_form(&self) -> UpperWhiteouts {
        self.capabilities.as_ref().map_or(UpperWhiteouts::Device, |can| can.whiteouts)
    }

    /// True if the file system stores marks.
    pub(crate) fn keeps_marks(&self) -> bool {
        self.capabilities.as_ref().is_none_or(|can| can.marks.is_some())
    }

    /// True if the file system stores POSIX ACLs and the mount shows them.
    pub(crate) fn has_acls(&self) -> bool {
        self.acls
    }

    pub(super) fn disable_acls(&mut self) {
        self.acls = false;
    }

    /// True if the mount never flushes.
    pub(crate) fn is_volatile(&self) -> bool {
        self.volatile
    }

    /// Makes sure that the content of `file` reaches the disk no later than any later change of names in the layer.
    /// Calls `go_on` now and then.
    ///
    /// # Errors
    /// Those of `fsync(2)` and `sync_file_range(2)`, and that of `go_on`, which ends the work.
    pub fn settle(&self, file: BorrowedFd<'_>, go_on: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
        self.order.settle(file, go_on)
    }

    /// Writes everything to the disk.
    ///
    /// # Errors
    /// Those of `syncfs(2)`.
    pub fn sync(&self) -> Result<(), Errno> {
        rustix::fs::syncfs(self.root.open_self()?)
    }

    /// Tells mounts that wait for the upper that this mount is gone and will end soon. The upper stays locked.
    pub(crate) fn announce_end(&self) {
        for lock in &self.locks {
            if let Err(errno) = rustix::fs::flock(lock, FlockOperation::NonBlockingLockShared) {
                tracing::debug!("a lock stays as it was: {errno}");
            }
        }
    }

    /// Cleans up: empties the work directory and removes the volatile mark.
    ///
    /// # Errors
    /// Those of `unlinkat(2)`.
    pub fn close(&self) -> Result<(), Errno> {
        let (Some(work), Some(parent)) = (&self.work, &self.work_parent) else { return Ok(()) };
        if self.volatile {
            // Only after this is everything known to be on the disk.
            self.sync()?;
            remove_volatile_mark(parent)?;
        }
        WorkDir::empty(work.dir())
    }
}

fn open_upper(path: &Path) -> Result<UpperDir, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(UpperDir::new(rustix::fs::open(path, flags, Mode::empty())?))
}

fn is_read_only(root: &UpperDir) -> bool {
    let Ok(fd) = root.open_self() else { return false };
    rustix::fs::fstatvfs(fd).is_ok_and(|vfs| vfs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

fn supports_acls(root: &UpperDir) -> bool {
    let mut buffer = [0; 1024];
    let target = crate::sys::xattr::Target { dir: root.as_fd(), name: c"" };
    let got = crate::sys::xattr::get(target, c"system.posix_acl_access", &mut buffer);
    matches!(got, Ok(_) | Err(Errno::NODATA | Errno::RANGE))
}

/// Two mounts that write to one upper would corrupt it, and each mount empties the work directory. A new mount waits
/// while the previous one is still ending: `umount` returns before the driver notices, whereas overlayfs is gone when
/// `umount(2)` returns (`generic_shutdown_super()`).
fn lock(option: &str, dir: &Path) -> Result<OwnedFd, OpenError> {
    let fail = |errno| OpenError(format!("{option} {}: {}", dir.display(), describe(errno)));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty()).map_err(fail)?;
    let start = Instant::now();
    loop {
        let (refusal, patience) = match try_lock(&fd).map_err(fail)? {
            Lock::Ours | Lock::Unknown => return Ok(fd),
            Lock::InUse => ("is in use by another mount", LOCK_PATIENCE),
            Lock::Ending => ("is still being written by its last mount", ENDING_PATIENCE),
        };
        if start.elapsed() >= patience {
            return Err(OpenError(format!("{option} {} {refusal}", dir.display())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The holder of a lock.
enum Lock {
    Ours,
    InUse,
    /// A mount that is gone but has not ended yet; or another waiting mount.
    Ending,
    /// The file system has no locks (as some network file systems): none is taken, as in the kernel.
    Unknown,
}

fn try_lock(fd: &OwnedFd) -> Result<Lock, Errno> {
    let held = |operation| match rustix::fs::flock(fd, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno),
    };
    match held(FlockOperation::NonBlockingLockExclusive) {
        Ok(true) => return Ok(Lock::Ours),
        Ok(false) => {}
        Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Lock::Unknown),
        Err(errno) => return Err(errno),
    }
    if !held(FlockOperation::NonBlockingLockShared)? {
        return Ok(Lock::InUse);
    }
    rustix::fs::flock(fd, FlockOperation::Unlock)?;
    Ok(Lock::Ending)
}

/// The place where the kernel puts the mark of a volatile mount (`Documentation/filesystems/overlayfs.rst`,
/// "Volatile mount").
const INCOMPAT: &CStr = c"incompat";

/// Opens `work` in the work directory and empties it; makes it if necessary.
fn prepare_work(parent: &UpperDir, volatile: bool) -> Result<UpperDir, String> {
    let text = |errno| describe(errno);
    match parent.make_dir(c"work", 0o700) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(text(errno)),
    }
    let dir = parent.open_upper_dir(c"work").map_err(text)?;
    // Files made here would inherit ACLs of the directory and take them into the upper (kernel:
    // `ovl_workdir_create`).
    for acl in [c"system.posix_acl_default", c"system.posix_acl_access"] {
        match dir.remove_xattr(c"", acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => tracing::warn!("workdir: hands its ACL down: {errno}"),
        }
    }
    // Another program may have made it.
    if parent.stat(c"work").map_err(text)?.is_some_and(|stat| stat.mode & 0o077 != 0)
        && let Err(errno) = parent.set_mode(c"work", 0o700)
    {
        tracing::warn!("workdir: others may look into it: {errno}");
    }
    let is_marked = |stat: Option<Stat>| stat.is_some_and(|s| s.is_dir());
    if is_marked(dir.stat(INCOMPAT).map_err(text)?) {
        return Err("a volatile mount of this upper ended without unmounting, so its files may be damaged; \
             remove work/incompat to use it all the same"
            .to_owned());
    }
    WorkDir::empty(&dir).map_err(text)?;
    if volatile {
        dir.make_dir(INCOMPAT, 0o700).map_err(text)?;
        let incompat = dir.open_upper_dir(INCOMPAT).map_err(text)?;
        incompat.make_dir(c"volatile", 0o700).map_err(text)?;
        // This must be on the disk before anything else is.
        for marked in [&incompat, &dir] {
            rustix::fs::fsync(marked.open_self().map_err(text)?).map_err(text)?;
        }
    }
    Ok(dir)
}

fn remove_volatile_mark(parent: &UpperDir) -> Result<(), Errno> {
    parent.open_upper_dir(c"work")?.remove_tree(INCOMPAT)
}

#[cfg(test)]
impl UpperDir {
    /// A stand-in for tests that change no file.
    pub(crate) fn stand_in() -> Self {
        Self::new(std::fs::File::open("/dev/null").expect("/dev/null").into())
    }
}
