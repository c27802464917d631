//! Chooses the proxy for a request. The rules for the environment are those of Go's `golang.org/x/net/http/httpproxy`,
//! which docker, podman and containerd follow.
//!
//! `HTTP_PROXY` applies to http, `HTTPS_PROXY` to https, and `ALL_PROXY` (curl's, not Go's) if the scheme's own variable is not
//! set. The lower-case forms apply if the upper-case ones are not set. An empty variable counts as not set. Requests to
//! `localhost` and to loopback addresses never use a proxy. `NO_PROXY` lists exceptions, separated by commas or blanks: `*`,
//! addresses, CIDR ranges, names that include all names below them (`example.org`), and names that mean only those below them
//! (`.example.org`, `*.example.org`). All except ranges may have `:PORT`, to apply to that port only.

use std::io;
use std::net::IpAddr;

use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

use crate::registry::address::{host, is_https};
use crate::registry::http::refusal;

/// The proxies in the environment.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    http: Option<String>,
    https: Option<String>,
    exceptions: Exceptions,
}

/// The way of a request.
#[derive(Debug)]
pub(super) enum Way {
    Direct,
    /// Through a tunnel made by the proxy: `CONNECT`, or SOCKS.
    Tunnel(Proxy),
    /// An unencrypted request is sent to the proxy itself, with the whole address in its first line.
    Forward(Proxy),
}

impl Proxies {
    pub(super) fn of_environment() -> Self {
        Self::new(&|name| std::env::var(name).ok())
    }

    fn new(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| {
            let value = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
            value(name).or_else(|| value(&name.to_lowercase()))
        };
        let all = set("ALL_PROXY");
        // In a CGI program, HTTP_PROXY is a header of its client (CVE-2016-5386).
        let is_cgi = variable("REQUEST_METHOD").is_some_and(|method| !method.is_empty());
        let http = if is_cgi { None } else { set("HTTP_PROXY") };
        Self {
            http: http.or_else(|| all.clone()),
            https: set("HTTPS_PROXY").or(all),
            exceptions: Exceptions::parse(&set("NO_PROXY").unwrap_or_default()),
        }
    }

    /// The way for an address.
    ///
    /// # Errors
    /// When the proxy's own address is malformed.
    pub(super) fn way_to(&self, uri: &Uri) -> io::Result<Way> {
        let proxy = if is_https(uri) { &self.https } else { &self.http };
        let Some(proxy) = proxy.as_deref().map(str::trim).filter(|_| !self.exceptions.cover(uri)) else {
            return Ok(Way::Direct);
        };
        // The address is not printed, because it may contain a password.
        let malformed = |_| refusal("the environment's proxy for it is no address");
        let address = match proxy.split_once("://") {
            // As in Go, the proxy resolves names.
            Some(("socks5" | "socks", rest)) => format!("socks5h://{rest}"),
            Some(_) => proxy.to_owned(),
            None => format!("http://{proxy}"),
        };
        let proxy = Proxy::new(&address).map_err(malformed)?;
        match (proxy.protocol(), is_https(uri)) {
            (ProxyProtocol::Http, false) => Ok(Way::Forward(proxy)),
            _ => Ok(Way::Tunnel(proxy)),
        }
    }
}

#[derive(Debug, Default)]
struct Exceptions {
    all: bool,
    ranges: Vec<(IpAddr, u32)>,
    addresses: Vec<(IpAddr, Option<u16>)>,
    names: Vec<Name>,
}

#[derive(Debug)]
struct Name {
    /// With a leading dot.
    suffix: String,
    itself: bool,
    port: Option<u16>,
}

impl Exceptions {
    fn parse(text: &str) -> Self {
        let mut exceptions = Self::default();
        for item in text.split([',', ' ', '\t', '\n']).map(|item| item.trim().to_lowercase()) {
            exceptions.add(&item);
        }
        exceptions
    }

    fn add(&mut self, item: &str) {
        if item == "*" {
            self.all = true;
        }
        if let Some(range) = range(item) {
            self.ranges.push(range);
            return;
        }
        let (name, port) = split_port(item);
        let name = name.trim_end_matches('.');
        if let Ok(address) = name.trim_matches(['[', ']']).parse() {
            self.addresses.push((address, port));
            return;
        }
        let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
        match name.strip_prefix('.') {
            _ if name.is_empty() || name == "*" || name == "." => {}
            Some(_) => self.names.push(Name { suffix: name.to_owned(), itself: false, port }),
            None => self.names.push(Name { suffix: format!(".{name}"), itself: true, port }),
        }
    }

    fn cover(&self, uri: &Uri) -> bool {
        let host = host(uri);
        let port = uri.port_u16().unwrap_or(if is_https(uri) { 443 } else { 80 });
        let is_port = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            let address = address.to_canonical();
            return self.all
                || address.is_loopback()
                || self.ranges.iter().any(|range| is_in(address, *range))
                || self.addresses.iter().any(|(known, port)| known.to_canonical() == address && is_port(port));
        }
        let is_named = |name: &Name| {
            let itself = name.itself && name.suffix.strip_prefix('.') == Some(host.as_str());
            is_port(&name.port) && (itself || host.ends_with(&name.suffix))
        };
        self.all || host == "localhost" || host.ends_with(".localhost") || self.names.iter().any(is_named)
    }
}

/// `10.0.0.0/8`
fn range(item: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = item.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u32 = bits.parse().ok()?;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

fn is_in(address: IpAddr, (base, bits): (IpAddr, u32)) -> bool {
    match (address, base) {
        (IpAddr::V4(address), IpAddr::V4(base)) => {
            (address.to_bits() ^ base.to_bits()).checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(base)) => {
            (address.to_bits() ^ base.to_bits()).checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// `name:8080`, `[::1]:8080`; an IPv6 address without brackets has no port.
fn split_port(item: &str) -> (&str, Option<u16>) {
    match item.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (item, None),
        },
        _ => (item, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(variables: &[(&str, &str)], uri: &str) -> String {
        let proxies = Proxies::new(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        });
        match proxies.way_to(&uri.parse().expect(uri)) {
            Ok(Way::Direct) => "direct".to_owned(),
            Ok(Way::Tunnel(proxy)) => format!("tunnel {}:{}", proxy.host(), proxy.port()),
            Ok(Way::Forward(proxy)) => format!("forward {}:{}", proxy.host(), proxy.port()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn each_scheme_has_its_own() {
        let both = [("HTTP_PROXY", "http://h:1"), ("HTTPS_PROXY", "http://s:2")];
        for (variables, uri, expected) in [
            (&both[..], "http://a.example/", "forward h:1"),
            (&both, "https://a.example/", "tunnel s:2"),
            (&both[..1], "https://a.example/", "direct"),
            (&both[1..], "http://a.example/", "direct"),
            (&[("http_proxy", "h:1")], "http://a.example/", "forward h:1"),
            (&[("HTTP_PROXY", ""), ("http_proxy", "h:1")], "http://a.example/", "forward h:1"),
            (&[("HTTP_PROXY", "u:1"), ("http_proxy", "h:1")], "http://a.example/", "forward u:1"),
            (&[("ALL_PROXY", "a:3")], "https://a.example/", "tunnel a:3"),
            (&[("ALL_PROXY", "a:3"), ("HTTPS_PROXY", "s:2")], "https://a.example/", "tunnel s:2"),
            (&[("https_proxy", "http://me:pw@s:2/")], "https://a.example/", "tunnel s:2"),
            (&[("HTTPS_PROXY", "socks5://s:9")], "https://a.example/", "tunnel s:9"),
            (&[("HTTP_PROXY", "h:1"), ("REQUEST_METHOD", "GET")], "http://a.example/", "direct"),
            (&[("HTTPS_PROXY", "gopher://x")], "https://a.example/", "the environment's proxy for it is no address"),
            (&[], "https://a.example/", "direct"),
        ] {
            assert_eq!(way(variables, uri), expected, "{variables:?} {uri}");
        }
    }

    #[test]
    fn exceptions() {
        for (exceptions, host, is_direct) in [
            ("", "localhost", true),
            ("", "localhost:5000", true),
            ("", "x.localhost", true),
            ("", "127.0.0.1", true),
            ("", "127.8.9.1:5000", true),
            ("", "[::1]:5000", true),
            ("", "[::ffff:127.0.0.1]", true),
            ("", "10.0.0.1", false),
            ("*", "a.example", true),
            ("x, *", "10.0.0.1", true),
            ("a.example", "a.example", true),
            ("a.example", "b.a.example", true),
            ("a.example", "ba.example", false),
            ("A.Example.", "a.example", true),
            (".a.example", "a.example", false),
            (".a.example", "b.a.example", true),
            ("*.a.example", "b.a.example", true),
            ("*.a.example", "a.example", false),
            ("a.example:5000", "a.example:5000", true),
            ("a.example:5000", "a.example", false),
            ("a.example:443", "a.example", true),
            (" x ,\ta.example , ", "a.example", true),
            ("x a.example", "a.example", true),
            (",,", "a.example", false),
            (".", "a.example", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("10.1.2.3/32", "10.1.2.3", true),
            ("0.0.0.0/0", "11.1.2.3", true),
            ("10.0.0.0/33", "10.1.2.3", false),
            ("fd00::/8", "[fd00::1]:5000", true),
            ("fd00::/8", "[fe00::1]", false),
            ("10.1.2.3", "10.1.2.3:5000", true),
            ("10.1.2.3:5000", "10.1.2.3:5000", true),
            ("10.1.2.3:5000", "10.1.2.3", false),
            ("fd00::1", "[fd00::1]", true),
            ("[fd00::1]:5000", "[fd00::1]:5000", true),
            ("[fd00::1]:5000", "[fd00::1]:5001", false),
        ] {
            let variables = [("HTTPS_PROXY", "p:1"), ("no_proxy", exceptions)];
            let went = way(&variables, &format!("https://{host}/"));
            assert_eq!(went == "direct", is_direct, "{exceptions:?} {host}: {went}");
        }
    }
}
