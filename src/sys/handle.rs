//! File handles (`name_to_handle_at(2)`, `open_by_handle_at(2)`) and the UUID of a file system.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Longest handle of any file system (`MAX_HANDLE_SZ`).
const MAX_HANDLE: usize = 128;

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX_HANDLE],
}

/// A file's handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    /// Its type; only meaningful to the file system.
    pub kind: i32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Handle of `name` in `dir`, not following a symlink; of `dir` itself if `name` is empty.
///
/// # Errors
/// `OPNOTSUPP` if the file system has no handles; others of `name_to_handle_at(2)`.
pub fn name_to_handle(dir: BorrowedFd<'_>, name: &CStr) -> Result<FileHandle, Errno> {
    let mut raw = RawHandle { bytes: MAX_HANDLE as u32, kind: 0, handle: [0; MAX_HANDLE] };
    let mut mount_id: libc::c_int = 0;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: `raw` is laid out as `struct file_handle` with `bytes` of room after it; all pointers are valid for the call.
    let done = unsafe {
        libc::name_to_handle_at(
            dir.as_raw_fd(),
            name.as_ptr(),
            (&raw mut raw).cast::<libc::file_handle>(),
            &raw mut mount_id,
            flags,
        )
    };
    if done != 0 {
        return Err(last_errno());
    }
    let bytes = raw.handle.get(..raw.bytes as usize).ok_or(Errno::OVERFLOW)?.to_vec();
    Ok(FileHandle { kind: raw.kind, bytes })
}

/// Opens the file that `handle` names on the file system of `mount`, with `O_PATH`. Needs `CAP_DAC_READ_SEARCH`.
///
/// # Errors
/// `STALE` if the file no longer exists; `PERM`; others of `open_by_handle_at(2)`.
pub fn open_by_handle(mount: BorrowedFd<'_>, handle: &FileHandle) -> Result<OwnedFd, Errno> {
    let mut raw = RawHandle { bytes: handle.bytes.len() as u32, kind: handle.kind, handle: [0; MAX_HANDLE] };
    raw.handle.get_mut(..handle.bytes.len()).ok_or(Errno::INVAL)?.copy_from_slice(&handle.bytes);
    // SAFETY: `raw` is laid out as `struct file_handle` and holds the stated number of bytes.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut raw).cast::<libc::file_handle>(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// UUID of the file system that `file` is on (`FS_IOC_GETFSUUID`, Linux 6.9); `file` may not be `O_PATH`.
///
/// # Errors
/// `NOTTY` if the kernel or file system does not support it.
pub fn filesystem_uuid(file: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    /// `struct fsuuid2` of `linux/fs.h`.
    #[repr(C)]
    struct FsUuid {
        len: u8,
        uuid: [u8; 16],
    }
    /// `_IOR(0x15, 0, struct fsuuid2)`.
    const FS_IOC_GETFSUUID: libc::Ioctl = 0x8011_1500_u32 as libc::Ioctl;
    let mut uuid = FsUuid { len: 0, uuid: [0; 16] };
    // SAFETY: the request writes one `struct fsuuid2`, which `uuid` is.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut uuid) };
    match done {
        0 if uuid.len == 16 => Ok(uuid.uuid),
        0 => Err(Errno::NOTTY),
        _ => Err(last_errno()),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
