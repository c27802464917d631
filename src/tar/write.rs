//! Writes tar headers: `ustar`, preceded by a PAX header only if `ustar` cannot express the entry.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::tar::header::{BLOCK, Block, checksums};
use crate::tar::{Attributes, Time};

/// The type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryType<'a> {
    File(u64),
    HardLink(&'a [u8]),
    Symlink(&'a [u8]),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Directory,
    Fifo,
}

impl EntryType<'_> {
    fn flag(&self) -> u8 {
        match self {
            Self::File(_) => b'0',
            Self::HardLink(_) => b'1',
            Self::Symlink(_) => b'2',
            Self::CharDevice(..) => b'3',
            Self::BlockDevice(..) => b'4',
            Self::Directory => b'5',
            Self::Fifo => b'6',
        }
    }
}

/// Writes the headers of one entry; the caller writes the contents and calls [`pad`].
pub(crate) fn header(out: &mut dyn Write, name: &[u8], kind: EntryType<'_>, attributes: &Attributes) -> io::Result<()> {
    let link = match kind {
        EntryType::HardLink(link) | EntryType::Symlink(link) => link,
        _ => b"",
    };
    let size = match kind {
        EntryType::File(size) => size,
        _ => 0,
    };
    let mut records = Vec::new();
    let mut block: Block = [0; BLOCK];
    put_name(&mut block, name, &mut records);
    if link.len() > 100 {
        record(&mut records, b"linkpath", link);
    }
    put(&mut block, 157, link.get(..link.len().min(100)).unwrap_or_default());
    octal(&mut block, 100, 8, attributes.mode.into());
    number(&mut block, 108, 8, attributes.uid.into(), "uid", &mut records);
    number(&mut block, 116, 8, attributes.gid.into(), "gid", &mut records);
    number(&mut block, 124, 12, size, "size", &mut records);
    put_mtime(&mut block, attributes.mtime, &mut records);
    block[156] = kind.flag();
    put(&mut block, 257, b"ustar\x0000");
    if let EntryType::CharDevice(major, minor) | EntryType::BlockDevice(major, minor) = kind {
        octal(&mut block, 329, 8, major.into());
        octal(&mut block, 337, 8, minor.into());
    }
    // A hard link has the attributes of its target.
    if !matches!(kind, EntryType::HardLink(_)) {
        for (key, value) in &attributes.xattrs {
            xattr_record(&mut records, key, value);
        }
    }
    if !records.is_empty() {
        pax_header(out, name, &records)?;
    }
    seal(&mut block);
    out.write_all(&block)
}

/// Pads to a whole block after `size` bytes of contents.
pub(crate) fn pad(out: &mut dyn Write, size: u64) -> io::Result<()> {
    let missing = size.next_multiple_of(BLOCK as u64) - size;
    out.write_all([0; BLOCK].get(..usize::try_from(missing).unwrap_or(0)).unwrap_or_default())
}

/// The two zero blocks at the end.
pub(crate) fn end(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

fn pax_header(out: &mut dyn Write, name: &[u8], records: &[u8]) -> io::Result<()> {
    let mut block: Block = [0; BLOCK];
    let trimmed = name.strip_suffix(b"/").unwrap_or(name);
    let base = trimmed.rsplit(|&byte| byte == b'/').next().unwrap_or(trimmed);
    let shown = [b"PaxHeaders.0/", base].concat();
    put(&mut block, 0, shown.get(..shown.len().min(100)).unwrap_or_default());
    octal(&mut block, 100, 8, 0o644);
    octal(&mut block, 108, 8, 0);
    octal(&mut block, 116, 8, 0);
    octal(&mut block, 124, 12, records.len() as u64);
    octal(&mut block, 136, 12, 0);
    block[156] = b'x';
    put(&mut block, 257, b"ustar\x0000");
    seal(&mut block);
    out.write_all(&block)?;
    out.write_all(records)?;
    pad(out, records.len() as u64)
}

/// The whole name, or the name split at a slash, or else a record.
fn put_name(block: &mut Block, name: &[u8], records: &mut Vec<u8>) {
    if name.len() <= 100 {
        return put(block, 0, name);
    }
    let mut slashes = name.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let split = slashes.rfind(|at| (1..=155).contains(at) && (1..=100).contains(&(name.len() - at - 1)));
    match split {
        Some(at) => {
            put(block, 345, name.get(..at).unwrap_or_default());
            put(block, 0, name.get(at + 1..).unwrap_or_default());
        }
        None => {
            if std::str::from_utf8(name).is_err() {
                record(records, b"hdrcharset", b"BINARY");
            }
            record(records, b"path", name);
            put(block, 0, name.get(..100).unwrap_or_default());
        }
    }
}

fn put_mtime(block: &mut Block, mtime: Time, records: &mut Vec<u8>) {
    let seconds = u64::try_from(mtime.seconds).ok().filter(|seconds| *seconds < 1 << 33);
    octal(block, 136, 12, seconds.unwrap_or(0));
    if seconds.is_none() || mtime.nanoseconds != 0 {
        record(records, b"mtime", decimal_time(mtime).as_bytes());
    }
}

/// `[-]SECONDS[.FRACTION]`, without trailing zeros.
fn decimal_time(time: Time) -> String {
    if time.nanoseconds == 0 {
        return time.seconds.to_string();
    }
    let nanoseconds = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let magnitude = nanoseconds.unsigned_abs();
    let text = format!("{sign}{}.{:09}", magnitude / 1_000_000_000, magnitude % 1_000_000_000);
    text.trim_end_matches('0').to_owned()
}

/// An octal field; if the value does not fit, a record and 0 in the field.
fn number(block: &mut Block, at: usize, len: usize, value: u64, key: &str, records: &mut Vec<u8>) {
    let fits = value < 1 << (3 * (len - 1));
    octal(block, at, len, if fits { value } else { 0 });
    if !fits {
        record(records, key.as_bytes(), value.to_string().as_bytes());
    }
}

fn octal(block: &mut Block, at: usize, len: usize, value: u64) {
    put(block, at, format!("{value:0width$o}", width = len - 1).as_bytes());
}

fn put(block: &mut Block, at: usize, bytes: &[u8]) {
    for (to, from) in block.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

fn seal(block: &mut Block) {
    let (sum, _) = checksums(block);
    put(block, 148, format!("{sum:06o}\0 ").as_bytes());
}

/// One PAX record; its length includes its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    records.extend_from_slice(format!("{len} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// `SCHILY.xattr.NAME`; a name with `=`, which that keyword cannot hold, in libarchive's form.
fn xattr_record(records: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    if !name.contains(&b'=') {
        return record(records, &[b"SCHILY.xattr.", name].concat(), value);
    }
    let mut key = b"LIBARCHIVE.xattr.".to_vec();
    for &byte in name {
        match byte {
            b'=' | b'%' | 0..=0x20 | 0x7f.. => key.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            _ => key.push(byte),
        }
    }
    record(records, &key, STANDARD_NO_PAD.encode(value).as_bytes());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn record_lengths_count_themselves() {
        for len in 0..1200 {
            let mut records = Vec::new();
            record(&mut records, b"path", &vec![b'a'; len]);
            let (digits, _) = records.split_at(records.iter().position(|&byte| byte == b' ').unwrap());
            assert_eq!(std::str::from_utf8(digits).unwrap().parse::<usize>().unwrap(), records.len());
        }
    }

    #[test]
    fn times() {
        for (seconds, nanoseconds, expected) in
            [(1, 0, "1"), (1, 500_000_000, "1.5"), (-2, 750_000_000, "-1.25"), (-1, 999_999_999, "-0.000000001")]
        {
            assert_eq!(decimal_time(Time { seconds, nanoseconds }), expected);
        }
    }
}
