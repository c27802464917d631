//! Unencrypted requests through an HTTP proxy: the first line holds the whole address (RFC 9112, section 3.2.2).
//! `ureq` only supports tunnels, which many proxies refuse for ports other than 443.

use std::net::SocketAddr;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport};
use ureq::{Agent, Error, Proxy};

/// An agent that sends all requests to `proxy`, with `config` for the rest.
///
/// Each connection serves one request, because only then the position of the request's first line is known.
pub(super) fn agent(config: Config, proxy: &Proxy) -> Result<Agent, Error> {
    let host = proxy.host();
    let address = format!("http://{host}:{}/", proxy.port()).parse().map_err(|_| Error::InvalidProxyUrl)?;
    let resolver = ToProxy { address, inner: DefaultResolver::default() };
    Ok(Agent::with_parts(config, ().chain(TcpConnector::default()).chain(WholeAddress), resolver))
}

/// Resolves every name to the proxy's address.
#[derive(Debug)]
struct ToProxy {
    address: Uri,
    inner: DefaultResolver,
}

impl Resolver for ToProxy {
    fn resolve(&self, _: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        self.inner.resolve(&self.address, config, timeout)
    }

    fn empty(&self) -> ResolvedSocketAddrs {
        ResolvedSocketAddrs::from_fn(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
    }
}

#[derive(Debug)]
struct WholeAddress;

impl<In: Transport> Connector<In> for WholeAddress {
    type Out = FirstLine<In>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let authority = details.uri.authority().map_or("", |authority| authority.as_str());
        let prefix = format!("http://{authority}");
        Ok(chained.map(|inner| FirstLine { inner, prefix: Some(prefix) }))
    }
}

/// Inserts scheme and authority before the path in the first line that is sent.
#[derive(Debug)]
struct FirstLine<T> {
    inner: T,
    prefix: Option<String>,
}

impl<T: Transport> Transport for FirstLine<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let Some(prefix) = self.prefix.take() else { return self.inner.transmit_output(amount, timeout) };
        let output = self.inner.buffers().output();
        let path = output[..amount].iter().position(|&byte| byte == b' ').map_or(0, |space| space + 1);
        let whole = amount + prefix.len();
        if whole > output.len() {
            return Err(Error::Other("the request's head is too long".into()));
        }
        output.copy_within(path..amount, path + prefix.len());
        output[path..path + prefix.len()].copy_from_slice(prefix.as_bytes());
        self.inner.transmit_output(whole, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        false
    }
}
