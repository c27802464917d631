//! The recipe of a layer: its whole tar stream without the file contents that the layer directory holds. With
//! both, the original tar can be re-assembled bit for bit.
//!
//! Format: a zstd stream (of several frames) of `MAGIC` and records; numbers are LEB128:
//!
//! * `R length bytes`: bytes of the tar stream, unchanged: headers, padding, contents that are in no file;
//! * `F length path pairs (offset length)* crc`: parts of the contents of the layer's file at `path`, and their
//!   CRC-32 (little-endian), which locates damage in a file;
//! * `E size digest`: the end, with length and SHA-256 of the whole tar stream.
//!
//! A file that is replaced by a later entry of the same archive is not in the layer directory. Its contents are
//! saved when it is removed, and its `F` record becomes `R` when the recipe is closed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};

use crate::confined;
use crate::image::digest::{Digest, DigestWriter};
use crate::image::layer::error::{AtPath, LayerError, Result, printable};
use crate::tar::read::RawSink;
use crate::tar::sparse::Segment;

/// First bytes of every recipe.
const MAGIC: &[u8] = b"stratafs layer recipe 1\n";
/// Raw bytes are collected up to this length.
const RAW_LEN: usize = 64 << 10;
/// Longest path that a reader accepts.
const PATH_LEN: u64 = 1 << 16;
/// Most segments of a file that a reader accepts.
const SEGMENTS: u64 = 1 << 26;

const RAW: u8 = b'R';
const CONTENTS: u8 = b'F';
const END: u8 = b'E';

/// A nameless file for data needed only while unpacking: in the layer's file system, or else in `TMPDIR`.
fn unnamed_file(dir: BorrowedFd<'_>) -> io::Result<File> {
    match rustix::fs::openat(dir, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(fd.into()),
        Err(_unsupported) => tempfile::tempfile(),
    }
}

/// Contents of a file that was removed from the layer.
struct Saved {
    /// Number of `F` records before the removal.
    before: u64,
    at: u64,
}

/// Collects the recipe while a layer is unpacked.
pub(crate) struct RecipeWriter {
    spool: zstd::Encoder<'static, File>,
    raw: Vec<u8>,
    files: u64,
    saved: HashMap<Vec<u8>, Vec<Saved>>,
    saved_contents: Option<File>,
    saved_len: u64,
}

impl RecipeWriter {
    /// A recipe that is spooled in the file system of `dir`.
    pub(crate) fn new(dir: BorrowedFd<'_>) -> Result<Self> {
        let spool = unnamed_file(dir).and_then(|file| zstd::Encoder::new(file, 3)).map_err(spool_error)?;
        let mut writer =
            Self { spool, raw: Vec::new(), files: 0, saved: HashMap::new(), saved_contents: None, saved_len: 0 };
        writer.spool.write_all(MAGIC).map_err(spool_error)?;
        Ok(writer)
    }

    fn flush_raw(&mut self) -> Result<()> {
        if !self.raw.is_empty() {
            write_raw(&mut self.spool, &self.raw).map_err(spool_error)?;
            self.raw.clear();
        }
        Ok(())
    }

    /// Records bytes of the tar stream that the layer's file at `path` holds.
    pub(crate) fn contents(&mut self, path: &[u8], segments: &[Segment], crc: u32) -> Result<()> {
        if segments.is_empty() {
            return Ok(());
        }
        self.flush_raw()?;
        self.files += 1;
        write_contents(&mut self.spool, path, segments, crc).map_err(spool_error)
    }

    /// Saves the contents of the file at `path`, which is about to be removed.
    pub(crate) fn save(&mut self, dir: BorrowedFd<'_>, path: &[u8], file: &File) -> Result<()> {
        let len = file.metadata().at(path)?.len();
        if len == 0 {
            return Ok(());
        }
        let target = match &self.saved_contents {
            Some(target) => target,
            None => self.saved_contents.insert(unnamed_file(dir).map_err(spool_error)?),
        };
        confined::copy_extents(file, target, self.saved_len, len).at(path)?;
        self.saved.entry(path.to_vec()).or_default().push(Saved { before: self.files, at: self.saved_len });
        // Aligned, so that holes remain holes.
        self.saved_len += len.next_multiple_of(4096);
        Ok(())
    }

    /// Writes the recipe of a tar stream with this digest and length.
    pub(crate) fn finish(mut self, digest: Digest, size: u64, out: &mut dyn Write) -> Result<()> {
        self.flush_raw()?;
        let mut spool = self.spool.finish().map_err(spool_error)?;
        spool.seek(SeekFrom::Start(0)).map_err(spool_error)?;
        if let Some(contents) = self.saved_contents {
            let saved = SavedContents { saved: self.saved, contents, next: 0 };
            saved.put_in(spool, out)?;
        } else {
            io::copy(&mut spool, out).map_err(out_error)?;
        }
        let mut end = vec![END];
        put_number(&mut end, size);
        end.extend_from_slice(digest.as_bytes());
        out.write_all(&zstd::encode_all(end.as_slice(), 3).map_err(spool_error)?).map_err(out_error)
    }
}

/// Receives unchanged bytes of the tar stream.
impl RawSink for Option<RecipeWriter> {
    type Error = LayerError;

    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(writer) = self else { return Ok(()) };
        writer.raw.extend_from_slice(bytes);
        if writer.raw.len() >= RAW_LEN { writer.flush_raw() } else { Ok(()) }
    }
}

/// The saved contents of removed files, for the recipe.
struct SavedContents {
    saved: HashMap<Vec<u8>, Vec<Saved>>,
    contents: File,
    /// Number of the next `F` record.
    next: u64,
}

impl SavedContents {
    fn put_in(mut self, spool: File, out: &mut dyn Write) -> Result<()> {
        let mut records = RecordReader::new(spool)?;
        let mut out = zstd::Encoder::new(out, 3).map_err(out_error)?;
        out.write_all(MAGIC).map_err(out_error)?;
        while let Some(record) = records.next()? {
            match record {
                Record::Raw(len) => {
                    out.write_all(&[RAW]).map_err(out_error)?;
                    write_number(&mut out, len).map_err(out_error)?;
                    records.copy(len, &mut out)?;
                }
                Record::Contents { path, segments, crc } => {
                    let index = self.next;
                    self.next += 1;
                    let removals = self.saved.get(&path);
                    match removals.and_then(|removals| removals.iter().find(|saved| saved.before > index)) {
                        Some(saved) => self.inline(saved.at, &segments, &mut out)?,
                        None => write_contents(&mut out, &path, &segments, crc).map_err(out_error)?,
                    }
                }
                Record::End { .. } => {}
            }
        }
        out.finish().map_err(out_error)?;
        Ok(())
    }

    fn inline(&self, at: u64, segments: &[Segment], out: &mut dyn Write) -> Result<()> {
        for segment in segments {
            out.write_all(&[RAW]).map_err(out_error)?;
            write_number(out, segment.len).map_err(out_error)?;
            let part = Segment { offset: at + segment.offset, len: segment.len };
            read_segment(&self.contents, part, &mut |bytes| out.write_all(bytes)).map_err(out_error)?;
        }
        Ok(())
    }
}

fn spool_error(source: io::Error) -> LayerError {
    LayerError::Io { place: "spool of the layer's recipe".into(), source }
}

fn out_error(source: io::Error) -> LayerError {
    LayerError::Io { place: "writing the layer's recipe".into(), source }
}

fn put_number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f | 0x80) as u8);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn write_number(out: &mut dyn Write, value: u64) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(10);
    put_number(&mut bytes, value);
    out.write_all(&bytes)
}

fn write_raw(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(&[RAW])?;
    write_number(out, bytes.len() as u64)?;
    out.write_all(bytes)
}

fn write_contents(out: &mut dyn Write, path: &[u8], segments: &[Segment], crc: u32) -> io::Result<()> {
    let mut record = vec![CONTENTS];
    put_number(&mut record, path.len() as u64);
    record.extend_from_slice(path);
    put_number(&mut record, segments.len() as u64);
    for segment in segments {
        put_number(&mut record, segment.offset);
        put_number(&mut record, segment.len);
    }
    record.extend_from_slice(&crc.to_le_bytes());
    out.write_all(&record)
}

/// One record; the bytes of `Raw` follow in the reader.
pub(crate) enum Record {
    Raw(u64),
    Contents { path: Vec<u8>, segments: Vec<Segment>, crc: u32 },
    End { size: u64, digest: Digest },
}

/// Reads a recipe's records.
pub(crate) struct RecordReader<'a, R: Read> {
    input: BufReader<zstd::Decoder<'a, BufReader<R>>>,
}

impl<R: Read> RecordReader<'_, R> {
    pub(crate) fn new(input: R) -> Result<Self> {
        let decoder = zstd::Decoder::new(input).map_err(recipe_error)?;
        let mut reader = Self { input: BufReader::with_capacity(RAW_LEN, decoder) };
        let mut magic = [0; MAGIC.len()];
        reader.input.read_exact(&mut magic).map_err(recipe_error)?;
        if magic != MAGIC {
            return Err(LayerError::Recipe("it does not start as one of a known version".into()));
        }
        Ok(reader)
    }

    /// `None` at the stream's end.
    pub(crate) fn next(&mut self) -> Result<Option<Record>> {
        let tag = match self.input.fill_buf().map_err(recipe_error)?.first() {
            Some(tag) => *tag,
            None => return Ok(None),
        };
        self.input.consume(1);
        Ok(Some(match tag {
            RAW => Record::Raw(self.number()?),
            CONTENTS => {
                let len = self.number_up_to(PATH_LEN)?;
                let mut path = vec![0; usize::try_from(len).unwrap_or(0)];
                self.input.read_exact(&mut path).map_err(recipe_error)?;
                let count = self.number_up_to(SEGMENTS)?;
                let mut segments = Vec::new();
                for _ in 0..count {
                    segments.push(Segment { offset: self.number()?, len: self.number()? });
                }
                let mut crc = [0; 4];
                self.input.read_exact(&mut crc).map_err(recipe_error)?;
                Record::Contents { path, segments, crc: u32::from_le_bytes(crc) }
            }
            END => {
                let size = self.number()?;
                let mut digest = [0; 32];
                self.input.read_exact(&mut digest).map_err(recipe_error)?;
                Record::End { size, digest: Digest::from_bytes(digest) }
            }
            other => return Err(LayerError::Recipe(format!("unknown record {other:#04x}"))),
        }))
    }

    fn number(&mut self) -> Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.input.read_exact(&mut byte).map_err(recipe_error)?;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(LayerError::Recipe("a number is too long".into()))
    }

    fn number_up_to(&mut self, limit: u64) -> Result<u64> {
        let value = self.number()?;
        if value > limit { Err(LayerError::Recipe(format!("{value} is out of range"))) } else { Ok(value) }
    }

    /// Appends at most `limit` bytes of a raw record to `buffer`; returns how many.
    pub(crate) fn read_raw(&mut self, limit: u64, buffer: &mut Vec<u8>) -> Result<u64> {
        match self.input.by_ref().take(limit).read_to_end(buffer).map_err(recipe_error)? as u64 {
            0 => Err(LayerError::Recipe("it is cut off".into())),
            count => Ok(count),
        }
    }

    fn copy(&mut self, len: u64, out: &mut dyn Write) -> Result<()> {
        let mut left = len;
        while left > 0 {
            let available = self.input.fill_buf().map_err(recipe_error)?;
            let taken = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if taken == 0 {
                return Err(LayerError::Recipe("it is cut off".into()));
            }
            out.write_all(available.get(..taken).unwrap_or_default()).map_err(tar_error)?;
            self.input.consume(taken);
            left -= taken as u64;
        }
        Ok(())
    }
}

fn recipe_error(source: io::Error) -> LayerError {
    LayerError::Recipe(source.to_string())
}

fn tar_error(source: io::Error) -> LayerError {
    LayerError::Io { place: "writing the layer tar".into(), source }
}

fn read_segment(file: &File, segment: Segment, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(segment.len.min(256 << 10)).unwrap_or(0)];
    let mut done = 0;
    while done < segment.len {
        let wanted = buffer.len().min(usize::try_from(segment.len - done).unwrap_or(usize::MAX));
        let part = buffer.get_mut(..wanted).unwrap_or_default();
        file.read_exact_at(part, segment.offset + done)?;
        sink(part)?;
        done += wanted as u64;
    }
    Ok(())
}

/// Re-assembles the original uncompressed tar from its recipe and the layer directory. Returns the digest and
/// the length of what was written, which equal the original's.
///
/// # Errors
/// [`LayerError::Damaged`] at the first file whose content has changed, [`LayerError::Recipe`] for a bad recipe,
/// [`LayerError::Io`] from `out`. After an error, the output must not be used.
pub fn reassemble(recipe: &mut dyn Read, layer: BorrowedFd<'_>, out: &mut dyn Write) -> Result<(Digest, u64)> {
    let mut out = DigestWriter::new(out);
    let expected = assemble(recipe, layer, &mut out)?;
    let (_, digest, size) = out.finish();
    if expected != (digest, size) {
        let reason = format!("the tar put together is {digest} of {size} bytes, not {} of {}", expected.0, expected.1);
        return Err(LayerError::Recipe(reason));
    }
    Ok((digest, size))
}

/// Writes the tar stream; returns the digest and length that it should have.
fn assemble(recipe: &mut dyn Read, layer: BorrowedFd<'_>, out: &mut dyn Write) -> Result<(Digest, u64)> {
    let mut records = RecordReader::new(recipe)?;
    loop {
        match records.next()? {
            Some(Record::Raw(len)) => records.copy(len, out)?,
            Some(Record::Contents { path, segments, crc }) => copy_contents(layer, &path, &segments, crc, out)?,
            Some(Record::End { size, digest }) => return Ok((digest, size)),
            None => return Err(LayerError::Recipe("it has no end".into())),
        }
    }
}

/// Opens the file with the contents of a record; an error says why it cannot have them.
pub(crate) fn open_contents(layer: BorrowedFd<'_>, path: &[u8]) -> Result<File, String> {
    let reason = |error: rustix::io::Errno| io::Error::from(error).to_string();
    let file = File::from(confined::beneath(layer, path, OFlags::RDONLY | OFlags::NONBLOCK).map_err(reason)?);
    let stat = rustix::fs::fstat(file.as_fd()).map_err(reason)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err("it is no longer a regular file".into());
    }
    Ok(file)
}

fn copy_contents(
    layer: BorrowedFd<'_>,
    path: &[u8],
    segments: &[Segment],
    crc: u32,
    out: &mut dyn Write,
) -> Result<()> {
    let damaged = |reason: String| LayerError::Damaged { path: printable(path), reason };
    let file = open_contents(layer, path).map_err(damaged)?;
    let mut running = flate2::Crc::new();
    let mut write_failed = false;
    for segment in segments {
        read_segment(&file, *segment, &mut |bytes| {
            running.update(bytes);
            out.write_all(bytes).inspect_err(|_| write_failed = true)
        })
        .map_err(|error| match (write_failed, error.kind()) {
            (true, _) => tar_error(error),
            (false, io::ErrorKind::UnexpectedEof) => damaged("it is shorter than it was unpacked".into()),
            (false, _) => damaged(error.to_string()),
        })?;
    }
    if running.sum() != crc {
        return Err(damaged("its contents are not what was unpacked".into()));
    }
    Ok(())
}
