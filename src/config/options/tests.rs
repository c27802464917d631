#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::config::{IdRange, Inventories};

fn parse(text: &str) -> Result<MountOptions, OptionError> {
    MountOptions::parse([text], true)
}

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

#[test]
fn lower_layers() {
    type Layers = (&'static [&'static str], &'static [&'static str]);
    let table: &[(&str, Option<Layers>)] = &[
        ("/a", Some((&["/a"], &[]))),
        ("/a:b/c:../d", Some((&["/a", "b/c", "../d"], &[]))),
        (r"/with\:colon:/b", Some((&["/with:colon", "/b"], &[]))),
        (r"/with\,comma:/b", Some((&["/with,comma", "/b"], &[]))),
        (r"/with\\backslash:/b", Some((&[r"/with\backslash", "/b"], &[]))),
        (r"/ends\\:/b", Some((&[r"/ends\", "/b"], &[]))),
        ("/a b:/c\"d", Some((&["/a b", "/c\"d"], &[]))),
        ("/a::/data", Some((&["/a"], &["/data"]))),
        ("/a:/b::/d1::/d2", Some((&["/a", "/b"], &["/d1", "/d2"]))),
        ("", None),
        (":/a", None),
        ("/a:", None),
        ("/a::", None),
        ("/a:::/b", None),
        ("::/data", None),
        ("/a::/data:/b", None),
    ];
    for (text, expected) in table {
        let parsed = parse(&format!("metacopy=on,lowerdir={text}"));
        match (expected, parsed) {
            (Some((lowers, data_only)), Ok(options)) => {
                assert_eq!(options.overlay.lowers, paths(lowers), "{text}");
                assert_eq!(options.overlay.data_only, paths(data_only), "{text}");
            }
            (None, Err(OptionError::Usage(message))) => assert!(message.contains("lowerdir"), "{message}"),
            (_, parsed) => panic!("{text}: {parsed:?}"),
        }
    }
}

#[test]
fn one_layer_each() {
    let options = parse("metacopy=on,lowerdir+=/a:b,lowerdir+=/c,datadir+=/d").unwrap();
    assert_eq!(options.overlay.lowers, paths(&["/a:b", "/c"]));
    assert_eq!(options.overlay.data_only, paths(&["/d"]));
}

#[test]
fn later_options_win_over_several_groups() {
    let groups = ["workdir=/w1,ro", "upperdir=/u,lowerdir=/x", "lowerdir=/l,workdir=/w2,rw,,"];
    let options = MountOptions::parse(groups, true).unwrap();
    assert_eq!(options.overlay.lowers, paths(&["/l"]));
    assert_eq!(options.overlay.upper, Some("/u".into()));
    assert_eq!(options.overlay.work, Some("/w2".into()));
    assert!(!options.overlay.read_only);
    assert_eq!(options.warnings, Vec::<String>::new());
}

#[test]
fn names_are_bytes() {
    let group = OsStr::from_bytes(b"lowerdir=/\xff:/b,upperdir=/u\xfe,workdir=/w");
    let options = MountOptions::parse([group], true).unwrap();
    assert_eq!(options.overlay.lowers[0].as_os_str().as_bytes(), b"/\xff");
    assert_eq!(options.overlay.upper.unwrap().as_os_str().as_bytes(), b"/u\xfe");
}

#[test]
fn defaults_depend_on_privilege() {
    for (privileged, access) in [(true, Access::Everybody), (false, Access::Owner)] {
        let mount = MountOptions::parse(["lowerdir=/l"], privileged).unwrap().mount;
        assert_eq!((mount.suid, mount.dev, mount.access), (privileged, privileged, access));
        assert!(mount.exec && mount.atime && !mount.sync);
    }
}

#[test]
fn flags() {
    type Test = fn(&MountOptions) -> bool;
    let table: &[(&str, Test)] = &[
        ("ro", |o| o.overlay.read_only),
        ("nosuid", |o| !o.mount.suid),
        ("nodev", |o| !o.mount.dev),
        ("noexec", |o| !o.mount.exec),
        ("noexec,exec", |o| o.mount.exec),
        ("noatime", |o| !o.mount.atime),
        ("noatime,relatime", |o| o.mount.atime),
        ("sync", |o| o.mount.sync),
        ("dirsync", |o| o.mount.dirsync),
        ("allow_root", |o| o.mount.access == Access::RootAndOwner),
        ("allow_root,allow_other", |o| o.mount.access == Access::Everybody),
        ("default_permissions", |o| o.warnings.is_empty()),
        ("debug", |o| o.mount.debug),
        ("auto_unmount", |o| o.mount.auto_unmount),
        ("volatile", |o| o.overlay.volatile),
        ("fsync=0", |o| o.overlay.ignore_fsync),
        ("fsync=1", |o| !o.overlay.ignore_fsync),
        ("noacl", |o| o.overlay.no_acl),
        ("inventory=off", |o| o.overlay.inventory == Inventories::Off),
        ("inventory=off,inventory", |o| o.overlay.inventory == Inventories::On),
        ("inventory=use", |o| o.overlay.inventory == Inventories::Use),
        ("inventory=make", |o| o.overlay.inventory == Inventories::Make),
        ("noxattrs", |o| o.overlay.no_xattrs),
        ("noxattrs=1", |o| o.overlay.no_xattrs),
        ("noxattrs=0", |o| !o.overlay.no_xattrs),
        ("static_nlink", |o| o.overlay.static_nlink),
        ("index=on", |o| o.overlay.index),
        ("index=off", |o| !o.overlay.index),
        ("metacopy=on", |o| o.overlay.metacopy),
        ("userxattr", |o| o.overlay.userxattr),
        ("writeback", |o| o.overlay.writeback),
        ("writeback=0", |o| !o.overlay.writeback),
        ("redirect_dir=nofollow", |o| o.overlay.redirect_dir == RedirectDir::NoFollow),
        ("redirect_dir=follow", |o| o.overlay.redirect_dir == RedirectDir::Follow),
        ("redirect_dir=off", |o| o.overlay.redirect_dir == RedirectDir::Follow),
        ("xino=on", |o| o.overlay.xino == Xino::On),
        ("passthrough=all", |o| o.overlay.passthrough == Passthrough::All),
        ("passthrough=programs", |o| o.overlay.passthrough == Passthrough::Programs),
        ("passthrough=off", |o| o.overlay.passthrough == Passthrough::Off),
        ("xattr_permissions=2", |o| o.overlay.xattr_permissions == XattrPermissions::Containers),
        ("timeout=1.5", |o| o.overlay.timeout == Some(Duration::from_millis(1500))),
        ("timeout=0", |o| o.overlay.timeout == Some(Duration::ZERO)),
        ("size=4097", |o| o.overlay.size == Some(4097)),
        ("size=16k", |o| o.overlay.size == Some(16 << 10)),
        ("size=3M,size=2G", |o| o.overlay.size == Some(2 << 30)),
        ("size=1T", |o| o.overlay.size == Some(1 << 40)),
        ("size=0", |o| o.overlay.size.is_none()),
        ("threads=7", |o| o.mount.threads == Some(7)),
        ("squash_to_uid=7,squash_to_root", |o| {
            (o.overlay.squash_to_uid, o.overlay.squash_to_gid) == (Some(7), Some(0))
        }),
        ("squash_to_root", |o| (o.overlay.squash_to_uid, o.overlay.squash_to_gid) == (Some(0), Some(0))),
        ("squash_to_uid=5", |o| (o.overlay.squash_to_uid, o.overlay.squash_to_gid) == (Some(5), None)),
        ("squash_to_gid=5", |o| o.overlay.squash_to_gid == Some(5)),
        (r"fsname=a\,b c", |o| o.mount.fsname.as_deref() == Some("a,b c")),
        ("subtype=x", |o| o.mount.subtype == "x"),
        ("context=\"u:r:t:s0:c1,c2\",ro", |o| {
            o.overlay.read_only && o.mount.security == ["context=\"u:r:t:s0:c1,c2\""]
        }),
        ("uidmapping=0:1000:1:1:110000:65536", |o| {
            let first = IdRange { shown: 1000, on_disk: 0, count: 1 };
            o.overlay.uid_mapping == [first, IdRange { shown: 110_000, on_disk: 1, count: 65536 }]
        }),
        ("uidmapping=:0:1000:2000:3000:5000:1", |o| {
            let first = IdRange { shown: 1000, on_disk: 0, count: 2000 };
            o.overlay.uid_mapping == [first, IdRange { shown: 5000, on_disk: 3000, count: 1 }]
        }),
        ("gidmapping=0:10:100", |o| o.overlay.gid_mapping == [IdRange { shown: 10, on_disk: 0, count: 100 }]),
    ];
    for (text, test) in table {
        let options = parse(&format!("lowerdir=/l,{text}")).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(test(&options), "{text}: {options:?}");
        assert_eq!(options.warnings, Vec::<String>::new(), "{text}");
    }
}

#[test]
fn wrong_values_name_option_and_value() {
    for text in [
        "index=maybe",
        "metacopy=2",
        "redirect_dir=sometimes",
        "xino=x",
        "passthrough=lower",
        "xattr_permissions=3",
        "timeout=soon",
        "size=",
        "size=G",
        "size=+1",
        "size=-1",
        "size=50%",
        "size=1GB",
        "size=1.5G",
        "size=16777216T",
        "timeout=-1",
        "timeout=inf",
        "timeout=nan",
        "threads=0",
        "threads=many",
        "squash_to_uid=root",
        "squash_to_gid=4294967295",
        "uidmapping=0:1",
        "uidmapping=0:1:0",
        "uidmapping=a:b:c",
        "uidmapping=::",
        "gidmapping=4294967295:0:2",
        "uuid=what",
        "nfs_export=perhaps",
        "verity=maybe",
    ] {
        let (name, value) = text.split_once('=').unwrap();
        match parse(&format!("lowerdir=/l,{text}")) {
            Err(OptionError::Usage(message)) => {
                assert!(message.contains(name) && message.contains(value), "{text}: {message}");
                assert!(!message.contains('\n'));
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    for text in ["upperdir", "upperdir=", "workdir=", "fsname=", "timeout", "threads=", "context"] {
        let message = parse(&format!("lowerdir=/l,{text}")).unwrap_err().to_string();
        assert!(message.contains("needs a value"), "{text}: {message}");
    }
}

#[test]
fn unknown_options_warn_once_each() {
    let options = parse("lowerdir=/l,foo,foo=1,bar=x,foo").unwrap();
    assert_eq!(options.warnings.len(), 2);
    assert!(options.warnings[0].contains("'foo'") && options.warnings[1].contains("'bar'"));
}

/// A mount without its upper, or without its limits, is not what the user wanted.
#[test]
fn a_misspelt_option_is_an_error() {
    for (text, near) in [
        ("uperdir=u", "upperdir"),
        ("upprdir=u", "upperdir"),
        ("wrokdir=w", "workdir"),
        ("lowerdirs=l", "lowerdir"),
        ("metacpy=on", "metacopy"),
        ("redirectdir=on", "redirect_dir"),
        ("volatil", "volatile"),
        ("passtrough=all", "passthrough"),
    ] {
        let error = parse(&format!("lowerdir=/l,{text}")).unwrap_err().to_string();
        assert!(error.ends_with(&format!("did you mean '{near}'?")), "{text}: {error}");
    }
}

#[test]
fn unsupported_options_warn_only_when_they_ask_for_something() {
    for (text, warnings) in [
        ("nfs_export=off,uuid=null,uuid=auto,verity=off", 0),
        ("nfs_export=on", 1),
        ("uuid=on", 1),
        ("verity=require", 1),
        ("x-gvfs-show,X-mount.mkdir=0755,_netdev,nofail,user,noauto,nonempty,clone_fd", 0),
        ("max_idle_threads=10,nolazytime,defaults,async,threaded=0,fast_ino=1", 0),
        ("private,shared,slave,unbindable,rprivate,rshared,rslave,runbindable", 0),
        ("ino32_t", 1),
        ("strictatime,lazytime,nodiratime,iversion,mand", 5),
    ] {
        let options = parse(&format!("lowerdir=/l,{text}")).unwrap();
        assert_eq!(options.warnings.len(), warnings, "{text}: {:?}", options.warnings);
    }
}

#[test]
fn impossible_mounts() {
    for (text, usage) in [
        ("ro", true),
        ("upperdir=/u,workdir=/w", true),
        ("lowerdir=/l,upperdir=/u", false),
        ("lowerdir=/l,metacopy=on,redirect_dir=off", false),
        ("lowerdir=/l,plugins=x", true),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(matches!(error, OptionError::Usage(_)), usage, "{text}: {error}");
    }
    let options = parse("lowerdir=/l,workdir=/w").unwrap();
    assert_eq!(options.overlay.work, None);
    assert_eq!(options.warnings.len(), 1);
}

#[test]
fn long_option_strings() {
    let layers: Vec<String> = (0..200).map(|n| format!("l/LAYER{n:020}")).collect();
    let options = parse(&format!("lowerdir={}", layers.join(":"))).unwrap();
    assert_eq!(options.overlay.lowers.len(), 200);
}

proptest::proptest! {
    #[test]
    fn any_bytes_parse_or_fail(group: Vec<u8>) {
        // Only the fact that it returns matters.
        MountOptions::parse([OsStr::from_bytes(&group)], false).map(|_| ()).unwrap_or(());
    }

    #[test]
    fn escaped_paths_come_back(path in "[^\0]{1,40}") {
        let mut escaped = String::new();
        for letter in path.chars() {
            if matches!(letter, ',' | ':' | '\\' | '"') {
                escaped.push('\\');
            }
            escaped.push(letter);
        }
        let options = parse(&format!("lowerdir={escaped}:/x,upperdir={escaped},workdir=/w")).unwrap();
        proptest::prop_assert_eq!(&options.overlay.lowers, &[PathBuf::from(&path), PathBuf::from("/x")]);
        proptest::prop_assert_eq!(options.overlay.upper, Some(PathBuf::from(&path)));
    }
}
