//! One request: decode, call the overlay, encode the answer. The only place where requests meet verbs.

use std::ffi::{OsStr, OsString};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use super::counters::Counters;
use super::identity::{self, caller};
use super::in_flight::{InFlight, Slot};
use super::stats::{STATS_XATTR, describe};
use super::wire::message::Message;
use super::wire::opcode::Opcode;
use super::wire::reply::{Answer, DirReply, Reply};
use super::wire::request::{CopyArgs, CreateArgs, Header, IoctlArgs, Malformed, Operation, ReadArgs};
use crate::driver::Overlay;
use crate::driver::client;
use crate::driver::types::{Errno, HandleId, NodeId, Result, SetAttr};

/// Whose requests are served, for cases that the kernel does not check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Everyone that the kernel admits.
    Open,
    /// `allow_root`: the mounting user and root.
    RootAnd(u32),
}

/// A request, or the reason why it is malformed.
pub(super) type Decoded<'a> = std::result::Result<Message<'a>, Malformed>;

/// Result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The kernel waits for this answer.
    Reply(Answer),
    /// The kernel expects no answer.
    Silent,
    /// The kernel ends the connection; this is the last answer.
    Goodbye(Answer),
}

/// Answers requests on an overlay. Shared by all threads.
pub(super) struct Server {
    pub(super) overlay: Arc<Overlay>,
    pub(super) counters: Counters,
    pub(super) in_flight: InFlight,
    /// A regular file that was opened lately, so the kernel probably knows it; 0 if there is none.
    pub(super) opened: AtomicU64,
    /// Requests come through rings and not through the device.
    pub(super) on_rings: AtomicBool,
    /// Time of mounting.
    pub(super) since: Instant,
    /// The mounting user.
    pub(super) mounter: u32,
    pub(super) door: Door,
    /// `FUSE_SETXATTR_EXT` was negotiated.
    pub(super) setxattr_ext: bool,
    /// `FUSE_NO_OPENDIR_SUPPORT` was negotiated.
    pub(super) no_opendir: bool,
}

impl Server {
    /// Answers `message` in the thread that owns `slot`. The payload of the answer is in `reply`.
    pub(super) fn answer(&self, slot: &Slot, message: Decoded<'_>, reply: &mut Reply<'_>) -> Outcome {
        reply.clear();
        let (header, arguments) = match message.and_then(|message| Header::decode(&message)) {
            Ok(decoded) => decoded,
            Err(malformed) => {
                tracing::error!(?malformed, "a request without a sound header");
                return Outcome::Silent;
            }
        };
        self.counters.count(header.opcode);
        let operation = match Operation::decode(&header, arguments, self.setxattr_ext) {
            Ok(operation) => operation,
            Err(Malformed::Arguments | Malformed::Header) => {
                tracing::error!(request = header.request(), "arguments cut off");
                return match header.opcode {
                    Some(Opcode::Forget | Opcode::BatchForget) => Outcome::Silent,
                    _ => Outcome::Reply(reply.finish(header.unique, Err(Errno::INVAL))),
                };
            }
        };
        self.in_flight.begin(slot, header.unique, header.pid);
        client::set(header.pid);
        let outcome = if self.admits(&header) { self.call(&header, &operation, reply) } else { Err(Errno::ACCESS) };
        slot.end();
        if let Err(errno) = outcome {
            self.counters.count_error(errno);
            self.log_failure(&header, &operation, errno);
        }
        tracing::trace!(
            request = header.request(),
            node = header.node.0,
            pid = header.pid,
            outcome = outcome.err().map_or(0, Errno::raw_os_error)
        );
        match operation {
            Operation::Forget(_) | Operation::BatchForget(_) | Operation::Interrupt { .. } | Operation::NotifyReply => {
                Outcome::Silent
            }
            Operation::Destroy => Outcome::Goodbye(reply.finish(header.unique, outcome)),
            _ => Outcome::Reply(reply.finish(header.unique, outcome)),
        }
    }

    /// Answers `message` without acting on it, because the mount is ending.
    pub(super) fn decline(&self, message: Decoded<'_>) -> Outcome {
        match message.and_then(|message| Header::decode(&message)) {
            Ok((
                Header {
                    opcode: Some(Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt | Opcode::NotifyReply),
                    ..
                },
                _,
            )) => Outcome::Silent,
            Ok((header, _)) => Outcome::Reply(Answer::failed(header.unique, Errno::NODEV)),
            Err(Malformed::Header | Malformed::Arguments) => Outcome::Silent,
        }
    }

    /// As in libfuse, requests that the kernel makes by itself (write-back, closing) are always admitted.
    fn admits(&self, header: &Header) -> bool {
        let Door::RootAnd(owner) = self.door else { return true };
        let is_kernels_own = matches!(
            header.opcode,
            Some(
                Opcode::Forget
                    | Opcode::BatchForget
                    | Opcode::Read
                    | Opcode::Write
                    | Opcode::Fsync
                    | Opcode::Release
                    | Opcode::ReadDir
                    | Opcode::ReadDirPlus
                    | Opcode::FsyncDir
                    | Opcode::ReleaseDir
                    | Opcode::Interrupt
                    | Opcode::NotifyReply
                    | Opcode::Destroy
            )
        );
        is_kernels_own || header.uid == 0 || header.uid == owner
    }

    /// Calls the verb. If no descriptors are left, closes the cached ones and calls it once more.
    fn call(&self, header: &Header, operation: &Operation<'_>, reply: &mut Reply<'_>) -> Result<()> {
        match self.try_call(header, operation, reply) {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.overlay.free_descriptors();
                reply.clear();
                self.try_call(header, operation, reply)
            }
            outcome => outcome,
        }
    }

    /// Calls the verb. A panic in it is a bug; it fails this request, but not the mount.
    fn try_call(&self, header: &Header, operation: &Operation<'_>, reply: &mut Reply<'_>) -> Result<()> {
        guard(header.request(), || {
            debug_assert!(!is_trapped(header.request()), "STRATAFS_TEST_PANIC names this request");
            self.perform(header, operation, reply)
        })
    }

    /// Logs the failure with the path. Failures of a disk or a limit get a higher level than a caller's vain requests.
    fn log_failure(&self, header: &Header, operation: &Operation<'_>, errno: Errno) {
        let request = header.request();
        let path = || {
            let node = self.overlay.path_of(header.node);
            operation.name().map_or_else(|| node.clone(), |name| node.join(name))
        };
        let error = std::io::Error::from(errno);
        match errno {
            Errno::IO | Errno::UCLEAN => tracing::error!(request, path = ?path(), %error, "failed"),
            Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::STALE => {
                tracing::warn!(request, path = ?path(), %error, "failed");
            }
            // Frequent: missing attributes, and requests that the kernel then handles without us.
            Errno::NODATA | Errno::NOSYS => {}
            _ => tracing::debug!(request, path = ?path(), %error, "failed"),
        }
    }

    /// Calls the verb of a request and encodes what it returns.
    #[expect(clippy::too_many_lines, reason = "an arm for each request: the compiler finds the one that is missing")]
    fn perform(&self, header: &Header, operation: &Operation<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let (overlay, node) = (&*self.overlay, header.node);
        match *operation {
            // Requests on names and inodes.
            Operation::Lookup(name) => match overlay.lookup(node, name)? {
                Some(entry) => reply.entry(&entry),
                None => reply.no_entry(),
            },
            Operation::Forget(count) => {
                overlay.forget(node, count);
                Ok(())
            }
            Operation::BatchForget(forgets) => {
                forgets.iter().for_each(|(node, count)| overlay.forget(node, count));
                Ok(())
            }
            Operation::GetAttr(handle) => {
                let (attr, validity) = overlay.getattr(node, handle)?;
                reply.attr(&attr, validity)
            }
            Operation::Statx(handle) => {
                let (attr, validity) = overlay.getattr(node, handle)?;
                reply.statx(&attr, validity)
            }
            Operation::SetAttr(handle, set) => {
                let (attr, validity) = overlay.setattr(&caller(header, 0), node, handle, &with_kill(set, header))?;
                reply.attr(&attr, validity)
            }
            Operation::ReadLink => reply.bytes(overlay.readlink(node)?.as_encoded_bytes()),
            Operation::Symlink { name, target } => {
                reply.entry(&overlay.symlink(&caller(header, 0), node, name, target)?)
            }
            Operation::Mknod(CreateArgs { name, mode, umask }, rdev) => {
                reply.entry(&overlay.mknod(&caller(header, umask), node, name, mode, rdev)?)
            }
            Operation::Mkdir(CreateArgs { name, mode, umask }) => {
                reply.entry(&overlay.mkdir(&caller(header, umask), node, name, mode)?)
            }
            Operation::Unlink(name) => overlay.unlink(node, name),
            Operation::Rmdir(name) => overlay.rmdir(node, name),
            Operation::Rename { name, to, new_name, flags } if flags & libc::RENAME_WHITEOUT != 0 => {
                overlay.rename_with_whiteout(&caller(header, 0), (node, name), (to, new_name), flags)
            }
            Operation::Rename { name, to, new_name, flags } => overlay.rename(node, name, to, new_name, flags),
            Operation::Link { node: linked, name } => reply.entry(&overlay.link(linked, node, name)?),

            // Requests on extended attributes.
            Operation::SetXattr { name, .. } | Operation::RemoveXattr(name) if is_stats(header, name) => {
                Err(Errno::PERM)
            }
            Operation::SetXattr { name, value, flags, kill_sgid } => {
                overlay.setxattr(&caller(header, 0), node, name, value, flags, kill_sgid)
            }
            Operation::GetXattr { name, size } if is_stats(header, name) && self.may_see_stats(header) => {
                let transport = if self.on_rings.load(Ordering::Relaxed) { "ring" } else { "device" };
                reply.xattr(describe(overlay, &self.counters, transport, self.since).as_bytes(), size)
            }
            Operation::GetXattr { name, size } => reply.xattr(&overlay.getxattr(node, name)?, size),
            Operation::ListXattr { size } => reply.xattr(&overlay.listxattr(node)?, size),
            Operation::RemoveXattr(name) => overlay.removexattr(node, name),

            // Requests on files.
            Operation::Open(open) => {
                self.opened.store(node.0, Ordering::Relaxed);
                reply.opened(&overlay.open_file(&caller(header, 0), node, open.flags, open.kill_suidgid)?)
            }
            Operation::Create(CreateArgs { name, mode, umask }, open) => {
                let caller = caller(header, umask);
                let (entry, opened) = overlay.create(&caller, node, name, mode, open.flags, open.kill_suidgid)?;
                self.opened.store(entry.node.0, Ordering::Relaxed);
                reply.entry(&entry)?;
                reply.opened(&opened)
            }
            Operation::TmpFile(CreateArgs { mode, umask, .. }, open) => {
                let (entry, opened) = overlay.tmpfile(&caller(header, umask), node, mode, open.flags)?;
                reply.entry(&entry)?;
                reply.opened(&opened)
            }
            Operation::Read(ReadArgs { handle, offset, size }) => {
                reply.fill(size, |buffer| overlay.read(handle, offset, buffer))
            }
            Operation::Write { handle, offset, bytes, kill_suidgid } => {
                reply.written(overlay.write(&caller(header, 0), handle, offset, bytes, kill_suidgid)?)
            }
            Operation::Release(handle) => {
                overlay.release(handle);
                Ok(())
            }
            Operation::Fsync { handle, data_only } => overlay.fsync(handle, data_only),
            Operation::Fallocate { handle, mode, offset, length } => overlay.fallocate(handle, mode, offset, length),
            Operation::Lseek { handle, offset, whence } => reply.number(overlay.lseek(handle, offset, whence)?),
            Operation::CopyFileRange(arguments) => self.copy_file_range(arguments, reply),
            Operation::Ioctl(arguments) => self.ioctl(node, arguments, reply),

            // Requests on directories. If directories need no open, the kernel sends neither OPENDIR nor RELEASEDIR
            // after one ENOSYS, but still caches listings.
            Operation::OpenDir if self.no_opendir => Err(Errno::NOSYS),
            Operation::OpenDir => reply.opened_dir(HandleId(0)),
            Operation::ReadDir(ReadArgs { offset, size, .. }) => {
                overlay.read_dir(node, offset, &mut DirReply::new(reply, size, false))
            }
            Operation::ReadDirPlus(ReadArgs { offset, size, .. }) => {
                overlay.read_dir_plus(node, offset, &mut DirReply::new(reply, size, true))
            }
            Operation::ReleaseDir => Ok(()),
            Operation::FsyncDir { data_only } => overlay.fsync_dir(node, data_only),

            // Requests on the mount.
            Operation::StatFs => reply.statfs(&overlay.statfs()?),
            Operation::SyncFs => overlay.sync(),
            Operation::Interrupt { unique } => {
                self.in_flight.interrupt(unique);
                Ok(())
            }
            Operation::NotifyReply | Operation::Destroy => Ok(()),

            // Refused on purpose: after one ENOSYS, the kernel handles them by itself (FLUSH, ACCESS, POLL), or it
            // never sends them (locks and INIT as negotiated; BMAP for block devices; DAX mappings).
            Operation::Flush | Operation::Access | Operation::Poll | Operation::Bmap | Operation::Init => {
                Err(Errno::NOSYS)
            }
            Operation::GetLk | Operation::SetLk | Operation::SetLkW => Err(Errno::NOSYS),
            Operation::SetupMapping | Operation::RemoveMapping | Operation::Unknown => Err(Errno::NOSYS),
        }
    }

    fn copy_file_range(&self, arguments: CopyArgs, reply: &mut Reply<'_>) -> Result<()> {
        let CopyArgs { from, from_offset, to, to_offset, length, wide } = arguments;
        // The count in the narrow reply has 32 bits; copying less than asked is allowed.
        let length = if wide { length } else { length.min(0x7fff_f000) };
        let copied = self.overlay.copy_file_range(from, from_offset, to, to_offset, length)?;
        if wide { reply.number(u64::try_from(copied).map_err(|_| Errno::OVERFLOW)?) } else { reply.written(copied) }
    }

    /// The ioctls that the kernel forwards after its own checks (`fuse_fileattr_get`, `fuse_fileattr_set`).
    fn ioctl(&self, node: NodeId, arguments: IoctlArgs<'_>, reply: &mut Reply<'_>) -> Result<()> {
        const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
        const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
        const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
        const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
        let IoctlArgs { command, input, room } = arguments;
        let overlay = &*self.overlay;
        match command {
            FS_IOC_GETFLAGS => reply.ioctl(&overlay.flags(node)?.to_ne_bytes(), room),
            FS_IOC_SETFLAGS => {
                let flags = input.first_chunk().ok_or(Errno::INVAL)?;
                overlay.set_flags(node, u32::from_ne_bytes(*flags))?;
                reply.ioctl(&[], room)
            }
            FS_IOC_FSGETXATTR => reply.ioctl(&overlay.extended_flags(node)?, room),
            FS_IOC_FSSETXATTR => {
                overlay.set_extended_flags(node, *input.first_chunk().ok_or(Errno::INVAL)?)?;
                reply.ioctl(&[], room)
            }
            _ => Err(Errno::NOTTY),
        }
    }

    fn may_see_stats(&self, header: &Header) -> bool {
        identity::user(header).is_some_and(|user| user == 0 || user == self.mounter)
    }
}

/// True for the attribute of the mount's root that describes the mount.
fn is_stats(header: &Header, name: &OsStr) -> bool {
    name == STATS_XATTR && header.node == NodeId::ROOT
}

/// With HANDLE_KILLPRIV_V2, the kernel's "clear the set-id bits" before a write arrives as a change of nothing
/// (`file_remove_privs()`; `fuse_setattr()` removes the mode). For a passed-through write this is the only sign; for
/// other writes the kernel would otherwise keep showing the old mode. The request does not say whether the caller
/// lacks CAP_FSETID; root has it.
fn with_kill(mut set: SetAttr, header: &Header) -> SetAttr {
    set.kill_suidgid |= changes_nothing(&set) && identity::user(header) != Some(0);
    set
}

/// Calls a verb; returns EIO if it panics.
fn guard(request: &str, call: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        // The hook has logged the panic and its place.
        tracing::error!(request, "answered with EIO after a panic");
        Err(Errno::IO)
    })
}

/// True if this request must panic, in a test of what a panic does. Called only in builds with debug assertions.
fn is_trapped(request: &str) -> bool {
    static TRAPPED: LazyLock<Option<OsString>> = LazyLock::new(|| std::env::var_os("STRATAFS_TEST_PANIC"));
    TRAPPED.as_ref().is_some_and(|name| name == request)
}

fn changes_nothing(set: &SetAttr) -> bool {
    let SetAttr { mode, uid, gid, size, atime, mtime, kill_suidgid: _ } = set;
    mode.is_none() && uid.is_none() && gid.is_none() && size.is_none() && atime.is_none() && mtime.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_is_answered_with_eio() {
        assert_eq!(guard("LOOKUP", || panic!("a bug in a verb")), Err(Errno::IO));
        assert_eq!(guard("LOOKUP", || Err(Errno::PERM)), Err(Errno::PERM));
        assert_eq!(guard("LOOKUP", || Ok(())), Ok(()));
    }
}
