//! A thread deletes the files of removed snapshots, so that removing a snapshot does not wait for it.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;

use super::Result;
use super::directories::Directories;

/// The thread, which ends after this is dropped.
pub(super) struct Removals {
    shared: Arc<Shared>,
    wake: Sender<()>,
}

struct Shared {
    directories: Arc<Directories>,
    /// One thread deletes at a time: a caller that waits for this one finds everything deleted.
    one: Mutex<()>,
}

impl Removals {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(directories: Arc<Directories>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { directories, one: Mutex::new(()) });
        let (wake, woken) = channel();
        let its = Arc::clone(&shared);
        std::thread::Builder::new().name("removals".to_owned()).spawn(move || {
            while woken.recv().is_ok() {
                // One round does for all that have asked meanwhile.
                while woken.try_recv().is_ok() {}
                if let Err(error) = its.delete() {
                    tracing::warn!("{error}; the next cleanup tries again");
                }
            }
        })?;
        Ok(Self { shared, wake })
    }

    /// Has deleted what was taken away until now.
    pub(super) fn begin(&self) {
        if self.wake.send(()).is_err() {
            tracing::error!("the thread that deletes snapshots has ended");
        }
    }

    /// Deletes what was taken away until now.
    ///
    /// # Errors
    /// When something cannot be deleted; the rest is deleted all the same.
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
