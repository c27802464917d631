//! Errors in an option string.

/// A wrong option string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// An option is malformed or unknown: an error of usage.
    #[error("{0}")]
    Usage(String),
    /// Each option is valid, but they contradict each other.
    #[error("{0}")]
    Combination(String),
}
