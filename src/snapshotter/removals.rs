//! A thread that deletes the files of removed snapshots, so that removing a snapshot is fast.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;

use super::Result;
use super::directories::Directories;

/// The thread; it ends after this is dropped.
pub(super) struct Removals {
    shared: Arc<Shared>,
    wake: Sender<()>,
}

struct Shared {
    directories: Arc<Directories>,
    /// One thread deletes at a time: after waiting for this lock, everything is deleted.
    one: Mutex<()>,
}

impl Removals {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no more threads can be started.
    pub(super) fn start(directories: Arc<Directories>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { directories, one: Mutex::new(()) });
        let (wake, woken) = channel();
        let its = Arc::clone(&shared);
        std::thread::Builder::new().name("removals".to_owned()).spawn(move || {
            while woken.recv().is_ok() {
                // One round serves all requests that came in the meantime.
                while woken.try_recv().is_ok() {}
                if let Err(error) = its.delete() {
                    tracing::warn!("{error}; the next cleanup tries again");
                }
            }
        })?;
        Ok(Self { shared, wake })
    }

    /// Starts deleting everything that was moved away so far.
    pub(super) fn begin(&self) {
        if self.wake.send(()).is_err() {
            tracing::error!("the thread that deletes snapshots has ended");
        }
    }

    /// Deletes everything that was moved away so far.
    ///
    /// # Errors
    /// When a file cannot be deleted; the rest is deleted nevertheless.
    pub(super) fn finish(&self) -> Result<()> {
        self.shared.delete()
    }
}

impl Shared {
    fn delete(&self) -> Result<()> {
        let _one = self.one.lock();
        self.directories.empty_removed()
    }
}
