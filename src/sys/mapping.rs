//! Files mapped for reading. When pages of one cannot be had (the disk fails, or somebody shortens the file), the kernel
//! sends SIGBUS, which would end the process: such pages read as zeros instead, and the mapping says that it is broken.

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

// SAFETY: the memory is only read, and is there until the value is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Where a mapping is, for the signal handler. Never freed, but used again: the handler may look at any time.
#[derive(Debug)]
struct Region {
    /// 0: free.
    start: AtomicUsize,
    end: AtomicUsize,
    broken: AtomicBool,
    next: AtomicPtr<Region>,
}

/// The first of all regions.
static REGIONS: AtomicPtr<Region> = AtomicPtr::new(null_mut());

/// What SIGBUS did before; present once our handler is installed.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

impl Mapping {
    /// Maps the first `length` bytes of `file`, which nobody may write to: files that are only ever replaced by others.
    ///
    /// # Errors
    /// Those of `mmap(2)`; `INVAL` for a length of 0.
    pub fn new(file: BorrowedFd<'_>, length: usize) -> Result<Self, Errno> {
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

    /// The bytes. Whoever used them asks [`Self::is_broken`] afterwards.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is that long and is there as long as `self`; nobody writes to the file (see `new`).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// Lets go of the pages that were used: the page cache keeps them, the process no longer counts them as its own.
    pub fn release(&self) {
        // SAFETY: address and length are those of the mapping. Of a file that is only read, nothing is lost: who uses a
        // page again gets it from the file.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.length, libc::MADV_DONTNEED) };
    }

    /// True if a part of the file could not be read, and was taken for zeros.
    pub fn is_broken(&self) -> bool {
        self.region.broken.load(Ordering::Acquire)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: address and length are those of the mapping, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
        self.region.start.store(0, Ordering::Release);
    }
}

impl Region {
    fn claim(start: usize, length: usize) -> &'static Self {
        let mut at = REGIONS.load(Ordering::Acquire);
        // SAFETY: regions are never freed, so what the list holds is there.
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

    /// The region that `address` is in. Called by the signal handler: takes no lock and no memory.
    fn of(address: usize) -> Option<&'static Self> {
        let mut at = REGIONS.load(Ordering::Acquire);
        // SAFETY: regions are never freed.
        while let Some(region) = unsafe { at.as_ref() } {
            let start = region.start.load(Ordering::Acquire);
            // 1 is one that is being claimed, whose end is still another's.
            if start > 1 && (start..region.end.load(Ordering::Acquire)).contains(&address) {
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

/// Puts a page of zeros where the fault was, if that is in one of our mappings; else lets happen what would have.
extern "C" fn on_fault(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid `siginfo_t` for SIGBUS. Below, only atomics and system calls are used.
    let address = unsafe { (*info).si_addr() } as usize;
    if let Some(region) = Region::of(address) {
        // SAFETY: the page lies in a mapping of ours, which is only read; replacing it by zeros loses nothing.
        let replaced = unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let at = (address & !(page - 1)) as *mut libc::c_void;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            libc::mmap(at, page, libc::PROT_READ, flags, -1, 0) != libc::MAP_FAILED
        };
        if replaced {
            region.broken.store(true, Ordering::Release);
            return;
        }
    }
    // The instruction is tried again, and then goes the way that it would have gone.
    // SAFETY: sets the action that the process had before; without one (the handler ran at once), the default.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        let before = BEFORE.get().unwrap_or(&default);
        libc::sigaction(libc::SIGBUS, std::ptr::from_ref(before), null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_cut_off_reads_as_zeros_and_says_so() {
        let mut file = tempfile::tempfile_in("/tmp").expect("a file");
        file.write_all(&[7; 20_000]).expect("written");
        let map = Mapping::new(file.as_fd(), 20_000).expect("mapped");
        let other = Mapping::new(file.as_fd(), 4096).expect("mapped");
        assert!(map.bytes().iter().all(|&byte| byte == 7) && !map.is_broken());
        file.set_len(8192).expect("cut");
        assert_eq!((map.bytes()[8191], map.is_broken()), (7, false));
        assert_eq!((map.bytes()[8192], map.is_broken()), (0, true));
        assert_eq!((map.bytes()[19_999], map.bytes()[0]), (0, 7));
        assert_eq!((other.bytes()[4095], other.is_broken()), (7, false));
        drop(map);
        let again = Mapping::new(file.as_fd(), 8192).expect("mapped");
        assert!(again.bytes().iter().all(|&byte| byte == 7) && !again.is_broken());
    }
}
