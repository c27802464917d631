//! Asking a running mount: the socket `control` in its work directory, which nothing in the mount leads to.
//!
//! A stream of JSON objects, one a line: a [`Request`], then its [`Answer`]. The driver answers the mount's owner and root.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

/// The socket's name in the work directory.
pub const SOCKET: &str = "control";

/// Longest wait for an answer: a checkpoint copies the files that are open for writing, and writes everything to the disk.
const PATIENCE: Duration = Duration::from_secs(600);

/// The longest line that a client reads.
const LONGEST: u64 = 4 << 20;

/// What a mount is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Request {
    /// The upper becomes the topmost layer, and an empty one takes its place.
    Checkpoint {
        /// Where the old upper goes. Nothing is there yet; the directory around it is.
        place: String,
        /// The id of the new upper.
        id: String,
        /// Everything is written to the disk before the answer.
        #[serde(default = "yes")]
        sync: bool,
    },
    /// Other layers, and a new empty upper unless `keep_upper`.
    Switch {
        /// Where the old upper goes; empty with `keep_upper`.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        place: String,
        /// The id of the new upper; empty with `keep_upper`.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        id: String,
        /// All layers, the topmost first.
        lowers: Vec<String>,
        /// The upper stays, and the layers show what the old ones did.
        #[serde(default)]
        keep_upper: bool,
    },
    /// Another mount is about to use these layers: no write of this one may reach them.
    Share {
        /// Their directories.
        layers: Vec<String>,
    },
    /// What the mount consists of.
    State,
}

fn yes() -> bool {
    true
}

/// A lower layer, as `state` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lower {
    /// Where the mount found it.
    pub path: String,
    /// Its id, if it is a checkpoint layer.
    pub id: Option<String>,
}

/// What a mount answers. Which fields are there depends on the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// It is done.
    pub ok: bool,
    /// If not, why, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The name of the system's error, as `ENOSPC`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    /// The id of the upper; after a checkpoint, of the layer that it became.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How long requests of the mount waited, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_us: Option<u64>,
    /// Files that went over to the new upper because they are open for writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_files: Option<u64>,
    /// The layers, the topmost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lowers: Vec<Lower>,
    /// The driver's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Files that are open for writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writers: Option<u64>,
}

/// A connection to a mount.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the mount whose work directory is `work`.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused`: no mount listens there.
    pub fn connect(work: &Path) -> io::Result<Self> {
        // The path may be longer than the name of a socket may be.
        let dir = rustix::fs::open(work, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let stream = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// What the mount says, or that it does not answer.
    pub fn ask(&mut self, request: &Request) -> io::Result<Answer> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        let mut answer = Vec::new();
        io::Read::take(&mut self.stream, LONGEST).read_until(b'\n', &mut answer)?;
        if answer.last() != Some(&b'\n') {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the driver ended while it was asked"));
        }
        let answer: Answer = serde_json::from_slice(&answer)?;
        match answer.ok {
            true => Ok(answer),
            false => Err(io::Error::other(answer.error.unwrap_or_else(|| "refused without a reason".to_owned()))),
        }
    }
}

/// A path as text, which JSON demands.
///
/// # Errors
/// It is not UTF-8.
pub fn text(path: &Path) -> io::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "its path is not text (UTF-8)"))
}

/// The path that a request or an answer holds.
pub fn path(text: &str) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn requests_are_what_the_protocol_says() {
        let shown = |request: &Request| serde_json::to_string(request).expect("json");
        let checkpoint = Request::Checkpoint { place: "/p".into(), id: "a".into(), sync: true };
        assert_eq!(shown(&checkpoint), r#"{"op":"checkpoint","place":"/p","id":"a","sync":true}"#);
        assert_eq!(shown(&Request::State), r#"{"op":"state"}"#);
        let short: Request = serde_json::from_str(r#"{"op":"checkpoint","place":"/p","id":"a"}"#).expect("parsed");
        assert_eq!(short, checkpoint);
        let kept: Request =
            serde_json::from_str(r#"{"op":"switch","lowers":["/l"],"keep_upper":true}"#).expect("parsed");
        let lowers = vec!["/l".to_owned()];
        assert_eq!(kept, Request::Switch { place: String::new(), id: String::new(), lowers, keep_upper: true });
    }

    /// A directory whose path no address of a socket holds is no obstacle; an answer that is cut off is told.
    #[test]
    fn asked_and_answered() {
        let dir = tempfile::tempdir().expect("a directory");
        let work = dir.path().join("w".repeat(200));
        std::fs::create_dir(&work).expect("made");
        assert_eq!(Client::connect(&work).expect_err("nobody listens").kind(), ErrorKind::NotFound);
        let held = std::fs::File::open(&work).expect("opened");
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", held.as_raw_fd())).expect("a socket");
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut lines = BufReader::new(stream);
            for answer in ["{\"ok\":true,\"writers\":3}\n", "{\"ok\":false,\"error\":\"full\"}\n", "{\"ok\""] {
                let mut line = String::new();
                lines.read_line(&mut line).expect("a request");
                assert_eq!(line, "{\"op\":\"state\"}\n");
                lines.get_mut().write_all(answer.as_bytes()).expect("sent");
            }
        });
        let mut client = Client::connect(&work).expect("connected");
        assert_eq!(client.ask(&Request::State).expect("an answer").writers, Some(3));
        assert_eq!(client.ask(&Request::State).expect_err("refused").to_string(), "full");
        let ended = client.ask(&Request::State).expect_err("cut off");
        assert_eq!(ended.kind(), ErrorKind::UnexpectedEof);
        server.join().expect("no panic");
    }
}
