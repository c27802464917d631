//! Names of more extended attributes than `listxattr(2)` can list, by the `ioctl`s of xfs and btrfs. Both need `CAP_SYS_ADMIN`.

use std::ffi::{CStr, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::null_mut;

use rustix::fs::{Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::sys::xattr::Target;

/// Size of the buffer for one call, in bytes; the most that xfs takes.
const BUFFER: usize = 65536;

/// Names of all attributes of the regular file or directory `target`, each ended by a NUL.
///
/// # Errors
/// `NOTTY` for other types of files, for a file without a name, and on other file systems, or another error of `ioctl(2)`.
/// `PERM` without `CAP_SYS_ADMIN`.
pub fn names(target: Target<'_>) -> Result<Vec<u8>, Errno> {
    // The directory may be held with `O_PATH`.
    let dir =
        rustix::fs::openat(target.dir, c".", READING.union(OFlags::DIRECTORY), Mode::empty()).map_err(not_a_dir)?;
    if target.name.is_empty() {
        return names_of(dir.as_fd(), dir.as_fd());
    }
    // Opening a device may have effects.
    let held = rustix::fs::openat(&dir, target.name, READING.union(OFlags::PATH), Mode::empty())?;
    if !matches!(rustix::fs::fstat(&held)?.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
        return Err(Errno::NOTTY);
    }
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let file = rustix::fs::open(path, READING.difference(OFlags::NOFOLLOW), Mode::empty())?;
    names_of(dir.as_fd(), file.as_fd())
}

const READING: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn not_a_dir(errno: Errno) -> Errno {
    if errno == Errno::NOTDIR { Errno::NOTTY } else { errno }
}

/// As [`names`], of `file`, which is `dir` or in it.
fn names_of(dir: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    match rustix::fs::fstatfs(file)?.f_type as u64 {
        xfs::MAGIC => xfs::names(dir, file),
        btrfs::MAGIC => btrfs::names(file),
        _ => Err(Errno::NOTTY),
    }
}

fn outcome(returned: libc::c_int) -> Result<(), Errno> {
    if returned == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// The number at `at` in `bytes`, in the byte order of the machine.
fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(field.try_into().ok()?))
}

/// `ioctl_xfs_attrlist_by_handle(2)` and `ioctl_xfs_getfh` (`XFS_IOC_FD_TO_HANDLE`).
mod xfs {
    use super::*;

    pub(super) const MAGIC: u64 = 0x5846_5342;

    /// `struct xfs_fsop_handlereq`
    #[repr(C)]
    struct HandleRequest {
        fd: u32,
        path: *mut c_void,
        oflags: u32,
        in_handle: *mut c_void,
        in_length: u32,
        out_handle: *mut c_void,
        out_length: *mut u32,
    }

    /// `struct xfs_fsop_attrlist_handlereq`
    #[repr(C)]
    struct ListRequest {
        handle: HandleRequest,
        cursor: [u32; 4],
        flags: u32,
        length: u32,
        buffer: *mut u8,
    }

    /// `struct xfs_handle`
    type Handle = [u64; 3];

    /// `_IOWR('X', 106, struct xfs_fsop_handlereq)`
    const FD_TO_HANDLE: libc::Ioctl = (0xc000_586a_u32 | (size_of::<HandleRequest>() as u32) << 16) as libc::Ioctl;
    /// `_IOW('X', 122, struct xfs_fsop_attrlist_handlereq)`
    const ATTRLIST_BY_HANDLE: libc::Ioctl = (0x4000_587a_u32 | (size_of::<ListRequest>() as u32) << 16) as libc::Ioctl;

    /// Each name space is listed by itself: its flag, and the prefix of its names.
    const NAMESPACES: [(u32, &[u8]); 3] = [(0, b"user."), (0x2, b"trusted."), (0x8, b"security.")];

    /// ACLs are stored in attributes of these names; `listxattr(2)` shows both names.
    const ACLS: [(&[u8], &[u8]); 2] = [
        (b"trusted.SGI_ACL_FILE", b"system.posix_acl_access"),
        (b"trusted.SGI_ACL_DEFAULT", b"system.posix_acl_default"),
    ];

    /// xfs takes handles only together with a directory of the same file system.
    pub(super) fn names(dir: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        let mut handle = handle_of(file)?;
        let mut names = Vec::new();
        for (flags, prefix) in NAMESPACES {
            let mut cursor = [0; 4];
            loop {
                // Of u32, because the kernel stores numbers of that size in it.
                let mut buffer = vec![0_u32; BUFFER / 4];
                let mut request = ListRequest {
                    handle: HandleRequest {
                        in_handle: handle.as_mut_ptr().cast(),
                        in_length: size_of::<Handle>() as u32,
                        ..empty_request()
                    },
                    cursor,
                    flags,
                    length: BUFFER as u32,
                    buffer: buffer.as_mut_ptr().cast(),
                };
                // SAFETY: the kernel reads `request` and the handle, and writes to its cursor and at most `length` bytes to
                // `buffer`. All of them outlive the call.
                outcome(unsafe { libc::ioctl(dir.as_raw_fd(), ATTRLIST_BY_HANDLE, &raw mut request) })?;
                let listed: Vec<u8> = buffer.iter().flat_map(|number| number.to_ne_bytes()).collect();
                if !append(&listed, prefix, &mut names).ok_or(Errno::IO)? {
                    break;
                }
                cursor = request.cursor;
            }
        }
        Ok(names)
    }

    fn empty_request() -> HandleRequest {
        HandleRequest {
            fd: 0,
            path: null_mut(),
            oflags: 0,
            in_handle: null_mut(),
            in_length: 0,
            out_handle: null_mut(),
            out_length: null_mut(),
        }
    }

    fn handle_of(file: BorrowedFd<'_>) -> Result<Handle, Errno> {
        let (mut handle, mut length) = ([0; 3], size_of::<Handle>() as u32);
        let mut request = HandleRequest {
            fd: file.as_raw_fd() as u32,
            out_handle: handle.as_mut_ptr().cast(),
            out_length: &raw mut length,
            ..empty_request()
        };
        // SAFETY: the kernel reads `request`, and writes one `struct xfs_handle` and its length. All of them outlive the call.
        outcome(unsafe { libc::ioctl(file.as_raw_fd(), FD_TO_HANDLE, &raw mut request) })?;
        Ok(handle)
    }

    /// Appends the names of one `struct xfs_attrlist` to `names`. Returns true if more follow; `None` if it is malformed.
    pub(super) fn append(listed: &[u8], prefix: &[u8], names: &mut Vec<u8>) -> Option<bool> {
        let (count, more) = (number(listed, 0)?, number(listed, 4)?);
        for at in 0..count as usize {
            // A `struct xfs_attrlist_ent`: the length of the value, then the name with a NUL.
            let entry = number(listed, 8 + 4 * at)? as usize;
            let name = CStr::from_bytes_until_nul(listed.get(entry.checked_add(4)?..)?).ok()?;
            let full = [prefix, name.to_bytes()].concat();
            for (stored, shown) in ACLS {
                if full == stored {
                    names.extend_from_slice(shown);
                    names.push(0);
                }
            }
            names.extend_from_slice(&full);
            names.push(0);
        }
        Some(more != 0 && count != 0)
    }
}

/// `BTRFS_IOC_TREE_SEARCH_V2`.
mod btrfs {
    use super::*;

    pub(super) const MAGIC: u64 = 0x9123_683e;

    /// `struct btrfs_ioctl_search_key`
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Key {
        tree: u64,
        min_object: u64,
        max_object: u64,
        min_offset: u64,
        max_offset: u64,
        min_transaction: u64,
        max_transaction: u64,
        min_type: u32,
        max_type: u32,
        items: u32,
        unused: [u32; 9],
    }

    /// `struct btrfs_ioctl_search_args_v2`
    #[repr(C)]
    struct Search {
        key: Key,
        size: u64,
        buffer: [u8; BUFFER],
    }

    /// `_IOWR(0x94, 17, struct btrfs_ioctl_search_args_v2)`, without the buffer.
    const TREE_SEARCH_V2: libc::Ioctl = 0xc070_9411_u32 as libc::Ioctl;
    /// `BTRFS_XATTR_ITEM_KEY`
    const XATTR_ITEM: u32 = 24;
    /// Size of `struct btrfs_ioctl_search_header`: transaction, object, offset, type, length.
    const HEADER: usize = 32;
    /// Size of `struct btrfs_dir_item`; its name and value follow.
    const ITEM: usize = 30;

    pub(super) fn names(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        let inode = rustix::fs::statx(file, c"", rustix::fs::AtFlags::EMPTY_PATH, StatxFlags::INO)?.stx_ino;
        let mut names = Vec::new();
        let key = Key {
            min_object: inode,
            max_object: inode,
            max_offset: u64::MAX,
            max_transaction: u64::MAX,
            min_type: XATTR_ITEM,
            max_type: XATTR_ITEM,
            ..Key::default()
        };
        let mut search = Box::new(Search { key, size: BUFFER as u64, buffer: [0; BUFFER] });
        loop {
            search.key.items = u32::MAX;
            // SAFETY: the kernel reads and writes the key, and writes at most `size` bytes to the buffer that follows.
            outcome(unsafe { libc::ioctl(file.as_raw_fd(), TREE_SEARCH_V2, &raw mut *search) })?;
            let Some(last) = append(&search.buffer, search.key.items, &mut names).ok_or(Errno::IO)? else { break };
            let Some(next) = last.checked_add(1) else { break };
            search.key.min_offset = next;
        }
        Ok(names)
    }

    /// Appends the names in the first `items` found items to `names`. Returns the offset of the last item, if there is one;
    /// `None` if an item is malformed.
    #[expect(clippy::option_option, reason = "the outer one is for malformed items")]
    pub(super) fn append(found: &[u8], items: u32, names: &mut Vec<u8>) -> Option<Option<u64>> {
        let (mut rest, mut last) = (found, None);
        for _ in 0..items {
            let header = rest.get(..HEADER)?;
            last = Some(u64::from_ne_bytes(header.get(16..24)?.try_into().ok()?));
            let length = number(header, 28)? as usize;
            rest = rest.get(HEADER..)?;
            let mut item = rest.get(..length)?;
            // Attributes whose names have the same hash are in one item.
            while !item.is_empty() {
                let short = |at: usize| Some(usize::from(u16::from_le_bytes(item.get(at..at + 2)?.try_into().ok()?)));
                let (value_length, name_length) = (short(25)?, short(27)?);
                names.extend_from_slice(item.get(ITEM..ITEM + name_length)?);
                names.push(0);
                item = item.get(ITEM + name_length + value_length..)?;
            }
            rest = rest.get(length..)?;
        }
        Some(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_xfs() {
        let mut listed = Vec::new();
        for number in [2_u32, 1, 16, 24] {
            listed.extend_from_slice(&number.to_ne_bytes());
        }
        listed.extend_from_slice(b"\x01\0\0\0one\0\x02\0\0\0SGI_ACL_FILE\0");
        let mut names = Vec::new();
        assert_eq!(xfs::append(&listed, b"user.", &mut names), Some(true));
        assert_eq!(names, b"user.one\0user.SGI_ACL_FILE\0");
        names.clear();
        assert_eq!(xfs::append(&listed, b"trusted.", &mut names), Some(true));
        assert_eq!(names, b"trusted.one\0system.posix_acl_access\0trusted.SGI_ACL_FILE\0");
        for length in 0..listed.len() {
            assert_eq!(xfs::append(&listed[..length], b"user.", &mut Vec::new()), None, "{length}");
        }
    }

    #[test]
    fn items_of_btrfs() {
        let mut item = Vec::new();
        for (name, value) in [(&b"user.a"[..], &b"v"[..]), (b"trusted.bc", b"")] {
            item.extend_from_slice(&[0; 25]);
            item.extend_from_slice(&(value.len() as u16).to_le_bytes());
            item.extend_from_slice(&(name.len() as u16).to_le_bytes());
            item.push(8);
            item.extend_from_slice(name);
            item.extend_from_slice(value);
        }
        let mut found = Vec::new();
        for number in [1_u64, 257, 77] {
            found.extend_from_slice(&number.to_ne_bytes());
        }
        found.extend_from_slice(&24_u32.to_ne_bytes());
        found.extend_from_slice(&(item.len() as u32).to_ne_bytes());
        found.extend_from_slice(&item);
        let mut names = Vec::new();
        assert_eq!(btrfs::append(&found, 1, &mut names), Some(Some(77)));
        assert_eq!(names, b"user.a\0trusted.bc\0");
        assert_eq!(btrfs::append(&found, 0, &mut names), Some(None));
        for length in 0..found.len() {
            assert_eq!(btrfs::append(&found[..length], 1, &mut Vec::new()), None, "{length}");
        }
    }
}
