//! What can go wrong with a layer; every error prints as one line naming the entry and the reason.

use std::io;

use crate::tar::compression::Compression;

/// Why a layer could not be unpacked, re-assembled or written.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The tar stream breaks the format's rules.
    #[error("layer tar, byte {offset}: {reason}")]
    Format {
        /// Where, in the uncompressed stream.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// An entry that must not be, or cannot be, extracted.
    #[error("layer entry {entry}: {reason}")]
    Entry {
        /// Name of the entry, printable.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit of [`crate::image::layer::Limits`] was exceeded.
    #[error("{what}: more than the limit of {limit} of {option} (--unlimited accepts it)")]
    Limit {
        /// What there is too much of.
        what: String,
        /// The limit.
        limit: u64,
        /// Field of [`crate::image::layer::Limits`].
        option: &'static str,
    },
    /// The compressed stream is damaged or ends early.
    #[error("{compression} stream: {source}")]
    Compressed {
        /// Its compression.
        compression: Compression,
        /// What the decoder, or the reader below it, said.
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
    /// A recipe that is no recipe, or is damaged.
    #[error("layer recipe: {0}")]
    Recipe(String),
    /// The layer directory no longer holds what was unpacked.
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

/// `name` for a message: one line, no control characters, UTF-8 where it is.
pub(crate) fn printable(name: &[u8]) -> String {
    const SHOWN: usize = 300;
    if name.is_empty() {
        return "./".to_owned();
    }
    let text = String::from_utf8_lossy(name.get(..SHOWN).unwrap_or(name));
    let mut shown: String = text
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if name.len() > SHOWN {
        shown.push('…');
    }
    shown
}

impl LayerError {
    /// An entry is refused for `reason`.
    pub(crate) fn entry(name: &[u8], reason: impl Into<String>) -> Self {
        Self::Entry { entry: printable(name), reason: reason.into() }
    }

    /// A system call about the file at `path` failed.
    pub(crate) fn io(path: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Io { place: printable(path), source: source.into() }
    }
}

/// Names the file that a failed system call was about.
pub(crate) trait AtPath<T> {
    /// Turns the error into a [`LayerError::Io`] that names `path`.
    fn at(self, path: &[u8]) -> Result<T>;
}

impl<T, E: Into<io::Error>> AtPath<T> for std::result::Result<T, E> {
    fn at(self, path: &[u8]) -> Result<T> {
        self.map_err(|error| LayerError::io(path, error))
    }
}
