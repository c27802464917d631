//! Why a tar stream cannot be read.

use std::io;

use crate::text::printable;

/// Why a tar stream cannot be read. Offsets count the uncompressed bytes.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// A block that should be a header has the wrong checksum.
    #[error("byte {offset}: not a tar {}: {reason}", if *offset == 0 { "archive" } else { "header" })]
    NotAHeader {
        /// Where the block begins.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The stream breaks the format's rules.
    #[error("byte {offset}: {reason}")]
    Format {
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A member's headers contradict themselves.
    #[error("entry {}: {reason}", printable(name))]
    Entry {
        /// Name of the member in the archive.
        name: Vec<u8>,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit of [`crate::tar::Limits`] was exceeded.
    #[error("{what}: more than the limit of {limit} of {option} (--unlimited accepts it)")]
    Limit {
        /// The limited quantity.
        what: String,
        /// The limit.
        limit: u64,
        /// Field of [`crate::tar::Limits`].
        option: &'static str,
    },
    /// The stream itself cannot be read.
    #[error("byte {offset}: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// The error of the reader below.
        source: io::Error,
    },
}

impl TarError {
    /// The member `name` is refused for `reason`.
    pub(crate) fn entry(name: &[u8], reason: impl Into<String>) -> Self {
        Self::Entry { name: name.to_vec(), reason: reason.into() }
    }
}
