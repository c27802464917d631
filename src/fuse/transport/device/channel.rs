//! One descriptor of `/dev/fuse`, with the buffers of its thread.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::fuse::in_flight::Slot;
use crate::fuse::serve::{Outcome, Server};
use crate::fuse::wire::MAX_WRITE;
use crate::fuse::wire::message::Message;
use crate::fuse::wire::reply::{Answer, HEADER, Reply, Ttl};

/// Longest request: the longest write, or the longest xattr with its name, and headers.
const REQUEST: usize = MAX_WRITE as usize + (1 << 16) + 4096;
/// Longest payload of a reply: the longest read; xattrs and listings are shorter.
const PAYLOAD: usize = MAX_WRITE as usize;

/// Result of waiting for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse::transport) enum Received {
    Request,
    Unmounted,
}

/// A descriptor, a request and its reply.
pub(in crate::fuse::transport) struct Channel {
    device: OwnedFd,
    request: Box<[u8]>,
    /// Length of the request in `request`.
    length: usize,
    /// Header and payload together, so that a reply is one `write(2)`.
    reply: Box<[u8]>,
    ttl: Ttl,
}

impl Channel {
    pub(in crate::fuse::transport) fn new(device: OwnedFd, ttl: Ttl) -> Self {
        let buffer = |size| vec![0; size].into_boxed_slice();
        Self { device, request: buffer(REQUEST), length: 0, reply: buffer(HEADER + PAYLOAD), ttl }
    }

    pub(in crate::fuse::transport) fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// Waits for a request.
    pub(in crate::fuse::transport) fn receive(&mut self) -> Received {
        loop {
            match rustix::io::read(&self.device, &mut *self.request) {
                Ok(length) => {
                    self.length = length;
                    return Received::Request;
                }
                // ENOENT: the request was interrupted while we read it.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                // ECONNABORTED: the connection was aborted through /sys/fs/fuse/connections/*/abort.
                Err(Errno::NODEV | Errno::CONNABORTED) => return Received::Unmounted,
                Err(error) => {
                    tracing::error!(%error, "cannot read requests");
                    return Received::Unmounted;
                }
            }
        }
    }

    /// The process that made the request; 0 if the kernel itself made it, or a process that the mount cannot see.
    pub(in crate::fuse::transport) fn process(&self) -> u32 {
        // `pid` of struct fuse_in_header
        let bytes = self.request.get(..self.length).and_then(|request| request.get(32..)?.first_chunk());
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    /// Answers the received request; with `refused`, by ENODEV. Returns false if the kernel has ended the connection.
    pub(in crate::fuse::transport) fn answer(&mut self, server: &Server, slot: &Slot, refused: bool) -> bool {
        let message = Message::whole(self.request.get(..self.length).unwrap_or_default());
        let outcome = if refused {
            server.decline(message)
        } else {
            let mut reply = Reply::new(self.reply.get_mut(HEADER..).unwrap_or_default(), self.ttl);
            server.answer(slot, message, &mut reply)
        };
        match outcome {
            Outcome::Reply(answer) => {
                self.send(answer);
                true
            }
            Outcome::Silent => true,
            Outcome::Goodbye(answer) => {
                self.send(answer);
                false
            }
        }
    }

    fn send(&mut self, answer: Answer) {
        if let Some(header) = self.reply.first_chunk_mut() {
            *header = answer.header();
        }
        let message = self.reply.get(..HEADER + answer.length).unwrap_or_default();
        match rustix::io::write(&self.device, message) {
            Ok(_) => {}
            // The mount is gone; the kernel has answered by itself.
            Err(error @ (Errno::NOENT | Errno::NODEV)) => tracing::debug!(%error, "a reply came too late"),
            // The kernel reports EIO to the caller.
            Err(error) => tracing::error!(%error, length = message.len(), "the kernel refused a reply"),
        }
    }
}
