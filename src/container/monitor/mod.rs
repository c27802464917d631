//! The process that watches a container. It starts the container, transfers its streams ([`relay`]), records its end and
//! cleans up. It has its own session, and outlives the process that started it.
//!
//! It talks to its clients in [`frames`]: to the client that started it through a pair of sockets, to others through the
//! socket `attach` in the container's directory.

mod frames;
mod log;
mod relay;
mod streams;
mod visit;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, set_child_subreaper, waitpid,
};

pub use log::LogLine;
pub use visit::Visit;

pub(super) use frames::{Decoder, Frame, Stream};

use self::log::Log;
use self::relay::Relay;
use self::streams::Streams;
use super::locks::RunLock;
use super::state::{Phase, ProcessId, State};
use super::{Container, Runtime, cgroup, finish, refuse_if_interrupted};
use crate::image::files::open_dir;
use crate::image::time::Timestamp;
use crate::image::{ImageError, IoContext, Result};
use crate::store::Store;
use crate::sys::forward;

/// How long clients may take to read a container's last output before it is cleaned up.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long clients other than the one that started it may take after that.
const FAREWELL: Duration = Duration::from_secs(5);

/// A container to watch, and the client to report to.
#[derive(Debug)]
pub struct Monitor<'s> {
    /// The store with the container.
    pub store: &'s Store,
    /// The runtime for it.
    pub runtime: &'s Runtime,
    /// The container, mounted and prepared.
    pub container: Container,
    /// The lock that marks it as ours.
    pub lock: RunLock,
    /// The client that started it.
    pub client: UnixStream,
    /// True if the client stays and gets the output.
    pub is_attached: bool,
    /// True if it never ran: if it does not start, nothing of it may stay.
    pub is_new: bool,
}

/// A running container.
struct Running {
    pid: Pid,
    /// Where to find out whether memory ran out.
    memory: Option<PathBuf>,
}

impl Monitor<'_> {
    /// Runs the container to its end and returns its exit code. If it cannot be started, tells the client and returns
    /// the code for that.
    ///
    /// # Errors
    /// When cleaning up fails.
    pub fn run(mut self) -> Result<u8> {
        let mut relay = Relay::default();
        let mut state = State {
            id: self.container.record.id.clone(),
            monitor: ProcessId::of(getpid()),
            phase: Phase::Created,
            ..State::default()
        };
        match self.start(&mut relay, &mut state) {
            Ok(running) => self.watch(relay, state, &running),
            Err(error) => self.give_up(relay, state, &error),
        }
    }

    fn start(&mut self, relay: &mut Relay, state: &mut State) -> Result<Running> {
        let container = &self.container;
        relay.serve_owner(self.client.try_clone().at("client")?, self.is_attached).at("client")?;
        relay.tell(&Frame::Ready);
        relay.listen(listen(container)?).at("attach")?;
        if !(self.is_attached && container.record.remove_at_exit || container.record.options.no_log) {
            let path = container.dir().join("log");
            relay.log_to(Log::open(&path).at(path)?);
        }
        set_child_subreaper(Some(getpid())).at("prctl")?;
        let pid = self.create(relay)?;
        let container = &self.container;
        let undo = |error| {
            let killed = self.runtime.delete(container, true);
            killed.err().into_iter().for_each(|error| tracing::warn!("{}: {error}", container.name()));
            error
        };
        self.launch(relay, state, pid).map_err(undo)?;
        Ok(Running { pid, memory: cgroup::directory(pid, "memory") })
    }

    /// Has the runtime make the container's first process, which waits to be started.
    fn create(&self, relay: &mut Relay) -> Result<Pid> {
        let options = &self.container.record.options;
        let mut streams = match options.terminal {
            true => Streams::terminal(relay)?,
            false => Streams::pipes(relay, options.interactive)?,
        };
        let console = streams.console.take();
        let stdio = [streams.input, streams.output, streams.error];
        let created = self.runtime.create(&self.container, stdio, console.as_ref().map(|console| console.path()));
        // All output so far is the runtime's.
        let told = relay.discard();
        let pid = created?.map_err(|status| self.runtime.refusal(&self.container, &told, status))?;
        if let Some(console) = console {
            relay.carry_terminal(console.receive()?).at("terminal")?;
        }
        Ok(pid)
    }

    fn launch(&self, relay: &mut Relay, state: &mut State, pid: Pid) -> Result<()> {
        // Takes the size of the client's terminal, and early input.
        relay.turn(None, Some(Duration::ZERO)).at("client")?;
        state.process = ProcessId::of(pid);
        state.phase = Phase::Running;
        state.started = Some(Timestamp::now().to_string());
        state.ports = self.container.settled_ports(self.store)?;
        state.network = self.container.connect(self.runtime, pid, &state.ports)?;
        refuse_if_interrupted()?;
        self.container.save_state(&self.lock, state)?;
        self.runtime.start(&self.container)?;
        relay.tell(&Frame::Started);
        Ok(())
    }

    /// Reports that it could not be started.
    fn give_up(self, mut relay: Relay, state: State, error: &ImageError) -> Result<u8> {
        disconnect(state.network.as_ref());
        let code = error.exit_code();
        if !self.is_new {
            let state = State {
                phase: Phase::Exited,
                process: None,
                network: None,
                ports: Vec::new(),
                exit_code: Some(code),
                error: Some(error.to_string()),
                finished: Some(Timestamp::now().to_string()),
                ..state
            };
            self.container.save_state(&self.lock, &state)?;
        }
        let Self { store, runtime, container, lock, is_new, .. } = self;
        let finished = finish(store, runtime, container.relocated(&lock), Some(lock), is_new);
        // Sent last: by now, nothing of it is left.
        relay.tell(&Frame::Failed(code, error.to_string()));
        relay.flush(Some(FAREWELL)).at("client")?;
        finished.map(|()| code)
    }

    fn watch(self, mut relay: Relay, state: State, running: &Running) -> Result<u8> {
        let forwarding = forward::forward_to(running.pid.as_raw_nonzero().get().unsigned_abs(), false).at("signals")?;
        let process = pidfd_open(running.pid, PidfdFlags::empty()).at("pidfd")?;
        while !relay.turn(Some(process.as_fd()), None).at("attach")? {}
        // Until the process is reaped, its number stays its own, so signals reach no other process.
        drop(forwarding);
        let code = reap(running.pid);
        let oom_killed = running.memory.as_deref().is_some_and(cgroup::ran_out_of_memory);
        relay.drain().at("attach")?;
        let container = self.container.relocated(&self.lock);
        let network = state.network.clone();
        let ended = State {
            phase: Phase::Exited,
            exit_code: Some(code),
            finished: Some(Timestamp::now().to_string()),
            oom_killed,
            process: None,
            network: None,
            ports: Vec::new(),
            ..state
        };
        let saved = container.save_state(&self.lock, &ended);
        relay.tell(&Frame::Exited(code));
        relay.flush(Some(LAST_WORDS)).at("attach")?;
        disconnect(network.as_ref());
        let Self { store, runtime, lock, .. } = self;
        let finished = finish(store, runtime, container, Some(lock), false);
        if let Err(error) = saved.as_ref().and(finished.as_ref()) {
            relay.tell(&Frame::Failed(error.exit_code(), error.to_string()));
        }
        relay.flush(Some(FAREWELL)).and_then(|()| relay.flush(None)).at("attach")?;
        saved.and(finished).map(|()| code)
    }
}

/// Ends the process that provides a container's network.
fn disconnect(network: Option<&ProcessId>) {
    if let Some(network) = network.and_then(ProcessId::alive)
        && let Err(error) = kill_process(network, Signal::TERM)
    {
        tracing::debug!("pasta: {error}");
    }
}

/// Reaps the container's first process, which this process inherited from the runtime; returns its exit code.
fn reap(pid: Pid) -> u8 {
    let low = |code: i32| u8::try_from(code & 0xff).unwrap_or(u8::MAX);
    match crate::store::retry_interrupted(|| waitpid(Some(pid), WaitOptions::empty())) {
        Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => low(code),
            (None, Some(signal)) => low(128 + signal),
            (None, None) => u8::MAX,
        },
        // The runtime passed it to another process.
        Ok(None) | Err(_) => u8::MAX,
    }
}

/// Makes the socket that clients connect to.
fn listen(container: &Container) -> Result<UnixListener> {
    let path = container.dir().join("attach");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).at(&path),
        _ => {}
    }
    let dir = open_dir(container.dir())?;
    // A socket's path may have at most 107 bytes.
    UnixListener::bind(format!("/proc/self/fd/{}/attach", dir.as_raw_fd())).at(path)
}
