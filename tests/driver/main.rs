//! The driver's verbs called by several threads at once, and the state of nodes afterwards. Without FUSE: the
//! library on temporary directories.
//!
//! A test of a race is repeated until the old, wrong order of steps would have shown itself many times.

#![allow(clippy::unwrap_used)]

mod checkpoint;
mod fixture;
mod left;
mod quota;
mod races;
