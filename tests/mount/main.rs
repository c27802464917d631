//! The mounted file system, verb by verb: every test runs on kernel overlayfs and on stratafs.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod lookup;
