//! `-o remount`: changes of an existing mount.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::value::{self, Word};

/// Flags of the mount to change; `None` leaves one unchanged.
///
/// All other options are ignored, as in the kernel's overlayfs (`ovl_parse_param`): `mount(8)` passes all options of
/// the mount and of `fstab(5)`, and the union cannot be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remount {
    /// `ro`, `rw`
    pub read_only: Option<bool>,
    /// `suid`, `nosuid`
    pub suid: Option<bool>,
    /// `dev`, `nodev`
    pub dev: Option<bool>,
    /// `exec`, `noexec`
    pub exec: Option<bool>,
    /// `atime` and `relatime`, or `noatime`
    pub atime: Option<bool>,
    /// `sync`, `async`
    pub sync: Option<bool>,
}

impl Remount {
    /// Parses the option strings of a command line; `None` if they do not ask for a remount.
    pub fn parse<S: AsRef<OsStr>>(groups: impl IntoIterator<Item = S>) -> Option<Self> {
        let mut asked = false;
        let mut change = Self::default();
        for group in groups {
            for piece in value::split(group.as_ref().as_bytes(), b',') {
                asked |= piece == b"remount";
                change.set(&Word::new(piece));
            }
        }
        asked.then_some(change)
    }

    fn set(&mut self, word: &Word<'_>) {
        let (flag, on) = match word.name {
            b"ro" => (&mut self.read_only, true),
            b"rw" => (&mut self.read_only, false),
            b"suid" => (&mut self.suid, true),
            b"nosuid" => (&mut self.suid, false),
            b"dev" => (&mut self.dev, true),
            b"nodev" => (&mut self.dev, false),
            b"exec" => (&mut self.exec, true),
            b"noexec" => (&mut self.exec, false),
            b"atime" | b"relatime" => (&mut self.atime, true),
            b"noatime" => (&mut self.atime, false),
            b"sync" => (&mut self.sync, true),
            b"async" => (&mut self.sync, false),
            _ => return,
        };
        *flag = Some(on);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flags_are_taken() {
        let none: Option<Remount> = Remount::parse(["lowerdir=/l,ro"]);
        assert_eq!(none, None);
        assert_eq!(Remount::parse(["remount"]), Some(Remount::default()));
        let change =
            Remount::parse(["ro,nosuid,lowerdir=\"a,rw\",user_id=0,allow_other,nonsense", "remount,noatime,suid"]);
        let expected = Remount { read_only: Some(true), suid: Some(true), atime: Some(false), ..Remount::default() };
        assert_eq!(change, Some(expected));
    }
}
