//! The driver's verbs called by several threads at once, and what is left of a node when it is over. No FUSE: the library
//! on directories of its own.
//!
//! A test of a race repeats it until the old, wrong order of steps has shown itself many times over.

#![allow(clippy::unwrap_used)]

mod checkpoint;
mod fixture;
mod left;
mod races;
