//! Programs that are known to expose weaknesses of a file system.

use std::process::Command;

use rustix::fs::OFlags;

use crate::common::{Stack, sys};
use crate::on_both;

/// Runs a shell script in `directory`; false when its first program is missing.
fn shell(directory: &std::path::Path, needs: &str, script: &str) -> bool {
    if Command::new("sh").args(["-c", &format!("command -v {needs} >/dev/null")]).status().is_ok_and(|s| !s.success()) {
        crate::common::skip(needs, "not installed");
        return false;
    }
    let output = Command::new("sh").args(["-euc", script]).current_dir(directory).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}\n{}\n{}", text(&output.stdout), text(&output.stderr));
    true
}

on_both! {
    /// WAL from several processes at once: locks, shared mappings and truncation.
    fn sqlite_wal(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        shell(
            &mount.at("d"),
            "sqlite3",
            "sqlite3 db 'pragma journal_mode=wal; create table t(w, n);' >/dev/null
             for worker in 1 2 3 4; do
                 (for n in $(seq 25); do echo \".timeout 20000
                     insert into t values($worker, $n);\"; done | sqlite3 db) &
             done; wait
             test \"$(sqlite3 db 'select count(*), count(distinct w*1000+n) from t')\" = '100|100'
             test \"$(sqlite3 db 'pragma integrity_check')\" = ok",
        );
    }

    /// A database that starts in a lower layer.
    fn sqlite_over_copy_up(driver) {
        let layers = Stack::new().lower("dir d").build();
        if !shell(&layers.lowers[0].join("d"), "sqlite3", "sqlite3 db 'create table t(n); insert into t values(1);'") {
            return;
        }
        let mut layers = layers;
        layers.settle();
        let mount = layers.mount(driver);
        shell(
            &mount.at("d"),
            "sqlite3",
            "for n in $(seq 10); do (echo '.timeout 20000
                insert into t values(2);' | sqlite3 db) & done; wait
             test \"$(sqlite3 db 'select count(*) from t')\" = 11
             test \"$(sqlite3 db 'pragma integrity_check')\" = ok",
        );
    }

    fn git_repository(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        shell(
            &mount.at("d"),
            "git",
            "export HOME=$PWD GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
             git init -q r; cd r
             for n in $(seq 100); do mkdir -p dir$((n % 7)); echo $n >dir$((n % 7))/f$n; done
             git add .; git commit -qm one; git mv dir1 moved; git rm -qr dir2; git commit -qm two
             git status --porcelain | (! grep .); git fsck --strict 2>/dev/null
             cd ..; git clone -q r c; cd c; git status --porcelain | (! grep .); git checkout -q HEAD~1; test -d dir2",
        );
    }

    fn tar_keeps_everything(driver) {
        let mount = Stack::new()
            .lower("file d/a \"a\" mode=640 uid=3\nhard d/b d/a\nlink d/l -> a\nfifo d/p\nfile d/s/x \"x\" mtime=1000 user.k=v")
            .mount(driver);
        shell(
            mount.root(),
            "tar",
            "tar --xattrs -cf t.tar d; mkdir out; tar --xattrs -C out -xpf t.tar; tar -C out -df t.tar
             test $(stat -c %h out/d/a) = 2; rm -r out d t.tar; test -z \"$(ls -A)\"",
        );
        mount.assert_upper("whiteout d");
    }

    fn cp_rsync_find(driver) {
        let mount = Stack::new().lower("file d/a \"a\"\nfile d/s/b \"b\"\nlink d/l -> a").lower("file d/s/c \"c\"").mount(driver);
        shell(mount.root(), "find", "cp -a d e; diff -r d e; test $(find . -type f | wc -l) = 6; mv e f; rm -rf d; test $(find f | wc -l) = 6");
    }

    /// inotify on the mount reports changes made through it.
    fn inotify(driver) {
        use rustix::fs::inotify;
        let mount = Stack::new().lower("file d/low \"x\"").mount(driver);
        let watcher = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        let wanted = inotify::WatchFlags::CREATE | inotify::WatchFlags::MODIFY | inotify::WatchFlags::DELETE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&watcher, mount.at("d"), wanted).unwrap();
        sys::create(&mount.at("d/new"), b"").unwrap();
        sys::append(&mount.at("d/low"), b"y").unwrap();
        sys::rename(&mount.at("d/new"), &mount.at("d/renamed")).unwrap();
        sys::unlink(&mount.at("d/low")).unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&watcher, &mut buffer);
        let mut events = vec![];
        while let Ok(event) = reader.next() {
            events.push((event.file_name().unwrap().to_str().unwrap().to_owned(), event.events()));
        }
        let has = |name: &str, flag| events.iter().any(|(other, flags)| other == name && flags.contains(flag));
        assert!(has("new", inotify::ReadFlags::CREATE), "{events:?}");
        assert!(has("low", inotify::ReadFlags::MODIFY), "{events:?}");
        assert!(has("renamed", inotify::ReadFlags::MOVED_TO), "{events:?}");
        assert!(has("low", inotify::ReadFlags::DELETE), "{events:?}");
    }

    /// A watch on a file of a lower layer outlives its copy-up, a rename and the file.
    fn inotify_over_copy_up(driver) {
        use rustix::fs::inotify;
        let mount = Stack::new().lower("file f \"x\"").mount(driver);
        let watcher = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        let wanted = inotify::WatchFlags::MODIFY | inotify::WatchFlags::ATTRIB | inotify::WatchFlags::MOVE_SELF | inotify::WatchFlags::DELETE_SELF;
        inotify::add_watch(&watcher, mount.at("f"), wanted).unwrap();
        sys::append(&mount.at("f"), b"y").unwrap();
        sys::chmod(&mount.at("f"), 0o600).unwrap();
        sys::rename(&mount.at("f"), &mount.at("g")).unwrap();
        sys::unlink(&mount.at("g")).unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&watcher, &mut buffer);
        let mut seen = inotify::ReadFlags::empty();
        while let Ok(event) = reader.next() {
            seen |= event.events();
        }
        for flag in [inotify::ReadFlags::MODIFY, inotify::ReadFlags::ATTRIB, inotify::ReadFlags::MOVE_SELF, inotify::ReadFlags::DELETE_SELF] {
            assert!(seen.contains(flag), "{flag:?} is not in {seen:?}");
        }
    }

    /// Sixteen workers create, write, rename, link, copy up and remove in the same directories; at the end, the
    /// tree holds exactly what each left.
    fn stress(driver) {
        let shared: String = (0..64).map(|n| format!("file shared/low{n} \"lower {n}\"\n")).collect();
        let own: String = (0..16).map(|n| format!("file own{n}/keep \"k\"\n")).collect();
        let lower = shared + &own;
        let mount = Stack::new().lower(&lower).mount(driver);
        std::thread::scope(|scope| {
            for worker in 0..16 {
                let mount = &mount;
                scope.spawn(move || {
                    let own = |name: &str| mount.at(&format!("own{worker}/{name}"));
                    let shared = |name: String| mount.at(&format!("shared/{name}"));
                    for round in 0..25 {
                        let name = format!("w{worker}-{round}");
                        sys::create(&own("t"), name.as_bytes()).unwrap();
                        sys::rename(&own("t"), &shared(name.clone())).unwrap();
                        sys::append(&shared(name.clone()), b"+").unwrap();
                        if round % 3 != 0 {
                            sys::unlink(&shared(name)).unwrap();
                        }
                        // All copy up the same lower files.
                        let low = shared(format!("low{}", (worker + round) % 64));
                        let file = sys::open(&low, OFlags::WRONLY | OFlags::APPEND, 0).unwrap();
                        sys::write_all(&file, b".").unwrap();
                        sys::readdir(&mount.at("shared")).unwrap();
                        sys::mkdir(&own("d"), 0o755).unwrap();
                        sys::create(&own("d/x"), b"x").unwrap();
                        sys::rename(&own("d"), &own("e")).unwrap();
                        std::fs::remove_dir_all(own("e")).unwrap();
                    }
                });
            }
        });
        let check = |mount: &crate::common::Mount| {
            assert_eq!(sys::names(&mount.at("shared")).len(), 64 + 16 * 9);
            let mut dots = 0;
            for number in 0..64 {
                let text = sys::text(&mount.at(&format!("shared/low{number}")));
                let head = format!("lower {number}");
                assert!(text.starts_with(&head), "{text}");
                dots += text.len() - head.len();
            }
            assert_eq!(dots, 16 * 25);
            for worker in 0..16 {
                assert_eq!(sys::names(&mount.at(&format!("own{worker}"))), ["keep"]);
                assert_eq!(sys::text(&mount.at(&format!("shared/w{worker}-0"))), format!("w{worker}-0+"));
            }
        };
        check(&mount);
        let mount = mount.remount(driver);
        check(&mount);
    }
}
