//! Intercepts the daemon's system calls: counts those that change a layer, and kills the daemon or lets the call fail at
//! the selected one.
//!
//! The daemon is started under a seccomp filter that passes these calls to a thread here before they are made
//! (`seccomp_unotify(2)`). So the tested program is the shipped one, without any hook.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::io::Errno;

/// Calls that change a file system, by number and name. The ones of extended attributes have no constants in libc.
const CHANGING: [(libc::c_long, &str); 31] = [
    (libc::SYS_openat, "openat"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_mknodat, "mknodat"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_fchmod, "fchmod"),
    (libc::SYS_fchmodat, "fchmodat"),
    (452, "fchmodat2"),
    (libc::SYS_fchown, "fchown"),
    (libc::SYS_fchownat, "fchownat"),
    (libc::SYS_utimensat, "utimensat"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_copy_file_range, "copy_file_range"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_syncfs, "syncfs"),
    (libc::SYS_setxattr, "setxattr"),
    (libc::SYS_lsetxattr, "lsetxattr"),
    (libc::SYS_fsetxattr, "fsetxattr"),
    (libc::SYS_removexattr, "removexattr"),
    (libc::SYS_lremovexattr, "lremovexattr"),
    (libc::SYS_fremovexattr, "fremovexattr"),
    (463, "setxattrat"),
    (466, "removexattrat"),
    (libc::SYS_pwritev2, "pwritev2"),
];

/// Calls that only read, but can fail.
const LOOKING: [(libc::c_long, &str); 16] = [
    (libc::SYS_openat2, "openat2"),
    (libc::SYS_statx, "statx"),
    (libc::SYS_newfstatat, "newfstatat"),
    (libc::SYS_fstat, "fstat"),
    (libc::SYS_getdents64, "getdents64"),
    (libc::SYS_readlinkat, "readlinkat"),
    (libc::SYS_name_to_handle_at, "name_to_handle_at"),
    (libc::SYS_open_by_handle_at, "open_by_handle_at"),
    (libc::SYS_getxattr, "getxattr"),
    (libc::SYS_lgetxattr, "lgetxattr"),
    (libc::SYS_llistxattr, "llistxattr"),
    (libc::SYS_listxattr, "listxattr"),
    (464, "getxattrat"),
    (465, "listxattrat"),
    (libc::SYS_pread64, "pread64"),
    (libc::SYS_fstatfs, "fstatfs"),
];

/// `ioctl` commands that copy blocks; others are the mount's own.
const FICLONE: u64 = 0x4004_9409;

/// The action at the selected call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The daemon is killed and never makes the call.
    Kill,
    /// The call is not made, and fails.
    Fail(Errno),
    /// The file system of this descriptor loses everything that was not flushed, and the daemon is killed.
    Shutdown(i32),
    /// The call is delayed, and with it every other counted call.
    Wait(Duration),
}

/// The selected call: the `at`-th of those counted, from 0.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub at: usize,
    pub act: Act,
    /// Which calls are counted.
    pub counted: Counted,
}

/// Calls that an order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Those that change a file system.
    Changes,
    /// Also those that only read.
    All,
    /// Those of one name.
    Named(&'static str),
}

impl Counted {
    fn counts(self, call: Call) -> bool {
        match self {
            Self::Changes => !call.looks,
            Self::All => true,
            Self::Named(name) => call.name == name,
        }
    }
}

/// The call at which an order was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: &'static str,
    /// The order changes nothing.
    pub looks: bool,
}

impl std::fmt::Display for Call {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.name)
    }
}

#[derive(Debug, Default)]
struct State {
    /// Process id of the daemon.
    daemon: Option<u32>,
    order: Option<Order>,
    /// Counted calls since the order was given.
    count: usize,
    /// True if a counted call came after the last counted reply.
    reply_counts: bool,
    /// The call at which the order was carried out.
    struck: Option<Call>,
}

/// The gate of the supervised daemon.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Mutex<State>>);

impl Gate {
    /// Starts `command` with its calls going through the gate.
    pub fn spawn(&self, command: &mut Command) -> std::io::Result<Child> {
        let child = std::thread::scope(|scope| {
            let (send, listener) = channel();
            // The filter applies to the thread that installs it, and to its children.
            let starter = scope.spawn(move || {
                send.send(install()).expect("the listener is awaited");
                command.spawn()
            });
            let listener = listener.recv().expect("the starter lives")?;
            let gate = self.clone();
            std::thread::Builder::new().name("gate".to_owned()).spawn(move || gate.attend(&listener))?;
            starter.join().expect("the starter lives")
        })?;
        self.0.lock().expect("no panic").daemon = Some(child.id());
        Ok(child)
    }

    /// From now on calls are counted.
    pub fn give(&self, order: Order) {
        let mut state = self.0.lock().expect("no panic");
        *state = State { daemon: state.daemon, order: Some(order), ..State::default() };
    }

    /// Stops counting; returns the call at which the order was carried out.
    pub fn take(&self) -> Option<Call> {
        let mut state = self.0.lock().expect("no panic");
        state.order = None;
        state.struck.take()
    }

    fn attend(&self, listener: &OwnedFd) {
        while let Some(notice) = receive(listener) {
            let errno = self.judge(&notice);
            answer(listener, notice.id, errno);
        }
    }

    /// The errno for the failing call.
    fn judge(&self, notice: &libc::seccomp_notif) -> Option<Errno> {
        let mut state = self.0.lock().expect("no panic");
        let (order, call) = (state.order?, state.counts(notice)?);
        if state.struck.is_some() {
            return None;
        }
        state.count += 1;
        if state.count <= order.at {
            return None;
        }
        state.struck = Some(call);
        match order.act {
            Act::Fail(errno) => return Some(errno),
            Act::Wait(time) => {
                std::thread::sleep(time);
                return None;
            }
            Act::Shutdown(disk) => shut_down(disk),
            Act::Kill => {}
        }
        // A daemon that is starting is known only by its call.
        crate::common::sys::kill(state.daemon.unwrap_or(notice.pid));
        // A killed process does not see the answer; but if it were told to continue, it could make the call before it dies.
        Some(Errno::INTR)
    }
}

impl State {
    /// The call, if it is counted.
    fn counts(&mut self, notice: &libc::seccomp_notif) -> Option<Call> {
        let order = self.order?;
        let number = libc::c_long::from(notice.data.nr);
        if number == libc::SYS_write {
            // The reply: everything is done, but the caller does not know yet. A lookup's reply without a change
            // before it is not counted, nor any if calls of one name are: it may be that of a release before the order.
            let is_of_change = self.reply_counts && !matches!(order.counted, Counted::Named(_));
            let counts = is_of_change && !matches!(order.act, Act::Fail(_));
            self.reply_counts = false;
            return counts.then_some(Call { name: "reply", looks: true });
        }
        if number == libc::SYS_ioctl && notice.data.args[1] & 0xffff_ffff != FICLONE {
            return None;
        }
        let find =
            |list: &'static [(libc::c_long, &str)]| list.iter().find(|(n, _)| *n == number).map(|(_, name)| *name);
        let flags = notice.data.args[2];
        let creates = flags & (libc::O_CREAT | libc::O_TRUNC) as u64 != 0
            || flags & libc::O_TMPFILE as u64 == libc::O_TMPFILE as u64;
        let call = match find(&CHANGING) {
            Some(name) => Call { name, looks: number == libc::SYS_openat && !creates },
            None => Call { name: find(&LOOKING)?, looks: true },
        };
        self.reply_counts |= !call.looks;
        order.counted.counts(call).then_some(call)
    }
}

/// Installs the filter for this thread and its children; returns the descriptor for the notifications.
fn install() -> std::io::Result<OwnedFd> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let numbers: Vec<libc::c_long> =
        CHANGING.iter().chain(&LOOKING).map(|(number, _)| *number).chain([libc::SYS_write]).collect();
    // The call's number is the first word of `struct seccomp_data`.
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for (at, number) in numbers.iter().enumerate() {
        let to_notify = u8::try_from(numbers.len() - at).expect("a short program");
        let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        program.push(libc::sock_filter { code, jt: to_notify, jf: 0, k: *number as u32 });
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF));
    let length = u16::try_from(program.len()).expect("a short program");
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives the call, which copies it.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            std::ptr::from_ref(&filter),
        )
    };
    if listener < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor without another owner; the kernel makes it close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(listener).expect("a descriptor")) })
}

/// The next call; `None` if no process under the filter is left.
fn receive(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    use rustix::event::{PollFd, PollFlags, poll};
    loop {
        let mut watched = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut watched, None) {
            Ok(_) if !watched[0].revents().contains(PollFlags::IN) => return None,
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => panic!("poll: {error}"),
        }
        // SAFETY: plain integers, for which zero is valid and is what the kernel wants to find.
        let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel fills the structure that the command is defined for.
        let received = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notice) };
        if received == 0 {
            return Some(notice);
        }
        match std::io::Error::last_os_error().raw_os_error() {
            // The caller died before its call was received.
            Some(libc::ENOENT | libc::EINTR) => {}
            error => panic!("SECCOMP_IOCTL_NOTIF_RECV: {error:?}"),
        }
    }
}

fn answer(listener: &OwnedFd, id: u64, errno: Option<Errno>) {
    let mut response = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: errno.map_or(0, |errno| -errno.raw_os_error()),
        flags: if errno.is_none() { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 } else { 0 },
    };
    // SAFETY: the kernel reads the structure that the command is defined for.
    let sent = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
    let error = std::io::Error::last_os_error();
    assert!(sent == 0 || error.raw_os_error() == Some(libc::ENOENT), "SECCOMP_IOCTL_NOTIF_SEND: {error}");
}

/// Simulates a power failure: everything that is neither on the disk nor in the journal on the disk is lost.
pub fn shut_down(disk: i32) {
    /// `EXT4_IOC_SHUTDOWN`, which is `XFS_IOC_GOINGDOWN`: `_IOR('X', 125, __u32)`.
    const SHUTDOWN: u64 = 0x8004_587d;
    /// `XFS_FSOP_GOING_FLAGS_NOLOGFLUSH`.
    const WITHOUT_FLUSH: u32 = 2;
    let flags = WITHOUT_FLUSH;
    // SAFETY: the kernel reads the word that the command is defined for.
    let done = unsafe { libc::ioctl(disk, SHUTDOWN, &raw const flags) };
    assert_eq!(done, 0, "shutdown: {}", std::io::Error::last_os_error());
}
