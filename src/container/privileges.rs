//! Privileges of a container's processes: capabilities, and system calls (seccomp(2)).
//!
//! The default filter is our own. It allows every system call of Linux (`syscalls.txt`), except those that docker's
//! documentation lists because they reach beyond the container or are of no use to ordinary programs. With the matching
//! capability, a container may use those too. Unknown calls fail with ENOSYS, as on an older kernel.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::users::Identity;
use crate::image::{ImageError, IoContext, Result, spec};

/// The capabilities that docker leaves to root in a container.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// capabilities(7), in the order of their numbers.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Calls that need one of these capabilities. Calls with an empty list are always refused.
const GUARDED: [(&[&str], &[&str]); 14] = [
    (
        &[],
        &[
            "_sysctl",
            "add_key",
            "afs_syscall",
            "break",
            "create_module",
            "get_kernel_syms",
            "getpmsg",
            "gtty",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "keyctl",
            "lock",
            "mpx",
            "nfsservctl",
            "prof",
            "profil",
            "putpmsg",
            "query_module",
            "request_key",
            "security",
            "stty",
            "sysfs",
            "tuxcall",
            "ulimit",
            "uselib",
            "userfaultfd",
            "ustat",
            "vm86",
            "vm86old",
            "vserver",
        ],
    ),
    (
        &["SYS_ADMIN"],
        &[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "swapoff",
            "swapon",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (&["SYS_ADMIN", "BPF"], &["bpf"]),
    (&["SYS_ADMIN", "PERFMON"], &["perf_event_open"]),
    (&["SYS_ADMIN", "SYSLOG"], &["syslog"]),
    (&["DAC_READ_SEARCH"], &["open_by_handle_at"]),
    (&["SYS_BOOT"], &["kexec_file_load", "kexec_load", "reboot"]),
    (&["SYS_MODULE"], &["delete_module", "finit_module", "init_module"]),
    (
        &["SYS_NICE"],
        &["get_mempolicy", "mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"],
    ),
    (&["SYS_PACCT"], &["acct"]),
    (&["SYS_PTRACE"], &["kcmp", "pidfd_getfd", "process_madvise"]),
    (&["SYS_RAWIO"], &["ioperm", "iopl"]),
    (&["SYS_TIME"], &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (&["SYS_TTY_CONFIG"], &["vhangup"]),
];

/// All namespace flags of clone(2).
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// The user's choice of privileges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Privileges {
    /// Capabilities in addition to the default ones; or `ALL`.
    pub cap_add: Vec<String>,
    /// Default capabilities that are removed; or `ALL`.
    pub cap_drop: Vec<String>,
    /// All privileges of this process.
    pub privileged: bool,
    /// Executing a program gives no further privileges.
    pub no_new_privileges: bool,
    /// The file of another seccomp profile (in OCI's format), or `unconfined`; `None` for the default one.
    pub seccomp: Option<String>,
}

impl Privileges {
    /// The names of its capabilities without `CAP_`, in order.
    ///
    /// # Errors
    /// When one is unknown.
    pub(super) fn capabilities(&self) -> Result<Vec<&'static str>> {
        // A process can only pass on capabilities that it has.
        let bounding = bounding();
        let all_held =
            || ALL.into_iter().enumerate().filter(|(number, _)| bounding >> number & 1 == 1).map(|(_, name)| name);
        if self.privileged {
            return Ok(all_held().collect());
        }
        let named = |flag: &str, words: &[String]| -> Result<BTreeSet<&'static str>> {
            let mut found = BTreeSet::new();
            for word in words {
                let upper = word.to_ascii_uppercase();
                let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
                match ALL.iter().find(|known| **known == name) {
                    Some(known) => drop(found.insert(*known)),
                    None if name == "ALL" => found.extend(all_held()),
                    None => {
                        let reason = "no such capability (capabilities(7) lists them)";
                        return Err(ImageError::malformed(format!("{flag} {word}"), reason));
                    }
                }
            }
            Ok(found)
        };
        let (added, dropped) = (named("--cap-add", &self.cap_add)?, named("--cap-drop", &self.cap_drop)?);
        let all = |words: &[String]| words.iter().any(|word| word.eq_ignore_ascii_case("ALL"));
        // A capability that is named takes precedence over ALL.
        let has = |name: &&str| match (all(&self.cap_add), all(&self.cap_drop)) {
            (true, _) => added.contains(*name) && (!dropped.contains(*name) || all(&self.cap_drop)),
            (false, true) => added.contains(*name),
            (false, false) => added.contains(*name) || DEFAULT.contains(name) && !dropped.contains(*name),
        };
        Ok(ALL.into_iter().filter(has).collect())
    }

    /// Checks that all capabilities are known and that the seccomp profile can be read.
    ///
    /// # Errors
    /// Names the option and what is wrong with it.
    pub fn check(&self) -> Result<()> {
        self.capabilities()?;
        self.seccomp().map(drop)
    }

    /// `linux.seccomp` of an OCI runtime's configuration; `None` for no filter.
    ///
    /// # Errors
    /// When the user's profile cannot be read.
    pub(super) fn seccomp(&self) -> Result<Option<Value>> {
        match self.seccomp.as_deref() {
            _ if self.privileged => Ok(None),
            Some("unconfined") => Ok(None),
            None | Some("default" | "builtin") => Ok(Some(default_filter(&self.capabilities()?))),
            Some(file) => {
                let option = format!("--security-opt seccomp={file}");
                let bytes = std::fs::read(file).at(&option)?;
                spec::parse(&option, &bytes).map(Some)
            }
        }
    }

    /// Parses one `--security-opt`.
    ///
    /// # Errors
    /// When it is unknown.
    pub fn set(&mut self, option: &str) -> Result<()> {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => self.no_new_privileges = true,
            ("no-new-privileges", "false") => self.no_new_privileges = false,
            ("seccomp", profile) if !profile.is_empty() => self.seccomp = Some(profile.to_owned()),
            // No security module labels containers here, so there is nothing to do.
            ("label", "disable") | ("apparmor", "unconfined") => {}
            _ => {
                let known = "the options are no-new-privileges and seccomp=unconfined|FILE";
                return Err(ImageError::malformed(format!("--security-opt {option}"), known));
            }
        }
        Ok(())
    }
}

/// The capabilities that this process and its children may have, one bit for each (`CapBnd`, proc_pid_status(5)).
fn bounding() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(u64::MAX)
}

/// The capabilities of a process. Root has them; other users may gain them by executing programs that have them.
pub(super) fn of_process(identity: &Identity, capabilities: &[&str]) -> Value {
    let all: Vec<String> = capabilities.iter().map(|name| format!("CAP_{name}")).collect();
    let held: &[String] = if identity.uid == 0 { &all } else { &[] };
    json!({"bounding": all, "effective": held, "permitted": held})
}

fn default_filter(capabilities: &[&str]) -> Value {
    let is_allowed = |needed: &[&str]| needed.iter().any(|name| capabilities.contains(name));
    let mut refused: BTreeSet<&str> = BTreeSet::new();
    for (_, calls) in GUARDED.iter().filter(|(needed, _)| !is_allowed(needed)) {
        refused.extend(calls.iter());
    }
    let may_make_namespaces = capabilities.contains(&"SYS_ADMIN");
    let conditional = ["clone", "clone3", "personality", "socket"];
    let known = include_str!("syscalls.txt").lines();
    let allowed: Vec<&str> = known.filter(|name| !refused.contains(name) && !(conditional.contains(name))).collect();
    let refused: Vec<&str> = refused.into_iter().collect();
    let rule = |names: &[&str], action: &str, args: Value| json!({"names": names, "action": action, "args": args});
    let mut rules = vec![rule(&allowed, "SCMP_ACT_ALLOW", json!([]))];
    let mut refusal = rule(&refused, "SCMP_ACT_ERRNO", json!([]));
    refusal["errnoRet"] = json!(libc::EPERM);
    rules.push(refusal);
    if may_make_namespaces {
        rules.push(rule(&["clone", "clone3"], "SCMP_ACT_ALLOW", json!([])));
    } else {
        let none = json!([{"index": 0, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]);
        rules.push(rule(&["clone"], "SCMP_ACT_ALLOW", none));
        // The flags of clone3 are in memory, where a filter cannot look. The C library falls back to clone.
        let mut unknown = rule(&["clone3"], "SCMP_ACT_ERRNO", json!([]));
        unknown["errnoRet"] = json!(libc::ENOSYS);
        rules.push(unknown);
    }
    // Linux, 32 bits, Linux of another release, both; and the query for the present one.
    for persona in [0_u64, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        let is = json!([{"index": 0, "value": persona, "op": "SCMP_CMP_EQ"}]);
        rules.push(rule(&["personality"], "SCMP_ACT_ALLOW", is));
    }
    // Sockets between virtual machines and their host ignore namespaces.
    let not_vsock = json!([{"index": 0, "value": libc::AF_VSOCK, "op": "SCMP_CMP_NE"}]);
    rules.push(rule(&["socket"], "SCMP_ACT_ALLOW", not_vsock));
    let architectures: &[&str] = match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "riscv64" => &["SCMP_ARCH_RISCV64"],
        "s390x" => &["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
        "powerpc64" => &["SCMP_ARCH_PPC64LE"],
        _ => &[],
    };
    json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": libc::ENOSYS, "architectures": architectures,
        "syscalls": rules})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect();
        Privileges { cap_add: words(add), cap_drop: words(drop), ..Privileges::default() }
            .capabilities()
            .expect("known")
    }

    #[test]
    fn capabilities_as_docker_counts_them() {
        let mut default: Vec<&str> = with(&[], &[]);
        default.sort_unstable();
        let mut expected = DEFAULT.to_vec();
        expected.sort_unstable();
        assert_eq!(default, expected);
        assert_eq!(with(&[], &["all"]), [""; 0]);
        assert_eq!(with(&["CAP_NET_ADMIN"], &["ALL"]), ["NET_ADMIN"]);
        assert_eq!(with(&["ALL"], &[]).len(), (bounding() & ((1 << ALL.len()) - 1)).count_ones() as usize);
        assert!(!with(&["all"], &["sys_admin"]).contains(&"SYS_ADMIN"));
        assert!(!with(&[], &["chown"]).contains(&"CHOWN") && with(&["SYS_PTRACE"], &[]).contains(&"SYS_PTRACE"));
        let unknown = Privileges { cap_add: vec!["FLY".to_owned()], ..Privileges::default() };
        assert!(unknown.capabilities().is_err());
    }

    #[test]
    fn a_capability_brings_its_calls_back() {
        let names = |filter: &Value, rule: usize| -> Vec<String> {
            let names = filter["syscalls"][rule]["names"].as_array().expect("names");
            names.iter().map(|name| name.as_str().expect("a name").to_owned()).collect()
        };
        let (default, admin) = (default_filter(&DEFAULT), default_filter(&["SYS_ADMIN"]));
        for call in ["read", "openat2", "futex", "mmap2", "ptrace", "chroot", "statx", "rseq"] {
            assert!(names(&default, 0).contains(&call.to_owned()), "{call}");
        }
        for call in ["mount", "unshare", "bpf", "keyctl", "io_uring_setup", "reboot"] {
            let call = call.to_owned();
            assert!(!names(&default, 0).contains(&call) && names(&default, 1).contains(&call), "{call}");
        }
        assert!(names(&admin, 0).contains(&"mount".to_owned()) && !names(&admin, 0).contains(&"reboot".to_owned()));
        let known: BTreeSet<&str> = include_str!("syscalls.txt").lines().collect();
        for (_, calls) in GUARDED {
            assert!(calls.iter().all(|call| known.contains(call)), "{calls:?}");
        }
    }
}
