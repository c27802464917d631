//! Bytes of lower files that are read from the disk before they are asked for.

mod ahead;
pub(in crate::driver) mod around;

pub(in crate::driver) use ahead::ReadAhead;
