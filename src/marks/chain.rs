//! The mark that names the checkpoint layer directly below a writable directory or a layer.
//!
//! It is the attribute `trusted.overlay.stratafs.chain` or `user.overlay.stratafs.chain` of the directory's root, in the
//! name space of its other marks. The kernel's overlayfs hides and ignores it. The value is `1 ID BELOW`: the version, the
//! directory's own id, and the id of the layer directly below it, or `-` if that layer has no mark. The id of a writable
//! directory stays the same when it becomes a layer.

use std::fmt;
use std::str::FromStr;

use super::Namespace;

/// The id of a checkpoint layer: 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainId([u8; 16]);

impl ChainId {
    /// An id with these bytes, which should be random.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an id of 32 lower-case hexadecimal digits")]
pub struct MalformedId;

impl FromStr for ChainId {
    type Err = MalformedId;

    fn from_str(text: &str) -> Result<Self, MalformedId> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(MalformedId),
        };
        let mut bytes = [0; 16];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != bytes.len() || !rest.is_empty() {
            return Err(MalformedId);
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(bytes))
    }
}

/// The mark of one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The directory's own id.
    pub id: ChainId,
    /// The layer that must be directly below it.
    pub below: Option<ChainId>,
}

impl Chain {
    /// The attribute's value.
    pub fn encode(&self) -> String {
        match self.below {
            Some(below) => format!("1 {} {below}", self.id),
            None => format!("1 {} -", self.id),
        }
    }

    /// Decodes the attribute's value; `None` if it is damaged or has another version.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let mut words = str::from_utf8(value).ok()?.split(' ');
        let (version, id, below, end) = (words.next()?, words.next()?, words.next()?, words.next());
        if version != "1" || end.is_some() {
            return None;
        }
        let below = if below == "-" { None } else { Some(below.parse().ok()?) };
        Some(Self { id: id.parse().ok()?, below })
    }
}

impl Namespace {
    /// Full name of the chain mark in this name space.
    pub const fn chain(self) -> &'static std::ffi::CStr {
        match self {
            Self::Trusted => c"trusted.overlay.stratafs.chain",
            Self::User => c"user.overlay.stratafs.chain",
            Self::FuseOverlayfs => c"user.fuseoverlayfs.stratafs.chain",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_round_trip() {
        let (id, below) = (ChainId::new([0xa5; 16]), ChainId::new([7; 16]));
        for chain in [Chain { id, below: None }, Chain { id, below: Some(below) }] {
            assert_eq!(Chain::decode(chain.encode().as_bytes()), Some(chain));
        }
        assert_eq!(Chain { id, below: None }.encode(), "1 a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5 -");
    }

    #[test]
    fn damaged_chains() {
        let id = "a5".repeat(16);
        for bad in [
            String::new(),
            "1".to_owned(),
            format!("1 {id}"),
            format!("2 {id} -"),
            format!("1 {id} - x"),
            format!("1 {id}  -"),
            format!("1 {} -", id.to_uppercase()),
            format!("1 {id}a5 -"),
            format!("1 {} -", &id[1..]),
            format!("1 {id} ../x"),
        ] {
            assert_eq!(Chain::decode(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(Chain::decode(b"1 \xff -"), None);
    }

    #[test]
    fn the_names_begin_as_other_marks_do() {
        for namespace in Namespace::ALL {
            assert!(namespace.chain().to_bytes().starts_with(namespace.prefix().as_bytes()));
        }
    }
}
