//! The state of a container, in docker's words.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use stratafs::container::network::Port;
use stratafs::container::{Container, State, Status};
use stratafs::image::time::Timestamp;

use super::output::tell;

/// The state of a container.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// docker's `created`, `running`, `paused` or `exited`; or `mounted` (mounted, but not running), `stopped` (its end
    /// was not recorded) or `unknown`.
    pub state: String,
    /// The state as a phrase: `Up 2 minutes`.
    pub status: String,
    /// Its first process; 0 if it does not run.
    pub pid: i32,
    /// Its exit code, if it ran and the code is known.
    pub exit_code: Option<u8>,
    pub started: Option<Timestamp>,
    pub finished: Option<Timestamp>,
    /// Published ports in docker's form: `0.0.0.0:8888->80/tcp`.
    pub ports: String,
    /// The same ports, one by one.
    pub published: Vec<Port>,
    /// The kernel killed a process in it for lack of memory.
    pub oom_killed: bool,
    /// Why the last start failed.
    pub error: String,
}

impl Condition {
    pub fn of(container: &Container) -> Self {
        Self::known(container).unwrap_or_else(|error| {
            tell(&format!("strata: {}: {error}", container.name()));
            Self { state: "unknown".to_owned(), status: "Unknown".to_owned(), ..Self::default() }
        })
    }

    fn known(container: &Container) -> stratafs::image::Result<Self> {
        let state = container.state()?;
        let status = container.status_of(&state)?;
        let time = |text: &Option<String>| text.as_deref().and_then(Timestamp::parse);
        let (started, finished) = (time(&state.started), time(&state.finished));
        let now = Timestamp::now();
        let up = || {
            let ago = started.map(|time| time.ago(now)).unwrap_or_default();
            format!("Up {}", ago.trim_end_matches(" ago"))
        };
        let text = match (status, state.exit_code) {
            (Status::Created, _) => "Created".to_owned(),
            (Status::Mounted, _) => "Mounted".to_owned(),
            (Status::Running, _) => up(),
            (Status::Paused, _) => format!("{} (Paused)", up()),
            (Status::Exited, Some(code)) => {
                let ago = finished.map(|time| time.ago(now)).unwrap_or_default();
                format!("Exited ({code}) {ago}")
            }
            (Status::Exited, None) => "Exited".to_owned(),
            (Status::Stopped, _) => "Stopped".to_owned(),
        };
        let runs = status.is_running();
        Ok(Self {
            state: status.word().to_owned(),
            status: text.trim_end().to_owned(),
            pid: state.process.as_ref().filter(|_| runs).map_or(0, |process| process.pid),
            exit_code: state.exit_code.filter(|_| !runs),
            started,
            finished: finished.filter(|_| !runs),
            ports: if runs { ports(&state) } else { String::new() },
            published: if runs { state.ports } else { Vec::new() },
            oom_killed: state.oom_killed,
            error: state.error.unwrap_or_default(),
        })
    }

    /// True if `ps` shows it without `-a`.
    pub fn is_up(&self) -> bool {
        !matches!(self.state.as_str(), "exited" | "stopped" | "created")
    }
}

fn ports(state: &State) -> String {
    let published = state.ports.iter().map(|port| {
        let host = SocketAddr::new(port.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port.host);
        format!("{host}->{}/{}", port.container, port.protocol.word())
    });
    published.collect::<Vec<_>>().join(", ")
}
