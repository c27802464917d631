//! Published ports: `[ADDRESS:][HOST:]CONTAINER[/udp]`, with ranges, as in docker.

use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use serde::{Deserialize, Serialize};

use crate::image::{ImageError, Result};

/// The protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl Protocol {
    /// The word that docker uses.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of a container, and the host port that leads to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// The container's port.
    pub container: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The host's port; 0 for any free one.
    pub host: u16,
    /// The host's address; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

impl Port {
    /// Parses the value of `-p`, which may be a range.
    ///
    /// # Errors
    /// When it has another form.
    pub fn parse(text: &str) -> Result<Vec<Self>> {
        let bad = || ImageError::malformed(text, "a port reads [ADDRESS:][HOST:]CONTAINER[/tcp|/udp]");
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(bad()),
        };
        let (before, container) = ports.rsplit_once(':').map_or((None, ports), |(before, last)| (Some(before), last));
        let (address, host) = match before {
            None => (None, ""),
            Some(before) => match before.rsplit_once(':') {
                None => (None, before),
                Some((address, host)) => (Some(address.trim_start_matches('[').trim_end_matches(']')), host),
            },
        };
        let address = address.map(|address| address.parse().map_err(|_| bad())).transpose()?;
        let (first, last) = range(container).filter(|(first, _)| *first > 0).ok_or_else(bad)?;
        let hosts = match host {
            "" => None,
            host => Some(range(host).ok_or_else(bad)?),
        };
        if hosts.is_some_and(|(from, to)| to - from != last - first) {
            return Err(ImageError::malformed(text, "both ranges of ports must be of one length"));
        }
        let one = |container: u16| Self {
            container,
            protocol,
            host: hosts.map_or(0, |(from, _)| from + (container - first)),
            address,
        };
        Ok((first..=last).map(one).collect())
    }

    /// Parses an exposed port of an image: `80/tcp`, `53`, `8000-8010/udp`.
    pub(super) fn exposed(text: &str) -> Vec<Self> {
        if text.contains(':') { Vec::new() } else { Self::parse(text).unwrap_or_default() }
    }

    /// The same port with a free host port number.
    ///
    /// # Errors
    /// When the requested number is taken.
    pub(super) fn settled(&self) -> Result<Self> {
        let address = self.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let bound = match self.protocol {
            Protocol::Tcp => TcpListener::bind((address, self.host)).and_then(|socket| socket.local_addr()),
            Protocol::Udp => UdpSocket::bind((address, self.host)).and_then(|socket| socket.local_addr()),
        };
        match bound {
            Ok(bound) => Ok(Self { host: bound.port(), ..self.clone() }),
            Err(error) => {
                let name = format!("{}/{}", std::net::SocketAddr::new(address, self.host), self.protocol.word());
                Err(ImageError::refused(name, format!("the port cannot be had on this host: {error}")))
            }
        }
    }

    /// As an option of pasta: `ADDRESS/HOST:CONTAINER`.
    pub(super) fn forwarded(&self) -> String {
        let address = self.address.map(|address| format!("{address}/")).unwrap_or_default();
        format!("{address}{}:{}", self.host, self.container)
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_docker_reads_them() {
        let port = |address: Option<&str>, host, container, protocol| Port {
            address: address.map(|address| address.parse().expect("an address")),
            host,
            container,
            protocol,
        };
        for (text, expected) in [
            ("80", vec![port(None, 0, 80, Protocol::Tcp)]),
            ("8888:80", vec![port(None, 8888, 80, Protocol::Tcp)]),
            ("127.0.0.1:8888:80/tcp", vec![port(Some("127.0.0.1"), 8888, 80, Protocol::Tcp)]),
            ("127.0.0.1::80", vec![port(Some("127.0.0.1"), 0, 80, Protocol::Tcp)]),
            ("[::1]:53:53/udp", vec![port(Some("::1"), 53, 53, Protocol::Udp)]),
            ("90-91:80-81", vec![port(None, 90, 80, Protocol::Tcp), port(None, 91, 81, Protocol::Tcp)]),
        ] {
            assert_eq!(Port::parse(text).expect(text), expected, "{text}");
        }
        for bad in ["", "x", "0", "70000", "1:2:3", "80/sctp", "90-92:80-81", "81-80", "a.b:1:2", "-1:2"] {
            assert!(Port::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(port(Some("::1"), 1, 2, Protocol::Tcp).forwarded(), "::1/1:2");
    }

    #[test]
    fn a_port_that_is_taken_is_refused() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let number = taken.local_addr().expect("its address").port();
        let port = Port::parse(&format!("127.0.0.1:{number}:80")).expect("a port");
        let told = port[0].settled().expect_err("taken").to_string();
        assert!(told.starts_with(&format!("127.0.0.1:{number}/tcp: the port cannot be had")), "{told}");
        let any = Port::parse("127.0.0.1::80").expect("a port")[0].settled().expect("any port");
        assert!(any.host > 0);
    }
}
