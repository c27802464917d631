//! Inode table, dentries, lookup counts and open handles. No I/O.

/// Number by which the kernel names an inode of this mount. Never reused, never shown to users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The mount's root (`FUSE_ROOT_ID`).
    pub const ROOT: Self = Self(1);
}

/// A point in time, since 1970-01-01 UTC; seconds may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub sec: i64,
    /// Nanoseconds, 0..1,000,000,000.
    pub nsec: u32,
}
