//! The user of a container. Names are looked up in the image's own `/etc/passwd` and `/etc/group`. These are
//! opened so that no symbolic link leads out of the image and a fifo does not block.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags, fstat};

use crate::confined;
use crate::image::{ImageError, Result};

/// Larger files are truncated.
const TABLE_LIMIT: u64 = 4 << 20;

/// The largest id that runc accepts.
const MOST_ID: u32 = i32::MAX as u32;

/// The ids of a container's process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub additional_gids: Vec<u32>,
    /// The home directory, or `/`.
    pub home: String,
}

/// Resolves `USER[:GROUP]`, names or numbers; empty means root.
///
/// # Errors
/// When a name is missing in the image's tables.
pub(super) fn resolve(root: impl AsFd, user: &str) -> Result<Identity> {
    let passwd = read_table(&root, "etc/passwd");
    let group = read_table(&root, "etc/group");
    resolve_in(&passwd, &group, user)
}

fn resolve_in(passwd: &str, group: &str, user: &str) -> Result<Identity> {
    let (user, wanted_group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
    // Like runc, treats an empty part as absent.
    let wanted_group = wanted_group.filter(|group| !group.is_empty());
    let user = if user.is_empty() { "0" } else { user };
    let number = id_of(user)?;
    let entry = lines(passwd).find(|fields| match number {
        Some(number) => fields.get(2).and_then(|uid| uid.parse().ok()) == Some(number),
        None => fields.first() == Some(&user),
    });
    let field = |at: usize| entry.as_ref().and_then(|fields| fields.get(at)).copied();
    let uid = number.or_else(|| field(2)?.parse().ok());
    let uid = uid.ok_or_else(|| ImageError::malformed(user, "no such user in the image's /etc/passwd"))?;
    let home = field(5).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    if let Some(wanted) = wanted_group {
        let named = || lines(group).find(|fields| fields.first() == Some(&wanted))?.get(2)?.parse().ok();
        let gid = id_of(wanted)?.or_else(named);
        let gid = gid.ok_or_else(|| ImageError::malformed(wanted, "no such group in the image's /etc/group"))?;
        return Ok(Identity { uid, gid, additional_gids: Vec::new(), home });
    }
    let gid = field(3).and_then(|gid| gid.parse().ok()).unwrap_or(0);
    let name = field(0);
    let member = |fields: &Vec<&str>| {
        let gid = fields.get(2)?.parse().ok()?;
        fields.get(3)?.split(',').any(|member| Some(member) == name).then_some(gid)
    };
    let mut additional_gids: Vec<u32> =
        lines(group).filter_map(|fields| member(&fields)).filter(|&other| other != gid).collect();
    additional_gids.sort_unstable();
    additional_gids.dedup();
    Ok(Identity { uid, gid, additional_gids, home })
}

/// The id, if the text is a number; `None` if it is a name.
fn id_of(text: &str) -> Result<Option<u32>> {
    match text.parse::<i64>() {
        Ok(number) => match u32::try_from(number).ok().filter(|id| *id <= MOST_ID) {
            Some(id) => Ok(Some(id)),
            None => Err(ImageError::malformed(text, format!("not an id from 0 to {MOST_ID}"))),
        },
        Err(_) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            Err(ImageError::malformed(text, format!("not an id from 0 to {MOST_ID}")))
        }
        Err(_) => Ok(None),
    }
}

fn lines(table: &str) -> impl Iterator<Item = Vec<&str>> {
    table.lines().map(|line| line.split(':').collect())
}

/// Empty if the file is missing or not a regular file: then only numbers work.
fn read_table(root: impl AsFd, path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(file) = confined::in_root(root.as_fd(), path.as_bytes(), flags) else { return String::new() };
    let is_file = fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    let mut bytes = Vec::new();
    if !is_file || File::from(file).take(TABLE_LIMIT).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1001::/home/me:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nus:x:1001:\naudio:x:29:you,me\nvideo:x:44:me\n";

    #[test]
    fn users_and_groups() {
        let identity = |uid, gid, groups: &[u32], home: &str| Identity {
            uid,
            gid,
            additional_gids: groups.to_vec(),
            home: home.to_owned(),
        };
        let table = [
            ("", identity(0, 0, &[], "/root")),
            ("me", identity(1000, 1001, &[29, 44], "/home/me")),
            ("1000", identity(1000, 1001, &[29, 44], "/home/me")),
            ("me:audio", identity(1000, 29, &[], "/home/me")),
            ("5000", identity(5000, 0, &[], "/")),
            ("5000:7", identity(5000, 7, &[], "/")),
            ("me:", identity(1000, 1001, &[29, 44], "/home/me")),
            ("1000:", identity(1000, 1001, &[29, 44], "/home/me")),
            (":audio", identity(0, 29, &[], "/root")),
            (":", identity(0, 0, &[], "/root")),
            (":7", identity(0, 7, &[], "/root")),
            ("2147483647", identity(2_147_483_647, 0, &[], "/")),
        ];
        for (user, expected) in table {
            assert_eq!(resolve_in(PASSWD, GROUP, user).expect(user), expected, "{user}");
        }
        for bad in ["nobody", "me:nobody", "broken", ":x", "-1", "2147483648", "99999999999999999999", "0:-1", "0x1"] {
            assert!(resolve_in(PASSWD, GROUP, bad).is_err(), "{bad}");
        }
    }
}
