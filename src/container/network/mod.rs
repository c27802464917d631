//! The network of a container: the host's, none, or a separate one that pasta(1) connects with the host's. pasta needs
//! no privilege, so the network is the same for root and for users.

mod files;
mod ports;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::Pid;

pub use ports::{Port, Protocol};

use super::bundle::Network;
use super::runtime::in_path;
use super::state::ProcessId;
use super::{Container, Runtime};
use crate::image::{ImageError, IoContext, Result};
use crate::store::Store;

/// The address for a container's name queries if the host's own resolver listens only on the host's loopback. It is
/// link-local and unassigned.
const FORWARDED_RESOLVER: &str = "169.254.1.1";

/// The name that stands for the host in `--add-host NAME:host-gateway`.
const HOST: &str = "host-gateway";

/// The program.
///
/// # Errors
/// When it is not installed.
fn pasta() -> Result<PathBuf> {
    in_path("pasta").ok_or_else(|| {
        ImageError::refused("pasta", "not found, and a network of the container's own needs it; apt-get install passt")
    })
}

impl Container {
    /// The ports to publish, each with a host port number. With `-P`, the ports that the image exposes are included.
    ///
    /// # Errors
    /// When one of them is taken.
    pub(super) fn settled_ports(&self, store: &Store) -> Result<Vec<Port>> {
        let options = &self.record.options;
        if options.network != Network::Pasta {
            return Ok(Vec::new());
        }
        pasta()?;
        let mut ports = options.ports.clone();
        if options.publish_all {
            let config = self.config(store)?;
            let exposed = config.document().get("config").and_then(|config| config.get("ExposedPorts"));
            let names = exposed.and_then(|ports| ports.as_object()).into_iter().flat_map(|ports| ports.keys());
            let wanted = names.chain(&options.expose).flat_map(|name| Port::exposed(name));
            for port in wanted {
                let same = |other: &Port| (other.container, other.protocol) == (port.container, port.protocol);
                if !ports.iter().any(same) {
                    ports.push(port);
                }
            }
        }
        ports.iter().map(Port::settled).collect()
    }

    /// Connects the network of the process `pid` with the host's; returns the process that does so.
    ///
    /// # Errors
    /// When pasta fails.
    pub(super) fn connect(&self, runtime: &Runtime, pid: Pid, ports: &[Port]) -> Result<Option<ProcessId>> {
        let options = &self.record.options;
        if options.network != Network::Pasta {
            return Ok(None);
        }
        let (place, pid_file) =
            (runtime.state_dir().join(format!("{}.net", self.runtime_id())), self.dir.join("pasta.pid"));
        let log = self.dir.join("pasta.log");
        File::create(&place).at(&place)?;
        // pasta may open this name after dropping its capabilities, unlike /proc/PID/ns/net.
        let namespace = format!("/proc/{}/ns/net", pid.as_raw_nonzero());
        mount_bind(&namespace, &place).at(&namespace)?;
        let mut command = Command::new(pasta()?);
        command.current_dir("/").args(["--config-net", "--netns-only", "--no-netns-quit", "--netns"]).arg(&place);
        command.arg("--pid").arg(&pid_file).args(["--quiet", "--tcp-ns", "none", "--udp-ns", "none"]);
        if rustix::process::geteuid().is_root() && !self.record.rootless {
            // Otherwise it would become `nobody`, which may not open the namespace.
            command.args(["--runas", "0"]);
        }
        if !options.add_hosts.iter().any(|host| host.ends_with(&format!(":{HOST}"))) {
            command.arg("--no-map-gw");
        }
        if files::forwards_names(options) {
            command.args(["--dns-forward", FORWARDED_RESOLVER]);
        }
        for (option, protocol) in [("--tcp-ports", Protocol::Tcp), ("--udp-ports", Protocol::Udp)] {
            let mut forwarded: Vec<String> =
                ports.iter().filter(|port| port.protocol == protocol).map(Port::forwarded).collect();
            if forwarded.is_empty() {
                forwarded.push("none".to_owned());
            }
            command.args(forwarded.iter().flat_map(|port| [option, port.as_str()]));
        }
        let output = File::create(&log).at(&log)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        // pasta goes into the background once the network is there.
        let status = command.status().at("pasta");
        unmount(&place, UnmountFlags::DETACH).at(&place)?;
        fs::remove_file(&place).at(&place)?;
        if !status?.success() {
            return Err(ImageError::refused("pasta", complaint(&log)));
        }
        let text = fs::read_to_string(&pid_file).at(&pid_file)?;
        Ok(text.trim().parse().ok().and_then(Pid::from_raw).and_then(ProcessId::of))
    }
}

/// pasta's error message. pasta also writes to the system's log, and complains if there is none.
fn complaint(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.contains("to syslog")).collect();
    if lines.is_empty() { "failed".to_owned() } else { lines.join("; ") }
}
