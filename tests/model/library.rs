//! The library without FUSE. The verbs are called as the kernel would call them, after the kernel's own checks, which are
//! made here.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use stratafs::config::OverlayConfig;
use stratafs::driver::Overlay;
use stratafs::driver::types::{Attr, Caller, DirEntry, DirSink, Entry, HandleId, NodeId, SetAttr, SetTime, Timestamp};

use crate::backend::{Backend, Outcome, Seen};
use crate::common::stack::Layers;
use crate::common::{Driver, Errno, Stack};
use crate::ops::{Layer, Op, SLOTS, bytes, layer_text};

const ROOT_USER: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0o022 };

/// An open file: its node stays known while it is open.
struct Open {
    node: NodeId,
    handle: HandleId,
}

/// A union held by this process.
pub struct Library {
    /// Dropped before the layers that it stands on.
    fork: Option<Box<Self>>,
    layers: Option<Layers>,
    overlay: Option<Overlay>,
    open: [Option<Open>; SLOTS],
}

/// Forgets nodes after an operation, as the kernel does when it drops its caches.
struct Lookups<'a> {
    overlay: &'a Overlay,
    taken: Vec<NodeId>,
}

impl Drop for Lookups<'_> {
    fn drop(&mut self) {
        for node in self.taken.drain(..) {
            self.overlay.forget(node, 1);
        }
    }
}

impl Lookups<'_> {
    fn find(&mut self, parent: NodeId, name: &str) -> Result<Option<Entry>, Errno> {
        let found = self.overlay.lookup(parent, OsStr::new(name))?;
        self.taken.extend(found.map(|entry| entry.node));
        Ok(found)
    }

    /// The directory of the last name, and that name.
    fn parent<'p>(&mut self, path: &'p str) -> Result<(NodeId, &'p str), Errno> {
        let mut at = NodeId::ROOT;
        let mut rest = path;
        while let Some((name, after)) = rest.split_once('/') {
            let entry = self.find(at, name)?.ok_or(Errno::NOENT)?;
            match entry.attr.mode & libc::S_IFMT {
                libc::S_IFDIR => at = entry.node,
                libc::S_IFLNK => return Err(Errno::NOENT),
                _ => return Err(Errno::NOTDIR),
            }
            rest = after;
        }
        Ok((at, rest))
    }

    fn resolve(&mut self, path: &str) -> Result<Entry, Errno> {
        let (parent, name) = self.parent(path)?;
        self.find(parent, name)?.ok_or(Errno::NOENT)
    }

    /// The place for a new name.
    fn vacancy<'p>(&mut self, path: &'p str) -> Result<(NodeId, &'p OsStr), Errno> {
        let (parent, name) = self.parent(path)?;
        match self.find(parent, name)? {
            Some(_) => Err(Errno::EXIST),
            None => Ok((parent, OsStr::new(name))),
        }
    }

    fn made(&mut self, entry: Entry) {
        self.taken.push(entry.node);
    }

    /// The file to open for writing.
    fn writable(&mut self, path: &str) -> Result<NodeId, Errno> {
        let entry = self.resolve(path)?;
        match entry.attr.mode & libc::S_IFMT {
            libc::S_IFDIR => Err(Errno::ISDIR),
            libc::S_IFLNK => Err(Errno::LOOP),
            _ => Ok(entry.node),
        }
    }

    /// Opens, calls, closes.
    fn with_open<T>(
        &self,
        node: NodeId,
        flags: i32,
        call: impl FnOnce(HandleId) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let opened = self.overlay.open_file(&ROOT_USER, node, flags.cast_unsigned(), false)?;
        let result = call(opened.handle);
        self.overlay.release(opened.handle);
        result
    }

    fn write(&self, handle: HandleId, mut offset: u64, mut content: &[u8]) -> Result<(), Errno> {
        while !content.is_empty() {
            let count = self.overlay.write(&ROOT_USER, handle, offset, content, false)?;
            content = &content[count..];
            offset += count as u64;
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str, flags: u32) -> Result<(), Errno> {
        let (from_parent, from_name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        let source = self.find(from_parent, from_name)?.ok_or(Errno::NOENT)?;
        let target = self.find(to_parent, to_name)?;
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        if target.is_some() && flags & libc::RENAME_NOREPLACE != 0 {
            return Err(Errno::EXIST);
        }
        if exchange && target.is_none() {
            return Err(Errno::NOENT);
        }
        let is_below = |path: &str, above: &str| path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
        if is_below(to, from) {
            return Err(Errno::INVAL);
        }
        if is_below(from, to) {
            return Err(if exchange { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        if let Some(target) = target {
            let is_dir = |attr: &Attr| attr.mode & libc::S_IFMT == libc::S_IFDIR;
            if target.node == source.node {
                return Ok(());
            }
            match (is_dir(&source.attr), is_dir(&target.attr)) {
                (true, false) if !exchange => return Err(Errno::NOTDIR),
                (false, true) if !exchange => return Err(Errno::ISDIR),
                _ => {}
            }
        }
        self.overlay.rename(from_parent, OsStr::new(from_name), to_parent, OsStr::new(to_name), flags)
    }
}

fn read_all(overlay: &Overlay, handle: HandleId) -> Result<Vec<u8>, Errno> {
    let mut content = vec![];
    let mut buffer = vec![0; 1 << 16];
    loop {
        match overlay.read(handle, content.len() as u64, &mut buffer)? {
            0 => return Ok(content),
            count => content.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Collects a listing, a few entries at a time.
#[derive(Default)]
struct Names {
    entries: Vec<(String, u64, u32)>,
    last: u64,
    room: usize,
}

impl DirSink for Names {
    fn push(&mut self, name: &DirEntry<'_>, _: Option<&Entry>) -> bool {
        if self.room == 0 {
            return false;
        }
        self.room -= 1;
        self.last = name.next;
        if name.name != "." && name.name != ".." {
            let text = name.name.to_str().expect("text").to_owned();
            self.entries.push((text, name.ino, u32::from(name.kind) << 12));
        }
        true
    }
}

fn list(overlay: &Overlay, node: NodeId) -> Result<Vec<(String, u64, u32)>, Errno> {
    let mut names = Names::default();
    loop {
        names.room = 3;
        overlay.read_dir(node, names.last, &mut names)?;
        if names.room > 0 {
            return Ok(names.entries);
        }
    }
}

impl Library {
    pub fn new(layers: &[Layer]) -> Self {
        let stack = layers.iter().fold(Stack::new(), |stack, layer| stack.lower(&layer_text(layer)));
        Self::on(stack.build())
    }

    fn on(layers: Layers) -> Self {
        let overlay = Self::open(&layers);
        Self { fork: None, layers: Some(layers), overlay: Some(overlay), open: Default::default() }
    }

    fn checkpoint(&mut self) {
        let layers = self.layers.as_mut().expect("layers");
        let place = layers.checkpoint_place();
        let overlay = self.overlay.as_ref().expect("open");
        let id = stratafs::union::layer::chain::new_id().expect("random");
        overlay.checkpoint(&place, id, false).unwrap_or_else(|error| panic!("no checkpoint: {error}"));
        layers.add_checkpoint(place);
    }

    /// Rolls back to the last checkpoint.
    fn roll_back(&mut self) {
        let layers = self.layers.as_ref().expect("layers");
        let place = layers.directory.path().join("abandoned");
        let id = stratafs::union::layer::chain::new_id().expect("random");
        let switched = self.overlay().switch(&place, id, &layers.lowers, None);
        switched.unwrap_or_else(|error| panic!("no rollback: {error}"));
        std::fs::remove_dir_all(&place).expect("the old upper");
    }

    fn make_fork(&mut self) {
        if let Some(last) = self.fork.take() {
            last.finish();
        }
        self.checkpoint();
        let layers = self.layers.as_ref().expect("layers");
        self.overlay().share(&layers.lowers).unwrap_or_else(|error| panic!("not shared: {error}"));
        self.fork = Some(Box::new(Self::on(layers.fork())));
    }

    fn open(layers: &Layers) -> Overlay {
        let config = OverlayConfig {
            lowers: layers.lowers.clone(),
            upper: layers.upper.clone(),
            work: layers.work.clone(),
            // The mounted runs show whether copy-up waits for the disk.
            volatile: true,
            ..OverlayConfig::default()
        };
        rustix::process::umask(rustix::fs::Mode::empty());
        Overlay::open(config).unwrap_or_else(|error| panic!("does not open: {error}"))
    }

    fn overlay(&self) -> &Overlay {
        self.overlay.as_ref().expect("open")
    }

    fn close_slot(&mut self, slot: usize) {
        if let Some(open) = self.open[slot].take() {
            self.overlay().release(open.handle);
            self.overlay().forget(open.node, 1);
        }
    }

    /// Ends the overlay; every node and handle must have been given back.
    fn shut(&mut self) -> Layers {
        (0..SLOTS).for_each(|slot| self.close_slot(slot));
        let overlay = self.overlay.take().expect("open");
        assert_eq!(overlay.population(), (1, 0), "nodes (with the root) and handles left");
        overlay.close();
        drop(overlay);
        let layers = self.layers.take().expect("layers");
        layers.assert_sound(Driver::Stratafs);
        layers
    }

    fn reopen(&mut self, layers: Layers) {
        self.overlay = Some(Self::open(&layers));
        self.layers = Some(layers);
    }

    fn try_apply(&mut self, op: &Op, step: u64) -> Result<Outcome, Errno> {
        match op {
            Op::Open { slot, path, write } => {
                let overlay = self.overlay();
                let mut lookups = Lookups { overlay, taken: vec![] };
                let node = lookups.writable(path)?;
                let flags = if *write { libc::O_RDWR } else { libc::O_RDONLY };
                let opened = overlay.open_file(&ROOT_USER, node, flags.cast_unsigned(), false)?;
                // `close` forgets the last lookup, that of the file itself.
                lookups.taken.pop();
                drop(lookups);
                self.close_slot(*slot);
                self.open[*slot] = Some(Open { node, handle: opened.handle });
            }
            Op::Close { slot } => self.close_slot(*slot),
            Op::Remount { .. } => {
                let layers = self.shut();
                self.reopen(layers);
            }
            Op::Restack { .. } => {
                let layers = self.shut().restack();
                self.reopen(layers);
            }
            Op::Checkpoint => self.checkpoint(),
            Op::Rollback => self.roll_back(),
            Op::Fork { .. } => self.make_fork(),
            _ => {
                let mut lookups = Lookups { overlay: self.overlay(), taken: vec![] };
                return call(&mut lookups, &self.open, op, step);
            }
        }
        Ok(Outcome::Done)
    }

    fn look(
        &self,
        lookups: &mut Lookups<'_>,
        directory: NodeId,
        prefix: &str,
        found: &mut BTreeMap<String, Seen>,
    ) -> Result<(), String> {
        let fail = |path: &str, error: Errno| format!("{path:?}: {error}");
        for (name, ino, kind) in list(self.overlay(), directory).map_err(|error| fail(prefix, error))? {
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
            let entry = lookups.find(directory, &name).map_err(|error| fail(&path, error))?;
            let entry = entry.ok_or_else(|| format!("{path:?} is listed and does not exist"))?;
            let seen = self.see(lookups, &entry, (ino, kind)).map_err(|error| fail(&path, error))?;
            let is_dir = seen.kind == libc::S_IFDIR;
            if found.insert(path.clone(), seen).is_some() {
                return Err(format!("{path:?} is listed twice"));
            }
            if is_dir {
                self.look(lookups, entry.node, &path, found)?;
            }
        }
        Ok(())
    }

    fn see(&self, lookups: &Lookups<'_>, entry: &Entry, listed: (u64, u32)) -> Result<Seen, Errno> {
        let overlay = self.overlay();
        let (attr, _) = overlay.getattr(entry.node, None)?;
        let kind = attr.mode & libc::S_IFMT;
        let mut xattrs = BTreeMap::new();
        for name in overlay.listxattr(entry.node)?.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            let value = overlay.getxattr(entry.node, OsStr::from_bytes(name))?;
            xattrs.insert(String::from_utf8_lossy(name).into_owned(), value);
        }
        let content = match kind {
            libc::S_IFREG => Some(lookups.with_open(entry.node, libc::O_RDONLY, |handle| read_all(overlay, handle))?),
            _ => None,
        };
        let target = match kind {
            libc::S_IFLNK => Some(overlay.readlink(entry.node)?.to_string_lossy().into_owned()),
            _ => None,
        };
        Ok(Seen {
            kind,
            mode: attr.mode & 0o7777,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            nlink: u64::from(attr.nlink),
            size: attr.size,
            mtime: attr.mtime.sec,
            ino: attr.ino,
            listed,
            content,
            target,
            xattrs,
        })
    }
}

// One arm for each operation.
#[allow(clippy::too_many_lines)]
fn call(lookups: &mut Lookups<'_>, open: &[Option<Open>; SLOTS], op: &Op, step: u64) -> Result<Outcome, Errno> {
    let overlay = lookups.overlay;
    let slot = |slot: usize| open[slot].as_ref().expect("an open slot");
    let set = |node: NodeId, handle: Option<HandleId>, set: SetAttr| overlay.setattr(&ROOT_USER, node, handle, &set);
    match op {
        Op::Create { path, length } => {
            let (parent, name) = lookups.vacancy(path)?;
            let flags = (libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL).cast_unsigned();
            let (entry, opened) = overlay.create(&ROOT_USER, parent, name, 0o666, flags, false)?;
            lookups.made(entry);
            let written = lookups.write(opened.handle, 0, &bytes(step, *length));
            overlay.release(opened.handle);
            written?;
        }
        Op::WriteAt { path, offset, length } => {
            let node = lookups.writable(path)?;
            let content = bytes(step, *length);
            lookups.with_open(node, libc::O_WRONLY, |handle| lookups.write(handle, *offset, &content))?;
        }
        Op::Append { path, length } => {
            let node = lookups.writable(path)?;
            let content = bytes(step, *length);
            lookups.with_open(node, libc::O_WRONLY | libc::O_APPEND, |handle| {
                // The kernel knows the size and where the end is.
                let size = overlay.getattr(node, Some(handle))?.0.size;
                lookups.write(handle, size, &content)
            })?;
        }
        Op::Truncate { path, size } => {
            let node = lookups.writable(path)?;
            lookups.with_open(node, libc::O_WRONLY, |handle| {
                set(node, Some(handle), SetAttr { size: Some(*size), ..SetAttr::default() }).map(|_| ())
            })?;
        }
        Op::Overwrite { path, length } => {
            let node = lookups.writable(path)?;
            let content = bytes(step, *length);
            lookups.with_open(node, libc::O_WRONLY | libc::O_TRUNC, |handle| lookups.write(handle, 0, &content))?;
        }
        Op::Read { path } => {
            let node = lookups.writable(path)?;
            let content = lookups.with_open(node, libc::O_RDONLY, |handle| read_all(overlay, handle))?;
            return Ok(Outcome::Content(content));
        }
        Op::Mkdir { path, mode } => {
            let (parent, name) = lookups.vacancy(path)?;
            let entry = overlay.mkdir(&ROOT_USER, parent, name, mode & 0o1777)?;
            lookups.made(entry);
        }
        Op::Symlink { path, target } => {
            let (parent, name) = lookups.vacancy(path)?;
            let entry = overlay.symlink(&ROOT_USER, parent, name, OsStr::new(target))?;
            lookups.made(entry);
        }
        Op::Mknod { path, mode, rdev } => {
            let (parent, name) = lookups.vacancy(path)?;
            let entry = overlay.mknod(&ROOT_USER, parent, name, *mode, *rdev)?;
            lookups.made(entry);
        }
        Op::Rmdir { path } => {
            let (parent, name) = lookups.parent(path)?;
            let entry = lookups.find(parent, name)?.ok_or(Errno::NOENT)?;
            match entry.attr.mode & libc::S_IFMT {
                libc::S_IFDIR => overlay.rmdir(parent, OsStr::new(name))?,
                _ => return Err(Errno::NOTDIR),
            }
        }
        Op::Unlink { path } => {
            let (parent, name) = lookups.parent(path)?;
            let entry = lookups.find(parent, name)?.ok_or(Errno::NOENT)?;
            match entry.attr.mode & libc::S_IFMT {
                libc::S_IFDIR => return Err(Errno::ISDIR),
                _ => overlay.unlink(parent, OsStr::new(name))?,
            }
        }
        Op::Rename { from, to } => lookups.rename(from, to, 0)?,
        Op::RenameNoReplace { from, to } => lookups.rename(from, to, libc::RENAME_NOREPLACE)?,
        Op::Exchange { from, to } => lookups.rename(from, to, libc::RENAME_EXCHANGE)?,
        Op::Link { old, new } => {
            let source = lookups.resolve(old)?;
            let (parent, name) = lookups.vacancy(new)?;
            if source.attr.mode & libc::S_IFMT == libc::S_IFDIR {
                return Err(Errno::PERM);
            }
            let entry = overlay.link(source.node, parent, name)?;
            lookups.made(entry);
        }
        Op::Chmod { path, mode } => {
            let entry = lookups.resolve(path)?;
            if entry.attr.mode & libc::S_IFMT == libc::S_IFLNK {
                return Err(Errno::NOENT);
            }
            set(entry.node, None, SetAttr { mode: Some(*mode), ..SetAttr::default() })?;
        }
        Op::Chown { path, uid, gid } => {
            let node = lookups.resolve(path)?.node;
            set(node, None, SetAttr { uid: Some(*uid), gid: Some(*gid), ..SetAttr::default() })?;
        }
        Op::Utimens { path, mtime } => {
            let node = lookups.resolve(path)?.node;
            let time = Some(SetTime::At(Timestamp { sec: *mtime, nsec: 0 }));
            set(node, None, SetAttr { atime: time, mtime: time, ..SetAttr::default() })?;
        }
        Op::SetXattr { path, name, value } => {
            let entry = lookups.resolve(path)?;
            may_have_xattr(&entry, name)?;
            overlay.setxattr(&ROOT_USER, entry.node, OsStr::new(name), value, 0, false)?;
        }
        Op::RemoveXattr { path, name } => {
            let entry = lookups.resolve(path)?;
            may_have_xattr(&entry, name)?;
            overlay.removexattr(entry.node, OsStr::new(name))?;
        }
        Op::Readdir { path } => {
            let entry = lookups.resolve(path)?;
            if entry.attr.mode & libc::S_IFMT != libc::S_IFDIR {
                return Err(Errno::NOTDIR);
            }
            let mut names: Vec<String> = list(overlay, entry.node)?.into_iter().map(|(name, ..)| name).collect();
            names.sort();
            return Ok(Outcome::Names(names));
        }
        Op::HandleWrite { slot: at, offset, length } => {
            lookups.write(slot(*at).handle, *offset, &bytes(step, *length))?
        }
        Op::HandleRead { slot: at } => return Ok(Outcome::Content(read_all(overlay, slot(*at).handle)?)),
        Op::HandleTruncate { slot: at, size } => {
            set(slot(*at).node, Some(slot(*at).handle), SetAttr { size: Some(*size), ..SetAttr::default() })?;
        }
        Op::HandleChmod { slot: at, mode } => {
            set(slot(*at).node, Some(slot(*at).handle), SetAttr { mode: Some(*mode), ..SetAttr::default() })?;
        }
        Op::HandleStat { slot: at } => {
            let (attr, _) = overlay.getattr(slot(*at).node, Some(slot(*at).handle))?;
            return Ok(Outcome::Stat(attr.mode & 0o7777, attr.size, u64::from(attr.nlink)));
        }
        Op::Open { .. }
        | Op::Close { .. }
        | Op::Remount { .. }
        | Op::Restack { .. }
        | Op::Checkpoint
        | Op::Rollback
        | Op::Fork { .. }
        | Op::InFork(_) => unreachable!("{op:?}"),
    }
    Ok(Outcome::Done)
}

fn may_have_xattr(entry: &Entry, name: &str) -> Result<(), Errno> {
    let takes_user = matches!(entry.attr.mode & libc::S_IFMT, libc::S_IFDIR | libc::S_IFREG);
    if takes_user || !name.starts_with("user.") { Ok(()) } else { Err(Errno::PERM) }
}

impl Backend for Library {
    fn apply(&mut self, op: &Op, step: u64) -> Outcome {
        self.try_apply(op, step).unwrap_or_else(Outcome::Error)
    }

    fn tree(&mut self) -> Result<BTreeMap<String, Seen>, String> {
        let mut found = BTreeMap::new();
        let mut lookups = Lookups { overlay: self.overlay(), taken: vec![] };
        self.look(&mut lookups, NodeId::ROOT, "", &mut found)?;
        Ok(found)
    }

    fn is_kernel(&self) -> bool {
        false
    }

    fn is_indexed(&self) -> bool {
        false
    }

    fn forked(&mut self) -> Option<&mut dyn Backend> {
        self.fork.as_deref_mut().map(|fork| fork as &mut dyn Backend)
    }

    fn finish(mut self: Box<Self>) {
        if let Some(fork) = self.fork.take() {
            fork.finish();
        }
        drop(self.shut());
    }
}
