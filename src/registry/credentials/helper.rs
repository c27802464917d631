//! Programs that store passwords (`docker-credential-NAME`, protocol of docker-credential-helpers).

use std::io::{self, Write};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Credentials, of_pair};
use crate::image::{ImageError, IoContext, Result};

/// The name of a helper's program.
pub(super) fn program(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

/// Asks a helper for a password; `None` if it has none.
pub(super) fn get(helper: &str, server: &str) -> Result<Option<Credentials>> {
    let answer = match run(helper, "get", server) {
        Ok(answer) => answer,
        // This text is part of the protocol.
        Err(error) if error.to_string().contains("credentials not found") => return Ok(None),
        Err(error) => return Err(error),
    };
    let program = program(helper);
    let answer: Value = serde_json::from_slice(&answer).map_err(|error| ImageError::document(&program, error))?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    let (user, secret) = text("Username")
        .zip(text("Secret"))
        .ok_or_else(|| ImageError::document(&program, "its answer has no Username and Secret"))?;
    Ok((!secret.is_empty()).then(|| of_pair(user, secret)))
}

/// Passes a password to a helper.
pub(super) fn store(helper: &str, server: &str, user: &str, password: &str) -> Result<()> {
    let said = json!({"ServerURL": server, "Username": user, "Secret": password});
    run(helper, "store", &said.to_string()).map(drop)
}

/// Makes a helper forget a password.
pub(super) fn erase(helper: &str, server: &str) -> Result<()> {
    run(helper, "erase", server).map(drop)
}

fn run(helper: &str, verb: &str, input: &str) -> Result<Vec<u8>> {
    let program = program(helper);
    if helper.contains('/') {
        return Err(ImageError::malformed(helper, "is no name of a credential helper"));
    }
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::refused(&program, "the credential helper is not installed"),
            _ => ImageError::refused(&program, error),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result.at(&program)?,
        }
    }
    let output = child.wait_with_output().at(&program)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    // Helpers print their errors to standard output.
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).trim().replace('\n', "; ");
    Err(ImageError::refused(program, if told.is_empty() { output.status.to_string() } else { told }))
}
