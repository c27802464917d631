//! One file per group of operations, each an `impl` of the union behind [`crate::driver::Overlay`].

pub(in crate::driver) mod attr;
pub(in crate::driver) mod create;
mod flags;
mod io;
mod link;
mod lookup;
mod readdir;
pub(in crate::driver) mod remove;
mod rename;
pub(in crate::driver) mod xattr;
