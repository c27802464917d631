//! Writes content so that zeros become holes.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Content is checked in aligned windows of this length; a window of zeros becomes a hole.
const HOLE: usize = 64 << 10;
/// If a window is split between two buffers, so does a part of it that is at least this long.
const SHORTEST_HOLE: usize = 4 << 10;
static ZEROS: [u8; HOLE] = [0; HOLE];

/// Writes `bytes` at `offset`, except windows of zeros, which stay holes. Returns the number of bytes written and
/// the end of the last of them; the caller sets the file's length.
pub(crate) fn write(file: &File, offset: u64, bytes: &[u8]) -> std::io::Result<(u64, u64)> {
    let (mut written, mut end) = (0, 0);
    let mut run = 0;
    let mut at = 0;
    let mut flush = |from: usize, to: usize| {
        if from < to {
            file.write_all_at(bytes.get(from..to).unwrap_or_default(), offset + from as u64)?;
            written += (to - from) as u64;
            end = offset + to as u64;
        }
        std::io::Result::Ok(())
    };
    while at < bytes.len() {
        let aligned = HOLE - usize::try_from((offset + at as u64) % HOLE as u64).unwrap_or(0);
        let next = bytes.len().min(at + aligned);
        let window = bytes.get(at..next).unwrap_or_default();
        if window.len() >= SHORTEST_HOLE && ZEROS.starts_with(window) {
            flush(run, at)?;
            run = next;
        }
        at = next;
    }
    flush(run, at)?;
    Ok((written, end))
}
