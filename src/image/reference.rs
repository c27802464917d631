//! Image names. Grammar and normal form: the distribution project's `reference` package, which docker, podman
//! and containerd follow; `debian` means `docker.io/library/debian:latest`.

use std::fmt;
use std::str::FromStr;

use crate::image::digest::Digest;
use crate::image::{ImageError, Result};

const DEFAULT_DOMAIN: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// A repository and a tag, in normal form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: String,
}

impl Reference {
    /// The full form: `docker.io/library/debian:latest`.
    pub fn full(&self) -> String {
        format!("{}/{}:{}", self.domain, self.path, self.tag)
    }

    /// The repository in the short form that docker shows: `debian`. If the short form would name another registry,
    /// returns the long one.
    pub fn repository(&self) -> String {
        let full = || format!("{}/{}", self.domain, self.path);
        if self.domain != DEFAULT_DOMAIN {
            return full();
        }
        match self.path.strip_prefix(DEFAULT_NAMESPACE) {
            Some(name) if !name.contains('/') => name.to_owned(),
            _ if split_domain(&self.path).0 == DEFAULT_DOMAIN => self.path.clone(),
            _ => full(),
        }
    }

    /// The registry: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository's name in its registry: `library/debian`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A digest in the repository, in docker's short form: `debian@sha256:…`.
    pub fn at_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.repository())
    }

    /// The tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The same tag in the repository that podman uses for local images (`localhost/NAME`), if the name was
    /// given without a domain.
    pub fn at_localhost(&self) -> Option<Self> {
        let name = self.path.strip_prefix(DEFAULT_NAMESPACE).unwrap_or(&self.path);
        (self.domain == DEFAULT_DOMAIN).then(|| Self {
            domain: "localhost".to_owned(),
            path: name.to_owned(),
            tag: self.tag.clone(),
        })
    }
}

/// The short form with its tag.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository(), self.tag)
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: &str| ImageError::malformed(text, format!("not an image name: {reason}"));
        if text.contains('@') {
            return Err(bad("a digest cannot be part of it here"));
        }
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (text, DEFAULT_TAG),
        };
        if !is_tag(tag) {
            return Err(bad(
                "a tag is up to 128 letters, digits, '_', '.' and '-', and starts with none of the last two",
            ));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(domain) {
            return Err(bad("the registry's name is malformed"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad("a repository is written in lower case"));
        }
        if path.is_empty() || !path.split('/').all(is_path_component) {
            return Err(bad("a repository's parts are lower-case letters and digits, with single separators between"));
        }
        if domain.len() + path.len() > 254 {
            return Err(bad("longer than 255 characters"));
        }
        let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
        let official = domain == DEFAULT_DOMAIN && !path.contains('/');
        let path = if official { format!("{DEFAULT_NAMESPACE}{path}") } else { path.to_owned() };
        Ok(Self { domain: domain.to_owned(), path, tag: tag.to_owned() })
    }
}

/// Splits the registry from the repository: the first part is a registry only if it looks like one.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128 && tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// `name`, `name:port`, `[address of IPv6]` or `[address of IPv6]:port`.
fn is_domain(domain: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let is_address = address.parse::<std::net::Ipv6Addr>().is_ok();
        return is_address && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = domain.split_once(':').unwrap_or((domain, "0"));
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner)
    };
    host.split('.').all(label) && is_port(port)
}

/// `[a-z0-9]+` joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(word) || !bytes.last().is_some_and(word) {
        return false;
    }
    bytes
        .split(word)
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-'))
}

/// How a user can name an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageQuery {
    /// A name, and the manifest's digest if one was given.
    Named(Reference, Option<Digest>),
    /// A digest or its beginning, in hexadecimal.
    Id(String),
    /// Either: `cafe` names a repository, but may also begin an id.
    NamedOrId(Reference, String),
}

impl FromStr for ImageQuery {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self> {
        let is_hex =
            |id: &str| !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if let Some(id) = text.strip_prefix("sha256:").filter(|id| is_hex(id)) {
            return Ok(Self::Id(id.to_owned()));
        }
        if let Some((name, digest)) = text.split_once('@') {
            let digest = digest.parse().map_err(|error| ImageError::malformed(text, error))?;
            return Ok(Self::Named(name.parse()?, Some(digest)));
        }
        match text.parse() {
            Ok(reference) if is_hex(text) => Ok(Self::NamedOrId(reference, text.to_owned())),
            Ok(reference) => Ok(Self::Named(reference, None)),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_and_short_forms() {
        let table = [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
            ("index.docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"),
            ("me/tool", "docker.io/me/tool:latest", "me/tool:latest"),
            ("docker.io/x.y/a", "docker.io/x.y/a:latest", "docker.io/x.y/a:latest"),
            ("docker.io/localhost/a", "docker.io/localhost/a:latest", "docker.io/localhost/a:latest"),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("[::1]:5000/a/b:1", "[::1]:5000/a/b:1", "[::1]:5000/a/b:1"),
            ("[fd00::1]/a:1", "[fd00::1]/a:1", "[fd00::1]/a:1"),
            ("[2001:DB8::1]/a", "[2001:DB8::1]/a:latest", "[2001:DB8::1]/a:latest"),
            ("quay.io/a__b/c-d.e", "quay.io/a__b/c-d.e:latest", "quay.io/a__b/c-d.e:latest"),
        ];
        for (typed, full, short) in table {
            let reference: Reference = typed.parse().expect(typed);
            assert_eq!(reference.full(), full);
            assert_eq!(reference.to_string(), short);
            assert_eq!(full.parse::<Reference>().expect(full), reference);
            assert_eq!(short.parse::<Reference>().expect(short), reference);
        }
    }

    #[test]
    fn malformed_names() {
        for bad in [
            "",
            ":",
            "a:",
            ":a",
            "Debian",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "-a",
            "a:.b",
            "a b",
            "../a",
            "a@x",
            "a:b:c",
            "a\n",
            "é",
            "-.io/a",
            "a.io:x/a",
            "[::1/a",
            "::1/a",
            "[::1]x/a",
            "[::1]:/a",
            "[::1]:x/a",
            "[]/a",
            "[localhost]/a",
            "[::1%eth0]/a",
            "[127.0.0.1]/a",
            "[::1]",
            "[::1]:5000",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn queries() {
        assert_eq!("sha256:0a".parse::<ImageQuery>().ok(), Some(ImageQuery::Id("0a".to_owned())));
        assert!(matches!("cafe".parse::<ImageQuery>(), Ok(ImageQuery::NamedOrId(..))));
        assert!(matches!("debian".parse::<ImageQuery>(), Ok(ImageQuery::Named(_, None))));
        assert!("debian@sha256:00".parse::<ImageQuery>().is_err());
    }
}
