//! Names and link count marks of index entries (kernel: `ovl_get_index_name_fh`, `ovl_set_nlink_common`,
//! `ovl_get_nlink`).

use std::ffi::CString;

/// Digits of an entry's name.
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Name of the index entry of an origin mark: its bytes in hexadecimal.
pub fn entry_name(origin: &[u8]) -> CString {
    let digit = |value: u8| DIGITS.get(usize::from(value)).copied().unwrap_or(b'0');
    let name: Vec<u8> = origin.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
    // Digits only, so there is no NUL.
    CString::new(name).unwrap_or_default()
}

/// The origin mark that gave an index entry its name; `None` if the name is not that of an entry.
pub fn decode_entry_name(name: &[u8]) -> Option<Vec<u8>> {
    let value = |digit: &u8| DIGITS.iter().position(|d| *d == digit.to_ascii_lowercase()).map(|at| at as u8);
    let (pairs, rest) = name.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(value(high)? << 4 | value(low)?)).collect()
}

/// Decodes the link count mark: returns the mount's count, given those of the upper and the lower file.
pub fn decode_nlink(mark: &[u8], upper: u32, lower: u32) -> Option<u32> {
    let text = std::str::from_utf8(mark).ok()?;
    let (base, difference) = match text.split_at_checked(1)? {
        ("U", difference) => (upper, difference),
        ("L", difference) => (lower, difference),
        _ => return None,
    };
    u32::try_from(i64::from(base).checked_add(difference.parse::<i64>().ok()?)?).ok()
}

/// Encodes the link count mark, relative to the count `base` of the file that `letter` stands for.
pub fn encode_nlink(letter: char, count: u32, base: u32) -> String {
    format!("{letter}{:+}", i64::from(count) - i64::from(base))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        assert_eq!(entry_name(&[0x00, 0xfb, 0x1d]).as_c_str(), c"00fb1d");
        assert_eq!(decode_entry_name(b"00fB1d"), Some(vec![0, 0xfb, 0x1d]));
        for bad in [&b"0"[..], b"0g", b"#1"] {
            assert_eq!(decode_entry_name(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn link_counts_are_relative() {
        for (mark, upper, lower, count) in [
            ("U-1", 3, 9, Some(2)),
            ("U+0", 3, 9, Some(3)),
            ("L+2", 3, 9, Some(11)),
            ("L-9", 3, 9, Some(0)),
            ("U-4", 3, 9, None),
            ("U+9223372036854775807", 3, 9, None),
            ("X+1", 3, 9, None),
            ("U", 3, 9, None),
            ("", 3, 9, None),
        ] {
            assert_eq!(decode_nlink(mark.as_bytes(), upper, lower), count, "{mark}");
        }
        assert_eq!(encode_nlink('U', 2, 3), "U-1");
        assert_eq!(encode_nlink('L', 4, 2), "L+2");
        assert_eq!(encode_nlink('L', 2, 2), "L+0");
    }
}
