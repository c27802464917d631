//! Containers: a writable directory on top of an image's layers, mounted, and perhaps run by an OCI runtime.
//!
//! ```text
//! containers/NAME/       an OCI runtime bundle
//!   container.json       a [`Record`]
//!   upper/ work/         what the container changed
//!   merged/              where it is mounted, unless the user named another place
//!   volumes/             directories for the image's `Volumes`, outside of the upper
//!   config.json          what the OCI runtime is told (only of containers that were run)
//!   log, exit            output and exit code of one that was run detached
//! ```

pub mod bundle;
mod mount;
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

use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags, flock, open, renameat_with};
use serde::{Deserialize, Serialize};

use crate::confined;
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::files::{make_dir, remove_tree, sync_dir};
use crate::image::reference::Reference;
use crate::image::time::Timestamp;
use crate::image::{ImageError, IoContext, Result, nearest, spec};
use crate::marks::Namespace;
use crate::store::{Image, Layer, Store, replace_file};

pub use mount::{Driver, escaped_option, stratafs_program};
pub use run::{Runtime, State, forwarding_signals};

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

/// Held by the process that runs a container.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
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
        let _lock = store.lock_shared()?;
        // Its layers may still be there, being others', too; its configuration is not.
        store.refuse_if_gone(image)?;
        let layers = store.layers_of(image)?;
        let name = match &options.name {
            Some(name) => check_name(name)?.to_owned(),
            None => unused_name(store, image)?,
        };
        let dir = store.containers().join(&name);
        let mountpoint = match &options.mountpoint {
            Some(path) => fs::canonicalize(path).at(path)?,
            None => dir.join("merged"),
        };
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
        let stage =
            tempfile::Builder::new().prefix("container-").tempdir_in(store.root().join("tmp")).at(store.root())?;
        prepare(stage.path(), layers.last(), &record)?;
        let stage = stage.keep();
        match renameat_with(rustix::fs::CWD, &stage, rustix::fs::CWD, &dir, RenameFlags::NOREPLACE) {
            Ok(()) => {
                sync_dir(&store.containers())?;
                Ok(Self { name, dir, record })
            }
            Err(error) => {
                remove_tree(&stage)?;
                match error {
                    rustix::io::Errno::EXIST => {
                        Err(ImageError::refused(name, "there is a container of that name already"))
                    }
                    error => Err(error).at(dir),
                }
            }
        }
    }

    /// The container of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(store: &Store, name: &str) -> Result<Self> {
        let dir = store.containers().join(check_name(name)?);
        let path = dir.join("container.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let record = spec::parse(&path.display().to_string(), &bytes)?;
                Ok(Self { name: name.to_owned(), dir, record })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let names = names(store)?;
                let near = nearest(name, names.iter().map(String::as_str));
                Err(ImageError::NoSuchContainer { name: name.to_owned(), near })
            }
            Err(error) => Err(error).at(path),
        }
    }

    /// All containers, the oldest first.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn list(store: &Store) -> Result<Vec<Self>> {
        let mut containers = Vec::new();
        for name in names(store)? {
            containers.push(Self::open(store, &name)?);
        }
        containers.sort_by(|a, b| a.record.created.cmp(&b.record.created));
        Ok(containers)
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
        let file = File::open(&self.dir).at(&self.dir)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(RunLock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(ImageError::refused(&self.name, "is being run by another process"))
            }
            Err(error) => Err(error).at(&self.dir),
        }
    }

    /// Removes it with all its changes.
    ///
    /// # Errors
    /// When it is mounted.
    pub fn remove(self, store: &Store) -> Result<()> {
        if self.is_mounted()? || self.record.rootless && self.holder()?.is_some() {
            return Err(ImageError::refused(self.name, "is mounted or running; unmount or stop it first"));
        }
        // A writer that is alone empties `tmp`; it must not do so while this one does.
        let _lock = store.lock_shared()?;
        let doomed = store.root().join("tmp").join(format!("removed-{}-{}", self.name, std::process::id()));
        fs::rename(&self.dir, &doomed).at(&self.dir)?;
        remove_tree(&doomed)
    }

    fn save_record(&self) -> Result<()> {
        let bytes = spec::serialize("container.json", &self.record)?;
        replace_file(&self.dir, &self.dir.join("container.json"), &bytes)
    }
}

/// Fills a new container's directory. The upper directory becomes the root of the union, so it gets the
/// attributes of the topmost layer's.
fn prepare(dir: &Path, top: Option<&Layer>, record: &Record) -> Result<()> {
    for (name, mode) in [("upper", 0o755), ("work", 0o700), ("merged", 0o755), ("empty", 0o755)] {
        make_dir(&dir.join(name), mode)?;
    }
    if let Some(layer) = top {
        let upper = dir.join("upper");
        let is_mark = |name: &[u8]| Namespace::ALL.iter().any(|space| name.starts_with(space.prefix().as_bytes()));
        let to = File::open(&upper).at(&upper)?;
        confined::copy_attributes(layer.open_diff()?.as_fd(), to.as_fd(), |name| !is_mark(name)).at(&upper)?;
    }
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

fn names(store: &Store) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(store.containers()).at(store.containers())? {
        let entry = entry.at(store.containers())?;
        if entry.path().join("container.json").exists() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort();
    Ok(names)
}

/// `debian-1`, `debian-2`, …: a name that says where the container comes from.
fn unused_name(store: &Store, image: &Image) -> Result<String> {
    let repository = image.names.first().map(Reference::repository).unwrap_or_else(|| "container".to_owned());
    let base: String = repository.rsplit('/').next().unwrap_or("container").chars().take(48).collect();
    let taken = names(store)?;
    let free = (1..).map(|number| format!("{base}-{number}")).find(|name| !taken.contains(name));
    free.ok_or_else(|| ImageError::refused(base, "no name is left"))
}
