//! Uploads one blob. After a lost connection, the upload continues where the registry says it is. If it is unknown
//! whether the last request arrived, the registry is asked for the blob.

use std::io::{self, Read, Seek, SeekFrom};

use ureq::http::{Method, Uri};

use crate::image::Result;
use crate::image::spec::Descriptor;
use crate::registry::address::with_digest;
use crate::registry::blob_path;
use crate::registry::http::{Payload, Request, Response, refusal, refused};
use crate::registry::retry::{self, Patience};
use crate::registry::session::Session;

/// The state of an upload.
enum UploadState {
    /// No upload is open at the registry.
    Closed,
    /// The registry accepts bytes at this address; some may have arrived.
    Open(Uri),
    /// All bytes were accepted; the end must be confirmed at this address. That may have happened already.
    Complete(Uri),
}

/// An upload in progress.
struct Upload<'u> {
    session: &'u Session<'u>,
    descriptor: &'u Descriptor,
    state: UploadState,
    /// The largest position that the registry has reached.
    best: u64,
    /// True if bytes were sent to an upload that an earlier attempt began.
    resumed: bool,
    reaches: &'u dyn Fn(u64),
}

/// Uploads a blob.
///
/// # Errors
/// When it cannot be read, or the registry does not accept it.
pub(super) fn upload(
    session: &Session<'_>,
    descriptor: &Descriptor,
    from: &mut (impl Read + Seek),
    reaches: &dyn Fn(u64),
) -> Result<()> {
    let mut upload = Upload { session, descriptor, state: UploadState::Closed, best: 0, resumed: false, reaches };
    let mut patience = session.patience();
    let named = |error: io::Error| session.error(format!("blob {}: {error}", descriptor.digest));
    loop {
        match upload.attempt(from, &mut patience) {
            Ok(()) => return Ok(()),
            Err(error) => patience.after(error).map_err(named)?,
        }
    }
}

impl Upload<'_> {
    fn attempt(&mut self, from: &mut (impl Read + Seek), patience: &mut Patience<'_>) -> io::Result<()> {
        let place = match std::mem::replace(&mut self.state, UploadState::Closed) {
            UploadState::Closed => self.send_from(self.begin(patience)?, 0, from)?,
            UploadState::Open(begun) => match self.resume(&begun, patience)? {
                Some((place, position)) => {
                    if position > self.best {
                        self.best = position;
                        patience.renew();
                    }
                    self.resumed = position > 0;
                    self.send_from(place, position, from)?
                }
                None => self.send_from(self.begin(patience)?, 0, from)?,
            },
            UploadState::Complete(place) => {
                if self.is_there(patience)? {
                    return Ok(());
                }
                place
            }
        };
        self.complete(place)
    }

    fn begin(&self, patience: &mut Patience<'_>) -> io::Result<Uri> {
        let uri = self.session.uri("blobs/uploads/").map_err(refused)?;
        let response = self.session.send_patiently(Request::new(Method::POST, uri), patience).map_err(at_an_end)?;
        match response.status {
            202 => self.session.location(&response),
            _ => Err(refused(self.session.refused("pushing", response))),
        }
    }

    /// Sends the bytes from `position` on; returns the address for the confirmation.
    fn send_from(&mut self, place: Uri, position: u64, from: &mut (impl Read + Seek)) -> io::Result<Uri> {
        let left = self.descriptor.size - position;
        if left == 0 && position > 0 {
            return Ok(place);
        }
        self.state = UploadState::Open(place.clone());
        from.seek(SeekFrom::Start(position))?;
        let mut counted = Counted { inner: from, position, reaches: self.reaches };
        let mut request = Request::new(Method::PATCH, place.clone()).with("content-type", "application/octet-stream");
        if position > 0 {
            request = request.with("content-range", format!("{position}-{}", self.descriptor.size.saturating_sub(1)));
        }
        request.payload = Payload::Stream(&mut counted, left);
        let response = self.session.send_patiently(request, &mut self.session.patience())?;
        match response.status {
            200..=299 if response.header("location").is_none() => Ok(place),
            200..=299 => self.session.location(&response),
            _ => Err(self.failure("taking a blob", response)),
        }
    }

    fn complete(&mut self, place: Uri) -> io::Result<()> {
        let whole = with_digest(&place, &self.descriptor.digest)?;
        self.state = UploadState::Complete(place);
        let request = Request::new(Method::PUT, whole).once();
        let response = self.session.send_patiently(request, &mut self.session.patience())?;
        match response.status {
            200..=299 => Ok(()),
            status => {
                if !retry::is_passing(status) && status != 401 {
                    self.state = UploadState::Closed;
                }
                // If the registry reported a wrong position, everything is sent again.
                if status == 400 && std::mem::take(&mut self.resumed) {
                    return Err(io::Error::other("completing a blob: status 400"));
                }
                Err(self.failure("completing a blob", response))
            }
        }
    }

    /// Asks for the position of an upload; `None` if the registry has forgotten it.
    fn resume(&self, begun: &Uri, patience: &mut Patience<'_>) -> io::Result<Option<(Uri, u64)>> {
        let request = Request::new(Method::GET, begun.clone());
        let response = self.session.send_patiently(request, patience).map_err(at_an_end)?;
        // `0-0` is how registries report an empty upload.
        let end = response.header("range").and_then(|range| range.rsplit('-').next()?.trim().parse::<u64>().ok());
        let position = end.filter(|&end| end > 0).map_or(0, |end| end + 1);
        match response.status {
            200..=299 if position <= self.descriptor.size => {
                let place = response.header("location").map(|_| self.session.location(&response)).transpose()?;
                Ok(Some((place.unwrap_or_else(|| begun.clone()), position)))
            }
            _ => Ok(None),
        }
    }

    /// True if the registry has the blob after all.
    fn is_there(&self, patience: &mut Patience<'_>) -> io::Result<bool> {
        let uri = self.session.uri(&blob_path(self.descriptor)).map_err(refused)?;
        let response = self.session.send_patiently(Request::new(Method::HEAD, uri), patience).map_err(at_an_end)?;
        Ok(response.status == 200 || (!response.is_own && matches!(response.status, 403 | 405)))
    }

    /// Failures that may not recur are retried: an expired token, an upload that was forgotten or moved.
    fn failure(&self, what: &'static str, response: Response) -> io::Error {
        match response.status {
            status if retry::is_passing(status) => retry::busy(what, status, &response.headers),
            status @ (401 | 404 | 416) => io::Error::other(format!("{what}: status {status}")),
            _ => refused(self.session.refused(what, response)),
        }
    }
}

/// The session has already retried that.
fn at_an_end(error: io::Error) -> io::Error {
    refusal(error.to_string())
}

struct Counted<'c, R> {
    inner: &'c mut R,
    position: u64,
    reaches: &'c dyn Fn(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.position += count as u64;
        (self.reaches)(self.position);
        Ok(count)
    }
}
