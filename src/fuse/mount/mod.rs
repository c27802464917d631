//! The mount from start to end: the negotiation with the kernel, the mountpoint, the privileges that the process gives
//! up, and the unmount.

mod control;
pub mod handover;
mod handshake;
pub mod inherited;
mod kernel;
mod mountpoint;
pub mod privileges;
mod remount;
mod watcher;

use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::thread::CapabilitySet;

use crate::config::Passthrough;
use crate::config::options::{Access, MountOptions, Transport as Wanted};
use crate::driver::Overlay;
use crate::driver::types::NodeId;
use crate::fuse::counters::Counters;
use crate::fuse::in_flight::InFlight;
use crate::fuse::serve::{Door, Server};
use crate::fuse::transport::Transport;
use crate::fuse::transport::device::Crew;
use crate::fuse::transport::ring::{Prospect, is_gone};
use crate::fuse::wire::reply::Ttl;
use crate::sys::namespace::has_everywhere;
use crate::sys::signals::SignalQueue;
use handshake::{Agreed, Handshake, Wishes};
use kernel::Connection;
use mountpoint::{Mountpoint, Unmounted};

pub use mountpoint::is_mounted_at;
pub use remount::remount;
pub use watcher::Watcher;

/// How long files in use are still served after a lazy unmount, before the process ends.
const GRACE: Duration = Duration::from_secs(1);

/// The kernel's readahead in KiB, where we may set it. The default of 128 splits into four requests what one can
/// answer: reading 512 MiB took 0.94 s of our processor time with it, and 0.62 s with this value. More gains nothing.
const READAHEAD: u32 = 512;

/// Why mounting failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount on '{}': {cause}", mountpoint.display())]
pub struct MountError {
    mountpoint: PathBuf,
    #[source]
    cause: io::Error,
}

/// Where the union is served.
#[derive(Debug)]
pub enum Target {
    /// A directory to mount on; its path is canonical.
    Directory(PathBuf),
    /// A descriptor of `/dev/fuse` that another program has already mounted, with its own options.
    Device(OwnedFd),
}

impl Target {
    /// The path, for messages.
    fn path(&self) -> PathBuf {
        match self {
            Self::Directory(path) => path.clone(),
            Self::Device(device) => PathBuf::from(format!("/dev/fd/{}", device.as_raw_fd())),
        }
    }
}

/// A mount that answers requests.
///
/// Dropping it does not unmount; [`Mounted::serve`] does, and so does an unmount from outside.
pub struct Mounted {
    overlay: Arc<Overlay>,
    transport: Arc<dyn Transport>,
    server: Arc<Server>,
    /// `None` if another program has mounted it where we cannot see it.
    mountpoint: Option<Mountpoint>,
    unmounter: SessionUnmounter,
    /// Unmounts if this process is killed.
    watcher: Option<Watcher>,
    /// Takes requests for checkpoints.
    control: Option<crate::control::Server>,
    /// Kept for its descriptor. Its `Drop` would unmount by path (see `mountpoint`).
    _session: ManuallyDrop<Session<Handshake>>,
}

/// Serves `overlay` on `target`: mounts it there if that has not been done, and starts threads that answer requests.
///
/// The calling thread starts the driver's threads, and its umask must be 0: the kernel sends every caller's umask with the
/// request.
///
/// # Errors
/// The directory, the options or the user's rights do not allow it, or the root of the mount cannot be read. In that
/// case nothing is mounted.
pub fn mount(overlay: Overlay, target: &Target, options: &MountOptions) -> Result<Mounted, MountError> {
    let overlay = Arc::new(overlay);
    try_mount(&overlay, target, options).map_err(|cause| {
        overlay.close();
        MountError { mountpoint: target.path(), cause }
    })
}

fn try_mount(overlay: &Arc<Overlay>, target: &Target, options: &MountOptions) -> io::Result<Mounted> {
    let read_only = overlay.is_read_only();
    let prospect = prospect(options)?;
    let (handshake, agreed) = Handshake::new(Wishes {
        rings: prospect.is_some(),
        acls: overlay.has_acls(),
        keep_links: options.overlay.timeout.is_none(),
        writeback: options.overlay.writeback && !read_only,
        passthrough: options.overlay.passthrough != Passthrough::Off && may_pass_through(),
        // Our own mounts have `default_permissions`. `allow_root` needs the user id of every request.
        idmap: matches!(target, Target::Directory(_)) && options.mount.access != Access::RootAndOwner,
    });
    let config = session_config(options, read_only);
    let session = match target {
        Target::Directory(path) => Session::new(handshake, path, &config).map_err(explain)?,
        Target::Device(device) => {
            let device = device.try_clone()?;
            let unmounted = |error: io::Error| match Errno::from_io_error(&error) {
                Some(Errno::PERM) => io::Error::other("not mounted"),
                _ => error,
            };
            Session::from_fd(handshake, device, config.acl, config).map_err(unmounted)?
        }
    };
    let mut session = ManuallyDrop::new(session);
    let mut unmounter = session.unmount_callable();
    let mounted = match agreed.get() {
        Some(agreed) => start(overlay, target, options, session, agreed, prospect),
        None => Err(io::Error::other("the kernel sent no INIT")),
    };
    if mounted.is_err()
        && let Err(error) = unmounter.unmount()
    {
        tracing::error!(%error, "a useless mount is left behind");
    }
    mounted
}

/// Prepares rings, if they are wanted and this process may have them.
fn prospect(options: &MountOptions) -> io::Result<Option<Prospect>> {
    let wanted = options.mount.transport;
    if wanted == Wanted::Device {
        return Ok(None);
    }
    match Prospect::new(options.mount.threads, wanted == Wanted::Ring) {
        Ok(prospect) => Ok(Some(prospect)),
        Err(error) if wanted == Wanted::Ring => Err(io::Error::other(format!("transport=ring: {error}"))),
        Err(error) => {
            tracing::debug!(%error, "no rings");
            Ok(None)
        }
    }
}

/// Starts the threads that answer requests. `rings` is true if the kernel has agreed to use them.
fn serve_on(
    server: &Arc<Server>,
    device: OwnedFd,
    options: &MountOptions,
    rings: Option<Prospect>,
) -> io::Result<Arc<dyn Transport>> {
    let (ttl, threads) = (Ttl::new(options.overlay.timeout), options.mount.threads);
    server.on_rings.store(rings.is_some(), Ordering::Relaxed);
    let started = rings.map(|rings| rings.start(server, &device, ttl));
    let (unavailable, is_gone) = match started {
        Some(Ok(rings)) => return Ok(rings),
        Some(Err(error)) => (error.to_string(), is_gone(&error)),
        None => ("the kernel has none, or 'N' in /sys/module/fuse/parameters/enable_uring".to_owned(), false),
    };
    server.on_rings.store(false, Ordering::Relaxed);
    // The mount may be gone already. That is no failure: the device reports it to the crew.
    if options.mount.transport == Wanted::Ring && !is_gone {
        return Err(io::Error::other(format!("transport=ring: {unavailable}")));
    }
    tracing::debug!(unavailable, "no rings");
    Ok(Crew::start(Arc::clone(server), device, ttl, threads)?)
}

/// fuser does not name the file that it cannot open.
fn explain(error: io::Error) -> io::Error {
    match fs::File::options().read(true).write(true).open("/dev/fuse") {
        Err(cause) if error.raw_os_error() == cause.raw_os_error() => {
            io::Error::new(error.kind(), format!("/dev/fuse: {cause}; strata doctor says what is missing"))
        }
        _ => error,
    }
}

/// Starts answering on a mount that was just made.
fn start(
    overlay: &Arc<Overlay>,
    target: &Target,
    options: &MountOptions,
    mut session: ManuallyDrop<Session<Handshake>>,
    agreed: &Agreed,
    prospect: Option<Prospect>,
) -> io::Result<Mounted> {
    let mountpoint = match target {
        Target::Directory(path) => Some(Mountpoint::find(path)?),
        Target::Device(device) => Mountpoint::of_connection(device.as_fd())?,
    };
    if let Some(Err(error)) = mountpoint.as_ref().map(|mountpoint| mountpoint.set_readahead(READAHEAD)) {
        // Only root can set it, and only if /sys is writable.
        tracing::debug!(%error, "the kernel's readahead stays as it is");
    }
    let unmounter = session.unmount_callable();
    let device = session.as_fd().try_clone_to_owned()?;
    let connection = Connection::new(device.try_clone()?, session.notifier());
    overlay.attach(Arc::new(connection), agreed.passthrough);
    let server = Arc::new(Server {
        overlay: Arc::clone(overlay),
        counters: Counters::new(),
        in_flight: InFlight::default(),
        opened: AtomicU64::new(0),
        on_rings: AtomicBool::new(false),
        since: Instant::now(),
        mounter: rustix::process::geteuid().as_raw(),
        door: match options.mount.access {
            Access::Owner | Access::Everybody => Door::Open,
            Access::RootAndOwner => Door::RootAnd(rustix::process::geteuid().as_raw()),
        },
        setxattr_ext: agreed.setxattr_ext,
        // For a directory without open, the kernel keeps the listing for ever.
        no_opendir: agreed.no_opendir && options.overlay.timeout.is_none(),
    });
    // Before the mount answers anything: who sees it can ask for a checkpoint at once.
    let control = control::listen(overlay, &options.overlay);
    let transport = serve_on(&server, device, options, prospect.filter(|_| agreed.rings))?;
    // Not through the mount: a process that waits for an answer of its own threads cannot even be killed. The kernel gives up on
    // the request only when the device is closed, which happens when the last thread has ended.
    overlay.getattr(NodeId::ROOT, None)?;
    Ok(Mounted {
        overlay: Arc::clone(overlay),
        transport,
        server,
        mountpoint,
        unmounter,
        watcher: None,
        control,
        _session: session,
    })
}

/// The kernel accepts passthrough files only from `CAP_SYS_ADMIN` in the initial user namespace
/// (`fuse_backing_open()`: `capable()`).
fn may_pass_through() -> bool {
    has_everywhere(CapabilitySet::SYS_ADMIN)
}

fn may_mount() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

fn session_config(options: &MountOptions, read_only: bool) -> Config {
    let mount = &options.mount;
    let fsname = mount.fsname.clone().unwrap_or_else(|| "stratafs".to_owned());
    // fuser passes the name unchanged to mount(2), but inside an option string to fusermount3.
    let fsname = if may_mount() { fsname } else { fsname.replace('\\', r"\\").replace(',', r"\,") };
    let mut list = vec![
        MountOption::FSName(fsname),
        // Not `MountOption::Subtype`: fuser 0.18 does not pass that one to the kernel, and the type would be plain `fuse`.
        MountOption::CUSTOM(format!("subtype={}", mount.subtype)),
        MountOption::DefaultPermissions,
        if read_only { MountOption::RO } else { MountOption::RW },
        if mount.suid { MountOption::Suid } else { MountOption::NoSuid },
        if mount.dev { MountOption::Dev } else { MountOption::NoDev },
    ];
    let flags = [
        (!mount.exec, MountOption::NoExec),
        (!mount.atime, MountOption::NoAtime),
        (mount.sync, MountOption::Sync),
        (mount.dirsync, MountOption::DirSync),
    ];
    list.extend(flags.into_iter().filter_map(|(wanted, option)| wanted.then_some(option)));
    // Without SELinux, the kernel refuses a mount with these options.
    if Path::new("/sys/fs/selinux/enforce").exists() {
        list.extend(mount.security.iter().cloned().map(MountOption::CUSTOM));
    } else if let Some(context) = mount.security.first() {
        tracing::warn!("no SELinux here: {context} has no effect");
    }
    let mut config = Config::default();
    config.mount_options = list;
    config.acl = match mount.access {
        Access::Owner => SessionACL::Owner,
        Access::RootAndOwner => SessionACL::RootAndOwner,
        Access::Everybody => SessionACL::All,
    };
    config
}

impl Mounted {
    /// Makes `watcher` unmount if this process ends without doing so. A no-op if the mount is not visible here.
    ///
    /// # Errors
    /// The watcher has ended.
    pub fn watch_by(&mut self, mut watcher: Watcher) -> io::Result<()> {
        if let Some(path) = self.mountpoint.as_ref().map(Mountpoint::path).transpose()?.flatten() {
            watcher.guard(&path)?;
            self.watcher = Some(watcher);
        }
        Ok(())
    }

    /// Waits for an unmount from outside, or for a signal from `signals`: `SIGUSR1` logs the counters of
    /// requests, every other one unmounts (lazily if the mount is in use). A mount that another one covers is served until it
    /// is uncovered. Then closes the overlay.
    ///
    /// # Errors
    /// Waiting failed; the mount may still be there.
    pub fn serve(mut self, signals: &SignalQueue) -> io::Result<()> {
        let (mut patience, mut covered) = (None, None);
        loop {
            match self.wait(signals, patience, covered.as_ref())? {
                Event::Signal(libc::SIGUSR1) => {
                    let (nodes, handles) = self.overlay.population();
                    let summary = self.server.counters.summary();
                    tracing::info!(target: "stratafs::requests", nodes, handles, "{summary}");
                }
                Event::Signal(_) | Event::MountsChanged => {
                    let changes = mountpoint::changes()?;
                    match self.unmount()? {
                        Unmounted::Covered => covered = Some(changes),
                        _ => (patience, covered) = (Some(GRACE), None),
                    }
                }
                Event::Ended | Event::OutOfPatience => break,
            }
        }
        self.end()
    }

    /// Blocks until the mount is gone.
    pub(crate) fn wait_for_end(&self) -> io::Result<()> {
        let ended = self.transport.ended();
        let mut watched = [PollFd::new(&ended, PollFlags::IN)];
        Ok(retry_on_intr(|| poll(&mut watched, None))?).map(|_ready| ())
    }

    /// The mounted union.
    pub(crate) fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Unmounts if still mounted, refuses outstanding requests and closes the overlay.
    ///
    /// # Errors
    /// The mount cannot be removed.
    pub fn end(mut self) -> io::Result<()> {
        // If the connection was aborted, the mount is still there and would answer ENOTCONN for ever.
        let unmounted = self.unmount();
        self.transport.stop(GRACE);
        drop(self.control.take());
        self.overlay.close();
        unmounted.map(|_| ())
    }

    /// `covered` is `Some` if a change of mounts is an event.
    fn wait(&self, signals: &SignalQueue, patience: Option<Duration>, covered: Option<&fs::File>) -> io::Result<Event> {
        let timeout = match patience {
            Some(patience) => Some(Timespec::try_from(patience).map_err(io::Error::other)?),
            None => None,
        };
        let ended = self.transport.ended();
        let mut watched = vec![PollFd::new(&ended, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        watched.extend(covered.map(|changes| PollFd::new(changes, PollFlags::PRI)));
        loop {
            match poll(&mut watched, timeout.as_ref()) {
                Ok(0) => return Ok(Event::OutOfPatience),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let ready: Vec<bool> = watched.iter().map(|watched| !watched.revents().is_empty()).collect();
        match ready.as_slice() {
            [true, ..] => Ok(Event::Ended),
            [_, true, ..] => Ok(Event::Signal(signals.next()?)),
            _ => Ok(Event::MountsChanged),
        }
    }

    /// Unmounts our mount and those that were bound from it, if they are still there.
    fn unmount(&mut self) -> io::Result<Unmounted> {
        let Some(mountpoint) = &self.mountpoint else { return Ok(Unmounted::Gone) };
        let copies = mountpoint.copies()?;
        // If the connection has ended, these may be mounts of another file system.
        if !copies.is_empty() && !self.has_ended()? {
            self.write_back();
            // One may cover our mount or an earlier copy.
            for copy in copies.iter().rev() {
                if copy.unmount(true)? == Unmounted::NotPermitted {
                    tracing::warn!("a copy of the mount stays");
                }
            }
        }
        match mountpoint.unmount(false)? {
            Unmounted::Busy => {
                self.write_back();
                mountpoint.unmount(true)
            }
            Unmounted::NotPermitted => self.unmounter.unmount().map(|()| Unmounted::Gone),
            unmounted => Ok(unmounted),
        }
    }

    /// True if the last mount is gone or the connection was aborted.
    fn has_ended(&self) -> io::Result<bool> {
        let ended = self.transport.ended();
        let mut watched = [PollFd::new(&ended, PollFlags::IN)];
        Ok(retry_on_intr(|| poll(&mut watched, Some(&Timespec::default())))? > 0)
    }

    /// Has the kernel write back the dirty pages of writable mappings, because after the process has ended nothing
    /// can. In a thread: a stuck file system must not stop us from ending.
    fn write_back(&self) {
        let overlay = Arc::clone(&self.overlay);
        let (done, finished) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            overlay.write_back();
            done.send(()).unwrap_or(());
        });
        if finished.recv_timeout(5 * GRACE).is_err() {
            tracing::warn!("writing back before a lazy unmount takes too long");
        }
    }
}

/// The event that ended the wait.
enum Event {
    Signal(i32),
    /// The last thread has noticed the end of the mount.
    Ended,
    MountsChanged,
    OutOfPatience,
}
