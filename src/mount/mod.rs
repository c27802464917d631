//! A union mounted and served by this process: [`Mount`].

mod builder;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::config::error::OptionError;
use crate::config::options::MountOptions;
use crate::driver::checkpoint::ChangeError;
use crate::driver::{OpenError, Overlay};
use crate::fuse::{self, Mounted, Target};
use crate::sys::{namespace, signals};

pub use builder::Builder;

/// A mounted union, served by threads of this process.
///
/// Dropping it unmounts. [`Mount::unmount`] does the same and reports errors. If files of the mount are still open then, the
/// mount is detached: the name is free at once, and requests for the open files fail with `ENOTCONN` or `ENODEV`.
///
/// The mount ends with the process. If the process is killed, the mountpoint answers `ENOTCONN` until it is unmounted
/// (`umount -l`, `fusermount3 -uz`); the upper directory is whole, and can be mounted again.
///
/// `Mount` is `Send` and `Sync`. The process may use its own mount like any other. If the process is killed while one
/// of its threads waits for an answer of its own mount, it may not end before the mount is aborted (`umount -f`).
///
/// # Example
///
/// ```no_run
/// let mount = stratafs::Mount::builder().lower("top").lower("base").upper("upper", "work").mount("merged")?;
/// std::fs::write(mount.mountpoint().join("file"), "the upper directory has it\n")?;
/// mount.unmount()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping the mount unmounts it"]
pub struct Mount {
    /// `None` after it was unmounted.
    mounted: Option<Mounted>,
    mountpoint: PathBuf,
}

/// The result of [`Mount::checkpoint`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkpoint {
    /// The layers of the checkpoint, the topmost first: the directory that was given, then the mount's lower layers. A mount of
    /// these shows the files as they were.
    pub layers: Vec<PathBuf>,
    /// The longest time that requests of the mount had to wait.
    pub paused: Duration,
    /// Number of files that were copied, because they are open or mapped for writing.
    pub copied_files: usize,
}

/// Why a union cannot be mounted, changed or unmounted. Each message is one line and names the option or the path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The options contradict each other, or an option given as text is malformed.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// The path of a layer is empty, or relative to a directory that is gone.
    #[error("layer '{}': {source}", path.display())]
    Layer {
        /// The path as it was given.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A layer or the work directory cannot be used.
    #[error(transparent)]
    Layers(#[from] OpenError),
    /// The upper directory is in use by a mount that does not end.
    #[error("{0}")]
    InUse(String),
    /// The mountpoint is not a directory, or cannot be reached.
    #[error("mountpoint '{}': {source}", path.display())]
    Mountpoint {
        /// The mountpoint as it was given.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The kernel, or `fusermount3`, refused the mount.
    #[error(transparent)]
    Mount(#[from] fuse::MountError),
    /// The checkpoint cannot be made.
    #[error("checkpoint '{}': {source}", path.display())]
    Checkpoint {
        /// The directory as it was given.
        path: PathBuf,
        /// The reason.
        source: ChangeError,
    },
    /// The mount cannot be removed or waited for.
    #[error("cannot unmount '{}': {source}", mountpoint.display())]
    Unmount {
        /// Where it is mounted.
        mountpoint: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// No thread can be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

impl Mount {
    /// Starts building a mount.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The mountpoint: an absolute path without symbolic links.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Makes a checkpoint of the mount while it is in use: the upper directory becomes the read-only layer `dir`, and an empty
    /// upper directory takes its place. The files of the mount stay the same, and processes that use them go on.
    ///
    /// `dir` must not exist yet, and must be on the file system of the upper directory. The time does not depend on the number
    /// of files; only files that are open or mapped for writing are copied. Everything is on the disk when this returns, unless
    /// the mount is [`volatile`](Builder::volatile).
    ///
    /// A later mount of the same upper directory needs [`Checkpoint::layers`] as lower layers. Before another mount uses them
    /// at the same time, call [`Mount::share`].
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the mount is read-only, if its options rule checkpoints out (`index=on`, for example), or if
    /// `dir` cannot be made.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use stratafs::Mount;
    /// let mount = Mount::builder().lower("base").upper("upper", "work").mount("merged")?;
    /// let before = mount.checkpoint("before")?;
    /// std::fs::remove_file("merged/file")?;
    /// // A second mount shows the state at the checkpoint, while the first one goes on.
    /// mount.share(&before.layers)?;
    /// let old = Mount::builder().lowers(before.layers).mount("merged-before")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn checkpoint(&self, dir: impl AsRef<Path>) -> Result<Checkpoint, Error> {
        let dir = dir.as_ref();
        let failed = |source| Error::Checkpoint { path: dir.to_owned(), source };
        let overlay = self.overlay().map_err(failed)?;
        // The driver's threads have their own working directory.
        let place = std::path::absolute(dir).map_err(|error| failed(change_error(&error)))?;
        let made = overlay.checkpoint_at(&place).map_err(failed)?;
        let layers = overlay.state().lowers.into_iter().map(|(path, _)| path).collect();
        Ok(Checkpoint { layers, paused: made.paused, copied_files: made.moved_files })
    }

    /// Prepares for another mount of layers that checkpoints of this mount made. From now on this mount changes no file in them:
    /// open files leave them, and hard links in them break when they are changed, as in every lower layer. Layers that no
    /// checkpoint made are ignored.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if an open file cannot leave a layer; the layers are not shared then.
    pub fn share<P: AsRef<Path>>(&self, layers: &[P]) -> Result<(), Error> {
        let first = || layers.first().map(|layer| layer.as_ref().to_owned()).unwrap_or_default();
        let failed = |source| Error::Checkpoint { path: first(), source };
        let absolute = layers.iter().map(std::path::absolute).collect::<io::Result<Vec<_>>>();
        let layers = absolute.map_err(|error| failed(change_error(&error)))?;
        self.overlay().and_then(|overlay| overlay.share(&layers)).map_err(failed)
    }

    fn overlay(&self) -> Result<&Overlay, ChangeError> {
        let ended = || change_error(&io::ErrorKind::NotConnected.into());
        self.mounted.as_ref().map(Mounted::overlay).ok_or_else(ended)
    }

    /// Blocks until it is unmounted from outside (`umount`, `fusermount3 -u`).
    ///
    /// # Errors
    /// [`Error::Unmount`] if waiting fails, or if what is left of the mount cannot be removed.
    pub fn wait(mut self) -> Result<(), Error> {
        let ended = self.mounted.as_ref().map_or(Ok(()), Mounted::wait_for_end);
        ended.and_then(|()| self.end()).map_err(|source| self.unmount_error(source))
    }

    /// Unmounts it. A mount that is in use is detached, see [`Mount`].
    ///
    /// # Errors
    /// [`Error::Unmount`]; the mount may still be there.
    pub fn unmount(mut self) -> Result<(), Error> {
        self.end().map_err(|source| self.unmount_error(source))
    }

    fn unmount_error(&self, source: io::Error) -> Error {
        Error::Unmount { mountpoint: self.mountpoint.clone(), source }
    }

    /// A no-op if it was called before.
    fn end(&mut self) -> io::Result<()> {
        self.mounted.take().map_or(Ok(()), Mounted::end)
    }
}

fn change_error(error: &io::Error) -> ChangeError {
    let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
    ChangeError { errno, line: error.to_string() }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(mountpoint = %self.mountpoint.display(), %error, "cannot unmount");
        }
    }
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mount").field("mountpoint", &self.mountpoint).finish_non_exhaustive()
    }
}

/// Mounts in a separate thread. That thread starts the driver's threads, which share its umask, working directory and
/// signal mask. The rest of the process keeps its own.
fn mount(options: MountOptions, mountpoint: &Path) -> Result<Mount, Error> {
    let wrong = |source| Error::Mountpoint { path: mountpoint.to_owned(), source };
    let path = mountpoint.canonicalize().map_err(wrong)?;
    if !path.is_dir() {
        return Err(wrong(io::ErrorKind::NotADirectory.into()));
    }
    let target = Target::Directory(path.clone());
    let thread = std::thread::Builder::new().name("stratafs-mount".to_owned());
    let started = thread.spawn(move || start(&options, &target)).map_err(Error::Thread)?.join();
    let mounted = started.unwrap_or_else(|_panic| Err(Error::Thread(io::Error::other("mounting panicked"))))?;
    Ok(Mount { mounted: Some(mounted), mountpoint: path })
}

fn start(options: &MountOptions, target: &Target) -> Result<Mounted, Error> {
    signals::block_all().map_err(Error::Thread)?;
    match namespace::unshare_directory_and_umask() {
        // The caller's working directory may be unmounted or removed while the driver runs.
        Ok(()) => std::env::set_current_dir("/").map_err(Error::Thread)?,
        // A seccomp filter may forbid it. The umask of the process is then the driver's.
        Err(error) => tracing::warn!(%error, "the umask of the whole process becomes 0"),
    }
    rustix::process::umask(rustix::fs::Mode::empty());
    fuse::handover::request(&options.overlay).map_err(Error::InUse)?;
    let overlay = Overlay::open(options.overlay.clone())?;
    Ok(fuse::mount(overlay, target, options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_can_be_shared_and_sent() {
        fn is_send_and_sync<T: Send + Sync>() {}
        is_send_and_sync::<Mount>();
        is_send_and_sync::<Builder>();
        is_send_and_sync::<Error>();
    }

    #[test]
    fn errors_name_what_is_wrong_and_have_sources() {
        let error = Mount::builder().lower("/").mount("/no/such/place").expect_err("no mountpoint");
        assert_eq!(error.to_string(), "mountpoint '/no/such/place': No such file or directory (os error 2)");
        assert!(std::error::Error::source(&error).is_some());
        let error = Mount::builder().mount("/").expect_err("no layers");
        assert!(matches!(error, Error::Options(OptionError::Usage(_))), "{error:?}");
        let error = Mount::builder().lower("/no/such/layer").mount("/").expect_err("no layer");
        assert!(matches!(error, Error::Layers(_)), "{error:?}");
        let error = Mount::builder().lower("/").options("index=perhaps").mount("/").expect_err("a wrong option");
        assert!(error.to_string().contains("perhaps"), "{error}");
    }
}
