//! Makes inventories of mounted layers in the background.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::sys::priority;
use crate::union::layer::make_inventory;

/// Age of a mount before it makes inventories: short-lived mounts must not pay for them.
const DELAY: Duration = Duration::from_secs(1);

/// The thread that makes inventories. Its end is not waited for: at its priority that may take long, and if the
/// process ends first, nothing of the unfinished file remains.
#[derive(Default)]
pub(super) struct Maker {
    ended: Arc<(Mutex<bool>, Condvar)>,
}

impl Maker {
    /// Starts making inventories of `layers`, at the lowest priority.
    pub(super) fn start(&self, layers: Vec<PathBuf>) {
        if layers.is_empty() {
            return;
        }
        let ended = Arc::clone(&self.ended);
        let spawned = std::thread::Builder::new().name("inventories".to_owned()).spawn(move || {
            let (flag, changed) = &*ended;
            let mut guard = flag.lock();
            changed.wait_while_for(&mut guard, |ended| !*ended, DELAY);
            drop(guard);
            if let Err(error) = priority::idle_in_this_thread() {
                tracing::debug!("inventories are made at ordinary priority: {error}");
            }
            for layer in layers {
                if *flag.lock() {
                    return;
                }
                match make_inventory(&layer, &|| !*flag.lock()) {
                    Ok(true) => tracing::info!("{}: inventory made", layer.display()),
                    Ok(false) => {}
                    Err(error) => tracing::debug!("{}: no inventory made: {error}", layer.display()),
                }
            }
        });
        if let Err(error) = spawned {
            tracing::debug!("no inventories are made: {error}");
        }
    }

    /// Ends the work. An incomplete inventory is dropped.
    pub(super) fn end(&self) {
        *self.ended.0.lock() = true;
        self.ended.1.notify_all();
    }
}
