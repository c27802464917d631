//! Checkpoints of a mount that is in use.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use stratafs::control::Request;

use crate::common::sys::Mapping;
use crate::common::{Driver, Mount, Stack, skip, sys, tree};
use crate::on_stratafs;

/// The message of `strata`, which must be one line.
fn refused(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_strata")).args(args).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{args:?}: {told}");
    told
}

/// Transfers between accounts for ever, with a history of the last ones. The sum of all accounts is 0.
const TRANSFER: &str = "begin;
    update account set sum = sum - 1 where id = (select abs(random()) % 100);
    update account set sum = sum + 1 where id = (select abs(random()) % 100);
    insert into history(text) values(randomblob(2000));
    delete from history where id < (select max(id) from history) - 50;
    commit;\n";

/// A database that is written to without a pause until this is dropped.
struct Database(Child);

impl Database {
    /// Makes it in `directory`; `None` if there is no sqlite3.
    fn start(directory: &Path, journal: &str) -> Option<Self> {
        let setup = format!(
            ".timeout 20000\npragma journal_mode={journal}; pragma synchronous=off; pragma wal_autocheckpoint=20;\
             create table account(id integer primary key, sum); create table history(id integer primary key, text);\
             with recursive n(i) as (select 0 union all select i + 1 from n where i < 99) insert into account select i, 0 from n;\n"
        );
        let mut command = Command::new("sqlite3");
        command.arg("db").current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::null());
        let Ok(mut child) = command.spawn() else {
            skip("sqlite3", "not installed");
            return None;
        };
        let mut input = child.stdin.take().unwrap();
        std::thread::spawn(move || {
            // Until it is killed.
            let begun = input.write_all(setup.as_bytes());
            while begun.is_ok() && input.write_all(TRANSFER.as_bytes()).is_ok() {}
        });
        let (mut database, deadline) = (Self(child), Instant::now() + Duration::from_secs(60));
        while sys::lstat(&directory.join("db")).map_or(true, |stat| stat.st_size < 100_000) {
            assert!(Instant::now() < deadline, "the database does not grow");
            assert_eq!(database.0.try_wait().unwrap(), None, "sqlite3 has ended");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(database)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The result of sqlite3's check of the database in `directory`, after its recovery.
fn recovered(directory: &Path) -> String {
    let script = "pragma integrity_check; select sum(sum), count(*) from account; select count(*) > 10 from history;";
    let output = Command::new("sqlite3").args(["db", script]).current_dir(directory).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Makes a checkpoint, makes many changes, and rolls back. Then the mount must show the checkpoint; open files of the
/// abandoned state behave like deleted ones, and unchanged ones are unaffected. The lower layer is `LOWER`.
pub fn roll_back(mut mount: Mount) -> Mount {
    let create = OFlags::RDWR | OFlags::CREATE;
    sys::mkdir(&mount.at("made"), 0o755).unwrap();
    sys::create(&mount.at("made/f"), b"before").unwrap();
    sys::create(&mount.at("stays"), b"stays").unwrap();
    sys::append(&mount.at("d/low"), b"+before").unwrap();
    sys::unlink(&mount.at("d/gone")).unwrap();
    // With `writeback`, the kernel keeps times itself, and forgets those of files that the rollback changes.
    let has_times = !mount.layers().extra.iter().any(|option| option.contains("writeback"));
    let before = tree::snapshot(mount.root(), has_times);
    mount.checkpoint();
    let unchanged = ["stays", "d/kept"].map(|name| sys::open(&mount.at(name), OFlags::RDONLY, 0).unwrap());
    let new = sys::open(&mount.at("made/new"), create, 0o644).unwrap();
    sys::pwrite(&new, b"new", 0).unwrap();
    let changed = sys::open(&mount.at("made/f"), OFlags::RDWR, 0).unwrap();
    sys::pwrite(&changed, b"AFTER", 0).unwrap();
    sys::rename(&mount.at("d"), &mount.at("moved")).unwrap();
    sys::create(&mount.at("moved/gone"), b"again").unwrap();
    sys::create(&mount.at("d"), b"a file").unwrap();
    sys::unlink(&mount.at("moved/low")).unwrap();
    assert_ne!(tree::snapshot(mount.root(), has_times), before);
    mount.roll_back();
    let shown = tree::snapshot(mount.root(), has_times);
    assert_eq!(shown, before, "{}", tree::diff(&shown, &before));
    assert_eq!(unchanged.map(|file| sys::read_file(&file).unwrap()), [&b"stays"[..], b"kept"]);
    for (file, content) in [(&new, &b"new"[..]), (&changed, b"AFTERe")] {
        assert_eq!(rustix::fs::fstat(file).unwrap().st_nlink, 0);
        assert_eq!(sys::read_file(file).unwrap(), content);
        sys::pwrite(file, b"lost", 0).unwrap();
        rustix::fs::fsync(file).unwrap();
    }
    assert_eq!(sys::text(&mount.at("made/f")), "before");
    assert!(!sys::exists(&mount.at("made/new")));
    sys::create(&mount.at("made/later"), b"later").unwrap();
    assert_eq!(sys::names(&mount.upper("made")), ["later"]);
    drop((new, changed));
    mount
}

/// The lower layer for [`roll_back`].
pub const LOWER: &str = "file d/low \"low\"\nfile d/gone \"gone\"\nfile d/kept \"kept\"";

on_stratafs! {
    fn a_mount_is_rolled_back_while_it_is_used(driver) {
        for option in ["volatile", "passthrough=off", "passthrough=off,writeback", "writeback", "threads=1", "timeout=0"] {
            roll_back(Stack::new().lower(LOWER).stratafs_option(option).mount(driver)).remount(driver);
        }
    }

    /// The statistics tell how long requests waited for checkpoints.
    fn pauses_are_told(driver) {
        let mut mount = Stack::new().lower("file f \"x\"").mount(driver);
        let ask = |point: &Path, args: &[&str]| {
            let output = Command::new(env!("CARGO_BIN_EXE_strata")).arg("mounts").args(args).arg(point).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let told = |point: &Path| {
            let document: serde_json::Value = serde_json::from_str(&ask(point, &["--json"])).unwrap();
            ["count", "last_us", "longest_us"].map(|field| document[0]["pauses"][field].as_u64().unwrap())
        };
        assert_eq!(told(mount.root()), [0, 0, 0]);
        assert!(!ask(mount.root(), &[]).contains("pauses"));
        let (mut last, mut longest) = (0, 0);
        for count in 1..=3 {
            sys::append(&mount.at("f"), b"more").unwrap();
            last = mount.try_checkpoint().unwrap().paused_us.unwrap();
            longest = longest.max(last);
            assert_eq!(told(mount.root()), [count, last, longest]);
        }
        let line = format!("pauses       3, the last {last} µs, the longest {longest} µs");
        assert!(ask(mount.root(), &[]).lines().any(|told| told == line), "{line}");
    }

    /// Pages that were written through a mapping, or through the write-back cache, are in the checkpoint. `WriteBack`
    /// brings them to the upper.
    fn what_the_kernel_keeps_is_written_back(driver) {
        const LENGTH: u64 = 1 << 20;
        for option in ["passthrough=off", "passthrough=off,writeback"] {
            let mut mount = Stack::new().lower("dir d").stratafs_option(option).mount(driver);
            let file = sys::open(&mount.at("d/f"), OFlags::RDWR | OFlags::CREATE, 0o644).unwrap();
            rustix::fs::ftruncate(&file, LENGTH).unwrap();
            let mapping = Mapping::new(&file, LENGTH as usize, true);
            for round in 1..=20_u8 {
                let pages = (0..LENGTH as usize).step_by(4096);
                pages.clone().for_each(|at| mapping.store(at, &[round]));
                let real = if round % 2 == 0 {
                    mount.checkpoint().join("d/f")
                } else {
                    mount.ask(&Request::WriteBack).unwrap();
                    mount.upper("d/f")
                };
                let content = sys::read(&real).unwrap();
                assert!(pages.clone().all(|at| content[at] == round), "{option}, round {round}");
            }
        }
    }

    /// Layers do not take the descriptors that the mount needs for files.
    fn descriptors_are_left_for_files(driver) {
        let mut mount = Stack::new().lower("dir d").descriptors(160).mount(driver);
        let mut count = 0;
        let told = loop {
            sys::create(&mount.at(&format!("d/{count}")), b"x").unwrap();
            match mount.try_checkpoint() {
                Ok(_) => count += 1,
                Err(error) => break error.to_string(),
            }
        };
        assert_eq!(told, "a mount of 40 layers that may have 160 files open has no further checkpoints");
        let open: Vec<_> = (0..=count).map(|at| std::fs::File::open(mount.at(&format!("d/{at}"))).unwrap()).collect();
        assert_eq!((open.len(), sys::names(&mount.at("d")).len()), (40, 40));
        sys::create(&mount.at("d/last"), b"x").unwrap();
    }

    fn what_has_no_checkpoints_is_told(driver) {
        for (options, told) in [
            (&["index=on"][..], "a mount with index=on has no checkpoints"),
            (&["metacopy=on"], "a mount with metacopy=on has no checkpoints"),
            (&["index=on", "metacopy=on"], "a mount with index=on has no checkpoints"),
        ] {
            let stack = options.iter().fold(Stack::new().lower("file f \"x\""), |stack, option| stack.option(option));
            let mount = stack.mount(driver);
            sys::append(&mount.at("f"), b"y").unwrap();
            let place = mount.layers().directory.path().join("layer");
            let args = ["checkpoint", "create", "--mount", mount.root().to_str().unwrap(), place.to_str().unwrap()];
            let line = refused(&args);
            assert!(line.trim_end().ends_with(told), "{line}");
            assert!(!place.exists());
            assert_eq!(sys::text(&mount.at("f")), "xy");
        }
        let mount = Stack::new().lower("file f \"x\"").read_only().mount(driver);
        let line = refused(&["checkpoint", "create", "--mount", mount.root().to_str().unwrap(), "/var/tmp/none/layer"]);
        assert!(line.contains("is read-only"), "{line}");
    }

    /// Every checkpoint holds a consistent database, although its writer is not stopped.
    fn a_database_survives_in_each_checkpoint(driver) {
        for journal in ["wal", "delete", "truncate", "persist"] {
            let mut mount = Stack::new().lower("dir d").stratafs_option("passthrough=off").mount(driver);
            let Some(database) = Database::start(&mount.at("d"), journal) else { return };
            let mut checkpoints = Vec::new();
            for _ in 0..10 {
                std::thread::sleep(Duration::from_millis(20));
                mount.checkpoint();
                let mut layers = mount.layers().fork();
                (layers.upper, layers.work, layers.originals) = (None, None, Vec::new());
                checkpoints.push(layers);
            }
            drop(database);
            for (number, layers) in checkpoints.into_iter().enumerate() {
                let copy = layers.directory.path().join("copy");
                sys::mkdir(&copy, 0o755).unwrap();
                let checkpoint = layers.mount(Driver::Overlayfs);
                for name in ["db", "db-wal", "db-journal"] {
                    match std::fs::copy(checkpoint.at("d").join(name), copy.join(name)) {
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound && name != "db" => {}
                        copied => drop(copied.unwrap()),
                    }
                }
                assert_eq!(recovered(&copy), "ok\n0|100\n1\n", "{journal}: checkpoint {number}");
            }
            assert_eq!(recovered(&mount.at("d")), "ok\n0|100\n1\n", "{journal}: the mount");
        }
    }
}
