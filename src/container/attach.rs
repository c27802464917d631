//! The client's side of a container's monitor: connects a terminal, or standard input and output, to the container.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::Container;
use super::monitor::{Decoder, Frame, Stream};
use crate::image::files::open_dir;
use crate::image::{ImageError, IoContext, Result};
use crate::sys::forward;
use crate::sys::signals::interrupt_at_resize;

/// Names this module in messages.
const PLACE: &str = "attach";

/// How often the terminal's size is checked, in case the signal that reports a change is missed.
const SIZE_INTERVAL: Duration = Duration::from_secs(1);

/// The keys that detach, typed in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl Default for DetachKeys {
    /// The same as docker's: ctrl-p, ctrl-q.
    fn default() -> Self {
        Self(vec![0x10, 0x11])
    }
}

impl std::str::FromStr for DetachKeys {
    type Err = ImageError;

    /// Parses `ctrl-p,ctrl-q` or `a`. With the empty text, no keys detach.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || ImageError::malformed(text, "detach keys are characters or ctrl-LETTER, separated by commas");
        let key = |word: &str| match (word.as_bytes(), word.strip_prefix("ctrl-").map(str::as_bytes)) {
            ([key], _) if key.is_ascii_graphic() => Ok(*key),
            (_, Some([key @ (b'a'..=b'z' | b'@' | b'[' | b']' | b'\\' | b'^' | b'_')])) => Ok(key & 0x1f),
            _ => Err(bad()),
        };
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        text.split(',').map(key).collect::<Result<_>>().map(Self)
    }
}

/// Looks for the keys in the typed bytes.
#[derive(Debug)]
struct KeyWatch {
    keys: Vec<u8>,
    /// Number of keys that were typed so far. They are held back until it is known whether the rest follows.
    matched: usize,
}

impl KeyWatch {
    /// Returns the part of `typed` that goes to the container, up to the keys, and whether the keys were typed.
    fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for &byte in typed {
            if self.keys.get(self.matched) == Some(&byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(self.keys.get(..self.matched).unwrap_or_default());
            self.matched = usize::from(self.keys.first() == Some(&byte) && self.keys.len() > 1);
            if self.matched == 0 {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

/// How to attach.
#[derive(Clone, Debug, Default)]
pub struct Attendance {
    /// Detach as soon as the container runs.
    pub until_started: bool,
    /// Pass standard input to the container.
    pub input: bool,
    /// The container has a terminal: typed bytes go to it unchanged.
    pub terminal: bool,
    /// The keys that detach, if the container has a terminal.
    pub detach_keys: DetachKeys,
    /// Do not show its output, its error output.
    pub hidden: [bool; 2],
    /// The monitor that signals are forwarded to.
    pub signals_to: Option<Pid>,
}

/// How an attachment ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The container runs; nothing is attached.
    Started,
    /// The user detached; the container goes on.
    Detached,
    /// The container ended with this code.
    Exited(u8),
    /// The container could not be started: the exit code for `run`, and the reason.
    Failed(u8, String),
    /// The monitor ended without a message.
    Lost,
}

/// A connection to the monitor of a container.
#[derive(Debug)]
pub struct Attachment {
    stream: UnixStream,
    decoder: Decoder,
    /// Bytes that the monitor has not accepted yet.
    pending: Vec<u8>,
    size: Option<(u16, u16)>,
}

/// Restores a terminal's mode when it is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn of_stdin() -> rustix::io::Result<Self> {
        let before = tcgetattr(rustix::stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before) {
            tracing::warn!("the terminal stays raw: {error}");
        }
    }
}

impl Attachment {
    fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::default(), pending: Vec::new(), size: None }
    }

    /// Makes a connection and its other end, for a monitor that is about to be started.
    ///
    /// # Errors
    /// Too many open files.
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair().at(PLACE)?;
        Ok((Self::new(ours), theirs.into()))
    }

    /// Connects to the monitor of a running container.
    ///
    /// # Errors
    /// When the container has no monitor.
    pub fn to(container: &Container) -> Result<Self> {
        // A socket's path may have at most 107 bytes.
        let dir = open_dir(container.dir())?;
        let path = format!("/proc/self/fd/{}/attach", dir.as_raw_fd());
        UnixStream::connect(path).map(Self::new).map_err(|_| ImageError::refused(container.name(), "does not run"))
    }

    /// Waits for the end of the container; transfers nothing. Returns `None` if the monitor ends without a message:
    /// it sent it before, or was killed.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn wait(mut self) -> Result<Option<u8>> {
        Frame::Watch.write(&mut self.pending);
        match self.attend(&Attendance::default())? {
            Ended::Exited(code) => Ok(Some(code)),
            _ => Ok(None),
        }
    }

    /// Sends the size of this process's terminal. If this is called before the monitor is started, the container has that
    /// size from its start.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn announce_size(&mut self) -> Result<()> {
        let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) else { return Ok(()) };
        if self.size != Some((size.ws_row, size.ws_col)) {
            self.size = Some((size.ws_row, size.ws_col));
            Frame::Size(size.ws_row, size.ws_col).write(&mut self.pending);
        }
        self.send()
    }

    /// Connects standard input, output and error to the container's.
    ///
    /// # Errors
    /// When the connection or the terminal fails.
    pub fn attend(&mut self, how: &Attendance) -> Result<Ended> {
        self.stream.set_nonblocking(true).at(PLACE)?;
        let types = how.terminal && how.input && io::stdin().is_terminal();
        let raw = types.then(Raw::of_stdin).transpose().at("terminal")?;
        if how.terminal {
            interrupt_at_resize().at("SIGWINCH")?;
        }
        let keys = if how.terminal { how.detach_keys.0.clone() } else { Vec::new() };
        let mut session = Session {
            how,
            keys: KeyWatch { keys, matched: 0 },
            reads: how.input,
            forwarding: None,
            told: None,
            output_closed: how.hidden,
        };
        let ended = self.carry(&mut session);
        drop(raw);
        ended
    }

    fn carry(&mut self, session: &mut Session<'_>) -> Result<Ended> {
        loop {
            if session.how.terminal {
                self.announce_size()?;
            }
            self.send()?;
            let (socket, input) = self.ready(session)?;
            if input && let Some(ended) = self.take_input(session)? {
                return Ok(ended);
            }
            if socket {
                let is_over = self.receive()?;
                while let Some(frame) = self.decoder.next()? {
                    if let Some(ended) = session.handle(frame, &mut self.pending)? {
                        return Ok(ended);
                    }
                }
                if is_over {
                    return Ok(session.told.take().unwrap_or(Ended::Lost));
                }
            }
        }
    }

    /// Waits; returns whether the socket and standard input are readable.
    fn ready(&self, session: &Session<'_>) -> Result<(bool, bool)> {
        let stdin = io::stdin();
        let talks = if self.pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let mut fds = vec![PollFd::from_borrowed_fd(self.stream.as_fd(), PollFlags::IN | talks)];
        // Standard input is read only when the monitor has accepted everything so far.
        if session.reads && self.pending.is_empty() {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
        }
        let interval = session.how.terminal.then(|| Timespec::try_from(SIZE_INTERVAL).ok()).flatten();
        match poll(&mut fds, interval.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).at(PLACE),
        }
        let has = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok((has(0), has(1)))
    }

    /// Sends as much as the monitor accepts now.
    fn send(&mut self) -> Result<()> {
        while !self.pending.is_empty() {
            match self.stream.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The monitor's last messages may still be readable.
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    self.pending.clear();
                }
                Err(error) => return Err(error).at(PLACE),
            }
        }
        Ok(())
    }

    /// Reads what is there; returns true at the end.
    fn receive(&mut self) -> Result<bool> {
        let mut buffer = [0; 64 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => Ok(true),
            Ok(count) => {
                self.decoder.push(&buffer[..count]);
                Ok(false)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error).at(PLACE),
        }
    }

    fn take_input(&mut self, session: &mut Session<'_>) -> Result<Option<Ended>> {
        let mut buffer = [0; 16 << 10];
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(count @ 1..) => {
                let (bytes, detaches) = session.keys.pass(&buffer[..count]);
                if !bytes.is_empty() {
                    Frame::Input(bytes).write(&mut self.pending);
                }
                if detaches {
                    self.stream.set_nonblocking(false).at(PLACE)?;
                    self.send()?;
                }
                Ok(detaches.then_some(Ended::Detached))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            // A terminal whose other side is gone returns EIO.
            Ok(0) | Err(Errno::IO) => {
                session.reads = false;
                Frame::InputEnd.write(&mut self.pending);
                Ok(None)
            }
            Err(error) => Err(error).at("standard input"),
        }
    }
}

/// The state of one attachment.
struct Session<'a> {
    how: &'a Attendance,
    keys: KeyWatch,
    /// True until standard input ends.
    reads: bool,
    forwarding: Option<forward::Forwarding>,
    /// The end, if the monitor has reported it.
    told: Option<Ended>,
    /// True if nothing reads this process's output, or error output, any more, or it is not to be shown.
    output_closed: [bool; 2],
}

impl Session<'_> {
    fn handle(&mut self, frame: Frame, answer: &mut Vec<u8>) -> Result<Option<Ended>> {
        match frame {
            Frame::Ready => {
                // Signals are forwarded only now: earlier, the monitor would not have had its handlers.
                if let Some(monitor) = self.how.signals_to {
                    let monitor = monitor.as_raw_nonzero().get().unsigned_abs();
                    self.forwarding = Some(forward::forward_to(monitor, false).at("signals")?);
                }
            }
            Frame::Started if self.how.until_started => return Ok(Some(Ended::Started)),
            Frame::Wrote(stream, bytes) => self.print(stream, &bytes, answer)?,
            Frame::Exited(code) => self.told = Some(Ended::Exited(code)),
            Frame::Failed(_, why) if self.told.is_some() => tracing::warn!("{why}"),
            Frame::Failed(code, why) => self.told = Some(Ended::Failed(code, why)),
            _ => {}
        }
        Ok(None)
    }

    fn print(&mut self, stream: Stream, bytes: &[u8], answer: &mut Vec<u8>) -> Result<()> {
        let [output, error] = &mut self.output_closed;
        let (closed, mut to): (_, Box<dyn Write>) = match stream {
            Stream::Output => (output, Box::new(io::stdout().lock())),
            Stream::Error => (error, Box::new(io::stderr().lock())),
        };
        if *closed {
            return Ok(());
        }
        match to.write_all(bytes).and_then(|()| to.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                *closed = true;
                Frame::Hangup(stream).write(answer);
                Ok(())
            }
            Err(error) => Err(error).at("standard output"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_detach_and_all_else_passes() {
        let watch = || KeyWatch { keys: DetachKeys::default().0, matched: 0 };
        assert_eq!(watch().pass(b"ls\x10\x11"), (b"ls".to_vec(), true));
        let mut apart = watch();
        assert_eq!(apart.pass(b"ls\x10"), (b"ls".to_vec(), false));
        assert_eq!(apart.pass(b"\x10\x10x"), (b"\x10\x10\x10x".to_vec(), false));
        assert_eq!(apart.pass(b"\x10"), (Vec::new(), false));
        assert_eq!(apart.pass(b"\x11rest"), (Vec::new(), true));
        let mut none = KeyWatch { keys: Vec::new(), matched: 0 };
        assert_eq!(none.pass(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }

    #[test]
    fn keys_are_read_as_docker_writes_them() {
        for (text, keys) in [("ctrl-p,ctrl-q", &[0x10, 0x11][..]), ("a", b"a"), ("ctrl-],x", b"\x1dx"), ("", b"")] {
            assert_eq!(text.parse::<DetachKeys>().expect(text).0, keys, "{text}");
        }
        for bad in ["ctrl-", "ab", "ctrl-1", ",", "ctrl-p,"] {
            assert!(bad.parse::<DetachKeys>().is_err(), "{bad}");
        }
    }
}
