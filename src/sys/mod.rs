//! System calls that rustix lacks, one file a family; the only place where `unsafe` is allowed.

pub mod fork;
pub mod fuse_device;
pub mod signals;
