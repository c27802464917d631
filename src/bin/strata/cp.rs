//! `cp`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use stratafs::container::checkpoint::split_name;
use stratafs::container::copy::{Copied, CopyOptions, OpenRoot, Root, Source, Target};
use stratafs::container::{Container, refuse_if_interrupted};
use stratafs::store::Store;
use stratafs::sys::forward;

use super::args::Cp;
use super::output::{size, tell};

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    /// A path of this machine.
    Host(&'a Path),
    /// A path of a container, or of a checkpoint.
    Container { name: &'a str, path: &'a Path },
    /// A tar stream.
    Stream,
}

impl<'a> Side<'a> {
    /// docker's rule: a word that begins with `/` or `.` or has no colon is a path of this machine.
    fn of(word: &'a OsStr) -> Self {
        let bytes = word.as_bytes();
        if bytes == b"-" {
            return Self::Stream;
        }
        let named = || {
            let colon = bytes.iter().position(|&byte| byte == b':').filter(|&at| at > 0)?;
            let name = std::str::from_utf8(bytes.get(..colon)?).ok()?;
            Some((name, Path::new(OsStr::from_bytes(bytes.get(colon + 1..)?))))
        };
        match named() {
            Some((name, path)) if !name.starts_with(['/', '.']) => Self::Container { name, path },
            _ => Self::Host(Path::new(word)),
        }
    }
}

/// Standard input; reads fail once a signal has asked this process to end.
struct UntilInterrupted(File);

impl Read for UntilInterrupted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let moment = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        loop {
            refuse_if_interrupted().map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&moment)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.0.read(buffer),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn open<'s>(store: &'s Store, name: &str) -> Result<OpenRoot<'s>> {
    let (name, checkpoint) = split_name(name);
    Ok(Container::open(store, name)?.open_root(store, checkpoint)?)
}

/// Calls `work` with the tree of a container.
fn in_container(store: &Store, name: &str, work: impl FnOnce(&Root) -> Result<Copied>) -> Result<Copied> {
    let opened = open(store, name)?;
    let outcome = work(opened.root()?);
    let closed = opened.close();
    // A failure that an interrupt caused is reported as an interrupt.
    let outcome = outcome.map_err(|error| refuse_if_interrupted().err().map_or(error, Into::into))?;
    closed?;
    Ok(outcome)
}

fn refuse_checkpoint(name: &str) -> Result<()> {
    match split_name(name) {
        (_, None) => Ok(()),
        (container, Some(_)) => bail!("{name}: a checkpoint does not change; copy into {container}, or fork it"),
    }
}

pub fn run(store: &Store, args: &Cp) -> Result<()> {
    forward::hold().context("signals")?;
    let options = CopyOptions { archive: args.archive };
    let copied =
        match (Side::of(&args.source), Side::of(&args.destination)) {
            (Side::Container { name, path }, Side::Host(to)) => {
                // Found before this process enters the container's namespace, which may lack newer mounts.
                let host = Root::host()?;
                let target = Target::find(&host, to)?;
                in_container(store, name, |root| {
                    Ok(Source::find(root, path, args.follow_link)?.copy_to(&target, options)?)
                })?
            }
            (Side::Host(from), Side::Container { name, path }) => {
                refuse_checkpoint(name)?;
                let source = Source::find(&Root::host()?, from, args.follow_link)?;
                in_container(store, name, |root| Ok(source.copy_to(&Target::find(root, path)?, options)?))?
            }
            (Side::Container { name, path }, Side::Stream) => in_container(store, name, |root| {
                let source = Source::find(root, path, args.follow_link)?;
                let mut copied = Copied::default();
                super::archives::write_to(None, &mut |out| {
                    copied = source.write_tar(out)?;
                    Ok(())
                })?;
                Ok(copied)
            })?,
            (Side::Stream, Side::Container { name, path }) => {
                refuse_checkpoint(name)?;
                let stdin = io::stdin();
                if stdin.is_terminal() {
                    bail!("nothing to copy: give a tar stream on standard input");
                }
                let mut input = UntilInterrupted(File::from(stdin.as_fd().try_clone_to_owned()?));
                in_container(store, name, |root| Ok(Target::find(root, path)?.extract(&mut input, options)?))?
            }
            (Side::Container { name, path }, Side::Container { name: to, path: target }) => {
                between(store, (name, path), (to, target), args)?
            }
            _ => bail!("one of the two paths must be in a container: CONTAINER:PATH"),
        };
    for warning in &copied.warnings {
        tracing::warn!("{warning}");
    }
    if !args.quiet && io::stderr().is_terminal() {
        let to = args.destination.display();
        tell(&format!("Successfully copied {} to {to}", size(copied.bytes)));
    }
    Ok(())
}

/// From one container to another, which docker refuses.
fn between(store: &Store, (from, path): (&str, &Path), (to, target): (&str, &Path), args: &Cp) -> Result<Copied> {
    refuse_checkpoint(to)?;
    let options = CopyOptions { archive: args.archive };
    let copy = |source: &Root, root: &Root| -> Result<Copied> {
        let source = Source::find(source, path, args.follow_link)?;
        Ok(source.copy_to(&Target::find(root, target)?, options)?)
    };
    let is_same = Container::open(store, split_name(from).0)?.dir() == Container::open(store, to)?.dir();
    if is_same && split_name(from).1.is_none() {
        return in_container(store, to, |root| copy(root, root));
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "two containers of a user live in namespaces of their own; \
             strata cp {from}:{} - | strata cp - {to}:DIRECTORY",
            path.display()
        );
    }
    let source = open(store, from)?;
    let copied = in_container(store, to, |root| copy(source.root()?, root));
    let closed = source.close();
    let copied = copied?;
    closed?;
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides() {
        let container = |name, path| Side::Container { name, path: Path::new(path) };
        for (word, expected) in [
            ("web:/etc/passwd", container("web", "/etc/passwd")),
            ("web:", container("web", "")),
            ("web@cp:a:b", container("web@cp", "a:b")),
            ("./file:name.txt", Side::Host(Path::new("./file:name.txt"))),
            ("/path/to/file:name.txt", Side::Host(Path::new("/path/to/file:name.txt"))),
            ("file", Side::Host(Path::new("file"))),
            (":file", Side::Host(Path::new(":file"))),
            ("-", Side::Stream),
        ] {
            assert_eq!(Side::of(OsStr::new(word)), expected, "{word}");
        }
    }
}
