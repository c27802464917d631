//! Files mapped for reading. If a page cannot be read (the disk fails, or the file is truncated), the kernel sends
//! SIGBUS, which would end the process. Instead, such pages read as zeros, and the mapping reports that it is broken.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use rustix::io::Errno;

/// A file's bytes, mapped for reading. Its pages belong to the page cache, not to the process.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
    region: &'static Region,
}

// SAFETY: the memory is only read, and exists until the value is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// The address range of a mapping, for the signal handler. Never freed but reused, because the handler may read it at any time.
#[derive(Debug)]
struct Region {
    /// 0 if it is free.
    start: AtomicUsize,
    end: AtomicUsize,
    broken: AtomicBool,
    next: AtomicPtr<Region>,
}

/// The first of all regions.
static REGIONS: AtomicPtr<Region> = AtomicPtr::new(null_mut());

/// The previous handler of SIGBUS; set once ours is installed.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

impl Mapping {
    /// Maps the first `length` bytes of `file`.
    ///
    /// The bytes are returned as a slice, so they must not change while it is used. So the file must be regular, must
    /// belong to root or to this process's user, and must not be writable by others. Root and this user could write to
    /// this process's memory anyway; no one else can change the slice. If the file is truncated, by anyone, the
    /// missing part reads as zeros ([`Self::is_broken`]).
    ///
    /// # Errors
    /// `PERM` if the file does not meet these conditions. `INVAL` for a length of 0. Others of `fstat(2)` and `mmap(2)`.
    pub fn new(file: BorrowedFd<'_>, length: usize) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(file)?;
        let is_regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        let is_trusted = [0, rustix::process::geteuid().as_raw()].contains(&stat.st_uid);
        if !is_regular || !is_trusted || stat.st_mode & 0o022 != 0 {
            return Err(Errno::PERM);
        }
        catch_faults();
        // SAFETY: asks for a new mapping at an address that the kernel chooses.
        let start = unsafe { libc::mmap(null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::INVAL)?;
        let region = Region::claim(start.as_ptr() as usize, length);
        Ok(Self { start, length, region })
    }

    /// The bytes. Call [`Self::is_broken`] after using them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has that length and exists as long as `self`; only users who may write to this process's memory
        // could write to the file (see `new`).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// Releases the pages that were used: they stay in the page cache, but no longer count as the process's memory.
    pub fn release(&self) {
        // SAFETY: address and length are those of the mapping. The file is only read, so nothing is lost: a page that
        // is used again is read from the file.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.length, libc::MADV_DONTNEED) };
    }

    /// True if a part of the file could not be read and was replaced by zeros.
    pub fn is_broken(&self) -> bool {
        self.region.broken.load(Ordering::Acquire)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // This must come first: once the memory is free, another mapping of the process may be there, whose faults are not ours.
        self.region.start.store(0, Ordering::Release);
        debug_assert!(Region::of(self.start.as_ptr() as usize).is_none(), "released before it is unmapped");
        // SAFETY: address and length are those of the mapping, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

impl Region {
    fn claim(start: usize, length: usize) -> &'static Self {
        let mut at = REGIONS.load(Ordering::Acquire);
        // SAFETY: regions are never freed, so every pointer in the list is valid.
        while let Some(region) = unsafe { at.as_ref() } {
            if region.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                region.broken.store(false, Ordering::Release);
                region.end.store(start + length, Ordering::Release);
                region.start.store(start, Ordering::Release);
                return region;
            }
            at = region.next.load(Ordering::Acquire);
        }
        let region: &'static Self = Box::leak(Box::new(Self {
            start: AtomicUsize::new(start),
            end: AtomicUsize::new(start + length),
            broken: AtomicBool::new(false),
            next: AtomicPtr::new(null_mut()),
        }));
        let mut first = REGIONS.load(Ordering::Acquire);
        loop {
            region.next.store(first, Ordering::Release);
            let new = std::ptr::from_ref(region).cast_mut();
            match REGIONS.compare_exchange(first, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return region,
                Err(other) => first = other,
            }
        }
    }

    /// The region that contains `address`. Called by the signal handler: takes no locks and allocates nothing.
    fn of(address: usize) -> Option<&'static Self> {
        let mut at = REGIONS.load(Ordering::Acquire);
        // SAFETY: regions are never freed.
        while let Some(region) = unsafe { at.as_ref() } {
            let start = region.start.load(Ordering::Acquire);
            // 1 means that it is being claimed, and its end is still the former one.
            let range = start..region.end.load(Ordering::Acquire);
            // Checked again: the region may have been released and claimed for another mapping in between.
            if start > 1 && range.contains(&address) && region.start.load(Ordering::Acquire) == start {
                return Some(region);
            }
            at = region.next.load(Ordering::Acquire);
        }
        None
    }
}

/// Installs the handler, once.
fn catch_faults() {
    BEFORE.get_or_init(|| {
        // SAFETY: all-zero is a valid `sigaction`; the handler is async-signal-safe (see there).
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = on_fault as extern "C" fn(_, _, _) as libc::sighandler_t;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut ours.sa_mask);
            libc::sigaction(libc::SIGBUS, &raw const ours, &raw mut before);
            before
        }
    });
}

/// Replaces the faulting page by zeros if it is in one of our mappings; otherwise defers to the previous handler.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the location of the calling thread's errno. The interrupted code may be about to read it.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel gives a valid `siginfo_t` for SIGBUS. Only atomics and system calls are used below.
    let address = unsafe { (*info).si_addr() } as usize;
    match Region::of(address) {
        Some(region) if replace_page(address) => region.broken.store(true, Ordering::Release),
        _ => defer(signal, info, context),
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Replaces the page with `address`, which is in one of our mappings, by zeros.
fn replace_page(address: usize) -> bool {
    // SAFETY: the page lies in one of our mappings, which is only read, so replacing it by zeros loses nothing. Both
    // calls are async-signal-safe.
    unsafe {
        let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
        let at = (address & !(page - 1)) as *mut libc::c_void;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        libc::mmap(at, page, libc::PROT_READ, flags, -1, 0) != libc::MAP_FAILED
    }
}

/// Does what the process did with SIGBUS before: calls that handler, or lets the instruction fault again with the default action.
fn defer(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: all-zero is a valid `sigaction`, the default action; it is used if the handler ran before `BEFORE` was set. A
    // handler returned by `sigaction` has the signature that its flags say.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        let before = BEFORE.get().unwrap_or(&default);
        match before.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::sigaction(signal, &raw const default, null_mut());
            }
            handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
            handler => {
                let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    /// A file that is not writable by others, whatever umask another test of this process has set.
    fn file_of_ours() -> std::fs::File {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::tempfile_in("/tmp").expect("a file");
        file.set_permissions(std::fs::Permissions::from_mode(0o600)).expect("mode");
        file
    }

    #[test]
    fn what_is_cut_off_reads_as_zeros_and_says_so() {
        let mut file = file_of_ours();
        file.write_all(&[7; 20_000]).expect("written");
        let map = Mapping::new(file.as_fd(), 20_000).expect("mapped");
        let other = Mapping::new(file.as_fd(), 4096).expect("mapped");
        assert!(map.bytes().iter().all(|&byte| byte == 7) && !map.is_broken());
        file.set_len(8192).expect("cut");
        assert_eq!((map.bytes()[8191], map.is_broken()), (7, false));
        assert_eq!((map.bytes()[8192], map.is_broken()), (0, true));
        assert_eq!((map.bytes()[19_999], map.bytes()[0]), (0, 7));
        assert_eq!((other.bytes()[4095], other.is_broken()), (7, false));
        let slot = map.region;
        drop(map);
        assert_eq!(slot.start.load(Ordering::Acquire), 0, "no longer registered");
        let again = Mapping::new(file.as_fd(), 8192).expect("mapped");
        assert!(again.bytes().iter().all(|&byte| byte == 7) && !again.is_broken());
    }

    /// The handler runs between two instructions of code that may be about to read errno.
    #[test]
    fn a_fault_leaves_errno_alone() {
        let mut file = file_of_ours();
        file.write_all(&[7; 8192]).expect("written");
        let map = Mapping::new(file.as_fd(), 8192).expect("mapped");
        file.set_len(0).expect("cut");
        // SAFETY: the location of this thread's errno.
        unsafe { *libc::__errno_location() = libc::EXDEV };
        assert_eq!(std::hint::black_box(map.bytes())[4096], 0);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EXDEV));
    }

    #[test]
    fn only_files_that_nobody_else_may_write() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new_in("/tmp").expect("a file");
        file.as_file().set_len(4096).expect("long enough");
        for (mode, expected) in [(0o600, Ok(())), (0o644, Ok(())), (0o664, Err(Errno::PERM)), (0o602, Err(Errno::PERM))]
        {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("mode");
            assert_eq!(Mapping::new(file.as_file().as_fd(), 4096).map(drop), expected, "{mode:o}");
        }
        let other = std::fs::File::open("/proc/self/status").expect("a file");
        assert!(Mapping::new(other.as_fd(), 4096).is_err(), "no memory behind it");
        let directory = std::fs::File::open("/tmp").expect("a directory");
        assert_eq!(Mapping::new(directory.as_fd(), 4096).map(drop), Err(Errno::PERM));
        if rustix::process::geteuid().is_root() {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).expect("mode");
            std::os::unix::fs::chown(file.path(), Some(1000), None).expect("owner");
            assert_eq!(Mapping::new(file.as_file().as_fd(), 4096).map(drop), Err(Errno::PERM));
        }
    }
}
