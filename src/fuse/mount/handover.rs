//! Takes an upper over from an old mount that is no longer visible but still holds it.
//!
//! A mount that was unmounted lives on in every mount namespace that has a copy of it (that of a service with its own mounts, or
//! of a container's helper). After a lazy unmount, it lives on while files are open. The kernel's overlayfs would then mount the
//! upper a second time, and both mounts would write to it. Here, the old mount ends instead, and its users in the other
//! namespace get ENOTCONN. The exception is a mount that has files of the upper open for writing, because what is written to
//! them must not be lost: the new mount waits for them, and fails if they stay open.
//!
//! The new mount decides by what `/proc` says about the old daemon; a daemon that it may not inspect keeps its upper.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::mountpoint::is_mounted;
use crate::config::OverlayConfig;
use crate::confined::mountinfo;

/// How long the new mount waits for files that the old one has open for writing.
const PATIENCE: Duration = Duration::from_secs(3);

/// Ends the old mount of the upper, if it is mounted in no namespace that its daemon sees.
///
/// # Errors
/// One line: the old mount has files open for writing.
pub fn request(config: &OverlayConfig) -> Result<(), String> {
    let (Some(upper), Some(work), false) = (&config.upper, &config.work, config.read_only) else { return Ok(()) };
    let (Ok(upper), Ok(work)) = (upper.canonicalize(), work.canonicalize()) else { return Ok(()) };
    let Some(holder) = Holder::of(&upper) else { return Ok(()) };
    if !holder.is_detached() {
        return Ok(());
    }
    let start = Instant::now();
    while let Some(file) = holder.writes_below(&[&upper, &work]) {
        if start.elapsed() >= PATIENCE {
            let (upper, file) = (upper.display(), file.display());
            return Err(format!(
                "upperdir {upper} is in use by another mount, which is not visible here and has '{file}' open for \
                 writing (process {})",
                holder.pid.as_raw_pid()
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    tracing::info!(pid = holder.pid.as_raw_pid(), "an old mount of the upper, in other mount namespaces only, ends");
    if let Err(errno) = pidfd_send_signal(&holder.process, Signal::TERM) {
        tracing::debug!("the old mount is not told to end: {errno}");
    }
    Ok(())
}

/// The daemon that holds an upper.
struct Holder {
    pid: Pid,
    process: OwnedFd,
}

impl Holder {
    /// The process that holds the lock on `upper`.
    fn of(upper: &Path) -> Option<Self> {
        let dir = fs::File::open(upper).ok()?;
        match flock(&dir, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => {}
            _ => return None,
        }
        let id = |stat: fs::Metadata| (stat.dev(), stat.ino());
        let wanted = id(dir.metadata().ok()?);
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let pids = locks.lines().filter_map(|line| exclusive_holder(line, wanted.1));
        pids.filter_map(|pid| Some(Self { process: pidfd_open(pid, PidfdFlags::empty()).ok()?, pid })).find(|holder| {
            // /proc/locks names inodes without their subvolume.
            holder.files().any(|(_, path)| fs::metadata(path).map(id).ok() == Some(wanted))
        })
    }

    /// Its open files: numbers, and the links to them.
    fn files(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let listing = fs::read_dir(format!("/proc/{}/fd", self.pid.as_raw_pid())).ok();
        let entries = listing.into_iter().flatten().filter_map(Result::ok);
        entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
    }

    fn fdinfo(&self, number: &str) -> String {
        fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.pid.as_raw_pid())).unwrap_or_default()
    }

    /// True if it serves a FUSE mount, and none of those it serves is in its own namespace.
    fn is_detached(&self) -> bool {
        let Ok(mountinfo) = fs::read(format!("/proc/{}/mountinfo", self.pid.as_raw_pid())) else { return false };
        let minor = |number: &str| field(&self.fdinfo(number), "fuse_connection:")?.parse().ok();
        let mut connections = self.files().filter_map(|(number, _)| minor(&number)).peekable();
        // Before Linux 6.16, the kernel does not say which mount a descriptor belongs to.
        connections.peek().is_some() && connections.all(|minor| !is_mounted(&mountinfo, (0, minor)))
    }

    /// Returns a file below one of `directories` that it has open for writing.
    ///
    /// The daemon reaches them through a private copy of their mount, if it may make one. Then paths of descriptors
    /// begin at the root of that copy, so the copy itself shows which files belong to them.
    fn writes_below(&self, directories: &[&Path]) -> Option<PathBuf> {
        let id = |stat: fs::Metadata| (stat.dev(), stat.ino());
        let wanted: Vec<_> = directories.iter().filter_map(|path| fs::metadata(path).ok().map(id)).collect();
        let shown = fs::read(format!("/proc/{}/mountinfo", self.pid.as_raw_pid())).unwrap_or_default();
        let shown: Vec<String> = mountinfo::parse(&shown).map(|mount| mount.id.to_string()).collect();
        let copies: Vec<String> = self
            .files()
            .filter(|(_, link)| fs::metadata(link).is_ok_and(|stat| wanted.contains(&id(stat))))
            .filter_map(|(number, _)| field(&self.fdinfo(&number), "mnt_id:"))
            .filter(|mount| !shown.contains(mount))
            .collect();
        self.files().find_map(|(number, link)| {
            let path = fs::read_link(link).ok()?;
            let details = self.fdinfo(&number);
            let flags = u32::from_str_radix(&field(&details, "flags:")?, 8).ok()?;
            let writes = flags & libc::O_ACCMODE.cast_unsigned() != libc::O_RDONLY.cast_unsigned();
            let is_below = directories.iter().any(|directory| path.starts_with(directory))
                || field(&details, "mnt_id:").is_some_and(|mount| copies.contains(&mount));
            (writes && is_below).then_some(path)
        })
    }
}

/// The process in a line of `proc_locks(5)` that is an exclusive flock on inode `ino`: `1: FLOCK ADVISORY
/// WRITE 24474 fe:00:11094813 0 EOF`.
fn exclusive_holder(line: &str, ino: u64) -> Option<Pid> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, "FLOCK", _, "WRITE", pid, inode, ..] = fields.as_slice() else { return None };
    let locked: u64 = inode.rsplit(':').next()?.parse().ok()?;
    Pid::from_raw(pid.parse().ok()?).filter(|_| locked == ino)
}

/// The value of a line of `proc_pid_fdinfo(5)`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_locks() {
        let holder = |line| exclusive_holder(line, 11_094_813).map(Pid::as_raw_pid);
        assert_eq!(holder("1: FLOCK  ADVISORY  WRITE 24474 fe:00:11094813 0 EOF"), Some(24_474));
        assert_eq!(holder("1: FLOCK  ADVISORY  READ 24474 fe:00:11094813 0 EOF"), None);
        assert_eq!(holder("1: FLOCK  ADVISORY  WRITE 24474 fe:00:11094814 0 EOF"), None);
        assert_eq!(holder("1: -> FLOCK  ADVISORY  WRITE 24474 fe:00:11094813 0 EOF"), None);
        assert_eq!(holder("1: FLOCK"), None);
    }
}
