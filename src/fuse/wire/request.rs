//! Requests.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::message::{Arguments, Message};
use super::opcode::Opcode;
use crate::driver::node::{NodeId, Timestamp};
use crate::driver::types::{HandleId, SetAttr, SetTime};

/// Why a request cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) enum Malformed {
    /// There is not even a header, so no reply is possible.
    Header,
    /// The arguments are cut off, or have invalid names.
    Arguments,
}

/// `struct fuse_in_header`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct Header {
    /// `None`: a request of a newer kernel.
    pub(in crate::fuse) opcode: Option<Opcode>,
    /// Identifies the request in the reply.
    pub(in crate::fuse) unique: u64,
    pub(in crate::fuse) node: NodeId,
    pub(in crate::fuse) uid: u32,
    pub(in crate::fuse) gid: u32,
    pub(in crate::fuse) pid: u32,
}

/// Arguments of `OPEN`, `CREATE` and `TMPFILE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct OpenArgs {
    /// The flags of `open(2)`.
    pub(in crate::fuse) flags: u32,
    /// The opener lacks `CAP_FSETID` and truncates.
    pub(in crate::fuse) kill_suidgid: bool,
}

/// The file to create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct CreateArgs<'a> {
    pub(in crate::fuse) name: &'a OsStr,
    /// Before the umask.
    pub(in crate::fuse) mode: u32,
    pub(in crate::fuse) umask: u32,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct CopyArgs {
    pub(in crate::fuse) from: HandleId,
    pub(in crate::fuse) from_offset: u64,
    pub(in crate::fuse) to: HandleId,
    pub(in crate::fuse) to_offset: u64,
    pub(in crate::fuse) length: u64,
    /// The reply has 64 bits for the length.
    pub(in crate::fuse) wide: bool,
}

/// Arguments of `IOCTL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct IoctlArgs<'a> {
    /// The number of the ioctl.
    pub(in crate::fuse) command: u32,
    /// Input of the ioctl.
    pub(in crate::fuse) input: &'a [u8],
    /// Number of bytes that the kernel accepts as output.
    pub(in crate::fuse) room: u32,
}

/// Arguments of `READ`, `READDIR` and `READDIRPLUS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct ReadArgs {
    pub(in crate::fuse) handle: HandleId,
    pub(in crate::fuse) offset: u64,
    pub(in crate::fuse) size: u32,
}

/// Nodes, and how often to forget each (`BATCH_FORGET`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct Forgets<'a>(&'a [[u8; 16]]);

impl Forgets<'_> {
    pub(in crate::fuse) fn iter(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.0.iter().filter_map(|one| {
            let mut fields = Fields(Arguments::whole(one));
            Some((NodeId(fields.u64().ok()?), fields.u64().ok()?))
        })
    }
}

/// A request with its arguments; refused kinds have none.
#[derive(Clone, Copy, Debug)]
pub(in crate::fuse) enum Operation<'a> {
    Lookup(&'a OsStr),
    Forget(u64),
    BatchForget(Forgets<'a>),
    GetAttr(Option<HandleId>),
    Statx(Option<HandleId>),
    SetAttr(Option<HandleId>, SetAttr),
    ReadLink,
    Symlink {
        name: &'a OsStr,
        target: &'a OsStr,
    },
    Mknod(CreateArgs<'a>, (u32, u32)),
    Mkdir(CreateArgs<'a>),
    Unlink(&'a OsStr),
    Rmdir(&'a OsStr),
    Rename {
        name: &'a OsStr,
        to: NodeId,
        new_name: &'a OsStr,
        flags: u32,
    },
    Link {
        node: NodeId,
        name: &'a OsStr,
    },
    Open(OpenArgs),
    Create(CreateArgs<'a>, OpenArgs),
    TmpFile(CreateArgs<'a>, OpenArgs),
    Read(ReadArgs),
    Write {
        handle: HandleId,
        offset: u64,
        bytes: &'a [u8],
        kill_suidgid: bool,
    },
    StatFs,
    Release(HandleId),
    Fsync {
        handle: HandleId,
        data_only: bool,
    },
    SetXattr {
        name: &'a OsStr,
        value: &'a [u8],
        flags: u32,
        kill_sgid: bool,
    },
    GetXattr {
        name: &'a OsStr,
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr(&'a OsStr),
    OpenDir,
    ReadDir(ReadArgs),
    ReadDirPlus(ReadArgs),
    ReleaseDir,
    FsyncDir {
        data_only: bool,
    },
    Fallocate {
        handle: HandleId,
        mode: u32,
        offset: u64,
        length: u64,
    },
    Lseek {
        handle: HandleId,
        offset: u64,
        whence: u32,
    },
    CopyFileRange(CopyArgs),
    SyncFs,
    Ioctl(IoctlArgs<'a>),
    /// The process that made another request received a signal.
    Interrupt {
        unique: u64,
    },
    Destroy,
    NotifyReply,
    Flush,
    Init,
    GetLk,
    SetLk,
    SetLkW,
    Access,
    Bmap,
    Poll,
    SetupMapping,
    RemoveMapping,
    /// A request of a newer kernel.
    Unknown,
}

impl Operation<'_> {
    /// The name in the request's directory, if it has one.
    pub(in crate::fuse) fn name(&self) -> Option<&OsStr> {
        match self {
            Self::Lookup(name) | Self::Unlink(name) | Self::Rmdir(name) => Some(name),
            Self::Symlink { name, .. } | Self::Rename { name, .. } | Self::Link { name, .. } => Some(name),
            Self::Mknod(new, _) | Self::Mkdir(new) | Self::Create(new, _) => Some(new.name),
            _ => None,
        }
    }
}

impl Header {
    /// The name of the request in the log.
    pub(in crate::fuse) fn request(&self) -> &'static str {
        self.opcode.map_or("other", Opcode::name)
    }

    /// Decodes the header of `message`; returns it and the arguments, which are not decoded yet.
    pub(in crate::fuse) fn decode<'a>(message: &Message<'a>) -> Result<(Self, Arguments<'a>), Malformed> {
        let mut fields = Fields(Arguments::whole(message.header));
        let mut header = || {
            fields.u32()?;
            Ok(Self {
                opcode: Opcode::of(fields.u32()?),
                unique: fields.u64()?,
                node: NodeId(fields.u64()?),
                uid: fields.u32()?,
                gid: fields.u32()?,
                pid: fields.u32()?,
            })
        };
        let header = header().map_err(|_: Malformed| Malformed::Header)?;
        Ok((header, message.arguments))
    }
}

impl<'a> Operation<'a> {
    /// Decodes the arguments of a request. `setxattr_ext` is true if `FUSE_SETXATTR_EXT` was negotiated.
    pub(in crate::fuse) fn decode(
        header: &Header,
        arguments: Arguments<'a>,
        setxattr_ext: bool,
    ) -> Result<Self, Malformed> {
        let mut fields = Fields(arguments);
        let Some(opcode) = header.opcode else { return Ok(Self::Unknown) };
        Ok(match opcode {
            Opcode::Lookup => Self::Lookup(fields.name()?),
            Opcode::Forget => Self::Forget(fields.u64()?),
            Opcode::BatchForget => fields.forgets()?,
            Opcode::GetAttr => Self::GetAttr(fields.optional_handle()?),
            Opcode::SetAttr => fields.set_attr()?,
            Opcode::Statx => Self::Statx(fields.optional_handle()?),
            Opcode::ReadLink => Self::ReadLink,
            Opcode::Symlink => Self::Symlink { name: fields.name()?, target: fields.name()? },
            Opcode::Mknod => fields.mknod()?,
            Opcode::Mkdir => fields.mkdir()?,
            Opcode::Unlink => Self::Unlink(fields.name()?),
            Opcode::Rmdir => Self::Rmdir(fields.name()?),
            Opcode::Rename => fields.rename(false)?,
            Opcode::Rename2 => fields.rename(true)?,
            Opcode::Link => Self::Link { node: fields.node()?, name: fields.name()? },
            Opcode::SetXattr => fields.set_xattr(setxattr_ext)?,
            Opcode::GetXattr => fields.get_xattr()?,
            Opcode::ListXattr => Self::ListXattr { size: fields.u32()? },
            Opcode::RemoveXattr => Self::RemoveXattr(fields.name()?),
            Opcode::Open => Self::Open(fields.open()?),
            Opcode::Create => fields.create().map(|(create, open)| Self::Create(create, open))?,
            Opcode::TmpFile => fields.create().map(|(create, open)| Self::TmpFile(create, open))?,
            Opcode::Read => Self::Read(fields.read()?),
            Opcode::Write => fields.write()?,
            Opcode::Release => Self::Release(fields.handle()?),
            Opcode::Fsync => Self::Fsync { handle: fields.handle()?, data_only: fields.data_only()? },
            Opcode::Fallocate => fields.fallocate()?,
            Opcode::Lseek => Self::Lseek { handle: fields.handle()?, offset: fields.u64()?, whence: fields.u32()? },
            Opcode::CopyFileRange => fields.copy_file_range(false)?,
            Opcode::CopyFileRange64 => fields.copy_file_range(true)?,
            Opcode::OpenDir => Self::OpenDir,
            Opcode::ReadDir => Self::ReadDir(fields.read()?),
            Opcode::ReadDirPlus => Self::ReadDirPlus(fields.read()?),
            // Directories have no handles.
            Opcode::ReleaseDir => fields.handle().map(|_none| Self::ReleaseDir)?,
            Opcode::FsyncDir => fields.handle().and_then(|_none| fields.data_only().map(Self::fsync_dir))?,
            Opcode::StatFs => Self::StatFs,
            Opcode::SyncFs => Self::SyncFs,
            Opcode::Ioctl => Self::Ioctl(fields.ioctl()?),
            Opcode::Interrupt => Self::Interrupt { unique: fields.u64()? },
            Opcode::Destroy => Self::Destroy,
            Opcode::NotifyReply => Self::NotifyReply,
            Opcode::Flush => Self::Flush,
            Opcode::Init => Self::Init,
            Opcode::GetLk => Self::GetLk,
            Opcode::SetLk => Self::SetLk,
            Opcode::SetLkW => Self::SetLkW,
            Opcode::Access => Self::Access,
            Opcode::Bmap => Self::Bmap,
            Opcode::Poll => Self::Poll,
            Opcode::SetupMapping => Self::SetupMapping,
            Opcode::RemoveMapping => Self::RemoveMapping,
        })
    }

    fn fsync_dir(data_only: bool) -> Self {
        Self::FsyncDir { data_only }
    }
}

const GETATTR_FH: u32 = 1 << 0;
const WRITE_KILL_SUIDGID: u32 = 1 << 2;
const OPEN_KILL_SUIDGID: u32 = 1 << 0;
const FSYNC_FDATASYNC: u32 = 1 << 0;
const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;

/// `FATTR_*`
mod fattr {
    pub(super) const MODE: u32 = 1 << 0;
    pub(super) const UID: u32 = 1 << 1;
    pub(super) const GID: u32 = 1 << 2;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ATIME: u32 = 1 << 4;
    pub(super) const MTIME: u32 = 1 << 5;
    pub(super) const FH: u32 = 1 << 6;
    pub(super) const ATIME_NOW: u32 = 1 << 7;
    pub(super) const MTIME_NOW: u32 = 1 << 8;
    pub(super) const KILL_SUIDGID: u32 = 1 << 11;
}

/// The undecoded rest of a request.
struct Fields<'a>(Arguments<'a>);

impl<'a> Fields<'a> {
    /// The next bytes: the payload once the structure is used up. No field spans both.
    fn rest(&mut self) -> &mut &'a [u8] {
        let Arguments { structure, payload } = &mut self.0;
        if structure.is_empty() { payload } else { structure }
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let rest = self.rest();
        let (taken, after) = rest.split_at_checked(count).ok_or(Malformed::Arguments)?;
        *rest = after;
        Ok(taken)
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let rest = self.rest();
        let (taken, after) = rest.split_first_chunk().ok_or(Malformed::Arguments)?;
        *rest = after;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.chunk().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.chunk().map(u64::from_ne_bytes)
    }

    fn handle(&mut self) -> Result<HandleId, Malformed> {
        self.u64().map(HandleId)
    }

    fn node(&mut self) -> Result<NodeId, Malformed> {
        self.u64().map(NodeId)
    }

    /// The bytes up to a NUL.
    fn name(&mut self) -> Result<&'a OsStr, Malformed> {
        let end = self.rest().iter().position(|&byte| byte == 0).ok_or(Malformed::Arguments)?;
        let name = self.bytes(end)?;
        self.bytes(1)?;
        Ok(OsStr::from_bytes(name))
    }

    fn mknod(&mut self) -> Result<Operation<'a>, Malformed> {
        let (mode, rdev, umask, _padding) = (self.u32()?, self.u32()?, self.u32()?, self.u32()?);
        Ok(Operation::Mknod(CreateArgs { name: self.name()?, mode, umask }, decode_device(rdev)))
    }

    fn mkdir(&mut self) -> Result<Operation<'a>, Malformed> {
        let (mode, umask) = (self.u32()?, self.u32()?);
        Ok(Operation::Mkdir(CreateArgs { name: self.name()?, mode, umask }))
    }

    fn rename(&mut self, with_flags: bool) -> Result<Operation<'a>, Malformed> {
        let to = self.node()?;
        let flags = if with_flags { (self.u32()?, self.u32()?).0 } else { 0 };
        Ok(Operation::Rename { to, name: self.name()?, new_name: self.name()?, flags })
    }

    fn set_xattr(&mut self, extended: bool) -> Result<Operation<'a>, Malformed> {
        let (size, flags) = (self.u32()?, self.u32()?);
        let more = if extended { (self.u32()?, self.u32()?).0 } else { 0 };
        let name = self.name()?;
        let value = self.bytes(usize::try_from(size).map_err(|_| Malformed::Arguments)?)?;
        Ok(Operation::SetXattr { name, value, flags, kill_sgid: more & SETXATTR_ACL_KILL_SGID != 0 })
    }

    fn get_xattr(&mut self) -> Result<Operation<'a>, Malformed> {
        let (size, _padding) = (self.u32()?, self.u32()?);
        Ok(Operation::GetXattr { size, name: self.name()? })
    }

    fn open(&mut self) -> Result<OpenArgs, Malformed> {
        Ok(OpenArgs { flags: self.u32()?, kill_suidgid: self.u32()? & OPEN_KILL_SUIDGID != 0 })
    }

    fn data_only(&mut self) -> Result<bool, Malformed> {
        Ok(self.u32()? & FSYNC_FDATASYNC != 0)
    }

    fn fallocate(&mut self) -> Result<Operation<'a>, Malformed> {
        let (handle, offset, length) = (self.handle()?, self.u64()?, self.u64()?);
        Ok(Operation::Fallocate { handle, offset, length, mode: self.u32()? })
    }

    /// `struct fuse_ioctl_in`, then the input.
    fn ioctl(&mut self) -> Result<IoctlArgs<'a>, Malformed> {
        let (_handle, _flags, command) = (self.handle()?, self.u32()?, self.u32()?);
        let (_pointer, size, room) = (self.u64()?, self.u32()?, self.u32()?);
        Ok(IoctlArgs { command, room, input: self.bytes(usize::try_from(size).map_err(|_| Malformed::Arguments)?)? })
    }

    fn forgets(&mut self) -> Result<Operation<'a>, Malformed> {
        let (count, _padding) = (self.u32()?, self.u32()?);
        let size = usize::try_from(count).ok().and_then(|count| count.checked_mul(16)).ok_or(Malformed::Arguments)?;
        let (entries, _) = self.bytes(size)?.as_chunks();
        Ok(Operation::BatchForget(Forgets(entries)))
    }

    /// `struct fuse_getattr_in`; `struct fuse_statx_in` begins alike.
    fn optional_handle(&mut self) -> Result<Option<HandleId>, Malformed> {
        let (flags, _padding, handle) = (self.u32()?, self.u32()?, self.handle()?);
        Ok((flags & GETATTR_FH != 0).then_some(handle))
    }

    fn set_attr(&mut self) -> Result<Operation<'a>, Malformed> {
        let (valid, _padding, handle, size, _lock_owner) =
            (self.u32()?, self.u32()?, self.handle()?, self.u64()?, self.u64()?);
        let (atime, mtime, _ctime) = (self.u64()?, self.u64()?, self.u64()?);
        let (atime_nsec, mtime_nsec, _ctime_nsec) = (self.u32()?, self.u32()?, self.u32()?);
        let (mode, _unused, uid, gid, _unused_too) = (self.u32()?, self.u32()?, self.u32()?, self.u32()?, self.u32()?);
        let has = |bit: u32| valid & bit != 0;
        let time = |set: u32, now: u32, sec: u64, nsec: u32| {
            has(set).then(|| {
                let at = Timestamp { sec: sec.cast_signed(), nsec };
                if has(now) { SetTime::Now } else { SetTime::At(at) }
            })
        };
        let set = SetAttr {
            mode: has(fattr::MODE).then_some(mode & 0o7777),
            uid: has(fattr::UID).then_some(uid),
            gid: has(fattr::GID).then_some(gid),
            size: has(fattr::SIZE).then_some(size),
            atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nsec),
            mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nsec),
            kill_suidgid: has(fattr::KILL_SUIDGID),
        };
        Ok(Operation::SetAttr(has(fattr::FH).then_some(handle), set))
    }

    fn create(&mut self) -> Result<(CreateArgs<'a>, OpenArgs), Malformed> {
        let (flags, mode, umask, open_flags) = (self.u32()?, self.u32()?, self.u32()?, self.u32()?);
        let open = OpenArgs { flags, kill_suidgid: open_flags & OPEN_KILL_SUIDGID != 0 };
        Ok((CreateArgs { name: self.name()?, mode, umask }, open))
    }

    fn read(&mut self) -> Result<ReadArgs, Malformed> {
        Ok(ReadArgs { handle: self.handle()?, offset: self.u64()?, size: self.u32()? })
    }

    fn write(&mut self) -> Result<Operation<'a>, Malformed> {
        let (handle, offset, size, flags) = (self.handle()?, self.u64()?, self.u32()?, self.u32()?);
        let (_lock_owner, _open_flags, _padding) = (self.u64()?, self.u32()?, self.u32()?);
        let bytes = self.bytes(usize::try_from(size).map_err(|_| Malformed::Arguments)?)?;
        Ok(Operation::Write { handle, offset, bytes, kill_suidgid: flags & WRITE_KILL_SUIDGID != 0 })
    }

    fn copy_file_range(&mut self, wide: bool) -> Result<Operation<'a>, Malformed> {
        let (from, from_offset, _to_node) = (self.handle()?, self.u64()?, self.u64()?);
        let (to, to_offset, length) = (self.handle()?, self.u64()?, self.u64()?);
        Ok(Operation::CopyFileRange(CopyArgs { from, from_offset, to, to_offset, length, wide }))
    }
}

/// The kernel's `new_decode_dev()`.
fn decode_device(rdev: u32) -> (u32, u32) {
    ((rdev & 0xf_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}
