//! Decides which token servers may get a registry's password.
//!
//! A registry names its token server in the `realm` of its challenge. docker and podman send the password to any realm. So an
//! attacker who can answer for the registry once (a relayed answer, a mistyped name) can direct it anywhere (CVE-2020-15157 is
//! such a leak in containerd). Here, the password is sent to a realm only under one of these conditions:
//!
//! 1. The realm is on the registry's own host, on any port.
//! 2. The realm is the token server of a known public registry ([`KNOWN`]).
//! 3. The realm uses TLS and has the same owner: both names end in the same registered domain by the public suffix list
//!    (`registry.example.org` and `gitlab.example.org`, the usual form of a private GitLab), and that domain does not
//!    give names to customers ([`SHARED`]).
//!
//! A realm must be as protected as its registry: the realm of a registry with TLS must use TLS. Requests
//! without a password are sent to any realm.

use ureq::http::Uri;

use crate::registry::address::{host, is_https};

/// Public registries whose token server has another name.
const KNOWN: &[(&str, &str)] = &[
    ("registry-1.docker.io", "auth.docker.io"),
    ("index.docker.io", "auth.docker.io"),
    ("docker.io", "auth.docker.io"),
    ("registry.hub.docker.com", "auth.docker.io"),
    ("registry.gitlab.com", "gitlab.com"),
    ("registry.digitalocean.com", "api.digitalocean.com"),
    ("registry.redhat.io", "sso.redhat.com"),
];

/// Domains that give names to customers, although the public suffix list does not contain them.
const SHARED: &[&str] = &[
    "aliyuncs.com",
    "amazonaws.com",
    "azurecr.io",
    "azurecr.cn",
    "azurecr.us",
    "cloudsmith.io",
    "cluster.local",
    "gcr.io",
    "jfrog.io",
    "jfrog.org",
    "myhuaweicloud.com",
    "ocir.io",
    "on.aws",
    "pkg.dev",
    "scw.cloud",
    "tencentcloudcr.com",
    "tencentyun.com",
];

/// True if the password for the registry at `registry` may be sent to `realm`.
pub(super) fn may_have_password(registry: &Uri, realm: &Uri) -> bool {
    if is_https(registry) && !is_https(realm) {
        return false;
    }
    let (own, other) = (host(registry), host(realm));
    own == other
        || (is_https(realm) && (KNOWN.contains(&(own.as_str(), other.as_str())) || have_one_owner(&own, &other)))
}

fn have_one_owner(own: &str, other: &str) -> bool {
    let is_number = |host: &str| host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok();
    if is_number(own) || is_number(other) {
        return false;
    }
    // An internal domain that is not below a public suffix has one owner; a single label is not a domain.
    let domain = psl::domain_str(own).filter(|domain| domain.contains('.'));
    domain.is_some() && domain == psl::domain_str(other) && !SHARED.iter().any(|shared| is_below(own, shared))
}

fn is_below(host: &str, domain: &str) -> bool {
    host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_password_may_go() {
        for (registry, realm, may) in [
            ("https://registry-1.docker.io", "https://auth.docker.io/token", true),
            ("https://registry-1.docker.io", "http://auth.docker.io/token", false),
            ("https://registry-1.docker.io", "https://docker.io.example/token", false),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
            ("https://ghcr.io", "https://ghcr.io/token", true),
            ("https://quay.io", "https://quay.io/v2/auth", true),
            ("https://registry.example.org", "https://gitlab.example.org/jwt", true),
            ("https://registry.example.org:5050", "https://registry.example.org/jwt", true),
            ("https://registry.example.org", "http://registry.example.org/jwt", false),
            ("http://registry.example.org", "https://gitlab.example.org/jwt", true),
            ("http://registry.example.org", "http://gitlab.example.org/jwt", false),
            ("http://localhost:5000", "http://localhost:5001/token", true),
            ("http://localhost:5000", "http://127.0.0.1:5000/token", false),
            ("http://[::1]:5000", "http://[::1]:5001/token", true),
            ("https://127.0.0.1:5000", "https://10.0.0.1/token", false),
            ("https://registry", "https://other/jwt", false),
            // Different owners below one suffix, either public or of a hosting company.
            ("https://mine.co.uk", "https://evil.co.uk/token", false),
            ("https://registry.mine.co.uk", "https://auth.mine.co.uk/token", true),
            ("https://mine.azurecr.io", "https://evil.azurecr.io/oauth2/token", false),
            ("https://mine.azurecr.io", "https://mine.azurecr.io/oauth2/token", true),
            ("https://mine.jfrog.io", "https://evil.jfrog.io/token", false),
            ("https://1.dkr.ecr.us-east-1.amazonaws.com", "https://evil.us-east-1.amazonaws.com/", false),
            ("https://mine.github.io", "https://evil.github.io/", false),
            ("https://us-docker.pkg.dev", "https://evil.pkg.dev/", false),
            ("https://a.team.svc.cluster.local", "https://b.evil.svc.cluster.local/", false),
            ("https://registry.corp.lan", "https://login.corp.lan/token", true),
            ("https://docker.io", "https://evildocker.io/token", false),
        ] {
            let (own, other): (Uri, Uri) = (registry.parse().expect(registry), realm.parse().expect(realm));
            assert_eq!(may_have_password(&own, &other), may, "{registry} {realm}");
        }
    }
}
