//! Rings between the kernel and a FUSE driver: FUSE over io_uring (Linux 6.14; the structures are those of
//! `include/uapi/linux/fuse.h`, the rules those of `fs/fuse/dev_uring.c`).
//!
//! The kernel has a queue for each possible processor. An *entry* of a queue holds one request at a time. A driver registers
//! it together with memory for the request and the answer, and is told when it holds a request. The driver returns the answer
//! by a command that also waits for the entry's next request. The kernel copies a request in the context of the waiting
//! thread, so the entry of a busy thread must not hold one: here, every thread has its own io_uring.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};

use io_uring::opcode::UringCmd80;
use io_uring::squeue::Entry128;
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue};
use rustix::io::Errno;

/// `FUSE_IO_URING_CMD_REGISTER`, `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// `struct fuse_uring_req_header`: two areas of 128 bytes, then `struct fuse_uring_ent_in_out`.
const AREA: usize = 128;
const COMMIT_ID: usize = 2 * AREA + 8;
const PAYLOAD_SIZE: usize = 2 * AREA + 16;
const HEADERS: usize = 2 * AREA + 32;

/// Offset of the payload in the memory of an entry.
const PAYLOAD: usize = 4096;

/// Pause before `io_uring_enter(2)` is retried after `EBUSY` and `EAGAIN`.
const SHORTAGE: std::time::Duration = std::time::Duration::from_millis(1);

/// The number of a queue that no kernel has.
const NO_QUEUE: u16 = u16::MAX;

/// A ring without a connection. Only the thread that made it may use it.
pub struct Blank(IoUring<Entry128, cqueue::Entry>);

/// Entries of one thread on one connection.
pub struct Ring<'d> {
    /// Closed before the memory of the entries is unmapped.
    uring: IoUring<Entry128, cqueue::Entry>,
    entries: Vec<Entry>,
    /// Entries with a request that [`Self::next_request`] has not returned yet.
    arrived: VecDeque<usize>,
    device: BorrowedFd<'d>,
}

/// One entry of a queue.
struct Entry {
    queue: u16,
    memory: Memory,
    /// The registered areas: the headers and the payload.
    parts: Box<[libc::iovec; 2]>,
    /// True if the entry holds an unanswered request; otherwise the memory belongs to the kernel.
    is_taken: bool,
}

/// A request, and the space for its answer.
pub struct Request<'a> {
    /// Begins with `struct fuse_in_header`.
    pub header: &'a [u8],
    /// Begins with the structure for the kind of request.
    pub structure: &'a [u8],
    /// The number for the answer.
    pub unique: u64,
    /// Length of the request in `payload`.
    pub length: usize,
    /// Names and data of the request; the answer's payload is written to its start.
    pub payload: &'a mut [u8],
}

impl Blank {
    /// Makes a ring for up to `entries` entries.
    ///
    /// # Errors
    /// Those of `io_uring_setup(2)`: `ENOSYS` and `EPERM` if io_uring is disabled, `EINVAL` before Linux 6.1.
    pub fn new(entries: usize) -> io::Result<Self> {
        let size = u32::try_from(entries).map_err(io::Error::other)?;
        // Completions are delivered when the thread asks for them, never by an interrupt.
        let mut builder = IoUring::builder();
        builder.dontfork().setup_single_issuer().setup_defer_taskrun().setup_submit_all();
        builder.build(size).map(Self)
    }

    /// Puts the ring on the connection of `device`, without entries.
    pub fn on(self, device: BorrowedFd<'_>) -> Ring<'_> {
        Ring { uring: self.0, entries: Vec::new(), arrived: VecDeque::new(), device }
    }
}

impl Ring<'_> {
    /// Registers an entry of `queue` with room for `payload` bytes. Requests may arrive from then on.
    ///
    /// # Errors
    /// From the kernel. It then uses no rings on this connection, unless all queues already have an entry.
    pub fn register(&mut self, queue: u16, payload: usize) -> io::Result<()> {
        let memory = Memory::new(PAYLOAD + payload)?;
        let start = memory.start.as_ptr();
        let parts = Box::new([
            libc::iovec { iov_base: start.cast(), iov_len: HEADERS },
            // SAFETY: the offset is within the mapping.
            libc::iovec { iov_base: unsafe { start.add(PAYLOAD) }.cast(), iov_len: payload },
        ]);
        self.entries.push(Entry { queue, memory, parts, is_taken: false });
        let added = self.entries.len() - 1;
        self.command(added, REGISTER, 0)?;
        self.uring.submit()?;
        // A failed registration has completed by now; a successful one completes with the first request.
        self.reap().map_err(io::Error::from)
    }

    /// Makes the kernel do without rings, although the driver asked for them in `INIT`. Otherwise every request would
    /// wait for them.
    ///
    /// # Errors
    /// The kernel could not be told.
    pub fn refuse(&mut self) -> io::Result<()> {
        // fuse_uring_cmd(): a failed registration, for example for a queue that does not exist, ends the use of rings.
        match self.register(NO_QUEUE, 4096) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(io::Error::other("the kernel has a queue of that number")),
        }
    }

    /// Sends outstanding answers, waits for a request and returns the number of its entry.
    ///
    /// # Errors
    /// `NOTCONN`, `CONNABORTED` if the mount is gone. All errors are final.
    pub fn next_request(&mut self) -> Result<usize, Errno> {
        loop {
            self.reap()?;
            // Answers come first: no process must wait for one while another request is worked on.
            if self.uring.submission().is_empty()
                && let Some(entry) = self.arrived.pop_front()
            {
                return Ok(entry);
            }
            match self.uring.submit_and_wait(usize::from(self.arrived.is_empty())) {
                Ok(_) => {}
                Err(error) => match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
                    Errno::INTR => {}
                    Errno::AGAIN | Errno::BUSY => std::thread::sleep(SHORTAGE),
                    errno => return Err(errno),
                },
            }
        }
    }

    /// Processes completed commands.
    fn reap(&mut self) -> Result<(), Errno> {
        for done in self.uring.completion() {
            if done.result() < 0 {
                return Err(Errno::from_raw_os_error(-done.result()));
            }
            let number = usize::try_from(done.user_data()).map_err(|_| Errno::IO)?;
            self.entries.get_mut(number).ok_or(Errno::IO)?.is_taken = true;
            self.arrived.push_back(number);
        }
        Ok(())
    }

    /// The queue of an entry.
    pub fn queue(&self, entry: usize) -> Option<u16> {
        self.entries.get(entry).map(|entry| entry.queue)
    }

    /// The request in an entry; `None` if there is none, or it was answered.
    pub fn request(&mut self, entry: usize) -> Option<Request<'_>> {
        self.entries.get_mut(entry).filter(|entry| entry.is_taken)?.memory.request()
    }

    /// Answers the request in an entry: `error` is 0 or a negative errno, `length` the length of the payload.
    /// [`Self::next_request`] sends the answer.
    ///
    /// # Errors
    /// The entry holds no request.
    pub fn answer(&mut self, entry: usize, unique: u64, error: i32, length: usize) -> io::Result<()> {
        let held = self.entries.get_mut(entry).filter(|entry| entry.is_taken);
        let held = held.ok_or_else(|| io::Error::other("no request to be answered"))?;
        held.memory.set_answer(unique, error, length)?;
        held.is_taken = false;
        self.command(entry, COMMIT_AND_FETCH, unique)
    }

    /// Queues a command on an entry.
    fn command(&mut self, number: usize, operation: u32, commit: u64) -> io::Result<()> {
        let entry = self.entries.get(number).ok_or_else(|| io::Error::other("no such entry"))?;
        // struct fuse_uring_cmd_req: flags, commit_id, qid, padding
        let mut argument = [0; 80];
        let (_flags, rest) = argument.split_at_mut(8);
        let (commit_id, rest) = rest.split_at_mut(8);
        let (queue, _padding) = rest.split_at_mut(2);
        commit_id.copy_from_slice(&commit.to_ne_bytes());
        queue.copy_from_slice(&entry.queue.to_ne_bytes());
        let parts = entry.parts.as_ptr() as u64;
        let command = UringCmd80::new(Fd(self.device.as_raw_fd()), operation).cmd(argument).addr(Some(parts));
        let mut command = command.build().user_data(number as u64);
        // SAFETY: an `Entry128` is a `struct io_uring_sqe` of 128 bytes, whose `len` is the u32 at byte 24. There is no setter.
        unsafe { (&raw mut command).cast::<u8>().add(24).cast::<u32>().write(entry.parts.len() as u32) };
        // SAFETY: the memory of the command exists until the ring is closed, and is not touched before the command has
        // completed (`is_taken`).
        unsafe { self.uring.submission().push(&command) }.map_err(io::Error::other)
    }
}

/// Memory of one entry: the headers, then the payload from [`PAYLOAD`] on.
struct Memory {
    start: NonNull<u8>,
    length: usize,
}

impl Memory {
    fn new(length: usize) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: asks for new memory at an address that the kernel chooses.
        let start = unsafe { libc::mmap(null_mut(), length, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("memory at address 0"))?;
        Ok(Self { start, length })
    }

    /// All bytes. The caller must make sure that the kernel does not use them.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has that length, is initialised with zeros and belongs to this value, which is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }

    fn request(&mut self) -> Option<Request<'_>> {
        let (headers, payload) = self.bytes().split_at_mut_checked(PAYLOAD)?;
        let unique = u64::from_ne_bytes(*headers.get(COMMIT_ID..)?.first_chunk()?);
        let length = u32::from_ne_bytes(*headers.get(PAYLOAD_SIZE..)?.first_chunk()?);
        let length = usize::try_from(length).ok()?.min(payload.len());
        let (header, rest) = headers.split_at_checked(AREA)?;
        Some(Request { header, structure: rest.get(..AREA)?, unique, length, payload })
    }

    /// `struct fuse_out_header`, and the size of the payload.
    fn set_answer(&mut self, unique: u64, error: i32, length: usize) -> io::Result<()> {
        let size = u32::try_from(length).map_err(io::Error::other)?;
        let mut set = |at: usize, bytes: &[u8]| {
            let place = self.bytes().get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len()));
            place.map(|place| place.copy_from_slice(bytes)).ok_or_else(|| io::Error::other("an entry without headers"))
        };
        set(0, &size.saturating_add(16).to_ne_bytes())?;
        set(4, &error.to_ne_bytes())?;
        set(8, &unique.to_ne_bytes())?;
        set(PAYLOAD_SIZE, &size.to_ne_bytes())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: address and length are those of the mapping. The ring that could write to it is closed: it is the first
        // field of `Ring`, and the kernel only writes in the context of the thread that drops this.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn an_answer_is_where_the_kernel_looks_for_it() {
        let mut memory = Memory::new(PAYLOAD + 8192).expect("memory");
        memory.bytes()[COMMIT_ID..COMMIT_ID + 8].copy_from_slice(&6u64.to_ne_bytes());
        memory.bytes()[PAYLOAD_SIZE..PAYLOAD_SIZE + 4].copy_from_slice(&5u32.to_ne_bytes());
        let request = memory.request().expect("a request");
        assert_eq!((request.unique, request.length, request.payload.len()), (6, 5, 8192));
        assert_eq!((request.header.len(), request.structure.len()), (128, 128));
        memory.set_answer(6, -2, 3).expect("an answer");
        let expected = [&19u32.to_ne_bytes()[..], &(-2i32).to_ne_bytes(), &6u64.to_ne_bytes()].concat();
        assert_eq!(memory.bytes()[..16], expected);
        assert_eq!(memory.bytes()[272..276], 3u32.to_ne_bytes());
    }

    /// Needs io_uring, which a container may forbid.
    #[test]
    fn a_descriptor_that_is_not_mounted_is_refused() {
        let device = tempfile::tempfile().expect("a file");
        let Ok(ring) = Blank::new(1) else { return };
        let mut ring = ring.on(device.as_fd());
        let error = ring.register(0, 4096).expect_err("no FUSE device");
        assert!(error.raw_os_error().is_some(), "{error}");
        assert!(ring.request(0).is_none(), "the memory may be the kernel's");
        assert!(ring.answer(0, 2, 0, 0).is_err());
    }
}
