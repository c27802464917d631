//! `cp`: docker's rules, what a container sees, and that nothing leads out of its root.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use super::container::{World, wait_until, worlds};
use super::tar_build::{Tar, spec};

/// One driver is enough: the tested code is the same for all.
fn world() -> Option<World> {
    worlds().into_iter().next_back()
}

/// The one-line message of a command that must fail.
fn refusal(world: &World, args: &[&str]) -> String {
    let output = world.run(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), message.lines().count()), (Some(1), 1), "{args:?}: {message}");
    message
}

/// Runs `cp` with a stream as standard input.
fn feed(world: &World, args: &[&str], stream: &[u8]) -> Output {
    let mut command = world.command(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    match stdin.write_all(stream) {
        // It refused before it read everything.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe),
        Ok(()) => drop(stdin),
    }
    child.wait_with_output().unwrap()
}

/// Paths below a directory, sorted; directories end in a slash, links name what they lead to.
fn listing(dir: &Path) -> Vec<String> {
    fn add(top: &Path, dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top).unwrap().display().to_string();
            if path.is_symlink() {
                found.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
            } else if path.is_dir() {
                found.push(format!("{name}/"));
                add(top, &path, found);
            } else {
                found.push(name);
            }
        }
    }
    let mut found = Vec::new();
    add(dir, dir, &mut found);
    found.sort();
    found
}

/// A container `c`, running or not, with some files in `/t`.
fn container(world: &World, runs: bool) {
    let script = "mkdir /t /t/dir /t/dir/sub; echo one >/t/dir/one; echo two >/t/dir/sub/two; echo f >/t/file; \
                  ln -s dir /t/link; ln -s file /t/name; mkdir /t/empty; sleep ";
    let script = format!("{script}{}", if runs { "1000" } else { "0" });
    let detached: &[&str] = if runs { &["-d"] } else { &[] };
    world.ok(&[&["run"], detached, &["--name", "c", "tool:1", &script]].concat());
    if runs {
        wait_until("its files", || world.run(&["exec", "c", "/bin/ls", "/t/empty"]).status.success());
    }
}

/// docker's rules for destinations. They are the same out of a container and into one, running or not.
#[test]
fn destinations_mean_what_they_mean_to_docker() {
    // Source; destination, where `@` is a new directory with the directory `d` and the file `g`; what is there
    // afterwards, or the refusal.
    type Outcome = Result<&'static [&'static str], &'static str>;
    let table: &[(&str, &str, Outcome)] = &[
        ("file", "@/new", Ok(&["d/", "g", "new"])),
        ("file", "@/g", Ok(&["d/", "g"])),
        ("file", "@/d", Ok(&["d/", "d/file", "g"])),
        ("file", "@/d/", Ok(&["d/", "d/file", "g"])),
        ("file", "@/d/.", Ok(&["d/", "d/file", "g"])),
        ("file", "@/none/", Err("no such directory")),
        ("file", "@/none/x", Err("No such file or directory")),
        ("file", "@/g/", Err("Not a directory")),
        ("file/", "@/new", Err("Not a directory")),
        ("file/.", "@/new", Err("Not a directory")),
        ("dir", "@/new", Ok(&["d/", "g", "new/", "new/one", "new/sub/", "new/sub/two"])),
        ("dir/.", "@/new", Ok(&["d/", "g", "new/", "new/one", "new/sub/", "new/sub/two"])),
        ("dir", "@/new/", Ok(&["d/", "g", "new/", "new/one", "new/sub/", "new/sub/two"])),
        ("dir", "@/d", Ok(&["d/", "d/dir/", "d/dir/one", "d/dir/sub/", "d/dir/sub/two", "g"])),
        ("dir/", "@/d", Ok(&["d/", "d/dir/", "d/dir/one", "d/dir/sub/", "d/dir/sub/two", "g"])),
        ("dir/.", "@/d", Ok(&["d/", "d/one", "d/sub/", "d/sub/two", "g"])),
        ("dir", "@/g", Err("cannot copy a directory to a file")),
        ("dir", "@/none/x", Err("No such file or directory")),
        ("empty", "@/new", Ok(&["d/", "g", "new/"])),
        ("link", "@/new", Ok(&["d/", "g", "new -> dir"])),
        ("link/", "@/d", Ok(&["d/", "d/link/", "d/link/one", "d/link/sub/", "d/link/sub/two", "g"])),
        ("name", "@/d", Ok(&["d/", "d/name -> file", "g"])),
        ("-L name", "@/d", Ok(&["d/", "d/name", "g"])),
        ("-L link", "@/new", Ok(&["d/", "g", "new/", "new/one", "new/sub/", "new/sub/two"])),
        ("none", "@/new", Err("No such file or directory")),
    ];
    let Some(world) = world() else { return };
    for runs in [true, false] {
        container(&world, runs);
        let host = world.dir.path().join("t");
        world.ok(&["cp", "-q", "c:/t", world.dir.path().to_str().unwrap()]);
        assert_eq!(
            listing(&host),
            ["dir/", "dir/one", "dir/sub/", "dir/sub/two", "empty/", "file", "link -> dir", "name -> file"]
        );
        let fresh = world.dir.path().join("fresh");
        let make = || {
            fs::create_dir_all(fresh.join("d")).unwrap();
            fs::write(fresh.join("g"), "old\n").unwrap();
        };
        // How the tree is opened does not change the rules.
        for (number, (from, to, expected)) in table.iter().enumerate().step_by(if runs { 1 } else { 5 }) {
            let inside = format!("c:/data/fresh{number}");
            let words: Vec<&str> = from.split(' ').collect();
            let (flags, name) = words.split_at(words.len() - 1);
            for out in [true, false] {
                make();
                let source = if out { format!("c:/t/{}", name[0]) } else { format!("{}/{}", host.display(), name[0]) };
                let target = to.replace('@', &if out { fresh.display().to_string() } else { inside.clone() });
                if !out {
                    world.ok(&["cp", fresh.to_str().unwrap(), &inside]);
                }
                let args = [&["cp"], flags, &[&source, &target]].concat();
                match expected {
                    Ok(_) => assert_eq!(world.ok(&args), "", "nothing is printed: {args:?}"),
                    Err(why) => {
                        let told = refusal(&world, &args);
                        assert!(told.contains(why), "{args:?}: {told}");
                    }
                }
                let mut found = fresh.clone();
                if !out {
                    fs::remove_dir_all(&fresh).unwrap();
                    found = world.dir.path().join("back");
                    world.ok(&["cp", &inside, found.to_str().unwrap()]);
                }
                assert_eq!(listing(&found), expected.unwrap_or(&["d/", "g"]), "{args:?}");
                if from.ends_with("file") && *to == "@/g" {
                    assert_eq!(fs::read_to_string(found.join("g")).unwrap(), "f\n", "{args:?}");
                }
                fs::remove_dir_all(&found).unwrap();
            }
        }
        fs::remove_dir_all(&host).unwrap();
        world.ok(&["rm", "-f", "c"]);
        assert_eq!(world.mounts(), 0);
    }
}

#[test]
fn what_cannot_be_copied_is_told() {
    let Some(world) = world() else { return };
    world.ok(&["create", "--name", "c", "tool:1", "true"]);
    let dir = world.dir.path().display().to_string();
    for (args, why) in [
        (&["cp", "nosuch:/etc", &dir][..], "nosuch: no such container"),
        (&["cp", "c:/nosuch", &dir], "c:/nosuch: No such file or directory"),
        (&["cp", "/nosuch", "c:/"], "/nosuch: No such file or directory"),
        (&["cp", &dir, &dir], "CONTAINER:PATH"),
        (&["cp", "-", "-"], "CONTAINER:PATH"),
        (&["cp", "c:/etc", "/nosuch/x"], "/nosuch/x: No such file or directory"),
        (&["cp", "-", "c:/etc/passwd"], "c:/etc/passwd: is not a directory"),
        (&["cp", "-", "c:/nosuch"], "c:/nosuch: no such directory"),
        (&["cp", "/etc/passwd", "c@x:/etc"], "a checkpoint does not change"),
    ] {
        let told = refusal(&world, args);
        assert!(told.contains(why), "{args:?}: {told}");
    }
    // A file where a directory is, and the other way round.
    let tree = world.dir.path().join("tree");
    fs::create_dir_all(tree.join("data/lower")).unwrap();
    let told = refusal(&world, &["cp", &format!("{}/.", tree.display()), "c:/"]);
    assert!(told.contains("c:/data/lower: cannot overwrite a file with a directory"), "{told}");
    fs::remove_dir_all(tree.join("data")).unwrap();
    fs::write(tree.join("data"), "").unwrap();
    let told = refusal(&world, &["cp", &format!("{}/.", tree.display()), "c:/"]);
    assert!(told.contains("c:/data: cannot overwrite a directory with a file"), "{told}");
    assert_eq!((world.ok(&["diff", "c"]), world.mounts()), (String::new(), 0));
    assert_eq!(world.ok(&["ps", "-a", "--format", "{{.State}}"]), "created\n");
}

/// Owner, mode, times, links, holes and attributes.
#[test]
fn copies_are_like_their_sources() {
    let Some(world) = world() else { return };
    world.ok(&["create", "--name", "c", "tool:1", "true"]);
    let tree = world.dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for (name, mode, owner) in
        [("own", 0o640, 0), ("other", 0o600, 1000), ("tool", 0o4755, 0), ("others", 0o4755, 1000)]
    {
        let path = tree.join(name);
        fs::write(&path, name).unwrap();
        std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let then = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
        fs::File::open(&path).unwrap().set_modified(then).unwrap();
    }
    fs::hard_link(tree.join("own"), tree.join("second")).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, tree.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    let has_xattrs =
        rustix::fs::setxattr(tree.join("own"), "user.note", b"kept", rustix::fs::XattrFlags::empty()).is_ok();
    fs::set_permissions(&tree, PermissionsExt::from_mode(0o750)).unwrap();
    for (flags, other) in [(&[][..], (0, 0o600, 0o755)), (&["-a"], (1000, 0o600, 0o4755))] {
        let back = world.dir.path().join("back");
        let copy = format!("c:/copy{}", flags.len());
        let into = world.run(&[&["cp"], flags, &[tree.to_str().unwrap(), &copy]].concat());
        let told = String::from_utf8(into.stderr).unwrap();
        assert!(into.status.success() && told.contains("socket: a socket, left out"), "{told}");
        world.ok(&[&["cp"], flags, &[&copy, back.to_str().unwrap()]].concat());
        let stat = |name: &str| fs::metadata(back.join(name)).unwrap();
        assert_eq!(stat("").mode() & 0o7777, 0o750);
        assert_eq!(stat("own").mode() & 0o7777, 0o640);
        assert_eq!((stat("own").mtime(), stat("own").mtime_nsec()), (1_000_000_000, 123_456_789));
        assert_eq!((stat("other").uid(), stat("other").mode() & 0o7777, stat("others").mode() & 0o7777), other);
        assert_eq!(stat("tool").mode() & 0o7777, 0o4755, "its owner stays the same");
        assert_eq!((stat("own").nlink(), stat("own").ino()), (2, stat("second").ino()));
        assert!(stat("fifo").file_type().is_fifo() && !back.join("socket").exists());
        assert!(stat("sparse").size() == 64 << 20 && stat("sparse").blocks() * 512 < 1 << 20);
        if has_xattrs {
            let mut value = [0; 8];
            assert_eq!(rustix::fs::getxattr(back.join("own"), "user.note", &mut value), Ok(4));
        }
        // Once more over itself: files are replaced, directories merge.
        world.ok(&[&["cp"], flags, &[&format!("{copy}/."), back.to_str().unwrap()]].concat());
        assert_eq!((stat("own").nlink(), stat("own").ino()), (2, stat("second").ino()));
        fs::remove_dir_all(&back).unwrap();
    }
    drop(socket);
    assert!(!listing(&world.root().join("containers/c/upper")).iter().any(|name| name.contains(".strata-")));
    assert_eq!(world.mounts(), 0);
}

/// A container that does nothing but exchange a directory and a link to a directory of the host's.
const SWAP: &str =
    "while :; do mv -T /w/d /w/x && mv -T /w/l /w/d && mv -T /w/d /w/l && mv -T /w/x /w/d; done 2>/dev/null";

#[test]
fn nothing_leads_out_of_a_container() {
    let Some(world) = world() else { return };
    let secret = world.dir.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("file"), "the host's\n").unwrap();
    let outside = secret.display().to_string();
    let merged = world.ok(&["mount", "--name", "m", "tool:1"]);
    let at = |name: &str| Path::new(merged.trim()).join(name);
    fs::create_dir_all(at("w/d")).unwrap();
    fs::write(at("w/d/file"), "the container's\n").unwrap();
    for (name, to) in [
        ("absolute", outside.as_str()),
        ("up", &format!("{}{outside}", "../".repeat(30))),
        ("w/l", &outside),
        ("magic", "/proc/self/root"),
        ("passwd", "/etc/passwd"),
        ("dangling", &format!("{outside}/planted")),
    ] {
        symlink(to, at(name)).unwrap();
    }
    world.ok(&["umount", "m"]);
    world.ok(&["commit", "m", "tool:hostile"]);
    world.ok(&["rm", "m"]);
    let untouched = || assert_eq!(listing(&secret), ["file"], "something was planted on the host");
    let planted = world.dir.path().join("planted");
    fs::write(&planted, "planted\n").unwrap();
    let planted = planted.to_str().unwrap();
    let back = world.dir.path().join("back");
    for runs in [false, true] {
        let detached: &[&str] = if runs { &["-d"] } else { &[] };
        let script = if runs { "sleep 1000" } else { "true" };
        world.ok(&[&["run"], detached, &["--name", "c", "tool:hostile", script]].concat());
        for name in ["absolute/", "up/", "absolute/file", "up/file", "magic/etc", "dangling/"] {
            let told = refusal(&world, &["cp", &format!("c:/{name}"), back.to_str().unwrap()]);
            let blocked = ["No such file", "Too many levels"].iter().any(|reason| told.contains(reason));
            assert!(blocked && !back.exists(), "{name}: {told}");
        }
        let told = refusal(&world, &["cp", "-L", "c:/absolute", back.to_str().unwrap()]);
        assert!(told.contains("No such file"), "{told}");
        for name in ["absolute", "absolute/planted", "up/planted", "up", "magic/planted", "dangling", "../../planted/x"]
        {
            let output = world.run(&["cp", planted, &format!("c:/{name}")]);
            assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
            untouched();
        }
        // A link within the root is followed within it.
        world.ok(&["cp", planted, "c:/passwd"]);
        world.ok(&["cp", "c:/etc/passwd", back.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(&back).unwrap(), "planted\n");
        fs::remove_file(&back).unwrap();
        world.ok(&["cp", planted, "c:/../../../../data/from-above"]);
        assert!(world.ok(&["diff", "c"]).contains("A /data/from-above"));
        // Members of a stream that try the same.
        for (tar, expected) in [
            (Tar::new().file("../../planted", "x"), Some("contains \"..\"")),
            (Tar::new().symlink("out", &outside).file("out/planted", "x"), Some("No such file")),
            (Tar::new().hardlink("stolen", format!("{}{outside}/file", "../".repeat(9))), Some("\"..\"")),
            (Tar::new().symlink("l", &outside).hardlink("stolen", "l/file"), Some("No such file")),
            (Tar::new().file("/absolute-name", "x"), None),
        ] {
            let output = feed(&world, &["cp", "-", "c:/data"], &tar.end());
            let told = String::from_utf8(output.stderr).unwrap();
            match expected {
                Some(why) => assert!(output.status.code() == Some(1) && told.contains(why), "{told}"),
                None => assert!(output.status.success(), "{told}"),
            }
            untouched();
        }
        assert!(world.ok(&["diff", "c"]).contains("A /data/absolute-name"));
        world.ok(&["rm", "-f", "c"]);
    }
    assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0));
}

#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    let Some(world) = world() else { return };
    let secret = world.dir.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("file"), "the host's\n").unwrap();
    let script =
        format!("mkdir /w /w/d; echo container >/w/d/file; ln -s {} /w/l; touch /ready; {SWAP}", secret.display());
    world.ok(&["run", "-d", "--name", "c", "tool:1", &script]);
    wait_until("its loop", || world.run(&["exec", "c", "/bin/ls", "/ready"]).status.success());
    let tree = world.dir.path().join("tree");
    fs::create_dir_all(tree.join("d")).unwrap();
    fs::write(tree.join("d/planted"), "planted\n").unwrap();
    let back = world.dir.path().join("back");
    let begun = Instant::now();
    let (mut tries, mut read, mut written) = (0, 0, 0);
    while tries < 60 || (read == 0 || written == 0) && begun.elapsed() < Duration::from_secs(60) {
        tries += 1;
        let into = world.run(&["cp", &format!("{}/.", tree.display()), "c:/w"]);
        written += usize::from(into.status.success());
        assert_eq!(listing(&secret), ["file"], "the host's directory was written");
        if world.run(&["cp", "c:/w/d/.", back.to_str().unwrap()]).status.success() {
            read += 1;
            let content = fs::read_to_string(back.join("file"));
            assert!(content.as_ref().map_or(true, |content| content == "container\n"), "{content:?}");
        }
        if back.exists() {
            fs::remove_dir_all(&back).unwrap();
        }
    }
    assert!(read > 0 && written > 0, "{tries} tries: {read} read, {written} written");
    world.ok(&["rm", "-f", "c"]);
    assert_eq!(world.mounts(), 0);
}

#[test]
fn volumes_and_mounts_are_seen() {
    for world in worlds() {
        let driver = world.driver;
        let at = |name: &str| world.dir.path().join(name);
        for name in ["bind", "read-only"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("inside"), name).unwrap();
        }
        let (bind, read_only) =
            (format!("{}:/new/bind", at("bind").display()), format!("{}:/ro:ro", at("read-only").display()));
        let flags = ["-v", &bind, "-v", &read_only, "-v", "named:/named", "-v", "/own", "--tmpfs", "/memory"];
        let script = "echo own >/own/file; echo named >/named/file; echo memory >/memory/file; sleep 1000";
        world.ok(&[&["run", "-d", "--name", "c"], &flags[..], &["tool:1", script]].concat());
        wait_until("its files", || world.run(&["exec", "c", "/bin/cat", "/memory/file"]).status.success());
        let file = at("file");
        fs::write(&file, "copied\n").unwrap();
        for runs in [true, false] {
            let copied = |from: &str| {
                world.ok(&["cp", &format!("c:{from}"), at("back").to_str().unwrap()]);
                fs::read_to_string(at("back")).unwrap()
            };
            assert_eq!(copied("/new/bind/inside"), "bind", "{driver}");
            assert_eq!(copied("/ro/inside"), "read-only", "{driver}");
            assert_eq!((copied("/own/file"), copied("/named/file")), ("own\n".into(), "named\n".into()), "{driver}");
            if runs {
                assert_eq!(copied("/memory/file"), "memory\n", "{driver}");
                assert!(copied("/proc/1/status").starts_with("Name:"), "{driver}");
                // A file that is mounted gets the content; a rename would replace it.
                world.ok(&["cp", file.to_str().unwrap(), "c:/etc/hosts"]);
                assert_eq!(world.ok(&["exec", "c", "/bin/cat", "/etc/hosts"]), "copied\n", "{driver}");
            }
            for to in ["/new/bind/new", "/named/new", "/own/new", "/data/new"] {
                world.ok(&["cp", file.to_str().unwrap(), &format!("c:{to}")]);
                assert_eq!(copied(to), "copied\n", "{driver}");
            }
            assert!(at("bind/new").exists(), "{driver}");
            for to in ["c:/ro", "c:/ro/inside"] {
                let told = refusal(&world, &["cp", file.to_str().unwrap(), to]);
                assert!(told.contains("Read-only file system"), "{driver}: {told}");
            }
            assert_eq!(listing(&at("read-only")), ["inside"], "{driver}");
            // The whole container, without the kernel's file systems.
            world.ok(&["cp", "c:/", at("all").to_str().unwrap()]);
            let all = listing(&at("all"));
            let is_there = |name: &str| all.iter().any(|found| found == name);
            assert!(
                is_there("new/bind/inside") && is_there("named/file") && is_there("data/lower"),
                "{driver}: {all:?}"
            );
            let made_up = |name: &&String| {
                ["proc/", "sys/", "dev/"].iter().any(|top| name.len() > top.len() && name.starts_with(top))
            };
            assert_eq!(all.iter().find(made_up), None, "{driver}");
            fs::remove_dir_all(at("all")).unwrap();
            if runs {
                world.ok(&["stop", "-t", "0", "c"]);
            }
            for name in ["new", "bind/new"] {
                assert!(!world.root().join("containers/c/upper").join("own").join(name).exists(), "{driver}");
            }
        }
        assert_eq!(world.ok(&["diff", "c"]), "C /data\nA /data/new\n", "{driver}: mount points are gone again");
        assert_eq!(world.mounts(), 0, "{driver}");
        world.ok(&["rm", "c"]);
    }
}

#[test]
fn streams_are_tars() {
    let Some(world) = world() else { return };
    world.ok(&["create", "--name", "c", "tool:1", "true"]);
    let names = |path: &str| {
        let output = world.run(&["cp", path, "-"]);
        assert!(output.status.success(), "{output:?}");
        let mut archive = tar::Archive::new(&output.stdout[..]);
        let name = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| entry.unwrap().path().unwrap().display().to_string();
        archive.entries().unwrap().map(name).collect::<Vec<_>>()
    };
    assert_eq!(names("c:/etc/passwd"), ["passwd"]);
    assert_eq!(names("c:/etc"), ["etc/", "etc/group", "etc/passwd"]);
    assert_eq!(names("c:/etc/."), ["./", "./group", "./passwd"]);
    let stream = Tar::new()
        .dir("made/")
        .entry(spec("made/file", b'0').content("content\n").mode(0o640).owner(1000, 1001))
        .hardlink("made/second", "made/file")
        .symlink("made/link", "file")
        .file("implied/deep/file", "deep\n")
        .file("data/lower", "replaced\n")
        .end();
    for (packed, flags, owner) in [
        (stream.clone(), &[][..], (0, 0)),
        (super::fixture::gzip(&stream), &["-a"], (1000, 1001)),
        (super::fixture::zstd(&stream), &["-a"], (1000, 1001)),
    ] {
        let output = feed(&world, &[&["cp"], flags, &["-", "c:/"]].concat(), &packed);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let back = world.dir.path().join("back");
        fs::create_dir(&back).unwrap();
        for name in ["made", "implied", "data"] {
            world.ok(&["cp", "-a", &format!("c:/{name}"), back.to_str().unwrap()]);
        }
        let made = fs::metadata(back.join("made/file")).unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777, made.nlink()), (owner.0, owner.1, 0o640, 2));
        assert_eq!(fs::read_link(back.join("made/link")).unwrap(), PathBuf::from("file"));
        assert_eq!(fs::read_to_string(back.join("implied/deep/file")).unwrap(), "deep\n");
        assert_eq!(fs::read_to_string(back.join("data/lower")).unwrap(), "replaced\n");
        fs::remove_dir_all(&back).unwrap();
        world.ok(&["rm", "c"]);
        world.ok(&["create", "--name", "c", "tool:1", "true"]);
    }
    // From container to container, as tar streams and at once.
    world.ok(&["create", "--name", "d", "tool:1", "true"]);
    let out = world.run(&["cp", "c:/etc", "-"]).stdout;
    assert!(feed(&world, &["cp", "-", "d:/tmp"], &out).status.success());
    world.ok(&["cp", "c:/etc/passwd", "d:/tmp/direct"]);
    assert_eq!(world.ok(&["diff", "d"]), "C /tmp\nA /tmp/direct\nA /tmp/etc\nA /tmp/etc/group\nA /tmp/etc/passwd\n");
    world.ok(&["cp", "d:/etc", "d:/tmp/again"]);
    assert!(world.ok(&["diff", "d"]).contains("A /tmp/again/passwd"));
    for (bytes, why) in [(&b"no tar at all"[..], "not a tar archive"), (&stream[..700], "is cut off")] {
        let output = feed(&world, &["cp", "-", "c:/"], bytes);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && told.contains(why), "{told}");
    }
    assert_eq!(world.mounts(), 0);
}

#[test]
fn a_checkpoint_is_a_source() {
    let Some(world) = world() else { return };
    world.ok(&["run", "--name", "c", "tool:1", "echo before >/data/file"]);
    world.ok(&["checkpoint", "create", "c", "cp"]);
    let back = world.dir.path().join("back");
    let file = world.dir.path().join("file");
    fs::write(&file, "after\n").unwrap();
    world.ok(&["cp", file.to_str().unwrap(), "c:/data/file"]);
    for (from, expected) in [("c@cp:/data/file", "before\n"), ("c:/data/file", "after\n")] {
        world.ok(&["cp", from, back.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(&back).unwrap(), expected);
    }
    assert!(refusal(&world, &["cp", "c@none:/data/file", back.to_str().unwrap()]).contains("no such checkpoint"));
    assert_eq!((world.ok(&["ps", "-a", "--format", "{{.Names}}"]), world.mounts()), ("c\n".to_owned(), 0));
}

/// Several copies at once, into one container that does not run; one that is interrupted leaves no mount.
#[test]
fn copies_wait_for_each_other_and_leave_no_mount() {
    let Some(world) = world() else { return };
    world.ok(&["create", "--name", "c", "tool:1", "ls /tmp"]);
    let file = world.dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let copies: Vec<_> = (0..6)
        .map(|number| {
            let to = format!("c:/tmp/{number}");
            world.command(&["cp", file.to_str().unwrap(), &to]).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for copy in copies {
        let output = copy.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(world.ok(&["start", "-a", "c"]), "0\n1\n2\n3\n4\n5\n");
    let mut waiting = world.command(&["cp", "-", "c:/tmp"]);
    let mut child = waiting.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("its mount", || world.mounts() > 0);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let stdin = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("interrupted"), "{told}");
    assert_eq!(world.mounts(), 0);
}
