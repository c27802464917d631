//! One request over HTTP: what may be connected to, how long to wait, and where a redirect may lead.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ureq::http::{HeaderMap, Method, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, SendBody};

use crate::image::{ImageError, IoContext, Result};
use crate::registry::Options;

/// Redirects in a row; registries need one, to where their blobs are.
const REDIRECTS: usize = 5;

/// Longest silence of a server.
const SILENCE: Duration = Duration::from_secs(60);

/// What a request carries.
pub(super) enum Payload<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// So many bytes of a stream.
    Stream(&'a mut dyn Read, u64),
}

/// A request, before it is known what the server wants to see.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) payload: Payload<'a>,
}

impl Request<'_> {
    pub(super) fn new(method: Method, uri: Uri) -> Self {
        Self { method, uri, headers: Vec::new(), payload: Payload::Nothing }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// What came back, after redirects.
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Box<dyn Read + Send>,
}

impl Response {
    /// A header's text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Makes requests.
pub(super) struct Http {
    agent: Agent,
    plain: bool,
}

impl Http {
    /// For requests to `host`, whose own certificates (docker's and podman's `certs.d/HOST`) are trusted too.
    pub(super) fn new(options: &Options, host: &str) -> Result<Self> {
        // Without TLS too: a redirect or a token may lead to a host that has it.
        let trusted = trusted(options.certificates.as_deref(), host)?;
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(trusted)));
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("strata/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(SILENCE))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .build()
            .new_agent();
        Ok(Self { agent, plain: options.plain_http })
    }

    /// Makes a request. `authorization` goes to the request's own host and no further. Redirects are followed where
    /// nothing is sent along.
    ///
    /// # Errors
    /// What went wrong, to be told after the name of the registry.
    pub(super) fn send(&self, request: Request<'_>, authorization: Option<&str>) -> io::Result<Response> {
        let Request { method, mut uri, headers, mut payload } = request;
        let mut authorization = authorization;
        self.check_scheme(&uri)?;
        for _ in 0..=REDIRECTS {
            let response = self.once(&method, &uri, &headers, authorization, &mut payload)?;
            let follows = matches!(payload, Payload::Nothing) && matches!(method, Method::GET | Method::HEAD);
            if !follows || !matches!(response.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.header("location").ok_or_else(|| refusal("redirects to nowhere"))?;
            let target = resolve(&uri, location)?;
            self.check_redirect(&uri, &target)?;
            if origin(&target) != origin(&uri) {
                authorization = None;
            }
            uri = target;
        }
        Err(refusal(format!("redirects more than {REDIRECTS} times")))
    }

    fn once(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &[(&'static str, String)],
        authorization: Option<&str>,
        payload: &mut Payload<'_>,
    ) -> io::Result<Response> {
        let mut request = ureq::http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let told = |error: ureq::http::Error| refusal(error.to_string());
        let sent = match payload {
            Payload::Nothing if matches!(*method, Method::GET | Method::HEAD) => {
                self.agent.run(request.body(()).map_err(told)?)
            }
            Payload::Nothing => self.agent.run(request.body(&b""[..]).map_err(told)?),
            Payload::Bytes(bytes) => self.agent.run(request.body(*bytes).map_err(told)?),
            Payload::Stream(stream, length) => {
                let request = request.header("content-length", *length);
                self.agent.run(request.body(SendBody::from_reader(*stream)).map_err(told)?)
            }
        };
        let (parts, body) = sent.map_err(describe)?.into_parts();
        Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body: Box::new(body.into_reader()) })
    }

    /// Nothing goes over the network in the clear unless the user asked for it.
    pub(super) fn check_scheme(&self, uri: &Uri) -> io::Result<()> {
        match uri.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if self.plain => Ok(()),
            Some("http") => Err(refusal(format!("{uri} is not encrypted; --plain-http allows that"))),
            _ => Err(refusal(format!("{uri} is neither http nor https"))),
        }
    }

    fn check_redirect(&self, from: &Uri, to: &Uri) -> io::Result<()> {
        if from.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
            return Err(refusal(format!("redirects from https to {to}, which is not followed")));
        }
        match self.check_scheme(to) {
            Ok(()) => Ok(()),
            Err(_) => Err(refusal(format!("redirects to {to}, which is not followed"))),
        }
    }
}

/// Scheme, host and port.
fn origin(uri: &Uri) -> (Option<&str>, Option<&str>, Option<u16>) {
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    (uri.scheme_str(), uri.host(), uri.port_u16().or(Some(default)))
}

/// Where a `Location` leads from `base` (RFC 3986, section 5.2, as far as servers use it).
pub(super) fn resolve(base: &Uri, location: &str) -> io::Result<Uri> {
    let (scheme, authority) = (base.scheme_str().unwrap_or_default(), base.authority().map_or("", |a| a.as_str()));
    let text = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.split(['/', '?', '#']).next().is_some_and(|first| first.contains(':')) {
        location.to_owned()
    } else {
        let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{authority}{dir}/{location}")
    };
    let text = text.split('#').next().unwrap_or_default();
    let uri: Uri = text.parse().map_err(|_| refusal(format!("{location:?} is no address")))?;
    // `mailto:x` would be taken for a host and a port.
    if uri.scheme().is_none() || uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
        return Err(refusal(format!("{location:?} is no address to go to")));
    }
    Ok(uri)
}

/// What is told of a server that is not obeyed.
pub(super) fn refusal(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

fn describe(error: ureq::Error) -> io::Error {
    match error {
        ureq::Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => refuse_tls(tls),
            None => error,
        },
        ureq::Error::Timeout(_) => {
            io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", SILENCE.as_secs()))
        }
        ureq::Error::HostNotFound => io::Error::new(io::ErrorKind::NotFound, "no such host"),
        ureq::Error::Rustls(error) => refuse_tls(&error),
        other => refusal(other.to_string()),
    }
}

fn refuse_tls(error: &rustls::Error) -> io::Error {
    match error {
        rustls::Error::InvalidMessage(_) => refusal("does not speak TLS; --plain-http allows that"),
        rustls::Error::InvalidCertificate(_) => refusal(format!("{error}; --cert-dir names further ones to trust")),
        error => refusal(format!("TLS: {error}")),
    }
}

/// The system's certificates, and those in the user's and the host's own directories.
fn trusted(extra: Option<&Path>, host: &str) -> Result<Vec<Certificate<'static>>> {
    let system = rustls_native_certs::load_native_certs();
    system.errors.iter().for_each(|error| tracing::debug!("certificates: {error}"));
    let mut all: Vec<Certificate<'static>> =
        system.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let own = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(|dir| Path::new(dir).join(host));
    for dir in own.iter().filter(|dir| dir.is_dir()) {
        all.extend(certificates_in(dir)?);
    }
    if let Some(dir) = extra {
        all.extend(certificates_in(dir)?);
    }
    Ok(all)
}

fn certificates_in(dir: &Path) -> Result<Vec<Certificate<'static>>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).at(dir)? {
        paths.push(entry.at(dir)?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "crt" || extension == "pem"));
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let text = fs::read(&path).at(&path)?;
        for item in parse_pem(&text) {
            match item {
                Ok(PemItem::Certificate(certificate)) => found.push(certificate),
                Ok(_) => {}
                Err(error) => return Err(ImageError::malformed(path.display().to_string(), error)),
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base: Uri = "https://a.example:5000/v2/x/blobs/1?q".parse().expect("base");
        for (location, expected) in [
            ("/v2/y?z=1#f", "https://a.example:5000/v2/y?z=1"),
            ("2", "https://a.example:5000/v2/x/blobs/2"),
            ("//b.example/c", "https://b.example/c"),
            ("http://b.example/c", "http://b.example/c"),
        ] {
            assert_eq!(resolve(&base, location).expect(location).to_string(), expected);
        }
        for bad in ["", "https://", "https://me:secret@b.example/", "mailto:x", "https://b .example/"] {
            let resolved = resolve(&base, bad).map(|uri| uri.to_string());
            assert!(bad.is_empty() || resolved.is_err(), "{bad:?}: {resolved:?}");
        }
    }

    #[test]
    fn redirects_that_are_followed() {
        let http = |plain_http| Http::new(&Options { plain_http, ..Options::default() }, "a.example").expect("client");
        let uri = |text: &str| text.parse::<Uri>().expect("uri");
        for (plain, from, to, follows) in [
            (false, "https://a.example/", "https://b.example/", true),
            (false, "https://a.example/", "http://a.example/", false),
            (true, "https://a.example/", "http://a.example/", false),
            (true, "http://a.example/", "https://a.example/", true),
            (true, "http://a.example/", "http://b.example/", true),
            (true, "http://a.example/", "ftp://a.example/", false),
        ] {
            assert_eq!(http(plain).check_redirect(&uri(from), &uri(to)).is_ok(), follows, "{from} {to}");
        }
        assert_ne!(origin(&uri("https://a.example/")), origin(&uri("https://a.example:444/")));
        assert_eq!(origin(&uri("https://a.example/")), origin(&uri("https://a.example:443/x")));
    }
}
