//! The oracle: a union of layers in memory, with Linux's rules for every operation and the kernel overlayfs' rules for
//! hard links with and without an index.

use std::collections::BTreeMap;

use crate::common::Errno;
use crate::ops::{Layer, LayerKind, Op, SLOTS, bytes};

/// Index of an inode.
pub type Id = usize;

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Dir(BTreeMap<String, Id>),
    File(Vec<u8>),
    Symlink(String),
    Node(u32, (u32, u32)),
}

/// Tells whether an inode was copied up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopiedUp {
    No,
    /// Drivers differ: it was opened for writing but not written.
    Maybe,
    Yes,
}

#[derive(Clone, Debug)]
pub struct Inode {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// `None` if it is the time of some operation.
    pub mtime: Option<i64>,
    /// Names in the union.
    pub names: u64,
    pub copied_up: CopiedUp,
    /// Names in the lower layer.
    pub lower_links: u64,
    /// True if that layer was the upper of the same mount: then it is still one file, and removed names do not count.
    pub own: bool,
    /// Inodes that are one file in a lower layer share this, and their `st_ino` until they are copied up.
    pub group: u64,
    /// A name has been added by link(2).
    pub linked: bool,
    /// With an index: number of names of the lower file that upper layers hide. They still count.
    pub hidden: Option<u64>,
}

impl Inode {
    /// `st_nlink` of a non-directory.
    pub fn nlink(&self) -> u64 {
        match self.copied_up {
            _ if let Some(hidden) = self.hidden => self.names + hidden,
            CopiedUp::No if self.own => self.names,
            CopiedUp::No => self.lower_links,
            // Only where the lower file has one name, so that it makes no difference.
            CopiedUp::Maybe | CopiedUp::Yes => self.names,
        }
    }

    /// True if `st_ino` is the same before and after the copy-up.
    pub fn keeps_number(&self) -> bool {
        matches!(self.kind, Kind::Dir(_)) || self.lower_links == 1 || self.hidden.is_some()
    }
}

/// An open file.
#[derive(Clone, Debug)]
pub struct Handle {
    pub id: Id,
    pub write: bool,
    /// Opened for reading only while the file was in a lower layer.
    pub early: bool,
}

/// The expected result of an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// The operation is not tried: not every driver or kernel can do it, or it would block.
    Skip,
    Done,
    Content(Vec<u8>),
    /// Content, but only where an early reader sees later writes (not on kernel overlayfs).
    CoherentContent(Vec<u8>),
    Names(Vec<String>),
    /// Mode, size, and link count where it is certain.
    Stat(u32, u64, Option<u64>),
    Error(Errno),
}

#[derive(Clone, Debug)]
pub struct Union {
    pub inodes: Vec<Inode>,
    pub handles: [Option<Handle>; SLOTS],
    next_group: u64,
    /// True if names of a lower hard link stay one file.
    indexed: bool,
    /// With an index: the inode of each lower hard link.
    hard_links: BTreeMap<u64, Id>,
    /// The last checkpoint of this mount.
    saved: Option<Box<Union>>,
}

const ROOT: Id = 0;

impl Union {
    /// The union of `layers`, topmost first, below an empty upper.
    pub fn new(layers: &[Layer], indexed: bool) -> Self {
        // The upper's root has the default attributes.
        let root = Inode {
            kind: Kind::Dir(BTreeMap::new()),
            mode: 0o755,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
            mtime: None,
            names: 1,
            copied_up: CopiedUp::Yes,
            lower_links: 1,
            own: false,
            group: u64::MAX,
            linked: false,
            hidden: None,
        };
        let (handles, hard_links) = Default::default();
        let mut union = Self { inodes: vec![root], handles, next_group: 1_000_000, indexed, hard_links, saved: None };
        let stack: Vec<(&Layer, String)> = layers.iter().map(|layer| (layer, String::new())).collect();
        union.merge(ROOT, &stack);
        union
    }

    /// Fills a directory from its layers.
    fn merge(&mut self, directory: Id, stack: &[(&Layer, String)]) {
        let child_path = |parent: &str, name: &str| {
            if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
        };
        let mut names: Vec<String> = vec![];
        for (layer, path) in stack {
            for entry in *layer {
                let (parent, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
                if parent == path && !names.iter().any(|other| other == name) {
                    names.push(name.to_owned());
                }
            }
        }
        for name in names {
            let mut found = None;
            let mut below: Vec<(&Layer, String)> = vec![];
            for (layer, path) in stack {
                let path = child_path(path, &name);
                let Some(entry) = layer.iter().find(|entry| entry.path == path) else { continue };
                match &entry.kind {
                    LayerKind::Whiteout => break,
                    LayerKind::Dir { opaque } => {
                        found = found.or(Some(entry));
                        below.push((layer, path));
                        if *opaque {
                            break;
                        }
                    }
                    _ => {
                        found = found.or(Some(entry));
                        break;
                    }
                }
            }
            let Some(entry) = found else { continue };
            let (kind, lower_links, group) = match &entry.kind {
                LayerKind::Dir { .. } => (Kind::Dir(BTreeMap::new()), 1, self.new_group()),
                LayerKind::File { content, links, group } => (Kind::File(content.clone()), *links, *group),
                LayerKind::Symlink(target) => (Kind::Symlink(target.clone()), 1, self.new_group()),
                LayerKind::Node(kind, rdev) => (Kind::Node(*kind, *rdev), 1, self.new_group()),
                LayerKind::Whiteout => continue,
            };
            if let Some(&id) = self.hard_links.get(&group) {
                self.inodes[id].names += 1;
                self.inodes[id].hidden = self.inodes[id].hidden.map(|hidden| hidden - 1);
                self.children_mut(directory).insert(name, id);
                continue;
            }
            let id = self.inodes.len();
            let has_index = self.indexed && lower_links > 1;
            if has_index {
                self.hard_links.insert(group, id);
            }
            self.inodes.push(Inode {
                kind,
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                xattrs: entry.xattrs.iter().cloned().collect(),
                mtime: Some(entry.mtime),
                names: 1,
                copied_up: CopiedUp::No,
                lower_links,
                own: false,
                group,
                linked: false,
                hidden: has_index.then(|| lower_links - 1),
            });
            self.children_mut(directory).insert(name, id);
            if matches!(entry.kind, LayerKind::Dir { .. }) {
                self.merge(id, &below);
            }
        }
    }

    fn new_group(&mut self) -> u64 {
        self.next_group += 1;
        self.next_group
    }

    fn children(&self, id: Id) -> Option<&BTreeMap<String, Id>> {
        match &self.inodes[id].kind {
            Kind::Dir(children) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, id: Id) -> &mut BTreeMap<String, Id> {
        match &mut self.inodes[id].kind {
            Kind::Dir(children) => children,
            other => panic!("not a directory: {other:?}"),
        }
    }

    /// Every path except the root with its inode; parents before children.
    pub fn entries(&self) -> Vec<(String, Id)> {
        fn walk(union: &Union, id: Id, prefix: &str, found: &mut Vec<(String, Id)>) {
            for (name, &child) in union.children(id).into_iter().flatten() {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
                found.push((path.clone(), child));
                walk(union, child, &path, found);
            }
        }
        let mut found = vec![];
        walk(self, ROOT, "", &mut found);
        found
    }

    pub fn paths(&self) -> Vec<String> {
        self.entries().into_iter().map(|(path, _)| path).collect()
    }

    pub fn is_dir(&self, path: &str) -> bool {
        self.lookup(path).is_ok_and(|id| self.children(id).is_some())
    }

    /// The directory that holds the last name of `path`, and that name.
    fn parent<'p>(&self, path: &'p str) -> Result<(Id, &'p str), Errno> {
        let mut at = ROOT;
        let mut rest = path;
        while let Some((name, after)) = rest.split_once('/') {
            at = *self.children(at).ok_or(Errno::NOTDIR)?.get(name).ok_or(Errno::NOENT)?;
            match self.inodes[at].kind {
                Kind::Dir(_) => {}
                // Every target dangles.
                Kind::Symlink(_) => return Err(Errno::NOENT),
                _ => return Err(Errno::NOTDIR),
            }
            rest = after;
        }
        Ok((at, rest))
    }

    fn lookup(&self, path: &str) -> Result<Id, Errno> {
        let (parent, name) = self.parent(path)?;
        self.children(parent).ok_or(Errno::NOTDIR)?.get(name).copied().ok_or(Errno::NOENT)
    }

    /// The place for a new name.
    fn vacancy<'p>(&self, path: &'p str) -> Result<(Id, &'p str), Errno> {
        let (parent, name) = self.parent(path)?;
        match self.children(parent).is_some_and(|children| children.contains_key(name)) {
            true => Err(Errno::EXIST),
            false => Ok((parent, name)),
        }
    }

    /// Adds a name; the inode is new or gets one more link.
    fn insert(&mut self, parent: Id, name: &str, id: Id) {
        self.children_mut(parent).insert(name.to_owned(), id);
        self.inodes[id].names += 1;
        self.touch(parent);
    }

    fn remove(&mut self, parent: Id, name: &str) {
        if let Some(id) = self.children_mut(parent).remove(name) {
            let inode = &mut self.inodes[id];
            inode.names -= 1;
            // The count is kept in the upper, so the file is copied up.
            if inode.hidden.is_some() && inode.copied_up == CopiedUp::No {
                inode.copied_up = CopiedUp::Maybe;
            }
        }
        self.touch(parent);
    }

    /// A directory's entries have changed.
    fn touch(&mut self, directory: Id) {
        self.inodes[directory].mtime = None;
        self.inodes[directory].copied_up = CopiedUp::Yes;
    }

    fn create(&mut self, path: &str, kind: Kind, mode: u32) -> Result<Id, Errno> {
        let (parent, name) = self.vacancy(path)?;
        let directory = &self.inodes[parent];
        let setgid = directory.mode & 0o2000 != 0;
        let gid = if setgid { directory.gid } else { 0 };
        let mode = if setgid && matches!(kind, Kind::Dir(_)) { mode | 0o2000 } else { mode };
        let group = self.new_group();
        let id = self.inodes.len();
        self.inodes.push(Inode {
            kind,
            mode,
            uid: 0,
            gid,
            xattrs: BTreeMap::new(),
            mtime: None,
            names: 0,
            copied_up: CopiedUp::Yes,
            lower_links: 1,
            own: false,
            group,
            linked: false,
            hidden: None,
        });
        self.insert(parent, name, id);
        Ok(id)
    }

    /// The file at `path`, to be opened without following links.
    fn regular(&self, path: &str, write: bool) -> Result<Option<Id>, Errno> {
        let id = self.lookup(path)?;
        match self.inodes[id].kind {
            Kind::File(_) => Ok(Some(id)),
            Kind::Dir(_) if write => Err(Errno::ISDIR),
            Kind::Symlink(_) => Err(Errno::LOOP),
            Kind::Dir(_) | Kind::Node(..) => Ok(None),
        }
    }

    fn modify(&mut self, id: Id, change: impl FnOnce(&mut Vec<u8>)) {
        let inode = &mut self.inodes[id];
        inode.copied_up = CopiedUp::Yes;
        inode.mtime = None;
        if let Kind::File(content) = &mut inode.kind {
            change(content);
        }
    }

    /// Carries `op` out; `step` seeds the bytes that it writes. Returns the answer that a driver must give.
    pub fn apply(&mut self, op: &Op, step: u64) -> Expected {
        self.try_apply(op, step).unwrap_or_else(Expected::Error)
    }

    // One arm for each operation.
    #[allow(clippy::too_many_lines)]
    fn try_apply(&mut self, op: &Op, step: u64) -> Result<Expected, Errno> {
        match op {
            Op::Create { path, length } => {
                self.create(path, Kind::File(bytes(step, *length)), 0o644)?;
            }
            Op::Mkdir { path, mode } => {
                // mkdir(2) keeps the permission and sticky bits only.
                self.create(path, Kind::Dir(BTreeMap::new()), mode & !0o022 & 0o1777)?;
            }
            Op::Symlink { path, target } => {
                self.create(path, Kind::Symlink(target.clone()), 0o777)?;
            }
            Op::Mknod { path, mode, rdev } => {
                let kind = match mode & libc::S_IFMT {
                    libc::S_IFREG => Kind::File(vec![]),
                    kind => Kind::Node(kind, *rdev),
                };
                self.create(path, kind, mode & 0o7777 & !0o022)?;
            }
            Op::WriteAt { path, .. }
            | Op::Append { path, .. }
            | Op::Truncate { path, .. }
            | Op::Overwrite { path, .. } => {
                let Some(id) = self.regular(path, true)? else { return Ok(Expected::Skip) };
                self.write(op, id, step);
            }
            Op::Read { path } => match self.regular(path, false)? {
                None => return Ok(Expected::Skip),
                Some(id) => return Ok(Expected::Content(self.content(id))),
            },
            Op::Rmdir { path } => {
                let (parent, name) = self.parent(path)?;
                let id = self.lookup(path)?;
                match self.children(id) {
                    None => return Err(Errno::NOTDIR),
                    Some(children) if !children.is_empty() => return Err(Errno::NOTEMPTY),
                    Some(_) => self.remove(parent, name),
                }
            }
            Op::Unlink { path } => {
                let (parent, name) = self.parent(path)?;
                let id = self.lookup(path)?;
                if self.children(id).is_some() {
                    return Err(Errno::ISDIR);
                }
                self.remove(parent, name);
            }
            Op::Rename { from, to } => self.rename(from, to, false)?,
            Op::RenameNoReplace { from, to } => self.rename(from, to, true)?,
            Op::Exchange { from, to } => self.exchange(from, to)?,
            Op::Link { old, new } => {
                let id = self.lookup(old)?;
                let (parent, name) = self.vacancy(new)?;
                if self.children(id).is_some() {
                    return Err(Errno::PERM);
                }
                self.inodes[id].copied_up = CopiedUp::Yes;
                self.inodes[id].linked = true;
                self.insert(parent, name, id);
            }
            Op::Chmod { path, mode } => {
                let id = self.lookup(path)?;
                if matches!(self.inodes[id].kind, Kind::Symlink(_)) {
                    return Err(Errno::NOENT);
                }
                self.chmod(id, *mode);
            }
            Op::Chown { path, uid, gid } => {
                let id = self.lookup(path)?;
                let inode = &mut self.inodes[id];
                (inode.uid, inode.gid, inode.copied_up) = (*uid, *gid, CopiedUp::Yes);
                if !matches!(inode.kind, Kind::Dir(_) | Kind::Symlink(_)) {
                    let sgid = if inode.mode & 0o10 != 0 { 0o2000 } else { 0 };
                    inode.mode &= !(0o4000 | sgid);
                }
            }
            Op::Utimens { path, mtime } => {
                let id = self.lookup(path)?;
                self.inodes[id].mtime = Some(*mtime);
                self.inodes[id].copied_up = CopiedUp::Yes;
            }
            Op::SetXattr { path, name, value } => {
                let id = self.lookup(path)?;
                self.may_have_xattr(id, name)?;
                self.inodes[id].xattrs.insert(name.clone(), value.clone());
                self.inodes[id].copied_up = CopiedUp::Yes;
            }
            Op::RemoveXattr { path, name } => return self.remove_xattr(path, name),
            Op::Readdir { path } => {
                let id = self.lookup(path)?;
                return match self.inodes[id].kind {
                    Kind::Dir(ref children) => Ok(Expected::Names(children.keys().cloned().collect())),
                    // O_NOFOLLOW with O_DIRECTORY finds that a link is no directory.
                    _ => Err(Errno::NOTDIR),
                };
            }
            _ => return self.apply_to_handle(op, step),
        }
        Ok(Expected::Done)
    }

    fn apply_to_handle(&mut self, op: &Op, step: u64) -> Result<Expected, Errno> {
        let handle = |union: &Self, slot: usize| union.handles[slot].clone();
        match *op {
            Op::Open { slot, ref path, write } => {
                let Some(id) = self.regular(path, write)? else { return Ok(Expected::Skip) };
                let inode = &mut self.inodes[id];
                if write && inode.copied_up == CopiedUp::No && inode.lower_links > 1 {
                    return Ok(Expected::Skip);
                }
                let early = !write && inode.copied_up != CopiedUp::Yes;
                if write && self.indexed {
                    // The kernel's copy of a metacopy file's content changes it.
                    inode.mtime = None;
                }
                if write && inode.copied_up == CopiedUp::No {
                    inode.copied_up = CopiedUp::Maybe;
                }
                self.handles[slot] = Some(Handle { id, write, early });
            }
            Op::HandleWrite { slot, .. } | Op::HandleTruncate { slot, .. } => {
                let Some(handle) = handle(self, slot) else { return Ok(Expected::Skip) };
                if !handle.write {
                    return Ok(Expected::Skip);
                }
                self.write(op, handle.id, step);
            }
            Op::HandleRead { slot } => {
                let Some(handle) = handle(self, slot) else { return Ok(Expected::Skip) };
                let content = self.content(handle.id);
                let moved = self.inodes[handle.id].copied_up != CopiedUp::No;
                return Ok(match handle.early && moved {
                    true => Expected::CoherentContent(content),
                    false => Expected::Content(content),
                });
            }
            Op::HandleChmod { slot, mode } => {
                let Some(handle) = handle(self, slot) else { return Ok(Expected::Skip) };
                // For an unlinked lower file, the kernel tries to copy up to the lost name.
                let inode = &self.inodes[handle.id];
                if inode.names == 0 && inode.copied_up == CopiedUp::No {
                    return Ok(Expected::Skip);
                }
                self.chmod(handle.id, mode);
            }
            Op::HandleStat { slot } => {
                let Some(handle) = handle(self, slot) else { return Ok(Expected::Skip) };
                let inode = &self.inodes[handle.id];
                // For an unlinked file that was never copied up, the kernel shows the lower file's count, others 0.
                let nlink = (inode.copied_up == CopiedUp::Yes).then(|| inode.nlink());
                return Ok(Expected::Stat(inode.mode, self.content(handle.id).len() as u64, nlink));
            }
            Op::Close { slot } => {
                if self.handles[slot].take().is_none() {
                    return Ok(Expected::Skip);
                }
            }
            Op::Remount { .. } => {
                self.saved = None;
                self.handles = Default::default();
                if !self.indexed {
                    self.split_links();
                }
            }
            Op::Checkpoint | Op::Fork { .. } => self.checkpoint(),
            Op::Rollback => match self.saved.take() {
                Some(saved) => self.roll_back(saved),
                None => return Ok(Expected::Skip),
            },
            // The index stays behind.
            Op::Restack { .. } if self.indexed => return Ok(Expected::Skip),
            Op::Restack { .. } => {
                self.handles = Default::default();
                self.restack();
            }
            _ => unreachable!("{op:?}"),
        }
        Ok(Expected::Done)
    }

    fn content(&self, id: Id) -> Vec<u8> {
        match &self.inodes[id].kind {
            Kind::File(content) => content.clone(),
            other => panic!("not a file: {other:?}"),
        }
    }

    fn write(&mut self, op: &Op, id: Id, step: u64) {
        let put = |content: &mut Vec<u8>, offset: u64, length: usize| {
            let offset = offset as usize;
            if length > 0 {
                content.resize(content.len().max(offset + length), 0);
                content[offset..offset + length].copy_from_slice(&bytes(step, length));
            }
        };
        match *op {
            Op::WriteAt { offset, length, .. } | Op::HandleWrite { offset, length, .. } => {
                self.modify(id, |content| put(content, offset, length));
            }
            Op::Append { length, .. } => self.modify(id, |content| content.extend(bytes(step, length))),
            Op::Truncate { size, .. } | Op::HandleTruncate { size, .. } => {
                self.modify(id, |content| content.resize(size as usize, 0));
            }
            Op::Overwrite { length, .. } => self.modify(id, |content| *content = bytes(step, length)),
            _ => unreachable!("{op:?}"),
        }
    }

    fn chmod(&mut self, id: Id, mode: u32) {
        self.inodes[id].mode = mode;
        self.inodes[id].copied_up = CopiedUp::Yes;
    }

    fn remove_xattr(&mut self, path: &str, name: &str) -> Result<Expected, Errno> {
        let id = self.lookup(path)?;
        self.may_have_xattr(id, name)?;
        let inode = &mut self.inodes[id];
        if inode.copied_up == CopiedUp::No && inode.lower_links > 1 && !inode.xattrs.contains_key(name) {
            return Ok(Expected::Skip);
        }
        if inode.xattrs.remove(name).is_none() {
            inode.copied_up = if inode.copied_up == CopiedUp::Yes { CopiedUp::Yes } else { CopiedUp::Maybe };
            return Err(Errno::NODATA);
        }
        inode.copied_up = CopiedUp::Yes;
        Ok(Expected::Done)
    }

    fn may_have_xattr(&self, id: Id, name: &str) -> Result<(), Errno> {
        let takes_user = matches!(self.inodes[id].kind, Kind::Dir(_) | Kind::File(_));
        if takes_user || !name.starts_with("user.") { Ok(()) } else { Err(Errno::PERM) }
    }

    fn is_ancestor(&self, ancestor: Id, id: Id) -> bool {
        ancestor == id
            || self
                .children(ancestor)
                .is_some_and(|children| children.values().any(|&child| self.is_ancestor(child, id)))
    }

    fn rename(&mut self, from: &str, to: &str, no_replace: bool) -> Result<(), Errno> {
        let (from_parent, from_name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        let id = self.lookup(from)?;
        let target = self.children(to_parent).and_then(|children| children.get(to_name).copied());
        if no_replace && target.is_some() {
            return Err(Errno::EXIST);
        }
        if self.is_ancestor(id, to_parent) {
            return Err(Errno::INVAL);
        }
        if target.is_some_and(|target| self.is_ancestor(target, from_parent)) {
            return Err(Errno::NOTEMPTY);
        }
        if target == Some(id) {
            return Ok(());
        }
        if let Some(target) = target {
            match (self.children(id), self.children(target)) {
                (Some(_), None) => return Err(Errno::NOTDIR),
                (None, Some(_)) => return Err(Errno::ISDIR),
                (Some(_), Some(children)) if !children.is_empty() => {
                    // The kernel may already have copied up, without restoring the parent's time.
                    self.inodes[from_parent].mtime = None;
                    return Err(Errno::NOTEMPTY);
                }
                _ => self.remove(to_parent, to_name),
            }
        }
        self.inodes[id].copied_up = CopiedUp::Yes;
        self.insert(to_parent, to_name, id);
        self.remove(from_parent, from_name);
        Ok(())
    }

    fn exchange(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        let (from_parent, from_name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        let id = self.lookup(from)?;
        let target = self.lookup(to)?;
        if self.is_ancestor(id, to_parent) || self.is_ancestor(target, from_parent) {
            return Err(Errno::INVAL);
        }
        if id == target {
            return Ok(());
        }
        for (inode, parent, name) in [(id, to_parent, to_name), (target, from_parent, from_name)] {
            self.inodes[inode].copied_up = CopiedUp::Yes;
            self.children_mut(parent).insert(name.to_owned(), inode);
            self.touch(parent);
        }
        Ok(())
    }

    /// The upper has become a lower layer; nothing visible changes. Files that are open for writing are in the new upper.
    fn checkpoint(&mut self) {
        let written = self.written();
        for (id, inode) in self.inodes.iter_mut().enumerate() {
            if inode.copied_up == CopiedUp::No || inode.names == 0 || written.contains(&id) || id == ROOT {
                continue;
            }
            inode.lower_links = inode.names;
            inode.copied_up = CopiedUp::No;
            inode.own = true;
        }
        let mut saved = Self { saved: None, handles: Default::default(), ..self.clone() };
        // In the layer, copies have the names of the files that are open for writing.
        for id in written {
            let inode = &mut saved.inodes[id];
            (inode.lower_links, inode.copied_up, inode.own) = (inode.names, CopiedUp::No, true);
        }
        self.saved = Some(Box::new(saved));
    }

    /// The mount shows `saved` again. An open file stays if one of its names leads to it in `saved` too; otherwise it
    /// behaves like a deleted one.
    fn roll_back(&mut self, saved: Box<Self>) {
        let before = std::mem::replace(self, (*saved).clone());
        let paths = before.entries();
        let mut deleted: BTreeMap<Id, Id> = BTreeMap::new();
        for (slot, handle) in before.handles.iter().enumerate() {
            let Some(handle) = handle else { continue };
            let inode = &before.inodes[handle.id];
            let is_there = |path: &str| saved.lookup(path) == Ok(handle.id);
            let stays =
                inode.copied_up == CopiedUp::No && paths.iter().any(|(path, id)| *id == handle.id && is_there(path));
            let id = match stays {
                true => handle.id,
                false => *deleted.entry(handle.id).or_insert_with(|| {
                    self.inodes.push(Inode { names: 0, ..inode.clone() });
                    self.inodes.len() - 1
                }),
            };
            self.handles[slot] = Some(Handle { id, ..handle.clone() });
        }
        self.saved = Some(saved);
    }

    /// The files that are open for writing.
    pub fn written(&self) -> Vec<Id> {
        self.handles.iter().flatten().filter(|handle| handle.write).map(|handle| handle.id).collect()
    }

    /// Another union on the layers of a checkpoint that has just been made.
    pub fn fork(&self) -> Self {
        let mut fork = self.clone();
        fork.handles = Default::default();
        fork.checkpoint();
        fork.split_links();
        fork.saved = None;
        fork
    }

    /// The upper has become a lower layer: its hard links are separate files when they are changed.
    fn restack(&mut self) {
        self.saved = None;
        for inode in &mut self.inodes {
            if inode.copied_up != CopiedUp::No {
                inode.lower_links = inode.names;
            }
            inode.copied_up = CopiedUp::No;
        }
        self.inodes[ROOT].copied_up = CopiedUp::Yes;
        self.inodes[ROOT].mode = 0o755;
        (self.inodes[ROOT].uid, self.inodes[ROOT].gid, self.inodes[ROOT].mtime) = (0, 0, None);
        self.inodes[ROOT].xattrs.clear();
        self.split_links();
    }

    /// Hard links of a lower layer are separate files when they are changed.
    fn split_links(&mut self) {
        self.inodes.iter_mut().for_each(|inode| inode.own = false);
        let mut seen = vec![false; self.inodes.len()];
        for (path, id) in self.entries() {
            let is_first = !std::mem::replace(&mut seen[id], true);
            if is_first || self.inodes[id].copied_up != CopiedUp::No || self.children(id).is_some() {
                continue;
            }
            let alias = self.inodes.len();
            let copy = Inode { names: 1, ..self.inodes[id].clone() };
            self.inodes.push(copy);
            self.inodes[id].names = 1;
            let (parent, name) = self.parent(&path).expect("a listed path");
            let name = name.to_owned();
            self.children_mut(parent).insert(name, alias);
        }
    }
}
