//! The client's side.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::{Answer, LONGEST, Request, SOCKET};

/// Longest wait for an answer: a checkpoint copies files that are open for writing, and flushes everything to the disk.
const PATIENCE: Duration = Duration::from_secs(600);

/// A connection to a mount.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

/// Connects to the socket in `work`, whose path may be too long for a socket's address.
pub(super) fn connect_to(work: &Path) -> io::Result<UnixStream> {
    let dir = rustix::fs::open(work, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}

impl Client {
    /// Connects to the mount whose work directory is `work`.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused` if no mount listens there.
    pub fn connect(work: &Path) -> io::Result<Self> {
        let stream = connect_to(work)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::on(stream))
    }

    pub(super) fn on(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// The mount's error, or that it does not answer.
    pub fn ask(&mut self, request: &Request) -> io::Result<Answer> {
        self.stream.get_mut().write_all(format!("{}\n", request.to_json()).as_bytes())?;
        let mut line = Vec::new();
        self.stream.by_ref().take(LONGEST).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the driver ended while it was asked"));
        }
        let answer = Answer::from_json(&serde_json::from_slice(&line)?);
        let answer =
            answer.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "the driver's answer makes no sense"))?;
        match answer.ok {
            true => Ok(answer),
            false => Err(io::Error::other(answer.error.unwrap_or_else(|| "refused without a reason".to_owned()))),
        }
    }
}
