//! The socket that containerd calls.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio_stream::wrappers::UnixListenerStream;

use super::error::At;
use super::service::Service;
use super::{Result, SnapshotError, Snapshotter};

/// Maximum number of calls in parallel; further ones wait.
const CALLS: usize = 64;

/// Longest wait, at the end, for running calls.
const LAST_CALLS: Duration = Duration::from_secs(10);

/// Time for a reply to be written, at the end.
const REPLY: Duration = Duration::from_millis(100);

/// The default address of the snapshotter. `None` for an ordinary user without `XDG_RUNTIME_DIR`.
pub fn default_address() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/run/stratafs-snapshotter/snapshotter.sock"));
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    runtime.map(|runtime| runtime.join("stratafs-snapshotter.sock"))
}

/// A listening socket, before calls are answered.
pub struct Server {
    listener: UnixListener,
    address: PathBuf,
    /// Device and inode number of the socket.
    identity: (u64, u64),
}

impl Server {
    /// Listens on the Unix socket `address`, which only this user may use. A leftover socket is replaced.
    ///
    /// # Errors
    /// `Invalid` if another process answers there, or it is not a socket. Those of making a socket.
    pub fn bind(address: &Path) -> Result<Self> {
        if let Some(dir) = address.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).at(dir)?;
        }
        let invalid = |reason: &str| SnapshotError::invalid(address.display().to_string(), reason);
        match fs::symlink_metadata(address) {
            Ok(found) if !found.file_type().is_socket() => return Err(invalid("is there, and not a socket")),
            Ok(_) => match UnixStream::connect(address) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(address).at(address)?,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error).at(address),
                Ok(_) => return Err(invalid("another process listens there")),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).at(address),
        }
        let listener = match UnixListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                return Err(invalid("the path is too long for a socket"));
            }
            bound => bound.at(address)?,
        };
        fs::set_permissions(address, fs::Permissions::from_mode(0o600)).at(address)?;
        let stat = fs::symlink_metadata(address).at(address)?;
        Ok(Self { listener, address: address.to_owned(), identity: (stat.dev(), stat.ino()) })
    }

    /// Answers calls until `wait_for_end` returns, then finishes running calls. The socket is removed afterwards.
    ///
    /// # Errors
    /// When the threads cannot be started or the socket fails.
    pub fn serve(self, snapshotter: Arc<Snapshotter>, wait_for_end: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(CALLS)
            .thread_name("calls")
            .enable_all()
            .build()?;
        self.listener.set_nonblocking(true)?;
        let (end, ended) = tokio::sync::watch::channel(false);
        std::thread::Builder::new().name("end".to_owned()).spawn(move || {
            wait_for_end();
            // If there is no receiver, everything has ended already.
            end.send(true).unwrap_or(());
        })?;
        let calls = Arc::new(AtomicUsize::new(0));
        let outcome = runtime.block_on(async {
            let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(self.listener.try_clone()?)?);
            tell_systemd();
            let serving = tonic::transport::Server::builder().serve_with_incoming_shutdown(
                Service { snapshotter, calls: Arc::clone(&calls) },
                incoming,
                end_of(ended.clone()),
            );
            // An idle client may keep its connection.
            let last_call = async {
                end_of(ended).await;
                let deadline = Instant::now() + LAST_CALLS;
                loop {
                    tokio::time::sleep(REPLY).await;
                    if calls.load(Ordering::Acquire) == 0 || Instant::now() > deadline {
                        return;
                    }
                }
            };
            tokio::select! {
                served = serving => served.map_err(io::Error::other),
                () = last_call => Ok(()),
            }
        });
        runtime.shutdown_timeout(LAST_CALLS);
        self.remove_socket();
        outcome
    }

    /// Removes the socket, unless another process has put its own there.
    fn remove_socket(&self) {
        let is_ours = fs::symlink_metadata(&self.address).is_ok_and(|stat| (stat.dev(), stat.ino()) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.address) {
            tracing::warn!("{}: {error}", self.address.display());
        }
    }
}

/// Waits until the end is announced, or the announcing side is gone.
async fn end_of(mut ended: tokio::sync::watch::Receiver<bool>) {
    while !*ended.borrow_and_update() {
        if ended.changed().await.is_err() {
            return;
        }
    }
}

/// Tells systemd that calls are answered (`sd_notify(3)`), if it waits for that.
fn tell_systemd() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = || {
        let bytes = path.as_encoded_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)
    };
    if let Err(error) = told() {
        tracing::warn!("NOTIFY_SOCKET {}: {error}", path.display());
    }
}
