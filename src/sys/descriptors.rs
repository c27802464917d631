//! Descriptors that a process inherited from the program that executed it.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Open files of the process that nothing in it owns, except standard input, output and error.
#[derive(Debug, Default)]
pub struct InheritedDescriptors(Vec<RawFd>);

impl InheritedDescriptors {
    /// Finds them. Must be called at the start of `main`, before the process opens anything that stays open.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn find() -> io::Result<Self> {
        let listing = fs::read_dir("/proc/self/fd")?;
        let numbers = listing.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let numbers: Vec<RawFd> = numbers.filter(|&number| number > libc::STDERR_FILENO).collect();
        // The list includes its own descriptor, which is closed by now. SAFETY: F_GETFD reads a flag and takes any number.
        let is_open = |number: &RawFd| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
        Ok(Self(numbers.into_iter().filter(is_open).collect()))
    }

    /// Removes one of them from the list and returns it.
    pub fn take(&mut self, number: RawFd) -> Option<OwnedFd> {
        let at = self.0.iter().position(|&known| known == number)?;
        // SAFETY: the descriptor was open when the process began, so nothing in it owns it, and it is taken only once.
        Some(unsafe { OwnedFd::from_raw_fd(self.0.swap_remove(at)) })
    }

    /// Closes the others: the caller may wait for the end of a pipe, or for a lock, that they hold.
    pub fn close(mut self) {
        while let Some(&number) = self.0.first() {
            drop(self.take(number));
        }
    }
}
