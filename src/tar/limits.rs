//! How much of a tar stream is accepted.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::tar::TarError;

/// Limits for one tar stream, of a layer or of an archive of images. The defaults accept every image in practical use; they
/// stop archives made to fill memory, disk or time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Number of entries.
    pub entries: u64,
    /// Bytes of the uncompressed tar stream.
    pub stream: u64,
    /// Bytes of one file, including holes.
    pub file: u64,
    /// Bytes on disk (without zeros, which become holes) for each compressed byte, after the first [`Limits::ratio_from`].
    pub ratio: u64,
    /// Bytes on disk up to which the ratio is not checked.
    pub ratio_from: u64,
    /// Bytes of one extension header (PAX records, GNU long names).
    pub extension: usize,
    /// Bytes of one name.
    pub path: usize,
    /// Bytes of one extended attribute's value; the kernel allows at most 64 KiB.
    pub xattr: usize,
    /// Pairs in a sparse map.
    pub sparse_segments: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 10_000_000,
            stream: 256 << 30,
            file: 8 << 40,
            ratio: 200,
            ratio_from: 1 << 30,
            extension: 1 << 20,
            path: 4095,
            xattr: 64 << 10,
            sparse_segments: 1 << 20,
        }
    }
}

impl Limits {
    /// Accepts everything; for trusted archives.
    pub const fn unlimited() -> Self {
        Self {
            entries: u64::MAX,
            stream: u64::MAX,
            file: u64::MAX,
            ratio: u64::MAX,
            ratio_from: u64::MAX,
            extension: 64 << 20,
            path: 4095,
            xattr: 64 << 10,
            sparse_segments: usize::MAX,
        }
    }
}

/// Counts the bytes that a compressed stream has written to the disk. Zeros become holes and are not counted.
pub(crate) struct Growth<'a> {
    limits: &'a Limits,
    /// Compressed bytes read so far.
    compressed: &'a AtomicU64,
    written: u64,
}

impl<'a> Growth<'a> {
    pub(crate) fn new(limits: &'a Limits, compressed: &'a AtomicU64) -> Self {
        Self { limits, compressed, written: 0 }
    }

    /// Counts `bytes` more.
    ///
    /// # Errors
    /// When they exceed [`Limits::ratio`].
    pub(crate) fn wrote(&mut self, bytes: u64) -> Result<(), TarError> {
        self.written += bytes;
        if self.written <= self.limits.ratio_from {
            return Ok(());
        }
        let compressed = self.compressed.load(Ordering::Relaxed).max(1);
        if self.written / compressed <= self.limits.ratio {
            return Ok(());
        }
        let what = format!("{} bytes from {compressed} compressed ones, times", self.written);
        Err(TarError::Limit { what, limit: self.limits.ratio, option: "ratio" })
    }
}

/// The error for a stream longer than [`Limits::stream`].
pub(crate) fn too_long(limits: &Limits) -> TarError {
    TarError::Limit { what: "uncompressed bytes".into(), limit: limits.stream, option: "stream" }
}

/// A reader that fails beyond [`Limits::stream`] bytes. Its error contains a [`TarError`], which the tar reader extracts.
pub(crate) struct Bounded<'l, R> {
    inner: R,
    limits: &'l Limits,
    given: u64,
}

impl<'l, R> Bounded<'l, R> {
    pub(crate) fn new(inner: R, limits: &'l Limits) -> Self {
        Self { inner, limits, given: 0 }
    }
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.given += count as u64;
        if self.given > self.limits.stream {
            return Err(io::Error::other(too_long(self.limits)));
        }
        Ok(count)
    }
}
