//! The destination of an archive's files: a tar or a directory.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::image::files::{make_dir, sync_dir};
use crate::image::{ImageError, IoContext, Result};
use crate::tar::Attributes;
use crate::tar::write::{self, EntryType};

/// The destination of an archive.
pub enum Target<'a> {
    /// A file, or for [`crate::store::save::Format::OciDirectory`] a directory. It appears when it is complete.
    Path(&'a Path),
    /// A stream, and its name in messages.
    Stream(&'a mut dyn Write, &'a str),
}

/// Writes the contents of one file.
pub(super) type Fill<'f> = dyn FnMut(&mut dyn Write) -> Result<()> + 'f;

pub(super) trait Sink {
    fn directory(&mut self, name: &str) -> Result<()>;
    fn file(&mut self, name: &str, size: u64, fill: &mut Fill<'_>) -> Result<()>;
}

/// Writes all files.
pub(super) type Contents<'f> = dyn FnMut(&mut dyn Sink) -> Result<()> + 'f;

pub(super) struct Tar<'w> {
    out: &'w mut dyn Write,
    name: &'w str,
}

impl Tar<'_> {
    pub(super) fn write(target: Target<'_>, contents: &mut Contents<'_>) -> Result<()> {
        let path = match target {
            Target::Stream(out, name) => return Self::write_stream(out, name, contents),
            Target::Path(path) => path,
        };
        let name = path.display().to_string();
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let mut device = File::options().write(true).open(path).at(path)?;
            return Self::write_stream(&mut device, &name, contents);
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::metadata(dir).at(dir)?;
        let mut file = tempfile::Builder::new()
            .prefix(".strata-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(dir)
            .at(path)?;
        Self::write_stream(&mut file, &name, contents)?;
        file.as_file().sync_all().at(path)?;
        file.persist(path).map_err(|error| error.error).at(path)?;
        sync_dir(dir)
    }

    fn write_stream(out: &mut dyn Write, name: &str, contents: &mut Contents<'_>) -> Result<()> {
        let mut out = BufWriter::with_capacity(1 << 18, out);
        contents(&mut Tar { out: &mut out, name })?;
        write::end(&mut out).at(name)?;
        out.flush().at(name)
    }

    fn header(&mut self, name: &str, kind: EntryType<'_>, mode: u32) -> Result<()> {
        write::header(self.out, name.as_bytes(), kind, &Attributes { mode, ..Attributes::default() }).at(self.name)
    }
}

impl Sink for Tar<'_> {
    fn directory(&mut self, name: &str) -> Result<()> {
        self.header(&format!("{name}/"), EntryType::Directory, 0o755)
    }

    fn file(&mut self, name: &str, size: u64, fill: &mut Fill<'_>) -> Result<()> {
        self.header(name, EntryType::File(size), 0o644)?;
        let mut exact = Exact { out: self.out, left: size };
        fill(&mut exact)?;
        exact.finish(name)?;
        write::pad(self.out, size).at(self.name)
    }
}

pub(super) struct Directory<'p> {
    path: &'p Path,
}

impl Directory<'_> {
    pub(super) fn write(target: Target<'_>, contents: &mut Contents<'_>) -> Result<()> {
        let Target::Path(path) = target else {
            return Err(ImageError::refused("save", "a directory cannot be written to a stream; give -o DIR"));
        };
        if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) || path.is_file() {
            return Err(ImageError::refused(path.display().to_string(), "exists and is not an empty directory"));
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::metadata(dir).at(dir)?;
        let stage = tempfile::Builder::new().prefix(".strata-").tempdir_in(dir).at(path)?;
        contents(&mut Directory { path: stage.path() })?;
        rustix::fs::syncfs(File::open(stage.path()).at(path)?).at(path)?;
        fs::set_permissions(stage.path(), Permissions::from_mode(0o755)).at(path)?;
        fs::rename(stage.keep(), path).at(path)?;
        sync_dir(dir)
    }
}

impl Sink for Directory<'_> {
    fn directory(&mut self, name: &str) -> Result<()> {
        make_dir(&self.path.join(name), 0o755)
    }

    fn file(&mut self, name: &str, size: u64, fill: &mut Fill<'_>) -> Result<()> {
        let path = self.path.join(name);
        let mut out = BufWriter::with_capacity(1 << 18, File::create(&path).at(&path)?);
        let mut exact = Exact { out: &mut out, left: size };
        fill(&mut exact)?;
        exact.finish(name)?;
        out.flush().at(&path)
    }
}

/// Passes exactly the announced number of bytes.
struct Exact<'w> {
    out: &'w mut dyn Write,
    left: u64,
}

impl Exact<'_> {
    fn finish(self, name: &str) -> Result<()> {
        match self.left {
            0 => Ok(()),
            left => Err(ImageError::archive(name, format!("is {left} bytes shorter than it should be"))),
        }
    }
}

impl Write for Exact<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(bytes.len() as u64);
        let left = left.ok_or_else(|| io::Error::other("is longer than it should be"))?;
        self.out.write_all(bytes)?;
        self.left = left;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
