//! Finds the lower file that an origin mark names.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use crate::marks::origin::{Decoded, Origin, decode};
use crate::sys::handle::{self, FileHandle};
use crate::union::layer::{Dir, FsId, Layer, Stat};

/// Makes and resolves origin marks for the lower file systems of a stack.
#[derive(Debug, Default)]
pub struct OriginResolver {
    /// One open directory (not `O_PATH`) and the UUID of each lower file system.
    filesystems: HashMap<FsId, LowerFs>,
}

#[derive(Debug)]
struct LowerFs {
    mount: OwnedFd,
    uuid: [u8; 16],
}

impl OriginResolver {
    /// Takes the file systems of `lowers`.
    pub fn new(lowers: &[Layer]) -> Self {
        let mut known = Self::default();
        lowers.iter().for_each(|layer| known.learn(layer));
        known
    }

    /// Adds the file system of one more layer.
    pub(crate) fn learn(&mut self, layer: &Layer) {
        if self.filesystems.contains_key(&layer.fs()) {
            return;
        }
        let Ok(mount) = layer.root().open_self() else { return };
        // Without this call (Linux < 6.9) or without a UUID, the kernel also compares with zeros.
        let uuid = handle::filesystem_uuid(mount.as_fd()).unwrap_or_default();
        self.filesystems.insert(layer.fs(), LowerFs { mount, uuid });
    }

    /// Value of the origin mark for `name` in `dir` on file system `fs`; empty where the file system has no handles
    /// (kernel: `ovl_encode_real_fh`, `ovl_set_origin`).
    ///
    /// # Errors
    /// Those of `name_to_handle_at(2)`, except that it is not supported.
    pub fn encode(&self, fs: FsId, dir: &Dir, name: &CStr) -> Result<Vec<u8>, Errno> {
        let Some(known) = self.filesystems.get(&fs) else { return Ok(Vec::new()) };
        let FileHandle { kind, bytes } = match dir.handle(name) {
            Ok(handle) => handle,
            Err(Errno::OPNOTSUPP | Errno::OVERFLOW) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        };
        let Ok(handle_type) = u8::try_from(kind) else { return Ok(Vec::new()) };
        let origin = Origin { uuid: known.uuid, handle_type, handle: bytes, upper: false };
        Ok(origin.encode().unwrap_or_default())
    }

    /// Attributes of the lower file that `mark` names; `None` if the mark is empty, foreign, or its file is
    /// gone. In these cases only the inode number changes.
    pub fn resolve(&self, mark: &[u8]) -> Option<Stat> {
        let Decoded::Handle(origin) = decode(mark) else { return None };
        for known in self.filesystems.values() {
            if known.uuid != origin.uuid {
                continue;
            }
            let handle = FileHandle { kind: i32::from(origin.handle_type), bytes: origin.handle.clone() };
            if let Ok(file) = handle::open_by_handle(known.mount.as_fd(), &handle)
                && let Ok(stat) = Stat::of(file.as_fd(), c"")
            {
                return Some(stat);
            }
        }
        None
    }
}
