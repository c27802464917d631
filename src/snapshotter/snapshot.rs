//! The record of a snapshot.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Labels of a snapshot.
pub type Labels = BTreeMap<String, String>;

/// The kind of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Shows its parent, read-only.
    View,
    /// Can be changed, and committed.
    Active,
    /// Is a layer: never changes again, and can be a parent.
    Committed,
}

impl Kind {
    /// Its name in filters.
    pub fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// A time, in seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanos: i32,
}

impl Moment {
    /// Now, but not before 1970.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        }
    }
}

/// The disk space of a snapshot, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of allocated blocks.
    pub size: u64,
    /// Number of files and directories.
    pub inodes: u64,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name. In the database, it is the key.
    #[serde(skip)]
    pub name: String,
    /// Number of its directory. Numbers are never reused.
    pub id: u64,
    /// Its kind.
    pub kind: Kind,
    /// Name of the snapshot below it; empty for none.
    pub parent: String,
    /// Time when it was prepared, or committed.
    pub created: Moment,
    /// Time when its labels were last changed.
    pub updated: Moment,
    /// Its labels.
    pub labels: Labels,
    /// Its disk space when it was committed.
    pub usage: Usage,
}
