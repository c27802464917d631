//! Names and ids of containers.

use std::fs::{self, File};
use std::io::Read;

use super::damaged;
use crate::image::reference::Reference;
use crate::image::{ImageError, IoContext, Result};
use crate::store::{Image, Store};

/// A name is one path component that cannot be mistaken for an option, as docker's.
pub(super) fn check_name(name: &str) -> Result<&str> {
    let first = |b: u8| b.is_ascii_alphanumeric();
    let later = |b: u8| first(b) || matches!(b, b'_' | b'.' | b'-');
    match name.as_bytes() {
        [head, rest @ ..] if first(*head) && rest.iter().all(|&b| later(b)) && rest.len() < 64 => Ok(name),
        _ => Err(ImageError::malformed(name, "a container's name is up to 64 letters, digits, '_', '.' and '-'")),
    }
}

/// Names of everything in the containers' directory, sorted. Names that this program does not make are left out.
pub(super) fn names(store: &Store) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(store.containers()).at(store.containers())? {
        names.extend(entry.at(store.containers())?.file_name().into_string());
    }
    names.retain(|name| check_name(name).is_ok());
    names.sort();
    Ok(names)
}

/// The origin of a new container's name.
pub(super) enum Naming {
    /// The user chose it.
    Chosen(String),
    /// `debian-1`, `debian-2`, …: shows the image of the container.
    Numbered { base: String, last: u64 },
}

impl Naming {
    pub(super) fn of_image(image: &Image) -> Self {
        let repository = image.names.first().map(Reference::repository).unwrap_or_else(|| "container".to_owned());
        let base = repository.rsplit('/').next().unwrap_or("container").chars().take(48).collect();
        Self::Numbered { base, last: 0 }
    }

    /// The next name to try. Another process may be faster: the rename that takes the name decides.
    pub(super) fn next(&mut self, store: &Store) -> Result<String> {
        let (base, last) = match self {
            Self::Chosen(name) => return Ok(name.clone()),
            Self::Numbered { base, last } => (base, last),
        };
        loop {
            *last += 1;
            let name = format!("{base}-{last}");
            if !damaged::is_there(&store.containers().join(&name)) {
                return Ok(name);
            }
        }
    }
}

/// A new id: 64 hexadecimal digits, like docker's.
pub(super) fn new_id() -> Result<String> {
    let path = "/dev/urandom";
    let mut bytes = [0; 32];
    File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).at(path)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// True if `text` may be the beginning of an id.
pub(super) fn may_be_id(text: &str) -> bool {
    (2..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
