//! A simulated registry that answers as a test wants, byte for byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stratafs::image::digest::Digest;

use super::fixture::{config, descriptor, gzip, noise};
use super::tar_build::Tar;

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The first byte that is wanted.
    pub fn from(&self) -> usize {
        let range =
            self.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        range.unwrap_or(0)
    }
}

/// An answer; the connection is closed after it.
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    then: Then,
}

enum Then {
    End,
    /// More bytes than needed.
    Flood,
    /// Nothing at all: the connection is closed.
    HangUp,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { status, headers: vec![("Content-Length".to_owned(), body.len().to_string())], body, then: Then::End }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The answer announces everything, but stops after this many bytes.
    pub fn cut(mut self, after: usize) -> Self {
        self.body.truncate(after);
        self
    }

    /// The answer announces no length, and never stops.
    pub fn flooding(mut self) -> Self {
        self.headers.retain(|(name, _)| name != "Content-Length");
        self.then = Then::Flood;
        self
    }

    /// The connection is closed without an answer.
    pub fn hang_up() -> Self {
        Self { then: Then::HangUp, ..Self::new(0, "") }
    }

    pub fn redirect(to: impl Into<String>) -> Self {
        Self::new(307, "").with("Location", to)
    }
}

type Handler = dyn Fn(&Asked, &mut dyn Read) -> Answer + Send + Sync;

/// The server; it ends with the test.
pub struct Liar {
    port: u16,
    wakes: std::net::SocketAddr,
    over: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Liar {
    /// Answers by `handler`, which may read the request's body.
    pub fn start(handler: impl Fn(&Asked, &mut dyn Read) -> Answer + Send + Sync + 'static) -> Self {
        Self::listen("127.0.0.1:0", handler)
    }

    /// The same server at another address.
    pub fn listen(address: &str, handler: impl Fn(&Asked, &mut dyn Read) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let wakes = listener.local_addr().unwrap();
        let port = listener.local_addr().unwrap().port();
        let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<Asked>>>::default());
        let (stop, log, handler) =
            (Arc::clone(&over), Arc::clone(&asked), Arc::<Handler>::from(Box::new(handler) as Box<Handler>));
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (connection, log, handler) = (connection.unwrap(), Arc::clone(&log), Arc::clone(&handler));
                // A client may disconnect at any time.
                std::thread::spawn(move || drop(serve(&connection, &log, &*handler)));
            }
        });
        Self { port, wakes, over, asked }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The requests so far whose path has the text.
    pub fn asked(&self, text: &str) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().filter(|asked| asked.path.contains(text)).cloned().collect()
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the listener.
        drop(TcpStream::connect(self.wakes));
    }
}

fn serve(connection: &TcpStream, log: &Mutex<Vec<Asked>>, handler: &Handler) -> std::io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(60)))?;
    connection.set_write_timeout(Some(Duration::from_secs(60)))?;
    let mut input = BufReader::new(connection);
    let mut line = String::new();
    input.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
            None => break,
        }
    }
    let asked = Asked { method, path, headers };
    log.lock().unwrap().push(asked.clone());
    let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let answer = handler(&asked, &mut input.take(length));
    let mut out = connection;
    if let Then::HangUp = answer.then {
        return Ok(());
    }
    write!(out, "HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status)?;
    for (name, value) in &answer.headers {
        write!(out, "{name}: {value}\r\n")?;
    }
    out.write_all(b"\r\n")?;
    if asked.method == "HEAD" {
        return Ok(());
    }
    out.write_all(&answer.body)?;
    if let Then::Flood = answer.then {
        // A limit, so that a client that reads everything fails by itself and does not exhaust the machine.
        for _ in 0..4096 {
            out.write_all(&[b' '; 64 << 10])?;
        }
    }
    Ok(())
}

/// An image as a registry has it.
#[derive(Clone)]
pub struct Image {
    pub config: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
    pub manifest: Value,
}

impl Image {
    /// Layers that do not compress, of some 300 kB each.
    pub fn new(layers: u64) -> Self {
        let tars: Vec<Vec<u8>> = (0..layers)
            .map(|number| Tar::new().file(format!("file-{number}"), noise(300_000, number + 7)).end())
            .collect();
        Self::of(&tars)
    }

    /// These layers, compressed.
    pub fn of(tars: &[Vec<u8>]) -> Self {
        let config = config(tars, "made by hand");
        let layers: Vec<Vec<u8>> = tars.iter().map(|tar| gzip(tar)).collect();
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| descriptor(kind, layer)).collect::<Vec<_>>(),
        });
        Self { config, layers, manifest }
    }

    pub fn manifest_bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    /// The answer of an honest registry.
    pub fn answer(&self, asked: &Asked) -> Answer {
        if asked.path == "/v2/" {
            return Answer::new(200, "{}");
        }
        if asked.path.contains("/manifests/") {
            let bytes = self.manifest_bytes();
            return Answer::new(200, bytes.clone())
                .with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
                .with("Docker-Content-Digest", Digest::of(&bytes).to_string());
        }
        match self.blob(&asked.path) {
            Some(blob) if asked.from() > 0 => {
                let range = format!("bytes {}-{}/{}", asked.from(), blob.len() - 1, blob.len());
                Answer::new(206, &blob[asked.from()..]).with("Content-Range", range)
            }
            Some(blob) => Answer::new(200, blob),
            None => Answer::new(404, ""),
        }
    }

    pub fn blob(&self, path: &str) -> Option<&[u8]> {
        let all = self.layers.iter().chain([&self.config]);
        all.map(Vec::as_slice).find(|blob| path.ends_with(&Digest::of(blob).to_string()))
    }

    /// True if a layer is asked for.
    pub fn is_layer(&self, asked: &Asked) -> bool {
        self.blob(&asked.path).is_some_and(|blob| blob != self.config)
    }
}
