//! Uppers on file systems with fewer features than ext4: behind another FUSE file system, or where no device can be made.

#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file system through which stratafs reaches its upper. The kernel's overlayfs always gets the plain directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Upper {
    /// The directory itself.
    #[default]
    Plain,
    /// bindfs: no `RENAME_EXCHANGE`, no `RENAME_WHITEOUT`, no `O_TMPFILE`.
    Bindfs,
    /// bindfs, also without extended attributes.
    BindfsWithoutXattrs,
    /// mergerfs with one branch: as bindfs.
    Mergerfs,
    /// `mknod` of the device 0:0 is refused, so whiteouts are attributes.
    XattrWhiteouts,
}

/// Every kind with fewer features.
pub const WEAK: [Upper; 4] = [Upper::Bindfs, Upper::BindfsWithoutXattrs, Upper::Mergerfs, Upper::XattrWhiteouts];

impl Upper {
    /// Program and options that mount it.
    fn program(self) -> Option<(&'static str, &'static str)> {
        const FRESH: &str = "attr_timeout=0,entry_timeout=0,negative_timeout=0";
        match self {
            Self::Plain | Self::XattrWhiteouts => None,
            Self::Bindfs => Some(("bindfs", FRESH)),
            Self::BindfsWithoutXattrs => {
                Some(("bindfs", "xattr-none,attr_timeout=0,entry_timeout=0,negative_timeout=0"))
            }
            Self::Mergerfs => Some(("mergerfs", "cache.attr=0,cache.entry=0,dropcacheonclose=true")),
        }
    }

    /// The path of `directory` through it; it is mounted beside the directory at the first call.
    pub fn reach(self, directory: &Path) -> PathBuf {
        let Some((program, options)) = self.program() else { return directory.to_owned() };
        let point = directory.with_extension("through");
        if !point.exists() {
            std::fs::create_dir(&point).expect("a mountpoint");
        }
        if !is_mountpoint(&point) {
            let output = Command::new(program).arg("-o").arg(options).arg(directory).arg(&point).output();
            let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        }
        point
    }

    /// Removes the features that this upper lacks from the daemon started by `command`.
    pub fn restrict(self, command: &mut Command) {
        if self == Self::XattrWhiteouts {
            // SAFETY: the closure only makes system calls, on memory of its own.
            unsafe { command.pre_exec(refuse_devices) };
        }
    }
}

fn is_mountpoint(path: &Path) -> bool {
    let device = |path: &Path| super::sys::lstat(path).expect("a directory").st_dev;
    device(path) != device(path.parent().expect("a parent"))
}

/// From now on `mknodat(2)` of a whiteout, the character device 0:0, fails with EPERM.
fn refuse_devices() -> std::io::Result<()> {
    const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let jump =
        |k: u32, jf: u8| libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf, k };
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    // Offsets in `struct seccomp_data`: the number is at 0, the arguments are from 16 on.
    let program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(libc::SYS_mknodat as u32, 6),
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 16 + 2 * 8),
        statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, libc::S_IFMT),
        jump(libc::S_IFCHR, 3),
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 16 + 3 * 8),
        jump(0, 1),
        statement(libc::BPF_RET | libc::BPF_K, DENY),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call, which copies it.
    let set = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
