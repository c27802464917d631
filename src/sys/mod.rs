//! System calls that rustix lacks, one file for each family; the only module where `unsafe` is allowed.

#![allow(unsafe_code)]

pub mod chmod;
pub mod descriptors;
pub mod environment;
pub mod extents;
pub mod flags;
pub mod fork;
pub mod forward;
pub mod fuse_device;
pub mod fuse_ring;
pub mod handle;
pub mod lease;
pub mod mapping;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod priority;
pub mod session;
pub mod signals;
pub mod write_out;
pub mod xattr;
pub mod xattr_search;
