//! What is done when a container has ended.

use super::locks::RunLock;
use super::{Container, Runtime};
use crate::image::Result;
use crate::store::Store;

/// After a container has ended: the runtime forgets it, its mount goes, and with `--rm`, or if it `is_new`, all of it.
/// Every step is tried, whatever became of those before; the first error is returned.
pub fn finish(
    store: &Store,
    runtime: &Runtime,
    container: Container,
    lock: Option<RunLock>,
    is_new: bool,
) -> Result<()> {
    let forgotten = match runtime.state(&container) {
        Ok(Some(_)) => runtime.delete(&container, true),
        // It was never asked to run it, or has forgotten it by itself.
        Ok(None) | Err(_) => Ok(()),
    };
    let removes = is_new || container.record.remove_at_exit;
    let unmounted = unmount(store, &container, is_new, removes);
    let removed = match lock {
        _ if !removes => Ok(()),
        Some(lock) => container.remove_locked(store, &lock),
        None => container.remove(store),
    };
    forgotten.and(unmounted).and(removed)
}

fn unmount(store: &Store, container: &Container, is_new: bool, removes: bool) -> Result<()> {
    let cleaned = match is_new {
        true => Ok(()),
        // Mounts again if the driver died.
        false if !removes => container.mount(store).map(drop).and_then(|()| container.remove_stubs()),
        false => Ok(()),
    };
    let unmounted = match container.is_mounted()? {
        false => Ok(()),
        // Where nothing of it stays, what uses it keeps no one from removing it.
        true if removes => container.unmount(false).or_else(|_| container.unmount(true)),
        true => container.unmount(false),
    };
    cleaned.and(unmounted)
}
