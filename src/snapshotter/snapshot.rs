//! What is known about one snapshot.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Labels of a snapshot.
pub type Labels = BTreeMap<String, String>;

/// What a snapshot is.
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
    /// As filters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// A moment, in seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanos: i32,
}

impl Moment {
    /// Now; 1970 if the clock stands before that.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        }
    }
}

/// What a snapshot takes on the disk, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of allocated blocks.
    pub size: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name. In the database this is the key.
    #[serde(skip)]
    pub name: String,
    /// Number of its directory. No two snapshots ever have the same.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// Name of the snapshot below it; empty: none.
    pub parent: String,
    /// When it was prepared, or committed.
    pub created: Moment,
    /// When its labels were last changed.
    pub updated: Moment,
    /// Its labels.
    pub labels: Labels,
    /// What it took when it was committed.
    pub usage: Usage,
}
