//! The kernel's side of the mount: mounts, reads requests from `/dev/fuse`, calls the overlay, replies.
//!
//! | file | does |
//! |---|---|
//! | `mod` | mounts, waits, unmounts |
//! | `handshake` | what is agreed in `INIT` |
//! | `crew` | the threads and their buffers |
//! | `shift` | how many threads wait for requests |
//! | `spin` | waiting for the next request awake |
//! | `serve` | one request: decode, call, encode; errno; panics |
//! | `wire` | the bytes of requests and replies; pure |
//! | `kernel` | what the overlay may ask of the kernel: passthrough, invalidation |
//! | `place` | which mount is ours |
//! | `privileges` | what the process gives up before it serves |
//! | `stats` | what the mount says about itself |
//! | `remount` | changes the flags of a mount that is there |
//! | `counters` | how many requests of which kind |
//!
//! # What fuser does for us, and what not
//!
//! fuser 0.18 (the newest release) mounts, with `fusermount3` where the user may not, and answers `INIT`; it also
//! registers passthrough files and sends invalidations. It does **not** read our requests: [`fuser::Session::run`] is
//! never called. Its dispatcher cannot express what this file system needs:
//!
//! - `ReplyCreate` and `ReplyDirectoryPlus` take the node id from `attr.ino`, so that `st_ino` would have to be the
//!   node id. Ours differ: names of one lower hard link are nodes of their own with the same `st_ino`, and `st_ino`
//!   must survive a copy-up and a remount while node ids are never used again. (`ReplyEntry` has no other field for it
//!   either.) An entry of `readdirplus` cannot say "no node" for `.` and `..`.
//! - `TMPFILE`, `STATX` (creation times), `SYNCFS` and `COPY_FILE_RANGE_64` are not in its list of requests; they end
//!   in ENOSYS before a file system sees them.
//! - `FUSE_OPEN_KILL_SUIDGID` (it calls the field `unused`), `FATTR_KILL_SUIDGID` and `FUSE_SETXATTR_EXT` are not
//!   decoded; without them set-user-id bits survive a write.
//! - A reply of `read` is handed over as a slice that the file system has to allocate for every request, and every
//!   thread's request buffer has room for writes of 16 MiB.
//!
//! The ways out that were weighed:
//!
//! - *A newer fuser*: there is none (0.18.0 is the latest on crates.io), and the first point is its public interface.
//! - *A patched copy* (`[patch]` or vendoring): 10,000 lines to carry, for changes that break its interface; crates
//!   that depend on us from crates.io would not get the patch.
//! - *Another crate*: fuser is the project's choice, and what it does for us it does well.
//! - *All by ourselves*: mounting with `fusermount3`, its socket and its fallbacks would be written again for no gain.
//! - *This*: the wire format of the requests above fits in 700 lines of safe code that decode borrowed bytes, under
//!   tests; it is a stable kernel interface. fuser stays for what it does well. Chosen.
//!
//! When fuser gains separate node ids and these requests, `crew`, `serve` and `wire` can go.
//!
//! fuser's unmounting is not trusted either, see `place`: the session is never dropped.

mod counters;
mod crew;
mod handshake;
mod kernel;
mod place;
pub mod privileges;
mod remount;
mod serve;
mod shift;
mod spin;
pub mod stats;
mod wire;

use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::config::Passthrough;
use crate::config::options::{Access, MountOptions};
use crate::driver::Overlay;
use crate::driver::types::NodeId;
use crate::sys::namespace::has_everywhere;
use crate::sys::signals::SignalQueue;
use counters::Counters;
use crew::Crew;
use handshake::{Agreed, Handshake, Wishes};
use kernel::Connection;
use place::{Place, Unmounted};
use serve::{Door, Server};
use wire::reply::Ttl;

pub use remount::remount;

/// Version of the FUSE protocol that we speak.
pub const PROTOCOL: &str = "7.40";

/// How long files that are in use after a lazy unmount are still served before the process ends.
const GRACE: Duration = Duration::from_secs(1);

/// How far the kernel reads ahead, in KiB, where we may say so. Its default of 128 makes four requests of what one can
/// answer: reading 512 MiB took 0.94 s of our processor time with it, and 0.62 s with this; more gains nothing.
const READAHEAD: u32 = 512;

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount on '{}': {cause}", mountpoint.display())]
pub struct MountError {
    mountpoint: std::path::PathBuf,
    cause: io::Error,
}

/// A mount that answers.
///
/// Dropping it does not unmount; [`Mounted::serve`] does, or an unmount from outside.
pub struct Mounted {
    overlay: Arc<Overlay>,
    crew: Arc<Crew>,
    place: Place,
    unmounter: SessionUnmounter,
    /// Kept for its descriptor. Its `Drop` would unmount by path, see `place`.
    _session: ManuallyDrop<Session<Handshake>>,
}

/// Mounts `overlay` on `mountpoint` (a canonical path) and answers requests in threads of their own.
///
/// Sets the umask of the process to 0: the kernel sends every caller's with the request.
///
/// # Errors
/// The directory, the options or the user's rights do not allow it, or the root of the mount cannot be read. Nothing
/// is mounted then.
pub fn mount(overlay: Overlay, mountpoint: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    let overlay = Arc::new(overlay);
    try_mount(&overlay, mountpoint, options).map_err(|cause| {
        overlay.close();
        MountError { mountpoint: mountpoint.to_owned(), cause }
    })
}

fn try_mount(overlay: &Arc<Overlay>, mountpoint: &Path, options: &MountOptions) -> io::Result<Mounted> {
    rustix::process::umask(rustix::fs::Mode::empty());
    crate::sys::memory::share_pool();
    let read_only = overlay.is_read_only();
    let (handshake, agreed) = Handshake::new(Wishes {
        acls: overlay.has_acls(),
        writeback: options.overlay.writeback && !read_only,
        passthrough: options.overlay.passthrough != Passthrough::Off && may_pass_through(),
    });
    let session = Session::new(handshake, mountpoint, &session_config(options, read_only)).map_err(explain)?;
    let mut session = ManuallyDrop::new(session);
    let mut unmounter = session.unmount_callable();
    let mounted = match agreed.get() {
        Some(agreed) => start(overlay, mountpoint, options, session, agreed),
        None => Err(io::Error::other("the kernel sent no INIT")),
    };
    if mounted.is_err()
        && let Err(error) = unmounter.unmount()
    {
        tracing::error!(%error, "a useless mount is left behind");
    }
    mounted
}

/// fuser does not say what it may not open.
fn explain(error: io::Error) -> io::Error {
    match fs::File::options().read(true).write(true).open("/dev/fuse") {
        Err(cause) if error.raw_os_error() == cause.raw_os_error() => {
            io::Error::new(error.kind(), format!("/dev/fuse: {cause}"))
        }
        _ => error,
    }
}

/// Starts answering on a mount that was just made.
fn start(
    overlay: &Arc<Overlay>,
    mountpoint: &Path,
    options: &MountOptions,
    mut session: ManuallyDrop<Session<Handshake>>,
    agreed: &Agreed,
) -> io::Result<Mounted> {
    let place = Place::find(mountpoint)?;
    if let Err(error) = place.set_readahead(READAHEAD) {
        // For root only, and where /sys is writable.
        tracing::debug!(%error, "the kernel's readahead stays as it is");
    }
    let unmounter = session.unmount_callable();
    let device = session.as_fd().try_clone_to_owned()?;
    let connection = Connection::new(device.try_clone()?, session.notifier());
    overlay.attach(Arc::new(connection), agreed.passthrough);
    let server = Server {
        overlay: Arc::clone(overlay),
        counters: Counters::new(),
        since: Instant::now(),
        mounter: rustix::process::geteuid().as_raw(),
        door: match options.mount.access {
            Access::Owner | Access::Everybody => Door::Open,
            Access::RootAndOwner => Door::RootAnd(rustix::process::geteuid().as_raw()),
        },
        setxattr_ext: agreed.setxattr_ext,
        no_opendir: agreed.no_opendir,
    };
    let crew = Crew::start(server, device, Ttl::new(options.overlay.timeout), options.mount.threads)?;
    // Not by asking the mount: who waits for an answer of his own process cannot even be killed, since the kernel
    // gives up on the request only when the device is closed, and that is when the last thread has ended.
    overlay.getattr(NodeId::ROOT, None)?;
    Ok(Mounted { overlay: Arc::clone(overlay), crew, place, unmounter, _session: session })
}

/// The kernel takes passthrough files only from `CAP_SYS_ADMIN` in the first user namespace
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
    // fuser hands the name to mount(2) as it is, but to fusermount3 in an option string.
    let fsname = if may_mount() { fsname } else { fsname.replace('\\', r"\\").replace(',', r"\,") };
    let mut list = vec![
        MountOption::FSName(fsname),
        // Not `MountOption::Subtype`: fuser 0.18 keeps that one from the kernel, and the type would be plain `fuse`.
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
    // Without SELinux the kernel refuses the mount because of them.
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
    /// Waits until somebody unmounts, or until a signal from `signals` asks us to: `SIGUSR1` logs the counters of
    /// requests, every other one unmounts (lazily if the mount is in use). Then closes the overlay.
    ///
    /// # Errors
    /// Waiting itself failed; the mount may still be there.
    pub fn serve(mut self, signals: &SignalQueue) -> io::Result<()> {
        let mut patience = None;
        loop {
            match self.wait(signals, patience)? {
                Event::Signal(libc::SIGUSR1) => {
                    let (nodes, handles) = self.overlay.population();
                    let summary = self.crew.server().counters.summary();
                    tracing::info!(target: "stratafs::requests", nodes, handles, "{summary}");
                }
                Event::Signal(signal) => {
                    tracing::debug!(signal, "unmounting");
                    self.unmount()?;
                    patience = Some(GRACE);
                }
                Event::Ended | Event::OutOfPatience => break,
            }
        }
        self.end()
    }

    /// Unmounts what is still mounted, refuses what is still asked and closes the overlay.
    ///
    /// # Errors
    /// The mount cannot be taken away.
    pub fn end(mut self) -> io::Result<()> {
        // Still there if the connection was aborted: it would answer ENOTCONN for ever.
        let unmounted = self.unmount();
        self.crew.stop(GRACE);
        self.overlay.close();
        unmounted
    }

    fn wait(&self, signals: &SignalQueue, patience: Option<Duration>) -> io::Result<Event> {
        let timeout = match patience {
            Some(patience) => Some(Timespec::try_from(patience).map_err(io::Error::other)?),
            None => None,
        };
        let ended = self.crew.ended();
        let mut watched = [PollFd::new(&ended, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        loop {
            match poll(&mut watched, timeout.as_ref()) {
                Ok(0) => return Ok(Event::OutOfPatience),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let [ended, _] = &watched;
        if ended.revents().is_empty() { Ok(Event::Signal(signals.next()?)) } else { Ok(Event::Ended) }
    }

    /// Unmounts what is ours, if it is still there.
    fn unmount(&mut self) -> io::Result<()> {
        match self.place.unmount(false)? {
            Unmounted::Gone => Ok(()),
            Unmounted::Busy => {
                self.write_back();
                self.place.unmount(true).map(|_| ())
            }
            Unmounted::NotPermitted => self.unmounter.unmount(),
        }
    }

    /// Has the kernel send what it keeps of writable mappings, since nobody answers once the process has ended. In a
    /// thread: a stuck file system must not keep us from ending.
    fn write_back(&self) {
        let path = self.place.path().to_owned();
        let (done, finished) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let synced = fs::File::open(&path).and_then(|root| Ok(rustix::fs::syncfs(root)?));
            if let Err(error) = synced {
                tracing::warn!(%error, "cannot write back before a lazy unmount");
            }
            done.send(()).unwrap_or(());
        });
        if finished.recv_timeout(5 * GRACE).is_err() {
            tracing::warn!("writing back before a lazy unmount takes too long");
        }
    }
}

/// What ended the waiting.
enum Event {
    Signal(i32),
    /// The last thread has seen the end of the mount.
    Ended,
    OutOfPatience,
}
