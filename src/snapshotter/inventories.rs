//! Inventories of committed snapshots, made one after the other by a separate thread. containerd holds a lock on its
//! metadata while it commits, so this must not delay the commit, and the next layer can be unpacked in the meantime.
//! Mounting waits for them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::directories::Directories;
use crate::inventory;

/// Longest wait for a driver that is still ending.
const DRIVER_PATIENCE: Duration = Duration::from_secs(3);

/// The thread and its queue.
pub(super) struct Inventories {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    directories: Arc<Directories>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Numbers of snapshots that need an inventory; the first one's is being made.
    waiting: VecDeque<u64>,
    ended: bool,
}

impl Inventories {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no more threads can be started.
    pub(super) fn start(directories: Arc<Directories>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { directories, queue: Mutex::default(), changed: Condvar::new() });
        let its = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("inventories".to_owned()).spawn(move || its.work())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues the inventory of a committed snapshot, unless it exists.
    pub(super) fn begin(&self, id: u64) {
        self.shared.queue.lock().waiting.push_back(id);
        self.shared.changed.notify_all();
    }

    /// Waits at most `patience` until none of these inventories is outstanding.
    pub(super) fn wait(&self, ids: &[u64], patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut queue = self.shared.queue.lock();
        while queue.waiting.iter().any(|id| ids.contains(id)) {
            if self.shared.changed.wait_until(&mut queue, deadline).timed_out() {
                return;
            }
        }
    }
}

impl Drop for Inventories {
    /// Waits for the inventory that is being made. The next start finds the missing ones.
    fn drop(&mut self) {
        self.shared.queue.lock().ended = true;
        self.shared.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that makes inventories has panicked");
        }
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let id = {
                let mut queue = self.queue.lock();
                loop {
                    match queue.waiting.front() {
                        _ if queue.ended => return,
                        Some(&id) => break id,
                        None => self.changed.wait(&mut queue),
                    }
                }
            };
            self.make(id);
            self.queue.lock().waiting.pop_front();
            self.changed.notify_all();
        }
    }

    /// Best effort: a layer works without an inventory, so errors are only logged.
    fn make(&self, id: u64) {
        let layer = self.directories.upper(id);
        let outcome =
            self.directories.wait_until_free(id, DRIVER_PATIENCE).and_then(|_| self.directories.remove_work(id));
        if let Err(error) = outcome {
            tracing::debug!("{error}");
        }
        if layer.with_file_name("fs.inventory").exists() {
            return;
        }
        match inventory::write(&layer) {
            Ok(written) => tracing::debug!("{}: {} names", written.path.display(), written.entries),
            // The snapshot was removed in the meantime.
            Err(_) if !layer.exists() => {}
            Err(error) => tracing::warn!("inventory of {}: {error}", layer.display()),
        }
    }
}
