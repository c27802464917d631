//! System calls by path, with their errno. `nofollow` throughout: a test means the entry itself.

#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

pub use rustix::fs::RenameFlags;
use rustix::fs::{AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Result;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread, and threads that it starts, their own mount table, working directory and umask.
pub fn enter_private_namespace() {
    // SAFETY: NEWNS implies FS; neither touches the descriptor table or memory.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("unshare the mount namespace");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("make mounts private");
    umask(0o022);
}

/// Kills a process that may have ended already.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal to a process that may have ended already.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("kill: {error}"),
    }
}

/// Sets the umask of the calling thread.
pub fn umask(mask: u32) {
    rustix::process::umask(Mode::from_raw_mode(mask));
}

/// Runs `body` in a separate thread as an unprivileged user with one group.
pub fn as_user<T: Send>(uid: u32, gid: u32, body: impl FnOnce() -> T + Send) -> T {
    as_user_in(uid, gid, &[], 0o022, body)
}

/// [`as_user`] with more groups and a umask.
pub fn as_user_in<T: Send>(uid: u32, gid: u32, groups: &[u32], mask: u32, body: impl FnOnce() -> T + Send) -> T {
    let groups: Vec<Gid> = groups.iter().map(|&group| Gid::from_raw(group)).collect();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // SAFETY: FS alone; does not touch the descriptor table or memory.
            unsafe { unshare_unsafe(UnshareFlags::FS) }.expect("unshare FS");
            umask(mask);
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::thread::set_thread_groups(&groups).expect("setgroups");
            rustix::thread::set_thread_res_gid(gid, gid, gid).expect("setresgid");
            rustix::thread::set_thread_res_uid(uid, uid, uid).expect("setresuid");
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub fn open(path: &Path, flags: OFlags, mode: u32) -> Result<File> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode)).map(File::from)
}

/// Creates a file that must not exist, writes `content` and closes it.
pub fn create(path: &Path, content: &[u8]) -> Result<()> {
    let file = open(path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, 0o666)?;
    write_all(&file, content)
}

pub fn write_all(file: &File, mut content: &[u8]) -> Result<()> {
    while !content.is_empty() {
        let count = rustix::io::write(file, content)?;
        content = &content[count..];
    }
    Ok(())
}

pub fn append(path: &Path, content: &[u8]) -> Result<()> {
    write_all(&open(path, OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW, 0)?, content)
}

/// Writes into an existing file at an offset.
pub fn write_at(path: &Path, offset: u64, content: &[u8]) -> Result<()> {
    pwrite(&open(path, OFlags::WRONLY | OFlags::NOFOLLOW, 0)?, content, offset)
}

pub fn pwrite(file: impl AsFd, mut content: &[u8], mut offset: u64) -> Result<()> {
    while !content.is_empty() {
        let count = rustix::io::pwrite(&file, content, offset)?;
        content = &content[count..];
        offset += count as u64;
    }
    Ok(())
}

/// Opens with `O_TRUNC` and writes.
pub fn overwrite(path: &Path, content: &[u8]) -> Result<()> {
    write_all(&open(path, OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW, 0)?, content)
}

/// `truncate(2)`; does not follow a symbolic link.
pub fn truncate(path: &Path, size: u64) -> Result<()> {
    rustix::fs::ftruncate(open(path, OFlags::WRONLY | OFlags::NOFOLLOW, 0)?, size)
}

/// `truncate(2)` itself, which opens nothing.
pub fn truncate_by_name(path: &Path, size: i64) -> Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("a path");
    // SAFETY: a valid string that outlives the call.
    match unsafe { libc::truncate(path.as_ptr(), size) } {
        0 => Ok(()),
        _ => Err(rustix::io::Errno::from_io_error(&std::io::Error::last_os_error()).expect("an errno")),
    }
}

/// The whole content.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_file(&open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK, 0)?)
}

/// The whole content of an open file, from its start.
pub fn read_file(file: impl AsFd) -> Result<Vec<u8>> {
    let mut content = vec![];
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = rustix::io::pread(&file, &mut buffer[..], content.len() as u64)?;
        if count == 0 {
            return Ok(content);
        }
        content.extend_from_slice(&buffer[..count]);
    }
}

/// The whole content as text.
pub fn text(path: &Path) -> String {
    String::from_utf8(read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))).expect("text")
}

pub fn lstat(path: &Path) -> Result<Stat> {
    rustix::fs::lstat(path)
}

pub fn ino(path: &Path) -> u64 {
    lstat(path).unwrap_or_else(|error| panic!("lstat {}: {error}", path.display())).st_ino
}

/// Permission bits.
pub fn mode(path: &Path) -> u32 {
    lstat(path).unwrap_or_else(|error| panic!("lstat {}: {error}", path.display())).st_mode & 0o7777
}

pub fn nlink(path: &Path) -> u64 {
    lstat(path).unwrap_or_else(|error| panic!("lstat {}: {error}", path.display())).st_nlink
}

/// Modification time: seconds and nanoseconds.
pub fn mtime(path: &Path) -> (i64, i64) {
    let stat = lstat(path).unwrap_or_else(|error| panic!("lstat {}: {error}", path.display()));
    (stat.st_mtime, stat.st_mtime_nsec.cast_signed())
}

pub fn exists(path: &Path) -> bool {
    match lstat(path) {
        Ok(_) => true,
        Err(rustix::io::Errno::NOENT) => false,
        Err(error) => panic!("lstat {}: {error}", path.display()),
    }
}

pub fn mkdir(path: &Path, mode: u32) -> Result<()> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(mode))
}

pub fn rmdir(path: &Path) -> Result<()> {
    rustix::fs::rmdir(path)
}

pub fn unlink(path: &Path) -> Result<()> {
    rustix::fs::unlink(path)
}

pub fn rename(from: &Path, to: &Path) -> Result<()> {
    rustix::fs::rename(from, to)
}

pub fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> Result<()> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
}

pub fn symlink(target: &str, path: &Path) -> Result<()> {
    rustix::fs::symlink(target, path)
}

pub fn readlink(path: &Path) -> Result<OsString> {
    Ok(OsString::from_vec(rustix::fs::readlink(path, vec![])?.into_bytes()))
}

pub fn link(old: &Path, new: &Path) -> Result<()> {
    rustix::fs::link(old, new)
}

/// `mode` holds type and permissions.
pub fn mknod(path: &Path, mode: u32, rdev: (u32, u32)) -> Result<()> {
    let kind = FileType::from_raw_mode(mode);
    let rdev: Dev = rustix::fs::makedev(rdev.0, rdev.1);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(mode & 0o7777), rdev)
}

pub fn chmod(path: &Path, mode: u32) -> Result<()> {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode))
}

pub fn chown(path: &Path, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}

/// Sets access and modification time, in seconds and nanoseconds.
pub fn utimens(path: &Path, atime: (i64, i64), mtime: (i64, i64)) -> Result<()> {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

pub fn setxattr(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
}

pub fn getxattr(path: &Path, name: &str) -> Result<Vec<u8>> {
    let mut value = vec![0; 1 << 16];
    let count = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(count);
    Ok(value)
}

/// Names, sorted.
pub fn listxattr(path: &Path) -> Result<Vec<String>> {
    let mut list = vec![0; 1 << 16];
    let count = rustix::fs::llistxattr(path, &mut list[..])?;
    let names = list[..count].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| String::from_utf8(name.to_vec()).expect("text")).collect();
    names.sort();
    Ok(names)
}

pub fn removexattr(path: &Path, name: &str) -> Result<()> {
    rustix::fs::lremovexattr(path, name)
}

/// One entry as `getdents64` gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: OsString,
    pub ino: u64,
    pub kind: FileType,
}

/// Every entry except `.` and `..`, in the order of the directory.
pub fn readdir(path: &Path) -> Result<Vec<Listed>> {
    let directory = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, 0)?;
    readdir_fd(directory)
}

/// [`readdir`] of an open directory, from its current position.
pub fn readdir_fd(directory: impl AsFd) -> Result<Vec<Listed>> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    let mut list = vec![];
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            list.push(Listed { name, ino: entry.ino(), kind: entry.file_type() });
        }
    }
    Ok(list)
}

/// Names in a directory, sorted.
pub fn names(path: &Path) -> Vec<String> {
    let list = readdir(path).unwrap_or_else(|error| panic!("readdir {}: {error}", path.display()));
    let mut names: Vec<String> = list.into_iter().map(|entry| entry.name.into_string().expect("text")).collect();
    names.sort();
    names
}

/// Bytes allocated to a file.
pub fn allocated(path: &Path) -> u64 {
    lstat(path).expect("lstat").st_blocks.cast_unsigned() * 512
}

/// A shared, writable or read-only, mapping of a file's first bytes.
pub struct Mapping {
    start: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    pub fn new(file: &File, length: usize, writable: bool) -> Self {
        use std::os::fd::AsRawFd;
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a fresh mapping at an address of the kernel's choice; unmapped once, in drop.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self { start, length }
    }

    /// The present content of the mapping.
    pub fn bytes(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        assert!(range.end <= self.length);
        // SAFETY: inside the mapping; volatile reads, because others change the file at the same time.
        range.map(|at| unsafe { self.start.cast::<u8>().add(at).read_volatile() }).collect()
    }

    pub fn store(&self, at: usize, content: &[u8]) {
        assert!(at + content.len() <= self.length);
        for (index, &byte) in content.iter().enumerate() {
            // SAFETY: inside the mapping.
            unsafe { self.start.cast::<u8>().add(at + index).write_volatile(byte) };
        }
    }

    /// Number of its pages that are in the page cache of the real file.
    pub fn resident_pages(&self) -> usize {
        let mut pages = vec![0; self.length.div_ceil(4096)];
        // SAFETY: our own mapping, and a byte for each of its pages.
        let result = unsafe { libc::mincore(self.start, self.length, pages.as_mut_ptr()) };
        assert_eq!(result, 0, "mincore: {}", std::io::Error::last_os_error());
        pages.iter().filter(|&page| page & 1 != 0).count()
    }

    pub fn sync(&self) {
        // SAFETY: our own mapping.
        let result = unsafe { libc::msync(self.start, self.length, libc::MS_SYNC) };
        assert_eq!(result, 0, "msync: {}", std::io::Error::last_os_error());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped only here.
        let result = unsafe { libc::munmap(self.start, self.length) };
        assert_eq!(result, 0, "munmap: {}", std::io::Error::last_os_error());
    }
}

/// `fcntl(F_SETLK)` of the whole file, or `F_OFD_SETLK`.
pub fn try_lock(file: &File, exclusive: bool, ofd: bool) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: plain integers; zero is a valid value of each.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = if exclusive { libc::F_WRLCK as i16 } else { libc::F_RDLCK as i16 };
    let command = if ofd { libc::F_OFD_SETLK } else { libc::F_SETLK };
    // SAFETY: a valid descriptor and a struct flock that outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &lock) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Runs a program that was just written.
pub fn run(program: &Path) -> std::process::Output {
    execute(program, |command| command.output())
}

/// Starts a program that was just written.
pub fn start(program: &Path, arguments: &[&str]) -> Running {
    Running(execute(program, |command| command.args(arguments).spawn()))
}

/// A process that is killed and waited for when this is dropped.
pub struct Running(std::process::Child);

impl Running {
    /// True if it has not ended by itself.
    pub fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill(self.0.id());
        self.0.wait().unwrap();
    }
}

/// A child forked by another test holds our descriptor for writing until it executes a program, so "text file busy" is retried.
fn execute<T>(program: &Path, begin: impl Fn(&mut std::process::Command) -> std::io::Result<T>) -> T {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(50);
    loop {
        match begin(&mut std::process::Command::new(program)) {
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) && std::time::Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            begun => return begun.unwrap_or_else(|error| panic!("{}: {error}", program.display())),
        }
    }
}

/// A path through an open descriptor.
pub fn fd_path(file: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Mounts the tree at `source` once more at `target`, where ids from 0 on are shown from `first` on, 65,536 of them.
pub fn bind_idmapped(source: &Path, target: &Path, first: u32) -> Result<()> {
    use std::os::fd::AsRawFd;

    use rustix::io::Errno;
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let mut holder =
        std::process::Command::new("unshare").args(["--user", "sleep", "60"]).spawn().expect("a user namespace");
    let proc = PathBuf::from(format!("/proc/{}", holder.id()));
    let own = std::fs::read_link("/proc/self/ns/user").expect("our namespace");
    while std::fs::read_link(proc.join("ns/user")).expect("its namespace") == own {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    for map in ["uid_map", "gid_map"] {
        std::fs::write(proc.join(map), format!("0 {first} 65536")).expect("a map");
    }
    let namespace = File::open(proc.join("ns/user")).expect("the namespace");
    holder.kill().expect("kill");
    holder.wait().expect("wait");
    let tree = open_tree(CWD, source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).expect("a descriptor"),
    };
    let size = size_of_val(&attributes);
    // SAFETY: the structure lives through the call, which only reads it.
    let set = unsafe {
        let at = &raw const attributes;
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, at, size)
    };
    if set != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).expect("an errno"));
    }
    move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}
