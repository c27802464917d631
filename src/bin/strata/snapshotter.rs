//! `strata snapshotter`: serves containerd until a signal ends it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use stratafs::snapshotter::{Options, Server, Snapshotter, default_address};
use stratafs::sys::signals::SignalQueue;

/// Keep containerd's snapshots: its images and containers are mounted by stratafs
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata snapshotter\n  strata snapshotter --address /run/s.sock --dir /srv/snapshots\n\nAnswers containerd until SIGTERM. In /etc/containerd/config.toml:\n  [proxy_plugins.stratafs]\n    type = \"snapshot\"\n    address = \"/run/stratafs-snapshotter/snapshotter.sock\"\n    capabilities = [\"remap-ids\"]\n    exports = { root = \"/var/lib/stratafs-snapshotter\" }"
)]
pub struct Arguments {
    /// The Unix socket to listen on [default: /run/stratafs-snapshotter/snapshotter.sock for root]
    #[arg(long, value_name = "SOCKET")]
    address: Option<PathBuf>,
    /// The directory to keep snapshots in [default: /var/lib/stratafs-snapshotter for root]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Commit layers before they have reached the disk
    #[arg(long)]
    no_sync: bool,
}

/// Signals that end it. Running calls are finished first.
const ENDING: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

pub fn run(arguments: &Arguments) -> Result<()> {
    let address = arguments.address.clone().or_else(default_address);
    let address = address.context("XDG_RUNTIME_DIR is not set; give --address")?;
    let root = arguments.dir.clone().or_else(Options::default_root);
    let root = root.context("neither XDG_DATA_HOME nor HOME is set; give --dir")?;
    // No other user needs the socket, the database or the directories.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // Before the first thread is started, because all threads must block these signals.
    let signals = SignalQueue::new(&ENDING).context("signals")?;
    let snapshotter = Snapshotter::open(&Options { root: root.clone(), sync: !arguments.no_sync })?;
    let server = Server::bind(&address)?;
    tracing::info!("snapshots in {}, answering on {}", root.display(), address.display());
    let wait = move || {
        if let Err(error) = signals.next() {
            tracing::error!("signals: {error}");
        }
    };
    server.serve(Arc::new(snapshotter), wait).context("snapshotter")
}
