//! `/etc/hosts` and `/etc/resolv.conf` of a container. The container has its own copies, so changes in it do not reach the host.

use std::fs;
use std::path::Path;

use super::super::Container;
use super::super::bundle::{Network, RunOptions, Volume};
use super::{FORWARDED_RESOLVER, HOST};
use crate::image::{ImageError, IoContext, Result};

/// Entries that every machine has.
const LOCAL_HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

impl Container {
    /// Writes the files and returns them as volumes.
    ///
    /// # Errors
    /// When a file cannot be read or written, or a host given by the user has no address.
    pub(in super::super) fn network_files(&self, hostname: &str) -> Result<Vec<Volume>> {
        let options = &self.record.options;
        let mut files = vec![("hosts", hosts(options, hostname, &read("/etc/hosts"), &read("/proc/net/route"))?)];
        if options.network != Network::None {
            files.push(("resolv.conf", resolvers(options, &read("/etc/resolv.conf"))));
        }
        let mut volumes = Vec::new();
        for (name, text) in files {
            let copy = self.dir.join(name);
            fs::write(&copy, text).at(&copy)?;
            volumes.push(Volume::bind(copy, Path::new("/etc").join(name)));
        }
        Ok(volumes)
    }
}

fn read(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// True if name queries must go through pasta.
pub(super) fn forwards_names(options: &RunOptions) -> bool {
    options.network == Network::Pasta && options.dns.is_empty() && usable(&read("/etc/resolv.conf")).is_empty()
}

/// The host's resolvers that are reachable from another network namespace.
fn usable(resolv_conf: &str) -> Vec<&str> {
    let addresses = resolv_conf.lines().filter_map(|line| line.strip_prefix("nameserver")).map(str::trim);
    let is_usable = |address: &&str| {
        let bare = address.split('%').next().and_then(|bare| bare.parse::<std::net::IpAddr>().ok());
        bare.is_some_and(|address| !address.is_loopback())
    };
    addresses.filter(is_usable).collect()
}

fn resolvers(options: &RunOptions, of_host: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    if !options.dns.is_empty() {
        lines.extend(options.dns.iter().map(|address| format!("nameserver {address}")));
    } else if options.network == Network::Pasta {
        match usable(of_host).as_slice() {
            [] => lines.push(format!("nameserver {FORWARDED_RESOLVER}")),
            found => lines.extend(found.iter().map(|address| format!("nameserver {address}"))),
        }
    } else {
        lines.extend(of_host.lines().filter(|line| line.starts_with("nameserver")).map(str::to_owned));
    }
    let kept =
        |keyword: &str| of_host.lines().filter(|line| line.starts_with(keyword)).map(str::to_owned).collect::<Vec<_>>();
    match options.dns_search.as_slice() {
        [] => lines.extend([kept("search"), kept("domain")].concat()),
        domains if domains == ["."] => {}
        domains => lines.push(format!("search {}", domains.join(" "))),
    }
    match options.dns_options.as_slice() {
        [] => lines.extend(kept("options")),
        words => lines.push(format!("options {}", words.join(" "))),
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn hosts(options: &RunOptions, hostname: &str, of_host: &str, routes: &str) -> Result<String> {
    let mut text = match options.network {
        Network::Host => of_host.to_owned(),
        Network::None | Network::Pasta => format!("{LOCAL_HOSTS}127.0.1.1\t{hostname}\n"),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for word in &options.add_hosts {
        let bad = || ImageError::malformed(word, "a host reads NAME:ADDRESS");
        let (name, address) = word.split_once([':', '=']).ok_or_else(bad)?;
        let address = match address.trim_start_matches('[').trim_end_matches(']') {
            HOST if options.network == Network::Host => "127.0.0.1".to_owned(),
            HOST => gateway(routes).ok_or_else(|| ImageError::refused(word, "this host has no gateway"))?,
            address => address.parse::<std::net::IpAddr>().map_err(|_| bad())?.to_string(),
        };
        text.push_str(&format!("{address}\t{name}\n"));
    }
    Ok(text)
}

/// The default gateway in a table of routes (`/proc/net/route`, proc_pid_net(5)). pasta gives the container this
/// address, and forwards packets for it to the host.
fn gateway(routes: &str) -> Option<String> {
    let of_line = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let number = u32::from_str_radix(gateway, 16).ok().filter(|_| destination == "00000000")?;
        Some(std::net::Ipv4Addr::from(number.swap_bytes()).to_string())
    };
    routes.lines().skip(1).find_map(of_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_network(network: Network) -> RunOptions {
        RunOptions { network, ..RunOptions::default() }
    }

    #[test]
    fn resolvers_that_cannot_be_reached_are_replaced() {
        let local = "nameserver 127.0.0.53\nsearch a b\noptions edns0\n# x\n";
        assert_eq!(
            resolvers(&of_network(Network::Pasta), local),
            "nameserver 169.254.1.1\nsearch a b\noptions edns0\n"
        );
        assert_eq!(resolvers(&of_network(Network::Host), local), "nameserver 127.0.0.53\nsearch a b\noptions edns0\n");
        let two = "nameserver 127.0.0.1\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n";
        assert_eq!(resolvers(&of_network(Network::Pasta), two), "nameserver 192.0.2.1\nnameserver fe80::1%eth0\n");
        let own = RunOptions {
            dns: vec!["192.0.2.9".to_owned()],
            dns_search: vec![".".to_owned()],
            dns_options: vec!["ndots:1".to_owned()],
            ..of_network(Network::Pasta)
        };
        assert_eq!(resolvers(&own, local), "nameserver 192.0.2.9\noptions ndots:1\n");
    }

    #[test]
    fn hosts_of_every_network() {
        let routes = "Iface\tDestination\tGateway\neth0\t000200C0\t00000000\neth0\t00000000\t010200C0\n";
        let host = RunOptions { add_hosts: vec!["db:192.0.2.7".to_owned()], ..of_network(Network::Host) };
        assert_eq!(hosts(&host, "c", "127.0.0.1 x", routes).expect("hosts"), "127.0.0.1 x\n192.0.2.7\tdb\n");
        let added = ["six:[::2]", "out:host-gateway"].map(str::to_owned).to_vec();
        let own = RunOptions { add_hosts: added, ..of_network(Network::Pasta) };
        let expected = format!("{LOCAL_HOSTS}127.0.1.1\tc\n::2\tsix\n192.0.2.1\tout\n");
        assert_eq!(hosts(&own, "c", "ignored", routes).expect("hosts"), expected);
        for bad in ["db", "db:x", "db:"] {
            let options = RunOptions { add_hosts: vec![bad.to_owned()], ..RunOptions::default() };
            assert!(hosts(&options, "c", "", routes).is_err(), "{bad}");
        }
    }
}
