//! A file that is read from the beginning while it is still being written.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parking_lot::{Condvar, Mutex};

use crate::image::{IoContext, Result};

/// The file, and how much of it is written.
pub(super) struct Spool {
    pub(super) path: PathBuf,
    file: File,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    written: u64,
    /// Set at the end: success, or why the file stays incomplete.
    outcome: Option<Result<(), String>>,
}

impl Spool {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path).at(path)?;
        Ok(Self { path: path.to_owned(), file, progress: Mutex::default(), changed: Condvar::new() })
    }

    /// Appends bytes; there is one writer.
    pub(super) fn append(&self, bytes: &[u8]) -> io::Result<u64> {
        let position = self.progress.lock().written;
        self.file.write_all_at(bytes, position)?;
        let mut progress = self.progress.lock();
        progress.written += bytes.len() as u64;
        self.changed.notify_all();
        Ok(progress.written)
    }

    /// Called when all data has arrived, or the transfer failed.
    pub(super) fn end(&self, outcome: Result<(), String>) {
        self.progress.lock().outcome.get_or_insert(outcome);
        self.changed.notify_all();
    }

    /// Waits until the file is complete or has failed.
    pub(super) fn wait(&self) -> io::Result<()> {
        let mut progress = self.progress.lock();
        loop {
            match &progress.outcome {
                Some(outcome) => return outcome.clone().map_err(io::Error::other),
                None => self.changed.wait(&mut progress),
            }
        }
    }

    /// Frees its space on the disk, although it is still open.
    pub(super) fn remove(&self) -> Result<()> {
        self.file.set_len(0).and_then(|()| std::fs::remove_file(&self.path)).at(&self.path)
    }

    /// A reader from the beginning, which waits for bytes that have not arrived.
    pub(super) fn reader(&self) -> SpoolReader<'_> {
        SpoolReader { spool: self, position: 0 }
    }
}

pub(super) struct SpoolReader<'s> {
    spool: &'s Spool,
    position: u64,
}

impl Read for SpoolReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = {
            let mut progress = self.spool.progress.lock();
            loop {
                // Reported at once: unpacking what arrived before a failure is useless.
                if let Some(Err(reason)) = &progress.outcome {
                    return Err(io::Error::other(reason.clone()));
                }
                let available = progress.written - self.position;
                if available > 0 || progress.outcome.is_some() {
                    break available;
                }
                self.spool.changed.wait(&mut progress);
            }
        };
        let wanted = buffer.len().min(usize::try_from(available).unwrap_or(usize::MAX));
        let count = self.spool.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_while_it_is_written() {
        let dir = tempfile::tempdir().expect("tempdir");
        let spool = Spool::create(&dir.path().join("spool")).expect("create");
        let mut whole = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..100u8 {
                    spool.append(&[number; 999]).expect("append");
                }
                spool.end(Ok(()));
                spool.end(Err("too late".to_owned()));
            });
            spool.reader().read_to_end(&mut whole).expect("read");
        });
        assert_eq!(whole.len(), 99_900);
        assert!(whole.chunks(999).zip(0..).all(|(chunk, number)| chunk.iter().all(|&byte| byte == number)));
    }

    #[test]
    fn a_failure_reaches_the_reader() {
        let dir = tempfile::tempdir().expect("tempdir");
        let spool = Spool::create(&dir.path().join("spool")).expect("create");
        spool.append(b"abc").expect("append");
        spool.end(Err("cut".to_owned()));
        let error = spool.reader().read_to_end(&mut Vec::new()).expect_err("must fail");
        assert_eq!(error.to_string(), "cut");
        assert_eq!(spool.wait().expect_err("must fail").to_string(), "cut");
    }
}
