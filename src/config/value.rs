//! Values of mount options.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use super::IdRange;
use super::error::OptionError;

/// One option of an option string, still escaped.
pub(super) struct Word<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
}

impl<'a> Word<'a> {
    pub(super) fn new(piece: &'a [u8]) -> Self {
        match piece.iter().position(|&byte| byte == b'=') {
            Some(at) => {
                let (name, value) = piece.split_at(at);
                Self { name, value: value.get(1..) }
            }
            None => Self { name: piece, value: None },
        }
    }

    pub(super) fn name_lossy(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.name)
    }

    /// The error for a value that is not as `expected`.
    fn wrong(&self, expected: &str) -> OptionError {
        OptionError::Usage(format!(
            "option '{}': '{}' is not {expected}",
            self.name_lossy(),
            String::from_utf8_lossy(self.value.unwrap_or_default())
        ))
    }

    /// The value; it must not be empty.
    fn given(&self) -> Result<&'a [u8], OptionError> {
        match self.value {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(OptionError::Usage(format!("option '{}' needs a value", self.name_lossy()))),
        }
    }

    fn given_str(&self, expected: &str) -> Result<&'a str, OptionError> {
        str::from_utf8(self.given()?).map_err(|_| self.wrong(expected))
    }
}

/// Splits at `separator` where it is neither escaped nor quoted. The parts keep their escapes.
pub(super) fn split(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut start = 0;
    let (mut escaped, mut quoted, mut previous) = (false, false, 0);
    for (at, &byte) in text.iter().enumerate() {
        if escaped {
            escaped = false;
        } else if byte == b'\\' {
            escaped = true;
        } else if byte == b'"' && (quoted || previous == b'=') {
            quoted = !quoted;
        } else if byte == separator && !quoted {
            parts.push(text.get(start..at).unwrap_or_default());
            start = at + 1;
        }
        previous = byte;
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts
}

/// Removes the backslashes, like the kernel's `ovl_unescape()`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => plain.extend(bytes.next()),
            _ => plain.push(byte),
        }
    }
    plain
}

fn to_path(text: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(text)))
}

pub(super) fn path(word: &Word<'_>) -> Result<PathBuf, OptionError> {
    Ok(to_path(word.given()?))
}

/// `LOWER[:LOWER…][::DATA…]`, as the kernel's `ovl_parse_param_lowerdir()`.
pub(super) fn lower_layers(word: &Word<'_>) -> Result<(Vec<PathBuf>, Vec<PathBuf>), OptionError> {
    let wrong = |why: &str| {
        OptionError::Usage(format!(
            "option 'lowerdir': {why} in '{}'",
            String::from_utf8_lossy(word.value.unwrap_or_default())
        ))
    };
    let (mut lowers, mut data_only) = (Vec::new(), Vec::new());
    let mut after_empty = false;
    for part in split(word.given()?, b':') {
        match (part.is_empty(), after_empty) {
            (true, false) if !lowers.is_empty() => after_empty = true,
            (true, _) => return Err(wrong("empty path")),
            (false, true) => {
                data_only.push(to_path(part));
                after_empty = false;
            }
            (false, false) if data_only.is_empty() => lowers.push(to_path(part)),
            (false, false) => return Err(wrong("a layer after a data-only layer must follow '::'")),
        }
    }
    if after_empty {
        return Err(wrong("empty path"));
    }
    Ok((lowers, data_only))
}

pub(super) fn choice<T: Copy>(word: &Word<'_>, choices: &[(&str, T)]) -> Result<T, OptionError> {
    let given = word.given()?;
    match choices.iter().find(|(name, _)| name.as_bytes() == given) {
        Some(&(_, choice)) => Ok(choice),
        None => {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            Err(word.wrong(&format!("one of {}", names.join(", "))))
        }
    }
}

/// `name` or `name=on|off|1|0|yes|no|true|false`.
pub(super) fn switch(word: &Word<'_>) -> Result<bool, OptionError> {
    match word.value {
        None | Some(b"on" | b"1" | b"yes" | b"true") => Ok(true),
        Some(b"off" | b"0" | b"no" | b"false") => Ok(false),
        Some(_) => Err(word.wrong("on or off")),
    }
}

pub(super) fn text(word: &Word<'_>) -> Result<String, OptionError> {
    let bytes = unescape(word.given()?);
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(word.wrong("valid UTF-8")),
    }
}

/// The unchanged option, for the kernel.
pub(super) fn verbatim(word: &Word<'_>) -> Result<String, OptionError> {
    Ok(format!("{}={}", word.name_lossy(), word.given_str("valid UTF-8")?))
}

pub(super) fn id(word: &Word<'_>) -> Result<u32, OptionError> {
    match word.given_str("a numeric id")?.parse::<u32>() {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(word.wrong("a numeric id")),
    }
}

pub(super) fn threads(word: &Word<'_>) -> Result<usize, OptionError> {
    match word.given_str("a number of threads")?.parse::<usize>() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err(word.wrong("a number of threads from 1 to 1024")),
    }
}

pub(super) fn seconds(word: &Word<'_>) -> Result<Duration, OptionError> {
    let expected = "a number of seconds";
    let seconds: f64 = word.given_str(expected)?.parse().map_err(|_| word.wrong(expected))?;
    Duration::try_from_secs_f64(seconds).map_err(|_| word.wrong(expected))
}

/// Bytes, or with `K`, `M`, `G` or `T` behind the number, 1024 times as many and so on; `None` for 0, which sets no limit. As
/// tmpfs reads its option of that name (`memparse` in the kernel's `lib/cmdline.c`).
pub(super) fn size(word: &Word<'_>) -> Result<Option<u64>, OptionError> {
    let expected = "a number of bytes, such as 500M or 2G";
    let text = word.given_str(expected)?;
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return Err(word.wrong(expected)),
    };
    let number: u64 = digits.parse().map_err(|_| word.wrong(expected))?;
    match number.checked_mul(1 << shift) {
        Some(bytes) if !digits.starts_with('+') => Ok((bytes > 0).then_some(bytes)),
        _ => Err(word.wrong(expected)),
    }
}

/// Any number of `ON-DISK:SHOWN:COUNT`, as in fuse-overlayfs (its manual calls them `UID:MAPPED-UID:LEN`).
/// Empty fields are skipped: containers/storage writes a colon before each range.
pub(super) fn id_ranges(word: &Word<'_>) -> Result<Vec<IdRange>, OptionError> {
    let wrong = || word.wrong("a list ON-DISK:SHOWN:COUNT[:ON-DISK:SHOWN:COUNT…]");
    let numbers = word
        .given_str("a list of ids")?
        .split(':')
        .filter(|number| !number.is_empty())
        .map(|number| number.parse::<u32>().map_err(|_| wrong()))
        .collect::<Result<Vec<u32>, OptionError>>()?;
    let (triples, rest) = numbers.as_chunks::<3>();
    if triples.is_empty() || !rest.is_empty() {
        return Err(wrong());
    }
    triples
        .iter()
        .map(|&[on_disk, shown, count]| {
            let fits = |first: u32| first.checked_add(count).is_some();
            if count > 0 && fits(on_disk) && fits(shown) { Ok(IdRange { shown, on_disk, count }) } else { Err(wrong()) }
        })
        .collect()
}
