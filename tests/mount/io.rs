//! Content: reads and writes of every layer's files, through handles that outlive copy-up.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, OFlags, SeekFrom};

use crate::common::sys::{self, Mapping};
use crate::common::tree::pattern;
use crate::common::{Errno, Stack};
use crate::{on_both, on_stratafs};

fn leaves_alone(program: &Path) {
    let size = std::fs::metadata(program).unwrap().len();
    let mut running = sys::start(program, &["1000"]);
    for flags in [
        OFlags::WRONLY,
        OFlags::RDWR,
        OFlags::WRONLY | OFlags::TRUNC,
        OFlags::RDONLY | OFlags::TRUNC,
        OFlags::RDWR | OFlags::TRUNC | OFlags::CREATE,
    ] {
        assert_eq!(sys::open(program, flags, 0o644).err(), Some(Errno::TXTBSY), "{flags:?}");
        assert_eq!(std::fs::metadata(program).unwrap().len(), size, "{flags:?}");
    }
    assert!(running.is_alive());
    drop(running);
    // The kernel tells of the end a moment later.
    while let Err(error) = sys::open(program, OFlags::RDONLY | OFlags::TRUNC, 0) {
        assert_eq!(error, Errno::TXTBSY);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(std::fs::metadata(program).unwrap().len(), 0);
}

on_both! {
    fn append_to_lower(driver) {
        let mount = Stack::new().lower("file d/f \"lower\" mode=640 uid=3 gid=4 user.k=v\ndir d mode=750 mtime=1000").mount(driver);
        let ino = sys::ino(&mount.at("d/f"));
        sys::append(&mount.at("d/f"), b"+more").unwrap();
        assert_eq!(sys::ino(&mount.at("d/f")), ino);
        assert_eq!(sys::mtime(&mount.at("d")), (1000, 0), "the parent's time");
        mount.assert_upper("dir d mode=750\nfile d/f \"lower+more\" mode=640 uid=3 gid=4 user.k=v");
        let mount = mount.remount(driver);
        assert_eq!(sys::ino(&mount.at("d/f")), ino);
        mount.assert_tree_everywhere("dir d mode=750\nfile d/f \"lower+more\" mode=640 uid=3 gid=4 user.k=v");
    }

    fn overwrite_in_the_middle(driver) {
        let mount = Stack::new().lower("file f fill=300000").mount(driver);
        let mut expected = pattern(300_000);
        for (offset, length) in [(0, 10), (4095, 2), (131_071, 5000), (299_990, 10), (299_999, 500)] {
            let bytes = vec![b'#'; length];
            sys::write_at(&mount.at("f"), offset as u64, &bytes).unwrap();
            if expected.len() < offset + length {
                expected.resize(offset + length, 0);
            }
            expected[offset..offset + length].copy_from_slice(&bytes);
            assert!(sys::read(&mount.at("f")).unwrap() == expected, "after a write at {offset}");
        }
        let mount = mount.remount(driver);
        assert!(sys::read(&mount.at("f")).unwrap() == expected);
    }

    fn large_files(driver) {
        let mount = Stack::new().lower("file f fill=9000000").mount(driver);
        let content = pattern(9_000_000);
        assert!(sys::read(&mount.at("f")).unwrap() == content);
        sys::create(&mount.at("copy"), &content).unwrap();
        assert!(sys::read(&mount.at("copy")).unwrap() == content);
        let file = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        file.write_all_at(b"end", 9_000_000).unwrap();
        drop(file);
        let mount = mount.remount(driver);
        assert!(sys::read(&mount.at("f")).unwrap()[..9_000_000] == content);
        assert_eq!(sys::lstat(&mount.at("f")).unwrap().st_size, 9_000_003);
    }

    fn opening_without_writing(driver) {
        let mount = Stack::new().lower("file f \"x\" mtime=1000\nfile g \"g\"").mount(driver);
        sys::read(&mount.at("f")).unwrap();
        mount.assert_upper("");
        // Opened for writing but not written: content and time stay.
        drop(sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap());
        assert_eq!((sys::text(&mount.at("f")), sys::mtime(&mount.at("f"))), ("x".to_owned(), (1000, 0)));
        drop(sys::open(&mount.at("g"), OFlags::WRONLY | OFlags::TRUNC, 0).unwrap());
        assert_eq!(sys::text(&mount.at("g")), "");
    }

    fn descriptor_modes(driver) {
        let mount = Stack::new().lower("file f \"content\"").mount(driver);
        let read = sys::open(&mount.at("f"), OFlags::RDONLY, 0).unwrap();
        assert_eq!(rustix::io::write(&read, b"x"), Err(Errno::BADF));
        let write = sys::open(&mount.at("f"), OFlags::WRONLY, 0).unwrap();
        assert_eq!(rustix::io::read(&write, &mut [0; 4][..]), Err(Errno::BADF));
        rustix::io::write(&write, b"CON").unwrap();
        assert_eq!(sys::text(&mount.at("f")), "CONtent");
    }

    fn append_mode_always_goes_to_the_end(driver) {
        let mount = Stack::new().lower("file f \"0\"").mount(driver);
        let one = sys::open(&mount.at("f"), OFlags::WRONLY | OFlags::APPEND, 0).unwrap();
        let two = sys::open(&mount.at("f"), OFlags::WRONLY | OFlags::APPEND, 0).unwrap();
        for round in 1..=4 {
            sys::write_all(if round % 2 == 0 { &one } else { &two }, round.to_string().as_bytes()).unwrap();
        }
        rustix::io::pwrite(&one, b"5", 0).unwrap();
        assert_eq!(sys::text(&mount.at("f")), "012345");
    }

    fn o_trunc_with_other_handles(driver) {
        let mount = Stack::new().lower("file f \"lower content\"").upper("file u \"upper content\"").mount(driver);
        for name in ["f", "u"] {
            let writer = sys::open(&mount.at(name), OFlags::RDWR, 0).unwrap();
            assert_eq!(sys::read_file(&writer).unwrap().len(), 13);
            drop(sys::open(&mount.at(name), OFlags::WRONLY | OFlags::TRUNC, 0).unwrap());
            assert_eq!(rustix::fs::fstat(&writer).unwrap().st_size, 0, "{name}");
            assert_eq!(sys::read_file(&writer).unwrap(), b"");
            sys::pwrite(&writer, b"z", 4).unwrap();
            assert_eq!(sys::read(&mount.at(name)).unwrap(), b"\0\0\0\0z");
        }
        // Read-only opening with O_TRUNC truncates too.
        drop(sys::open(&mount.at("u"), OFlags::RDONLY | OFlags::TRUNC, 0).unwrap());
        assert_eq!(sys::text(&mount.at("u")), "");
    }

    fn writers_see_each_other(driver) {
        let mount = Stack::new().lower("file f \"........\"").mount(driver);
        let one = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        let two = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        sys::pwrite(&one, b"one", 0).unwrap();
        sys::pwrite(&two, b"two", 4).unwrap();
        assert_eq!(sys::read_file(&one).unwrap(), b"one.two.");
        assert_eq!(sys::read_file(&two).unwrap(), b"one.two.");
        rustix::fs::ftruncate(&one, 3).unwrap();
        assert_eq!(rustix::fs::fstat(&two).unwrap().st_size, 3);
        assert_eq!(sys::text(&mount.at("f")), "one");
    }

    fn sparse_files_stay_sparse(driver) {
        let mount = Stack::new().lower("file s size=40000000\nfile t size=40000000").mount(driver);
        sys::write_at(&mount.at("s"), 20_000_000, b"middle").unwrap();
        sys::chmod(&mount.at("t"), 0o600).unwrap();
        for name in ["s", "t"] {
            assert_eq!(sys::lstat(&mount.at(name)).unwrap().st_size, 40_000_000);
            assert!(sys::allocated(&mount.upper(name)) < 1_000_000, "{name}: {} bytes", sys::allocated(&mount.upper(name)));
            assert!(sys::allocated(&mount.at(name)) < 1_000_000, "{name} as the mount shows it");
        }
        let content = sys::read(&mount.at("s")).unwrap();
        assert_eq!(&content[20_000_000..20_000_006], b"middle");
        assert!(content[..20_000_000].iter().all(|&byte| byte == 0));
    }

    fn seek_hole_and_data(driver) {
        let mount = Stack::new().lower("file low size=1000000").mount(driver);
        let check = |path: &str| {
            let file = sys::open(&mount.at(path), OFlags::RDWR | OFlags::CREATE, 0o644).unwrap();
            rustix::fs::ftruncate(&file, 1_000_000).unwrap();
            sys::pwrite(&file, &[1; 4096], 409_600).unwrap();
            rustix::fs::fsync(&file).unwrap();
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap(), 409_600, "{path}");
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)).unwrap(), 0, "{path}");
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(409_600)).unwrap(), 413_696, "{path}");
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(500_000)), Err(Errno::NXIO), "{path}");
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(1_000_001)), Err(Errno::NXIO), "{path}");
        };
        let low = sys::open(&mount.at("low"), OFlags::RDONLY, 0).unwrap();
        assert_eq!(rustix::fs::seek(&low, SeekFrom::Data(0)), Err(Errno::NXIO));
        assert_eq!(rustix::fs::seek(&low, SeekFrom::Hole(5)).unwrap(), 5);
        check("new");
        check("low");
    }

    fn fallocate_modes(driver) {
        let mount = Stack::new().lower("file f fill=65536").mount(driver);
        let file = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        let mut expected = pattern(65536);
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 65536, 4096).unwrap();
        expected.resize(69632, 0);
        assert!(sys::read_file(&file).unwrap() == expected, "extended");
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 69632, 8192).unwrap();
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, 69632);
        rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 8192).unwrap();
        expected[4096..12288].fill(0);
        assert!(sys::read_file(&file).unwrap() == expected, "punched");
        rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 100, 1000).unwrap();
        expected[100..1100].fill(0);
        assert!(sys::read_file(&file).unwrap() == expected, "zeroed");
        assert_eq!(sys::read(&mount.upper("f")).unwrap().len(), 69632);
        let read_only = sys::open(&mount.at("f"), OFlags::RDONLY, 0).unwrap();
        assert_eq!(rustix::fs::fallocate(&read_only, FallocateFlags::empty(), 0, 1), Err(Errno::BADF));
    }

    /// Zeroing past the end, with and without the size; invalid requests change nothing.
    fn fallocate_past_the_end(driver) {
        let mount = Stack::new().lower("file f fill=10000").mount(driver);
        let file = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        let size = || rustix::fs::fstat(&file).unwrap().st_size;
        let keep = FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE | keep, 8000, 10_000).unwrap();
        assert_eq!(size(), 10_000);
        rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 9000, 11_000).unwrap();
        assert_eq!((size(), sys::lstat(&mount.at("f")).unwrap().st_size), (20_000, 20_000));
        rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, 19_000, 100_000).unwrap();
        assert_eq!(size(), 20_000);
        let mut expected = pattern(10_000);
        expected[8000..].fill(0);
        expected.resize(20_000, 0);
        assert!(sys::read_file(&file).unwrap() == expected);
        assert_eq!(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 0), Err(Errno::INVAL));
        assert_eq!(rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE, 0, 4096), Err(Errno::OPNOTSUPP));
        assert_eq!(size(), 20_000);
    }

    fn copy_file_range(driver) {
        let mount = Stack::new().lower("file from fill=500000\nfile to \"short\"").mount(driver);
        let content = pattern(500_000);
        let from = sys::open(&mount.at("from"), OFlags::RDONLY, 0).unwrap();
        for name in ["to", "new"] {
            let to = sys::open(&mount.at(name), OFlags::RDWR | OFlags::CREATE, 0o644).unwrap();
            let (mut read_at, mut write_at, mut left) = (1000, 3, 300_000);
            while left > 0 {
                let count = rustix::fs::copy_file_range(&from, Some(&mut read_at), &to, Some(&mut write_at), left).unwrap();
                assert!(count > 0);
                left -= count;
            }
            let result = sys::read_file(&to).unwrap();
            assert_eq!(result.len(), 300_003);
            assert!(result[3..] == content[1000..301_000], "{name}");
        }
        assert!(sys::read(&mount.at("from")).unwrap() == content);
        assert!(!sys::exists(&mount.upper("from")));
    }

    /// A shared mapping of an upper file agrees with read and write at all times.
    fn mappings_are_coherent(driver) {
        let mount = Stack::new().lower("file low fill=20000").upper("file up fill=20000").mount(driver);
        for name in ["low", "up"] {
            let file = sys::open(&mount.at(name), OFlags::RDWR, 0).unwrap();
            let map = Mapping::new(&file, 20_000, true);
            let other = sys::open(&mount.at(name), OFlags::RDWR, 0).unwrap();
            map.store(5000, b"mapped");
            let mut buffer = [0; 6];
            other.read_exact_at(&mut buffer, 5000).unwrap();
            assert_eq!(&buffer, b"mapped", "{name}");
            sys::pwrite(&other, b"written", 10_000).unwrap();
            assert_eq!(map.bytes(10_000..10_007), b"written", "{name}");
            map.store(0, b"end");
            map.sync();
            drop(map);
            assert_eq!(&sys::read(&mount.upper(name)).unwrap()[..3], b"end", "{name}");
        }
    }

    /// Modification and change time, of files of either layer, at every write.
    fn mapped_writes_move_the_times(driver) {
        let mount = Stack::new().lower("file low fill=5000 mtime=1000").upper("file up fill=5000 mtime=1000").mount(driver);
        for name in ["low", "up"] {
            let file = sys::open(&mount.at(name), OFlags::RDWR, 0).unwrap();
            let map = Mapping::new(&file, 5000, true);
            let times = || {
                let stat = sys::lstat(&mount.at(name)).unwrap();
                [(stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec)]
            };
            let mut before = times();
            assert_eq!(before[0], (1000, 0), "{name}");
            for round in 0..3 {
                // The clock of file times ticks every few milliseconds.
                std::thread::sleep(std::time::Duration::from_millis(20));
                map.store(round, b"x");
                map.sync();
                let after = times();
                assert!(after[0] > before[0] && after[1] > before[1], "{name}, {round}: {before:?}, {after:?}");
                before = after;
            }
            drop((map, file));
            assert!(times() >= before, "{name}");
        }
    }

    fn mapping_read_only_lower(driver) {
        let mount = Stack::new().lower("file f fill=20000").mount(driver);
        let file = sys::open(&mount.at("f"), OFlags::RDONLY, 0).unwrap();
        let map = Mapping::new(&file, 20_000, false);
        assert!(map.bytes(0..20_000) == pattern(20_000));
        mount.assert_upper("");
    }

    fn fsync_reaches_the_upper(driver) {
        let mount = Stack::new().lower("file f \"low\"\ndir d").mount(driver);
        let file = sys::open(&mount.at("f"), OFlags::RDWR | OFlags::APPEND, 0).unwrap();
        sys::write_all(&file, b"+synced").unwrap();
        rustix::fs::fsync(&file).unwrap();
        assert_eq!(sys::text(&mount.upper("f")), "low+synced");
        sys::write_all(&file, b"+data").unwrap();
        rustix::fs::fdatasync(&file).unwrap();
        assert_eq!(sys::text(&mount.upper("f")), "low+synced+data");
        let read_only = sys::open(&mount.at("f"), OFlags::RDONLY, 0).unwrap();
        rustix::fs::fsync(&read_only).unwrap();
        let directory = sys::open(&mount.at("d"), OFlags::RDONLY | OFlags::DIRECTORY, 0).unwrap();
        rustix::fs::fsync(&directory).unwrap();
        rustix::fs::syncfs(&directory).unwrap();
    }

    fn unlinked_temporary_file(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        let file = sys::open(&mount.at("d/t"), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o600).unwrap();
        sys::unlink(&mount.at("d/t")).unwrap();
        let content = pattern(200_000);
        sys::pwrite(&file, &content, 0).unwrap();
        assert!(sys::read_file(&file).unwrap() == content);
        let stat = rustix::fs::fstat(&file).unwrap();
        assert_eq!((stat.st_nlink, stat.st_size), (0, 200_000));
        drop(file);
        mount.assert_upper("dir d");
    }

    /// `O_TMPFILE`, and giving it a name.
    fn o_tmpfile(driver) {
        let mount = Stack::new().lower("dir d mode=755").mount(driver);
        let file = sys::open(&mount.at("d"), OFlags::RDWR | OFlags::TMPFILE, 0o640).unwrap();
        sys::write_all(&file, b"nameless").unwrap();
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_nlink, 0);
        assert_eq!(sys::names(&mount.at("d")), Vec::<String>::new());
        let source = sys::fd_path(&file.into());
        drop(source);
        let file: std::os::fd::OwnedFd = sys::open(&mount.at("d"), OFlags::RDWR | OFlags::TMPFILE, 0o640).unwrap().into();
        rustix::io::write(&file, b"named").unwrap();
        let flags = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(rustix::fs::CWD, sys::fd_path(&file), rustix::fs::CWD, mount.at("d/name"), flags).unwrap();
        drop(file);
        mount.assert_tree("file d/name \"named\" mode=640");
        mount.assert_upper("file d/name \"named\" mode=640");
    }

    fn executing_files(driver) {
        let mount = Stack::new().lower("file low \"#!/bin/sh\\necho low\" mode=755").mount(driver);
        sys::create(&mount.at("new"), b"#!/bin/sh\necho new").unwrap();
        sys::chmod(&mount.at("new"), 0o755).unwrap();
        std::fs::copy("/bin/true", mount.at("program")).unwrap();
        let run = |name: &str| sys::run(&mount.at(name));
        assert_eq!(run("low").stdout, b"low\n");
        assert_eq!(run("new").stdout, b"new\n");
        assert!(run("program").status.success());
        // Written, run and written again, each right after the other.
        for round in 0..20 {
            let file = sys::open(&mount.at("again"), OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC, 0o755).unwrap();
            sys::write_all(&file, format!("#!/bin/sh\necho {round}").as_bytes()).unwrap();
            let busy = std::process::Command::new(mount.at("again")).output();
            assert_eq!(busy.unwrap_err().raw_os_error(), Some(libc::ETXTBSY), "{round}: still open for writing");
            drop(file);
            assert_eq!(run("again").stdout, format!("{round}\n").as_bytes());
        }
    }

    /// No kind of open changes a running program; after its end, all do.
    fn running_programs_are_left_alone(driver) {
        let mount = Stack::new().lower("").mount(driver);
        std::fs::copy("/bin/sleep", mount.at("program")).unwrap();
        leaves_alone(&mount.at("program"));
    }

    /// Many handles at once, more than a small descriptor limit would allow one each for inodes.
    fn many_open_files(driver) {
        let lower: String = (0..300).map(|n| format!("file f{n} \"{n}\"\n")).collect();
        let mount = Stack::new().lower(&lower).mount(driver);
        let files: Vec<_> = (0..300).map(|n| sys::open(&mount.at(&format!("f{n}")), OFlags::RDWR, 0).unwrap()).collect();
        for (number, file) in files.iter().enumerate() {
            sys::pwrite(file, b"!", 0).unwrap();
            assert_eq!(sys::read_file(file).unwrap().len(), number.to_string().len());
        }
    }

    fn direct_io(driver) {
        let mount = Stack::new().lower("file f fill=65536").mount(driver);
        let file = match sys::open(&mount.at("f"), OFlags::RDONLY | OFlags::DIRECT, 0) {
            Ok(file) => file,
            Err(error) => {
                assert_eq!(error, Errno::INVAL);
                return;
            }
        };
        let mut buffer = vec![0; 4096 * 3];
        let aligned = buffer.as_ptr().align_offset(4096);
        let count = rustix::io::pread(&file, &mut buffer[aligned..aligned + 8192], 4096).unwrap();
        assert_eq!(count, 8192);
        assert!(buffer[aligned..aligned + 8192] == pattern(65536)[4096..12288]);
    }

    fn concurrent_first_writes(driver) {
        let mount = Stack::new().lower("file f size=1000000").mount(driver);
        std::thread::scope(|scope| {
            for worker in 0..8_u8 {
                let path = mount.at("f");
                scope.spawn(move || {
                    for block in 0..16 {
                        let at = (u64::from(worker) + 8 * block) * 4096;
                        sys::write_at(&path, at, &[worker + 1; 4096]).unwrap();
                    }
                });
            }
        });
        let content = sys::read(&mount.at("f")).unwrap();
        for block in 0..128 {
            assert!(content[block * 4096..][..4096].iter().all(|&byte| byte as usize == block % 8 + 1), "block {block}");
        }
        assert_eq!(content.len(), 1_000_000);
    }
}

on_stratafs! {
    /// Copying up a preallocated file does not write all of its blocks. (The kernel's copy-up does, once the file has
    /// been read.)
    fn preallocated_files_are_not_written(driver) {
        const SIZE: u64 = 64 << 20;
        let mut layers = Stack::new().lower("file f \"start\"").build();
        let file = sys::open(&layers.lowers[0].join("f"), OFlags::WRONLY, 0).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SIZE).unwrap();
        layers.settle();
        let mount = layers.mount(driver);
        sys::chmod(&mount.at("f"), 0o600).unwrap();
        let copy = sys::open(&mount.upper("f"), OFlags::RDONLY, 0).unwrap();
        let data_end = rustix::fs::seek(&copy, SeekFrom::Hole(0)).unwrap();
        assert!(data_end < 1 << 20, "data up to {data_end}");
        let stat = sys::lstat(&mount.upper("f")).unwrap();
        assert_eq!(stat.st_size.cast_unsigned(), SIZE);
        assert!(stat.st_blocks.cast_unsigned() * 512 >= SIZE, "what was allocated ahead is");
        let content = sys::read(&mount.at("f")).unwrap();
        assert!(content.starts_with(b"start\0") && content.len() as u64 == SIZE);
    }

    /// A read brings its surroundings into memory; otherwise every read would wait for the disk.
    fn surroundings_of_random_reads_come_into_memory(driver) {
        const PAGES: u64 = 1024;
        let mount = Stack::new().lower("file f fill=4194304").mount(driver);
        let below = std::fs::File::open(mount.lower(0, "f")).unwrap();
        below.sync_all().unwrap();
        rustix::fs::fadvise(&below, 0, None, Advice::DontNeed).unwrap();
        let expected = pattern(4_194_304);
        let reader = sys::open(&mount.at("f"), OFlags::RDONLY, 0).unwrap();
        // Every other page, in an order in which none follows another.
        for page in (0..PAGES / 2).map(|n| n * 2 * 181 % PAGES) {
            let mut bytes = [0; 4096];
            reader.read_exact_at(&mut bytes, page * 4096).unwrap();
            assert!(bytes == expected[page as usize * 4096..][..4096], "page {page}");
        }
        // The disk is still active after the last answer.
        let deadline = Instant::now() + Duration::from_secs(20);
        let seen = Mapping::new(&below, 4_194_304, false);
        while seen.resident_pages() < 1000 {
            assert!(Instant::now() < deadline, "{} of {PAGES} pages", seen.resident_pages());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// overlayfs empties it when it is opened with `O_RDONLY | O_TRUNC`.
    fn running_lower_programs_are_left_alone(driver) {
        let mut layers = Stack::new().lower("").build();
        std::fs::copy("/bin/sleep", layers.lowers[0].join("program")).unwrap();
        layers.settle();
        let mount = layers.mount(driver);
        leaves_alone(&mount.at("program"));
    }

    /// The kernel's FUSE sends these to no file system (`fuse_file_fallocate`).
    fn fallocate_modes_that_fuse_lacks(driver) {
        let mount = Stack::new().lower("file f fill=65536").mount(driver);
        let file = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE, FallocateFlags::UNSHARE_RANGE] {
            assert_eq!(rustix::fs::fallocate(&file, mode, 4096, 4096), Err(Errno::OPNOTSUPP), "{mode:?}");
        }
        assert!(sys::read_file(&file).unwrap() == pattern(65536));
    }

    /// Kernel overlayfs fails these two: by POSIX, an early read-only descriptor must see later writes.
    fn early_reader_sees_later_writes(driver) {
        let mount = Stack::new().lower("file f \"before\"\nfile g \"before\"").mount(driver);
        for (name, primed) in [("f", true), ("g", false)] {
            let reader = sys::open(&mount.at(name), OFlags::RDONLY, 0).unwrap();
            if primed {
                assert_eq!(sys::read_file(&reader).unwrap(), b"before");
            }
            sys::append(&mount.at(name), b"+after").unwrap();
            assert_eq!(sys::read_file(&reader).unwrap(), b"before+after", "{name}");
            sys::overwrite(&mount.at(name), b"new").unwrap();
            assert_eq!(sys::read_file(&reader).unwrap(), b"new", "{name}");
            assert_eq!(rustix::fs::fstat(&reader).unwrap().st_size, 3);
        }
    }

    fn early_mapping_sees_later_writes(driver) {
        let mount = Stack::new().lower("file f fill=8192").mount(driver);
        let reader = sys::open(&mount.at("f"), OFlags::RDONLY, 0).unwrap();
        let map = Mapping::new(&reader, 8192, false);
        assert!(map.bytes(0..8192) == pattern(8192));
        sys::write_at(&mount.at("f"), 100, b"written").unwrap();
        assert_eq!(map.bytes(100..107), b"written");
        assert!(map.bytes(4096..8192) == pattern(8192)[4096..]);
    }

    fn reader_of_a_file_that_is_copied_up_and_unlinked(driver) {
        let mount = Stack::new().lower("file f \"before\"").mount(driver);
        let reader = sys::open(&mount.at("f"), OFlags::RDONLY, 0).unwrap();
        let writer = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        sys::pwrite(&writer, b"BE", 0).unwrap();
        sys::unlink(&mount.at("f")).unwrap();
        sys::pwrite(&writer, b"FO", 2).unwrap();
        assert_eq!(sys::read_file(&reader).unwrap(), b"BEFOre");
        assert_eq!(rustix::fs::fstat(&reader).unwrap().st_nlink, 0);
    }

    /// More files are open than the driver may have descriptors: those not in use are closed and opened again.
    fn more_files_are_open_than_descriptors(driver) {
        const FILES: usize = 500;
        let lower: String = (0..FILES).map(|number| format!("file low{number} \"{number}\"\n")).collect();
        for option in ["passthrough=off", "passthrough=programs"] {
            let mount = Stack::new().lower(&lower).descriptors(128).stratafs_option(option).mount(driver);
            let open = |name: String, flags| sys::open(&mount.at(&name), flags, 0o600).unwrap_or_else(|errno| panic!("{name}: {errno}"));
            let readers: Vec<_> = (0..FILES).map(|number| open(format!("low{number}"), OFlags::RDONLY)).collect();
            let create = OFlags::RDWR | OFlags::CREATE;
            let writers: Vec<_> = (0..FILES).map(|number| open(format!("new{number}"), create)).collect();
            let again: Vec<_> = (0..FILES).map(|number| open(format!("new{number}"), OFlags::WRONLY | OFlags::APPEND)).collect();
            for (number, (writer, more)) in writers.iter().zip(&again).enumerate() {
                sys::pwrite(writer, format!("{number}:").as_bytes(), 0).unwrap();
                // Nothing can be opened by its mode any more.
                rustix::fs::fchmod(writer, rustix::fs::Mode::empty()).unwrap();
                rustix::io::write(more, b"more").unwrap();
                rustix::fs::fsync(more).unwrap();
            }
            // A file without a name takes a descriptor.
            for number in 0..20 {
                sys::unlink(&mount.at(&format!("new{number}"))).unwrap();
            }
            for number in (0..FILES).rev() {
                assert_eq!(sys::read_file(&writers[number]).unwrap(), format!("{number}:more").as_bytes(), "{option}");
                assert_eq!(sys::read_file(&readers[number]).unwrap(), number.to_string().as_bytes(), "{option}");
                assert_eq!(rustix::fs::fstat(&writers[number]).unwrap().st_nlink, u64::from(number >= 20), "{option}");
            }
        }
    }
}
