//! The kernel's side of the mount: mounts, reads requests from `/dev/fuse`, calls the overlay, replies.
//!
//! | part | does |
//! |---|---|
//! | `mount` | mounts, waits, unmounts: `handshake` (what is agreed in `INIT`), `kernel` (passthrough, invalidation), `mountpoint` (which mount is ours), `handover` (an old mount of the same upper), `privileges` (what the process gives up), `inherited` (what it does not take over from its caller), `remount`, `watcher` (unmounts when the process is killed) |
//! | `transport` | how requests come and answers go: `device` reads `/dev/fuse` with a crew of threads (`shift`: how many of them wait, `spin`: waiting awake) |
//! | `serve` | one request: decode, call, encode; errno; panics |
//! | `wire` | the bytes of requests and replies; pure |
//! | `identity` | who makes a request |
//! | `in_flight` | which thread works on which request, for `INTERRUPT` |
//! | `counters`, `stats` | how many requests of which kind; what the mount says about itself |
//!
//! # What fuser does for us, and what it does not
//!
//! fuser 0.18 (the newest release) mounts, with `fusermount3` where the user may not, and answers `INIT`; it also
//! registers passthrough files and sends invalidations. It does **not** read our requests: [`fuser::Session::run`] is
//! never called. Its dispatcher cannot express what this file system needs:
//!
//! - `ReplyCreate` and `ReplyDirectoryPlus` take the node id from `attr.ino`, so `st_ino` would have to be the node
//!   id. Ours differ: names of one lower hard link are separate nodes with the same `st_ino`, and `st_ino` must
//!   survive a copy-up and a remount, whereas node ids are never reused. (`ReplyEntry` has no other field for it
//!   either.) An entry of `readdirplus` cannot say "no node" for `.` and `..`.
//! - `TMPFILE`, `STATX` (creation times), `SYNCFS` and `COPY_FILE_RANGE_64` are not in its list of requests; they end
//!   in ENOSYS before a file system sees them.
//! - `FUSE_OPEN_KILL_SUIDGID` (which it calls `unused`), `FATTR_KILL_SUIDGID` and `FUSE_SETXATTR_EXT` are not
//!   decoded; without them, set-user-id bits survive a write.
//! - The reply to `read` is a slice that the file system must allocate for every request, and every thread's
//!   request buffer has room for writes of 16 MiB.
//!
//! The alternatives that were considered:
//!
//! - *A newer fuser*: there is none (0.18.0 is the latest on crates.io), and the first point is its public interface.
//! - *A patched copy* (`[patch]` or vendoring): 10,000 lines to carry, for changes that break its interface; crates
//!   that depend on us from crates.io would not get the patch.
//! - *Another crate*: fuser is the project's choice, and it does its part well.
//! - *No crate*: mounting with `fusermount3`, its socket and its fallbacks would have to be rewritten without any gain.
//! - *This one, chosen*: decoding the requests above takes 700 lines of safe and tested code on borrowed bytes, for
//!   a stable kernel interface. fuser keeps the parts that it does well.
//!
//! When fuser has separate node ids and these requests, `transport`, `serve` and `wire` can go.
//!
//! fuser's unmounting is not used either: the session is never dropped (see `mount::mountpoint`).

mod counters;
mod identity;
mod in_flight;
mod mount;
mod serve;
pub mod stats;
mod transport;
mod wire;

pub use mount::{MountError, Mounted, Target, Watcher, handover, inherited, is_mounted_at, mount, privileges, remount};

/// Version of the FUSE protocol that we speak.
pub const PROTOCOL: &str = "7.40";
