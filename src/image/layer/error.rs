//! Errors of a layer; each prints as one line that names the entry and the reason.

use std::io;

use crate::tar::TarError;
use crate::tar::compression::Packing;
pub(crate) use crate::text::printable;

/// Why a layer could not be unpacked, re-assembled or written.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The tar stream cannot be read.
    #[error("layer tar, {0}")]
    Tar(#[from] TarError),
    /// An entry that must not be, or cannot be, extracted.
    #[error("layer entry {entry}: {reason}")]
    Entry {
        /// Name of the entry, printable.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit of [`crate::tar::Limits`] was exceeded.
    #[error("{what}: more than the limit of {limit} of {option} (--unlimited accepts it)")]
    Limit {
        /// What is too large or too many.
        what: String,
        /// The limit.
        limit: u64,
        /// Field of [`crate::tar::Limits`].
        option: &'static str,
    },
    /// The compressed stream is damaged or ends early.
    #[error("{packing} stream: {source}")]
    Compressed {
        /// Its compression.
        packing: Packing,
        /// The error of the decoder or of the reader below it.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{place}: {source}")]
    Io {
        /// The file, or the stream.
        place: String,
        /// The error.
        source: io::Error,
    },
    /// A file that is not a recipe, or a damaged recipe.
    #[error("layer recipe: {0}")]
    Recipe(String),
    /// The layer directory no longer has the content that was unpacked.
    #[error("layer file {path}: {reason}")]
    Damaged {
        /// Path in the layer, printable.
        path: String,
        /// What differs.
        reason: String,
    },
}

/// Result of layer operations.
pub(crate) type Result<T, E = LayerError> = std::result::Result<T, E>;

impl LayerError {
    /// The entry is refused for `reason`.
    pub(crate) fn entry(name: &[u8], reason: impl Into<String>) -> Self {
        Self::Entry { entry: printable(name), reason: reason.into() }
    }

    /// A system call on the file at `path` failed.
    pub(crate) fn io(path: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Io { place: printable(path), source: source.into() }
    }
}

/// Names the file of a failed system call.
pub(crate) trait AtPath<T> {
    /// Turns the error into a [`LayerError::Io`] that names `path`.
    fn at(self, path: &[u8]) -> Result<T>;
}

impl<T, E: Into<io::Error>> AtPath<T> for std::result::Result<T, E> {
    fn at(self, path: &[u8]) -> Result<T> {
        self.map_err(|error| LayerError::io(path, error))
    }
}
