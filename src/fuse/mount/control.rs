//! Requests that come through the control socket in the mount's work directory.

use std::path::Path;
use std::sync::{Arc, Weak};

use rustix::io::Errno;

use crate::config::OverlayConfig;
use crate::control::{self, Answer, Lower, Request, Server};
use crate::driver::Overlay;
use crate::driver::checkpoint::{ChangeError, Kept, StackState};
use crate::marks::chain::ChainId;

/// Answers requests for `overlay`, if it is writable. A mount works without the socket, but then has no checkpoints while it
/// is mounted.
pub(super) fn listen(overlay: &Arc<Overlay>, config: &OverlayConfig) -> Option<Server> {
    let work = config.work.as_ref().filter(|_| !overlay.is_read_only())?;
    // The socket's threads may outlive the mount for a moment.
    let overlay = Arc::downgrade(overlay);
    let server = Server::start(work, move |request| match Weak::upgrade(&overlay) {
        Some(overlay) => answer(&overlay, request),
        None => Answer::refused("the mount has ended"),
    });
    match server {
        Ok(server) => Some(server),
        Err(error) => {
            tracing::info!("workdir {}: no control socket: {error}", work.display());
            None
        }
    }
}

fn answer(overlay: &Overlay, request: Request) -> Answer {
    let done = match request {
        Request::Checkpoint { place, id, sync } => checkpoint(overlay, &place, &id, sync),
        Request::WriteBack => {
            overlay.write_back();
            Ok(Answer::done())
        }
        Request::State => Ok(told(&overlay.state())),
        Request::Share { layers } => {
            let layers: Vec<_> = layers.iter().map(|layer| control::path(layer)).collect();
            overlay.share(&layers).map(|()| Answer::done())
        }
        Request::Merged { lowers } => {
            let lowers: Vec<_> = lowers.iter().map(|layer| control::path(layer)).collect();
            overlay.use_merged(&lowers).map(|()| Answer::done())
        }
        Request::Switch { place, id, lowers, keep } => switch(overlay, &place, &id, &lowers, keep.as_ref()),
    };
    done.unwrap_or_else(|error: ChangeError| Answer {
        errno: name_of(error.errno).map(str::to_owned),
        ..Answer::refused(error.line)
    })
}

/// The name of an error that clients may want to distinguish.
fn name_of(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::NOSPC => "ENOSPC",
        Errno::DQUOT => "EDQUOT",
        Errno::ROFS => "EROFS",
        Errno::EXIST => "EEXIST",
        Errno::BUSY => "EBUSY",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::IO => "EIO",
        _ => return None,
    })
}

fn id_of(text: &str) -> Result<ChainId, ChangeError> {
    text.parse().map_err(|error| ChangeError { errno: Errno::INVAL, line: format!("{text}: {error}") })
}

fn checkpoint(overlay: &Overlay, place: &str, id: &str, sync: bool) -> Result<Answer, ChangeError> {
    let id = id_of(id)?;
    let made = overlay.checkpoint(&control::path(place), id, sync)?;
    Ok(Answer {
        id: Some(made.id.to_string()),
        paused_us: Some(u64::try_from(made.paused.as_micros()).unwrap_or(u64::MAX)),
        moved_files: Some(made.moved_files as u64),
        ..Answer::done()
    })
}

fn switch(
    overlay: &Overlay,
    place: &str,
    id: &str,
    lowers: &[String],
    keep: Option<&(String, String)>,
) -> Result<Answer, ChangeError> {
    let lowers: Vec<_> = lowers.iter().map(|layer| control::path(layer)).collect();
    let keep = keep.map(|(place, id)| Ok((control::path(place), id_of(id)?))).transpose()?;
    let kept = keep.as_ref().map(|(place, id)| Kept { place, id: *id });
    let switched = overlay.switch(&control::path(place), id_of(id)?, &lowers, kept)?;
    Ok(Answer { paused_us: Some(u64::try_from(switched.paused.as_micros()).unwrap_or(u64::MAX)), ..Answer::done() })
}

fn told(state: &StackState) -> Answer {
    let lower = |(path, id): &(std::path::PathBuf, Option<ChainId>)| Lower {
        path: shown(path),
        id: id.as_ref().map(ChainId::to_string),
    };
    Answer {
        id: state.upper.as_ref().map(ChainId::to_string),
        lowers: state.lowers.iter().map(lower).collect(),
        pid: Some(std::process::id()),
        writers: Some(state.writers as u64),
        ..Answer::done()
    }
}

/// A path that is not UTF-8 is only displayed: requests cannot name it.
fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
