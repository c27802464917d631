//! File leases, which show whether a file is open elsewhere (`fcntl(2)`, "Leases").

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// True if the file is open or mapped for writing, even through an open file without a descriptor. `file` must be
/// open for reading only.
///
/// # Errors
/// Those of `fcntl(2)`: the file system has no leases, or the file belongs to another user.
pub fn is_open_for_writing(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let set = |lease: libc::c_int| {
        // SAFETY: F_SETLEASE takes a number and touches no memory; the descriptor is open during the call.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, lease) } {
            -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
            _ => Ok(()),
        }
    };
    match set(libc::F_RDLCK) {
        Ok(()) => set(libc::F_UNLCK).map(|()| false),
        Err(Errno::AGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_writer_is_found() {
        let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let path = directory.path().join("file");
        let writer = std::fs::File::create(&path).expect("made");
        let reader = std::fs::File::open(&path).expect("opened");
        assert_eq!(is_open_for_writing(reader.as_fd()), Ok(true));
        drop(writer);
        assert_eq!(is_open_for_writing(reader.as_fd()), Ok(false));
        let second = std::fs::File::open(&path).expect("opened");
        assert_eq!(is_open_for_writing(reader.as_fd()), Ok(false), "readers do not count");
        drop(second);
    }
}
