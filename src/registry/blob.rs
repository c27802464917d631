//! Reads one blob. Continues after a lost connection, and checks the bytes against the descriptor as they arrive.

use std::io::{self, Read};
use std::sync::atomic::AtomicBool;

use ureq::http::Method;

use crate::image::Result;
use crate::image::digest::Hasher;
use crate::image::spec::Descriptor;
use crate::registry::blob_path;
use crate::registry::http::{Request, Response, refusal, refused};
use crate::registry::retry::Patience;
use crate::registry::session::Session;

/// A blob's bytes. The last read returns no bytes only if all of them arrived and were correct.
pub(super) struct BlobReader<'s> {
    session: &'s Session<'s>,
    descriptor: &'s Descriptor,
    body: Option<Box<dyn Read + Send>>,
    position: u64,
    hasher: Hasher,
    patience: Patience<'s>,
}

impl<'s> BlobReader<'s> {
    pub(super) fn new(session: &'s Session<'_>, descriptor: &'s Descriptor) -> Self {
        let patience = session.patience();
        Self { session, descriptor, body: None, position: 0, hasher: Hasher::new(), patience }
    }

    /// Stops waiting once the flag is set.
    pub(super) fn unless(mut self, cancelled: &'s AtomicBool) -> Self {
        self.patience = self.patience.unless(cancelled);
        self
    }

    /// Requests the bytes from the position on.
    fn connect(&mut self) -> io::Result<Box<dyn Read + Send>> {
        let uri = self.session.uri(&blob_path(self.descriptor)).map_err(refused)?;
        let mut request = Request::new(Method::GET, uri);
        if self.position > 0 {
            request = request.with("range", format!("bytes={}-", self.position));
        }
        let response = self.session.send_patiently(request, &mut self.patience);
        // The session has already retried that.
        let response = response.map_err(|error| refusal(error.to_string()))?;
        match response.status {
            206 if self.position > 0 => {
                let start = response.header("content-range").and_then(range_start);
                if start != Some(self.position) {
                    return Err(refusal("goes on at another place than it was asked to"));
                }
                self.check_length(&response, self.descriptor.size - self.position)?;
                Ok(response.body)
            }
            // The server cannot send a part: it starts from the beginning, which is skipped.
            200 => {
                self.check_length(&response, self.descriptor.size)?;
                let mut body = response.body;
                let skipped = io::copy(&mut body.by_ref().take(self.position), &mut io::sink())?;
                if skipped < self.position {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(body)
            }
            _ => Err(refused(self.session.refused(&self.name(), response))),
        }
    }

    /// The name of the blob in an error of the registry.
    fn name(&self) -> String {
        match self.descriptor.unknown.get("urls").and_then(|urls| urls.get(0)).and_then(|url| url.as_str()) {
            Some(url) => format!("a layer that its publisher distributes himself (at {url})"),
            None => "it".to_owned(),
        }
    }

    fn check_length(&self, response: &Response, expected: u64) -> io::Result<()> {
        match response.header("content-length").map(str::parse::<u64>) {
            Some(Ok(length)) if length != expected => {
                Err(refusal(format!("{expected} bytes were promised, but it has {length}")))
            }
            _ => Ok(()),
        }
    }

    /// Called after a failure: returns if a further attempt makes sense.
    fn retry(&mut self, error: io::Error) -> io::Result<()> {
        self.body = None;
        self.patience.after(error)
    }

    /// All bytes have arrived: no more may follow, and the digest must match.
    fn finish(&mut self) -> io::Result<()> {
        if let Some(mut body) = self.body.take() {
            // An error here only concerns the connection, which is no longer needed.
            if matches!(body.read(&mut [0]), Ok(1..)) {
                return Err(refusal(format!("goes on after the {} bytes that were promised", self.descriptor.size)));
            }
        }
        let (digest, _) = std::mem::take(&mut self.hasher).finish();
        if digest != self.descriptor.digest {
            return Err(refusal(format!("was promised, but it is {digest}")));
        }
        Ok(())
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let left = self.descriptor.size - self.position;
            if left == 0 && (self.body.is_some() || self.descriptor.size == 0) {
                self.finish()?;
                return Ok(0);
            }
            if left == 0 {
                return Ok(0);
            }
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match &mut self.body {
                Some(body) => body.read(&mut buffer[..wanted]),
                None => match self.connect() {
                    Ok(body) => {
                        self.body = Some(body);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match read {
                Ok(0) => self.retry(io::ErrorKind::UnexpectedEof.into())?,
                Ok(count) => {
                    self.patience.renew();
                    self.position += count as u64;
                    self.hasher.update(&buffer[..count]);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.retry(error)?,
            }
        }
    }
}

/// Reads a blob that is a document.
pub(super) fn read_document(session: &Session<'_>, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let name = format!("blob {}", descriptor.digest);
    if descriptor.size > crate::image::spec::DOCUMENT_LIMIT {
        return Err(session.error(format!("{name}: a document of {} bytes is too large", descriptor.size)));
    }
    let mut bytes = Vec::new();
    BlobReader::new(session, descriptor)
        .read_to_end(&mut bytes)
        .map_err(|error| session.error(format!("{name}: {error}")))?;
    Ok(bytes)
}

/// `bytes 5-9/10`
fn range_start(header: &str) -> Option<u64> {
    header.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
