//! `size=`: a limit on what the upper holds.
//!
//! The count is that of `du`: the blocks of every file and directory, a hard link once. A removed file counts until it is
//! closed. The count starts with a walk over the upper when it is mounted, and follows every change from then on: a verb that
//! changes a file compares the file's blocks with those that are counted for it ([`Account`]). All writes must therefore come
//! through the driver, so files of the upper are not passed through (`passthrough`).
//!
//! A verb that takes blocks reserves them first ([`Grant`]), so concurrent verbs cannot exceed the limit together. Reservations are
//! upper bounds; near the limit the driver finds out which blocks exist already. The blocks that a directory takes for its entries,
//! for whiteouts and for its own copy-up are counted but never refused, because removing must always be possible. If they exceed
//! the limit, no new name is made until something was removed.
//!
//! The file system may add or free blocks during writeback (ext4: a block for the list of extents). The driver notices that at the
//! next change of the file. The account of a written file stays as long as the kernel knows the node, so that the removal of the
//! file subtracts exactly what was counted.

mod verbs;

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::SeekFrom;

use crate::driver::node::NodeRef;
use crate::driver::types::{Errno, HandleId, Result};
use crate::sys::extents;
use crate::union::layer::{FileId, FileType, Stat, UpperDir, UpperLayer};

/// Unit of `st_blocks`, in bytes.
const SECTOR: u64 = 512;
/// If at least so many bytes are allocated behind the end of an open file, they are not counted: xfs allocates ahead of a
/// writer, and frees these blocks when the file is closed.
const AHEAD: u64 = 64 * 1024;
/// How often, and for how long each time, an allocation waits for removed files to be closed: the kernel tells the driver
/// of a close only after `close(2)` has returned.
const CLOSING: (u32, Duration) = (5, Duration::from_millis(1));

/// The usage and the limit of the upper, in bytes.
#[derive(Debug)]
pub(in crate::driver) struct Usage {
    limit: u64,
    /// The count, including reservations.
    used: AtomicU64,
    /// Size of a block of the upper's file system.
    block: u64,
    /// Files that are open or being changed. Leaf lock.
    accounts: Mutex<HashMap<FileId, Arc<Account>>>,
    /// Accounts of open files of the upper, by handle. Leaf lock.
    handles: Mutex<HashMap<u64, Tracked>>,
    /// Accounts of closed files that were written, by the address of the node, which is in the table. Leaf lock.
    written: Mutex<HashMap<usize, Tracked>>,
    /// Number of removed files that are still open.
    lingering: AtomicU64,
}

/// The account of one file: what is counted for it.
#[derive(Debug)]
struct Account {
    /// In bytes. The lock is held over the `statx(2)` of the file. When it is taken, only locks that verbs hold over I/O may be
    /// held.
    charged: Mutex<Charge>,
}

#[derive(Clone, Copy, Debug)]
struct Charge {
    bytes: u64,
    /// True if a user allocated blocks behind the end of the file (`fallocate(2)`).
    preallocated: bool,
}

/// A file whose account is kept.
#[derive(Clone, Debug)]
pub(in crate::driver) struct Tracked {
    file: FileId,
    account: Arc<Account>,
}

/// A reservation of blocks. Dropping it ends the reservation; the blocks that were really taken are counted by then.
#[derive(Debug)]
#[must_use]
pub(in crate::driver) struct Grant<'u> {
    usage: Option<&'u Usage>,
    reserved: u64,
}

impl Grant<'_> {
    /// The reservation of a mount without a limit, and of a change that takes no blocks.
    pub(in crate::driver) const UNLIMITED: Self = Grant { usage: None, reserved: 0 };

    /// Raises the reservation to `bytes`.
    ///
    /// # Errors
    /// `NOSPC`
    pub(in crate::driver) fn raise(&mut self, bytes: u64) -> Result<()> {
        let Some(usage) = self.usage else { return Ok(()) };
        let further = bytes.saturating_sub(self.reserved);
        usage.reserve(further)?;
        self.reserved += further;
        Ok(())
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        if let Some(usage) = self.usage {
            usage.shrink(self.reserved);
        }
    }
}

fn bytes(stat: &Stat) -> u64 {
    stat.blocks.saturating_mul(SECTOR)
}

/// Bytes that the blocks of a regular file have beyond its size.
fn bytes_behind(stat: &Stat) -> u64 {
    if stat.file_type() == FileType::Regular { bytes(stat).saturating_sub(stat.size) } else { 0 }
}

impl Charge {
    fn of(stat: &Stat) -> Self {
        Self { bytes: bytes(stat), preallocated: bytes_behind(stat) > AHEAD }
    }

    /// Returns the bytes to count for the file now.
    fn now(self, stat: &Stat) -> Self {
        let counted = if self.is_ahead(stat) { stat.size.next_multiple_of(4096) } else { bytes(stat) };
        Self { bytes: counted, ..self }
    }

    /// True if the blocks behind the file's end are not counted.
    fn is_ahead(self, stat: &Stat) -> bool {
        !self.preallocated && bytes_behind(stat) > AHEAD
    }
}

impl Usage {
    /// Counts what the upper holds.
    ///
    /// # Errors
    /// Those of listing directories.
    pub(in crate::driver) fn of(upper: &UpperLayer, limit: u64) -> Result<Self> {
        let block = rustix::fs::fstatvfs(upper.root().open_self()?)?.f_frsize.clamp(SECTOR, 1 << 20);
        let usage = Self {
            limit: limit.checked_next_multiple_of(block).unwrap_or(u64::MAX),
            used: AtomicU64::new(0),
            block,
            accounts: Mutex::default(),
            handles: Mutex::default(),
            written: Mutex::default(),
            lingering: AtomicU64::new(0),
        };
        usage.recount(upper)?;
        Ok(usage)
    }

    /// Counts again from the start. The upper must not change meanwhile.
    ///
    /// # Errors
    /// Those of listing directories.
    pub(in crate::driver) fn recount(&self, upper: &UpperLayer) -> Result<()> {
        let accounts = self.accounts.lock().clone();
        for account in accounts.values() {
            account.charged.lock().bytes = 0;
        }
        let mut walk = Walk { accounts: &accounts, linked: HashSet::new(), total: 0 };
        walk.add(&upper.root().stat_self()?);
        walk.directory(upper.root())?;
        if let Some(index) = upper.index() {
            walk.directory(index)?;
        }
        self.used.store(walk.total, Ordering::Release);
        Ok(())
    }

    /// The limit and the usage, in bytes.
    pub(in crate::driver) fn figures(&self) -> (u64, u64) {
        (self.limit, self.used.load(Ordering::Acquire))
    }

    /// Counts `bytes` more.
    pub(in crate::driver) fn grow(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    fn shrink(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let shrunk = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        debug_assert!(shrunk.is_ok(), "it always gives a number");
    }

    fn reserve(&self, bytes: u64) -> Result<()> {
        let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        if bytes == 0 || self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok() {
            return Ok(());
        }
        Err(Errno::NOSPC)
    }

    /// Reserves `bytes`.
    ///
    /// # Errors
    /// `NOSPC`
    fn grant(&self, bytes: u64) -> Result<Grant<'_>> {
        let (tries, pause) = CLOSING;
        for _ in 0..tries {
            if self.reserve(bytes).is_ok() {
                return Ok(Grant { usage: Some(self), reserved: bytes });
            }
            if self.lingering.load(Ordering::Acquire) == 0 {
                break;
            }
            std::thread::sleep(pause);
        }
        self.reserve(bytes)?;
        Ok(Grant { usage: Some(self), reserved: bytes })
    }

    /// Reserves the blocks that a write to `range` of `file` takes. Returns how many bytes may be written, from the start of the range.
    ///
    /// # Errors
    /// `NOSPC` if no byte may be written; those of `ioctl(2)` and `lseek(2)`.
    fn grant_range(&self, file: BorrowedFd<'_>, range: &Range<u64>) -> Result<(Grant<'_>, u64)> {
        let length = range.end - range.start;
        let round_up = |at: u64| at.checked_next_multiple_of(self.block).unwrap_or(u64::MAX);
        let blocks = range.start - range.start % self.block..round_up(range.end);
        if self.reserve(blocks.end - blocks.start).is_ok() {
            return Ok((Grant { usage: Some(self), reserved: blocks.end - blocks.start }, length));
        }
        let missing = self.uncounted(file, &blocks)?;
        let needed = missing.iter().map(|hole| hole.end - hole.start).sum();
        if let Ok(grant) = self.grant(needed) {
            return Ok((grant, length));
        }
        let (limit, used) = self.figures();
        let room = limit.saturating_sub(used);
        let (mut left, mut end) = (room - room % self.block, blocks.end);
        for hole in &missing {
            let size = hole.end - hole.start;
            if size > left {
                end = hole.start + left;
                break;
            }
            left -= size;
        }
        let granted = end.min(range.end).saturating_sub(range.start);
        if granted == 0 {
            return Err(Errno::NOSPC);
        }
        let grant = self.grant(missing.iter().map(|hole| end.min(hole.end).saturating_sub(hole.start)).sum())?;
        Ok((grant, granted))
    }

    /// Returns the parts of `range` whose blocks are not counted for `file`: holes, and blocks that the file system allocated ahead
    /// of a writer. The range begins and ends with a block.
    ///
    /// # Errors
    /// Those of `statx(2)`, `ioctl(2)` and `lseek(2)`.
    fn uncounted(&self, file: BorrowedFd<'_>, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
        let stat = Stat::of(file, c"")?;
        let tracked = self.track_as(&stat, |charge| charge);
        let is_ahead = tracked.account.charged.lock().is_ahead(&stat);
        self.let_go(tracked);
        let end = stat.size.checked_next_multiple_of(self.block).unwrap_or(u64::MAX);
        if !is_ahead || end >= range.end {
            return missing(file, range);
        }
        let end = end.max(range.start);
        let mut holes = if end > range.start { missing(file, &(range.start..end))? } else { Vec::new() };
        holes.push(end..range.end);
        Ok(holes)
    }

    /// Keeps the account of the node's file, which has the attributes `stat`.
    fn track(&self, node: &NodeRef, stat: &Stat) -> Tracked {
        // The link count changes only with the account locked.
        self.track_as(stat, |charge| if node.is_uncounted() { Charge { bytes: 0, ..charge } } else { charge })
    }

    /// Keeps the account of a directory that has a name.
    fn track_dir(&self, stat: &Stat) -> Tracked {
        self.track_as(stat, |charge| charge)
    }

    fn track_as(&self, stat: &Stat, counted: impl FnOnce(Charge) -> Charge) -> Tracked {
        let new = || Arc::new(Account { charged: Mutex::new(counted(Charge::of(stat))) });
        let account = Arc::clone(self.accounts.lock().entry(stat.id()).or_insert_with(new));
        Tracked { file: stat.id(), account }
    }

    /// Ends one use of the file. The last user removes its account.
    fn let_go(&self, tracked: Tracked) {
        let mut accounts = self.accounts.lock();
        let Tracked { file, account } = tracked;
        drop(account);
        if accounts.get(&file).is_some_and(|account| Arc::strong_count(account) == 1) {
            accounts.remove(&file);
        }
    }

    /// Counts the present blocks of the file; none if `stat` returns `None`. After an error, the old count stays.
    fn settle(&self, tracked: &Tracked, stat: impl FnOnce() -> Result<Option<Stat>>) {
        let mut charged = tracked.account.charged.lock();
        match stat() {
            Ok(Some(stat)) if stat.id() == tracked.file => {
                let now = charged.now(&stat);
                self.replace(&mut charged, now);
            }
            Ok(_) => {}
            Err(errno) => tracing::debug!("size=: a file is not counted again: {errno}"),
        }
    }

    fn replace(&self, charged: &mut Charge, now: Charge) {
        if now.bytes >= charged.bytes {
            self.grow(now.bytes - charged.bytes);
        } else {
            self.shrink(charged.bytes - now.bytes);
        }
        *charged = now;
    }

    /// Takes the node's file out of the count. False if it did not count.
    fn remove(&self, node: &NodeRef, stat: &Stat) -> bool {
        let tracked = self.track(node, stat);
        let mut charged = tracked.account.charged.lock();
        let removed = node.note_uncounted();
        if removed {
            let now = Charge { bytes: 0, ..*charged };
            self.replace(&mut charged, now);
        }
        drop(charged);
        self.let_go(tracked);
        removed
    }

    /// Counts the node's file again if it does not count.
    fn revive(&self, tracked: &Tracked, node: &NodeRef, stat: &Stat) {
        let mut charged = tracked.account.charged.lock();
        if node.note_counted() {
            let now = charged.now(stat);
            self.replace(&mut charged, now);
        }
    }

    /// Keeps the account of the node's file.
    fn keep(&self, node: &NodeRef, tracked: Tracked) {
        let before = self.written.lock().insert(NodeRef::as_ptr(node).addr(), tracked);
        if let Some(before) = before {
            self.let_go(before);
        }
    }

    fn written(&self, node: &NodeRef) -> Option<Tracked> {
        self.written.lock().get(&NodeRef::as_ptr(node).addr()).cloned()
    }

    fn forget(&self, node: &NodeRef) {
        let kept = self.written.lock().remove(&NodeRef::as_ptr(node).addr());
        if let Some(kept) = kept {
            self.let_go(kept);
        }
    }

    /// Notes that a removed file is still open.
    fn begin_lingering(&self) {
        self.lingering.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that `count` removed files were closed.
    fn end_lingering(&self, count: u64) {
        let less = |before: u64| Some(before.saturating_sub(count));
        let ended = self.lingering.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        debug_assert!(ended.is_ok(), "it always gives a number");
    }

    fn of_handle(&self, handle: HandleId) -> Option<Tracked> {
        self.handles.lock().get(&handle.0).cloned()
    }
}

/// Returns the holes of `file` in `range`, which begins and ends with a block.
fn missing(file: BorrowedFd<'_>, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
    let allocated = match extents::allocated(file, range.clone()) {
        Ok(allocated) => allocated,
        Err(_) if is_full(file, range.end)? => return Ok(Vec::new()),
        Err(_) => written(file, range)?,
    };
    let (mut holes, mut at) = (Vec::new(), range.start);
    for extent in allocated {
        if extent.start > at {
            holes.push(at..extent.start.min(range.end));
        }
        at = at.max(extent.end);
    }
    if at < range.end {
        holes.push(at..range.end);
    }
    Ok(holes)
}

/// True if no block up to `end` is missing in the file (`fallocate(2)`).
fn is_full(file: BorrowedFd<'_>, end: u64) -> Result<bool> {
    let stat = Stat::of(file, c"")?;
    Ok(bytes(&stat) >= stat.size.max(end))
}

/// The ranges of data that overlap `range`, in order.
fn written(file: BorrowedFd<'_>, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
    let (mut found, mut at) = (Vec::new(), range.start);
    while at < range.end {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // The rest counts as a hole.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => break,
            Err(errno) => return Err(errno),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        // The last block of the file is allocated as a whole.
        found.push(start..end.next_multiple_of(4096));
        at = end;
    }
    Ok(found)
}

/// Counts a directory tree.
struct Walk<'a> {
    accounts: &'a HashMap<FileId, Arc<Account>>,
    /// Hard links that were counted already.
    linked: HashSet<FileId>,
    total: u64,
}

impl Walk<'_> {
    fn add(&mut self, stat: &Stat) {
        if !stat.is_dir() && stat.nlink > 1 && !self.linked.insert(stat.id()) {
            return;
        }
        let now = match self.accounts.get(&stat.id()) {
            None => bytes(stat),
            Some(account) => {
                let mut charged = account.charged.lock();
                *charged = charged.now(stat);
                charged.bytes
            }
        };
        self.total = self.total.saturating_add(now);
    }

    /// Counts the entries of `dir`.
    fn directory(&mut self, dir: &UpperDir) -> Result<()> {
        let mut below: Vec<CString> = Vec::new();
        dir.list(|entry| {
            let Some(stat) = dir.stat(entry.name)? else { return Ok(()) };
            self.add(&stat);
            if stat.is_dir() {
                below.push(entry.name.to_owned());
            }
            Ok(())
        })?;
        for name in below {
            match dir.open_upper_dir(&name).and_then(|dir| self.directory(&dir)) {
                Ok(()) | Err(Errno::NOENT) => {}
                // Another file system is mounted there, or this user may not read it.
                Err(errno @ (Errno::XDEV | Errno::ACCESS)) => {
                    tracing::warn!("{:?}: not counted for size=: {errno}", dir.shown_path(&name));
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}
