//! PAX extended headers: records `LENGTH KEY=VALUE\n` (POSIX pax, "pax Extended Header"), the GNU sparse and the
//! SCHILY and LIBARCHIVE attribute keywords.
//!
//! Global headers (`g`) are skipped, because Go's `archive/tar`, which builds and reads images, does not apply
//! them. If they were applied, the first entry could rename every other.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::tar::acl;
use crate::tar::header::Problem;

/// A time as files have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds since the epoch, rounded down.
    pub seconds: i64,
    /// Nanoseconds after that, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// The extended headers of one entry.
#[derive(Debug, Default)]
pub(crate) struct Extended {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<Time>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: PaxSparse,
    /// There is an ACL in text form with user names, which have no meaning here.
    pub(crate) text_acl: bool,
}

/// The `GNU.sparse.*` keywords.
#[derive(Debug, Default)]
pub(crate) struct PaxSparse {
    /// 1.0: the map is at the start of the contents.
    pub(crate) version: Option<(u64, u64)>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) real_size: Option<u64>,
    /// 0.0 and 0.1: offsets and lengths, alternating.
    pub(crate) map: Option<Vec<u64>>,
    pub(crate) blocks: Option<u64>,
}

impl PaxSparse {
    pub(crate) fn is_present(&self) -> bool {
        self.version.is_some() || self.map.is_some() || self.blocks.is_some()
    }
}

/// Parses the records of one extended header; later records override earlier ones.
pub(crate) fn parse(mut bytes: &[u8]) -> Result<Extended, Problem> {
    let mut extended = Extended::default();
    while !bytes.is_empty() {
        let (record, rest) = record(bytes)?;
        apply(&mut extended, record.key, record.value)?;
        bytes = rest;
    }
    Ok(extended)
}

/// One record.
struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

/// The first record, and the rest.
fn record(bytes: &[u8]) -> Result<(Record<'_>, &[u8]), Problem> {
    let malformed = || "malformed PAX record".to_owned();
    let space = bytes.iter().take(20).position(|&byte| byte == b' ').ok_or_else(malformed)?;
    let (digits, _) = bytes.split_at(space);
    let len = decimal(digits).and_then(|len| usize::try_from(len).ok()).ok_or_else(malformed)?;
    let record = bytes.get(space + 1..len).ok_or("a PAX record says that it is longer than its header")?;
    let body = record.strip_suffix(b"\n").ok_or_else(malformed)?;
    let equals = body.iter().position(|&byte| byte == b'=').ok_or_else(malformed)?;
    let (key, value) = (body.get(..equals).unwrap_or_default(), body.get(equals + 1..).unwrap_or_default());
    if key.is_empty() || key.contains(&0) {
        return Err(malformed());
    }
    Ok((Record { key, value }, bytes.get(len..).unwrap_or_default()))
}

fn apply(extended: &mut Extended, key: &[u8], value: &[u8]) -> Result<(), Problem> {
    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
        return set_xattr(&mut extended.xattrs, name, value.to_vec());
    }
    if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
        let (name, value) = (url_decoded(name), base64_decoded(value).ok_or("a LIBARCHIVE.xattr value is not base64")?);
        // Libarchive writes both forms; SCHILY's is exact and is always present then.
        return match extended.xattrs.iter().any(|(known, _)| *known == name) {
            true => Ok(()),
            false => set_xattr(&mut extended.xattrs, &name, value),
        };
    }
    if let Some(kind) = key.strip_prefix(b"SCHILY.acl.") {
        return apply_acl(extended, kind, value);
    }
    // An empty value revokes a record.
    let given = (!value.is_empty()).then_some(value);
    let number =
        |what: &str| given.map(|digits| decimal(digits).ok_or(format!("PAX {what} is not a number"))).transpose();
    match key {
        b"path" => extended.path = name(given, "path")?,
        b"linkpath" => extended.link = name(given, "linkpath")?,
        b"size" => extended.size = number("size")?,
        b"uid" => extended.uid = number("uid")?,
        b"gid" => extended.gid = number("gid")?,
        b"mtime" => extended.mtime = given.map(|text| time(text).ok_or("PAX mtime is not a time")).transpose()?,
        b"GNU.sparse.name" => extended.sparse.name = name(given, "GNU.sparse.name")?,
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => extended.sparse.real_size = number("sparse size")?,
        b"GNU.sparse.numblocks" => extended.sparse.blocks = number("GNU.sparse.numblocks")?,
        b"GNU.sparse.major" => {
            extended.sparse.version =
                number("sparse version")?.map(|major| (major, extended.sparse.version.map_or(0, |v| v.1)));
        }
        b"GNU.sparse.minor" => {
            extended.sparse.version =
                number("sparse version")?.map(|minor| (extended.sparse.version.map_or(0, |v| v.0), minor));
        }
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
            let map = extended.sparse.map.get_or_insert_default();
            let expects_offset = map.len().is_multiple_of(2);
            if expects_offset != (key == b"GNU.sparse.offset") {
                return Err("the PAX sparse map has offsets and lengths out of turn".to_owned());
            }
            map.push(number("sparse map")?.ok_or("the PAX sparse map has an empty number")?);
        }
        b"GNU.sparse.map" => {
            let numbers = value.split(|&byte| byte == b',').map(decimal);
            let map: Option<Vec<u64>> = if value.is_empty() { Some(Vec::new()) } else { numbers.collect() };
            extended.sparse.map = Some(map.ok_or("the PAX sparse map holds something that is not a number")?);
        }
        _ => {}
    }
    Ok(())
}

/// An ACL in text form. If the attribute itself is present too, that is exact.
fn apply_acl(extended: &mut Extended, kind: &[u8], value: &[u8]) -> Result<(), Problem> {
    let name: &[u8] = match kind {
        _ if value.is_empty() => return Ok(()),
        b"access" => b"system.posix_acl_access",
        b"default" => b"system.posix_acl_default",
        _ => b"",
    };
    if extended.xattrs.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    match acl::encode(value).filter(|_| !name.is_empty()) {
        Some(encoded) => set_xattr(&mut extended.xattrs, name, encoded),
        None => {
            extended.text_acl = true;
            Ok(())
        }
    }
}

fn name(value: Option<&[u8]>, what: &str) -> Result<Option<Vec<u8>>, Problem> {
    match value {
        Some(name) if name.contains(&0) => Err(format!("PAX {what} contains a NUL byte")),
        other => Ok(other.map(<[u8]>::to_vec)),
    }
}

fn set_xattr(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>, name: &[u8], value: Vec<u8>) -> Result<(), Problem> {
    if name.is_empty() || name.contains(&0) {
        return Err("an extended attribute without a name".to_owned());
    }
    match xattrs.iter_mut().find(|(known, _)| known == name) {
        Some(known) => known.1 = value,
        None => xattrs.push((name.to_vec(), value)),
    }
    Ok(())
}

/// Decimal digits only.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
}

/// `[-]SECONDS[.FRACTION]`; digits after the ninth are dropped.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(dot) => (text.get(..dot)?, text.get(dot + 1..)?),
        None => (text, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let mut nanoseconds = 0;
    for at in 0..9 {
        nanoseconds = nanoseconds * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'));
    }
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// Decodes `%XX`.
fn url_decoded(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let hex = text.get(at + 1..at + 3).filter(|_| byte == b'%').and_then(|pair| std::str::from_utf8(pair).ok());
        match hex.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

/// Decodes base64 (RFC 4648) with or without padding.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&STANDARD, config.with_decode_allow_trailing_bits(true)).decode(text).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let extended =
            parse(b"12 path=a/b\n21 mtime=-1.25000000\n6 x=y\n23 SCHILY.xattr.u.a=\x00\n\n12 path=c/d\n").unwrap();
        assert_eq!(extended.path.as_deref(), Some(&b"c/d"[..]));
        assert_eq!(extended.mtime, Some(Time { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(extended.xattrs, [(b"u.a".to_vec(), b"\x00\n".to_vec())]);
        for bad in [
            &b"x"[..],
            b"12 path=a/b",
            b"99 path=a/b\n",
            b"0 path=a\n",
            b"4 =\n",
            b"7 path\n",
            b"-5 a=b\n",
            b"12 path=a\0b\n",
        ] {
            assert!(parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn times() {
        let table: [(&str, Option<(i64, u32)>); 8] = [
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("-1", Some((-1, 0))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("1.", Some((1, 0))),
            ("", None),
            ("1.x", None),
            ("99999999999999999999", None),
        ];
        for (text, expected) in table {
            assert_eq!(time(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds)), expected, "{text}");
        }
    }

    #[test]
    fn libarchive_attributes() {
        assert_eq!(url_decoded(b"user.a%3Db%"), b"user.a=b%");
        assert_eq!(base64_decoded(b"aGVsbG8").unwrap(), b"hello");
        assert_eq!(base64_decoded(b"aGVsbG8=").unwrap(), b"hello");
        assert!(base64_decoded(b"a*b").is_none());
    }
}
