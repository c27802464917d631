//! The parts of a request, from either transport.

use super::request::Malformed;

/// Size of `struct fuse_in_header`.
const HEADER: usize = 40;

/// The arguments of a request. They are in two places if the request came through a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::fuse) struct Arguments<'a> {
    /// The fixed structure for the kind of request, or all arguments.
    pub(in crate::fuse) structure: &'a [u8],
    /// Names and data, if they are not in `structure`.
    pub(in crate::fuse) payload: &'a [u8],
}

impl<'a> Arguments<'a> {
    /// All arguments in one place.
    pub(in crate::fuse) fn whole(bytes: &'a [u8]) -> Self {
        Self { structure: bytes, payload: &[] }
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct Message<'a> {
    /// `struct fuse_in_header`
    pub(super) header: &'a [u8; HEADER],
    pub(super) arguments: Arguments<'a>,
}

impl<'a> Message<'a> {
    /// A request in one piece, as `/dev/fuse` returns it. Its length must be the one that its header states.
    pub(in crate::fuse) fn whole(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, arguments) = bytes.split_first_chunk().ok_or(Malformed::Header)?;
        if stated_length(header) != bytes.len() {
            return Err(Malformed::Header);
        }
        Ok(Self { header, arguments: Arguments::whole(arguments) })
    }

    /// A request of a ring. `header` and `structure` are areas of fixed size, and only their beginnings belong to the
    /// request; `payload` has its exact size. The header states the length of all three.
    pub(in crate::fuse) fn parts(header: &'a [u8], structure: &'a [u8], payload: &'a [u8]) -> Result<Self, Malformed> {
        let header = header.first_chunk().ok_or(Malformed::Header)?;
        let length = stated_length(header).checked_sub(HEADER + payload.len());
        let structure = length.and_then(|length| structure.get(..length)).ok_or(Malformed::Header)?;
        Ok(Self { header, arguments: Arguments { structure, payload } })
    }
}

fn stated_length(header: &[u8; HEADER]) -> usize {
    let length = header.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length));
    usize::try_from(length).unwrap_or(usize::MAX)
}
