//! The platform of an image, and the choice between images for several platforms. The rules are those of containerd's
//! `platforms` package (`Normalize`, `Only`), which docker follows:
//!
//! - Names have a normal form: `x86_64` is `amd64`, `aarch64` is `arm64`, `armhf` is `arm/v7`, `i386` is `386`;
//!   `arm` alone is `arm/v7`, `arm64/v8` is `arm64`, `amd64/v1` is `amd64`. Upper case counts as lower case.
//! - A processor runs images of its own variant and of all lower ones, the closest first: `arm/v7` takes `v6` before
//!   `v5`, `amd64/v3` takes `v2` before plain `amd64`. Plain `amd64` never takes `v2` or `v3`.
//! - The 32-bit sibling comes last: `386` for `amd64`, `arm` for `arm64`.
//! - An image without a named variant may be for any: it is taken if nothing fits better.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::spec::{Descriptor, Index, Platform};
use super::{ImageError, Result};

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        let machine = rustix::system::uname();
        Self::of_machine(std::env::consts::ARCH, &machine.machine().to_string_lossy())
    }

    /// The platform of a program built for `architecture` on a machine that reports `machine`.
    fn of_machine(architecture: &str, machine: &str) -> Self {
        match architecture {
            "x86" => Self::new("386", None),
            "powerpc64" => Self::new("ppc64le", None),
            "arm" => {
                let variant =
                    ["v5", "v6", "v7"].into_iter().find(|variant| machine.starts_with(&format!("arm{variant}")));
                Self::new("arm", Some(variant.unwrap_or("v8")).filter(|_| machine != "arm"))
            }
            other => Self::new(other, None),
        }
        .normalized()
    }

    fn new(architecture: &str, variant: Option<&str>) -> Self {
        let variant = variant.map(str::to_owned);
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant, unknown: Map::new() }
    }

    /// The platform with names in normal form.
    #[must_use]
    pub(crate) fn normalized(&self) -> Self {
        let os = match self.os.to_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        let variant = self.variant.as_deref().unwrap_or_default().to_lowercase();
        let architecture = self.architecture.to_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "" | "v1" | "1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("i386" | "i486" | "i586" | "i686" | "x86" | "386", _) => ("386", ""),
            ("aarch64" | "arm64", "" | "v8" | "8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "v9.0") => ("arm64", "v9"),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            ("ppc64el", variant) => ("ppc64le", variant),
            ("mips64el", variant) => ("mips64le", variant),
            ("mipsel", variant) => ("mipsle", variant),
            ("loongarch64", variant) => ("loong64", variant),
            (architecture, variant) => (architecture, variant),
        };
        let variant = Some(variant.to_owned()).filter(|variant| !variant.is_empty());
        Self { architecture: architecture.to_owned(), os, variant, unknown: self.unknown.clone() }
    }

    /// True if all fields are empty, as in indexes and configs of some tools.
    pub(crate) fn is_unnamed(&self) -> bool {
        self.os.is_empty() && self.architecture.is_empty()
    }

    /// How well an image for `self` runs on `wanted`: smaller is better; `None` if it does not run.
    fn rank(&self, wanted: &Self) -> Option<usize> {
        let (ours, wanted) = (self.normalized(), wanted.normalized());
        if ours.os != wanted.os {
            return None;
        }
        let order = wanted.order();
        let is = |(architecture, variant): &(&str, String)| {
            *architecture == ours.architecture && *variant == ours.variant.clone().unwrap_or_default()
        };
        let names_none = self.variant.as_deref().unwrap_or_default().is_empty();
        let any = (names_none && ours.architecture == wanted.architecture).then_some(order.len());
        order.iter().position(is).or(any)
    }

    /// What a processor can run, the best first. In normal form.
    fn order(&self) -> Vec<(&str, String)> {
        let variant = self.variant.clone().unwrap_or_default();
        let own = self.architecture.as_str();
        let below = |top: u32, least: u32, name: &dyn Fn(u32) -> String| -> Vec<(&str, String)> {
            (least..=top).rev().map(|number| (own, name(number))).collect()
        };
        let number = variant.strip_prefix('v').and_then(|number| number.parse::<u32>().ok());
        match own {
            "amd64" => {
                let mut order = number.map_or(vec![], |top| below(top.min(9), 2, &|number| format!("v{number}")));
                if number.is_none() && !variant.is_empty() {
                    order.push((own, variant));
                }
                order.extend([(own, String::new()), ("386", String::new())]);
                order
            }
            "arm" => match number {
                Some(top) => below(top.min(9), 5.min(top), &|number| format!("v{number}")),
                None => vec![(own, variant)],
            },
            "arm64" => {
                let mut order = arm64_order(own, &variant);
                order.push((own, String::new()));
                order.extend((5..=8).rev().map(|number| ("arm", format!("v{number}"))));
                order
            }
            _ => vec![(own, variant)],
        }
    }

    /// True if an image for `self` runs on `wanted`.
    pub fn serves(&self, wanted: &Self) -> bool {
        self.rank(wanted).is_some()
    }

    /// Checks that a single image may be used on `wanted`; an image that names no platform may.
    ///
    /// # Errors
    /// The reason, with the option that overrides it.
    pub(crate) fn check_serves(&self, wanted: &Self) -> Result<(), String> {
        if self.is_unnamed() || self.serves(wanted) {
            return Ok(());
        }
        let own = self.normalized();
        Err(format!("is for {own}, not for {}; --platform {own} takes it all the same", wanted.normalized()))
    }

    /// Checks that this machine runs the programs of an image for `self`: natively, or with an interpreter
    /// registered with the kernel (binfmt_misc) that works in containers.
    ///
    /// # Errors
    /// The reason why it does not.
    pub fn check_runs_here(&self) -> Result<(), String> {
        self.check_runs(&Self::host(), Path::new("/proc/sys/fs/binfmt_misc"))
    }

    fn check_runs(&self, host: &Self, interpreters: &Path) -> Result<(), String> {
        if self.is_unnamed() || self.serves(host) {
            return Ok(());
        }
        let own = self.normalized();
        if own.os != host.os {
            return Err(format!("is for {own}; this machine runs {host}"));
        }
        let head = elf_head(&own.architecture);
        let found = head.and_then(|head| {
            let entries = fs::read_dir(interpreters).ok()?;
            let texts = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
            let mut fitting: Vec<String> = texts.filter(|text| interprets(text, &head)).collect();
            // Interpreters with the flag `F` come first.
            fitting.sort_by_key(|text| !is_fixed(text));
            fitting.into_iter().next()
        });
        match found {
            Some(text) if is_fixed(&text) => Ok(()),
            Some(_) => Err(format!(
                "is for {own}; this machine runs {host}, and the interpreter that binfmt_misc has for it does not reach \
                 into containers (it is registered without the flag F)"
            )),
            None => Err(format!(
                "is for {own}; this machine runs {host}, and has no interpreter for it (qemu-user-static with \
                 binfmt_misc would be one)"
            )),
        }
    }
}

/// `v9.2` includes all of `v8.7`.
fn arm64_order<'a>(own: &'a str, variant: &str) -> Vec<(&'a str, String)> {
    let parts = |text: &str| -> Option<(u32, u32)> {
        let text = text.strip_prefix('v')?;
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let name = |major: u32, minor: u32| match (major, minor) {
        (9, 0) => "v9".to_owned(),
        (major, minor) => format!("v{major}.{minor}"),
    };
    match parts(variant) {
        Some((9, minor)) => {
            let minor = minor.min(9);
            let nines = (0..=minor).rev().map(|minor| (own, name(9, minor)));
            nines.chain((1..=(minor + 5).min(9)).rev().map(|minor| (own, name(8, minor)))).collect()
        }
        Some((8, minor)) => (1..=minor.min(9)).rev().map(|minor| (own, name(8, minor))).collect(),
        _ if variant.is_empty() => vec![],
        _ => vec![(own, variant.to_owned())],
    }
}

impl Index {
    /// The entry that runs best on a platform; if entries name no platform, the first one.
    pub(crate) fn choose(&self, wanted: &Platform) -> Option<&Descriptor> {
        let candidates = || self.descriptors().filter(|entry| !entry.is_attestation());
        let named = |entry: &Descriptor| entry.platform.clone().filter(|platform| !platform.is_unnamed());
        let ranked = candidates().filter_map(|entry| Some((named(entry)?.rank(wanted)?, entry)));
        let best = ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry);
        let may_be_image = |entry: &&Descriptor| {
            let kind = entry.unknown.get("artifactType").and_then(Value::as_str).unwrap_or_default();
            (entry.is_manifest() || entry.is_index()) && kind.is_empty()
        };
        best.or_else(|| candidates().filter(may_be_image).find(|entry| named(entry).is_none()))
    }

    /// The platforms that it has images for.
    pub fn platforms(&self) -> impl Iterator<Item = &Platform> {
        self.descriptors().filter(|entry| !entry.is_attestation()).filter_map(|entry| entry.platform.as_ref())
    }
}

/// The beginning of a program for an architecture, as binfmt_misc sees it; `None` for an unknown architecture.
fn elf_head(architecture: &str) -> Option<[u8; 20]> {
    const LITTLE: u8 = 1;
    const BIG: u8 = 2;
    let (bits, order, machine): (u8, u8, u16) = match architecture {
        "386" => (1, LITTLE, 3),
        "amd64" => (2, LITTLE, 62),
        "arm" => (1, LITTLE, 40),
        "arm64" => (2, LITTLE, 183),
        "loong64" => (2, LITTLE, 258),
        "mips64le" => (2, LITTLE, 8),
        "ppc64" => (2, BIG, 21),
        "ppc64le" => (2, LITTLE, 21),
        "riscv64" => (2, LITTLE, 243),
        "s390x" => (2, BIG, 22),
        _ => return None,
    };
    let two = |number: u16| if order == LITTLE { number.to_le_bytes() } else { number.to_be_bytes() };
    let mut head = [0; 20];
    head[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', bits, order, 1]);
    // ET_EXEC
    head[16..18].copy_from_slice(&two(2));
    head[18..].copy_from_slice(&two(machine));
    Some(head)
}

/// True if an entry of binfmt_misc (`Documentation/admin-guide/binfmt-misc.rst`) is enabled and accepts such a program.
fn interprets(entry: &str, head: &[u8]) -> bool {
    let value = |name: &str| entry.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let bytes = |text: &str| -> Option<Vec<u8>> {
        let digits: Vec<u8> = text
            .bytes()
            .map(|digit| char::from(digit).to_digit(16))
            .collect::<Option<Vec<u32>>>()?
            .into_iter()
            .filter_map(|digit| u8::try_from(digit).ok())
            .collect();
        Some(digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
    };
    let Some(magic) = value("magic ").and_then(bytes) else { return false };
    let mask = value("mask ").and_then(bytes).unwrap_or_else(|| vec![0xff; magic.len()]);
    let offset = value("offset ").and_then(|offset| offset.parse().ok()).unwrap_or(0);
    let Some(part) = head.get(offset..offset + magic.len()) else { return false };
    let fits = part.iter().zip(&magic).zip(&mask).all(|((byte, magic), mask)| byte & mask == magic & mask);
    entry.lines().next() == Some("enabled") && fits
}

/// True for an interpreter that was opened at its registration, so that containers need not have it.
fn is_fixed(entry: &str) -> bool {
    entry.lines().any(|line| line.strip_prefix("flags:").is_some_and(|flags| flags.contains('F')))
}

/// `os/architecture[/variant]`
impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// In normal form. A single word is the name of an operating system (`linux`) or of an architecture.
impl std::str::FromStr for Platform {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self> {
        let malformed = || ImageError::malformed(text, "a platform reads OS/ARCHITECTURE[/VARIANT]");
        let parts: Vec<&str> = text.split('/').collect();
        let is_word =
            |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !parts.iter().all(is_word) {
            return Err(malformed());
        }
        const SYSTEMS: [&str; 6] = ["linux", "windows", "darwin", "macos", "freebsd", "wasi"];
        let platform = match parts.as_slice() {
            [os] if SYSTEMS.contains(&os.to_lowercase().as_str()) => Self { os: (*os).to_owned(), ..Self::host() },
            [architecture] => Self::new(architecture, None),
            [os, architecture] => Self { os: (*os).to_owned(), ..Self::new(architecture, None) },
            [os, architecture, variant] => Self { os: (*os).to_owned(), ..Self::new(architecture, Some(variant)) },
            _ => return Err(malformed()),
        };
        Ok(platform.normalized())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::Digest;
    use crate::image::spec::MANIFEST;

    #[test]
    fn normal_forms() {
        for (text, normal) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/X86_64", "linux/amd64"),
            ("linux/x86-64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/v8.2", "linux/arm64/v8.2"),
            ("armhf", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("armel", "linux/arm/v6"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/arm/V6", "linux/arm/v6"),
            ("i386", "linux/386"),
            ("linux/i686", "linux/386"),
            ("x86", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
            ("riscv64", "linux/riscv64"),
            ("ppc64el", "linux/ppc64le"),
        ] {
            assert_eq!(text.parse::<Platform>().expect(text).to_string(), normal, "{text}");
        }
        for bad in ["", "/", "linux/", "/amd64", "a/b/c/d", "linux/a b", "linux/\u{1b}"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
        let host = Platform::host();
        assert_eq!("linux".parse::<Platform>().expect("linux"), host);
    }

    #[test]
    fn this_machine() {
        for (architecture, machine, platform) in [
            ("x86_64", "x86_64", "linux/amd64"),
            ("x86", "x86_64", "linux/386"),
            ("aarch64", "aarch64", "linux/arm64"),
            ("arm", "armv6l", "linux/arm/v6"),
            ("arm", "armv7l", "linux/arm/v7"),
            ("arm", "aarch64", "linux/arm/v8"),
            ("riscv64", "riscv64", "linux/riscv64"),
            ("powerpc64", "ppc64le", "linux/ppc64le"),
        ] {
            assert_eq!(Platform::of_machine(architecture, machine).to_string(), platform);
        }
    }

    /// An index with an entry for each platform; `-` stands for an entry without one.
    fn index(platforms: &[&str]) -> Index {
        let entry = |text: &&str| {
            let mut entry = Descriptor::of(MANIFEST, text.as_bytes());
            let parts: Vec<&str> = text.split('/').collect();
            entry.platform = (*text != "-").then(|| Platform {
                os: parts[0].to_owned(),
                architecture: parts[1].to_owned(),
                variant: parts.get(2).map(|variant| (*variant).to_owned()),
                unknown: Map::new(),
            });
            entry
        };
        Index::new(platforms.iter().map(entry).collect())
    }

    #[test]
    fn choices() {
        for (has, wanted, chosen) in [
            (&["linux/arm/v5", "linux/arm/v6", "linux/arm64"][..], "linux/arm/v7", Some("linux/arm/v6")),
            (&["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm", Some("linux/arm/v7")),
            (&["linux/arm/v5", "linux/arm/v6"], "linux/arm", Some("linux/arm/v6")),
            (&["linux/arm/v5", "linux/arm/v6"], "armhf", Some("linux/arm/v6")),
            (&["linux/arm/v7", "linux/arm/v8"], "linux/arm/v6", None),
            (&["linux/arm/v7", "linux/arm/v5"], "linux/arm/v6", Some("linux/arm/v5")),
            (&["linux/arm"], "linux/arm/v7", Some("linux/arm")),
            (&["linux/arm"], "linux/arm/v6", Some("linux/arm")),
            (&["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"], "linux/amd64", Some("linux/amd64")),
            (&["linux/amd64/v3", "linux/amd64/v2"], "linux/amd64", None),
            (&["linux/amd64", "linux/amd64/v2", "linux/amd64/v3"], "linux/amd64/v3", Some("linux/amd64/v3")),
            (&["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", Some("linux/amd64/v2")),
            (&["linux/amd64/v4", "linux/amd64"], "linux/amd64/v3", Some("linux/amd64")),
            (&["linux/amd64/v1"], "linux/amd64", Some("linux/amd64/v1")),
            (&["linux/x86_64"], "linux/amd64", Some("linux/x86_64")),
            (&["linux/386", "linux/amd64"], "linux/amd64", Some("linux/amd64")),
            (&["linux/386", "linux/arm64"], "linux/amd64", Some("linux/386")),
            (&["linux/amd64"], "linux/386", None),
            (&["linux/arm/v7", "linux/arm64/v8"], "linux/arm64", Some("linux/arm64/v8")),
            (&["linux/arm64"], "linux/arm64/v8", Some("linux/arm64")),
            (&["linux/arm64/v8.2", "linux/arm64"], "linux/arm64", Some("linux/arm64")),
            (&["linux/arm64/v8.2", "linux/arm64"], "linux/arm64/v9", Some("linux/arm64/v8.2")),
            (&["linux/arm/v6", "linux/arm/v7"], "linux/arm64", Some("linux/arm/v7")),
            (&["Linux/AMD64"], "linux/amd64", Some("Linux/AMD64")),
            (&["windows/amd64", "linux/amd64"], "linux/amd64", Some("linux/amd64")),
            (&["windows/amd64"], "linux/amd64", None),
            (&["-", "linux/amd64"], "linux/amd64", Some("linux/amd64")),
            (&["linux/arm64", "-"], "linux/amd64", Some("-")),
            (&["linux/s390x"], "linux/amd64", None),
            (&["unknown/unknown", "linux/amd64"], "linux/amd64", Some("linux/amd64")),
            (&["linux/riscv64"], "linux/riscv64", Some("linux/riscv64")),
        ] {
            let index = index(has);
            let found = index.choose(&wanted.parse().expect(wanted)).map(|entry| entry.digest);
            assert_eq!(found, chosen.map(|text| Digest::of(text.as_bytes())), "{has:?} {wanted}");
        }
    }

    #[test]
    fn interpreters() {
        let dir = tempfile::tempdir().expect("tempdir");
        let host: Platform = "linux/amd64".parse().expect("host");
        let arm: Platform = "linux/arm64".parse().expect("arm64");
        let runs = |platform: &Platform| platform.check_runs(&host, dir.path());
        assert!(runs(&host).is_ok());
        assert!(runs(&"linux/386".parse().expect("386")).is_ok());
        assert!(runs(&arm).expect_err("none").contains("no interpreter"));
        assert!(runs(&"windows/amd64".parse().expect("windows")).expect_err("os").contains("windows/amd64"));
        let magic = "7f454c460201010000000000000000000200b700";
        let mask = "ffffffffffffff00fffffffffffffffffeffffff";
        let write = |state: &str, flags: &str| {
            let text = format!(
                "{state}\ninterpreter /usr/bin/qemu-aarch64\nflags: {flags}\noffset 0\nmagic {magic}\nmask {mask}\n"
            );
            fs::write(dir.path().join("qemu-aarch64"), text).expect("write");
        };
        fs::write(dir.path().join("status"), "enabled\n").expect("write");
        write("enabled", "OCF");
        assert_eq!(runs(&arm), Ok(()));
        assert!(runs(&"linux/s390x".parse().expect("s390x")).is_err());
        write("enabled", "");
        assert!(runs(&arm).expect_err("no F").contains("without the flag F"));
        write("disabled", "F");
        assert!(runs(&arm).is_err());
    }
}
