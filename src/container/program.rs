//! Whether a container's program can be started at all: told before the runtime is, which would say it in the middle
//! of the container's own output.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;

use crate::confined;
use crate::image::{ImageError, Result};

/// What a path leads to in the container.
enum Leads {
    Program,
    Nowhere,
    Elsewhere(&'static str),
}

/// Checks the program `word` as execvp(3) would find it, on `path` (the variable's value), from `working_dir`.
/// What lies below the destinations of `volumes` is not in the image and is left to the runtime.
///
/// # Errors
/// [`ImageError::CannotRun`]
pub(super) fn check(root: impl AsFd, word: &str, path: &str, working_dir: &str, volumes: &[PathBuf]) -> Result<()> {
    let cannot = |reason: &str, missing| {
        Err(ImageError::CannotRun { program: word.to_owned(), reason: reason.to_owned(), missing })
    };
    let candidates: Vec<PathBuf> = match word.contains('/') {
        true => vec![Path::new(working_dir).join(word)],
        false => path.split(':').filter(|dir| !dir.is_empty()).map(|dir| Path::new(dir).join(word)).collect(),
    };
    let mut reason = None;
    for candidate in candidates {
        if volumes.iter().any(|volume| candidate.starts_with(volume)) {
            return Ok(());
        }
        match leads(&root, &candidate)? {
            Leads::Program => return Ok(()),
            Leads::Nowhere => {}
            Leads::Elsewhere(why) => reason = Some(why),
        }
    }
    match reason {
        Some(reason) => cannot(reason, false),
        None if word.contains('/') => cannot("no such file in the image", true),
        None => cannot("not found on the image's PATH", true),
    }
}

/// Checks that the process can start in `working_dir`; the runtime makes one that is not there.
///
/// # Errors
/// [`ImageError::CannotRun`]
pub(super) fn check_working_dir(root: impl AsFd, working_dir: &str) -> Result<()> {
    match open(&root, Path::new(working_dir), OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOTDIR) => Err(ImageError::CannotRun {
            program: working_dir.to_owned(),
            reason: "is no directory to start in".to_owned(),
            missing: false,
        }),
        _ => Ok(()),
    }
}

fn leads(root: impl AsFd, path: &Path) -> Result<Leads> {
    match open(root, path, OFlags::PATH) {
        Ok(file) => {
            let stat = fstat(&file).map_err(|error| ImageError::refused(path.display().to_string(), error))?;
            Ok(match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile if stat.st_mode & 0o111 != 0 => Leads::Program,
                FileType::RegularFile => Leads::Elsewhere("is not executable"),
                FileType::Directory => Leads::Elsewhere("is a directory"),
                _ => Leads::Elsewhere("is no program"),
            })
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Leads::Nowhere),
        Err(error) => Err(ImageError::refused(path.display().to_string(), error)),
    }
}

fn open(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<std::os::fd::OwnedFd> {
    confined::in_root(root.as_fd(), path.as_os_str().as_bytes(), flags)
}
