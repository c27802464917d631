//! The tar format: one reader and one writer, for layers and for the archives that hold images.
//!
//! | module | what it is for |
//! |---|---|
//! | `read` | the reader: members with everything that belongs to them |
//! | `header` | the 512-byte block: variants, numbers, checksums |
//! | `pax` | extended headers |
//! | `acl` | access control lists as text, as `SCHILY.acl` records hold them |
//! | `sparse` | maps of sparse members |
//! | [`compression`] | compressed streams by magic number |
//! | `write` | the writer |

pub(crate) mod acl;
pub mod compression;
pub(crate) mod header;
pub(crate) mod pax;
pub(crate) mod read;
pub(crate) mod sparse;
pub(crate) mod write;
