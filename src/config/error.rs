//! What can be wrong with an option string.

/// A wrong option string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// An option cannot be understood: an error of usage.
    #[error("{0}")]
    Usage(String),
    /// Each option can be understood, but they do not go together.
    #[error("{0}")]
    Combination(String),
}
