//! Layer directories in tests: unpacking into them, and their whole content as text.

#![allow(dead_code, reason = "each test binary uses some of it")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use stratafs::image::layer::LayerError;
use stratafs::image::recipe;
use stratafs::image::unpack::{self, UnpackOptions, Unpacked};
use tempfile::TempDir;

/// A layer directory and the result of unpacking it.
pub struct Layer {
    pub dir: TempDir,
    pub fd: File,
    pub unpacked: Unpacked,
    pub recipe: Vec<u8>,
}

impl Layer {
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("layer")
    }
    pub fn tree(&self) -> BTreeMap<String, String> {
        tree(&self.path())
    }
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Unpacks `tar` above `lowers`, topmost first, as root.
pub fn unpack_over(tar: &[u8], lowers: &[&Layer]) -> Result<Layer, LayerError> {
    unpack_with(tar, lowers, &UnpackOptions::default())
}

pub fn unpack(tar: &[u8]) -> Layer {
    unpack_over(tar, &[]).expect("a good layer")
}

pub fn unpack_with(tar: &[u8], lowers: &[&Layer], options: &UnpackOptions) -> Result<Layer, LayerError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("layer");
    std::fs::create_dir(&path).expect("the layer's directory");
    let fd = File::open(&path).expect("the layer's directory");
    let fds: Vec<BorrowedFd<'_>> = lowers.iter().map(|lower| lower.as_fd()).collect();
    let mut recipe = Vec::new();
    let unpacked = unpack::unpack_layer(&mut &tar[..], fd.as_fd(), &fds, Some(&mut recipe), options)?;
    Ok(Layer { dir, fd, unpacked, recipe })
}

/// The tar that the recipe gives.
pub fn reassembled(layer: &Layer) -> Result<Vec<u8>, LayerError> {
    let mut bytes = Vec::new();
    let (digest, size) = recipe::reassemble(&mut layer.recipe.as_slice(), layer.as_fd(), &mut bytes)?;
    assert_eq!((digest, size), (layer.unpacked.diff_id, layer.unpacked.size));
    Ok(bytes)
}

/// Every path below `root` (and `.`): type, mode, owner, time, contents or link, attributes.
pub fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        if full.symlink_metadata().expect("an entry").is_dir() {
            for entry in full.read_dir().expect("a directory") {
                pending.push(path.join(entry.expect("an entry").file_name()));
            }
        }
        let shown = if path.as_os_str().is_empty() { ".".to_owned() } else { escaped(path.as_os_str().as_bytes()) };
        lines.insert(shown, describe(&full));
    }
    lines
}

fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn describe(path: &Path) -> String {
    let meta = path.symlink_metadata().expect("an entry");
    let kind = meta.file_type();
    let what = if kind.is_dir() {
        "dir".to_owned()
    } else if kind.is_symlink() {
        format!("link {}", escaped(path.read_link().expect("a link").into_os_string().into_vec().as_slice()))
    } else if kind.is_char_device() || kind.is_block_device() {
        let rdev = meta.rdev();
        let letter = if kind.is_char_device() { "char" } else { "block" };
        format!("{letter} {}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev))
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else if kind.is_socket() {
        "socket".to_owned()
    } else if meta.len() <= 40 {
        format!("file {:?}", escaped(&std::fs::read(path).expect("contents")))
    } else if meta.len() > 64 << 20 {
        format!("file of {}", meta.len())
    } else {
        format!(
            "file of {} {}",
            meta.len(),
            stratafs::image::digest::Digest::of(&std::fs::read(path).expect("contents")).hex()
        )
    };
    let mut line = format!("{what} {:o} {}:{} @{}", meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime());
    if meta.mtime_nsec() != 0 {
        line += &format!(".{:09}", meta.mtime_nsec());
    }
    for (name, value) in xattrs(path) {
        line += &format!(" {name}={}", escaped(&value));
    }
    line
}

/// Extended attributes, the link's own for a link.
pub fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0_u8; 64 << 10];
    let len = rustix::fs::llistxattr(path, names.as_mut_slice()).expect("attributes");
    let mut found = BTreeMap::new();
    for name in names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; 64 << 10];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice()).expect("an attribute");
        value.truncate(len);
        found.insert(String::from_utf8(name.to_vec()).expect("a name"), value);
    }
    found
}
