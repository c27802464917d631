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

/// The redirect in `marks`, if any. A malformed one was logged before.
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
/// search, opaque directories end it for the layers below, redirected ones change the path for them. An absolute redirect
/// leads out of the opaque directories above it (kernel: `ovl_check_redirect`).
pub(super) fn follow(dir: &MergedDir<'_>, layer: LayerId, path: &[u8]) -> Result<Followed, Errno> {
    let mut current = dir.stack.lower(layer)?.root().clone();
    let mut real: Arc<CStr> = Arc::from(c"");
    let mut stop = false;
    let components: Vec<CString> = path.split(|&b| b == b'/').map(c_name).collect::<Result<_, _>>()?;
    // The components so far, by their names in the layers below.
    let mut below: Vec<Vec<u8>> = Vec::new();
    let is_lowest = dir.stack.is_lowest(layer);
    let followed = |below: Vec<Vec<u8>>, at: usize, end, stop| {
        let rest = components.get(at..).unwrap_or_default().iter().map(|name| name.to_bytes());
        let path = below.iter().map(Vec::as_slice).chain(rest).collect::<Vec<_>>().join(&b'/');
        Ok(Followed { end, stop, path })
    };
    for (at, name) in components.iter().enumerate() {
        // A missing component does not affect the layers below.
        let Some(stat) = current.stat(name)? else { return followed(below, at, None, stop) };
        real = crate::union::layer::join(&real, name);
        if at + 1 == components.len() {
            let end = End { parent: current, name: name.clone(), stat, path: real };
            return followed(below, at, Some(end), stop);
        }
        if !stat.is_dir() {
            return followed(below, at, None, true);
        }
        let marks = if is_lowest { Marks::default() } else { current.marks(name)? };
        let is_opaque = marks.opaque() == Opaque::Yes;
        // An opaque directory's own redirect has no effect.
        let redirect = if is_opaque { None } else { redirect_of(dir, &marks, name)? };
        stop |= is_opaque;
        match redirect {
            None => below.push(name.to_bytes().to_vec()),
            Some(Redirect::Relative(other)) => below.push(other),
            Some(Redirect::Absolute(path)) => {
                below = vec![path];
                stop = false;
            }
        }
        current = current.open_dir(name)?;
    }
    followed(below, components.len(), None, stop)
}

/// The path with its last component replaced by `other`.
pub(super) fn with_last(path: &[u8], other: &[u8]) -> Vec<u8> {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => [path.get(..=slash).unwrap_or_default(), other].concat(),
        None => other.to_vec(),
    }
}
