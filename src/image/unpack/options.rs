//! How to unpack, and how much to accept.

use crate::image::layer::marks::Marks;

/// How a layer is unpacked. The default is right for root.
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    /// The marks that whiteouts and opaque directories become.
    pub marks: Marks,
    /// How much to accept.
    pub limits: Limits,
    /// Give files their owner, mode and device numbers. Without it (the caller is not root) they are recorded in
    /// `user.containers.override_stat`, and devices and FIFOs become empty files.
    pub keep_ownership: bool,
    /// Inflate, hash and extract at the same time; the result is the same either way.
    pub threads: bool,
    /// The layer will be synced: begin to write large files out while others are still being extracted.
    pub write_out: bool,
}

impl Default for UnpackOptions {
    fn default() -> Self {
        Self {
            marks: Marks::default(),
            limits: Limits::default(),
            keep_ownership: true,
            threads: true,
            write_out: false,
        }
    }
}

impl UnpackOptions {
    /// For users without privileges.
    pub fn unprivileged() -> Self {
        Self { marks: Marks::unprivileged(), keep_ownership: false, ..Self::default() }
    }
}

/// What one layer may take. The defaults accept every image that is meant to be used; they stop archives made to
/// fill memory, disk or time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries.
    pub entries: u64,
    /// Bytes of the uncompressed tar stream.
    pub stream: u64,
    /// Bytes of one file, holes included.
    pub file: u64,
    /// Bytes on disk (holes not included) for each compressed byte, after the first [`Limits::ratio_from`].
    pub ratio: u64,
    /// Bytes on disk below which the ratio does not matter.
    pub ratio_from: u64,
    /// Bytes of one extension header (PAX records, GNU long names).
    pub extension: usize,
    /// Bytes of one name.
    pub path: usize,
    /// Bytes of one extended attribute's value; the kernel takes no more than 64 KiB.
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
    /// Accepts whatever the machine can hold; for archives that are trusted.
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
