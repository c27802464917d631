//! Addresses: resolves references in headers, and tells whether two are the same server.

use std::io;

use ureq::http::Uri;

use crate::image::digest::Digest;
use crate::registry::http::refusal;

/// Scheme, host and port: a secret for one origin is never sent to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    pub(super) fn of(uri: &Uri) -> Self {
        Self {
            scheme: uri.scheme_str().unwrap_or_default().to_owned(),
            host: host(uri),
            port: uri.port_u16().or_else(|| default_port(uri)),
        }
    }
}

/// The host in lower case, without the final dot of a full name.
pub(super) fn host(uri: &Uri) -> String {
    uri.host().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase()
}

pub(super) fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

fn default_port(uri: &Uri) -> Option<u16> {
    match uri.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    }
}

/// Resolves a reference in a response from `base` (RFC 3986, section 5.2, as far as servers use it).
///
/// # Errors
/// When the result is not a valid address, or contains a password.
pub(super) fn resolve(base: &Uri, reference: &str) -> io::Result<Uri> {
    let (scheme, authority) = (base.scheme_str().unwrap_or_default(), base.authority().map_or("", |a| a.as_str()));
    let reference = reference.trim();
    let text = if reference.starts_with("//") {
        format!("{scheme}:{reference}")
    } else if reference.starts_with('/') {
        format!("{scheme}://{authority}{reference}")
    } else if reference.starts_with('?') {
        format!("{scheme}://{authority}{}{reference}", base.path())
    } else if reference.split(['/', '?', '#']).next().is_some_and(has_scheme) {
        reference.to_owned()
    } else {
        format!("{scheme}://{authority}{}", merged(base.path(), reference))
    };
    let text = text.split('#').next().unwrap_or_default();
    let uri: Uri = text.parse().map_err(|_| refusal(format!("{reference:?} is no address")))?;
    // `mailto:x` would be taken for host and port.
    if uri.scheme().is_none() || uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
        return Err(refusal(format!("{reference:?} is no address to go to")));
    }
    Ok(uri)
}

/// True if the text before the first slash names a scheme; `sha256:…` in a relative path does not.
fn has_scheme(first: &str) -> bool {
    first.contains(':') && !first.starts_with("sha256:")
}

/// A relative path, in place of the last part of `base`, with `.` and `..` removed.
fn merged(base: &str, reference: &str) -> String {
    let (path, query) = match reference.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (reference, None),
    };
    let dir = base.rsplit_once('/').map_or("", |(dir, _)| dir);
    let mut parts: Vec<&str> = dir.split('/').skip(1).collect();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("/{}{query}", parts.join("/"))
}

/// The address that completes an upload: the upload's own, with `digest` added to its query.
///
/// # Errors
/// When the result is not a valid address.
pub(super) fn with_digest(upload: &Uri, digest: &Digest) -> io::Result<Uri> {
    let query = match upload.query() {
        None | Some("") => String::new(),
        Some(query) => format!("{}&", query.trim_end_matches('&')),
    };
    let (scheme, authority) =
        (upload.scheme_str().unwrap_or_default(), upload.authority().map_or("", |authority| authority.as_str()));
    let text = format!("{scheme}://{authority}{}?{query}digest={digest}", upload.path());
    text.parse().map_err(|_| refusal("sends an invalid address"))
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
            ("2?state=a%2Fb==", "https://a.example:5000/v2/x/blobs/2?state=a%2Fb=="),
            ("./2", "https://a.example:5000/v2/x/blobs/2"),
            ("../uploads/2", "https://a.example:5000/v2/x/uploads/2"),
            ("sha256:00", "https://a.example:5000/v2/x/blobs/sha256:00"),
            ("?state=1", "https://a.example:5000/v2/x/blobs/1?state=1"),
            (" /padded ", "https://a.example:5000/padded"),
            ("//b.example/c", "https://b.example/c"),
            ("http://b.example/c", "http://b.example/c"),
            ("https://[::1]:5000/c", "https://[::1]:5000/c"),
        ] {
            assert_eq!(resolve(&base, location).expect(location).to_string(), expected);
        }
        for bad in ["https://", "https://me:secret@b.example/", "mailto:x", "https://b .example/"] {
            let resolved = resolve(&base, bad).map(|uri| uri.to_string());
            assert!(resolved.is_err(), "{bad:?}: {resolved:?}");
        }
    }

    #[test]
    fn digests_are_added_to_any_query() {
        let digest = Digest::of(b"x");
        for (upload, joint) in [
            ("https://a/u/1", "https://a/u/1?"),
            ("https://a/u/1?", "https://a/u/1?"),
            ("https://a/u/1?_state=Zz%3D&b", "https://a/u/1?_state=Zz%3D&b&"),
            ("https://a/u/1?b=1&", "https://a/u/1?b=1&"),
        ] {
            let whole = with_digest(&upload.parse().expect(upload), &digest).expect(upload);
            assert_eq!(whole.to_string(), format!("{joint}digest={digest}"));
        }
    }

    #[test]
    fn origins() {
        let origin = |text: &str| Origin::of(&text.parse().expect(text));
        for (one, other, same) in [
            ("https://a.example/", "https://a.example:443/x", true),
            ("https://A.example./", "https://a.example/", true),
            ("https://a.example/", "https://a.example:444/", false),
            ("https://a.example/", "http://a.example:443/", false),
            ("http://[::1]/", "http://[::1]:80/", true),
            ("https://a.example/", "https://b.example/", false),
        ] {
            assert_eq!(origin(one) == origin(other), same, "{one} {other}");
        }
    }
}
