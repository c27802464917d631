//! Places of the stored bytes of a sparse file.

use crate::tar::header::Problem;

/// A run of stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Checks a sparse map: its runs must be in order, without overlap, inside the file, and together as long as the
/// stored bytes. Empty runs, with which writers mark the end of the file, are dropped.
pub(crate) fn checked(map: &[(i128, i128)], real_size: u64, stored: u64) -> Result<Vec<Segment>, Problem> {
    let mut segments: Vec<Segment> = Vec::new();
    let (mut end, mut total) = (0, 0);
    for &(offset, len) in map {
        let (Ok(offset), Ok(len)) = (u64::try_from(offset), u64::try_from(len)) else {
            return Err("the sparse map holds a negative number".to_owned());
        };
        let next = offset
            .checked_add(len)
            .filter(|next| *next <= real_size)
            .ok_or("the sparse map reaches beyond the file")?;
        if offset < end {
            return Err("the sparse map overlaps itself".to_owned());
        }
        end = next;
        total += len;
        match segments.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.offset + last.len == offset => last.len += len,
            _ => segments.push(Segment { offset, len }),
        }
    }
    if total != stored {
        return Err(format!("the sparse map covers {total} bytes, {stored} are stored"));
    }
    Ok(segments)
}

/// The map of a file that is not sparse.
pub(crate) fn whole(size: u64) -> Vec<Segment> {
    if size == 0 { Vec::new() } else { vec![Segment { offset: 0, len: size }] }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_checked() {
        assert_eq!(checked(&[(0, 4), (4, 4), (16, 2), (20, 0)], 20, 10).unwrap().len(), 2);
        for (map, size, stored) in [
            (&[(0, 4), (2, 4)][..], 20, 8),
            (&[(8, 4), (0, 4)], 20, 8),
            (&[(18, 4)], 20, 4),
            (&[(0, 4)], 20, 5),
            (&[(-1, 4)], 20, 4),
            (&[(i128::from(u64::MAX), 4)], u64::MAX, 4),
        ] {
            assert!(checked(map, size, stored).is_err(), "{map:?}");
        }
    }
}
