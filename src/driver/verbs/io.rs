//! Open files.
//!
//! A handle that was opened for reading before a copy-up switches to the upper file at its next read. The kernel
//! allows one backing file per inode at a time and no mixing of passthrough with its page cache. So the first open
//! handle decides for all that are opened while it is open.
//!
//! Lower files that were read lately are kept open for the next open. A file that was opened before is opened again only at
//! the first read; reads answered by the kernel's cache never need it (open, read, close, 12,000 times: 19 µs each instead of
//! 23). Until that read, the content is lost if the file is removed from its layer behind the mount's back. So the first open
//! of a file, and every exec, opens the backing file eagerly.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use crate::driver::Union;
use crate::driver::locate::{LowerPlace, left_in_layer};
use crate::driver::node::handle::RealFile;
use crate::driver::node::sync::RwLock;
use crate::driver::node::{NodeRef, OpenFile, ReadPattern};
use crate::driver::types::{Caller, Errno, HandleId, NodeId, OpenMode, Opened, Result};
use crate::driver::verbs::attr::mode_without_set_id;
use crate::union::layer::{FileType, Layer, Stat};

/// Flag of an open that executes a program (`FMODE_EXEC` in `include/linux/fs.h`).
const EXECUTE: u32 = 0x20;

/// Access mode bits of `open(2)`.
fn access_mode(flags: u32) -> u32 {
    flags & libc::O_ACCMODE as u32
}

/// A file to flush. Flushing may take long, so it is done without a lock.
pub(in crate::driver) struct Flush {
    file: Arc<OwnedFd>,
    /// If the content is flushed: the open file that is told of a failure.
    handle: Option<Arc<OpenFile>>,
}

impl Flush {
    /// Flushes the file.
    ///
    /// # Errors
    /// Those of `fsync(2)`, including that of an earlier flush which the handle was not told of.
    pub(in crate::driver) fn run(self, data_only: bool) -> Result<()> {
        let flushed = if data_only { rustix::fs::fdatasync(self.file) } else { rustix::fs::fsync(self.file) };
        let Some(handle) = self.handle else { return flushed };
        let mut state = handle.node.file_state().ok_or(Errno::ISDIR)?;
        state.open_mut().note_flush(flushed, &handle.failed_flushes)
    }
}

impl Union {
    /// Flags with which the real file is opened: those that the kernel handles itself (append, sync, direct) are left out.
    pub(in crate::driver) fn backing_flags(&self, flags: u32) -> OFlags {
        let access = match access_mode(flags) {
            mode if mode == libc::O_RDONLY as u32 => OFlags::RDONLY,
            // The writeback cache reads pages before it writes parts of them.
            mode if mode == libc::O_WRONLY as u32 && !self.config.writeback => OFlags::WRONLY,
            _ => OFlags::RDWR,
        };
        let quiet = if self.config.no_atime { OFlags::NOATIME } else { OFlags::empty() };
        access | quiet | (OFlags::from_bits_retain(flags) & OFlags::TRUNC)
    }

    /// Opens a regular file with `flags` (those of `open(2)`).
    ///
    /// # Errors
    /// `ROFS`; those of copy-up and `open(2)`.
    pub(crate) fn open_file(&self, caller: &Caller, node: NodeId, flags: u32, kill_suidgid: bool) -> Result<Opened> {
        let asked = node;
        let node = self.node(asked)?;
        if node.file_type != FileType::Regular {
            return Err(Errno::INVAL);
        }
        if node.is_abandoned() {
            // The kernel looks the name up again, and finds what the mount shows now.
            return Err(Errno::STALE);
        }
        let truncates = flags & libc::O_TRUNC as u32 != 0;
        let writes = access_mode(flags) != libc::O_RDONLY as u32 || truncates;
        // Before any other open for writing, the kernel has checked that no process executes the file. For this kind it checks
        // afterwards (`do_open` in `fs/namei.c`), when the program would already be empty. overlayfs does empty a lower program.
        if truncates
            && access_mode(flags) == libc::O_RDONLY as u32
            && node.file_state().is_some_and(|s| s.is_executed())
        {
            return Err(Errno::TXTBSY);
        }
        if writes {
            node.check_writing(flags & libc::O_APPEND as u32 != 0 && !truncates)?;
            self.copy_up_to(&node, truncates.then_some(0))?;
        }
        self.check_inode(&node, asked)?;
        if !writes && flags & EXECUTE == 0 && self.opens_when_read(&node) {
            let kept = node.state().layer().and_then(|layer| {
                let known = self.nodes.descriptors().lower_files.get(&(node.id().0, layer.number()))?;
                Some(RealFile::Lower(known, layer))
            });
            return self.install(&node, asked, kept.unwrap_or(RealFile::Unopened), flags, 0);
        }
        let backing_flags = self.backing_flags(flags);
        let real = match truncates {
            true => self.counting(&node, || self.open_real(&node, backing_flags))?,
            false => self.open_real(&node, backing_flags)?,
        };
        if let RealFile::Lower(file, _) = &real {
            self.classify(&node, file.as_fd(), flags & EXECUTE != 0);
        }
        let mut mode = 0;
        if writes && let RealFile::Upper(file, _) = &real {
            let stat = self.shown_stat_of(file.as_fd(), Stat::of(file.as_fd(), c"")?)?;
            mode = stat.mode;
            if self.permissions.is_some() {
                self.on_upper(&node, |dir, name| self.drop_kept_capability(dir, name, &stat))?;
            }
            if truncates
                && kill_suidgid
                && let Some(kept) = mode_without_set_id(caller, &stat)
            {
                self.on_upper(&node, |dir, name| self.set_shown_mode(dir, name, kept))?;
                mode = kept;
            }
        }
        self.install(&node, asked, real, flags, mode)
    }

    /// True if a file can be opened at its first read: it is a lower file, which keeps its place whatever happens to
    /// its name, it was opened before, the driver may open it, and the kernel does not read it itself.
    fn opens_when_read(&self, node: &NodeRef) -> bool {
        self.privileged
            && !self.may_pass_through(node, false)
            && node.is_confirmed()
            && node.file_state().is_some_and(|state| state.lower().is_some())
    }

    /// Opens the real file. Handles share the descriptor of an upper file, so a file takes one descriptor for each access
    /// mode, however often it is open.
    fn open_real(&self, node: &NodeRef, flags: OFlags) -> Result<RealFile> {
        let (is_lower, layer, content, shared) = {
            let state = node.file_state().ok_or(Errno::ISDIR)?;
            let layer = state.layer().ok_or(Errno::STALE)?;
            let shared = state.open().and_then(|open| open.shared(flags & OFlags::ACCMODE, layer));
            let is_lower = state.lower().is_some();
            (is_lower, layer, state.content().cloned(), shared.filter(|_| state.has_upper_content()))
        };
        if let Some(file) = shared {
            if flags.contains(OFlags::TRUNC) && flags & OFlags::ACCMODE != OFlags::RDONLY {
                rustix::fs::ftruncate(&file, 0)?;
                return Ok(RealFile::Upper(file, layer));
            }
            if !flags.contains(OFlags::TRUNC) {
                return Ok(RealFile::Upper(file, layer));
            }
        }
        if let Some(content) = content {
            return Ok(RealFile::Lower(Arc::new(self.open_content(&content)?), content.layer));
        }
        let (cache, key) = (&self.nodes.descriptors().lower_files, (node.id().0, layer.number()));
        if is_lower && let Some(file) = cache.get(&key) {
            return Ok(RealFile::Lower(file, layer));
        }
        if let Some((held, layer)) = left_in_layer(node) {
            return Ok(RealFile::Lower(Arc::new(held.open_file(c"")?), layer));
        }
        let Some(place) = LowerPlace::of(node)? else {
            let file = self.on_upper(node, |dir, name| dir.open_writable(name, flags))?;
            return Ok(RealFile::Upper(Arc::new(file), layer));
        };
        let (part, name) = (place.part()?, place.name());
        let view = self.lower_view(&place.dir, part)?;
        let changed = |found: &str, errno: Errno| {
            tracing::error!("{:?}: {found}: a lower layer changed while mounted", view.shown_path(name));
            Err(errno)
        };
        let file = match self.lower_dir(&place.dir, part)?.open_file(name) {
            Ok(file) => Arc::new(file),
            Err(errno @ (Errno::NOENT | Errno::NOTDIR)) => return changed("vanished", errno),
            Err(Errno::LOOP | Errno::NXIO) => return changed("not the file that it was", Errno::IO),
            Err(errno) => return Err(errno),
        };
        let opened = Stat::of(file.as_fd(), c"")?;
        if opened.file_type() != FileType::Regular {
            return changed("not the file that it was", Errno::IO);
        }
        view.confirm(name, &opened)?;
        cache.insert((node.id().0, part.layer.number()), file.clone());
        node.confirm();
        Ok(RealFile::Lower(file, part.layer))
    }

    /// Makes a handle of an opened real file, for the kernel's inode with the number `asked`. `mode` is the
    /// file's mode if it may be written.
    pub(in crate::driver) fn install(
        &self,
        node: &NodeRef,
        asked: NodeId,
        file: RealFile,
        flags: u32,
        mode: u32,
    ) -> Result<Opened> {
        let writable = access_mode(flags) != libc::O_RDONLY as u32;
        let mappable = access_mode(flags) == libc::O_RDWR as u32;
        let mut state = node.file_state().ok_or(Errno::ISDIR)?;
        let bypassed = node.is_bypassed();
        // The file was copied up after it was opened.
        let upper = file.is_upper();
        let outdated = file.layer().is_some_and(|layer| state.content_layer() != Some(layer))
            || (!upper && state.has_upper_content());
        let current = asked == node.id();
        let set_id = writable && mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        // Under the former number, only passthrough handles are possible.
        let usable =
            state.can_open_under(current) && (current || (self.may_pass_through(node, upper) && upper && !set_id));
        if !usable {
            drop(state);
            return Err(self.turn_away(node, asked));
        }
        let access = self.backing_flags(flags) & OFlags::ACCMODE;
        if let RealFile::Upper(file, layer) = &file {
            state.open_mut().share(access, *layer, file);
        }
        let of_upper = if let RealFile::Upper(file, _) = &file { Some(Arc::clone(file)) } else { None };
        let failed_flushes = state.open_mut().failed_flushes();
        let open = state.open_mut().under(current);
        let (backing, keep) = if open.passthrough > 0 {
            (open.backing, true)
        } else if open.cached == 0 && self.may_pass_through(node, upper) && !set_id && !outdated {
            open.backing_layer = file.layer();
            (file.fd().and_then(|file| self.register(file)), true)
        } else {
            // With a timeout, the lower file may have changed.
            (None, !bypassed && (upper || self.config.timeout.is_none()) && !node.may_differ())
        };
        let passthrough = backing.is_some();
        let handle = Arc::new(OpenFile {
            node: node.clone(),
            real: RwLock::new(file),
            flags: self.backing_flags(flags).difference(OFlags::TRUNC),
            writable,
            passthrough,
            mappable: passthrough && mappable,
            executing: flags & EXECUTE != 0,
            failed_flushes: failed_flushes.into(),
            pattern: ReadPattern::default(),
        });
        let mut newly_mappable = false;
        if passthrough {
            open.backing = backing;
            open.passthrough += 1;
            if mappable {
                newly_mappable = open.mappable == 0;
                open.mappable += 1;
            }
        } else {
            open.cached += 1;
        }
        open.handles.push(handle.clone());
        node.set_bypassed(&mut state, passthrough || (bypassed && keep));
        drop(state);
        if (newly_mappable || (!upper && self.config.timeout.is_some()))
            && let Some(kernel) = self.kernel()
        {
            // From now on, a mapping may change the size and times that the kernel has cached.
            kernel.invalidate_attr(node.id());
            self.changed_under(node, asked);
        }
        let id = HandleId(self.handles.insert(handle));
        if let Some(file) = of_upper
            && let Err(errno) = self.count_opened(id, node, file.as_fd())
        {
            self.release(id);
            return Err(errno);
        }
        let mode = match backing {
            Some(backing) => OpenMode::Passthrough(backing),
            None if keep => OpenMode::KeepCache,
            None => OpenMode::DropCache,
        };
        Ok(Opened { handle: id, mode })
    }

    fn register(&self, file: &OwnedFd) -> Option<u32> {
        let kernel = self.kernel()?;
        match kernel.register_backing(file.as_fd()) {
            Ok(backing) => Some(backing),
            Err(errno) => {
                tracing::debug!("no passthrough for a file: {errno}");
                None
            }
        }
    }

    /// Closes a handle.
    pub(crate) fn release(&self, handle: HandleId) {
        let id = handle;
        let Some(handle) = self.handles.remove(id.0) else { return };
        let unused = handle.node.state().close(&handle);
        if let (Some(backing), Some(kernel)) = (unused, self.kernel()) {
            kernel.unregister_backing(backing);
        }
        self.count_closed(id, handle);
    }

    fn open_handle(&self, handle: HandleId) -> Result<Arc<OpenFile>> {
        self.handles.get(handle.0).ok_or(Errno::BADF)
    }

    /// The real file to read from or write to at this moment.
    fn current(&self, handle: &OpenFile) -> Result<Arc<OwnedFd>> {
        let layer = handle.node.state().content_layer();
        if let Some(fd) = handle.real.read().of_layer(layer) {
            return Ok(fd.clone());
        }
        let real = match self.open_real(&handle.node, handle.flags) {
            // The file was changed in its layer; the inventory is not trusted for it any more.
            Err(Errno::STALE) => {
                if let Some(kernel) = self.kernel() {
                    kernel.invalidate_attr(handle.node.id());
                }
                self.open_real(&handle.node, handle.flags)?
            }
            opened => opened?,
        };
        let fd = real.fd().ok_or(Errno::IO)?.clone();
        *handle.real.write() = real.clone();
        if let (RealFile::Upper(fd, layer), Some(mut state)) = (&real, handle.node.file_state()) {
            state.open_mut().share(handle.flags & OFlags::ACCMODE, *layer, fd);
        }
        Ok(fd)
    }

    /// Reads into `buffer`. Reads fewer bytes than its length only at the end of the file.
    ///
    /// # Errors
    /// Those of `pread(2)`.
    pub(crate) fn read(&self, handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let handle = self.open_handle(handle)?;
        let file = self.current(&handle)?;
        let mut done = self.read_ready(&handle, &file, offset, buffer)?;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&file, rest, offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    /// Writes `bytes`; returns how many were written.
    ///
    /// # Errors
    /// `BADF`; those of `pwrite(2)`.
    pub(crate) fn write(
        &self,
        caller: &Caller,
        handle: HandleId,
        offset: u64,
        bytes: &[u8],
        kill_suidgid: bool,
    ) -> Result<usize> {
        let id = handle;
        let handle = self.open_handle(id)?;
        if !handle.writable {
            return Err(Errno::BADF);
        }
        let file = self.current(&handle)?;
        self.check_append(&handle.node, file.as_fd(), offset)?;
        let (grant, length) = self.grant_write(file.as_fd(), offset, bytes.len() as u64)?;
        let bytes = bytes.get(..usize::try_from(length).unwrap_or(usize::MAX)).unwrap_or(bytes);
        let written = Self::write_all(&file, offset, bytes);
        self.count_written(id, file.as_fd(), false);
        drop(grant);
        let done = written?;
        if kill_suidgid {
            let stat = self.shown_stat_of(file.as_fd(), Stat::of(file.as_fd(), c"")?)?;
            match mode_without_set_id(caller, &stat) {
                Some(kept) if self.permissions.is_some() => {
                    self.on_upper(&handle.node, |dir, name| self.set_shown_mode(dir, name, kept))?;
                }
                Some(kept) => rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(kept))?,
                None => {}
            }
        }
        Ok(done)
    }

    /// Writes `bytes` at `offset`; how many were written.
    fn write_all(file: &OwnedFd, offset: u64, bytes: &[u8]) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(file, rest, offset + done as u64) {
                Ok(0) => break,
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    /// What to flush for an fsync of an open file; `None` if there is nothing to flush.
    ///
    /// # Errors
    /// `BADF`; those of opening the real file.
    pub(crate) fn to_fsync(&self, handle: HandleId) -> Result<Option<Flush>> {
        if !self.flushes() {
            return Ok(None);
        }
        let handle = self.open_handle(handle)?;
        let file = self.current(&handle)?;
        if !handle.real.read().is_upper() && !handle.node.has_upper() {
            // A lower file has nothing to flush, and a read-only file system would refuse the fsync (kernel: `ovl_fsync`). The
            // exception is a file that was written when its layer was the upper.
            let layer = handle.node.state().layer();
            let may_be_dirty = layer.is_some_and(|layer| self.stack.lower(layer).is_ok_and(Layer::was_upper));
            return Ok(may_be_dirty.then_some(Flush { file, handle: None }));
        }
        if !handle.real.read().is_upper() {
            // The content is still in a lower layer and needs no flush, but the attributes do (kernel: `ovl_fsync`).
            let attributes = self.on_upper(&handle.node, |dir, name| dir.open_writable(name, OFlags::RDONLY))?;
            return Ok(Some(Flush { file: Arc::new(attributes), handle: None }));
        }
        Ok(Some(Flush { file, handle: Some(handle) }))
    }

    /// True unless the mount never flushes.
    pub(in crate::driver) fn flushes(&self) -> bool {
        !self.config.ignore_fsync && !self.config.volatile
    }

    /// Allocates or frees space (`fallocate(2)`).
    ///
    /// # Errors
    /// `BADF`; those of `fallocate(2)`.
    pub(crate) fn fallocate(&self, handle: HandleId, mode: u32, offset: u64, length: u64) -> Result<()> {
        let id = handle;
        let handle = self.open_handle(id)?;
        if !handle.writable {
            return Err(Errno::BADF);
        }
        handle.node.check_writing(mode & !FallocateFlags::KEEP_SIZE.bits() == 0)?;
        let (file, mode) = (self.current(&handle)?, FallocateFlags::from_bits_retain(mode));
        let grant = self.grant_allocation(file.as_fd(), mode, offset, length)?;
        let allocated = rustix::fs::fallocate(&file, mode, offset, length);
        self.count_written(id, file.as_fd(), mode == FallocateFlags::KEEP_SIZE);
        drop(grant);
        allocated
    }

    /// Finds data or a hole (`SEEK_DATA`, `SEEK_HOLE`).
    ///
    /// # Errors
    /// `NXIO`; those of `lseek(2)`.
    pub(crate) fn lseek(&self, handle: HandleId, offset: u64, whence: u32) -> Result<u64> {
        let position = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            Ok(libc::SEEK_END) => SeekFrom::End(i64::try_from(offset).map_err(|_| Errno::INVAL)?),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(self.current(&*self.open_handle(handle)?)?, position)
    }

    /// Copies inside the kernel; returns the number of bytes.
    ///
    /// # Errors
    /// `BADF`; those of `copy_file_range(2)`.
    pub(crate) fn copy_file_range(
        &self,
        from: HandleId,
        from_offset: u64,
        to: HandleId,
        to_offset: u64,
        length: u64,
    ) -> Result<usize> {
        let id = to;
        let to = self.open_handle(id)?;
        if !to.writable {
            return Err(Errno::BADF);
        }
        to.node.check_writing(true)?;
        let (source, target) = (self.current(&*self.open_handle(from)?)?, self.current(&to)?);
        self.check_append(&to.node, target.as_fd(), to_offset)?;
        let (mut read_at, mut write_at) = (from_offset, to_offset);
        // The reply has a 32-bit counter, and a killed process waits for the end of the call.
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 27);
        let (grant, length) =
            self.grant_range_copy((source.as_fd(), from_offset), (target.as_fd(), to_offset), length)?;
        let copied = rustix::fs::copy_file_range(&source, Some(&mut read_at), &target, Some(&mut write_at), length);
        self.count_written(id, target.as_fd(), false);
        drop(grant);
        copied
    }
}
