//! Opens the file tree of a container. If the container runs, this is the tree that its processes see; otherwise it is
//! mounted for as long as it is needed.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::mount_bind_recursive;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;

use super::super::bundle::Volume;
use super::super::naming::new_id;
use super::super::state::ProcessId;
use super::super::{Container, RunLock, rootless, stubs};
use super::root::Root;
use crate::confined::{self, Stat};
use crate::image::{ImageError, IoContext, Result};
use crate::store::Store;
use crate::sys::namespace::unshare_mounts;

/// Longest wait for another process that mounts, starts, unmounts or copies the container.
const PATIENCE: Duration = Duration::from_secs(60);

/// The open tree of a container. Dropping it unmounts what was mounted for it.
#[derive(Debug)]
pub struct OpenRoot<'s> {
    store: &'s Store,
    /// None once it was closed.
    root: Option<Root>,
    /// Keeps the volumes mounted.
    namespace: Option<OwnedFd>,
    borrowed: Option<Borrowed>,
}

/// A container that was mounted to be read or written.
#[derive(Debug)]
struct Borrowed {
    container: Container,
    /// While this is held, the container cannot be started or removed.
    lock: RunLock,
    /// Mount points in the container that were made for volumes.
    stubs: Vec<PathBuf>,
    /// True if the mount was made for this copy.
    is_new: bool,
}

/// The ways in which a container's files can be reached.
enum Found {
    Running(OwnedFd),
    Mounted(OwnedFd),
    Idle(RunLock),
}

fn open_dir(path: &std::path::Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).at(path)
}

impl Container {
    /// Opens the tree of a container, or of one of its checkpoints. A user without privilege enters the namespace that the
    /// container is or will be mounted in; there is no way back.
    ///
    /// # Errors
    /// If it cannot be mounted, or another process uses it for a minute.
    pub fn open_root<'s>(&self, store: &'s Store, checkpoint: Option<&str>) -> Result<OpenRoot<'s>> {
        if let Some(checkpoint) = checkpoint {
            return self.open_checkpoint(store, checkpoint);
        }
        self.join()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.find_root()? {
                Some(Found::Running(fd) | Found::Mounted(fd)) => {
                    let root = Some(Root::of_container(&self.name, fd, Vec::new()));
                    return Ok(OpenRoot { store, root, namespace: None, borrowed: None });
                }
                Some(Found::Idle(lock)) => return self.borrow(store, lock, false),
                None if Instant::now() > deadline => {
                    return Err(ImageError::refused(&self.name, "is being run by another process"));
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Returns `None` while another process is changing how the container can be reached.
    fn find_root(&self) -> Result<Option<Found>> {
        if let Some(process) = self.state()?.process.filter(ProcessId::is_alive) {
            let root = open_dir(format!("/proc/{}/root", process.pid).as_ref());
            // The number may belong to another process by now.
            return match root {
                Ok(root) if process.is_alive() => Ok(Some(Found::Running(root))),
                Ok(_) => Ok(None),
                Err(error) if process.is_alive() => Err(error),
                Err(_) => Ok(None),
            };
        }
        let lock = match self.lock() {
            Ok(lock) => lock,
            // Another process is starting it; once it runs, it is found above.
            Err(ImageError::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match self.is_alive()? {
            true => open_dir(&self.record.mountpoint).map(|root| Some(Found::Mounted(root))),
            false => Ok(Some(Found::Idle(lock))),
        }
    }

    /// A checkpoint's layers, mounted under an empty upper.
    fn open_checkpoint<'s>(&self, store: &'s Store, checkpoint: &str) -> Result<OpenRoot<'s>> {
        let forked = self.fork(store, Some(checkpoint), &format!("cp-{}", &new_id()?[..12]))?;
        let lock = forked.lock()?;
        let mut opened = forked.borrow(store, lock, true)?;
        if let Some(root) = opened.root.take() {
            opened.root = Some(root.named(&format!("{}@{checkpoint}", self.name)));
        }
        Ok(opened)
    }

    /// Mounts it with its volumes.
    fn borrow<'s>(&self, store: &'s Store, lock: RunLock, is_new: bool) -> Result<OpenRoot<'s>> {
        let borrowed = Borrowed { container: self.clone(), lock, stubs: Vec::new(), is_new };
        let mut opened = OpenRoot { store, root: None, namespace: None, borrowed: Some(borrowed) };
        if self.record.rootless {
            rootless::enter()?;
        }
        let mountpoint = self.mount(store)?;
        if is_new {
            let root = open_dir(mountpoint)?;
            opened.root = Some(Root::of_container(&self.name, root, Vec::new()));
            return Ok(opened);
        }
        let volumes = self.volumes_to_show(store)?;
        let file = File::open(mountpoint).at(mountpoint)?;
        let mounts: Vec<_> = volumes
            .iter()
            .map(|volume| json!({"destination": volume.destination, "type": "bind", "source": volume.source}))
            .collect();
        let made = stubs::make(&file, &mounts).at(mountpoint)?;
        drop(file);
        if let Some(borrowed) = &mut opened.borrowed {
            borrowed.stubs = made;
        }
        let (root, mut read_only) = match volumes.is_empty() {
            true => (open_dir(mountpoint)?, Vec::new()),
            false => {
                let (root, namespace, read_only) = self.with_volumes(&volumes)?;
                opened.namespace = Some(namespace);
                (root, read_only)
            }
        };
        if self.record.options.read_only {
            read_only.push(Stat::of(root.as_fd(), c"").at(mountpoint)?.mount);
        }
        opened.root = Some(Root::of_container(&self.name, root, read_only));
        Ok(opened)
    }

    /// The files and directories that will be mounted in it when it runs.
    fn volumes_to_show(&self, store: &Store) -> Result<Vec<Volume>> {
        let options = &self.record.options;
        // A container that was mounted but never ran has no volumes.
        if self.record.command.is_empty() {
            return Ok(Vec::new());
        }
        let mountpoint = &self.record.mountpoint;
        let root = File::open(mountpoint).at(mountpoint)?;
        let image = self.config(store)?.process();
        let own: Vec<String> = image.volumes.iter().chain(&options.anonymous_volumes).cloned().collect();
        let mut volumes = self.make_image_volumes(&root, &own, &options.volumes)?;
        self.fill_named_volumes(&root, &options.volumes)?;
        volumes.extend(options.volumes.iter().cloned());
        volumes.retain(|volume| volume.source.exists());
        // The mount of a directory comes before the mounts inside it.
        volumes.sort_by_key(|volume| volume.destination.components().count());
        Ok(volumes)
    }

    /// Mounts the volumes so that only the returned namespace has them, and opens the root there. Returns the root, the
    /// namespace, and the ids of mounts that must not be written.
    fn with_volumes(&self, volumes: &[Volume]) -> Result<(OwnedFd, OwnedFd, Vec<u64>)> {
        let place = "mount namespace";
        let own = "/proc/self/ns/mnt";
        let before = File::open(own).at(own)?;
        unshare_mounts().at(place)?;
        let opened = self.mount_volumes(volumes).and_then(|(root, read_only)| {
            let namespace = File::open(own).at(own)?;
            Ok((root, namespace.into(), read_only))
        });
        move_into_link_name_space(before.as_fd(), Some(LinkNameSpaceType::Mount)).at(place)?;
        opened
    }

    fn mount_volumes(&self, volumes: &[Volume]) -> Result<(OwnedFd, Vec<u64>)> {
        let root = open_dir(&self.record.mountpoint)?;
        let mut read_only = Vec::new();
        for Volume { source, destination, .. } in volumes {
            let at = |root: BorrowedFd<'_>| {
                confined::in_root(root, destination.as_os_str().as_encoded_bytes(), OFlags::PATH)
            };
            let point = match at(root.as_fd()) {
                Ok(point) => point,
                // There is nothing to mount it on: the runtime would report that.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(errno).at(destination),
            };
            mount_bind_recursive(source, format!("/proc/self/fd/{}", point.as_raw_fd())).at(source)?;
        }
        for Volume { destination, .. } in volumes.iter().filter(|volume| volume.read_only) {
            let path = destination.as_os_str().as_encoded_bytes();
            if let Ok(mounted) = confined::in_root(root.as_fd(), path, OFlags::PATH) {
                read_only.push(Stat::of(mounted.as_fd(), c"").at(destination)?.mount);
            }
        }
        Ok((root, read_only))
    }
}

impl OpenRoot<'_> {
    /// The root of the tree.
    ///
    /// # Errors
    /// If it was closed.
    pub fn root(&self) -> Result<&Root> {
        self.root.as_ref().ok_or_else(|| ImageError::refused("container", "was closed"))
    }

    /// Closes the tree, and unmounts what was mounted for it.
    ///
    /// # Errors
    /// If another process uses the mount.
    pub fn close(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.root = None;
        self.namespace = None;
        let Some(Borrowed { container, lock, stubs, is_new }) = self.borrowed.take() else { return Ok(()) };
        if !container.is_mounted()? {
            return if is_new { container.remove_locked(self.store, &lock) } else { Ok(()) };
        }
        let mountpoint = &container.record.mountpoint;
        let cleaned = match stubs.is_empty() {
            true => Ok(()),
            false => File::open(mountpoint).and_then(|root| Ok(stubs::remove(&root, &stubs)?)).at(mountpoint),
        };
        let unmounted = container.unmount(false);
        let removed = match is_new {
            true => unmounted.and_then(|()| container.remove_locked(self.store, &lock)),
            false => unmounted,
        };
        cleaned.and(removed)
    }
}

impl Drop for OpenRoot<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("{error}");
        }
    }
}
