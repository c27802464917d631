//! Container images: archives in and out, the store, layers as tar streams.
//!
//! * [`digest`]: content addresses, and readers and writers that hash what passes.
//! * [`layer`]: one layer between its two forms, a tar stream and a directory that overlay file systems mount.

pub mod digest;
pub mod layer;
