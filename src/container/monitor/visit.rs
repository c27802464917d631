//! One more process with a terminal in a running container (`exec -t`). A process that outlives the client holds the
//! terminal: the client can detach, and the command goes on.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::process::{PidfdFlags, getpid, pidfd_open, set_child_subreaper};

use super::frames::Frame;
use super::relay::Relay;
use super::streams::Streams;
use super::{FAREWELL, reap};
use crate::container::attach::{Attachment, Attendance, DetachKeys, Ended};
use crate::container::bundle::RunOptions;
use crate::container::{Container, Runtime};
use crate::image::{ImageError, IoContext, Result};
use crate::sys::fork::{Forked, fork};
use crate::sys::forward;

/// What messages are about.
const PLACE: &str = "exec";

/// What is run, and in which container.
#[derive(Debug)]
pub struct Visit<'a> {
    /// The runtime that runs the container.
    pub runtime: &'a Runtime,
    /// A container that runs. This process is in its namespaces already.
    pub container: &'a Container,
    /// The process to start.
    pub options: &'a RunOptions,
}

impl Visit<'_> {
    /// Starts the process and connects this process's terminal with its terminal. To be called before the first
    /// thread is started.
    ///
    /// # Errors
    /// If the container does not run, or no second process can be made.
    pub fn run(&self, detach_keys: DetachKeys) -> Result<Ended> {
        let (mut attachment, theirs) = Attachment::pair()?;
        attachment.announce_size()?;
        match fork().at(PLACE)? {
            Forked::Child => {
                drop(attachment);
                let hosted = leave_terminal().and_then(|()| self.host(theirs.into()));
                std::process::exit(i32::from(hosted.is_err()));
            }
            Forked::Parent(host) => {
                drop(theirs);
                attachment.attend(&Attendance {
                    until_started: false,
                    input: self.options.interactive,
                    terminal: true,
                    hidden: [false; 2],
                    detach_keys,
                    signals_to: Some(host),
                })
            }
        }
    }

    /// Starts the process and passes its terminal's data on until it ends.
    fn host(&self, client: UnixStream) -> Result<()> {
        let mut relay = Relay::default();
        relay.serve_owner(client, true).at(PLACE)?;
        relay.tell(&Frame::Ready);
        let told = match self.carry(&mut relay) {
            Ok(code) => Frame::Exited(code),
            Err(error) => Frame::Failed(error.exit_code(), error.to_string()),
        };
        relay.tell(&told);
        relay.flush(Some(FAREWELL)).at(PLACE)
    }

    fn carry(&self, relay: &mut Relay) -> Result<u8> {
        set_child_subreaper(Some(getpid())).at("prctl")?;
        let Streams { error, console, .. } = Streams::terminal(relay)?;
        let console = console.ok_or_else(|| ImageError::refused(PLACE, "there is no socket for its terminal"))?;
        let started = self.runtime.exec_in_terminal(self.container, self.options, error, console.path());
        // Whatever was written by now is the runtime's.
        let said = relay.discard();
        let pid = started?.map_err(|status| self.runtime.refusal(self.container, &said, status))?;
        relay.carry_terminal(console.receive()?).at("terminal")?;
        // The size of the client's terminal, and what was typed already, are handled by the next rounds of the loop.
        relay.tell(&Frame::Started);
        let forwarding = forward::forward_to(pid.as_raw_nonzero().get().unsigned_abs(), false).at("signals")?;
        let process = pidfd_open(pid, PidfdFlags::empty()).at("pidfd")?;
        while !relay.turn(Some(process.as_fd()), None).at(PLACE)? {}
        drop(forwarding);
        let code = reap(pid);
        relay.drain().at(PLACE)?;
        Ok(code)
    }
}

/// Closes the client's terminal.
fn leave_terminal() -> Result<()> {
    rustix::process::setsid().at(PLACE)?;
    let null = File::options().read(true).write(true).open("/dev/null").at("/dev/null")?;
    rustix::stdio::dup2_stdin(&null).at(PLACE)?;
    rustix::stdio::dup2_stdout(&null).at(PLACE)?;
    rustix::stdio::dup2_stderr(&null).at(PLACE)
}
