//! Several threads call the driver's verbs at once; the state of nodes afterwards is checked. No FUSE: the library works
//! on temporary directories.
//!
//! A test of a race is repeated until the old, wrong order of steps would have shown itself many times.

#![allow(clippy::unwrap_used)]

mod checkpoint;
mod fixture;
mod left;
mod quota;
mod races;
