//! Trusted certificates.

use std::fs;
use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, PemItem, parse_pem};

use crate::image::{ImageError, IoContext, Result};

/// The system's certificates, and those in the user's and the host's own directories.
pub(super) fn trusted(extra: Option<&Path>, host: &str) -> Result<Vec<Certificate<'static>>> {
    let system = rustls_native_certs::load_native_certs();
    system.errors.iter().for_each(|error| tracing::debug!("certificates: {error}"));
    let mut all: Vec<Certificate<'static>> =
        system.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let own = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(|dir| Path::new(dir).join(host));
    for dir in own.iter().filter(|dir| dir.is_dir()) {
        all.extend(certificates_in(dir)?);
    }
    if let Some(dir) = extra {
        all.extend(certificates_in(dir)?);
    }
    Ok(all)
}

fn certificates_in(dir: &Path) -> Result<Vec<Certificate<'static>>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).at(dir)? {
        paths.push(entry.at(dir)?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "crt" || extension == "pem"));
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let text = fs::read(&path).at(&path)?;
        for item in parse_pem(&text) {
            match item {
                Ok(PemItem::Certificate(certificate)) => found.push(certificate),
                Ok(_) => {}
                Err(error) => return Err(ImageError::malformed(path.display().to_string(), error)),
            }
        }
    }
    Ok(found)
}
