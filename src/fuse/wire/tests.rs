#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::time::Duration;

use super::message::{Arguments, Message};
use super::opcode::Opcode;
use super::reply::{DirReply, Reply, Ttl, retrieve_nothing};
use super::request::{CreateArgs, Header, Malformed, OpenArgs, Operation};
use crate::driver::node::{NodeId, Timestamp};
use crate::driver::types::{
    Attr, DirEntry, DirSink, Entry, Errno, HandleId, OpenMode, Opened, SetTime, StatFs, Validity,
};

/// Builds requests as the kernel sends them.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    fn name(self, name: &str) -> Self {
        self.raw(name.as_bytes()).raw(&[0])
    }
}

fn arguments() -> Bytes {
    Bytes::default()
}

fn header(opcode: u32) -> Header {
    Header { opcode: Opcode::of(opcode), unique: 7, node: NodeId(3), uid: 1000, gid: 1001, pid: 42 }
}

fn request(opcode: u32, arguments: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + arguments.len()).unwrap();
    Bytes::default().u32(length).u32(opcode).u64(7).u64(3).u32(1000).u32(1001).u32(42).u32(0).raw(arguments).0
}

fn decode(opcode: u32, arguments: &[u8]) -> Result<String, Malformed> {
    Operation::decode(&header(opcode), Arguments::whole(arguments), true).map(|operation| format!("{operation:?}"))
}

#[test]
fn headers() {
    let bytes = request(Opcode::Lookup as u32, b"name\0");
    let message = Message::whole(&bytes).unwrap();
    assert_eq!(Header::decode(&message), Ok((header(Opcode::Lookup as u32), Arguments::whole(b"name\0"))));
    for length in 0..bytes.len() {
        assert_eq!(Message::whole(&bytes[..length]), Err(Malformed::Header), "{length}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(Message::whole(&longer), Err(Malformed::Header));
}

/// Size of the structure in the first area of a ring's entry; `None` if all arguments are there.
fn structure(opcode: u32) -> Option<usize> {
    match Opcode::of(opcode)? {
        Opcode::Lookup | Opcode::Unlink | Opcode::Rmdir | Opcode::Symlink | Opcode::RemoveXattr => Some(0),
        Opcode::Mkdir | Opcode::Rename | Opcode::Link | Opcode::GetXattr => Some(8),
        Opcode::Mknod | Opcode::Rename2 | Opcode::Create | Opcode::TmpFile | Opcode::SetXattr => Some(16),
        Opcode::Ioctl => Some(32),
        Opcode::Write => Some(40),
        _ => None,
    }
}

#[test]
fn requests_in_parts() {
    for (opcode, bytes, expected) in requests() {
        let whole = request(opcode, &bytes);
        let (structure, payload) = bytes.split_at(structure(opcode).unwrap_or(bytes.len()));
        // The areas have a fixed size, so bytes of an earlier request follow.
        let area = |used: &[u8]| [used, &[0xaa; 128]].concat();
        let (head, structure) = (area(&whole[..40]), area(structure));
        let message = Message::parts(&head, &structure, payload).unwrap();
        let (header, arguments) = Header::decode(&message).unwrap();
        let operation =
            Operation::decode(&header, arguments, true).unwrap_or_else(|error| panic!("{opcode}: {error:?}"));
        assert!(format!("{operation:?}").contains(expected), "{opcode}: {operation:?}");
    }
}

#[test]
fn parts_of_another_length() {
    let head = request(Opcode::Lookup as u32, b"name\0");
    assert!(Message::parts(&head, &[], b"name\0").is_ok());
    assert_eq!(Message::parts(&head, &[0; 128], b"name\0x"), Err(Malformed::Header), "more than stated");
    assert_eq!(Message::parts(&head, &[0; 4], b""), Err(Malformed::Header), "less than stated");
    assert_eq!(Message::parts(&head[..39], &[0; 128], b""), Err(Malformed::Header));
}

/// A valid request of every kind, and its meaning.
fn requests() -> Vec<(u32, Vec<u8>, &'static str)> {
    let create = arguments().u32(0x8042).u32(0o100_644).u32(0o22).u32(1);
    let read = arguments().u64(9).u64(4096).u32(512).u32(0).u64(0).u32(0).u32(0);
    let read_args = "ReadArgs { handle: HandleId(9), offset: 4096, size: 512 }";
    let copy = arguments().u64(1).u64(10).u64(5).u64(2).u64(20).u64(30).u64(0);
    vec![
        (Opcode::Lookup as u32, arguments().name("a").0, "Lookup(\"a\")"),
        (Opcode::Forget as u32, arguments().u64(5).0, "Forget(5)"),
        (Opcode::GetAttr as u32, arguments().u32(1).u32(0).u64(9).0, "GetAttr(Some(HandleId(9)))"),
        (Opcode::GetAttr as u32, arguments().u32(0).u32(0).u64(9).0, "GetAttr(None)"),
        (Opcode::Statx as u32, arguments().u32(1).u32(0).u64(9).u32(0).u32(0xfff).0, "Statx(Some(HandleId(9)))"),
        (Opcode::ReadLink as u32, vec![], "ReadLink"),
        (Opcode::Symlink as u32, arguments().name("n").name("t/u").0, "Symlink { name: \"n\", target: \"t/u\" }"),
        (
            Opcode::Mknod as u32,
            // new_encode_dev(makedev(0x123, 0x45678))
            arguments().u32(0o20_644).u32(0x4561_2378).u32(0o22).u32(0).name("d").0,
            "Mknod(CreateArgs { name: \"d\", mode: 8612, umask: 18 }, (291, 284280))",
        ),
        (
            Opcode::Mkdir as u32,
            arguments().u32(0o755).u32(0o22).name("d").0,
            "Mkdir(CreateArgs { name: \"d\", mode: 493, umask: 18 })",
        ),
        (Opcode::Unlink as u32, arguments().name("a").0, "Unlink(\"a\")"),
        (Opcode::Rmdir as u32, arguments().name("a").0, "Rmdir(\"a\")"),
        (
            Opcode::Rename as u32,
            arguments().u64(4).name("a").name("b").0,
            "Rename { name: \"a\", to: NodeId(4), new_name: \"b\", flags: 0 }",
        ),
        (
            Opcode::Rename2 as u32,
            arguments().u64(4).u32(2).u32(0).name("a").name("b").0,
            "Rename { name: \"a\", to: NodeId(4), new_name: \"b\", flags: 2 }",
        ),
        (Opcode::Link as u32, arguments().u64(4).name("b").0, "Link { node: NodeId(4), name: \"b\" }"),
        (Opcode::Open as u32, arguments().u32(2).u32(1).0, "Open(OpenArgs { flags: 2, kill_suidgid: true })"),
        (Opcode::Read as u32, read.0.clone(), "Read"),
        (Opcode::ReadDir as u32, read.0.clone(), read_args),
        (Opcode::ReadDirPlus as u32, read.0, read_args),
        (
            Opcode::Write as u32,
            arguments().u64(9).u64(5).u32(3).u32(4).u64(0).u32(0).u32(0).raw(b"abc").0,
            "Write { handle: HandleId(9), offset: 5, bytes: [97, 98, 99], kill_suidgid: true }",
        ),
        (Opcode::StatFs as u32, vec![], "StatFs"),
        (Opcode::Release as u32, arguments().u64(9).u32(0).u32(0).u64(0).0, "Release(HandleId(9))"),
        (Opcode::ReleaseDir as u32, arguments().u64(9).u32(0).u32(0).u64(0).0, "ReleaseDir"),
        (Opcode::Fsync as u32, arguments().u64(9).u32(1).u32(0).0, "Fsync { handle: HandleId(9), data_only: true }"),
        (Opcode::FsyncDir as u32, arguments().u64(9).u32(0).u32(0).0, "FsyncDir { data_only: false }"),
        (
            Opcode::SetXattr as u32,
            arguments().u32(2).u32(1).u32(1).u32(0).name("user.x").raw(b"vw").0,
            "SetXattr { name: \"user.x\", value: [118, 119], flags: 1, kill_sgid: true }",
        ),
        (
            Opcode::GetXattr as u32,
            arguments().u32(64).u32(0).name("user.x").0,
            "GetXattr { name: \"user.x\", size: 64 }",
        ),
        (Opcode::ListXattr as u32, arguments().u32(64).u32(0).0, "ListXattr { size: 64 }"),
        (Opcode::RemoveXattr as u32, arguments().name("user.x").0, "RemoveXattr(\"user.x\")"),
        (Opcode::OpenDir as u32, arguments().u32(0).u32(0).0, "OpenDir"),
        (Opcode::Create as u32, arguments().raw(&create.0).name("f").0, "Create("),
        (Opcode::TmpFile as u32, create.name("/").0, "TmpFile("),
        (
            Opcode::Fallocate as u32,
            arguments().u64(9).u64(10).u64(20).u32(3).u32(0).0,
            "Fallocate { handle: HandleId(9), mode: 3, offset: 10, length: 20 }",
        ),
        (
            Opcode::Lseek as u32,
            arguments().u64(9).u64(10).u32(4).u32(0).0,
            "Lseek { handle: HandleId(9), offset: 10, whence: 4 }",
        ),
        (
            Opcode::CopyFileRange as u32,
            copy.0.clone(),
            "CopyFileRange(CopyArgs { from: HandleId(1), from_offset: 10, to: HandleId(2), to_offset: 20, length: 30, wide: false })",
        ),
        (Opcode::CopyFileRange64 as u32, copy.0, "wide: true })"),
        (Opcode::SyncFs as u32, arguments().u64(0).0, "SyncFs"),
        (Opcode::Interrupt as u32, arguments().u64(7).0, "Interrupt { unique: 7 }"),
        (Opcode::Destroy as u32, vec![], "Destroy"),
        (Opcode::Flush as u32, arguments().u64(9).0, "Flush"),
        (Opcode::Access as u32, arguments().u64(9).0, "Access"),
        (
            Opcode::Ioctl as u32,
            arguments().u64(9).u32(0).u32(0x4008_6602).u64(0).u32(3).u32(4).raw(b"abc").0,
            "Ioctl(IoctlArgs { command: 1074292226, input: [97, 98, 99], room: 4 })",
        ),
        (7, vec![], "Unknown"),
        (4096, vec![], "Unknown"),
        (u32::MAX, vec![], "Unknown"),
    ]
}

#[test]
fn every_request_decodes() {
    for (opcode, bytes, expected) in requests() {
        let operation = decode(opcode, &bytes).unwrap_or_else(|error| panic!("{opcode}: {error:?}"));
        assert!(operation.contains(expected), "{opcode}: {operation}");
    }
}

/// A request that is cut off anywhere is refused; if only padding is missing, it is understood. Decoding never panics.
#[test]
fn cut_off_requests() {
    for (opcode, bytes, _) in requests() {
        for length in 0..bytes.len() {
            for extended in [false, true] {
                let cut = Operation::decode(&header(opcode), Arguments::whole(&bytes[..length]), extended);
                if length == 0 && opcode != Opcode::OpenDir as u32 && opcode != Opcode::SyncFs as u32 && opcode < 4096 {
                    let without_arguments = matches!(cut, Ok(Operation::Flush | Operation::Access));
                    assert!(without_arguments || cut.is_err(), "{opcode}: {cut:?}");
                }
            }
        }
    }
    // The last byte of a name is its NUL; that of a write is data.
    for opcode in [
        Opcode::Lookup as u32,
        Opcode::Symlink as u32,
        Opcode::Create as u32,
        Opcode::Write as u32,
        Opcode::SetXattr as u32,
        Opcode::Rename2 as u32,
    ] {
        let (_, bytes, _) = requests().into_iter().find(|(number, ..)| *number == opcode).unwrap();
        assert_eq!(decode(opcode, &bytes[..bytes.len() - 1]), Err(Malformed::Arguments), "{opcode}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_decode_or_fail(opcode in 0u32..60, bytes: Vec<u8>, extended: bool) {
        if let Ok(Operation::BatchForget(forgets)) = Operation::decode(&header(opcode), Arguments::whole(&bytes), extended) {
            proptest::prop_assert!(forgets.iter().count() <= bytes.len() / 16);
        }
    }
}

#[test]
fn forgets() {
    let bytes = arguments().u32(2).u32(0).u64(5).u64(1).u64(6).u64(2).0;
    let Ok(Operation::BatchForget(forgets)) =
        Operation::decode(&header(Opcode::BatchForget as u32), Arguments::whole(&bytes), true)
    else {
        panic!("not decoded");
    };
    assert_eq!(forgets.iter().collect::<Vec<_>>(), [(NodeId(5), 1), (NodeId(6), 2)]);
    for count in [3, u32::MAX] {
        let bytes = arguments().u32(count).u32(0).u64(5).u64(1).u64(6).u64(2).0;
        assert_eq!(decode(Opcode::BatchForget as u32, &bytes), Err(Malformed::Arguments));
    }
}

#[test]
fn sizes_beyond_the_request() {
    let write = arguments().u64(9).u64(5).u32(u32::MAX).u32(0).u64(0).u32(0).u32(0).raw(b"abc").0;
    assert_eq!(decode(Opcode::Write as u32, &write), Err(Malformed::Arguments));
    let xattr = arguments().u32(3).u32(0).u32(0).u32(0).name("a").raw(b"vw").0;
    assert_eq!(decode(Opcode::SetXattr as u32, &xattr), Err(Malformed::Arguments));
}

#[test]
fn setxattr_without_extension() {
    let bytes = arguments().u32(2).u32(1).name("user.x").raw(b"vw").0;
    let operation = Operation::decode(&header(Opcode::SetXattr as u32), Arguments::whole(&bytes), false);
    assert!(matches!(operation, Ok(Operation::SetXattr { value: b"vw", flags: 1, kill_sgid: false, .. })));
}

#[test]
fn attributes_to_set() {
    let set = |valid: u32| {
        let bytes = arguments().u32(valid).u32(0).u64(9).u64(100).u64(0).u64(u64::MAX).u64(20).u64(30);
        let bytes = bytes.u32(1).u32(2).u32(3).u32(0o104_755).u32(0).u32(5).u32(6).u32(0).0;
        assert_eq!(bytes.len(), 88);
        match Operation::decode(&header(Opcode::SetAttr as u32), Arguments::whole(&bytes), true) {
            Ok(Operation::SetAttr(handle, set)) => (handle, set),
            other => panic!("{other:?}"),
        }
    };
    let (handle, none) = set(0);
    assert_eq!(handle, None);
    assert_eq!((none.mode, none.uid, none.gid, none.size), (None, None, None, None));
    assert_eq!((none.atime, none.mtime, none.kill_suidgid), (None, None, false));

    let (handle, all) = set(0x87f);
    assert_eq!(handle, Some(HandleId(9)));
    assert_eq!((all.mode, all.uid, all.gid, all.size), (Some(0o4755), Some(5), Some(6), Some(100)));
    assert_eq!(all.atime, Some(SetTime::At(Timestamp { sec: -1, nsec: 1 })));
    assert_eq!(all.mtime, Some(SetTime::At(Timestamp { sec: 20, nsec: 2 })));
    assert!(all.kill_suidgid);

    let (_, now) = set(0x1b0);
    assert_eq!((now.atime, now.mtime), (Some(SetTime::Now), Some(SetTime::Now)));
}

#[test]
fn create_arguments() {
    let bytes = arguments().u32(0x8042).u32(0o100_644).u32(0o22).u32(1).name("f").0;
    let Ok(Operation::Create(create, open)) =
        Operation::decode(&header(Opcode::Create as u32), Arguments::whole(&bytes), true)
    else {
        panic!("not decoded");
    };
    assert_eq!(create, CreateArgs { name: OsStr::new("f"), mode: 0o100_644, umask: 0o22 });
    assert_eq!(open, OpenArgs { flags: 0x8042, kill_suidgid: true });
}

fn attr() -> Attr {
    Attr {
        ino: 11,
        mode: 0o100_644,
        nlink: 2,
        uid: 1000,
        gid: 1001,
        rdev: (0x123, 0x45678),
        size: 5000,
        blocks: 16,
        blksize: 4096,
        atime: Timestamp { sec: -1, nsec: 1 },
        mtime: Timestamp { sec: 20, nsec: 2 },
        ctime: Timestamp { sec: 30, nsec: 3 },
        btime: Some(Timestamp { sec: 40, nsec: 4 }),
    }
}

fn entry() -> Entry {
    Entry { node: NodeId(77), attr: attr(), attr_validity: Validity::None }
}

fn reply_of(room: usize, timeout: Option<Duration>) -> Reply<'static> {
    Reply::new(vec![0; room].leak(), Ttl::new(timeout))
}

fn reply() -> Reply<'static> {
    reply_of(4096, Some(Duration::from_millis(2500)))
}

/// Header and payload of the reply to request 7.
fn sent(reply: &mut Reply<'_>, outcome: Result<(), Errno>) -> Vec<u8> {
    let answer = reply.finish(7, outcome);
    [&answer.header()[..], reply.payload(&answer)].concat()
}

/// Reads a reply as the kernel does.
struct Kernel<'a>(&'a [u8]);

impl Kernel<'_> {
    fn u32(&mut self) -> u32 {
        let (taken, rest) = self.0.split_first_chunk().unwrap();
        self.0 = rest;
        u32::from_ne_bytes(*taken)
    }
    fn u64(&mut self) -> u64 {
        let (taken, rest) = self.0.split_first_chunk().unwrap();
        self.0 = rest;
        u64::from_ne_bytes(*taken)
    }
    fn u32s<const N: usize>(&mut self) -> [u32; N] {
        [(); N].map(|()| self.u32())
    }
    fn u64s<const N: usize>(&mut self) -> [u64; N] {
        [(); N].map(|()| self.u64())
    }
    fn skip(&mut self, count: usize) {
        self.0 = &self.0[count..];
    }
    /// Checks the header; the payload is left.
    fn header(&mut self, payload: usize, error: i32) {
        assert_eq!(self.0.len(), 16 + payload);
        assert_eq!(self.u32(), u32::try_from(16 + payload).unwrap());
        assert_eq!(self.u32().cast_signed(), error);
        assert_eq!(self.u64(), 7);
    }
    fn check_attr(&mut self) {
        assert_eq!(self.u64s(), [11, 5000, 16, u64::MAX, 20, 30]);
        assert_eq!(self.u32s(), [1, 2, 3, 0o100_644, 2, 1000, 1001, 0x4561_2378, 4096, 0]);
    }
    fn check_entry(&mut self) {
        assert_eq!(self.u64s(), [77, 0, 2, 0]);
        assert_eq!(self.u32s(), [500_000_000, 0]);
        self.check_attr();
    }
}

#[test]
fn errors_drop_the_payload() {
    let mut reply = reply();
    reply.bytes(b"half a payload").unwrap();
    Kernel(sent(&mut reply, Err(Errno::NOENT)).leak()).header(0, -2);
    reply.clear();
    Kernel(sent(&mut reply, Ok(())).leak()).header(0, 0);
}

#[test]
fn notifications() {
    let message = retrieve_nothing(1 << 40, NodeId(3));
    let mut kernel = Kernel(&message);
    assert_eq!((kernel.u32s(), kernel.u64()), ([48, 5], 0));
    assert_eq!((kernel.u64s(), kernel.u32s()), ([1 << 40, 3, 0], [0, 0]));
}

#[test]
fn entries_and_attributes() {
    let mut reply = reply();
    reply.entry(&entry()).unwrap();
    reply.opened(&Opened { handle: HandleId(9), mode: OpenMode::Passthrough(5) }).unwrap();
    let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
    kernel.header(128 + 16, 0);
    kernel.check_entry();
    assert_eq!((kernel.u64(), kernel.u32s()), (9, [1 << 7, 5]));

    reply.clear();
    reply.attr(&attr(), Validity::Forever).unwrap();
    let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
    kernel.header(104, 0);
    assert_eq!((kernel.u64(), kernel.u32s()), (2, [500_000_000, 0]));
    kernel.check_attr();

    reply.clear();
    reply.no_entry().unwrap();
    let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
    kernel.header(128, 0);
    assert_eq!(kernel.u64s(), [0, 0, 2, 0]);
}

#[test]
fn names_hold_for_ever_without_timeout() {
    let mut reply = reply_of(4096, None);
    reply.entry(&Entry { attr_validity: Validity::Forever, ..entry() }).unwrap();
    let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
    kernel.header(128, 0);
    let [_, _, name, attributes] = kernel.u64s();
    assert!(name > 100 * 365 * 86400 && attributes == name);
}

#[test]
fn extended_attributes_of_files() {
    let mut reply = reply();
    reply.statx(&attr(), Validity::Forever).unwrap();
    let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
    kernel.header(32 + 256, 0);
    assert_eq!(kernel.u64(), 2);
    kernel.skip(24);
    assert_eq!(kernel.u32s(), [0xfff, 4096]);
    kernel.skip(8);
    assert_eq!(kernel.u32s(), [2, 1000, 1001, 0o100_644]);
    assert_eq!(kernel.u64s(), [11, 5000, 16, 0]);
    for (sec, nsec) in [(u64::MAX, 1), (40, 4), (30, 3), (20, 2)] {
        assert_eq!((kernel.u64(), kernel.u32s()), (sec, [nsec, 0]));
    }
    assert_eq!(kernel.u32s(), [0x123, 0x45678]);

    reply.clear();
    reply.statx(&Attr { btime: None, ..attr() }, Validity::Forever).unwrap();
    let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
    kernel.skip(16 + 32);
    assert_eq!(kernel.u32(), 0x7ff);
}

#[test]
fn open_flags() {
    for (mode, flags) in [(OpenMode::KeepCache, 2), (OpenMode::DropCache, 0)] {
        let mut reply = reply();
        reply.opened(&Opened { handle: HandleId(9), mode }).unwrap();
        let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
        kernel.header(16, 0);
        assert_eq!((kernel.u64(), kernel.u32s()), (9, [flags, 0]));
    }
    // With `timeout`, the kernel keeps no listings.
    for (timeout, flags) in [(None, 2 | 8), (Some(Duration::ZERO), 0)] {
        let mut reply = reply_of(4096, timeout);
        reply.opened_dir(HandleId(9)).unwrap();
        let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
        kernel.header(16, 0);
        assert_eq!((kernel.u64(), kernel.u32s()), (9, [flags, 0]));
    }
}

#[test]
fn small_replies() {
    let mut reply = reply();
    reply.written(3).unwrap();
    reply.number(1 << 40).unwrap();
    let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
    kernel.header(16, 0);
    assert_eq!((kernel.u32s(), kernel.u64()), ([3, 0], 1 << 40));

    let stat = StatFs { frsize: 1, bsize: 2, blocks: 3, bfree: 4, bavail: 5, files: 6, ffree: 7, namelen: 255 };
    reply.clear();
    reply.statfs(&stat).unwrap();
    let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
    kernel.header(80, 0);
    assert_eq!((kernel.u64s(), kernel.u32s()), ([3, 4, 5, 6, 7], [2, 255, 1, 0]));
}

#[test]
fn xattr_replies() {
    let mut reply = reply();
    reply.xattr(b"value", 0).unwrap();
    let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
    kernel.header(8, 0);
    assert_eq!(kernel.u32(), 5);

    reply.clear();
    reply.xattr(b"value", 5).unwrap();
    assert_eq!(&sent(&mut reply, Ok(()))[16..], b"value");

    reply.clear();
    assert_eq!(reply.xattr(b"value", 4), Err(Errno::RANGE));
}

#[test]
fn reads_are_bounded() {
    let mut reply = reply();
    reply
        .fill(u32::MAX, |buffer| {
            assert_eq!(buffer.len(), 4096);
            buffer[..3].copy_from_slice(b"abc");
            Ok(3)
        })
        .unwrap();
    assert_eq!(&sent(&mut reply, Ok(()))[16..], b"abc");
    reply.clear();
    assert_eq!(reply.fill(10, |_| Err(Errno::IO)), Err(Errno::IO));
    assert_eq!(reply.bytes(&[0; 4097]), Err(Errno::OVERFLOW));
}

#[test]
fn listings() {
    let name = |name| DirEntry { name: OsStr::new(name), ino: 11, kind: 8, next: 1 };
    let mut reply = reply();
    // Room for two entries of 24 + 8 bytes; the third must be refused as a whole.
    let mut listing = DirReply::new(&mut reply, 64 + 31, false);
    assert!(listing.push(&name("a"), None) && listing.push(&name("12345678"), None));
    assert!(!listing.push(&name("c"), None));
    let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
    kernel.header(64, 0);
    assert_eq!((kernel.u64s(), kernel.u32s()), ([11, 1], [1, 8]));
    assert_eq!(&kernel.0[..8], b"a\0\0\0\0\0\0\0");
    kernel.skip(8);
    assert_eq!((kernel.u64s(), kernel.u32s()), ([11, 1], [8, 8]));
    assert_eq!(kernel.0, b"12345678");
}

#[test]
fn listings_with_entries() {
    let mut reply = reply();
    let mut listing = DirReply::new(&mut reply, 1 << 20, true);
    let dot = DirEntry { name: OsStr::new("."), ino: 10, kind: 4, next: 1 };
    let file = DirEntry { name: OsStr::new("f"), ino: 11, kind: 8, next: 2 };
    assert!(listing.push(&dot, None) && listing.push(&file, Some(&entry())));
    let mut kernel = Kernel(sent(&mut reply, Ok(())).leak());
    kernel.header(2 * 160, 0);
    assert_eq!(kernel.u64s(), [0; 16]);
    assert_eq!((kernel.u64s(), kernel.u32s()), ([10, 1], [1, 4]));
    kernel.skip(8);
    kernel.check_entry();
    assert_eq!((kernel.u64s(), kernel.u32s()), ([11, 2], [1, 8]));
}

#[test]
fn listings_end_at_the_buffer() {
    let mut reply = reply_of(100, None);
    let mut listing = DirReply::new(&mut reply, u32::MAX, false);
    let name = DirEntry { name: OsStr::new("a"), ino: 11, kind: 8, next: 1 };
    let taken = (0..10).filter(|_| listing.push(&name, None)).count();
    assert_eq!(taken, 3);
}
