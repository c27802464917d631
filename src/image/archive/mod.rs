//! The content of a docker-archive, an OCI archive or an OCI directory. This module never writes to a store.
//!
//! An archive in an uncompressed regular file is read in place: listing its images reads only tar headers and
//! documents. Anything else (a pipe, a compressed file) is spooled into a scratch directory, because its
//! members may come in any order.

mod docker;
mod legacy;
mod members;
mod oci;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FileType, OFlags, fstat};

use crate::confined;
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::error::{ImageError, IoContext, Result};
use crate::image::files::read_limited;
use crate::image::reference::Reference;
use crate::image::spec::{Descriptor, Platform};
use crate::tar::Limits;
use members::{Contents, Members};

/// An opened archive or image directory.
#[derive(Debug)]
pub struct Archive {
    name: String,
    limits: Limits,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    Directory(OwnedFd),
    Members(Members),
}

/// Where an archive comes from.
pub enum ArchiveInput<'a> {
    /// A file or a directory.
    Path(&'a Path),
    /// A stream, and its name in messages.
    Stream(&'a mut dyn Read, &'a str),
}

/// How an archive that cannot be read in place is spooled.
pub struct Spooling<'a> {
    /// The directory for the spool.
    pub scratch: &'a Path,
    /// True for members that are skipped, and then cannot be opened.
    pub skip: &'a dyn Fn(&str) -> bool,
    /// How large a compressed archive may become.
    pub limits: &'a Limits,
}

/// An image in an archive.
#[derive(Debug)]
pub struct FoundImage {
    /// Its names; unusable ones are left out.
    pub names: Vec<Reference>,
    /// Its configuration.
    pub config: ImageConfig,
    /// Its layers, the lowest first; as many as the configuration's diff ids.
    pub layers: Vec<FoundLayer>,
    /// Its manifest, in OCI layouts.
    pub manifest: Option<Vec<u8>>,
}

/// A layer in an archive.
#[derive(Debug)]
pub struct FoundLayer {
    /// Name of the archive's member.
    pub member: String,
    /// The digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The descriptor of the member, if there is a manifest.
    pub descriptor: Option<Descriptor>,
}

/// A member of an archive, read from its beginning.
pub struct MemberReader<'a> {
    file: MemberFile<'a>,
    position: u64,
    end: u64,
    /// For sparse members: the segment at or after the position, and the stored bytes before it.
    segment: usize,
    stored: u64,
}

enum MemberFile<'a> {
    /// A part of the archive or its spool.
    Part(&'a File, &'a Contents),
    /// A file of a directory.
    Whole(File, u64),
}

impl<'a> MemberReader<'a> {
    fn new(file: MemberFile<'a>) -> Self {
        let end = match &file {
            MemberFile::Part(_, contents) => contents.size,
            MemberFile::Whole(_, size) => *size,
        };
        Self { file, position: 0, end, segment: 0, stored: 0 }
    }

    /// Number of remaining bytes.
    pub(crate) fn remaining(&self) -> u64 {
        self.end - self.position
    }

    /// Where the next bytes are stored (`None` in a hole), and how many are stored together there.
    fn run(&mut self) -> (Option<u64>, u64) {
        let MemberFile::Part(_, contents) = &self.file else { return (Some(self.position), self.remaining()) };
        while let Some(segment) = contents.segments.get(self.segment) {
            if self.position < segment.offset {
                return (None, segment.offset - self.position);
            }
            let into = self.position - segment.offset;
            if into < segment.len {
                return (Some(contents.offset + self.stored + into), segment.len - into);
            }
            self.stored += segment.len;
            self.segment += 1;
        }
        (None, self.remaining())
    }
}

impl Read for MemberReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (at, len) = self.run();
        let wanted = buffer.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..wanted];
        let file = match &self.file {
            MemberFile::Part(file, _) => file,
            MemberFile::Whole(file, _) => file,
        };
        let count = match at {
            Some(at) => file.read_at(buffer, at)?,
            None => {
                buffer.fill(0);
                wanted
            }
        };
        if count == 0 && wanted != 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends too early"));
        }
        self.position += count as u64;
        Ok(count)
    }
}

impl Archive {
    /// Opens the archive or image directory `path` with the default limits. A compressed archive is inflated into a temporary
    /// file in [`std::env::temp_dir`].
    ///
    /// ```
    /// # use stratafs::image::archive::Archive;
    /// let error = Archive::open_file("/no/such/image.tar".as_ref()).unwrap_err();
    /// assert_eq!(error.to_string(), "/no/such/image.tar: No such file or directory (os error 2)");
    /// ```
    ///
    /// # Errors
    /// Those of [`Archive::open`].
    pub fn open_file(path: &Path) -> Result<Self> {
        let scratch = std::env::temp_dir();
        let spooling = Spooling { scratch: &scratch, skip: &|_| false, limits: &Limits::default() };
        Self::open(ArchiveInput::Path(path), &spooling)
    }

    /// Opens an archive.
    ///
    /// # Errors
    /// When it cannot be read, or is neither a tar, nor a compressed tar, nor a directory.
    pub fn open(source: ArchiveInput<'_>, spooling: &Spooling<'_>) -> Result<Self> {
        let limits = spooling.limits.clone();
        match source {
            ArchiveInput::Path(path) => {
                let name = path.display().to_string();
                let file = File::open(path).at(path)?;
                let backing = match FileType::from_raw_mode(fstat(&file).at(path)?.st_mode) {
                    FileType::Directory => Backing::Directory(file.into()),
                    FileType::RegularFile => Backing::Members(Members::of_file(&name, file, spooling)?),
                    _ => Backing::Members(Members::of_stream(&name, &mut &file, spooling)?),
                };
                Ok(Self { name, limits, backing })
            }
            ArchiveInput::Stream(stream, name) => {
                let backing = Backing::Members(Members::of_stream(name, stream, spooling)?);
                Ok(Self { name: name.to_owned(), limits, backing })
            }
        }
    }

    /// The images that it holds. If an index has several platforms, the image for `platform` is chosen; by
    /// default this machine's. With `prefer_manifests`, the original manifests are used if the archive describes
    /// its images in both ways.
    ///
    /// # Errors
    /// When it holds no image, or a document is malformed or does not match its digest.
    pub fn images(&self, platform: Option<&Platform>, prefer_manifests: bool) -> Result<Vec<FoundImage>> {
        let is_docker = self.has("manifest.json")?;
        let is_layout = self.has("index.json")?;
        let images = if is_layout && (!is_docker || prefer_manifests || platform.is_some()) {
            oci::images(self, platform)?
        } else if is_docker {
            docker::images(self)?
        } else if self.has("repositories")? {
            legacy::images(self)?
        } else {
            return Err(self.error("is no image archive: it has neither manifest.json nor index.json"));
        };
        if images.is_empty() {
            return Err(self.error("holds no image"));
        }
        self.for_platform(images, &platform.cloned().unwrap_or_else(Platform::host))
    }

    /// Keeps the images whose configuration says that they run on a platform.
    fn for_platform(&self, images: Vec<FoundImage>, wanted: &Platform) -> Result<Vec<FoundImage>> {
        let check = |image: FoundImage| match image.config.platform().map_or(Ok(()), |own| own.check_serves(wanted)) {
            Ok(()) => Ok(image),
            Err(reason) => {
                let name = image.names.first().map_or_else(|| image.config.id().to_string(), ToString::to_string);
                Err(self.error(format!("{name} {reason}")))
            }
        };
        let (fitting, others): (Vec<_>, Vec<_>) = images.into_iter().map(check).partition(Result::is_ok);
        let mut others = others.into_iter().filter_map(Result::err);
        if fitting.is_empty()
            && let Some(error) = others.next()
        {
            return Err(error);
        }
        others.for_each(|error| tracing::warn!("{error}; it is left out"));
        Ok(fitting.into_iter().flatten().collect())
    }

    /// Opens a member.
    ///
    /// # Errors
    /// When there is none by that name.
    pub fn member(&self, name: &str) -> Result<MemberReader<'_>> {
        self.lookup(name)?.ok_or_else(|| self.error(format!("{name} is missing in it")))
    }

    /// The name of the archive, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The limits for a layer.
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn has(&self, name: &str) -> Result<bool> {
        Ok(self.lookup(name)?.is_some())
    }

    /// Reads a member that is a document.
    fn document(&self, name: &str) -> Result<Vec<u8>> {
        read_limited(&mut self.member(name)?, &self.locate(name))
    }

    /// Reads a blob that is a document, and checks its digest.
    fn blob_document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let name = blob_member(&descriptor.digest);
        let bytes = self.document(&name)?;
        check(&self.locate(&name), &descriptor.digest, &Digest::of(&bytes))?;
        check(&self.locate(&name), &size(descriptor.size), &size(bytes.len() as u64))?;
        Ok(bytes)
    }

    /// The archive and the member, for messages.
    pub(crate) fn locate(&self, member: &str) -> String {
        format!("{}: {member}", self.name)
    }

    fn error(&self, reason: impl ToString) -> ImageError {
        ImageError::archive(&self.name, reason)
    }

    fn lookup(&self, name: &str) -> Result<Option<MemberReader<'_>>> {
        let directory = match &self.backing {
            Backing::Members(members) => return members.open(name).map_err(|reason| self.error(reason)),
            Backing::Directory(directory) => directory,
        };
        // NONBLOCK: opening a fifo must not block. A symbolic link may only lead to a file below the directory.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file: File = match confined::in_root(directory.as_fd(), name.as_bytes(), flags) {
            Ok(file) => file.into(),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error).at(self.locate(name)),
        };
        let stat = fstat(&file).at(self.locate(name))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.error(format!("{name} is not a regular file")));
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Some(MemberReader::new(MemberFile::Whole(file, size))))
    }
}

/// The name of a blob's file in an image layout.
pub(crate) fn blob_member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The digest in the file name of a blob or of a legacy config.
pub(crate) fn digest_in_name(member: &str) -> Option<Digest> {
    let file = member.rsplit('/').next()?;
    let hex = file.strip_suffix(".json").or_else(|| file.strip_suffix(".tar")).unwrap_or(file);
    format!("sha256:{hex}").parse().ok()
}

/// Compares the expected value with the one found.
pub(crate) fn check<T: PartialEq + std::fmt::Display>(subject: &str, expected: &T, found: &T) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let (expected, found) = (expected.to_string(), found.to_string());
    Err(ImageError::Mismatch { subject: subject.to_owned(), expected, found })
}

/// A size, for [`check`].
pub(crate) fn size(bytes: u64) -> String {
    format!("{bytes} bytes")
}
