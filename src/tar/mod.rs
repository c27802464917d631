//! The tar format: one reader and one writer, for layers and for the archives that hold images.
//!
//! | module | what it is for |
//! |---|---|
//! | `read` | the reader: members with everything that belongs to them |
//! | `header` | the 512-byte block: variants, numbers, checksums |
//! | `pax` | extended headers |
//! | `acl` | access control lists as text, as `SCHILY.acl` records hold them |
//! | `sparse` | maps of sparse members |
//! | `holes` | contents written so that zeros become holes |
//! | [`compression`] | compressed streams by magic number |
//! | `limits` | how much is accepted |
//! | `error` | why a stream cannot be read |
//! | `write` | the writer |
//!
//! It knows nothing of layers, recipes or images.

pub(crate) mod acl;
pub mod compression;
mod error;
pub(crate) mod header;
pub(crate) mod holes;
pub(crate) mod limits;
pub(crate) mod pax;
pub(crate) mod read;
pub(crate) mod sparse;
pub(crate) mod write;

pub use error::TarError;
pub use limits::Limits;
pub use pax::Time;

/// Attributes of one member in an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission, setuid, setgid and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}
