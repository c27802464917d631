//! The 512-byte tar header: POSIX.1-1988 `ustar`, GNU and V7 forms (GNU tar manual, "Basic Tar Format"; POSIX
//! pax, "ustar Interchange Format"). Where readers differ, this one follows Go's `archive/tar`, which all
//! container tools use.

/// A block of a tar stream.
pub(crate) const BLOCK: usize = 512;

/// One raw header block.
pub(crate) type Block = [u8; BLOCK];

/// Offsets and lengths from an archive, unchecked.
pub(crate) type RawMap = Vec<(i128, i128)>;

/// Why a block is not a header.
pub(crate) type Problem = String;

/// The variant stated by a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header block with a correct checksum.
pub(crate) struct Header<'a> {
    block: &'a Block,
    variant: Variant,
}

impl<'a> Header<'a> {
    /// Parses `block`.
    pub(crate) fn new(block: &'a Block) -> Result<Self, Problem> {
        let (unsigned, signed) = checksums(block);
        let field = octal(field(block, 148, 8)).unwrap_or(-1);
        if field != i128::from(unsigned) && field != i128::from(signed) {
            return Err(not_a_header(block, unsigned, field));
        }
        let variant = match (field8(block), block.get(508..512)) {
            (b"ustar  \0", _) => Variant::Gnu,
            ([b'u', b's', b't', b'a', b'r', 0, ..], Some(b"tar\0")) => Variant::Star,
            ([b'u', b's', b't', b'a', b'r', 0, ..], _) => Variant::Ustar,
            _ => Variant::V7,
        };
        Ok(Self { block, variant })
    }

    pub(crate) fn variant(&self) -> Variant {
        self.variant
    }

    /// The type flag.
    pub(crate) fn kind(&self) -> u8 {
        self.block[156]
    }

    /// The name, including the prefix.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = text(field(self.block, 0, 100));
        let prefix = match self.variant {
            Variant::V7 => &b""[..],
            Variant::Ustar => text(field(self.block, 345, 155)),
            Variant::Star => text(field(self.block, 345, 131)),
            Variant::Gnu => self.gnu_prefix(),
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// Before Go 1.8, its writer put a prefix where GNU headers have times; headers in old docker images are like that.
    fn gnu_prefix(&self) -> &'a [u8] {
        let times = [field(self.block, 345, 12), field(self.block, 357, 12)];
        if times.iter().all(|field| number(field).is_ok()) {
            return b"";
        }
        let prefix = text(field(self.block, 345, 155));
        if prefix.is_ascii() { prefix } else { b"" }
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        text(field(self.block, 157, 100)).to_vec()
    }

    pub(crate) fn mode(&self) -> Result<i128, Problem> {
        self.number("mode", 100, 8)
    }

    pub(crate) fn uid(&self) -> Result<i128, Problem> {
        self.number("uid", 108, 8)
    }

    pub(crate) fn gid(&self) -> Result<i128, Problem> {
        self.number("gid", 116, 8)
    }

    pub(crate) fn size(&self) -> Result<i128, Problem> {
        self.number("size", 124, 12)
    }

    pub(crate) fn mtime(&self) -> Result<i128, Problem> {
        self.number("mtime", 136, 12)
    }

    /// Device numbers; only `ustar` and related forms have them.
    pub(crate) fn device(&self) -> Result<(i128, i128), Problem> {
        match self.variant {
            Variant::V7 => Ok((0, 0)),
            _ => Ok((self.number("device major", 329, 8)?, self.number("device minor", 337, 8)?)),
        }
    }

    /// The part of a GNU sparse map in the header, whether more follows, and the file's size.
    pub(crate) fn gnu_sparse(&self) -> Result<(RawMap, bool, i128), Problem> {
        Ok((sparse_map(field(self.block, 386, 96))?, self.block[482] != 0, self.number("real size", 483, 12)?))
    }

    fn number(&self, what: &str, at: usize, len: usize) -> Result<i128, Problem> {
        number(field(self.block, at, len)).map_err(|()| format!("the header's {what} is not a number"))
    }
}

/// Explains why a block with a wrong checksum may not be a header.
fn not_a_header(block: &Block, sum: u32, field: i128) -> Problem {
    if block.starts_with(b"\x04\x22\x4d\x18") {
        return "compressed by lz4, which is not supported".to_owned();
    }
    format!("its checksum is {sum}, it says {field}")
}

/// The map in one extension block of a GNU sparse file, and whether another follows.
pub(crate) fn gnu_sparse_extension(block: &Block) -> Result<(RawMap, bool), Problem> {
    Ok((sparse_map(field(block, 0, 504))?, block[504] != 0))
}

/// Offset and length pairs up to the first empty one.
fn sparse_map(bytes: &[u8]) -> Result<RawMap, Problem> {
    let mut map = Vec::new();
    for pair in bytes.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let (offset, len) = pair.split_at(12);
        let not_a_number = |()| "the sparse map holds something that is not a number".to_owned();
        map.push((number(offset).map_err(not_a_number)?, number(len).map_err(not_a_number)?));
    }
    Ok(map)
}

fn field(block: &Block, at: usize, len: usize) -> &[u8] {
    block.get(at..at + len).unwrap_or_default()
}

fn field8(block: &Block) -> &[u8] {
    field(block, 257, 8)
}

/// The bytes before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Sum of the header's bytes, with spaces in the checksum field: as unsigned bytes, and as signed ones, which
/// some old writers used.
pub(crate) fn checksums(block: &Block) -> (u32, i32) {
    let mut unsigned = 0;
    let mut signed = 0;
    for (at, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { byte };
        unsigned += u32::from(byte);
        signed += i32::from(byte.cast_signed());
    }
    (unsigned, signed)
}

/// A numeric field: octal, or base-256 if its first bit is set (GNU, star). Empty is 0.
fn number(field: &[u8]) -> Result<i128, ()> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field).ok_or(()),
        _ => octal(field).ok_or(()),
    }
}

/// Two's complement, big-endian, without the marker bit.
fn base256(field: &[u8]) -> Option<i128> {
    let (&first, rest) = field.split_first()?;
    let negative = first & 0x40 != 0;
    let mut value = if negative { i128::from(first | 0x80) - 256 } else { i128::from(first & 0x7f) };
    for &byte in rest {
        value = value.checked_mul(256)?.checked_add(i128::from(byte))?;
    }
    // Larger values are never needed; the limit prevents overflow in sums of two.
    (value.unsigned_abs() < 1 << 64).then_some(value)
}

/// Octal digits between optional spaces and NULs.
fn octal(field: &[u8]) -> Option<i128> {
    let padding = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !padding(byte)).unwrap_or(field.len());
    let digits = text(field.get(start..)?);
    let end = digits.iter().rposition(|byte| !padding(byte)).map_or(0, |last| last + 1);
    let mut value = 0_i128;
    for &digit in digits.get(..end)? {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value = value * 8 + i128::from(digit - b'0');
    }
    Some(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let table: [(&[u8], Option<i128>); 11] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"00006x4\0", None),
            (b"77777777777 ", Some(0o77_777_777_777)),
            (b"644\0junk", Some(0o644)),
            (&[0x80, 0, 0, 0, 0, 0, 1, 0], Some(256)),
            (&[0xff; 12], Some(-1)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], Some(-2)),
            (&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], None),
        ];
        for (field, expected) in table {
            assert_eq!(number(field).ok(), expected, "{field:?}");
        }
    }
}
