//! Attacks through a mount that must fail: see docs/security.md.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::common::sys::{self, RenameFlags};
use crate::common::{Driver, Errno, Mount, Stack};
use crate::{on_both, on_stratafs};

const STATS: &str = "user.stratafs.stats";

/// Exchanges `a` and `b` until told to stop.
fn keep_swapping(a: &Path, b: &Path, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        sys::rename_with(a, b, RenameFlags::EXCHANGE).unwrap();
    }
}

/// Runs `body` while the layer's directory `d` is a symbolic link to `secret`, outside of it, half of the time.
fn while_swapped(layer: &Path, secret: &Path, body: impl FnOnce()) {
    let mtime = sys::mtime(layer);
    sys::symlink(secret.to_str().unwrap(), &layer.join("swapped")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| keep_swapping(&layer.join("d"), &layer.join("swapped"), &stop));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        stop.store(true, Ordering::Relaxed);
        swapper.join().unwrap();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    // As it was, for the check that nothing has changed.
    if sys::lstat(&layer.join("d")).unwrap().st_mode & libc::S_IFMT == libc::S_IFLNK {
        sys::rename_with(&layer.join("d"), &layer.join("swapped"), RenameFlags::EXCHANGE).unwrap();
    }
    sys::unlink(&layer.join("swapped")).unwrap();
    sys::utimens(layer, mtime, mtime).unwrap();
}

/// Opens the directory `d` of the mount, if it is a directory at the moment. The test itself follows no link, so only the
/// driver could reach the secret.
fn directory(mount: &Mount) -> Option<OwnedFd> {
    let root = sys::open(mount.root(), OFlags::PATH | OFlags::DIRECTORY, 0).unwrap();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened =
        rustix::fs::openat2(&root, "d", flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV);
    opened.ok()
}

/// Names that appear in a directory while something is done.
fn watch_names(directory: &Path, act: impl FnOnce()) -> BTreeSet<String> {
    use rustix::fs::inotify;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
    let appears = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, directory, appears).unwrap();
    act();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(watch, &mut buffer);
    let mut names = BTreeSet::new();
    loop {
        match events.next() {
            Ok(event) => names.extend(event.file_name().map(|name| name.to_str().unwrap().to_owned())),
            Err(Errno::AGAIN) => return names,
            Err(error) => panic!("inotify: {error}"),
        }
    }
}

/// A directory outside of all layers, with files of the names that are looked for.
fn secret(mount: &Mount) -> std::path::PathBuf {
    let secret = mount.layers().directory.path().join("secret");
    sys::mkdir(&secret, 0o755).unwrap();
    sys::create(&secret.join("f"), b"secret\n").unwrap();
    secret
}

fn status_field(mount: &Mount, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", mount.daemon().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().to_owned()
}

on_stratafs! {
    /// The driver never reads through a link that takes a directory's place.
    fn lower_directory_swapped_for_a_link(driver) {
        let mount = Stack::new().lower("file d/f \"public\\n\"\nfile d/g \"g\"").stratafs_option("timeout=0").mount(driver);
        let secret = secret(&mount);
        let mut worked = 0;
        while_swapped(&mount.lower(0, ""), &secret, || {
            for _ in 0..2000 {
                let Some(d) = directory(&mount) else { continue };
                let d = sys::fd_path(&d);
                if let Ok(content) = sys::read(&d.join("f")) {
                    assert_eq!(content, b"public\n");
                    worked += 1;
                }
                if let Ok(found) = std::fs::read_dir(&d) {
                    let names: Vec<_> = found.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
                    assert!(names.is_empty() || names.iter().any(|name| name == "g"), "{names:?}");
                }
            }
        });
        assert!(worked > 0, "the directory was never there");
        assert_eq!(sys::names(&secret), ["f"]);
    }

    /// The driver never writes through such a link.
    fn upper_directory_swapped_for_a_link(driver) {
        let mount = Stack::new().lower("dir d").upper("file d/f \"public\\n\"").stratafs_option("timeout=0").mount(driver);
        let secret = secret(&mount);
        let mut worked = 0;
        while_swapped(&mount.upper(""), &secret, || {
            for at in 0..500 {
                let Some(d) = directory(&mount) else { continue };
                let d = sys::fd_path(&d);
                let name = d.join(format!("new{at}"));
                // Success depends on what is there at the moment.
                let tried = [
                    sys::create(&name, b"x"),
                    sys::append(&d.join("f"), b"more\n"),
                    sys::chmod(&d.join("f"), 0o600),
                    sys::unlink(&name),
                ];
                worked += tried.into_iter().filter(Result::is_ok).count();
            }
        });
        assert!(worked > 0, "nothing was tried at all");
        assert_eq!(sys::names(&secret), ["f"]);
        assert_eq!(sys::text(&secret.join("f")), "secret\n");
        assert_eq!(sys::mode(&secret.join("f")), 0o644);
    }

    /// Marks, redirects and data paths that point out of the layer lead nowhere.
    fn redirects_cannot_leave_the_layer(driver) {
        let upper = "dir a trusted.overlay.redirect=../secret\ndir b trusted.overlay.redirect=/../secret\n\
            dir c trusted.overlay.redirect=/link";
        let mount = Stack::new().lower("file d/f \"x\"\nlink link -> ../secret").upper(upper).mount(driver);
        secret(&mount);
        for name in ["a", "b", "c"] {
            assert!(sys::readdir(&mount.at(name)).is_ok_and(|list| list.is_empty()) || sys::lstat(&mount.at(name)).is_err(), "{name}");
            assert!(sys::lstat(&mount.at(name).join("f")).is_err(), "{name}");
        }
    }

    /// Other users can neither put a file in the driver's way under a name that it is about to use, nor read staged files.
    fn temporary_names_cannot_be_foreseen(driver) {
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let layers = Stack::new().lower("dir d\nfile d/f \"x\"\nfile gone\nlink l -> x\nfifo p").build();
            let stage = layers.work.as_ref().unwrap().join("work");
            sys::mkdir(&stage, 0o777).unwrap();
            sys::chmod(&stage, 0o777).unwrap();
            let mount = layers.mount(driver);
            assert_eq!(sys::mode(&stage), 0o700);
            let names = watch_names(&stage, || {
                for change in 0..10 {
                    sys::mkdir(&mount.at("new"), 0o755).unwrap();
                    sys::create(&mount.at("new/f"), b"").unwrap();
                    sys::unlink(&mount.at("new/f")).unwrap();
                    sys::rmdir(&mount.at("new")).unwrap();
                    sys::symlink("x", &mount.at(&format!("link{change}"))).unwrap();
                }
                sys::rename(&mount.at("d"), &mount.at("e")).unwrap();
                sys::mkdir(&mount.at("d"), 0o755).unwrap();
                sys::unlink(&mount.at("gone")).unwrap();
                sys::mkdir(&mount.at("gone"), 0o755).unwrap();
                sys::chown(&mount.at("l"), Some(5), None).unwrap();
                sys::chown(&mount.at("p"), Some(5), None).unwrap();
            });
            assert!(names.len() > 3, "few names were used: {names:?}");
            for name in names {
                let digits = name.strip_prefix('#').unwrap_or_else(|| panic!("{name}"));
                assert!(digits.len() == 16 && u64::from_str_radix(digits, 16).is_ok(), "{name}");
                assert!(seen.insert(name.clone()), "{name} was used before");
            }
        }
        // Of random numbers of 64 bits hardly one in a billion is as small as a counter or a process id.
        let small = |name: &&String| u64::from_str_radix(&name[1..], 16).is_ok_and(|number| number < 1 << 32);
        assert_eq!(seen.iter().filter(small).count(), 0, "{seen:?}");
    }

    /// The attributes that keep owners cannot be set through the mount.
    fn kept_owners_are_private(driver) {
        for (option, key) in [
            ("xattr_permissions=1", "security.fuseoverlayfs.override_stat"),
            ("xattr_permissions=2", "user.containers.override_stat"),
        ] {
            let mount = Stack::new().lower("file f \"x\"").stratafs_option(option).mount(driver);
            sys::chmod(&mount.at("f"), 0o600).unwrap();
            assert_eq!(sys::setxattr(&mount.at("f"), key, b"0:0:4755"), Err(Errno::PERM), "{key}");
            assert_eq!(sys::getxattr(&mount.at("f"), key), Err(Errno::NODATA), "{key}");
            assert!(!sys::listxattr(&mount.at("f")).unwrap().contains(&key.to_owned()));
            assert_eq!(sys::mode(&mount.at("f")), 0o600);
        }
    }

    /// The process keeps what serving needs.
    fn privileges_are_given_up(driver) {
        const NEEDED: [u32; 11] = [0, 1, 2, 3, 4, 21, 23, 27, 31, 32, 33];
        let mount = Stack::new().lower("dir d").mount(driver);
        let needed = NEEDED.iter().fold(0, |set, bit| set | 1_u64 << bit);
        for field in ["CapEff:", "CapPrm:", "CapBnd:", "CapInh:", "CapAmb:"] {
            let held = u64::from_str_radix(&status_field(&mount, field), 16).unwrap();
            assert_eq!(held & !needed, 0, "{field} {held:x}");
        }
        assert_eq!(status_field(&mount, "NoNewPrivs:"), "1");
        let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", mount.daemon().unwrap())).unwrap();
        let score: i32 = score.trim().parse().unwrap();
        let ours: i32 = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
        // Where even root may not lower it, it stays what it was.
        assert!(score <= -500 || score == ours, "{score}");
    }

    fn statistics_of_the_mount(driver) {
        let mount = Stack::new().lower("file f \"x\"").mount(driver);
        sys::append(&mount.at("f"), b"y").unwrap();
        assert_eq!(sys::rmdir(&mount.at("f")), Err(Errno::NOTDIR));
        assert_eq!(sys::setxattr(&mount.at("f"), "trusted.overlay.overlay.x", b"").err(), None);
        let stats: serde_json::Value = serde_json::from_slice(&sys::getxattr(mount.root(), STATS).unwrap()).unwrap();
        assert_eq!(stats["pid"], mount.daemon().unwrap());
        assert_eq!(stats["state"], "writable");
        assert!(stats["requests"]["LOOKUP"].as_u64() >= Some(1), "{stats}");
        assert!(stats["memory_kib"].as_u64() > Some(100), "{stats}");
        let text = stats.to_string();
        assert!(!text.contains("stratafs-test-"), "tells where the layers are: {text}");
        // A file may have an attribute of that name; the root's cannot be set, and is not shown to other users.
        assert_eq!(sys::setxattr(mount.root(), STATS, b"x"), Err(Errno::PERM));
        assert_eq!(sys::removexattr(mount.root(), STATS), Err(Errno::PERM));
        assert_eq!(sys::listxattr(mount.root()).unwrap(), Vec::<String>::new());
        assert_eq!(sys::getxattr(&mount.at("f"), STATS), Err(Errno::NODATA));
        assert_eq!(sys::as_user(1000, 1000, || sys::getxattr(mount.root(), STATS)), Err(Errno::NODATA));
    }

    /// `strata mounts` shows the statistics and the layers of a mount, and tells when its process has ended.
    fn strata_shows_the_statistics(driver) {
        let mount = Stack::new().lower("file f \"x\"").mount(driver);
        let ask = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
            let output = command.args(["mounts", "--json"]).arg(mount.root()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()[0].take()
        };
        let shown = ask();
        assert_eq!(shown["mountpoint"], mount.root().to_str().unwrap());
        assert_eq!(shown["state"], "writable");
        assert_eq!(shown["pid"], mount.daemon().unwrap());
        assert_eq!(shown["lowers"][0], mount.lower(0, "").to_str().unwrap().trim_end_matches('/'));
        sys::kill(mount.daemon().unwrap());
        let patience = Instant::now() + Duration::from_secs(60);
        while ask()["state"] != "dead" {
            assert!(Instant::now() < patience, "{}", ask());
        }
        drop(mount.crash());
    }
}

on_both! {
    /// The kernel's magic links lead each process to its own files; the driver does not follow them.
    fn magic_links_are_the_readers(driver) {
        let links = "link exe -> /proc/self/exe\nlink root -> /proc/self/root\nlink cwd -> /proc/self/cwd\n\
            link fd -> /proc/self/fd\ndir d\nlink d/zero -> ../fd/0\n";
        let upper = "dir to_cwd trusted.overlay.redirect=/cwd\ndir to_etc trusted.overlay.redirect=/root/etc\n\
            dir to_fd trusted.overlay.redirect=/fd";
        let mount = Stack::new().lower("dir root\nfile root/own \"own\\n\"").lower(links).upper(upper).mount(driver);
        let ours = std::fs::metadata("/proc/self/exe").unwrap();
        let theirs = std::fs::metadata(mount.at("exe")).unwrap();
        assert_eq!((theirs.dev(), theirs.ino()), (ours.dev(), ours.ino()));
        let ours = std::fs::metadata("/proc/self/cwd").unwrap();
        assert_eq!(std::fs::metadata(mount.at("cwd")).unwrap().ino(), ours.ino());
        // A directory is merged with no link, wherever that leads.
        assert_eq!(sys::names(&mount.at("root")), ["own"]);
        for redirected in ["to_cwd", "to_etc", "to_fd"] {
            assert_eq!(sys::names(&mount.at(redirected)), Vec::<String>::new(), "{redirected}");
        }
        // What is changed or copied up is the link.
        for name in ["exe", "cwd", "fd", "d/zero"] {
            let target = sys::readlink(&mount.at(name)).unwrap();
            sys::chown(&mount.at(name), Some(7), Some(8)).unwrap();
            sys::utimens(&mount.at(name), (5, 0), (6, 0)).unwrap();
            assert_eq!(sys::readlink(&mount.upper(name)).unwrap(), target, "{name}");
            assert_eq!(sys::lstat(&mount.upper(name)).unwrap().st_uid, 7, "{name}");
            let opened = sys::open(&mount.at(name), OFlags::WRONLY | OFlags::NOFOLLOW, 0);
            assert_eq!(opened.unwrap_err(), Errno::LOOP, "{name}");
        }
        assert_ne!(std::fs::metadata("/proc/self/exe").unwrap().uid(), 7);
    }

    fn set_id_bits_and_devices_do_not_count_where_refused(driver) {
        let lower = "char zero 1:5 mode=666\nfile whoami";
        let nosuid = |driver| {
            let stack = Stack::new().lower(lower);
            match driver {
                Driver::Stratafs => stack.stratafs_option("nosuid,nodev").mount(driver),
                Driver::Overlayfs => {
                    let mount = stack.mount(driver);
                    use rustix::mount::{MountFlags, mount_remount};
                    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
                    mount_remount(mount.root(), flags, "").unwrap();
                    mount
                }
            }
        };
        for (mount, counts) in [(Stack::new().lower(lower).mount(driver), true), (nosuid(driver), false)] {
            let program = mount.at("whoami");
            std::fs::copy("/usr/bin/id", &program).unwrap();
            sys::chmod(&program, 0o4755).unwrap();
            let output = sys::as_user(1000, 1000, || Command::new(&program).arg("-u").output().unwrap());
            let uid = String::from_utf8(output.stdout).unwrap();
            assert_eq!(uid.trim(), if counts { "0" } else { "1000" });
            let opened = sys::open(&mount.at("zero"), OFlags::RDONLY, 0).err();
            assert_eq!(opened, if counts { None } else { Some(Errno::ACCESS) });
        }
    }
}

/// Only users who may write there can hide a directory below a mount.
#[test]
fn users_cannot_mount_over_directories_of_others() {
    crate::common::run_test("users_cannot_mount_over_directories_of_others", Driver::Stratafs, |_| {
        let base = tempfile::Builder::new().prefix("stratafs-test-").tempdir_in(crate::common::stack::base()).unwrap();
        sys::chmod(base.path(), 0o755).unwrap();
        for name in ["lower", "point"] {
            sys::mkdir(&base.path().join(name), 0o755).unwrap();
        }
        // The build directory may be closed to others.
        let program = base.path().join("stratafs");
        std::fs::copy(env!("CARGO_BIN_EXE_stratafs"), &program).unwrap();
        sys::chmod(&program, 0o755).unwrap();
        let output = sys::as_user(1000, 1000, || {
            let mut command = Command::new("timeout");
            command.arg("50").arg(&program).args(["-o", "lowerdir=lower", "point"]).current_dir(base.path());
            command.output().unwrap()
        });
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot mount"), "{output:?}");
    });
}
