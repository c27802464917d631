//! Why a call of the snapshotter fails.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Shorthand for results of the snapshotter.
pub type Result<T, E = SnapshotError> = std::result::Result<T, E>;

/// Why a call fails. Each kind has its own gRPC status, by which containerd tells them apart.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// `NOT_FOUND`: no snapshot has this name.
    #[error("snapshot {0}: not found")]
    NotFound(String),
    /// `ALREADY_EXISTS`: another snapshot has this name.
    #[error("snapshot {0}: already exists")]
    Exists(String),
    /// `INVALID_ARGUMENT`: the request can never succeed.
    #[error("{subject}: {reason}")]
    Invalid {
        /// The snapshot, label or filter.
        subject: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `FAILED_PRECONDITION`: the request may succeed later, when the reason has been removed.
    #[error("snapshot {key}: {reason}")]
    Refused {
        /// The snapshot.
        key: String,
        /// The reason.
        reason: String,
    },
    /// `INTERNAL`, or `RESOURCE_EXHAUSTED` on a full disk: a system call failed.
    #[error("{}: {}", path.display(), without_number(source))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
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
            Self::Io { source, .. } => is_full(source),
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

/// Names the file of a failed system call.
pub(super) trait At<T> {
    fn at(self, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T> {
        self.map_err(|error| SnapshotError::Io { path: path.to_owned(), source: error.into() })
    }
}
