//! The demands of a registry in `WWW-Authenticate` (RFC 9110, section 11.6.1; the parameters of `Bearer` are
//! those of distribution's token authentication).

/// An authentication scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Name and password with every request.
    Basic,
    /// A token from `realm`, which may be relative to the address of the request. Empty values count as missing.
    Bearer { realm: String, service: Option<String>, scopes: Vec<String> },
}

/// The challenges of one header that this program can answer.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let word: String =
            rest.chars().take_while(|&c| c.is_ascii_graphic() && !matches!(c, '=' | ',' | '"')).collect();
        if word.is_empty() {
            break;
        }
        rest = &rest[word.len()..];
        let Some(value) = rest.trim_start().strip_prefix('=') else {
            found.push((word.to_ascii_lowercase(), Vec::new()));
            continue;
        };
        let (value, after) = value_of(value.trim_start());
        rest = after;
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((word.to_ascii_lowercase(), value));
        }
    }
    found.into_iter().filter_map(|(scheme, parameters)| challenge(&scheme, &parameters)).collect()
}

fn challenge(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    let parameter = |name: &str| {
        let value = parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.trim().to_owned());
        value.filter(|value| !value.is_empty())
    };
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            let scopes = parameter("scope").unwrap_or_default();
            let scopes = scopes.split_whitespace().map(str::to_owned).collect();
            Some(Challenge::Bearer { realm: parameter("realm")?, service: parameter("service"), scopes })
        }
        _ => None,
    }
}

/// A token or a quoted string, and the rest.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let bearer = |realm: &str, service: Option<&str>| Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scopes: vec![],
        };
        let scoped = Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: Some("registry.example".to_owned()),
            scopes: vec!["repository:a/b:pull,push".to_owned()],
        };
        for (header, expected) in [
            ("Basic realm=\"Registry Realm\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                "Bearer realm=\"https://auth.example/token\",service=\"registry.example\",scope=\"repository:a/b:pull,push\"",
                vec![scoped],
            ),
            ("Bearer realm=x , service = \"a\\\"b\"", vec![bearer("x", Some("a\"b"))]),
            ("Negotiate, Basic realm=\"a, b\", Bearer realm=r", vec![Challenge::Basic, bearer("r", None)]),
            ("Bearer service=x", vec![]),
            ("Bearer realm=\"\",service=x", vec![]),
            ("Bearer realm=\"/token\",service=\"\",scope=\"\"", vec![bearer("/token", None)]),
            ("BEARER Realm=https://a.example/t,Service=s", vec![bearer("https://a.example/t", Some("s"))]),
            ("Digest realm=\"x", vec![]),
            ("", vec![]),
            ("=\"", vec![]),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
    }
}
