//! The server's side.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, chmodat, unlinkat};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;

use super::{Answer, LONGEST, Request, SOCKET};

/// Answers requests until it is dropped, in its own threads: one waits for connections, and one serves each connection.
#[derive(Debug)]
pub struct Server {
    work: OwnedFd,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    listener: UnixListener,
    /// The connections, which are closed with the server.
    clients: Mutex<Vec<Weak<UnixStream>>>,
    over: AtomicBool,
}

impl Server {
    /// Listens in the work directory `work`, which only this process uses: an existing socket was left by a killed process.
    ///
    /// # Errors
    /// The socket cannot be made, or no thread can be started.
    pub fn start(work: &Path, answer: impl Fn(Request) -> Answer + Send + Sync + 'static) -> io::Result<Self> {
        let work = rustix::fs::open(work, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        remove_socket(&work)?;
        // The path may be too long for a socket's address.
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", work.as_raw_fd()))?;
        chmodat(&work, SOCKET, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
        let shared = Arc::new(Shared { listener, clients: Mutex::default(), over: AtomicBool::new(false) });
        let serving = Arc::clone(&shared);
        std::thread::Builder::new().name("control".to_owned()).spawn(move || serving.accept(Arc::new(answer)))?;
        Ok(Self { work, shared })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let stopped = rustix::net::shutdown(&self.shared.listener, rustix::net::Shutdown::Both);
        for client in self.shared.clients.lock().drain(..).filter_map(|client| client.upgrade()) {
            // The client may be gone already.
            client.shutdown(Shutdown::Both).unwrap_or(());
        }
        if let (Err(errno), _) | (_, Err(errno)) = (stopped, remove_socket(&self.work)) {
            tracing::debug!("the control socket stays: {errno}");
        }
    }
}

fn remove_socket(work: &OwnedFd) -> Result<(), Errno> {
    match unlinkat(work, SOCKET, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

impl Shared {
    fn accept(&self, answer: Arc<impl Fn(Request) -> Answer + Send + Sync + 'static>) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            if !is_permitted(&stream) {
                continue;
            }
            let stream = Arc::new(stream);
            let mut clients = self.clients.lock();
            clients.retain(|client| client.strong_count() > 0);
            clients.push(Arc::downgrade(&stream));
            drop(clients);
            let answer = Arc::clone(&answer);
            let begun =
                std::thread::Builder::new().name("control".to_owned()).spawn(move || converse(&stream, &*answer));
            if let Err(error) = begun {
                tracing::warn!("a request to the control socket is not answered: {error}");
            }
        }
    }
}

/// Root and the user of this process may send requests.
fn is_permitted(stream: &UnixStream) -> bool {
    match socket_peercred(stream) {
        Ok(peer) => peer.uid.is_root() || peer.uid == rustix::process::geteuid(),
        Err(errno) => {
            tracing::warn!("the client of the control socket cannot be identified: {errno}");
            false
        }
    }
}

/// Answers the requests of one client.
fn converse(stream: &UnixStream, answer: &impl Fn(Request) -> Answer) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
            Ok(_) if line.last() == Some(&b'\n') => {}
            _ => return,
        }
        let request = serde_json::from_slice(&line).ok().and_then(|value| Request::from_json(&value));
        let answer = match request {
            Some(request) => answer(request),
            None => Answer::refused("not a request that this version knows"),
        };
        let mut writer = stream;
        if writer.write_all(format!("{}\n", answer.to_json()).as_bytes()).is_err() {
            return;
        }
    }
}
