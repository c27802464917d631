//! A gRPC client directly on HTTP/2, so that the protocol is tested against an independent implementation.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message;
use tokio::runtime::Runtime;

use super::wire::{self, Info, PrepareRequest};
use super::*;

/// gRPC's number of a status; `None`: the connection was lost.
#[derive(Debug)]
pub struct Failed {
    pub status: Option<i32>,
    pub message: String,
}

pub const INVALID_ARGUMENT: i32 = 3;
pub const NOT_FOUND: i32 = 5;
pub const ALREADY_EXISTS: i32 = 6;
pub const FAILED_PRECONDITION: i32 = 9;
pub const UNIMPLEMENTED: i32 = 12;

pub struct Client {
    runtime: Runtime,
    requests: h2::client::SendRequest<Cursor<Vec<u8>>>,
}

impl Client {
    /// Calls `socket`. `None` if nothing listens there.
    pub fn try_connect(socket: &Path) -> Option<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let requests = runtime.block_on(async {
            let stream = tokio::net::UnixStream::connect(socket).await.ok()?;
            let (requests, connection) =
                h2::client::Builder::new().handshake::<_, Cursor<Vec<u8>>>(stream).await.ok()?;
            // When it is lost, the next call tells.
            tokio::spawn(async move { connection.await.unwrap_or(()) });
            Some(requests)
        })?;
        Some(Self { runtime, requests })
    }

    /// All messages that answer a call.
    pub fn stream<R: Message + Default>(&self, call: &str, asked: &impl Message) -> Result<Vec<R>, Failed> {
        let (bytes, trailers) = self
            .runtime
            .block_on(self.send(call, asked))
            .map_err(|error| Failed { status: None, message: error.to_string() })?;
        let text = |name: &str| trailers.get(name).map(|value| value.to_str().unwrap().to_owned());
        match text("grpc-status").expect("a status").parse().unwrap() {
            0 => Ok(messages(&bytes)),
            status => {
                let message = text("grpc-message").unwrap_or_default();
                let message = percent_encoding::percent_decode_str(&message).decode_utf8().unwrap().into_owned();
                Err(Failed { status: Some(status), message })
            }
        }
    }

    /// The body and the trailers that answer a call.
    async fn send(&self, call: &str, asked: &impl Message) -> Result<(Vec<u8>, http::HeaderMap), h2::Error> {
        let request =
            http::Request::post(format!("http://localhost/containerd.services.snapshots.v1.Snapshots/{call}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .unwrap();
        let body = asked.encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(&body);
        let mut requests = self.requests.clone().ready().await?;
        let (response, mut sending) = requests.send_request(request, false)?;
        sending.send_data(Cursor::new(framed), true)?;
        let (head, mut body) = response.await?.into_parts();
        let mut bytes = vec![];
        while let Some(part) = body.data().await {
            let part = part?;
            body.flow_control().release_capacity(part.len())?;
            bytes.extend_from_slice(&part);
        }
        // A call that fails at once has its status among the headers.
        Ok((bytes, body.trailers().await?.unwrap_or(head.headers)))
    }

    /// Sends a call, and closes the connection `after` that without waiting for the answer.
    pub fn vanish_after(self, after: Duration, call: &str, asked: &impl Message) {
        let answer = self.runtime.block_on(async { tokio::time::timeout(after, self.send(call, asked)).await });
        assert!(answer.is_err(), "{call} was answered: {:?}", answer.map(drop));
    }

    /// The only message that answers a call.
    pub fn call<R: Message + Default>(&self, call: &str, asked: &impl Message) -> Result<R, Failed> {
        let mut answers = self.stream(call, asked)?;
        assert_eq!(answers.len(), 1);
        Ok(answers.remove(0))
    }

    pub fn prepare(&self, key: &str, parent: &str) -> Result<PathBuf, Failed> {
        let asked = PrepareRequest { key: key.to_owned(), parent: parent.to_owned(), labels: no_labels() };
        let answer: wire::MountsResponse = self.call("Prepare", &asked)?;
        let [mount] = answer.mounts.as_slice() else { panic!("{answer:?}") };
        let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
        Ok(PathBuf::from(upper.unwrap_or(&mount.source)))
    }

    pub fn commit(&self, name: &str, key: &str) -> Result<wire::Empty, Failed> {
        let (name, key) = (name.to_owned(), key.to_owned());
        self.call("Commit", &wire::CommitRequest { name, key, ..wire::CommitRequest::default() })
    }

    /// A call that names one snapshot.
    pub fn by_key<R: Message + Default>(&self, call: &str, key: &str) -> Result<R, Failed> {
        self.call(call, &wire::KeyRequest { key: key.to_owned() })
    }

    pub fn list(&self, filters: &[&str]) -> Result<Vec<Info>, Failed> {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let messages: Vec<wire::ListResponse> = self.stream("List", &wire::ListRequest { filters })?;
        Ok(messages.into_iter().flat_map(|message| message.info).collect())
    }
}

/// Messages with a byte and their length before each.
fn messages<R: Message + Default>(mut bytes: &[u8]) -> Vec<R> {
    let mut found = vec![];
    while let [0, a, b, c, d, rest @ ..] = bytes {
        let (message, rest) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        found.push(R::decode(message).unwrap());
        bytes = rest;
    }
    assert!(bytes.is_empty());
    found
}

/// The program, serving a directory of snapshots.
pub struct Service {
    pub child: Child,
    pub socket: PathBuf,
}

impl Service {
    /// `wrapper` is put before the program.
    pub fn start(scratch: &Scratch, wrapper: &[String]) -> Self {
        let socket = scratch.dir.path().join("socket");
        let mut words = wrapper.to_vec();
        words.push(env!("CARGO_BIN_EXE_strata").to_owned());
        let log = std::fs::File::options().create(true).append(true).open(scratch.dir.path().join("log")).unwrap();
        let child = Command::new(&words[0])
            .args(&words[1..])
            .args(["snapshotter", "--dir"])
            .arg(scratch.root())
            .arg("--address")
            .arg(&socket)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, socket }
    }

    /// A client, as soon as calls are answered.
    pub fn client(&mut self) -> Client {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(client) = Client::try_connect(&self.socket) {
                return client;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "nothing answers on {}: {ended:?}",
                self.socket.display()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended.
        self.child.kill().unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
    }
}
