//! Extended attributes of a name in a directory, without following a symlink.
//!
//! `getxattrat(2)` and related calls exist since Linux 6.13; before that, the path `/proc/self/fd/DIR/NAME`
//! has the same effect. rustix has neither.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

/// System call numbers are the same on every architecture since 5.1.
const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

/// `struct xattr_args` of `linux/xattr.h`.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// Set after the kernel has answered ENOSYS.
static NO_XATTRAT: AtomicBool = AtomicBool::new(false);

/// The target of a call: `name` in `dir`, or `dir` itself if `name` is empty.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// A directory; or, with an empty name, any file, even one opened with `O_PATH`.
    pub dir: BorrowedFd<'a>,
    /// One path component, or empty.
    pub name: &'a CStr,
}

impl Target<'_> {
    /// Its path, for a message; only the name if the path is unknown.
    pub fn shown_path(&self) -> PathBuf {
        let link = format!("/proc/self/fd/{}", self.dir.as_raw_fd());
        let dir = rustix::fs::readlink(link, Vec::new()).map(|path| OsString::from_vec(path.into_bytes()));
        let dir = PathBuf::from(dir.unwrap_or_default());
        if self.name.is_empty() { dir } else { dir.join(OsStr::from_bytes(self.name.to_bytes())) }
    }

    /// The calls refuse an `O_PATH` descriptor; the path to it always works.
    fn needs_path(&self) -> bool {
        self.name.is_empty() || NO_XATTRAT.load(Ordering::Relaxed)
    }

    /// A path to the same file, and whether its last component must not be followed.
    fn proc_path(&self) -> (Vec<u8>, bool) {
        let mut path = format!("/proc/self/fd/{}", self.dir.as_raw_fd()).into_bytes();
        if self.name.is_empty() {
            return (path, false);
        }
        path.push(b'/');
        path.extend_from_slice(self.name.to_bytes());
        (path, true)
    }
}

/// The result of an `*xattrat` call; `None` if the kernel lacks it.
fn outcome(returned: libc::c_long) -> Option<Result<usize, Errno>> {
    if let Ok(done) = usize::try_from(returned) {
        return Some(Ok(done));
    }
    match Errno::from_io_error(&std::io::Error::last_os_error()) {
        Some(Errno::NOSYS) => {
            NO_XATTRAT.store(true, Ordering::Relaxed);
            None
        }
        errno => Some(Err(errno.unwrap_or(Errno::IO))),
    }
}

/// `getxattrat` or `setxattrat`, selected by `number`.
///
/// # Safety
/// `args` must describe memory that is valid for the call.
unsafe fn value_call(number: libc::c_long, target: Target<'_>, key: &CStr, args: &XattrArgs) -> libc::c_long {
    // SAFETY: both strings are NUL-terminated, and the caller vouches for `args`.
    unsafe {
        libc::syscall(
            number,
            target.dir.as_raw_fd(),
            target.name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            key.as_ptr(),
            std::ptr::from_ref(args),
            size_of::<XattrArgs>(),
        )
    }
}

/// Reads attribute `key` into `buffer`; returns its size in bytes.
///
/// # Errors
/// `NODATA`: no such attribute. `RANGE`: the buffer is too small. `OPNOTSUPP`: the file system has none.
pub fn get(target: Target<'_>, key: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    if !target.needs_path() {
        let args = XattrArgs { value: buffer.as_mut_ptr() as u64, size: buffer.len() as u32, flags: 0 };
        // SAFETY: `args` describes memory that outlives the call.
        let returned = unsafe { value_call(SYS_GETXATTRAT, target, key, &args) };
        if let Some(done) = outcome(returned) {
            return done;
        }
    }
    let (path, nofollow) = target.proc_path();
    if nofollow {
        rustix::fs::lgetxattr(path.as_slice(), key, buffer)
    } else {
        rustix::fs::getxattr(path.as_slice(), key, buffer)
    }
}

/// Lists attribute names into `buffer`, each ended by a NUL; returns their size in bytes.
///
/// # Errors
/// `RANGE`: the buffer is too small. `OPNOTSUPP`: the file system has none.
pub fn list(target: Target<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    if !target.needs_path() {
        // SAFETY: the name is NUL-terminated, pointer and length are `buffer`'s, and both outlive the call.
        let returned = unsafe {
            libc::syscall(
                SYS_LISTXATTRAT,
                target.dir.as_raw_fd(),
                target.name.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        if let Some(done) = outcome(returned) {
            return done;
        }
    }
    let (path, nofollow) = target.proc_path();
    if nofollow {
        rustix::fs::llistxattr(path.as_slice(), buffer)
    } else {
        rustix::fs::listxattr(path.as_slice(), buffer)
    }
}

/// Sets attribute `key`. `flags`: `XATTR_CREATE`, `XATTR_REPLACE` of `setxattr(2)`.
///
/// # Errors
/// Those of `setxattr(2)`.
pub fn set(target: Target<'_>, key: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
    if !target.needs_path() {
        let args = XattrArgs { value: value.as_ptr() as u64, size: value.len() as u32, flags };
        // SAFETY: `args` describes memory that outlives the call.
        let returned = unsafe { value_call(SYS_SETXATTRAT, target, key, &args) };
        if let Some(done) = outcome(returned) {
            return done.map(|_| ());
        }
    }
    let (path, nofollow) = target.proc_path();
    let flags = rustix::fs::XattrFlags::from_bits_retain(flags);
    if nofollow {
        rustix::fs::lsetxattr(path.as_slice(), key, value, flags)
    } else {
        rustix::fs::setxattr(path.as_slice(), key, value, flags)
    }
}

/// Removes attribute `key`.
///
/// # Errors
/// `NODATA`: no such attribute; others of `removexattr(2)`.
pub fn remove(target: Target<'_>, key: &CStr) -> Result<(), Errno> {
    if !target.needs_path() {
        // SAFETY: both strings are NUL-terminated and outlive the call.
        let returned = unsafe {
            libc::syscall(
                SYS_REMOVEXATTRAT,
                target.dir.as_raw_fd(),
                target.name.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                key.as_ptr(),
            )
        };
        if let Some(done) = outcome(returned) {
            return done.map(|_| ());
        }
    }
    let (path, nofollow) = target.proc_path();
    if nofollow {
        rustix::fs::lremovexattr(path.as_slice(), key)
    } else {
        rustix::fs::removexattr(path.as_slice(), key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn both_ways_agree() {
        let dir = tempfile::tempdir_in("/tmp").expect("a temporary directory");
        std::fs::write(dir.path().join("f"), b"x").expect("write");
        std::os::unix::fs::symlink("f", dir.path().join("l")).expect("symlink");
        let fd = std::fs::File::open(dir.path()).expect("open");
        for by_path in [false, true] {
            NO_XATTRAT.store(by_path, Ordering::Relaxed);
            let file = Target { dir: fd.as_fd(), name: c"f" };
            set(file, c"user.a", b"value", 0).expect("set");
            let mut buffer = [0; 64];
            assert_eq!(get(file, c"user.a", &mut buffer), Ok(5));
            assert_eq!(&buffer[..5], b"value");
            assert_eq!(get(file, c"user.a", &mut [0; 2]), Err(Errno::RANGE));
            let listed = list(file, &mut buffer).expect("list");
            assert!(buffer[..listed].split(|&b| b == 0).any(|n| n == b"user.a"));
            remove(file, c"user.a").expect("remove");
            assert_eq!(get(file, c"user.a", &mut buffer), Err(Errno::NODATA));
            // A symlink has no user attributes and is never followed.
            let link = Target { dir: fd.as_fd(), name: c"l" };
            assert_eq!(set(link, c"user.a", b"value", 0), Err(Errno::PERM));
        }
        NO_XATTRAT.store(false, Ordering::Relaxed);
    }
}
