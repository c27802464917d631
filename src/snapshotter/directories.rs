//! The directories of snapshots.
//!
//! ```text
//! ROOT/                  mode 0700
//!   lock                 held by the process that serves ROOT
//!   metadata.redb        the database (see `metadata`); what it does not know is rubbish
//!   empty/               the lowest layer of a snapshot that has no other
//!   snapshots/ID/
//!     fs/                an upper directory; a layer once the snapshot is committed
//!     fs.inventory       what is in the layer (see [`crate::inventory`]); may be missing
//!     work/              the work directory of the upper
//!   removed/             directories that are being deleted
//! ```

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use super::error::At;
use super::{Kind, Result, SnapshotError};
use crate::config::OverlayConfig;
use crate::confined;
use crate::marks::{self, Namespace};
use crate::union::layer::{LayerStack, UpperWhiteouts};

/// Interval at which the end of a mount is checked.
const POLL: Duration = Duration::from_millis(5);

/// How long the lock is waited for: a process that a snapshotter was starting as it ended holds the lock until it runs its program.
const PATIENCE: Duration = Duration::from_secs(1);

/// The entries of ROOT. `lost+found` belongs to the file system, whose root ROOT may be.
const NAMES: [&str; 7] = ["lock", "metadata.redb", "metadata.new", "empty", "snapshots", "removed", "lost+found"];

/// The directories of one ROOT. One process serves a ROOT at a time.
pub(super) struct Directories {
    root: PathBuf,
    /// Holds the lock.
    _lock: File,
}

/// Locks `file`, for this process alone.
///
/// # Errors
/// `WOULDBLOCK`: another process held it all the time. Others of `flock(2)`.
fn lock_within(patience: Duration, file: &File) -> std::result::Result<(), Errno> {
    let deadline = Instant::now() + patience;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(POLL),
            done => return done,
        }
    }
}

impl Directories {
    /// Takes over `root`; makes it if it does not exist.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).at(root)?;
        fs::create_dir_all(root.parent().unwrap_or(&root)).at(&root)?;
        make_dir(&root, 0o700)?;
        let root = root.canonicalize().at(&root)?;
        if root.as_os_str().as_bytes().iter().any(|byte| b":,\\\"' \n\t".contains(byte)) {
            return Err(SnapshotError::invalid(
                root.display().to_string(),
                "the path may hold no colon, comma, quote, backslash or white space: it becomes part of mount options",
            ));
        }
        for entry in fs::read_dir(&root).at(&root)? {
            let name = entry.at(&root)?.file_name();
            if !NAMES.iter().any(|own| name == *own) {
                return Err(SnapshotError::invalid(
                    root.display().to_string(),
                    format!("is not a directory of snapshots: it holds {}", name.display()),
                ));
            }
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).at(&root)?;
        let lock = File::create(root.join("lock")).at(&root)?;
        match lock_within(PATIENCE, &lock) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let reason = "another snapshotter serves this directory";
                return Err(SnapshotError::invalid(root.display().to_string(), reason));
            }
            Err(errno) => return Err(errno).at(&root.join("lock")),
        }
        for name in ["empty", "snapshots", "removed"] {
            make_dir(&root.join(name), 0o700)?;
        }
        fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o755)).at(&root)?;
        Ok(Self { root, _lock: lock })
    }

    /// The path of the database.
    pub(super) fn database(&self) -> PathBuf {
        self.root.join("metadata.redb")
    }

    /// An empty layer.
    pub(super) fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// The upper directory, or layer, of a snapshot.
    pub(super) fn upper(&self, id: u64) -> PathBuf {
        self.of(id).join("fs")
    }

    /// The work directory of a snapshot.
    pub(super) fn work(&self, id: u64) -> PathBuf {
        self.of(id).join("work")
    }

    fn of(&self, id: u64) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    fn removed(&self) -> PathBuf {
        self.root.join("removed")
    }

    /// Makes the directories of a snapshot. The upper gets the attributes of its parent's root, because it becomes the
    /// root of the mount.
    ///
    /// # Errors
    /// Those of making files; everything made so far is removed then.
    pub(super) fn make(&self, id: u64, kind: Kind, parent: Option<u64>) -> Result<()> {
        let made = self.make_parts(id, kind, parent);
        if made.is_err() {
            self.bury(id);
        }
        made
    }

    fn make_parts(&self, id: u64, kind: Kind, parent: Option<u64>) -> Result<()> {
        let dir = self.of(id);
        fs::DirBuilder::new().mode(0o700).create(&dir).at(&dir)?;
        if kind == Kind::Active {
            make_dir(&self.work(id), 0o711)?;
        }
        let upper = self.upper(id);
        make_dir(&upper, 0o755)?;
        if let Some(parent) = parent {
            let parent = self.upper(parent);
            let (from, to) = (File::open(&parent).at(&parent)?, File::open(&upper).at(&upper)?);
            let is_mark = |name: &[u8]| Namespace::ALL.iter().any(|known| name.starts_with(known.prefix().as_bytes()));
            confined::copy_attributes(from.as_fd(), to.as_fd(), |name| !is_mark(name)).at(&upper)?;
        }
        Ok(())
    }

    /// True if the directories of a snapshot exist.
    pub(super) fn are_there(&self, id: u64, kind: Kind) -> bool {
        self.upper(id).is_dir() && (kind != Kind::Active || self.work(id).is_dir())
    }

    /// Makes missing directories of a changeable snapshot again.
    pub(super) fn restore(&self, id: u64, kind: Kind, parent: Option<u64>) -> Result<()> {
        if self.of(id).exists() {
            self.bury(id);
        }
        self.make(id, kind, parent)
    }

    /// Moves the directories of a snapshot away; [`Self::empty_removed`] deletes them. If that fails,
    /// [`Self::bury_unknown`] finds them later.
    pub(super) fn bury(&self, id: u64) {
        let (dir, grave) = (self.of(id), self.removed().join(id.to_string()));
        match fs::rename(&dir, &grave) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("{}: cannot be taken away: {error}", dir.display()),
        }
    }

    /// Moves the directories of all snapshots that are not in `known` away. The caller makes sure that none is being made.
    pub(super) fn bury_unknown(&self, known: &BTreeSet<u64>) -> Result<()> {
        let snapshots = self.snapshots();
        for entry in fs::read_dir(&snapshots).at(&snapshots)? {
            let name = entry.at(&snapshots)?.file_name();
            let id: Option<u64> = name.to_str().and_then(|name| name.parse().ok());
            match id {
                Some(id) if known.contains(&id) => {}
                Some(id) => self.bury(id),
                None => tracing::warn!("{}: is not ours", snapshots.join(name).display()),
            }
        }
        Ok(())
    }

    /// A number above those of all existing directories.
    pub(super) fn unused_id(&self) -> Result<u64> {
        let mut highest = 0;
        for dir in [self.snapshots(), self.removed()] {
            for entry in fs::read_dir(&dir).at(&dir)? {
                let name = entry.at(&dir)?.file_name();
                highest = highest.max(name.to_str().and_then(|name| name.parse().ok()).unwrap_or(0));
            }
        }
        Ok(highest + 1)
    }

    /// Deletes everything that was moved away.
    ///
    /// # Errors
    /// The last error; the other directories are deleted nevertheless.
    pub(super) fn empty_removed(&self) -> Result<()> {
        let removed = self.removed();
        let mut outcome = Ok(());
        let dir = File::open(&removed).at(&removed)?;
        for entry in fs::read_dir(&removed).at(&removed)? {
            let name = entry.at(&removed)?.file_name();
            let entry = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL).at(&removed)?;
            if let Err(errno) = confined::remove_tree(dir.as_fd(), &entry) {
                outcome = Err(errno).at(&removed.join(name));
            }
        }
        outcome
    }

    /// Removes the work directory of a snapshot that was committed.
    pub(super) fn remove_work(&self, id: u64) -> Result<()> {
        let path = self.of(id);
        let dir = File::open(&path).at(&path)?;
        confined::remove_tree(dir.as_fd(), c"work").at(&self.work(id))
    }

    /// Waits at most `patience` until no mount uses the upper of a snapshot; returns false if one still does. A driver
    /// notices its unmount a moment later.
    pub(super) fn wait_until_free(&self, id: u64, patience: Duration) -> Result<bool> {
        let path = self.upper(id);
        let upper = File::open(&path).at(&path)?;
        let deadline = Instant::now() + patience;
        loop {
            match flock(&upper, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(true),
                // Without locks on this file system, nothing is known; the driver does the same.
                Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(true),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(POLL),
                Err(Errno::WOULDBLOCK) => return Ok(false),
                Err(errno) => return Err(errno).at(&path),
            }
        }
    }

    /// Has the file system write everything to the disk.
    pub(super) fn sync(&self, id: u64) -> Result<()> {
        let path = self.upper(id);
        rustix::fs::syncfs(File::open(&path).at(&path)?).at(&path)
    }

    /// Opens a union for a test, as a mount would.
    ///
    /// # Errors
    /// One line that says why the file system of ROOT cannot hold an upper.
    pub(super) fn probe(&self) -> Result<Probed> {
        let trial = tempfile::Builder::new().prefix("probe-").tempdir_in(self.removed()).at(&self.root)?;
        let [upper, work] = ["upper", "work"].map(|name| trial.path().join(name));
        for dir in [&upper, &work] {
            make_dir(dir, 0o700)?;
        }
        let config = OverlayConfig {
            lowers: vec![self.empty()],
            upper: Some(upper.clone()),
            work: Some(work),
            ..OverlayConfig::default()
        };
        let stack = LayerStack::open(&config).map_err(|error| {
            let line = error.to_string().replace(&format!("{}/", trial.path().display()), "");
            SnapshotError::invalid(self.root.display().to_string(), format!("cannot hold snapshots: {line}"))
        })?;
        let upper_layer = stack.upper().filter(|upper| upper.work().is_ok());
        let Some(upper_layer) = upper_layer else {
            let reason = "cannot hold snapshots: its file system is read-only";
            return Err(SnapshotError::invalid(self.root.display().to_string(), reason));
        };
        let devices = upper_layer.work().is_ok_and(|work| work.capabilities().whiteouts == UpperWhiteouts::Device);
        let trusted = upper_layer.namespace() == Namespace::Trusted
            && rustix::fs::setxattr(
                &upper,
                marks::Namespace::Trusted.xattr(marks::Mark::Opaque),
                b"y",
                rustix::fs::XattrFlags::empty(),
            )
            .is_ok();
        Ok(Probed { overlay_marks: devices && trusted })
    }
}

/// What the file system of ROOT can hold.
pub(super) struct Probed {
    /// The marks of kernel overlayfs: devices 0:0 and `trusted.overlay.*`.
    pub(super) overlay_marks: bool,
}

/// Makes a directory; the mode does not depend on the umask. An existing one is left unchanged.
fn make_dir(path: &Path, mode: u32) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)).at(path),
        Err(Errno::EXIST) if path.is_dir() => Ok(()),
        Err(errno) => Err(errno).at(path),
    }
}

/// Opens a directory to read its names.
pub(super) fn open_dir(path: &Path) -> Result<rustix::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).at(path)
}
