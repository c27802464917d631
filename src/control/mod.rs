//! Requests to a running mount, through the socket `control` in its work directory. It cannot be reached from inside the mount.
//!
//! The protocol is a stream of JSON objects, one on each line: a [`Request`], then its [`Answer`]. The driver answers
//! root and the mounting user.

mod client;
mod server;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

pub use client::Client;
pub use server::Server;

/// The socket's name in the work directory.
pub const SOCKET: &str = "control";

/// Longest line: the paths of about ten thousand layers.
const LONGEST: u64 = 4 << 20;

/// A request to a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The upper becomes the topmost layer, and an empty one takes its place.
    Checkpoint {
        /// The new place of the old upper. It must not exist; its parent must.
        place: String,
        /// The id of the new upper.
        id: String,
        /// If true, everything is on the disk before the answer.
        sync: bool,
    },
    /// Use other layers and a new, empty upper.
    Switch {
        /// The new place of the old upper.
        place: String,
        /// The id of the new upper.
        id: String,
        /// All layers, the topmost first.
        lowers: Vec<String>,
        /// Where the old upper becomes a layer instead, and the id of the upper between the two.
        keep: Option<(String, String)>,
    },
    /// These layers, the topmost first, show what the mount's layers show: some of those were merged.
    Merged {
        /// All layers.
        lowers: Vec<String>,
    },
    /// Another mount is about to use these layers: this one must not write to them.
    Share {
        /// Their directories.
        layers: Vec<String>,
    },
    /// Have the kernel write back what it keeps of open files.
    WriteBack,
    /// Describe the mount.
    State,
}

/// A lower layer in the answer to `state`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lower {
    /// Its path for the mount.
    pub path: String,
    /// Its id, if it is a checkpoint layer.
    pub id: Option<String>,
}

/// The answer of a mount. The present fields depend on the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// True on success.
    pub ok: bool,
    /// Otherwise the reason, in one line.
    pub error: Option<String>,
    /// The name of the system's error, for example `ENOSPC`.
    pub errno: Option<String>,
    /// The id of the upper; after a checkpoint, that of the new layer.
    pub id: Option<String>,
    /// How long requests of the mount waited, in microseconds.
    pub paused_us: Option<u64>,
    /// Number of files that moved to the new upper because they are open for writing.
    pub moved_files: Option<u64>,
    /// The layers, the topmost first.
    pub lowers: Vec<Lower>,
    /// The driver's process.
    pub pid: Option<u32>,
    /// Number of files that are open for writing.
    pub writers: Option<u64>,
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
}

impl Request {
    fn to_json(&self) -> Value {
        match self {
            Self::Checkpoint { place, id, sync } => {
                json!({"op": "checkpoint", "place": place, "id": id, "sync": sync})
            }
            Self::Switch { place, id, lowers, keep } => {
                let mut request = json!({"op": "switch", "place": place, "id": id, "lowers": lowers});
                if let Some((place, id)) = keep {
                    request["keep"] = json!({"place": place, "id": id});
                }
                request
            }
            Self::Merged { lowers } => json!({"op": "merged", "lowers": lowers}),
            Self::Share { layers } => json!({"op": "share", "layers": layers}),
            Self::WriteBack => json!({"op": "write-back"}),
            Self::State => json!({"op": "state"}),
        }
    }

    /// `None` for a request that this version does not know.
    fn from_json(value: &Value) -> Option<Self> {
        let text = |field: &str| value[field].as_str().map(str::to_owned);
        Some(match value["op"].as_str()? {
            "checkpoint" => Self::Checkpoint {
                place: text("place")?,
                id: text("id")?,
                sync: value["sync"].as_bool().unwrap_or(true),
            },
            "switch" => {
                let kept = |field: &str| value["keep"][field].as_str().map(str::to_owned);
                let keep = if value["keep"].is_null() { None } else { Some((kept("place")?, kept("id")?)) };
                Self::Switch { place: text("place")?, id: text("id")?, lowers: texts(&value["lowers"])?, keep }
            }
            "merged" => Self::Merged { lowers: texts(&value["lowers"])? },
            "share" => Self::Share { layers: texts(&value["layers"])? },
            "write-back" => Self::WriteBack,
            "state" => Self::State,
            _ => return None,
        })
    }
}

impl Answer {
    /// An answer for a refused request.
    pub fn refused(error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), ..Self::default() }
    }

    /// An answer for a successful request.
    pub fn done() -> Self {
        Self { ok: true, ..Self::default() }
    }

    fn to_json(&self) -> Value {
        let mut object = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                object.insert(name.to_owned(), value);
            }
        };
        set("ok", Some(self.ok.into()));
        set("error", self.error.as_deref().map(Value::from));
        set("errno", self.errno.as_deref().map(Value::from));
        set("id", self.id.as_deref().map(Value::from));
        set("paused_us", self.paused_us.map(Value::from));
        set("moved_files", self.moved_files.map(Value::from));
        let lowers: Value = self.lowers.iter().map(|lower| json!({"path": lower.path, "id": lower.id})).collect();
        set("lowers", (!self.lowers.is_empty()).then_some(lowers));
        set("pid", self.pid.map(Value::from));
        set("writers", self.writers.map(Value::from));
        Value::Object(object)
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |field: &str| value[field].as_str().map(str::to_owned);
        let lower = |value: &Value| {
            Some(Lower { path: value["path"].as_str()?.to_owned(), id: value["id"].as_str().map(str::to_owned) })
        };
        Some(Self {
            ok: value["ok"].as_bool()?,
            error: text("error"),
            errno: text("errno"),
            id: text("id"),
            paused_us: value["paused_us"].as_u64(),
            moved_files: value["moved_files"].as_u64(),
            lowers: value["lowers"].as_array().into_iter().flatten().map(lower).collect::<Option<_>>()?,
            pid: value["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()),
            writers: value["writers"].as_u64(),
        })
    }
}

/// A path as text, as JSON needs it.
///
/// # Errors
/// The path is not UTF-8.
pub fn text(path: &Path) -> io::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "its path is not text (UTF-8)"))
}

/// The path in a request or an answer.
pub fn path(text: &str) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn requests_are_what_the_protocol_says() {
        let checkpoint = Request::Checkpoint { place: "/p".into(), id: "a".into(), sync: true };
        let lowers = vec!["/l".to_owned()];
        let switch = Request::Switch { place: "/p".into(), id: "a".into(), lowers: lowers.clone(), keep: None };
        let keep = Some(("/k".to_owned(), "b".to_owned()));
        let keeping = Request::Switch { place: "/p".into(), id: "a".into(), lowers: lowers.clone(), keep };
        for (request, text) in [
            (&checkpoint, r#"{"op":"checkpoint","place":"/p","id":"a","sync":true}"#),
            (&switch, r#"{"op":"switch","place":"/p","id":"a","lowers":["/l"]}"#),
            (&keeping, r#"{"op":"switch","place":"/p","id":"a","lowers":["/l"],"keep":{"place":"/k","id":"b"}}"#),
            (&Request::Share { layers: lowers.clone() }, r#"{"op":"share","layers":["/l"]}"#),
            (&Request::Merged { lowers: lowers.clone() }, r#"{"op":"merged","lowers":["/l"]}"#),
            (&Request::WriteBack, r#"{"op":"write-back"}"#),
            (&Request::State, r#"{"op":"state"}"#),
        ] {
            assert_eq!(request.to_json().to_string(), text);
            assert_eq!(Request::from_json(&serde_json::from_str(text).expect("json")).as_ref(), Some(request));
        }
        let short = json!({"op": "checkpoint", "place": "/p", "id": "a"});
        assert_eq!(Request::from_json(&short), Some(checkpoint));
        for bad in [
            json!({"op": "x"}),
            json!({"op": "checkpoint", "id": "a"}),
            json!({"op": "share", "layers": [1]}),
            json!(1),
        ] {
            assert_eq!(Request::from_json(&bad), None, "{bad}");
        }
        let lowers = vec![Lower { path: "/l".into(), id: None }, Lower { path: "/c".into(), id: Some("b".into()) }];
        let answer = Answer { lowers, pid: Some(7), writers: Some(0), paused_us: Some(9), ..Answer::done() };
        assert_eq!(Answer::from_json(&answer.to_json()), Some(answer));
    }

    /// The directory's path may be too long for a socket's address. Invalid requests are refused. The socket is removed
    /// with the server, and one left by a dead server is replaced.
    #[test]
    fn asked_and_answered() {
        let dir = tempfile::tempdir().expect("a directory");
        let work = dir.path().join("w".repeat(200));
        std::fs::create_dir(&work).expect("made");
        assert_eq!(Client::connect(&work).expect_err("nothing listens").kind(), io::ErrorKind::NotFound);
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        let answer = move |request: Request| match request {
            Request::State => Answer { writers: Some(count.fetch_add(1, Ordering::SeqCst)), ..Answer::done() },
            _ => Answer::refused("full"),
        };
        let server = Server::start(&work, answer.clone()).expect("a server");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(work.join(SOCKET)).expect("a socket").permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        let mut client = Client::connect(&work).expect("connected");
        for number in 0..3 {
            assert_eq!(client.ask(&Request::State).expect("an answer").writers, Some(number));
        }
        let refused = client.ask(&Request::Share { layers: Vec::new() });
        assert_eq!(refused.expect_err("refused").to_string(), "full");
        let mut raw = client::connect_to(&work).expect("connected");
        io::Write::write_all(&mut raw, b"nonsense\n").expect("sent");
        let mut told = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(raw), &mut told).expect("an answer");
        assert_eq!(told, "{\"ok\":false,\"error\":\"not a request that this version knows\"}\n");
        drop(server);
        assert!(!work.join(SOCKET).exists());
        assert!(client.ask(&Request::State).is_err(), "the server has ended");
        // A killed driver leaves its socket behind.
        let stale = std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).expect("a socket");
        drop(stale);
        let refused = Client::connect(dir.path()).expect_err("nothing listens").kind();
        assert_eq!(refused, io::ErrorKind::ConnectionRefused);
        let _server = Server::start(dir.path(), answer).expect("a server");
        assert!(Client::connect(dir.path()).is_ok());
    }

    #[test]
    fn an_answer_that_is_cut_off_is_told() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let server = std::thread::spawn(move || {
            let mut line = String::new();
            let mut reader = io::BufReader::new(other);
            io::BufRead::read_line(&mut reader, &mut line).expect("a request");
            io::Write::write_all(reader.get_mut(), b"{\"ok\"").expect("sent");
        });
        let ended = Client::on(one).ask(&Request::State).expect_err("cut off");
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
        server.join().expect("no panic");
    }
}
