//! Changes of a file that are forbidden for all users (`chattr +i`, `chattr +a`).

/// The inode flags that forbid changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// Nothing of the file may change; a directory's entries cannot be added or removed.
    pub immutable: bool,
    /// The file may only grow at its end; a directory's entries cannot be removed.
    pub append_only: bool,
}

impl Protection {
    /// Neither flag.
    pub const NONE: Self = Self { immutable: false, append_only: false };

    /// True if the file has one of them.
    pub const fn is_any(self) -> bool {
        self.immutable || self.append_only
    }

    /// Decodes a mark: a letter for each flag. Everything from the first unknown letter on is ignored
    /// (kernel: `ovl_check_protattr`).
    pub fn decode(value: &[u8]) -> Self {
        let known = value.iter().take_while(|letter| matches!(letter, b'i' | b'a'));
        known.fold(Self::NONE, |found, letter| Self {
            immutable: found.immutable || *letter == b'i',
            append_only: found.append_only || *letter == b'a',
        })
    }

    /// The mark's value; empty if there must be no mark.
    pub fn encode(self) -> &'static [u8] {
        match (self.append_only, self.immutable) {
            (false, false) => b"",
            (false, true) => b"i",
            (true, false) => b"a",
            (true, true) => b"ai",
        }
    }

    /// True for a mark with known letters only.
    pub(super) fn is_good(value: &[u8]) -> bool {
        value.iter().all(|letter| matches!(letter, b'i' | b'a'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks() {
        for (value, immutable, append_only) in [
            (&b""[..], false, false),
            (b"i", true, false),
            (b"a", false, true),
            (b"ai", true, true),
            (b"ia", true, true),
            (b"ixa", true, false),
            (b"x", false, false),
        ] {
            assert_eq!(Protection::decode(value), Protection { immutable, append_only }, "{value:?}");
        }
        for value in [&b""[..], b"i", b"a", b"ai"] {
            assert_eq!(Protection::decode(value).encode(), value);
        }
    }
}
