//! Paths of directories in the lower layers.

use std::ffi::{CStr, CString};

use rustix::io::Errno;

use crate::driver::node::{NodeId, NodeRef, RenameGuard};

/// The path by which the lower layers know the directory `node`: its names from the root down. A redirect replaces a
/// name, and an absolute redirect replaces everything before it (kernel: `ovl_get_redirect`).
///
/// # Errors
/// `STALE` if the directory was removed; `IO` if a redirect has a NUL in it.
pub fn path_in_lowers(_rename: &RenameGuard<'_>, node: &NodeRef) -> Result<Vec<u8>, Errno> {
    let mut components: Vec<CString> = Vec::new();
    let mut current = node.clone();
    let mut path = Vec::new();
    while current.id() != NodeId::ROOT {
        let redirect = current.dir().and_then(|dir| dir.upper_part(|part| part.redirect.clone()));
        let (parent, name) = current.name().ok_or(Errno::STALE)?;
        match redirect.as_deref() {
            Some(absolute @ [b'/', ..]) => {
                path = absolute.to_vec();
                break;
            }
            Some(relative) => components.push(CString::new(relative).map_err(|_| Errno::IO)?),
            None => components.push(CStr::to_owned(&name)),
        }
        current = parent;
    }
    for component in components.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(component.to_bytes());
    }
    Ok(path)
}
