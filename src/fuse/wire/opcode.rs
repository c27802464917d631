//! Numbers of requests.

/// Makes the enum and its derived items from one list.
macro_rules! opcodes {
    ($($variant:ident = $number:literal $name:literal,)*) => {
        /// `enum fuse_opcode` of Linux 6.18, without CUSE.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub(in crate::fuse) enum Opcode {
            $($variant = $number,)*
        }

        impl Opcode {
            /// The request with a number; `None` for one of a newer kernel.
            pub(in crate::fuse) const fn of(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The name in `STRATAFS_LOG` and the counters.
            pub(in crate::fuse) const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

opcodes! {
    Lookup = 1 "LOOKUP",
    Forget = 2 "FORGET",
    GetAttr = 3 "GETATTR",
    SetAttr = 4 "SETATTR",
    ReadLink = 5 "READLINK",
    Symlink = 6 "SYMLINK",
    Mknod = 8 "MKNOD",
    Mkdir = 9 "MKDIR",
    Unlink = 10 "UNLINK",
    Rmdir = 11 "RMDIR",
    Rename = 12 "RENAME",
    Link = 13 "LINK",
    Open = 14 "OPEN",
    Read = 15 "READ",
    Write = 16 "WRITE",
    StatFs = 17 "STATFS",
    Release = 18 "RELEASE",
    Fsync = 20 "FSYNC",
    SetXattr = 21 "SETXATTR",
    GetXattr = 22 "GETXATTR",
    ListXattr = 23 "LISTXATTR",
    RemoveXattr = 24 "REMOVEXATTR",
    Flush = 25 "FLUSH",
    Init = 26 "INIT",
    OpenDir = 27 "OPENDIR",
    ReadDir = 28 "READDIR",
    ReleaseDir = 29 "RELEASEDIR",
    FsyncDir = 30 "FSYNCDIR",
    GetLk = 31 "GETLK",
    SetLk = 32 "SETLK",
    SetLkW = 33 "SETLKW",
    Access = 34 "ACCESS",
    Create = 35 "CREATE",
    Interrupt = 36 "INTERRUPT",
    Bmap = 37 "BMAP",
    Destroy = 38 "DESTROY",
    Ioctl = 39 "IOCTL",
    Poll = 40 "POLL",
    NotifyReply = 41 "NOTIFY_REPLY",
    BatchForget = 42 "BATCH_FORGET",
    Fallocate = 43 "FALLOCATE",
    ReadDirPlus = 44 "READDIRPLUS",
    Rename2 = 45 "RENAME2",
    Lseek = 46 "LSEEK",
    CopyFileRange = 47 "COPY_FILE_RANGE",
    SetupMapping = 48 "SETUPMAPPING",
    RemoveMapping = 49 "REMOVEMAPPING",
    SyncFs = 50 "SYNCFS",
    TmpFile = 51 "TMPFILE",
    Statx = 52 "STATX",
    CopyFileRange64 = 53 "COPY_FILE_RANGE_64",
}

impl Opcode {
    /// One more than the highest number.
    pub(in crate::fuse) const COUNT: usize = Self::CopyFileRange64 as usize + 1;
}
