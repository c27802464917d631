//! The second process, which serves the mount, and what the first one does meanwhile.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;

use rustix::process::{Pid, Signal, WaitOptions};
use stratafs::sys::descriptors::InheritedDescriptors;
use stratafs::sys::fork::{Forked, fork};
use stratafs::sys::forward;

use crate::{Failure, Order, reason};

/// What the daemon writes to the pipe when the mount answers. Anything else is an exit code and a message.
const READY: &[u8] = b"ready";

/// Serves in a second process; returns when the mount answers.
pub fn start(order: &Order, inherited: InheritedDescriptors) -> Result<Pid, Failure> {
    let cannot = |error: io::Error| Failure::new(format!("cannot start the daemon: {error}"));
    let (mut news, report) = io::pipe().map_err(cannot)?;
    match fork().map_err(cannot)? {
        Forked::Child => {
            drop(news);
            serve_as_daemon(order, inherited, report);
        }
        Forked::Parent(daemon) => {
            drop(report);
            let mut said = Vec::new();
            news.read_to_end(&mut said).map_err(cannot)?;
            match said.split_first() {
                Some(_) if said == READY => Ok(daemon),
                Some((&code, message)) => Err(Failure { code, message: String::from_utf8_lossy(message).into_owned() }),
                None => Err(Failure::new("the daemon ended before the mount was ready")),
            }
        }
    }
}

/// Runs a command beside the daemon that serves the mount, and unmounts after it. The exit code is the command's, as in a
/// shell: 128 plus the number of the signal that killed it, 127 if there is no such program, 126 if it cannot be run.
pub fn attend(daemon: Pid, program: &OsStr, words: &[OsString]) -> Result<ExitCode, Failure> {
    let run = || -> io::Result<std::process::ExitStatus> {
        forward::hold()?;
        let mut child = std::process::Command::new(program).args(words).spawn()?;
        let _forwarding = forward::forward_to(child.id(), true)?;
        child.wait()
    };
    let status = run();
    let ended = rustix::process::kill_process(daemon, Signal::TERM)
        .and_then(|()| rustix::process::waitpid(Some(daemon), WaitOptions::empty()));
    match status {
        Ok(status) => {
            match ended {
                Ok(Some((_, how))) if how.exit_status() == Some(0) => {}
                Ok(_) => return Err(Failure::new("the mount did not end well")),
                Err(errno) => return Err(Failure::new(format!("cannot end the mount: {errno}"))),
            }
            let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
            Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
        }
        Err(error) => {
            let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            Err(Failure { code, message: format!("{}: {}", program.display(), reason(&error)) })
        }
    }
}

/// The daemon's main function.
fn serve_as_daemon(order: &Order, inherited: InheritedDescriptors, report: io::PipeWriter) -> ! {
    let mut report = Some(report);
    let outcome = rustix::process::setsid()
        .map_err(|error| Failure::new(format!("cannot leave the session: {error}")))
        .and_then(|_| {
            order.serve(|| {
                detach().map_err(|error| Failure::new(format!("cannot detach: {error}")))?;
                inherited.close();
                // The caller reads to the end, so the pipe must be closed here.
                let told = report.take().map_or(Ok(()), |mut report| report.write_all(READY));
                told.map_err(|error| Failure::new(format!("the caller has gone: {error}")))
            })
        });
    let code = match outcome {
        Ok(()) => 0,
        Err(Failure { code, message }) => {
            match report {
                // If the caller is gone too, there is no place for the message.
                Some(mut report) => report.write_all(&[&[code], message.as_bytes()].concat()).unwrap_or(()),
                None => tracing::error!("{message}"),
            }
            code
        }
    };
    std::process::exit(code.into())
}

/// Leaves the caller's directory and closes its stdin, stdout and stderr: the caller may wait for their end.
fn detach() -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}
