//! Follows a redirect: a path from the root of one layer (kernel: `ovl_lookup_layer`).

use std::ffi::{CStr, CString};
use std::sync::Arc;

use rustix::io::Errno;

use crate::marks::{self, Opaque, Redirect};
use crate::union::layer::{Dir, LayerId, Marks, Stat};
use crate::union::merge::MergedDir;

/// The result of following a path in one layer.
pub(super) struct Followed {
    /// The file or directory that it names there, if any.
    pub(super) end: Option<End>,
    /// Layers below must not be asked, because something on the way hides them.
    pub(super) stop: bool,
    /// The path for the layers below.
    pub(super) path: Vec<u8>,
}

/// The last component of a path.
pub(super) struct End {
    pub(super) parent: Dir,
    pub(super) name: CString,
    pub(super) stat: Stat,
    pub(super) path: Arc<CStr>,
}

/// The redirect in `marks`, if any. A malformed one has been logged.
///
/// # Errors
/// `IO` if it is malformed; `PERM` if redirects must not be followed.
pub(super) fn redirect_of(dir: &MergedDir<'_>, marks: &Marks, name: &CStr) -> Result<Option<Redirect>, Errno> {
    let Some(value) = marks.redirect.as_deref() else { return Ok(None) };
    if !dir.follow_redirects {
        tracing::warn!("{name:?}: redirect not followed (redirect_dir=nofollow)");
        return Err(Errno::PERM);
    }
    marks::decode_redirect(value).map(Some).map_err(|_| Errno::IO)
}

/// A name from a redirect.
pub(super) fn c_name(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno::IO)
}

/// Follows `path` in layer `layer`. Directories on the way have their usual effect: whiteouts and files end the
/// search, opaque directories end it for the layers below, redirected ones change the path for them.
pub(super) fn follow(dir: &MergedDir<'_>, layer: LayerId, path: &[u8]) -> Result<Followed, Errno> {
    let mut current = dir.stack.lower(layer)?.root().clone();
    let mut real: Arc<CStr> = Arc::from(c"");
    let mut step = Followed { end: None, stop: false, path: path.to_vec() };
    let components: Vec<CString> = path.split(|&b| b == b'/').map(c_name).collect::<Result<_, _>>()?;
    let is_lowest = dir.stack.is_lowest(layer);
    for (at, name) in components.iter().enumerate() {
        // A missing component does not affect the layers below.
        let Some(stat) = current.stat(name)? else { return Ok(step) };
        real = crate::union::layer::join(&real, name);
        if at + 1 == components.len() {
            step.end = Some(End { parent: current, name: name.clone(), stat, path: real });
            return Ok(step);
        }
        if !stat.is_dir() {
            step.stop = true;
            return Ok(step);
        }
        if !is_lowest {
            let marks = current.marks(name)?;
            step.stop |= marks.opaque() == Opaque::Yes;
            if let Some(redirect) = redirect_of(dir, &marks, name)? {
                step.path = redirected(&components, at, &redirect);
            }
        }
        current = current.open_dir(name)?;
    }
    Ok(step)
}

/// The path `components` with the redirect of the component at `at` applied.
pub(super) fn redirected(components: &[CString], at: usize, redirect: &Redirect) -> Vec<u8> {
    let before = components.get(..at).unwrap_or_default().iter().map(|c| c.to_bytes());
    let after = components.get(at + 1..).unwrap_or_default().iter().map(|c| c.to_bytes());
    let parts: Vec<&[u8]> = match redirect {
        Redirect::Absolute(path) => std::iter::once(path.as_slice()).chain(after).collect(),
        Redirect::Relative(other) => before.chain(std::iter::once(other.as_slice())).chain(after).collect(),
    };
    parts.join(&b'/')
}

/// The path with the redirect of its last component applied.
pub(super) fn redirected_end(path: &[u8], redirect: &Redirect) -> Result<Vec<u8>, Errno> {
    let components: Vec<CString> = path.split(|&b| b == b'/').map(c_name).collect::<Result<_, _>>()?;
    Ok(redirected(&components, components.len().saturating_sub(1), redirect))
}
