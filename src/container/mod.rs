//! Containers: a writable directory on top of an image's layers, mounted, and perhaps run by an OCI runtime.
//!
//! ```text
//! containers/NAME/       an OCI runtime bundle
//!   container.json       a [`Record`]
//!   upper/ work/         what the container changed
//!   merged/              where it is mounted, unless the user named another place
//!   volumes/             directories for the image's `Volumes`, outside of the upper
//!   checkpoints/         names of checkpoints
//!   config.json          what the OCI runtime is told (only of containers that were run)
//!   log, exit            output and exit code of one that was run detached
//! ```

pub mod bundle;
pub mod checkpoint;
mod damaged;
mod mount;
mod paths;
mod program;
pub mod rootless;
mod run;
mod stubs;
mod users;
mod volumes;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, open, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::confined;
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::files::{make_dir, sync_dir};
use crate::image::reference::Reference;
use crate::image::time::Timestamp;
use crate::image::{ImageError, IoContext, Result, nearest, spec};
use crate::marks::Namespace;
use crate::store::{Image, Layer, Store, replace_file, retry_interrupted};

pub use damaged::Damaged;
pub use mount::{Driver, escaped_option, stratafs_program};
pub use run::{Runtime, RuntimeState, refuse_if_interrupted};

/// `container.json`: what a container is made of. The store's gc reads `image`, `layers` and `blobs`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The id of its image.
    pub image: Digest,
    /// How the user called the image.
    pub image_name: String,
    /// Ids of the image's layers in the store, the lowest first.
    pub layers: Vec<Digest>,
    /// The image's documents, which a commit needs.
    pub blobs: Vec<Digest>,
    /// When it was made.
    pub created: String,
    /// What mounts it.
    pub driver: Driver,
    /// It has no writable directory.
    #[serde(default)]
    pub read_only: bool,
    /// Where it is to be mounted.
    pub mountpoint: PathBuf,
    /// What it runs, if it was made to run something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Remove it when it ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remove_at_exit: bool,
    /// A user without privilege runs it: owners and modes are kept beside the files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rootless: bool,
    /// Mount points that the image lacks and that were made for the runtime; they are no change of the container's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stubs: Vec<PathBuf>,
}

/// A lock on an open directory. It ends when this is dropped, even if a child that was just forked, and has not executed
/// its program yet, has the directory open too.
#[derive(Debug)]
struct DirLock(Option<File>);

impl Drop for DirLock {
    fn drop(&mut self) {
        if let Some(file) = &self.0
            && let Err(error) = flock(file, FlockOperation::Unlock)
        {
            tracing::debug!("a lock ends late: {error}");
        }
    }
}

/// Held by the process that runs a container.
#[derive(Debug)]
pub struct RunLock(DirLock);

impl RunLock {
    /// The lock for another program: it is held as long as that has the file open.
    pub fn into_file(mut self) -> Option<File> {
        self.0.0.take()
    }

    /// The lock that the process which started this one handed over as standard input.
    ///
    /// # Errors
    /// Standard input is not this container's directory.
    pub fn handed_over(container: &Container) -> Result<Self> {
        let stdin = rustix::io::dup(rustix::stdio::stdin()).at(&container.dir)?;
        let (given, own) = (fstat(&stdin).at(&container.dir)?, rustix::fs::stat(&container.dir).at(&container.dir)?);
        if (given.st_dev, given.st_ino) != (own.st_dev, own.st_ino) {
            return Err(ImageError::refused(&container.name, "was not handed over to be run"));
        }
        Ok(Self(DirLock(Some(stdin.into()))))
    }
}

/// Held while a container is mounted, unmounted, read or removed.
#[derive(Debug)]
pub struct ChangeLock {
    _lock: DirLock,
}

/// The containers of a store.
#[derive(Debug, Default)]
pub struct Listed {
    /// Those that can be used, the oldest first.
    pub containers: Vec<Container>,
    /// Those that cannot.
    pub damaged: Vec<Damaged>,
}

/// A container of a store.
#[derive(Clone, Debug)]
pub struct Container {
    name: String,
    dir: PathBuf,
    /// What it is made of.
    pub record: Record,
}

/// How to make a container.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Its name; none: one is made up.
    pub name: Option<String>,
    /// How the user called the image.
    pub image_name: String,
    /// What mounts it.
    pub driver: Driver,
    /// No writable directory.
    pub read_only: bool,
    /// Where to mount it; none: in its own directory.
    pub mountpoint: Option<PathBuf>,
    /// What it is to run.
    pub command: Vec<String>,
    /// Remove it when it ends.
    pub remove_at_exit: bool,
    /// A user without privilege makes it.
    pub rootless: bool,
}

impl Container {
    /// Makes a container of an image. It is not mounted yet.
    ///
    /// # Errors
    /// When the name is taken or malformed, or a layer is missing.
    pub fn create(store: &Store, image: &Image, options: &CreateOptions) -> Result<Self> {
        Self::create_locked(store, image, options).map(|(container, _)| container)
    }

    /// Makes a container that this process is about to run: no other process can run or remove it first.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_locked(store: &Store, image: &Image, options: &CreateOptions) -> Result<(Self, RunLock)> {
        let _lock = store.lock_shared()?;
        // Its layers may still be there, being others', too; its configuration is not.
        store.refuse_if_gone(image)?;
        let layers = store.layers_of(image)?;
        let mut naming = match &options.name {
            Some(name) => Naming::Chosen(check_name(name)?.to_owned()),
            None => Naming::of_image(image),
        };
        let elsewhere = options.mountpoint.as_ref().map(|path| fs::canonicalize(path).at(path)).transpose()?;
        let tmp = store.root().join("tmp");
        let stage = tempfile::Builder::new().prefix("container-").tempdir_in(&tmp).at(&tmp)?;
        prepare(stage.path(), layers.last())?;
        let lock = RunLock(lock_dir(stage.path())?);
        loop {
            let name = naming.next(store)?;
            let dir = store.containers().join(&name);
            let mountpoint = elsewhere.clone().unwrap_or_else(|| dir.join("merged"));
            let record = Record {
                image: image.id(),
                image_name: options.image_name.clone(),
                layers: layers.iter().map(Layer::id).collect(),
                blobs: vec![image.id(), image.descriptor.digest],
                created: Timestamp::now().to_string(),
                driver: options.driver,
                read_only: options.read_only,
                mountpoint,
                command: options.command.clone(),
                remove_at_exit: options.remove_at_exit,
                rootless: options.rootless,
                stubs: Vec::new(),
            };
            write_record(stage.path(), &record)?;
            // The rename is what takes the name: of several processes that want it, one gets it.
            match renameat_with(CWD, stage.path(), CWD, &dir, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    // Not to be removed any more.
                    drop(stage.keep());
                    sync_dir(&store.containers())?;
                    return Ok((Self { name, dir, record }, lock));
                }
                Err(Errno::EXIST) if matches!(naming, Naming::Numbered { .. }) => {}
                Err(Errno::EXIST) => {
                    return Err(ImageError::refused(name, "there is a container of that name already"));
                }
                Err(error) => return Err(error).at(dir),
            }
        }
    }

    /// The container of this name.
    ///
    /// # Errors
    /// When there is none, or its record cannot be used.
    pub fn open(store: &Store, name: &str) -> Result<Self> {
        let dir = store.containers().join(check_name(name)?);
        let path = dir.join("container.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let record = spec::parse(&path.display().to_string(), &bytes)?;
                Ok(Self { name: name.to_owned(), dir, record })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !damaged::is_there(&dir) => {
                let names = names(store)?;
                let near = nearest(name, names.iter().map(String::as_str));
                Err(ImageError::NoSuchContainer { name: name.to_owned(), near })
            }
            Err(error) => Err(error).at(path),
        }
    }

    /// All containers, the oldest first, and those whose record cannot be used.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn list(store: &Store) -> Result<Listed> {
        let mut listed = Listed::default();
        for name in names(store)? {
            match Self::open(store, &name) {
                Ok(container) => listed.containers.push(container),
                // It was removed since the directory was read.
                Err(ImageError::NoSuchContainer { .. }) => {}
                Err(reason) => listed.damaged.push(Damaged { name, reason }),
            }
        }
        listed.containers.sort_by(|a, b| a.record.created.cmp(&b.record.created));
        Ok(listed)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory, which is the OCI runtime's bundle.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration of its image.
    ///
    /// # Errors
    /// When the store lost it.
    pub fn config(&self, store: &Store) -> Result<ImageConfig> {
        ImageConfig::parse(&format!("config {}", self.record.image), store.read_blob(&self.record.image)?)
    }

    /// The layers of its image, the lowest first.
    ///
    /// # Errors
    /// When the store lost one.
    pub fn layers(&self, store: &Store) -> Result<Vec<Layer>> {
        store.layers_by_id(&self.record.layers)
    }

    /// Opens its writable directory.
    ///
    /// # Errors
    /// When it has none.
    pub fn open_upper(&self) -> Result<OwnedFd> {
        if self.record.read_only {
            return Err(ImageError::refused(&self.name, "is read-only and has no changes"));
        }
        let path = self.dir.join("upper");
        open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()).at(path)
    }

    /// Marks it as being run by this process, until the lock is dropped or the process dies.
    ///
    /// # Errors
    /// When another process runs it.
    pub fn lock(&self) -> Result<RunLock> {
        match lock_dir(&self.dir) {
            Ok(lock) => Ok(RunLock(lock)),
            Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                Err(ImageError::refused(&self.name, "is being run by another process"))
            }
            Err(error) => Err(error),
        }
    }

    /// Removes it with all its changes.
    ///
    /// # Errors
    /// When it is mounted or running.
    pub fn remove(self, store: &Store) -> Result<()> {
        let lock = match self.lock() {
            Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::NoSuchContainer { name: self.name, near: None });
            }
            Err(ImageError::Refused { .. }) => return Err(self.in_use()),
            lock => lock?,
        };
        self.remove_locked(store, &lock)
    }

    fn in_use(&self) -> ImageError {
        ImageError::refused(&self.name, "is mounted or running; unmount or stop it first")
    }

    /// Removes a container that this process runs, with all its changes.
    ///
    /// # Errors
    /// When it is mounted.
    pub fn remove_locked(self, store: &Store, _lock: &RunLock) -> Result<()> {
        // Nobody mounts it from here on.
        let _change = self.lock_change()?;
        if self.is_mounted()? || self.record.rootless && self.holder()?.is_some() {
            return Err(self.in_use());
        }
        let has_layers = self.has_layers();
        damaged::discard(store, &self.dir)?;
        // What that leaves behind is rubbish, and the next removal takes it too.
        if has_layers && let Err(error) = checkpoint::tidy(store, false) {
            tracing::debug!("{error}");
        }
        Ok(())
    }

    /// Keeps others from mounting, unmounting, committing or removing it meanwhile.
    fn lock_change(&self) -> Result<ChangeLock> {
        self.change_lock(FlockOperation::LockExclusive)
    }

    /// Keeps others from mounting, unmounting or removing it while its changes are read.
    ///
    /// # Errors
    /// When it was removed meanwhile.
    pub fn lock_for_reading(&self) -> Result<ChangeLock> {
        self.change_lock(FlockOperation::LockShared)
    }

    /// The lock is on a directory that nothing else locks: on `upper` the driver has one.
    fn change_lock(&self, operation: FlockOperation) -> Result<ChangeLock> {
        let path = self.dir.join("empty");
        let gone = || ImageError::NoSuchContainer { name: self.name.clone(), near: None };
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
            file => file.at(&path)?,
        };
        retry_interrupted(|| flock(&file, operation)).at(&path)?;
        // Whoever had the lock before may have removed it.
        let locked = fstat(&file).at(&path)?;
        match rustix::fs::stat(&path) {
            Ok(there) if (there.st_dev, there.st_ino) == (locked.st_dev, locked.st_ino) => {
                Ok(ChangeLock { _lock: DirLock(Some(file)) })
            }
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Err(gone()),
            Err(error) => Err(error).at(&path),
        }
    }

    fn save_record(&self) -> Result<()> {
        let bytes = spec::serialize("container.json", &self.record)?;
        replace_file(&self.dir, &self.dir.join("container.json"), &bytes)
    }
}

/// Fills a new container's directory. The upper directory becomes the root of the union, so it gets the
/// attributes of the topmost layer's.
fn prepare(dir: &Path, top: Option<&Layer>) -> Result<()> {
    for (name, mode) in [("upper", 0o755), ("work", 0o700), ("merged", 0o755), ("empty", 0o755)] {
        make_dir(&dir.join(name), mode)?;
    }
    if let Some(layer) = top {
        let upper = dir.join("upper");
        let is_mark = |name: &[u8]| Namespace::ALL.iter().any(|space| name.starts_with(space.prefix().as_bytes()));
        let to = File::open(&upper).at(&upper)?;
        confined::copy_attributes(layer.open_diff()?.as_fd(), to.as_fd(), |name| !is_mark(name)).at(&upper)?;
    }
    checkpoint::mark_new_upper(&dir.join("upper"))
}

fn write_record(dir: &Path, record: &Record) -> Result<()> {
    let path = dir.join("container.json");
    fs::write(&path, spec::serialize("container.json", record)?).at(&path)?;
    // An empty upper directory is worth no wait for all that other programs write (syncfs).
    File::open(&path).and_then(|file| file.sync_all()).at(&path)?;
    sync_dir(dir)
}

/// A name is one path component that no option can be mistaken for, as docker's are.
fn check_name(name: &str) -> Result<&str> {
    let first = |b: u8| b.is_ascii_alphanumeric();
    let later = |b: u8| first(b) || matches!(b, b'_' | b'.' | b'-');
    match name.as_bytes() {
        [head, rest @ ..] if first(*head) && rest.iter().all(|&b| later(b)) && rest.len() < 64 => Ok(name),
        _ => Err(ImageError::malformed(name, "a container's name is up to 64 letters, digits, '_', '.' and '-'")),
    }
}

/// Names of everything that lies where containers do, in order. Others than this program makes are not named.
fn names(store: &Store) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(store.containers()).at(store.containers())? {
        names.extend(entry.at(store.containers())?.file_name().into_string());
    }
    names.retain(|name| check_name(name).is_ok());
    names.sort();
    Ok(names)
}

/// Takes the lock on a directory, if nobody has it.
fn lock_dir(path: &Path) -> Result<DirLock> {
    let file = File::open(path).at(path)?;
    retry_interrupted(|| flock(&file, FlockOperation::NonBlockingLockExclusive)).at(path)?;
    Ok(DirLock(Some(file)))
}

/// Where a new container's name comes from.
enum Naming {
    /// The user chose it.
    Chosen(String),
    /// `debian-1`, `debian-2`, …: says where the container comes from.
    Numbered { base: String, last: u64 },
}

impl Naming {
    fn of_image(image: &Image) -> Self {
        let repository = image.names.first().map(Reference::repository).unwrap_or_else(|| "container".to_owned());
        let base = repository.rsplit('/').next().unwrap_or("container").chars().take(48).collect();
        Self::Numbered { base, last: 0 }
    }

    /// The next name to try. Another process may be faster, so the rename that takes it decides.
    fn next(&mut self, store: &Store) -> Result<String> {
        let (base, last) = match self {
            Self::Chosen(name) => return Ok(name.clone()),
            Self::Numbered { base, last } => (base, last),
        };
        loop {
            *last += 1;
            let name = format!("{base}-{last}");
            if !damaged::is_there(&store.containers().join(&name)) {
                return Ok(name);
            }
        }
    }
}
