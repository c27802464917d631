//! Work after the end of a container.

use super::locks::RunLock;
use super::{Container, Runtime};
use crate::image::Result;
use crate::store::Store;

/// Cleans up after a container has ended: the runtime forgets it and it is unmounted. With `--rm`, or if it `is_new`,
/// it is removed. Each step is tried even if earlier ones failed; the first error is returned.
pub fn finish(
    store: &Store,
    runtime: &Runtime,
    container: Container,
    lock: Option<RunLock>,
    is_new: bool,
) -> Result<()> {
    let forgotten = match runtime.state(&container) {
        Ok(Some(_)) => runtime.delete(&container, true),
        // The runtime was never asked to run it, or has already forgotten it.
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
        // If the driver died, the container is mounted again.
        false if !removes => container.mount(store).map(drop).and_then(|()| container.remove_stubs()),
        false => Ok(()),
    };
    let unmounted = match container.is_mounted()? {
        false => Ok(()),
        // If it is removed, other users of the mount do not prevent that.
        true if removes => container.unmount(false).or_else(|_| container.unmount(true)),
        true => container.unmount(false),
    };
    cleaned.and(unmounted)
}
