//! Checks the index directory when a mount begins: does it belong to these layers, and is every entry still
//! valid (kernel: `ovl_get_indexdir`, `ovl_verify_set_fh`, `ovl_indexdir_cleanup`)?

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::marks::index::{decode_entry_name, decode_nlink};
use crate::marks::origin::{Decoded, Origin, decode};
use crate::marks::{Mark, Namespace};
use crate::sys::handle;
use crate::union::layer::{Dir, LayerStack, OpenError, OriginResolver, Stat, UpperDir, UpperLayer, describe};

/// Advice for an index that does not match.
const ADVICE: &str = "mount with index=off, or remove the index directory in the workdir";

/// Result of checking an index entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Its name does not match it, or its lower file is gone.
    Stale,
    /// The mount no longer has a name for it.
    Orphan,
}

impl LayerStack {
    /// Opens, checks and cleans the index. Returns `false` if the file systems do not support one; the mount then
    /// goes without, as the kernel does.
    ///
    /// # Errors
    /// One line: the index or the upper belongs to other layers, or the index holds something else than entries.
    pub(crate) fn prepare_index(&mut self, origins: &OriginResolver) -> Result<bool, OpenError> {
        let upper = match self.upper() {
            Some(upper) if !upper.is_read_only() => upper,
            _ => return Ok(false),
        };
        if !upper.keeps_marks() {
            tracing::warn!(
                "index=off: the upper's file system keeps no extended attributes; hard links break at copy-up"
            );
            return Ok(false);
        }
        let namespace = upper.namespace();
        let lower_mark = self.lower_root_mark(origins);
        let upper_mark = self.upper().and_then(|upper| handle_mark(upper.root(), true));
        let (Some(lower_mark), Some(upper_mark)) = (lower_mark, upper_mark) else {
            tracing::warn!("index=off: a layer's file system has no usable file handles; hard links break at copy-up");
            return Ok(false);
        };
        let failed = |errno: Errno| OpenError(format!("index of workdir: {}", describe(errno)));
        let Some(upper) = self.upper_mut() else { return Ok(false) };
        match upper.open_index() {
            Ok(()) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let Some(upper) = self.upper() else { return Ok(false) };
        let Some(index) = upper.index() else { return Ok(false) };
        let checks = [
            (upper.root(), Mark::Origin, &lower_mark, "upperdir was used with another lower layer"),
            (index, Mark::Upper, &upper_mark, "the index belongs to another upperdir"),
        ];
        for (dir, mark, expected, complaint) in checks {
            if !verify_or_set(dir, namespace, mark, expected).map_err(failed)? {
                return Err(OpenError(format!("{complaint}: {ADVICE}")));
            }
        }
        self.clean_index(upper, index, origins)?;
        Ok(true)
    }

    /// The origin mark of the topmost lower layer's root, if every lower file system can find files by such marks.
    fn lower_root_mark(&self, origins: &OriginResolver) -> Option<Vec<u8>> {
        let mut first = None;
        for layer in self.lowers() {
            let mark = origins.encode(layer.fs(), layer.root(), c"").ok().filter(|mark| !mark.is_empty())?;
            origins.resolve(&mark)?;
            first.get_or_insert(mark);
        }
        first
    }

    fn clean_index(&self, upper: &UpperLayer, index: &UpperDir, origins: &OriginResolver) -> Result<(), OpenError> {
        let failed = |name: &CStr, why: &str| OpenError(format!("index entry {name:?}: {why}: {ADVICE}"));
        let mut names: Vec<CString> = Vec::new();
        let listed = index.list(|entry| {
            names.push(entry.name.to_owned());
            Ok(())
        });
        listed.map_err(|errno| failed(c".", &describe(errno)))?;
        for name in names {
            let removed = if name.to_bytes().starts_with(b"#") {
                // The kernel stages files there.
                index.remove_tree(&name)
            } else {
                match self.verify_entry(upper, index, &name, origins).map_err(|why| failed(&name, &why))? {
                    Verdict::Good => Ok(()),
                    verdict => {
                        tracing::warn!("index entry {name:?} removed: {verdict:?}");
                        index.remove_tree(&name)
                    }
                }
            };
            removed.map_err(|errno| failed(&name, &describe(errno)))?;
        }
        Ok(())
    }

    /// Checks one entry (kernel: `ovl_verify_index`).
    fn verify_entry(
        &self,
        upper: &UpperLayer,
        index: &UpperDir,
        name: &CStr,
        origins: &OriginResolver,
    ) -> Result<Verdict, String> {
        let origin = decode_entry_name(name.to_bytes()).filter(|mark| matches!(decode(mark), Decoded::Handle(_)));
        let origin = origin.ok_or("not an index entry, or one of another machine")?;
        let Some(stat) = index.stat(name).map_err(describe)? else { return Ok(Verdict::Good) };
        // Entries for NFS export, which have no meaning here.
        if stat.is_whiteout_device() || stat.is_dir() {
            return Ok(Verdict::Good);
        }
        let mark = index.xattr(name, &upper.mark_key(Mark::Origin)).map_err(describe)?;
        if mark.ok_or("it has no origin")? != origin {
            return Ok(Verdict::Stale);
        }
        if stat.nlink > 1 {
            return Ok(Verdict::Good);
        }
        let Some(lower) = origins.resolve(&origin) else { return Ok(Verdict::Stale) };
        let mark = index.xattr(name, &upper.mark_key(Mark::Nlink)).map_err(describe)?;
        Ok(if names_left(mark.as_deref(), &stat, &lower) == 0 { Verdict::Orphan } else { Verdict::Good })
    }
}

/// Number of names that the mount still has for an index entry that has no name in the upper.
fn names_left(mark: Option<&[u8]>, entry: &Stat, lower: &Stat) -> u32 {
    if lower.nlink < 2 {
        return 0;
    }
    mark.and_then(|mark| decode_nlink(mark, entry.nlink, lower.nlink)).unwrap_or(0)
}

/// The mark that identifies the directory `dir`; `None` if the file system has no handles.
fn handle_mark(dir: &Dir, upper: bool) -> Option<Vec<u8>> {
    let handle = dir.handle(c"").ok()?;
    let uuid = handle::filesystem_uuid(dir.open_self().ok()?.as_fd()).unwrap_or_default();
    let handle_type = u8::try_from(handle.kind).ok()?;
    Origin { uuid, handle_type, handle: handle.bytes, upper }.encode()
}

/// True if `dir` has the mark with the value `expected`; sets the mark if it is missing.
fn verify_or_set(dir: &UpperDir, namespace: Namespace, mark: Mark, expected: &[u8]) -> Result<bool, Errno> {
    let key = CString::new(namespace.xattr(mark)).map_err(|_| Errno::INVAL)?;
    match dir.xattr(c"", &key)? {
        Some(found) => Ok(found == expected),
        None => dir.set_xattr(c"", &key, expected, 0).map(|()| true),
    }
}
