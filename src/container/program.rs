//! Checks whether a container's program can be started. This comes before the runtime is called, because the runtime
//! would mix its message with the container's output and use its own exit code.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

use super::paths::{ContainerView, Place, reopen};
use super::users::Identity;
use crate::image::{ImageError, Result};

/// Longest first line of a script that the kernel reads (`BINPRM_BUF_SIZE`).
const HEAD: usize = 256;

/// The result of following a path in the container.
enum Leads {
    Program,
    Nowhere,
    Elsewhere(&'static str),
}

/// Checks the program `word` for a process with these ids. Searches it like execvp(3), in `path` (the variable's
/// value), from `working_dir`.
///
/// # Errors
/// [`ImageError::CannotRun`]
pub(super) fn check(
    view: &ContainerView<'_>,
    word: &str,
    path: &str,
    working_dir: &str,
    identity: &Identity,
) -> Result<()> {
    let cannot = |reason: &str, missing| {
        Err(ImageError::CannotRun { program: word.to_owned(), reason: reason.to_owned(), missing })
    };
    let candidates: Vec<PathBuf> = match word.contains('/') {
        true => vec![Path::new(working_dir).join(word)],
        false if word.is_empty() => Vec::new(),
        false => path.split(':').filter(|dir| !dir.is_empty()).map(|dir| Path::new(dir).join(word)).collect(),
    };
    let mut reason = None;
    for candidate in candidates {
        match leads(view, &candidate, identity)? {
            Leads::Program => return Ok(()),
            Leads::Nowhere => {}
            Leads::Elsewhere(why) => reason = Some(why),
        }
    }
    match reason {
        Some(MISSING_INTERPRETER) => cannot(MISSING_INTERPRETER, true),
        Some(reason) => cannot(reason, false),
        None if word.contains('/') => cannot("no such file in the image", true),
        None => cannot("not found on the image's PATH", true),
    }
}

/// For such a program the kernel reports ENOENT, as if the program itself did not exist.
const MISSING_INTERPRETER: &str = "its interpreter is not in the image";

/// Checks that the process can start in `working_dir`. A missing one is made by the runtime.
///
/// # Errors
/// [`ImageError::CannotRun`]
pub(super) fn check_working_dir(view: &ContainerView<'_>, working_dir: &str) -> Result<()> {
    let is_none = match view.resolve(Path::new(working_dir)) {
        Ok(Place::There(file, _)) => kind(&file)? != FileType::Directory,
        Ok(Place::Missing(_) | Place::Kernel) => false,
        Err(error) => error == Errno::NOTDIR,
    };
    match is_none {
        true => Err(ImageError::CannotRun {
            program: working_dir.to_owned(),
            reason: "is not a directory".to_owned(),
            missing: false,
        }),
        false => Ok(()),
    }
}

fn kind(file: &OwnedFd) -> Result<FileType> {
    let stat = fstat(file).map_err(|error| ImageError::refused("fstat", error))?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

fn leads(view: &ContainerView<'_>, path: &Path, identity: &Identity) -> Result<Leads> {
    let (file, place) = match view.resolve(path) {
        Ok(Place::There(file, place)) => (file, place),
        Ok(Place::Missing(_)) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Leads::Nowhere),
        // The runtime decides.
        Ok(Place::Kernel) => return Ok(Leads::Program),
        Err(error) => return Err(ImageError::refused(path.display().to_string(), error)),
    };
    let stat = fstat(&file).map_err(|error| ImageError::refused(path.display().to_string(), error))?;
    if !may_search(view, &place, identity) {
        return Ok(Leads::Elsewhere("this user may not search the directories that lead to it"));
    }
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if !may_execute(&stat, identity) => Leads::Elsewhere("is not executable"),
        FileType::RegularFile => match interpreter(&file) {
            Some(interpreter) if is_missing(view, &interpreter) => Leads::Elsewhere(MISSING_INTERPRETER),
            _ => Leads::Program,
        },
        FileType::Directory => Leads::Elsewhere("is a directory"),
        _ => Leads::Elsewhere("is no program"),
    })
}

/// True if the process may search every directory above a path without links. A privileged process may always.
fn may_search(view: &ContainerView<'_>, path: &Path, identity: &Identity) -> bool {
    let open = |dir: &Path| match view.resolve(dir) {
        Ok(Place::There(file, _)) => fstat(&file).is_ok_and(|stat| may_execute(&stat, identity)),
        _ => true,
    };
    identity.uid == 0 || path.ancestors().skip(1).all(open)
}

/// Judges by the permission bits only. Root needs one of them.
fn may_execute(stat: &rustix::fs::Stat, identity: &Identity) -> bool {
    let mask = if identity.uid == 0 {
        0o111
    } else if identity.uid == stat.st_uid {
        0o100
    } else if identity.gid == stat.st_gid || identity.additional_gids.contains(&stat.st_gid) {
        0o010
    } else {
        0o001
    };
    stat.st_mode & mask != 0
}

fn is_missing(view: &ContainerView<'_>, interpreter: &Path) -> bool {
    // A relative path would start from the working directory; such interpreters are not used in practice.
    interpreter.is_absolute()
        && matches!(view.resolve(interpreter), Ok(Place::Missing(_)) | Err(Errno::NOTDIR | Errno::LOOP))
}

/// The program that the kernel starts instead of this one: the interpreter of a script (execve(2), "Interpreter
/// scripts") or of a dynamically linked 64-bit ELF file (elf(5), `PT_INTERP`).
fn interpreter(file: &OwnedFd) -> Option<PathBuf> {
    let mut file = reopen(file).ok()?;
    let mut head = Vec::new();
    (&mut file).take(HEAD as u64).read_to_end(&mut head).ok()?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&b| b == b'\n').next()?;
        let word = line.split(|&b| b == b' ' || b == b'\t').find(|word| !word.is_empty())?;
        return Some(PathBuf::from(std::ffi::OsStr::from_bytes(word)));
    }
    const LITTLE_ENDIAN_64: &[u8] = b"\x7fELF\x02\x01";
    if !head.starts_with(LITTLE_ENDIAN_64) {
        return None;
    }
    let number = |bytes: &[u8], at: usize, size: usize| -> Option<u64> {
        Some(bytes.get(at..at + size)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let (table, size, count) = (number(&head, 32, 8)?, number(&head, 54, 2)?, number(&head, 56, 2)?);
    for entry in 0..count {
        let mut header = [0; 56];
        file.read_exact_at(&mut header, table.checked_add(entry * size)?).ok()?;
        const PT_INTERP: u64 = 3;
        if number(&header, 0, 4)? == PT_INTERP {
            let mut name = vec![0; usize::try_from(number(&header, 32, 8)?.min(4096)).ok()?];
            file.read_exact_at(&mut name, number(&header, 8, 8)?).ok()?;
            let name = name.split(|&b| b == 0).next()?;
            return Some(PathBuf::from(std::ffi::OsStr::from_bytes(name)));
        }
    }
    None
}
