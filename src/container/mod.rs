//! Containers: a writable directory on top of an image's layers, mounted, and optionally run by an OCI runtime.
//!
//! ```text
//! containers/NAME/       an OCI runtime bundle
//!   container.json       a [`Record`]: what it is made of and how it runs
//!   state.json           a [`State`]: whether it runs, how it ended
//!   upper/ work/         what the container changed
//!   merged/              where it is mounted, unless the user named another place
//!   volumes/             directories for the image's `Volumes`, outside of the upper
//!   checkpoints/         names of checkpoints
//!   config.json          what the OCI runtime is told (only of containers that were run)
//!   log                  what it wrote
//!   attach               the socket of the process that watches it, while it runs
//! ```

pub mod attach;
pub mod bundle;
mod cgroup;
pub mod checkpoint;
pub mod copy;
mod damaged;
pub mod devices;
mod finish;
pub mod limits;
mod locks;
mod monitor;
mod mount;
pub mod named;
mod naming;
pub mod network;
mod paths;
pub mod privileges;
mod program;
mod record;
pub mod rootless;
mod run;
mod runtime;
mod state;
mod stubs;
mod users;
mod volume;
mod volumes;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, open, renameat_with};
use rustix::io::Errno;

use self::bundle::RunOptions;
use self::locks::lock_dir;
use self::naming::{Naming, check_name, may_be_id, names, new_id};
use crate::confined;
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::files::{make_dir, sync_dir};
use crate::image::time::Timestamp;
use crate::image::{ImageError, IoContext, Result, nearest, spec};
use crate::marks::Namespace;
use crate::store::{Image, Store, StoredLayer, replace_file};

pub use damaged::Damaged;
pub use finish::finish;
pub use locks::{ChangeLock, RunLock};
pub use monitor::{LogLine, Monitor, Visit};
pub use mount::{Driver, escaped_option, stratafs_program};
pub use record::Record;
pub use runtime::{Runtime, RuntimeState, refuse_if_interrupted};
pub use state::{Phase, ProcessId, State, Status};

/// The containers of a store.
#[derive(Debug, Default)]
pub struct Listed {
    /// The usable ones, the oldest first.
    pub containers: Vec<Container>,
    /// The unusable ones.
    pub damaged: Vec<Damaged>,
}

/// A container of a store.
#[derive(Clone, Debug)]
pub struct Container {
    name: String,
    dir: PathBuf,
    /// Its description.
    pub record: Record,
}

/// How to make a container.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Its name; `None` generates one.
    pub name: Option<String>,
    /// The image's name as the user gave it.
    pub image_name: String,
    /// The driver that mounts it.
    pub driver: Driver,
    /// It has no writable directory.
    pub read_only: bool,
    /// Where to mount it; `None`: in its own directory.
    pub mountpoint: Option<PathBuf>,
    /// The command, with entry point and arguments.
    pub command: Vec<String>,
    /// Remove it when it ends.
    pub remove_at_exit: bool,
    /// It belongs to a user without privilege.
    pub rootless: bool,
    /// Options for running it.
    pub run: RunOptions,
    /// The OCI runtime for it.
    pub runtime: Option<String>,
}

impl Container {
    /// Makes a container of an image. It is not mounted yet.
    ///
    /// # Errors
    /// When the name is taken or malformed, or a layer is missing.
    pub fn create(store: &Store, image: &Image, options: &CreateOptions) -> Result<Self> {
        Self::create_locked(store, image, options).map(|(container, _)| container)
    }

    /// Makes a container that this process will run: no other process can run or remove it before.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_locked(store: &Store, image: &Image, options: &CreateOptions) -> Result<(Self, RunLock)> {
        let _lock = store.lock_shared()?;
        // Its layers may still be there because other images use them, but its configuration is not.
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
        let id = new_id()?;
        loop {
            let name = naming.next(store)?;
            let dir = store.containers().join(&name);
            let mountpoint = elsewhere.clone().unwrap_or_else(|| dir.join("merged"));
            let record = Record {
                id: id.clone(),
                image: image.id(),
                image_name: options.image_name.clone(),
                layers: layers.iter().map(StoredLayer::id).collect(),
                blobs: vec![image.id(), image.descriptor.digest],
                created: Timestamp::now().to_string(),
                driver: options.driver,
                read_only: options.read_only,
                mountpoint,
                command: options.command.clone(),
                remove_at_exit: options.remove_at_exit,
                rootless: options.rootless,
                stubs: Vec::new(),
                options: options.run.clone(),
                runtime: options.runtime.clone(),
            };
            write_record(stage.path(), &record)?;
            // The rename takes the name: if several processes want it, one gets it.
            match renameat_with(CWD, stage.path(), CWD, &dir, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    // From here on it must not be removed.
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

    /// The container with this name, or the only one whose id begins with this.
    ///
    /// # Errors
    /// When there is none, or its record is unusable.
    pub fn open(store: &Store, name: &str) -> Result<Self> {
        match Self::by_name(store, name) {
            Err(error @ ImageError::NoSuchContainer { .. }) if may_be_id(name) => {
                let fits = |container: &Self| container.id().starts_with(name);
                let mut found = Self::list(store)?.containers.into_iter().filter(fits);
                match (found.next(), found.next()) {
                    (Some(container), None) => Ok(container),
                    (Some(_), Some(_)) => {
                        Err(ImageError::refused(name, "fits several containers; give more of the id"))
                    }
                    (None, _) => Err(error),
                }
            }
            opened => opened,
        }
    }

    fn by_name(store: &Store, name: &str) -> Result<Self> {
        let dir = store.containers().join(check_name(name)?);
        let path = dir.join("container.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let mut record: Record = spec::parse(&path.display().to_string(), &bytes)?;
                // The container was renamed.
                if record.mountpoint.parent().and_then(Path::parent) == Some(&store.containers()) {
                    record.mountpoint = dir.join("merged");
                }
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

    /// All containers, the oldest first, and those with an unusable record.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn list(store: &Store) -> Result<Listed> {
        let mut listed = Listed::default();
        for name in names(store)? {
            match Self::by_name(store, &name) {
                Ok(container) => listed.containers.push(container),
                // The container was removed after the directory was read.
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

    /// Its id: 64 hexadecimal digits. A container of version 0.1 that was not started since has one that follows from its name and
    /// the time when it was made.
    pub fn id(&self) -> String {
        match self.record.id.as_str() {
            "" => Digest::of(format!("{}\n{}", self.name, self.record.created).as_bytes()).hex(),
            id => id.to_owned(),
        }
    }

    /// The OCI runtime's name for it.
    pub(crate) fn runtime_id(&self) -> &str {
        if self.record.id.is_empty() { &self.name } else { &self.record.id }
    }

    /// Renames it, even while it runs.
    ///
    /// # Errors
    /// When the name is taken or malformed.
    pub fn rename(mut self, store: &Store, name: &str) -> Result<()> {
        let to = store.containers().join(check_name(name)?);
        // The lock keeps others from mounting, unmounting or reading it by its old path.
        let _change = self.lock_change()?;
        if self.record.id.is_empty() && self.status()?.is_running() {
            return Err(ImageError::refused(self.name, "was started by version 0.1; stop it first"));
        }
        self.give_id()?;
        match renameat_with(CWD, &self.dir, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) => sync_dir(&store.containers()),
            Err(Errno::EXIST) => Err(ImageError::refused(name, "there is a container of that name already")),
            Err(error) => Err(error).at(to),
        }
    }

    /// The same container at its present place: a process that holds its lock finds it again after a rename.
    pub(crate) fn relocated(&self, lock: &RunLock) -> Self {
        let mut here = self.clone();
        let link = lock.0.0.as_ref().map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()));
        let Some(dir) = link.and_then(|link| fs::read_link(link).ok()) else { return here };
        let Some(name) = dir.file_name().and_then(|name| name.to_str()) else { return here };
        if check_name(name).is_ok() && dir != self.dir {
            here.name = name.to_owned();
            if here.record.mountpoint == self.dir.join("merged") {
                here.record.mountpoint = dir.join("merged");
            }
            here.dir = dir;
        }
        here
    }

    /// Its directory, which is the OCI runtime's bundle.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration of its image.
    ///
    /// # Errors
    /// When the store has lost it.
    pub fn config(&self, store: &Store) -> Result<ImageConfig> {
        ImageConfig::parse(&format!("config {}", self.record.image), store.read_blob(&self.record.image)?)
    }

    /// The layers of its image, the lowest first.
    ///
    /// # Errors
    /// When the store has lost one.
    pub fn layers(&self, store: &Store) -> Result<Vec<StoredLayer>> {
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

    /// Marks it as run by this process, until the lock is dropped or the process ends.
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
    /// When it is mounted, or another container uses its volumes.
    pub fn remove_locked(self, store: &Store, _lock: &RunLock) -> Result<()> {
        // From here on it cannot be mounted.
        let _change = self.lock_change()?;
        if self.is_mounted()? || self.record.rootless && self.holder()?.is_some() {
            return Err(self.in_use());
        }
        if let Some(user) = self.user_of_volumes(store)? {
            let reason = format!("container {user} uses its volumes (--volumes-from); remove that first");
            return Err(ImageError::refused(&self.name, reason));
        }
        let has_layers = self.has_layers();
        damaged::discard(store, &self.dir)?;
        // The rest is garbage, which the next removal takes too.
        if has_layers && let Err(error) = checkpoint::tidy(store, false) {
            tracing::debug!("{error}");
        }
        Ok(())
    }

    /// Name of another container that uses a volume in the directory of this one.
    fn user_of_volumes(&self, store: &Store) -> Result<Option<String>> {
        let uses = |other: &Container| {
            let mut volumes = other.record.options.volumes.iter();
            other.dir != self.dir && volumes.any(|volume| Path::new(&volume.source).starts_with(&self.dir))
        };
        Ok(Container::list(store)?.containers.iter().find(|other| uses(other)).map(|other| other.name().to_owned()))
    }

    /// Keeps others from mounting, unmounting, committing or removing it in the meantime.
    fn lock_change(&self) -> Result<ChangeLock> {
        self.change_lock(FlockOperation::LockExclusive)
    }

    /// Keeps others from mounting, unmounting or removing it while its changes are read.
    ///
    /// # Errors
    /// When it was removed in the meantime.
    pub fn lock_for_reading(&self) -> Result<ChangeLock> {
        self.change_lock(FlockOperation::LockShared)
    }

    /// The lock is on a directory that nothing else locks; the driver locks `upper`.
    fn change_lock(&self, operation: FlockOperation) -> Result<ChangeLock> {
        locks::lock_existing(&self.dir.join("empty"), operation)?
            .ok_or_else(|| ImageError::NoSuchContainer { name: self.name.clone(), near: None })
    }

    fn save_record(&self) -> Result<()> {
        let bytes = spec::serialize("container.json", &self.record)?;
        replace_file(&self.dir, &self.dir.join("container.json"), &bytes)
    }
}

/// Fills a new container's directory. The upper directory becomes the root of the union, so it gets the
/// attributes of the topmost layer's.
fn prepare(dir: &Path, top: Option<&StoredLayer>) -> Result<()> {
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
    // For an empty upper directory, it is not worth waiting for the writes of all other programs (syncfs).
    File::open(&path).and_then(|file| file.sync_all()).at(&path)?;
    sync_dir(dir)
}
