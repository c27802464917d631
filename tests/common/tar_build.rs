//! Builds tar archives block by block, good ones and bad ones.

#![allow(dead_code, reason = "each test binary uses some of it")]

/// One entry to build.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: Vec<u8>,
    pub flag: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: i64,
    pub link: Vec<u8>,
    pub content: Vec<u8>,
    /// The size field, if it is to be wrong.
    pub size: Option<u64>,
    pub device: (u32, u32),
    /// PAX records before it.
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
    pub gnu: bool,
}

pub fn spec(name: impl AsRef<[u8]>, flag: u8) -> Spec {
    Spec {
        name: name.as_ref().to_vec(),
        flag,
        mode: if flag == b'5' { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        mtime: 1_000_000_000,
        link: Vec::new(),
        content: Vec::new(),
        size: None,
        device: (0, 0),
        pax: Vec::new(),
        gnu: false,
    }
}

impl Spec {
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }
    pub fn mtime(mut self, mtime: i64) -> Self {
        self.mtime = mtime;
        self
    }
    pub fn link(mut self, link: impl AsRef<[u8]>) -> Self {
        self.link = link.as_ref().to_vec();
        self
    }
    pub fn content(mut self, content: impl AsRef<[u8]>) -> Self {
        self.content = content.as_ref().to_vec();
        self
    }
    pub fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }
    pub fn device(mut self, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        self
    }
    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }
    pub fn gnu(mut self) -> Self {
        self.gnu = true;
        self
    }

    /// The header block alone.
    pub fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let put = |block: &mut [u8; 512], at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(&mut block, 0, &self.name[..self.name.len().min(100)]);
        put(&mut block, 100, format!("{:07o}", self.mode).as_bytes());
        put(&mut block, 108, &number(self.uid as i64, 8));
        put(&mut block, 116, &number(self.gid as i64, 8));
        put(&mut block, 124, &number(self.size.unwrap_or(self.content.len() as u64) as i64, 12));
        put(&mut block, 136, &number(self.mtime, 12));
        block[156] = self.flag;
        put(&mut block, 157, &self.link[..self.link.len().min(100)]);
        put(&mut block, 257, if self.gnu { b"ustar  \0" } else { b"ustar\x0000" });
        put(&mut block, 329, format!("{:07o}", self.device.0).as_bytes());
        put(&mut block, 337, format!("{:07o}", self.device.1).as_bytes());
        seal(&mut block);
        block
    }
}

/// An octal field, or base-256 where it does not fit.
pub fn number(value: i64, len: usize) -> Vec<u8> {
    if value >= 0 && value < 1 << (3 * (len - 1)) {
        return format!("{value:0width$o}", width = len - 1).into_bytes();
    }
    let mut bytes = vec![if value < 0 { 0xff } else { 0 }; len];
    bytes[len - 8..].copy_from_slice(&value.to_be_bytes());
    bytes[0] |= 0x80;
    bytes
}

/// Sets the right checksum.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// One PAX record.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [format!("{len} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

/// An archive.
#[derive(Clone, Debug, Default)]
pub struct Tar {
    pub bytes: Vec<u8>,
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Zeros up to the next block.
    pub fn pad(mut self) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn entry(mut self, spec: Spec) -> Self {
        if !spec.pax.is_empty() {
            let records: Vec<u8> = spec.pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            self = self.extension(b'x', &records);
        }
        self.raw(&spec.block()).raw(&spec.content).pad()
    }

    /// A PAX or GNU extension header.
    pub fn extension(self, flag: u8, content: &[u8]) -> Self {
        let mut header = spec("././@LongLink", flag).content(content);
        header.gnu = matches!(flag, b'L' | b'K');
        self.raw(&header.block()).raw(content).pad()
    }

    pub fn file(self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.entry(spec(name, b'0').content(content))
    }
    pub fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.entry(spec(name, b'5'))
    }
    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(spec(name, b'2').link(target).mode(0o777))
    }
    pub fn hardlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(spec(name, b'1').link(target))
    }

    /// The two zero blocks.
    pub fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes
    }
}

/// A layer with one of every kind of entry.
pub fn everything() -> Vec<u8> {
    let mut sparse = spec("s", b'S').gnu().content("z").block();
    sparse[386..397].copy_from_slice(&number(600, 12));
    sparse[398..409].copy_from_slice(&number(1, 12));
    sparse[483..494].copy_from_slice(&number(1000, 12));
    seal(&mut sparse);
    let mut map = b"1\n5\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"abc");
    Tar::new()
        .dir("d/")
        .file("d/f", "x".repeat(700))
        .entry(
            spec("pax", b'0')
                .pax("path", "n".repeat(150))
                .pax("mtime", "1.5")
                .pax("SCHILY.xattr.user.a", "b")
                .content("y"),
        )
        .extension(b'L', &b"mmmmmmmmmmmmmmm/".repeat(9))
        .file("long", "")
        .raw(&sparse)
        .raw(b"z")
        .pad()
        .entry(
            spec("v10", b'0')
                .pax("GNU.sparse.major", "1")
                .pax("GNU.sparse.minor", "0")
                .pax("GNU.sparse.realsize", "9")
                .content(map),
        )
        .entry(spec("v01", b'0').pax("GNU.sparse.size", "9").pax("GNU.sparse.map", "0,1,4,2").content("abc"))
        .symlink("l", "d")
        .file("l/through", "t")
        .hardlink("h", "d/f")
        .file("d/.wh.gone", "")
        .file("d/.wh..wh..opq", "")
        .file("d", "replaced")
        .entry(spec("n", b'3').device(1, 3))
        .end()
}
