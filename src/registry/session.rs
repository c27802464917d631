//! Requests to one repository of a registry, with what the registry wants to see.

use std::io::{self, Read};

use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::{Method, Uri};

use crate::image::reference::Reference;
use crate::image::{ImageError, Result};
use crate::registry::Options;
use crate::registry::challenge::{self, Challenge};
use crate::registry::credentials::Credentials;
use crate::registry::http::{Http, Payload, Request, Response, refusal, resolve};

/// Answers that are not documents are read no further than this.
const ANSWER_LIMIT: u64 = 1 << 20;

/// What is to be done with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Pull,
    Push,
}

/// One repository.
pub(super) struct Session {
    http: Http,
    /// As the user calls it.
    pub(super) registry: String,
    pub(super) repository: String,
    base: Uri,
    scopes: Vec<String>,
    credentials: Option<Credentials>,
    /// The value of `Authorization` that was last found to be wanted.
    authorization: Mutex<Option<String>>,
}

impl Session {
    pub(super) fn open(name: &Reference, access: Access, options: &Options) -> Result<Self> {
        let actions = if access == Access::Push { "pull,push" } else { "pull" };
        let scope = format!("repository:{}:{actions}", name.path());
        Self::with(name.domain(), name.path(), vec![scope], options.credentials.find(name.domain())?, options)
    }

    fn with(
        registry: &str,
        repository: &str,
        scopes: Vec<String>,
        credentials: Option<Credentials>,
        options: &Options,
    ) -> Result<Self> {
        // Docker's own registry answers under another name than its images have.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let scheme = if options.plain_http { "http" } else { "https" };
        let base = format!("{scheme}://{host}/v2/");
        Ok(Self {
            http: Http::new(options, host)?,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            base: base.parse().map_err(|_| ImageError::malformed(registry, "is no address of a registry"))?,
            scopes,
            credentials,
            authorization: Mutex::new(None),
        })
    }

    /// Asks for the right to read from another repository too, for blobs to be mounted from there.
    pub(super) fn also_read(&mut self, repository: &str) {
        let scope = format!("repository:{repository}:pull");
        if repository != self.repository && !self.scopes.contains(&scope) {
            self.scopes.push(scope);
        }
    }

    /// The address of something of the repository.
    pub(super) fn uri(&self, path: &str) -> Result<Uri> {
        let repository = &self.repository;
        resolve(&self.base, &format!("/v2/{repository}/{path}")).map_err(|error| self.failed(error))
    }

    /// Where a `Location` that the registry gave leads: only to itself may one send.
    pub(super) fn location(&self, response: &Response) -> Result<Uri> {
        let location = response.header("location").ok_or_else(|| self.error("tells no place to send to"))?;
        let uri = resolve(&self.base, location).map_err(|error| self.failed(error))?;
        self.http.check_scheme(&uri).map_err(|error| self.failed(error))?;
        if uri.host() != self.base.host() {
            return Err(
                self.error(format!("wants layers to be sent to {}, which is not done", uri.host().unwrap_or("?")))
            );
        }
        Ok(uri)
    }

    /// Makes a request; where the registry wants to know who asks, it is told and asked again, unless a stream is
    /// sent that cannot be sent twice.
    pub(super) fn send(&self, request: Request<'_>) -> Result<Response> {
        self.send_raw(request).map_err(|error| self.failed(error))
    }

    pub(super) fn send_raw(&self, request: Request<'_>) -> io::Result<Response> {
        let again = match &request.payload {
            Payload::Nothing => Some(Payload::Nothing),
            Payload::Bytes(bytes) => Some(Payload::Bytes(bytes)),
            Payload::Stream(..) => None,
        };
        let (method, uri, headers) = (request.method.clone(), request.uri.clone(), request.headers.clone());
        let authorization = self.authorization.lock().clone();
        let response = self.http.send(request, authorization.as_deref())?;
        if response.status != 401 {
            return Ok(response);
        }
        let authorization = self.authorize(&response)?;
        let Some(payload) = again else { return Ok(response) };
        self.http.send(Request { method, uri, headers, payload }, Some(&authorization))
    }

    /// Gets what the registry's refusal says it wants to see.
    fn authorize(&self, refused: &Response) -> io::Result<String> {
        let challenges: Vec<Challenge> = refused
            .headers
            .get_all("www-authenticate")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let authorization = match bearer.or(challenges.first()) {
            Some(Challenge::Bearer { realm, service }) => format!("Bearer {}", self.token(realm, service.as_deref())?),
            Some(Challenge::Basic) => {
                let basic = self.credentials.as_ref().and_then(Credentials::basic);
                basic.ok_or_else(|| refusal(format!("wants a password; strata login {}", self.registry)))?
            }
            None => return Err(refusal("refuses, and does not say what it wants to see")),
        };
        *self.authorization.lock() = Some(authorization.clone());
        Ok(authorization)
    }

    /// Gets a token from `realm`. The password goes there only if it is the registry's own house.
    fn token(&self, realm: &str, service: Option<&str>) -> io::Result<String> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let realm: Uri = realm.parse().map_err(|_| refusal(format!("sends us for a token to {realm:?}")))?;
        self.http.check_scheme(&realm)?;
        if self.credentials.is_some() {
            self.check_trusted(&realm)?;
        }
        let pair = |name: &str, value: &str| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        let mut query: Vec<String> = service.iter().map(|service| pair("service", service)).collect();
        let (response, by) = match &self.credentials {
            Some(Credentials::Identity(token)) => {
                query.extend([pair("scope", &self.scopes.join(" ")), pair("grant_type", "refresh_token")]);
                query.extend([pair("client_id", "strata"), pair("refresh_token", token)]);
                let form = query.join("&");
                let request = Request { payload: Payload::Bytes(form.as_bytes()), ..Request::new(Method::POST, realm) };
                (self.http.send(request.with("content-type", "application/x-www-form-urlencoded"), None)?, "token")
            }
            credentials => {
                query.extend(self.scopes.iter().map(|scope| pair("scope", scope)));
                let joint = if realm.query().is_some() { '&' } else { '?' };
                let uri = resolve(&realm, &format!("{realm}{joint}{}", query.join("&")))?;
                let basic = credentials.as_ref().and_then(Credentials::basic);
                (self.http.send(Request::new(Method::GET, uri), basic.as_deref())?, "password")
            }
        };
        if matches!(response.status, 400 | 401 | 403) && self.credentials.is_some() {
            return Err(refusal(format!("the {by} is not accepted; strata login {}", self.registry)));
        }
        if !response.is_success() {
            return Err(refusal(format!("gives no token (status {})", response.status)));
        }
        let mut bytes = Vec::new();
        response.body.take(ANSWER_LIMIT).read_to_end(&mut bytes)?;
        let answer: Option<Answer> = serde_json::from_slice(&bytes).ok();
        let token = answer.and_then(|answer| answer.token.or(answer.access_token));
        token.filter(|token| !token.is_empty()).ok_or_else(|| refusal("gives no token, but something else"))
    }

    /// The registry itself, or over TLS a neighbour of it: `auth.docker.io` for `registry-1.docker.io`.
    fn check_trusted(&self, realm: &Uri) -> io::Result<()> {
        let (own, other) = (self.base.host().unwrap_or_default(), realm.host().unwrap_or_default());
        let neighbour = realm.scheme_str() == Some("https") && domain(own).is_some() && domain(own) == domain(other);
        if own == other || neighbour {
            return Ok(());
        }
        Err(refusal(format!("wants the password to be sent to {other}, which is not done")))
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

    /// What an answer that is no success says.
    pub(super) fn refused(&self, what: &str, response: Response) -> ImageError {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            errors: Vec<Problem>,
        }
        #[derive(Deserialize)]
        struct Problem {
            #[serde(default)]
            message: String,
        }
        let status = response.status;
        let mut bytes = Vec::new();
        // What cannot be read adds nothing to the status.
        let told = match response.body.take(ANSWER_LIMIT).read_to_end(&mut bytes) {
            Ok(_) => serde_json::from_slice::<Answer>(&bytes).map(|answer| answer.errors).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let told = told.into_iter().map(|problem| problem.message).find(|message| !message.is_empty());
        let told: String = told.unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect();
        let told = if told.is_empty() { String::new() } else { format!(": {told}") };
        match status {
            401 | 403 => self.error(format!("{what} is not allowed{told}; strata login {}", self.registry)),
            404 => self.error(format!("{what} is not there{told}")),
            429 => self.error(format!("{what}: too many requests for now{told}")),
            _ => self.error(format!("{what}: status {status}{told}")),
        }
    }
}

/// The last two labels of a host's name; none for numbers and single labels.
fn domain(host: &str) -> Option<(&str, &str)> {
    let mut labels = host.rsplit('.');
    let (top, second) = (labels.next()?, labels.next()?);
    (!top.bytes().all(|byte| byte.is_ascii_digit()) && !host.starts_with('[')).then_some((second, top))
}

/// Tries a name and a password with a registry.
///
/// # Errors
/// When the registry cannot be reached, or does not accept them.
pub fn log_in(registry: &str, user: &str, password: &str, options: &Options) -> Result<()> {
    let credentials = Credentials::Password { user: user.to_owned(), password: password.to_owned() };
    let session = Session::with(registry, "", Vec::new(), Some(credentials), options)?;
    let response = session.send(Request::new(Method::GET, session.base.clone()))?;
    match response.status {
        200 => Ok(()),
        401 | 403 => Err(session.error("the name or the password is wrong")),
        404 => Err(session.error("is no registry")),
        _ => Err(session.refused("login", response)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_password_may_go() {
        let session = |registry: &str| {
            let options = Options { plain_http: true, ..Options::default() };
            Session::with(registry, "x", vec![], None, &options).expect("session")
        };
        for (registry, realm, may) in [
            ("docker.io", "https://auth.docker.io/token", true),
            ("docker.io", "http://auth.docker.io/token", false),
            ("docker.io", "https://docker.io.example/token", false),
            ("localhost:5000", "http://localhost:5001/token", true),
            ("localhost:5000", "http://127.0.0.1:5000/token", false),
            ("127.0.0.1:5000", "https://10.0.0.1/token", false),
            ("registry.example.org", "https://gitlab.example.org/jwt", true),
            ("registry", "https://other/jwt", false),
        ] {
            let realm: Uri = realm.parse().expect("uri");
            assert_eq!(session(registry).check_trusted(&realm).is_ok(), may, "{registry} {realm}");
        }
    }
}
