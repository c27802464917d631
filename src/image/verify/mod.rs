//! Compares a layer directory with its recipe. The tar stream is re-assembled and read as when the layer was
//! unpacked, and the file of each entry is checked.

mod expect;
mod ledger;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use crate::image::digest::{Digest, Hasher};
use crate::image::layer::error::{LayerError, Result, printable};
use crate::image::recipe::{Record, RecordReader, open_contents};
use crate::image::verify::expect::Expectations;
use crate::tar::Limits;
use crate::tar::read::{Entry, TarReader};
use crate::tar::sparse::Segment;

/// Number of bytes of the stream in memory.
const BUFFER: usize = 128 << 10;

/// Compares a layer directory with its recipe: contents, kinds, owners, modes, times, extended attributes, targets of
/// symbolic links, whiteouts. Passes everything that differs or was added to `report`, with its file. Returns `Ok(true)`
/// if everything is as it was unpacked.
///
/// Not checked are attributes of directories that the archive did not name, and of files without contents that were named
/// through a symbolic link of a lower layer. A file that was added cannot be told from such a file of the same name.
///
/// # Errors
/// [`LayerError::Recipe`] for a bad recipe, and what `report` returns.
pub fn verify(
    recipe: &mut dyn Read,
    layer: BorrowedFd<'_>,
    report: &mut dyn FnMut(LayerError) -> Result<()>,
) -> Result<bool> {
    let limits = Limits::unlimited();
    let mut reader = TarReader::new(Stream::new(recipe, layer)?, &limits, ());
    let mut expectations = Expectations::new(layer)?;
    let mut told = BTreeSet::new();
    let mut last: Option<Entry> = None;
    loop {
        let entry = reader.next().and_then(|entry| match entry {
            Some(entry) => Ok(Some(entry)),
            None => reader.finish().map(|()| None),
        });
        // The contents of an entry follow it.
        let contents = reader.input().contents.take();
        for (path, reason) in reader.input().damaged.drain(..) {
            report(LayerError::Damaged { path: printable(&path), reason })?;
            told.insert(path);
        }
        if let Some(last) = last.take() {
            expectations.check(&last, contents)?;
        }
        match entry {
            Ok(Some(entry)) => last = Some(entry),
            Ok(None) => break,
            Err(error) => return Err(reader.input().failure.take().unwrap_or(error.into())),
        }
    }
    let stream = reader.input();
    let mut sound = told.is_empty();
    if sound {
        stream.check_digest()?;
    }
    for (path, reason) in expectations.unmet()? {
        if !told.contains(&path) {
            sound = false;
            report(LayerError::Damaged { path: printable(&path), reason })?;
        }
    }
    Ok(sound)
}

/// The next part of the stream.
enum Part {
    /// Bytes of the recipe itself.
    Raw(u64),
    /// Contents of a file.
    Contents(Contents),
    /// The next record is to be read.
    Between,
    End {
        size: u64,
        digest: Digest,
    },
}

struct Contents {
    path: Vec<u8>,
    /// `None` once it is found to be damaged: zeros replace it, so that the rest can be read.
    file: Option<File>,
    segments: std::vec::IntoIter<Segment>,
    current: Segment,
    running: flate2::Crc,
    crc: u32,
}

/// The tar stream, re-assembled while it is read.
struct Stream<'a> {
    records: RecordReader<'a, &'a mut dyn Read>,
    layer: BorrowedFd<'a>,
    part: Part,
    buffer: Vec<u8>,
    taken: usize,
    hasher: Hasher,
    /// The last file whose contents were reached.
    contents: Option<Vec<u8>>,
    /// Files whose contents have changed, and why.
    damaged: Vec<(Vec<u8>, String)>,
    /// What is wrong with the recipe.
    failure: Option<LayerError>,
}

impl<'a> Stream<'a> {
    fn new(recipe: &'a mut dyn Read, layer: BorrowedFd<'a>) -> Result<Self> {
        Ok(Self {
            records: RecordReader::new(recipe)?,
            layer,
            part: Part::Between,
            buffer: Vec::with_capacity(BUFFER),
            taken: 0,
            hasher: Hasher::new(),
            contents: None,
            damaged: Vec::new(),
            failure: None,
        })
    }

    /// Called when everything was read and no file was damaged.
    fn check_digest(&mut self) -> Result<()> {
        let found = std::mem::take(&mut self.hasher).finish();
        match self.part {
            Part::End { size, digest } if (digest, size) == found => Ok(()),
            Part::End { digest, .. } => {
                Err(LayerError::Recipe(format!("the tar put together is {}, not {digest}", found.0)))
            }
            _ => Err(LayerError::Recipe("it has no end".into())),
        }
    }

    /// Fills the buffer, unless the stream is at its end.
    fn fill(&mut self) -> Result<()> {
        self.buffer.clear();
        self.taken = 0;
        while self.buffer.is_empty() {
            match &mut self.part {
                Part::End { .. } => return Ok(()),
                Part::Between => self.next_part()?,
                Part::Raw(0) => self.part = Part::Between,
                Part::Raw(left) => {
                    *left -= self.records.read_raw((*left).min(BUFFER as u64), &mut self.buffer)?;
                }
                Part::Contents(contents) => {
                    let outcome = contents.fill(&mut self.buffer);
                    if let Err(reason) = outcome {
                        contents.file = None;
                        self.damaged.push((contents.path.clone(), reason));
                    } else if self.buffer.is_empty() {
                        self.part = Part::Between;
                    }
                }
            }
        }
        self.hasher.update(&self.buffer);
        Ok(())
    }

    fn next_part(&mut self) -> Result<()> {
        self.part = match self.records.next()? {
            Some(Record::Raw(len)) => Part::Raw(len),
            Some(Record::End { size, digest }) => Part::End { size, digest },
            None => return Err(LayerError::Recipe("it has no end".into())),
            Some(Record::Contents { path, segments, crc }) => {
                self.contents = Some(path.clone());
                let file = match open_contents(self.layer, &path) {
                    Ok(file) => Some(file),
                    Err(reason) => {
                        self.damaged.push((path.clone(), reason));
                        None
                    }
                };
                let segments = segments.into_iter();
                let current = Segment { offset: 0, len: 0 };
                Part::Contents(Contents { path, file, segments, current, running: flate2::Crc::new(), crc })
            }
        };
        Ok(())
    }
}

impl Contents {
    /// The next bytes; none after the end. An error says why the file is damaged; the bytes that replace it must be kept.
    fn fill(&mut self, buffer: &mut Vec<u8>) -> Result<(), String> {
        while self.current.len == 0 {
            match self.segments.next() {
                Some(segment) => self.current = segment,
                None if self.file.is_some() && self.running.sum() != self.crc => {
                    return Err("its contents are not what was unpacked".into());
                }
                None => return Ok(()),
            }
        }
        let wanted = usize::try_from(self.current.len).unwrap_or(usize::MAX).min(BUFFER);
        buffer.resize(wanted, 0);
        let outcome = match &self.file {
            None => Ok(()),
            Some(file) => file.read_exact_at(buffer, self.current.offset).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => "it is shorter than it was unpacked".to_owned(),
                _ => error.to_string(),
            }),
        };
        self.running.update(buffer);
        self.current.offset += wanted as u64;
        self.current.len -= wanted as u64;
        outcome
    }
}

impl BufRead for Stream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken >= self.buffer.len()
            && let Err(error) = self.fill()
        {
            let told = error.to_string();
            self.failure = Some(error);
            return Err(io::Error::other(told));
        }
        Ok(self.buffer.get(self.taken..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.taken += amount;
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let count = available.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}
