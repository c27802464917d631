//! The standard streams of a container: pipes, or a terminal. The monitor keeps the other ends.

use std::fs::File;
use std::io::{IoSliceMut, pipe};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::frames::Stream;
use super::relay::{Relay, Source};
use crate::image::{ImageError, IoContext, Result};

/// Names the streams in messages.
const PLACE: &str = "container's streams";

/// The container's ends, for the OCI runtime.
pub(super) struct Streams {
    pub(super) input: Stdio,
    pub(super) output: Stdio,
    pub(super) error: Stdio,
    pub(super) console: Option<Console>,
}

/// The socket through which the runtime passes the terminal that it makes for the container.
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Streams {
    /// Makes pipes; the relay gets the other ends.
    pub(super) fn pipes(relay: &mut Relay, input: bool) -> Result<Self> {
        let (output, error) = (outgoing(relay, Stream::Output)?, outgoing(relay, Stream::Error)?);
        let input = match input {
            false => Stdio::null(),
            true => {
                let (theirs, ours) = pipe().at(PLACE)?;
                relay.feed(without_waiting(ours.into())?);
                theirs.into()
            }
        };
        Ok(Self { input, output, error, console: None })
    }

    /// Makes a socket for the terminal. The runtime's own errors come through a pipe, whose other end the relay gets.
    pub(super) fn terminal(relay: &mut Relay) -> Result<Self> {
        let error = outgoing(relay, Stream::Error)?;
        // The name is short, because a socket's path may have at most 107 bytes.
        let dir = tempfile::Builder::new().prefix("strata-").tempdir_in("/tmp").at("/tmp")?;
        let path = dir.path().join("console");
        let listener = UnixListener::bind(&path).at(&path)?;
        let console = Some(Console { listener, path, _dir: dir });
        Ok(Self { input: Stdio::null(), output: Stdio::null(), error, console })
    }
}

impl Console {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Receives the terminal from the runtime. The runtime must have succeeded, or this blocks.
    pub(super) fn receive(self) -> Result<File> {
        let (connection, _) = self.listener.accept().at(&self.path)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        // The message contains the terminal's name.
        let mut name = [0; 4096];
        recvmsg(&connection, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC).at(&self.path)?;
        let received = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let master = received.ok_or_else(|| ImageError::refused(PLACE, "the runtime sent no terminal"))?;
        without_waiting(master)
    }
}

fn outgoing(relay: &mut Relay, stream: Stream) -> Result<Stdio> {
    let (ours, theirs) = pipe().at(PLACE)?;
    relay.carry(Source { file: without_waiting(ours.into())?, stream });
    Ok(theirs.into())
}

/// Makes reading and writing non-blocking.
fn without_waiting(file: OwnedFd) -> Result<File> {
    let flags = fcntl_getfl(file.as_fd()).at(PLACE)?;
    fcntl_setfl(file.as_fd(), flags | OFlags::NONBLOCK).at(PLACE)?;
    Ok(file.into())
}
