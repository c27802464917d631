//! Directories that no path leads out of, and operations on the files in them.
//!
//! An untrusted tree of files (a layer, an unpacked image, a container's upper directory) is entered through a
//! held descriptor of its root. Every further step uses one of two functions:
//!
//! - `beneath`: no component is a symbolic link, and none leads above the root or into another mount.
//! - `in_root`: symbolic links are followed as if the root were `/`, for paths as a container resolves them.
//!
//! [`Dir`] and [`WritableDir`] hold one directory of such a tree and take single names. `remove_tree` removes a whole tree;
//! `Copier` and `copy_extents` copy content, `copy_attributes` attributes; [`mountinfo`] parses the table of mounts.

mod attributes;
mod copy;
mod dir;
pub mod mountinfo;
mod open;
mod remove;
mod stat;
mod tree;
mod writable;
pub(crate) mod xattr;

pub(crate) use attributes::{copy_attributes, keeping_times};
pub(crate) use copy::{Copier, copy_extents};
pub use dir::{Dir, RawEntry};
pub(crate) use open::{beneath, in_root, open_dir, sorted_names, stat_entry};
pub(crate) use remove::remove_tree;
pub use stat::{Device, FileId, FileType, Stat, Timestamp};
pub(crate) use stat::{is_whiteout_device, is_zero_device};
pub(crate) use tree::without_mounts;
pub(crate) use writable::set_times_of;
pub use writable::{TimeTo, Times, WritableDir};
