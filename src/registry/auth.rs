//! Authentication to a registry: passwords and tokens (distribution's "Token Authentication", and its OAuth 2 form).

use std::collections::BTreeMap;
use std::io::{self, Read};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::{Method, Uri};

use crate::registry::address::{host, resolve};
use crate::registry::challenge::{self, Challenge};
use crate::registry::credentials::Credentials;
use crate::registry::http::{Payload, Request, Response, refusal};
use crate::registry::realm;
use crate::registry::retry;
use crate::registry::session::{ANSWER_LIMIT, Session};

/// What a registry demands, and the tokens for it.
#[derive(Default)]
pub(super) struct Tokens {
    /// True if the registry has answered at least once.
    pub(super) answered: bool,
    challenge: Option<Challenge>,
    /// The tokens, by the other repository that they let us read from; "" for none.
    tokens: BTreeMap<String, String>,
}

impl Session<'_> {
    /// The value of `Authorization` for a request that may also read from another repository; `None` until the
    /// registry asks for one.
    pub(super) fn authorization(&self, reads: Option<&str>) -> io::Result<Option<String>> {
        if let Some(Credentials::Token(token)) = &self.credentials {
            return Ok(Some(format!("Bearer {token}")));
        }
        let (known, token) = {
            let tokens = self.tokens.lock();
            (tokens.challenge.clone(), tokens.tokens.get(reads.unwrap_or_default()).cloned())
        };
        match (known, token) {
            (None, _) => Ok(None),
            (Some(Challenge::Basic), _) => Ok(self.credentials.as_ref().and_then(Credentials::basic)),
            (Some(Challenge::Bearer { .. }), Some(token)) => Ok(Some(format!("Bearer {token}"))),
            (Some(challenge), None) => self.meet(&challenge, reads).map(Some),
        }
    }

    /// Gets a token or password as demanded by the registry's refusal.
    pub(super) fn answer(&self, refused: &Response, reads: Option<&str>) -> io::Result<String> {
        match self.challenge_of(refused)? {
            Some(challenge) => self.adopt(challenge, reads),
            None => self.answer_root(reads)?.ok_or_else(|| refusal("refuses, and names no way to authenticate")),
        }
    }

    /// The same with the demand of the registry's root address; `None` if that needs no authentication.
    pub(super) fn answer_root(&self, reads: Option<&str>) -> io::Result<Option<String>> {
        let response = self.follow(&mut Request::new(Method::GET, self.base.clone()), None)?;
        if response.status != 401 || !response.is_own {
            return Ok(None);
        }
        let challenge = self.challenge_of(&response)?;
        challenge.map(|challenge| self.adopt(challenge, reads)).transpose()
    }

    /// The best challenge to answer: a token is preferred to the password itself.
    fn challenge_of(&self, refused: &Response) -> io::Result<Option<Challenge>> {
        let all: Vec<Challenge> = refused
            .headers
            .get_all("www-authenticate")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let bearer = all.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        match bearer.or(all.first()).cloned() {
            Some(Challenge::Bearer { realm, service, scopes }) => {
                let told = |_| refusal(format!("names an invalid token server: {realm:?}"));
                let realm = resolve(&refused.uri, &realm).map_err(told)?.to_string();
                Ok(Some(Challenge::Bearer { realm, service, scopes }))
            }
            other => Ok(other),
        }
    }

    fn adopt(&self, challenge: Challenge, reads: Option<&str>) -> io::Result<String> {
        let authorization = self.meet(&challenge, reads)?;
        let mut tokens = self.tokens.lock();
        tokens.challenge = Some(match challenge {
            // The demand is for this request, which needs another repository, and not for others.
            Challenge::Bearer { realm, service, .. } if reads.is_some() => {
                Challenge::Bearer { realm, service, scopes: Vec::new() }
            }
            other => other,
        });
        Ok(authorization)
    }

    fn meet(&self, challenge: &Challenge, reads: Option<&str>) -> io::Result<String> {
        match challenge {
            Challenge::Basic => {
                let basic = self.credentials.as_ref().and_then(Credentials::basic);
                basic.ok_or_else(|| refusal(format!("wants a password; strata login {}", self.registry)))
            }
            Challenge::Bearer { realm, service, scopes } => {
                let scopes = self.scopes(reads, scopes);
                let token = self.token(realm, service.as_deref(), &scopes)?;
                self.tokens.lock().tokens.insert(reads.unwrap_or_default().to_owned(), token.clone());
                Ok(format!("Bearer {token}"))
            }
        }
    }

    /// The scopes of this session, and those named by the challenge.
    fn scopes(&self, reads: Option<&str>, named: &[String]) -> Vec<String> {
        let resource = |scope: &str| scope.rsplit_once(':').map_or(String::new(), |(resource, _)| resource.to_owned());
        let other = reads.map(|repository| format!("repository:{repository}:pull"));
        let mut scopes: Vec<String> = self.scope.iter().cloned().chain(other).collect();
        for scope in named {
            if !scopes.iter().any(|known| resource(known) == resource(scope)) {
                scopes.push(scope.clone());
            }
        }
        scopes
    }

    /// Gets a token from `realm`. The password is sent only if `realm` belongs to the registry.
    fn token(&self, realm: &str, service: Option<&str>, scopes: &[String]) -> io::Result<String> {
        let realm: Uri = realm.parse().map_err(|_| refusal(format!("names an invalid token server: {realm:?}")))?;
        self.http.check_scheme(&realm)?;
        if self.credentials.is_some() && !realm::may_have_password(&self.base, &realm) {
            return Err(refusal(format!("wants the password to be sent to {}, which is not done", host(&realm))));
        }
        let pair = |name: &str, value: &str| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        let mut query: Vec<String> = service.iter().map(|service| pair("service", service)).collect();
        let (response, by) = match &self.credentials {
            Some(Credentials::Identity(token)) => {
                query.extend([pair("scope", &scopes.join(" ")), pair("grant_type", "refresh_token")]);
                query.extend([pair("client_id", "strata"), pair("refresh_token", token)]);
                let form = query.join("&");
                let request = Request::new(Method::POST, realm.clone());
                let mut request = Request { payload: Payload::Bytes(form.as_bytes()), ..request }
                    .with("content-type", "application/x-www-form-urlencoded");
                (self.follow(&mut request, None)?, "token")
            }
            credentials => {
                query.extend(scopes.iter().map(|scope| pair("scope", scope)));
                let joint = if realm.query().is_some() { '&' } else { '?' };
                let uri = resolve(&realm, &format!("{realm}{joint}{}", query.join("&")))?;
                let basic = credentials.as_ref().and_then(Credentials::basic);
                (self.follow(&mut Request::new(Method::GET, uri), basic.as_deref())?, "password")
            }
        };
        if retry::is_passing(response.status) {
            return Err(retry::busy("the token server", response.status, &response.headers));
        }
        if matches!(response.status, 400 | 401 | 403) && self.credentials.is_some() {
            return Err(refusal(format!("the {by} is not accepted; strata login {}", self.registry)));
        }
        if !response.is_success() {
            return Err(refusal(format!("gives no token (status {})", response.status)));
        }
        read_token(response)
    }
}

fn read_token(response: Response) -> io::Result<String> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let mut bytes = Vec::new();
    response.body.take(ANSWER_LIMIT).read_to_end(&mut bytes)?;
    let answer: Option<Answer> = serde_json::from_slice(&bytes).ok();
    let tokens = answer.into_iter().flat_map(|answer| [answer.token, answer.access_token]).flatten();
    let token = tokens.map(|token| token.trim().to_owned()).find(|token| !token.is_empty());
    token.ok_or_else(|| refusal("gives no token, but something else"))
}
