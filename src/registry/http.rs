//! One exchange over HTTP: checks the address, chooses the way, and limits the time. Handles no redirects and no secrets.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use ureq::http::{HeaderMap, Method, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Proxy, SendBody};

use crate::image::{ImageError, Result};
use crate::registry::proxy::{Proxies, Way};
use crate::registry::session::Problem;
use crate::registry::{Options, certificates, forward};

/// Longest time without data from a server.
const SILENCE: Duration = Duration::from_secs(60);

/// The body of a request.
pub(super) enum Payload<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// This many bytes of a stream.
    Stream(&'a mut dyn Read, u64),
}

/// A request, without authentication.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) payload: Payload<'a>,
    /// Another repository of the registry from which the request reads.
    pub(super) reads: Option<String>,
    /// True if the request must not be repeated.
    pub(super) once: bool,
}

impl Request<'_> {
    pub(super) fn new(method: Method, uri: Uri) -> Self {
        Self { method, uri, headers: Vec::new(), payload: Payload::Nothing, reads: None, once: false }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Makes the request non-repeatable.
    pub(super) fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// False for a stream, which cannot be sent twice.
    pub(super) fn is_repeatable(&self) -> bool {
        !matches!(self.payload, Payload::Stream(..))
    }
}

/// A response.
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Box<dyn Read + Send>,
    /// The address that answered, after redirects.
    pub(super) uri: Uri,
    /// True if the registry itself answered, and not a server to which it redirected.
    pub(super) is_own: bool,
    /// The errors in a refusal, after its body was read.
    pub(super) problems: Vec<Problem>,
}

impl Response {
    /// A header's text; an empty one counts as missing.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok().map(str::trim).filter(|text| !text.is_empty())
    }

    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Makes requests.
pub(super) struct Http {
    agent: Agent,
    /// For unencrypted requests through a proxy; made at the first such request.
    forwarding: Mutex<Option<Agent>>,
    proxies: Proxies,
    plain: bool,
}

impl Http {
    /// For requests to `host`. Its own certificates (docker's and podman's `certs.d/HOST`) are trusted too.
    pub(super) fn new(options: &Options, host: &str) -> Result<Self> {
        // Also without TLS: a redirect or a token may lead to a host with TLS.
        let trusted = certificates::trusted(options.certificates.as_deref(), host)?;
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(trusted)));
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("strata/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(SILENCE))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .build()
            .new_agent();
        let proxies = Proxies::of_environment();
        Ok(Self { agent, forwarding: Mutex::new(None), proxies, plain: options.plain_http })
    }

    /// Sends a request, with `authorization`, to one server.
    ///
    /// # Errors
    /// The reason, which is printed after the name of the registry.
    pub(super) fn exchange(
        &self,
        request: &mut Request<'_>,
        uri: &Uri,
        authorization: Option<&str>,
    ) -> io::Result<Response> {
        self.check_scheme(uri)?;
        let mut head = ureq::http::Request::builder().method(&request.method).uri(uri);
        for (name, value) in &request.headers {
            head = head.header(*name, value);
        }
        if let Some(authorization) = authorization {
            head = head.header("authorization", authorization);
        }
        let way = self.proxies.way_to(uri)?;
        if let Way::Forward(proxy) = &way {
            head = head.header("connection", "close");
            if let Some(secret) = basic_of(proxy) {
                head = head.header("proxy-authorization", secret);
            }
        }
        let told = |error: ureq::http::Error| refusal(error.to_string());
        let is_bare = matches!(request.method, Method::GET | Method::HEAD);
        let sent = match &mut request.payload {
            Payload::Nothing if is_bare => self.run(&way, head.body(()).map_err(told)?)?,
            Payload::Nothing => self.run(&way, head.body(&b""[..]).map_err(told)?)?,
            Payload::Bytes(bytes) => self.run(&way, head.body(*bytes).map_err(told)?)?,
            Payload::Stream(stream, length) => {
                let head = head.header("content-length", *length);
                self.run(&way, head.body(SendBody::from_reader(*stream)).map_err(told)?)?
            }
        };
        let (parts, body) = sent.into_parts();
        let body = Box::new(body.into_reader());
        let status = parts.status.as_u16();
        Ok(Response { status, headers: parts.headers, body, uri: uri.clone(), is_own: true, problems: Vec::new() })
    }

    fn run(
        &self,
        way: &Way,
        request: ureq::http::Request<impl ureq::AsSendBody>,
    ) -> io::Result<ureq::http::Response<ureq::Body>> {
        let answer = match way {
            Way::Direct => self.agent.run(request),
            Way::Tunnel(proxy) => {
                let request = self.agent.configure_request(request).proxy(Some(proxy.clone())).build();
                self.agent.run(request)
            }
            Way::Forward(proxy) => self.forwarding(proxy)?.run(request),
        };
        answer.map_err(describe)
    }

    fn forwarding(&self, proxy: &Proxy) -> io::Result<Agent> {
        let mut forwarding = self.forwarding.lock();
        if forwarding.is_none() {
            *forwarding = Some(forward::agent(self.agent.config().clone(), proxy).map_err(describe)?);
        }
        forwarding.clone().ok_or_else(|| refusal("there is no way through the proxy"))
    }

    /// TLS is required unless the user allowed plain HTTP.
    pub(super) fn check_scheme(&self, uri: &Uri) -> io::Result<()> {
        match uri.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if self.plain => Ok(()),
            Some("http") => Err(refusal(format!("{uri} is not encrypted; --plain-http allows that"))),
            _ => Err(refusal(format!("{uri} is neither http nor https"))),
        }
    }

    /// Checks that a redirect does not lead from TLS to plain HTTP.
    pub(super) fn check_redirect(&self, from: &Uri, to: &Uri) -> io::Result<()> {
        if from.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
            return Err(refusal(format!("redirects from https to {to}, which is not followed")));
        }
        self.check_scheme(to).map_err(|_| refusal(format!("redirects to {to}, which is not followed")))
    }
}

/// The authentication for a proxy.
fn basic_of(proxy: &Proxy) -> Option<String> {
    let user = proxy.username()?;
    Some(format!("Basic {}", STANDARD.encode(format!("{user}:{}", proxy.password().unwrap_or_default()))))
}

/// An error for a refused request. It is permanent.
pub(super) fn refusal(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// The same for one of the library's own errors.
pub(super) fn refused(error: ImageError) -> io::Error {
    match error {
        ImageError::Registry { reason, .. } => refusal(reason),
        other => refusal(other.to_string()),
    }
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
        // This is how a proxy reports a server that does not answer.
        ureq::Error::ConnectProxyFailed(reason) if reason.contains("responded 5") => io::Error::other(reason),
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

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
