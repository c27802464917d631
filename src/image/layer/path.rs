//! Names inside a layer.

use crate::image::layer::error::{LayerError, Result};

/// Longest name of one directory entry (`NAME_MAX`).
pub(crate) const NAME_MAX: usize = 255;

/// The components of `raw`, without empty ones and `.`.
pub(crate) fn components(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    raw.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// The path that an entry's name means: relative to the layer, with components joined by one `/`; empty for the
/// root. Absolute names count as relative, as in every tar reader.
///
/// # Errors
/// Names with `..`, a NUL byte or a component longer than [`NAME_MAX`], and names longer than `limit`.
pub(crate) fn normalise(raw: &[u8], limit: usize) -> Result<Vec<u8>> {
    if raw.contains(&0) {
        return Err(LayerError::entry(raw, "its name contains a NUL byte"));
    }
    if raw.len() > limit {
        return Err(LayerError::Limit {
            what: format!("name of {} bytes", raw.len()),
            limit: limit as u64,
            option: "path",
        });
    }
    let mut path = Vec::with_capacity(raw.len());
    for part in components(raw) {
        if part == b".." {
            return Err(LayerError::entry(raw, "its name contains \"..\""));
        }
        if part.len() > NAME_MAX {
            return Err(LayerError::entry(raw, format!("a component of {} bytes is too long", part.len())));
        }
        push(&mut path, part);
    }
    Ok(path)
}

/// Appends one component.
pub(crate) fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// `path` with one more component.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    push(&mut joined, name);
    joined
}

/// Drops the last component; the root stays the root.
pub(crate) fn pop(path: &mut Vec<u8>) {
    path.truncate(path.iter().rposition(|&byte| byte == b'/').unwrap_or(0));
}

/// Parent and last component; `None` for the root.
pub(crate) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => Some((path.get(..slash)?, path.get(slash + 1..)?)),
        None => Some((b"", path)),
    }
}

/// True if `path` is `ancestor` or below it.
pub(crate) fn is_at_or_below(path: &[u8], ancestor: &[u8]) -> bool {
    ancestor.is_empty() || path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        for (raw, expected) in [("a/b", "a/b"), ("./a//b/", "a/b"), ("/a/./b", "a/b"), ("./", ""), ("/", ""), ("", "")]
        {
            assert_eq!(normalise(raw.as_bytes(), 4095).unwrap(), expected.as_bytes(), "{raw:?}");
        }
        for bad in [&b".."[..], b"a/..", b"../a", b"/..", b"a/../b", b"a\0b", &[b'a'; 256], &[b'/'; 5000]] {
            assert!(normalise(bad, 4095).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn parents() {
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split(b""), None);
        let mut path = b"a/b".to_vec();
        pop(&mut path);
        assert_eq!(path, b"a");
        pop(&mut path);
        pop(&mut path);
        assert_eq!(path, b"");
        assert!(is_at_or_below(b"a/b", b"a") && is_at_or_below(b"a", b"a") && !is_at_or_below(b"ab", b"a"));
    }
}
