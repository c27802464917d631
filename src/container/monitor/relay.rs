//! Transfers a container's output to its log and to the attached clients, and their input to the container. One thread
//! does it, and blocks only in one call that waits for all of them.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};

use super::frames::{CHUNK, Decoder, Frame, Stream};
use super::log::Log;

/// While a client has this many bytes outstanding, no more are read from the container. The same limit applies to the
/// container's input.
const HIGH: usize = 256 << 10;

/// Most bytes that are read of one output after the container's end; no pipe holds more.
const REST: usize = 2 << 20;

/// An output of the container.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: File,
    pub(super) stream: Stream,
}

/// The container's standard input.
#[derive(Debug, Default)]
struct Input {
    /// `None` if there is none, or it has ended.
    file: Option<File>,
    pending: Vec<u8>,
    /// True if no more input will come.
    is_ending: bool,
}

impl Input {
    /// Writes as much as the container accepts. It is no error if the container does not read.
    fn flush(&mut self) {
        while let (Some(file), false) = (&mut self.file, self.pending.is_empty()) {
            match file.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.file = None,
            }
        }
        if self.file.is_none() {
            self.pending.clear();
        } else if self.is_ending {
            self.file = None;
        }
    }
}

/// An attached client.
#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    decoder: Decoder,
    pending: Vec<u8>,
    is_gone: bool,
    /// True for the client that started the container: when it leaves, the input ends.
    is_owner: bool,
    /// True if it gets no output.
    watches: bool,
}

impl Peer {
    fn flush(&mut self) {
        while !self.pending.is_empty() && !self.is_gone {
            match self.stream.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.is_gone = true,
            }
        }
    }

    /// Reads everything available.
    fn receive(&mut self) {
        let mut buffer = vec![0; CHUNK];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.is_gone = true,
            Ok(count) => self.decoder.push(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.is_gone = true,
        }
    }
}

/// Identifies a descriptor in poll(2).
#[derive(Clone, Copy, Debug)]
enum Token {
    Process,
    Listener,
    Source(usize),
    Input,
    Peer(usize),
}

/// All streams and clients.
#[derive(Debug, Default)]
pub(super) struct Relay {
    sources: Vec<Source>,
    input: Input,
    peers: Vec<Peer>,
    listener: Option<UnixListener>,
    log: Option<Log>,
    /// The container's terminal, if it has one: output and input at once.
    terminal: Option<File>,
}

impl Relay {
    /// Accepts clients from here on.
    pub(super) fn listen(&mut self, listener: UnixListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.listener = Some(listener);
        Ok(())
    }

    pub(super) fn log_to(&mut self, log: Log) {
        self.log = Some(log);
    }

    /// Adds an output. Its file must be non-blocking.
    pub(super) fn carry(&mut self, source: Source) {
        self.sources.push(source);
    }

    /// Sets the container's input. Its file must be non-blocking.
    pub(super) fn feed(&mut self, input: File) {
        self.input.file = Some(input);
    }

    /// Uses a terminal as output and input.
    pub(super) fn carry_terminal(&mut self, master: File) -> io::Result<()> {
        self.carry(Source { file: master.try_clone()?, stream: Stream::Output });
        self.feed(master.try_clone()?);
        self.terminal = Some(master);
        Ok(())
    }

    /// Adds the client that started the container. If it `stays`, it gets the output, and the input ends when it leaves.
    pub(super) fn serve_owner(&mut self, stream: UnixStream, stays: bool) -> io::Result<()> {
        self.serve(stream, stays)?;
        self.peers.iter_mut().for_each(|peer| peer.watches = !stays);
        Ok(())
    }

    fn serve(&mut self, stream: UnixStream, is_owner: bool) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let (decoder, pending) = (Decoder::default(), Vec::new());
        self.peers.push(Peer { stream, decoder, pending, is_gone: false, is_owner, watches: false });
        Ok(())
    }

    /// Transfers everything that is ready, after waiting at most `patience` (`None`: for ever) for something. Returns
    /// true if `process`, a pidfd, has ended.
    pub(super) fn turn(&mut self, process: Option<BorrowedFd<'_>>, patience: Option<Duration>) -> io::Result<bool> {
        let ready = self.wait(process, patience)?;
        let mut ended = false;
        for (token, _) in ready.iter().filter(|(_, events)| !events.is_empty()) {
            match *token {
                Token::Process => ended = true,
                Token::Listener => self.accept()?,
                Token::Source(index) => drop(self.read(index)?),
                Token::Input => self.input.flush(),
                Token::Peer(index) => self.talk(index),
            }
        }
        self.forget();
        Ok(ended)
    }

    fn wait(&self, process: Option<BorrowedFd<'_>>, patience: Option<Duration>) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut asked: Vec<(Token, PollFd<'_>)> = Vec::new();
        let (reads, writes) = (PollFlags::IN, PollFlags::OUT);
        let mut ask = |token, fd, flags| asked.push((token, PollFd::from_borrowed_fd(fd, flags)));
        if let Some(process) = process {
            ask(Token::Process, process, reads);
        }
        if let Some(listener) = &self.listener {
            ask(Token::Listener, listener.as_fd(), reads);
        }
        if self.peers.iter().all(|peer| peer.pending.len() < HIGH) {
            for (index, source) in self.sources.iter().enumerate() {
                ask(Token::Source(index), source.file.as_fd(), reads);
            }
        }
        if let Some(input) = self.input.file.as_ref().filter(|_| !self.input.pending.is_empty()) {
            ask(Token::Input, input.as_fd(), writes);
        }
        for (index, peer) in self.peers.iter().enumerate() {
            let listens = if self.input.pending.len() < HIGH { reads } else { PollFlags::empty() };
            let talks = if peer.pending.is_empty() { PollFlags::empty() } else { writes };
            ask(Token::Peer(index), peer.stream.as_fd(), listens | talks);
        }
        let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
        let mut fds: Vec<PollFd<'_>> = asked.iter().map(|(_, fd)| fd.clone()).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => Ok(asked.iter().zip(&fds).map(|((token, _), fd)| (*token, fd.revents())).collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        match listener.accept() {
            Ok((stream, _)) => self.serve(stream, false),
            // The client is gone already.
            Err(_) => Ok(()),
        }
    }

    /// Reads one output once; returns the number of bytes.
    fn read(&mut self, index: usize) -> io::Result<usize> {
        let Some(source) = self.sources.get_mut(index) else { return Ok(0) };
        let stream = source.stream;
        let mut buffer = vec![0; CHUNK];
        match source.file.read(&mut buffer) {
            Ok(count @ 1..) => {
                buffer.truncate(count);
                self.pass_on(stream, buffer)?;
                Ok(count)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            // All writers have closed it; a terminal then returns EIO.
            Ok(0) | Err(_) => {
                self.sources.remove(index);
                Ok(0)
            }
        }
    }

    fn pass_on(&mut self, stream: Stream, bytes: Vec<u8>) -> io::Result<()> {
        let logged = self.log.as_mut().map_or(Ok(()), |log| log.write(stream, &bytes));
        if let Err(error) = logged {
            // The container goes on without a log.
            tracing::warn!("the log ends here: {error}");
            self.log = None;
        }
        let frame = Frame::Wrote(stream, bytes);
        for peer in self.peers.iter_mut().filter(|peer| !peer.watches) {
            frame.write(&mut peer.pending);
            peer.flush();
        }
        Ok(())
    }

    fn talk(&mut self, index: usize) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        peer.flush();
        peer.receive();
        loop {
            let Some(peer) = self.peers.get_mut(index) else { return };
            let is_owner = peer.is_owner;
            match peer.decoder.next() {
                Ok(Some(Frame::Input(bytes))) => self.input.pending.extend(bytes),
                Ok(Some(Frame::InputEnd)) => self.end_input(),
                Ok(Some(Frame::Size(rows, columns))) => self.resize(rows, columns),
                Ok(Some(Frame::Watch)) => peer.watches = true,
                Ok(Some(Frame::Hangup(stream))) if is_owner => self.sources.retain(|source| source.stream != stream),
                Ok(None) => break,
                Ok(Some(_)) | Err(_) => {
                    peer.is_gone = true;
                    break;
                }
            }
        }
        if self.peers.get(index).is_some_and(|peer| peer.is_gone && peer.is_owner) {
            self.end_input();
        }
        self.input.flush();
    }

    /// A terminal stays open, because other clients may attach.
    fn end_input(&mut self) {
        self.input.is_ending = self.terminal.is_none();
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        if let Some(Err(error)) = self.terminal.as_ref().map(|terminal| tcsetwinsize(terminal, size)) {
            tracing::debug!("the terminal keeps its size: {error}");
        }
    }

    fn forget(&mut self) {
        self.peers.retain(|peer| !peer.is_gone);
    }

    /// Drops all output so far, because it is not the container's.
    pub(super) fn discard(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        for source in &mut self.sources {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = source.file.read(&mut buffer) {
                all.extend_from_slice(&buffer[..count]);
            }
        }
        all
    }

    /// Transfers everything that the container wrote before it ended.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        for index in (0..self.sources.len()).rev() {
            let mut total = 0;
            while total < REST {
                match self.read(index)? {
                    0 => break,
                    count => total += count,
                }
            }
        }
        self.sources.clear();
        Ok(())
    }

    /// Sends the frame to all clients.
    pub(super) fn tell(&mut self, frame: &Frame) {
        for peer in &mut self.peers {
            frame.write(&mut peer.pending);
            peer.flush();
        }
    }

    /// Waits until the clients have taken everything. The one that started the container may take any time, the others
    /// no longer than `patience`.
    pub(super) fn flush(&mut self, patience: Option<Duration>) -> io::Result<()> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            let waits = |peer: &Peer| !peer.pending.is_empty() && (peer.is_owner || deadline.is_some());
            if !self.peers.iter().any(waits) {
                return Ok(());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(());
            }
            self.turn(None, left)?;
        }
    }
}
