//! Unpacks a layer's tar into its directory. This is the pipeline; the modules below it use only those after them:
//!
//! | module | what it is for |
//! |---|---|
//! | `archive` | an archive's layers into plain directories, without a store |
//! | `extract` | all entries, one after the other: what their names mean; whiteouts |
//! | `make` | what one entry says |
//! | `resolve` | an entry's directory |
//! | `unpacking` | the state of it all |
//! | `dirs`, `entry`, `options` | open directories; owners and devices of entries; how to unpack |
//!
//! The calling thread reads and decompresses. Two threads hash, one the compressed and one the uncompressed bytes. One thread
//! extracts. One starts writing extracted files to the disk. Bounded channels of shared buffers connect them, so memory does
//! not depend on the layer.

mod archive;
mod dirs;
pub(crate) mod entry;
mod extract;
mod make;
mod options;
mod resolve;
mod unpacking;

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::image::digest::{Digest, Hasher};
use crate::image::layer::error::{LayerError, Result};
use crate::image::recipe::RecipeWriter;
use crate::image::unpack::unpacking::{Outcome, Unpacking};
use crate::tar::TarError;
use crate::tar::compression::{self, Packing};
use crate::tar::limits::{Bounded, too_long};
use crate::tar::read::TarReader;
pub use archive::unpack_archive;
pub use options::{Lowers, UnpackOptions};

/// Size of one buffer.
const BUFFER: usize = 256 << 10;
/// Number of bytes read at once from the layer's stream.
const READ: usize = 128 << 10;
/// Number of buffers between two threads.
const QUEUE: usize = 8;
/// Number of files that wait to be written out; further ones are left to the sync.
const WRITTEN_OUT: usize = 16;

/// The result of unpacking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the uncompressed tar stream, including everything after the archive's end.
    pub diff_id: Digest,
    /// Length of that stream.
    pub size: u64,
    /// Digest and length of the stream as read, if it was compressed.
    pub compressed: Option<(Digest, u64)>,
    /// Its compression.
    pub packing: Packing,
    /// Number of entries in the archive.
    pub entries: u64,
    /// True if the directory is only correct above these lower layers, because their content had an
    /// influence. If it was unpacked without lower layers, it is only correct as the lowest one.
    pub depends_on_lower: bool,
    /// Size of all files together, including holes; hard links count once.
    pub content_size: u64,
    /// Attributes that could not be stored, one line each; at most 100.
    pub warnings: Vec<String>,
}

type Buffer = Arc<Vec<u8>>;

/// Extracts the tar stream of one layer into the empty directory `dest`, and writes the recipe to `recipe`. The
/// compression is recognized by the first bytes. `lowers` are the layer directories below, topmost first.
///
/// All of `input` is read. Nothing outside `dest` is written, and nothing is synced.
///
/// # Errors
/// [`LayerError`]; `dest` then holds a part of the layer and must be removed.
pub fn unpack_layer(
    input: &mut dyn Read,
    dest: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
    recipe: Option<&mut dyn Write>,
    options: &UnpackOptions,
) -> Result<Unpacked> {
    unpack_layer_above(input, dest, &Lowers { dirs: lowers, ready: &|| true }, recipe, options)
}

/// Like [`unpack`], above layers that may still be unpacked themselves.
///
/// # Errors
/// The errors of [`unpack_layer`]; also if the layers below are needed and will not be complete.
pub(crate) fn unpack_layer_above(
    input: &mut dyn Read,
    dest: BorrowedFd<'_>,
    lowers: &Lowers<'_>,
    recipe: Option<&mut dyn Write>,
    options: &UnpackOptions,
) -> Result<Unpacked> {
    let read_bytes = AtomicU64::new(0);
    let spool = recipe.as_ref().map(|_| RecipeWriter::new(dest)).transpose()?;
    let job = Job { dest, lowers, options, read_bytes: &read_bytes };
    let done = if options.threads { job.threaded(input, spool)? } else { job.serial(input, spool)? };
    let (diff_id, size) = done.uncompressed;
    if let (Some(recipe), Some(out)) = (done.extracted.recipe, recipe) {
        recipe.finish(diff_id, size, out)?;
    }
    let Outcome { depends_on_lower, content_size, warnings, .. } = done.extracted.outcome;
    let compressed = (done.packing != Packing::None).then_some(done.compressed);
    Ok(Unpacked {
        diff_id,
        size,
        compressed,
        packing: done.packing,
        entries: done.extracted.entries,
        depends_on_lower,
        content_size,
        warnings,
    })
}

struct Job<'a> {
    dest: BorrowedFd<'a>,
    lowers: &'a Lowers<'a>,
    options: &'a UnpackOptions,
    read_bytes: &'a AtomicU64,
}

struct Extracted {
    outcome: Outcome,
    entries: u64,
    recipe: Option<RecipeWriter>,
}

struct Done {
    extracted: Extracted,
    packing: Packing,
    uncompressed: (Digest, u64),
    compressed: (Digest, u64),
}

impl Job<'_> {
    fn extract(
        &self,
        input: impl BufRead,
        recipe: Option<RecipeWriter>,
        to_write_out: Option<SyncSender<File>>,
    ) -> Result<Extracted> {
        let mut reader = TarReader::new(input, &self.options.limits, recipe);
        let mut extractor = Unpacking::new(self.dest, self.lowers, self.options, self.read_bytes)?;
        extractor.to_write_out = to_write_out;
        let outcome = extractor.run(&mut reader)?;
        Ok(Extracted { outcome, entries: reader.entries(), recipe: reader.into_sink() })
    }

    /// Does everything in the calling thread.
    fn serial(&self, input: &mut dyn Read, recipe: Option<RecipeWriter>) -> Result<Done> {
        let mut compressed = Hasher::new();
        let (packing, input) = compression::sniff(input).map_err(input_error)?;
        let seen = |bytes: &[u8]| {
            if packing != Packing::None {
                compressed.update(bytes);
            }
        };
        let input = io::BufReader::with_capacity(READ, Counted { inner: input, total: self.read_bytes, seen });
        let decoder = compression::decoder(input, packing).map_err(input_error)?;
        let mut uncompressed = Hasher::new();
        let extracted = {
            let hashed = Bounded::new(Hashed { inner: decoder, hasher: &mut uncompressed }, &self.options.limits);
            self.extract(io::BufReader::with_capacity(BUFFER, hashed), recipe, None)
                .map_err(|error| blame(error, packing))?
        };
        Ok(Done { extracted, packing, uncompressed: uncompressed.finish(), compressed: compressed.finish() })
    }

    fn threaded(&self, input: &mut dyn Read, recipe: Option<RecipeWriter>) -> Result<Done> {
        std::thread::scope(|scope| {
            let (to_hash, hash_from) = sync_channel::<Buffer>(QUEUE);
            let (to_extract, extract_from) = sync_channel::<Message>(QUEUE);
            let (to_hash_compressed, compressed_from) = sync_channel::<Buffer>(QUEUE);
            let hashing = scope.spawn(move || hash_all(&hash_from));
            let hashing_compressed = scope.spawn(move || hash_all(&compressed_from));
            let (to_write_out, write_out_from) = sync_channel::<File>(WRITTEN_OUT);
            let to_write_out = self.options.write_out.then(|| {
                scope.spawn(move || write_out_from.iter().for_each(begin_write_out));
                to_write_out
            });
            let extracting = scope.spawn(move || self.extract(Buffers::new(extract_from), recipe, to_write_out));
            let read = self.feed(input, to_hash, &to_extract, to_hash_compressed);
            if let Err(error) = &read {
                // The extractor would take a truncated stream for the archive's end, unless it is told.
                to_extract.send(Message::Broken(error.to_string())).unwrap_or(());
            }
            drop(to_extract);
            let extracted = extracting.join().unwrap_or_else(|_| Err(panicked("extracting")));
            let uncompressed = hashing.join().map_err(|_| panicked("hashing"))?;
            let compressed = hashing_compressed.join().map_err(|_| panicked("hashing"))?;
            match (extracted, read) {
                (Ok(extracted), Ok(packing)) => Ok(Done { extracted, packing, uncompressed, compressed }),
                // The extractor was told of a read error, or would have been; the reader knows the reason.
                (Ok(_) | Err(LayerError::Tar(TarError::Read { .. })), Err(error)) => Err(error),
                // The extractor failed earlier in the stream than the reader.
                (Err(error), _) => Err(error),
            }
        })
    }

    /// Reads and decompresses until the end, or until the extractor has stopped.
    fn feed(
        &self,
        input: &mut dyn Read,
        to_hash: SyncSender<Buffer>,
        to_extract: &SyncSender<Message>,
        to_hash_compressed: SyncSender<Buffer>,
    ) -> Result<Packing> {
        let mut gathered = Vec::with_capacity(BUFFER);
        let (packing, input) = compression::sniff(input).map_err(input_error)?;
        let seen = |bytes: &[u8]| {
            // For an uncompressed stream, the only digest is taken elsewhere.
            if packing == Packing::None {
                return;
            }
            gathered.extend_from_slice(bytes);
            if gathered.len() >= BUFFER {
                let full = std::mem::replace(&mut gathered, Vec::with_capacity(BUFFER));
                // That thread ends only when this one closes the channel.
                to_hash_compressed.send(Arc::new(full)).unwrap_or(());
            }
        };
        let input = io::BufReader::with_capacity(READ, Counted { inner: input, total: self.read_bytes, seen });
        let mut decoder = compression::decoder(input, packing).map_err(input_error)?;
        let mut total = 0;
        loop {
            let buffer = read_buffer(&mut decoder).map_err(|source| LayerError::Compressed { packing, source })?;
            if buffer.is_empty() {
                break;
            }
            total += buffer.len() as u64;
            if total > self.options.limits.stream {
                return Err(too_long(&self.options.limits).into());
            }
            let buffer = Arc::new(buffer);
            if to_extract.send(Message::Buffer(Arc::clone(&buffer))).is_err() || to_hash.send(buffer).is_err() {
                break;
            }
        }
        drop(decoder);
        to_hash_compressed.send(Arc::new(gathered)).unwrap_or(());
        Ok(packing)
    }
}

enum Message {
    Buffer(Buffer),
    /// The rest of the stream cannot be read.
    Broken(String),
}

fn panicked(what: &str) -> LayerError {
    LayerError::Io { place: what.to_owned(), source: io::Error::other("a thread failed") }
}

fn input_error(source: io::Error) -> LayerError {
    LayerError::Io { place: "reading the layer".into(), source }
}

/// An error of the decoder came through the tar reader; reports it as such.
fn blame(error: LayerError, packing: Packing) -> LayerError {
    match error {
        LayerError::Tar(TarError::Read { source, .. }) => LayerError::Compressed { packing, source },
        other => other,
    }
}

/// Best effort: if this fails, the sync at the end writes everything.
fn begin_write_out(file: File) {
    if let Err(error) = crate::sys::write_out::begin(file.as_fd()) {
        tracing::trace!("not written out early: {error}");
    }
}

fn hash_all(buffers: &Receiver<Buffer>) -> (Digest, u64) {
    let mut hasher = Hasher::new();
    for buffer in buffers {
        hasher.update(&buffer);
    }
    hasher.finish()
}

/// A full buffer; a shorter one at the end.
fn read_buffer(input: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; BUFFER];
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// Counts the bytes read, and reports progress.
struct Counted<'a, R, F> {
    inner: R,
    total: &'a AtomicU64,
    seen: F,
}

impl<R: Read, F: FnMut(&[u8])> Read for Counted<'_, R, F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.total.fetch_add(count as u64, Ordering::Relaxed);
        (self.seen)(buf.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// Hashes the bytes read.
struct Hashed<'a, R> {
    inner: R,
    hasher: &'a mut Hasher,
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.hasher.update(buf.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// The extractor's end of the channel.
struct Buffers {
    receiver: Receiver<Message>,
    current: Buffer,
    taken: usize,
}

impl Buffers {
    fn new(receiver: Receiver<Message>) -> Self {
        Self { receiver, current: Buffer::default(), taken: 0 }
    }
}

impl BufRead for Buffers {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken >= self.current.len() {
            match self.receiver.recv() {
                Ok(Message::Buffer(buffer)) => {
                    self.current = buffer;
                    self.taken = 0;
                }
                Ok(Message::Broken(reason)) => return Err(io::Error::other(reason)),
                Err(_end) => return Ok(&[]),
            }
        }
        Ok(self.current.get(self.taken..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.taken += amount;
    }
}

impl Read for Buffers {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let count = available.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}
