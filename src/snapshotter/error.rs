//! Why a call of the snapshotter fails.

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Longest name, label or reason in a message, in bytes.
const LONGEST: usize = 1000;

/// Shorthand for results of the snapshotter.
pub type Result<T, E = SnapshotError> = std::result::Result<T, E>;

/// Why a call fails. Each kind has its own gRPC status, by which containerd tells them apart.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// `NOT_FOUND`: no snapshot has this name.
    #[error("snapshot {}: not found", beginning(_0))]
    NotFound(String),
    /// `ALREADY_EXISTS`: another snapshot has this name.
    #[error("snapshot {}: already exists", beginning(_0))]
    Exists(String),
    /// `INVALID_ARGUMENT`: the request can never succeed.
    #[error("{}: {}", beginning(subject), beginning(reason))]
    Invalid {
        /// The snapshot, label or filter.
        subject: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `FAILED_PRECONDITION`: the request may succeed later, when the reason has been removed.
    #[error("snapshot {}: {reason}", beginning(key))]
    Refused {
        /// The snapshot.
        key: String,
        /// The reason.
        reason: String,
    },
    /// `INTERNAL`, or `RESOURCE_EXHAUSTED` on a full disk: a system call failed.
    #[error("{}: {}", path.display(), without_number(error))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error. Not named `source`: the message has it already.
        error: io::Error,
    },
    /// `INTERNAL`: the metadata cannot be read or written.
    #[error("{}: {reason}", path.display())]
    Metadata {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// True if the disk or the quota is full.
        full: bool,
    },
}

impl SnapshotError {
    pub(super) fn invalid(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { subject: subject.into(), reason: reason.into() }
    }

    pub(super) fn refused(key: &str, reason: impl Into<String>) -> Self {
        Self::Refused { key: key.to_owned(), reason: reason.into() }
    }

    /// True if there is not enough space for the request.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Io { error, .. } => is_full(error),
            Self::Metadata { full, .. } => *full,
            _ => false,
        }
    }
}

/// True for a full disk and for a full quota.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// The text of `strerror(3)`, without Rust's `(os error 2)`.
fn without_number(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// The beginning of a long text. A status is sent as a header, whose length clients limit.
fn beginning(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST {
        return Cow::Borrowed(text);
    }
    let end = (0..=LONGEST).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    Cow::Owned(format!("{}…", &text[..end]))
}

/// Names the file of a failed system call.
pub(super) trait At<T> {
    fn at(self, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T> {
        self.map_err(|error| SnapshotError::Io { path: path.to_owned(), error: error.into() })
    }
}
