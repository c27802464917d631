//! The bytes that go through `/dev/fuse` and the rings: decodes requests, encodes replies. Pure; no unsafe, no FUSE library.
//!
//! The layouts are those of the kernel's `include/uapi/linux/fuse.h`, protocol 7.40 (and the one later request
//! `COPY_FILE_RANGE_64`). Numbers are in the machine's byte order. Anything that the kernel adds at the end of
//! a request (extensions that we do not negotiate) is ignored.

pub(super) mod message;
pub(super) mod opcode;
pub(super) mod reply;
pub(super) mod request;

/// Longest write and read in one request: 256 pages, the kernel's own limit (`fs.fuse.max_pages_limit`).
pub(super) const MAX_WRITE: u32 = 1 << 20;

/// `FOPEN_*`: how the kernel treats an open file.
pub(super) mod fopen {
    pub(in crate::fuse) const KEEP_CACHE: u32 = 1 << 1;
    pub(in crate::fuse) const CACHE_DIR: u32 = 1 << 3;
    pub(in crate::fuse) const PASSTHROUGH: u32 = 1 << 7;
}

#[cfg(test)]
mod tests;
