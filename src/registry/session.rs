//! Requests to one repository of a registry. All of them go through [`Session::send_patiently`], which handles
//! redirects, authentication and retries. Its callers need not know about these.
//!
//! Secrets are sent only to the registry's origin (scheme, host and port). A server to which the registry
//! redirects gets none. If it refuses, that is a failure: its challenge is never answered.

use std::io::{self, Read};

use parking_lot::Mutex;
use serde::Deserialize;
use ureq::http::{Method, Uri};

use crate::image::files::read_limited;
use crate::image::reference::Reference;
use crate::image::{ImageError, Result};
use crate::registry::address::{Origin, host, is_https, resolve};
use crate::registry::auth::Tokens;
use crate::registry::credentials::Credentials;
use crate::registry::http::{Http, Payload, Request, Response, refusal};
use crate::registry::retry::{self, Patience};
use crate::registry::{Options, Progress};

/// At most this many bytes are read of answers that are not documents.
pub(super) const ANSWER_LIMIT: u64 = 1 << 20;

/// Maximum number of redirects in a row; registries need one, to the place of their blobs.
const REDIRECTS: usize = 5;

/// What a session does with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Pull,
    Push,
}

/// A session with one repository.
pub(super) struct Session<'p> {
    pub(super) http: Http,
    /// The user's name for it.
    pub(super) registry: String,
    pub(super) repository: String,
    pub(super) base: Uri,
    own: Origin,
    /// The scope for tokens.
    pub(super) scope: Option<String>,
    pub(super) credentials: Option<Credentials>,
    pub(super) tokens: Mutex<Tokens>,
    progress: &'p dyn Progress,
}

impl<'p> Session<'p> {
    pub(super) fn open(
        name: &Reference,
        access: Access,
        options: &Options,
        progress: &'p dyn Progress,
    ) -> Result<Self> {
        let actions = if access == Access::Push { "pull,push" } else { "pull" };
        let scope = format!("repository:{}:{actions}", name.path());
        let credentials = options.credentials.find(name.domain(), name.path())?;
        Self::with(name.domain(), name.path(), Some(scope), credentials, options, progress)
    }

    fn with(
        registry: &str,
        repository: &str,
        scope: Option<String>,
        credentials: Option<Credentials>,
        options: &Options,
        progress: &'p dyn Progress,
    ) -> Result<Self> {
        // Docker's own registry answers under a name that differs from its images' names.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let scheme = if options.plain_http { "http" } else { "https" };
        let base: Uri = format!("{scheme}://{host}/v2/")
            .parse()
            .map_err(|_| ImageError::malformed(registry, "is no address of a registry"))?;
        Ok(Self {
            http: Http::new(options, host)?,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            own: Origin::of(&base),
            base,
            scope,
            credentials,
            tokens: Mutex::default(),
            progress,
        })
    }

    /// An address below the repository.
    pub(super) fn uri(&self, path: &str) -> Result<Uri> {
        let repository = &self.repository;
        resolve(&self.base, &format!("/v2/{repository}/{path}")).map_err(|error| self.failed(error))
    }

    /// The address in the `Location` of a response, resolved against the address that sent it. Blobs are sent to
    /// another host only with TLS, and secrets never are.
    pub(super) fn location(&self, response: &Response) -> io::Result<Uri> {
        let location = response.header("location").ok_or_else(|| refusal("tells no place to send to"))?;
        let uri = resolve(&response.uri, location)?;
        // A registry behind a proxy that ends TLS often does not know that clients use TLS.
        if is_https(&self.base) && !is_https(&uri) && host(&uri) == host(&self.base) {
            let path = uri.path_and_query().map_or("/", |path| path.as_str());
            return resolve(&self.base, path);
        }
        self.http.check_scheme(&uri)?;
        if host(&uri) != host(&self.base) && !is_https(&uri) {
            return Err(refusal(format!("wants layers to be sent to {}, which is not done", host(&uri))));
        }
        Ok(uri)
    }

    /// Patience for one purpose.
    pub(super) fn patience(&self) -> Patience<'_> {
        Patience::new(&self.registry, self.progress)
    }

    /// Makes a request with its own patience.
    pub(super) fn send(&self, request: Request<'_>) -> Result<Response> {
        self.send_patiently(request, &mut self.patience()).map_err(|error| self.failed(error))
    }

    /// Makes a request. Authenticates if the registry demands it. Retries temporary failures, unless the request
    /// sends a stream or must not be repeated.
    ///
    /// # Errors
    /// The reason, which is printed after the name of the registry.
    pub(super) fn send_patiently(&self, mut request: Request<'_>, patience: &mut Patience<'_>) -> io::Result<Response> {
        let may_repeat = request.is_repeatable() && !request.once;
        loop {
            let failure = match self.attempt(&mut request).map(read_refusal) {
                Ok(response) if !may_repeat || !is_passing(&response) => return Ok(response),
                Ok(response) => {
                    let passing = retry::busy("", response.status, &response.headers);
                    // The answer's text says more than its status.
                    match patience.after(passing) {
                        Ok(()) => continue,
                        Err(_) => return Ok(response),
                    }
                }
                Err(error) => error,
            };
            if !may_repeat || self.is_unreachable(&failure) {
                return Err(failure);
            }
            patience.after(failure)?;
        }
    }

    /// Requests a document and reads it to its end; retries if the transfer is cut off.
    pub(super) fn document(&self, path: &str, accept: &str, name: &str) -> Result<(Response, Vec<u8>)> {
        let uri = self.uri(path)?;
        let mut patience = self.patience();
        loop {
            let request = Request::new(Method::GET, uri.clone()).with("accept", accept);
            let mut response = self.send_patiently(request, &mut patience).map_err(|error| self.failed(error))?;
            if !response.is_success() {
                return Err(self.refused(name, response));
            }
            match read_limited(&mut response.body, name) {
                Ok(bytes) => return Ok((response, bytes)),
                Err(ImageError::Io { source, .. }) => {
                    patience.after(source).map_err(|error| self.error(format!("{name}: {error}")))?;
                }
                Err(ImageError::Document { reason, .. }) => return Err(self.error(format!("{name}: {reason}"))),
                Err(other) => return Err(other),
            }
        }
    }

    /// True if the registry's address has never answered, so it is probably wrong.
    fn is_unreachable(&self, error: &io::Error) -> bool {
        let is_wrong = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
        is_wrong && !self.tokens.lock().answered
    }

    /// One attempt: sends the request, and once more with authentication if the registry demands it.
    fn attempt(&self, request: &mut Request<'_>) -> io::Result<Response> {
        let is_own = Origin::of(&request.uri) == self.own;
        let reads = request.reads.clone();
        let authorization = if is_own { self.authorization(reads.as_deref())? } else { None };
        let mut response = self.follow(request, authorization.as_deref())?;
        self.tokens.lock().answered = true;
        response.is_own &= is_own;
        if !response.is_own {
            return Ok(response);
        }
        let fresh = match response.status {
            401 => self.answer(&response, reads.as_deref())?,
            // Some registries answer "not found" to unauthenticated clients, and demand authentication only at
            // their root address.
            403 | 404 if authorization.is_none() && self.credentials.is_some() => {
                match self.answer_root(reads.as_deref())? {
                    Some(fresh) => fresh,
                    None => return Ok(response),
                }
            }
            _ => return Ok(response),
        };
        match request.is_repeatable() {
            true => self.follow(request, Some(&fresh)),
            false => Ok(response),
        }
    }

    /// Sends a request and follows redirects. `authorization` is sent to the first server only. The body is sent
    /// again only if the redirect demands it and stays within the same origin.
    pub(super) fn follow(&self, request: &mut Request<'_>, authorization: Option<&str>) -> io::Result<Response> {
        let first = Origin::of(&request.uri);
        let mut uri = request.uri.clone();
        let mut is_own = true;
        for _ in 0..=REDIRECTS {
            let mut response = self.http.exchange(request, &uri, authorization.filter(|_| is_own))?;
            response.is_own = is_own;
            let is_reading = matches!(request.method, Method::GET | Method::HEAD);
            let follows = match response.status {
                301..=303 => is_reading,
                307 | 308 => is_reading || request.is_repeatable(),
                _ => false,
            };
            if !follows {
                return Ok(response);
            }
            let location = response.header("location").ok_or_else(|| refusal("redirects to nowhere"))?;
            let target = resolve(&uri, location)?;
            self.http.check_redirect(&uri, &target)?;
            is_own &= Origin::of(&target) == first;
            if !is_own && !matches!(request.payload, Payload::Nothing) {
                return Err(refusal(format!("redirects what is sent to {target}, which is not followed")));
            }
            uri = target;
        }
        Err(refusal(format!("redirects more than {REDIRECTS} times")))
    }

    /// An error of this registry.
    pub(super) fn error(&self, reason: impl Into<String>) -> ImageError {
        let place = match self.repository.is_empty() {
            true => self.registry.clone(),
            false => format!("{}/{}", self.registry, self.repository),
        };
        ImageError::Registry { place, reason: reason.into() }
    }

    pub(super) fn failed(&self, error: impl Into<io::Error>) -> ImageError {
        self.error(error.into().to_string())
    }

    /// The message for a refusal.
    pub(super) fn refused(&self, what: &str, response: Response) -> ImageError {
        let (status, is_own) = (response.status, response.is_own);
        let place = host(&response.uri);
        let after = retry::retry_after(&response.headers, std::time::SystemTime::now());
        let patience = after.map(|after| format!("; it says to try again in {} s", after.as_secs_f64().ceil()));
        let patience = patience.unwrap_or_default();
        let told = told(response);
        match status {
            _ if !is_own => self.error(format!("{what} is at {place}, which refuses it: status {status}{told}")),
            401 | 403 => self.error(format!("{what} is not allowed{told}; strata login {}", self.registry)),
            404 => self.error(format!("{what} is not there{told}")),
            429 => self.error(format!("{what}: too many requests for now{told}{patience}")),
            _ => self.error(format!("{what}: status {status}{told}{patience}")),
        }
    }
}

/// The list of errors in an answer (OCI distribution specification, "Error Codes").
#[derive(Deserialize)]
struct Problems {
    #[serde(default)]
    errors: Vec<Problem>,
}

/// One error.
#[derive(Deserialize)]
pub(super) struct Problem {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

/// Reads the body of a refusal, so that it can be inspected before it is reported.
fn read_refusal(mut response: Response) -> Response {
    if (400..600).contains(&response.status) {
        let mut bytes = Vec::new();
        // An unreadable body adds nothing to the status.
        if let Err(error) = response.body.by_ref().take(ANSWER_LIMIT).read_to_end(&mut bytes) {
            tracing::debug!("status {}: {error}", response.status);
        }
        response.problems = serde_json::from_slice(&bytes).map(|Problems { errors }| errors).unwrap_or_default();
    }
    response
}

/// Some registries use another status for "too many requests".
fn is_passing(response: &Response) -> bool {
    let passes = |problem: &Problem| matches!(problem.code.as_deref(), Some("TOOMANYREQUESTS" | "UNAVAILABLE"));
    retry::is_passing(response.status) || response.problems.iter().any(passes)
}

/// The first message in an answer's errors.
fn told(response: Response) -> String {
    let told = response.problems.into_iter().flat_map(|problem| [problem.message, problem.code]).flatten();
    let told = told.map(|text| text.chars().filter(|c| !c.is_control()).take(200).collect::<String>());
    told.into_iter().find(|text| !text.is_empty()).map(|text| format!(": {text}")).unwrap_or_default()
}

/// Tests a name and a password with a registry.
///
/// # Errors
/// When the registry cannot be reached, or does not accept them.
pub fn log_in(registry: &str, user: &str, password: &str, options: &Options, progress: &dyn Progress) -> Result<()> {
    let credentials = Credentials::Password { user: user.to_owned(), password: password.to_owned() };
    let session = Session::with(registry, "", None, Some(credentials), options, progress)?;
    let response = session.send(Request::new(Method::GET, session.base.clone()))?;
    match response.status {
        200 => Ok(()),
        401 | 403 => Err(session.error("the name or the password is wrong")),
        404 => Err(session.error("is no registry")),
        _ => Err(session.refused("login", response)),
    }
}
