//! Every mount option in one table. The parser accepts exactly these. The help, the man page, the completions and the
//! tables of docs/options.md are made from the table (`stratafs --generate …`).

/// One option, or a pair of opposites.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Name, and further names of the same option or of its opposite.
    pub names: &'static [&'static str],
    /// The placeholder after `=`; empty for a flag. In brackets: optional.
    pub value: &'static str,
    /// The default.
    pub default: &'static str,
    /// The description. Code is between backquotes.
    pub text: &'static str,
}

/// Entries that belong together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// Heading.
    pub title: &'static str,
    /// Its options.
    pub entries: &'static [Entry],
}

const fn entry(
    names: &'static [&'static str],
    value: &'static str,
    default: &'static str,
    text: &'static str,
) -> Entry {
    Entry { names, value, default, text }
}

/// The value of a switch: `name` alone turns it on.
const SWITCH: &str = "[on|off]";

/// The whole table.
pub(super) const GROUPS: &[Group] = &[
    Group {
        title: "Layers",
        entries: &[
            entry(
                &["lowerdir"],
                "DIR[:DIR…][::DATA…]",
                "needed",
                "Read-only layers, the topmost first. Layers after `::` are not visible: they only hold the data \
                 of metacopy files, and need `metacopy=on`. Write `\\:`, `\\,` and `\\\\` for a colon, a comma and a \
                 backslash in a name.",
            ),
            entry(&["lowerdir+"], "DIR", "", "One more layer below those so far; a colon in it needs no backslash."),
            entry(&["datadir+"], "DIR", "", "One more data-only layer. Needs `metacopy=on`."),
            entry(
                &["upperdir"],
                "DIR",
                "none: the mount is read-only",
                "The writable layer. It can be used by the kernel's overlayfs before and after.",
            ),
            entry(
                &["workdir"],
                "DIR",
                "needed with `upperdir`",
                "A directory on the upper's file system. `work` in it is emptied, `index` is kept.",
            ),
        ],
    },
    Group {
        title: "Behaviour",
        entries: &[
            entry(
                &["redirect_dir"],
                "on|off|follow|nofollow",
                "on",
                "`on`: a directory of a lower layer can be renamed, which leaves a redirect in the upper. `off`, \
                 `follow`: renaming it gives EXDEV, but existing redirects are followed. `nofollow`: they are not \
                 followed either.",
            ),
            entry(
                &["index"],
                SWITCH,
                "off",
                "Hard links between lower files stay hard links when one of them is changed. Needs file handles on every \
                 layer's file system; an index of other layers is refused.",
            ),
            entry(
                &["metacopy"],
                SWITCH,
                "off",
                "Changing only owner, mode, times or attributes of a lower file copies no data. Needs \
                 `redirect_dir=on`.",
            ),
            entry(
                &["inventory"],
                "off|use|on|make",
                "on",
                "Whether names and attributes of a layer `DIR` are taken from its inventory, the file \
                 `DIR.inventory` beside it (see `strata inventory`), if that exists and matches the layer. `off`: \
                 no. `use`: yes. `on`: yes, and layers in the stores of podman, buildah, CRI-O, Docker and \
                 containerd that have no inventory get one in the background, for the next mount. `make`: the same \
                 for all layers; use it only if the layers never change.",
            ),
            entry(
                &["xino"],
                "on|off|auto",
                "auto",
                "With layers on several file systems, the number of the file system becomes part of inode numbers. `on`: \
                 above bit 48. `auto`: the same, but numbers that are small enough stay within 32 bits, for 32-bit \
                 programs. `off`: never.",
            ),
            entry(
                &["userxattr"],
                SWITCH,
                "off for root",
                "Write marks as `user.overlay.*`, which needs no privilege. Without privilege there is no other \
                 way. The kernel follows no redirects in `user.*`: add `redirect_dir=off` if it will use the upper \
                 too.",
            ),
            entry(
                &["volatile"],
                SWITCH,
                "off",
                "Nothing is flushed to the disk before the unmount. After a crash of the machine, the upper may be damaged, \
                 and further mounts of it are refused.",
            ),
            entry(&["fsync"], "0|1", "1", "`0`: fsync of files is answered but has no effect."),
            entry(&["noacl", "acl"], "", "acl", "POSIX access control lists are neither shown nor kept."),
            entry(&["noxattrs"], SWITCH, "off", "No extended attributes are shown or kept, apart from our own marks."),
            entry(&["static_nlink"], SWITCH, "off", "All files show a link count of 1."),
            entry(
                &["writeback"],
                SWITCH,
                "off",
                "The kernel combines small writes and sends them later. Excludes passthrough.",
            ),
            entry(
                &["timeout"],
                "SECONDS",
                "for ever",
                "How long the kernel and the driver trust names and attributes of lower layers. Needed only if \
                 layers change while they are mounted. Inventories are not used then, and opening a lower file \
                 drops its cached pages.",
            ),
            entry(
                &["size"],
                "BYTES",
                "no limit",
                "How much the upper may hold: bytes, or a number with `K`, `M`, `G` or `T`. The driver counts what `du` shows \
                 of the upper: when it mounts, and then with every change. What would exceed the limit gives ENOSPC; `df` \
                 shows the limit and what is left. Files of the upper are not passed through then.",
            ),
            entry(
                &["passthrough"],
                "off|upper|programs|all",
                "programs",
                "Which files the kernel reads and writes without asking the driver (Linux 6.9 and later, for root). \
                 `off`: none. `upper`: files in the upper, and all files of a mount without an upper. `programs`: also \
                 ELF files (programs and shared libraries), executed files and modules of interpreters (`.py`, `.pm`, `.js`, …) of lower layers, so that all mounts of a \
                 layer share one copy of them in memory. `all`: all files of lower layers. A process that has such a \
                 lower file open when it is first changed keeps reading the old content.",
            ),
        ],
    },
    Group {
        title: "Ownership",
        entries: &[
            entry(
                &["squash_to_root"],
                SWITCH,
                "off",
                "All files show as owned by root, unless the next two options say otherwise.",
            ),
            entry(&["squash_to_uid"], "ID", "", "All files show as owned by this user."),
            entry(&["squash_to_gid"], "ID", "", "All files show as owned by this group."),
            entry(
                &["uidmapping"],
                "ON-DISK:SHOWN:COUNT[:…]",
                "",
                "Users whose numbers differ on disk and in the mount. Others show as the overflow user.",
            ),
            entry(&["gidmapping"], "ON-DISK:SHOWN:COUNT[:…]", "", "The same for groups."),
            entry(
                &["xattr_permissions"],
                "0|1|2",
                "by the layers",
                "Where owner, mode and device number are kept: `0` in the inode, `1` in \
                 `security.fuseoverlayfs.override_stat`, `2` in `user.containers.override_stat`, so that an \
                 unprivileged driver can store any owner. POSIX ACLs are off then. Without the option, an \
                 attribute of a layer's root decides; without that, it is `0`.",
            ),
        ],
    },
    Group {
        title: "Mount",
        entries: &[
            entry(&["allow_other"], "", "on for root", "Every user may use the mount, under the files' permissions."),
            entry(&["allow_root"], "", "", "Root may use it too."),
            entry(&["default_permissions"], "", "always on", "The kernel checks permissions."),
            entry(&["fsname"], "NAME", "stratafs", "The source that `findmnt` shows."),
            entry(&["subtype"], "NAME", "stratafs", "The mount's type is `fuse.NAME`."),
            entry(&["ro", "rw"], "", "rw with `upperdir`", "Read-only or writable."),
            entry(
                &["suid", "nosuid"],
                "",
                "suid for root",
                "Set-user-id bits and file capabilities have an effect \
             or not.",
            ),
            entry(&["dev", "nodev"], "", "dev for root", "Device files work or not."),
            entry(&["exec", "noexec"], "", "exec", "Programs can be run or not."),
            entry(&["atime", "noatime", "relatime"], "", "atime", "Access times are updated or not."),
            entry(&["sync", "async"], "", "async", "Every write waits for the disk or not."),
            entry(&["dirsync"], "", "", "Every change of a directory waits for the disk."),
            entry(
                &["remount"],
                "",
                "",
                "Nothing is mounted: changes these flags (`ro`, `suid`, `dev`, `exec`, `atime`, `sync` and their \
                 opposites) of the mount that is at MOUNTPOINT. Other options are ignored.",
            ),
            entry(
                &["context", "fscontext", "defcontext", "rootcontext"],
                "\"CONTEXT\"",
                "",
                "Labels of SELinux, for the kernel; quotes protect commas.",
            ),
            entry(&["threads"], "N", "by processors", "At most this many threads answer requests (1 to 1024)."),
            entry(&["auto_unmount"], "", "", "A second process unmounts if the driver is killed."),
            entry(
                &["transport"],
                "auto|ring|device",
                "auto",
                "How requests reach the driver. `ring`: through rings of io_uring, on the processor where they are \
                 made, which is faster; needs Linux 6.14 and `Y` in `/sys/module/fuse/parameters/enable_uring`. \
                 `device`: through `/dev/fuse`. `auto`: rings if the kernel has them and there are at most 32 \
                 processors, otherwise the device.",
            ),
            entry(&["debug"], "", "", "Stay in the foreground and log every request."),
        ],
    },
];

/// All entries in order.
pub(super) fn entries() -> impl Iterator<Item = &'static Entry> {
    GROUPS.iter().flat_map(|group| group.entries)
}

/// True if `name` is an option.
pub(super) fn is_known(name: &[u8]) -> bool {
    entries().flat_map(|entry| entry.names).any(|known| known.as_bytes() == name)
}

/// The option that `name` may be a misspelling of: at most a third of its letters differ, and at most two.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let distance = |known: &&&'static str| strsim::damerau_levenshtein(name, known);
    let nearest = entries().flat_map(|entry| entry.names).min_by_key(distance)?;
    let letters = distance(&nearest);
    (letters <= 2 && letters * 3 <= name.len()).then_some(*nearest)
}

impl Entry {
    /// `name=VALUE`, `name[=on|off]`, `name, noname`.
    pub(super) fn usage(&self) -> String {
        let assigned = match self.value.strip_prefix('[') {
            _ if self.value.is_empty() => String::new(),
            Some(optional) if self.value == SWITCH => format!("[={optional}"),
            _ => format!("={}", self.value),
        };
        self.names.iter().map(|name| format!("{name}{assigned}")).collect::<Vec<_>>().join(", ")
    }
}
