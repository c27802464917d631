//! System calls that rustix lacks, one file a family; the only place where `unsafe` is allowed.

#![allow(unsafe_code)]

pub mod forward;
