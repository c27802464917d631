//! Errors of the image side; each is one line that names the object.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::layer::LayerError;
use crate::text::{message as line, shown_path};

/// Shorthand for results of the image side.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

/// Why an image operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A system call on a file or directory failed.
    #[error("{}: {source}", shown_path(path))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// An archive is malformed.
    #[error("{}: {}", line(archive), line(reason))]
    Archive {
        /// The archive, and the entry in it if known.
        archive: String,
        /// What is wrong.
        reason: String,
    },
    /// A JSON document (manifest, config, index, record) cannot be used.
    #[error("{}: {}", line(document), line(reason))]
    Document {
        /// The document.
        document: String,
        /// What is wrong.
        reason: String,
    },
    /// A layer's tar stream could not be unpacked, re-assembled or made.
    #[error("{}: {source}", line(layer))]
    Layer {
        /// The layer.
        layer: String,
        /// What went wrong in it.
        source: LayerError,
    },
    /// Bytes do not match their digest or size.
    #[error("{}: {} was promised, but it is {}", line(subject), line(expected), line(found))]
    Mismatch {
        /// The object that was read.
        subject: String,
        /// The expected digest or size.
        expected: String,
        /// The actual digest or size.
        found: String,
    },
    /// No image by this name or id.
    #[error("{}: no such image{}", line(name), suggestion(near))]
    NoSuchImage {
        /// The name or id that was asked for.
        name: String,
        /// A similar name.
        near: Option<String>,
    },
    /// No container by this name.
    #[error("{}: no such container{}", line(name), suggestion(near))]
    NoSuchContainer {
        /// The name that was asked for.
        name: String,
        /// A similar name.
        near: Option<String>,
    },
    /// An abbreviated id matches several images.
    #[error("{}: fits several images ({candidates}); give more of the id", line(prefix))]
    Ambiguous {
        /// The abbreviated id.
        prefix: String,
        /// The matching images.
        candidates: String,
    },
    /// User input that cannot be parsed.
    #[error("{}: {}", line(what), line(reason))]
    Malformed {
        /// The text.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A container's program cannot be started.
    #[error("{}: {}", line(program), line(reason))]
    CannotRun {
        /// The program, or the working directory.
        program: String,
        /// The reason.
        reason: String,
        /// True if it does not exist, false if it is not executable.
        missing: bool,
    },
    /// A signal asked this process to end before its work was done; the work was undone.
    #[error("interrupted")]
    Interrupted {
        /// The signal's number.
        signal: i32,
    },
    /// Another process of this program failed and reported why.
    #[error("{}", line(message))]
    Told {
        /// Its exit code.
        code: u8,
        /// Its message.
        message: String,
    },
    /// A registry cannot be reached, refuses, or breaks the protocol.
    #[error("{}: {}", line(place), line(reason))]
    Registry {
        /// The registry and the repository.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The operation is refused because of the state of the store.
    #[error("{}: {}", line(what), line(reason))]
    Refused {
        /// The object of the operation.
        what: String,
        /// The reason.
        reason: String,
    },
}

fn suggestion(near: &Option<String>) -> String {
    near.as_ref().map(|name| format!("; did you mean {}?", line(name))).unwrap_or_default()
}

impl ImageError {
    /// A document that cannot be used.
    pub fn document(document: impl Into<String>, reason: impl ToString) -> Self {
        Self::Document { document: document.into(), reason: reason.to_string() }
    }

    /// An archive that cannot be used.
    pub fn archive(archive: impl Into<String>, reason: impl ToString) -> Self {
        Self::Archive { archive: archive.into(), reason: reason.to_string() }
    }

    /// User input that cannot be parsed.
    pub fn malformed(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Malformed { what: what.into(), reason: reason.to_string() }
    }

    /// The exit code of a `run` that fails with this error: 127 if there is no such program and 126 if it cannot be
    /// run, as in shells; 128 plus the number of the signal that ended the work; otherwise 125, as in docker.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::CannotRun { missing: true, .. } => 127,
            Self::CannotRun { missing: false, .. } => 126,
            Self::Interrupted { signal } => u8::try_from(128 + signal).unwrap_or(125),
            Self::Told { code, .. } => *code,
            _ => 125,
        }
    }

    /// A refused operation.
    pub fn refused(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Refused { what: what.into(), reason: reason.to_string() }
    }
}

/// Names the file in an I/O error.
pub trait IoContext<T> {
    /// Turns the error into one that names `path`.
    ///
    /// # Errors
    /// [`ImageError::Io`] when `self` is an error.
    fn at(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|error| ImageError::Io { path: path.as_ref().to_path_buf(), source: error.into() })
    }
}

/// The candidate most similar to `name`, if it is similar enough to be suggested.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    let limit = (name.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|&(distance, _)| distance <= limit)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// Number of single-character edits between two words.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_names() {
        let names = ["debian:latest", "alpine:latest", "web"];
        let near = |name| nearest(name, names.into_iter());
        assert_eq!(near("debain:latest").as_deref(), Some("debian:latest"));
        assert_eq!(near("wbe:x"), None);
        assert_eq!(near("we").as_deref(), Some("web"));
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
