//! A whole registry in memory with one peculiarity at a time. The table in `src/registry/mod.rs` says which real
//! registry has each.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Mutex;

use serde_json::Value;
use stratafs::image::digest::Digest;

use super::liar::{Answer, Asked, Liar};

/// What is asked of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    GetManifest,
    GetBlob,
    Token,
    HeadBlob,
    BeginUpload,
    SendBytes,
    EndUpload,
    PutManifest,
}

/// The peculiarity.
#[derive(Clone, Debug, PartialEq)]
pub enum Quirk {
    None,
    /// The first requests of a class fail: this many, with this status (0: the connection is closed; 1: the answer is
    /// truncated) and this `Retry-After`.
    Fails(Class, usize, u16, Option<String>),
    /// The first requests for a manifest are too many, according to the body; the status says "forbidden".
    SaysBusyInWords(usize),
    /// The end of an upload is processed, but not answered.
    LosesTheEnd,
    /// The first piece of an upload is taken in part.
    CutsUploads,
    /// Like [`Self::CutsUploads`], and the registry does not say how much of an upload it has.
    CutsUploadsAndForgets,
    /// Like [`Self::CutsUploads`], and the registry is wrong about how much it has.
    CutsUploadsAndMiscounts,
    /// `Location` of an upload, with ID for its name.
    Location(&'static str),
    /// No `Location` after bytes were taken.
    NoLocation,
    /// Mounts are answered in this way.
    RefusesMounts(u16),
    /// The token server refuses a token that reads from a second repository.
    RefusesScopes(u16),
    /// A token is valid for this many requests.
    ShortTokens(usize),
    /// Headers and fields that are there, but empty.
    Empty,
    /// The realm is a path alone.
    RelativeRealm,
    /// The challenge is only at the registry's root; elsewhere, unauthenticated clients get this.
    HidesFromStrangers(u16),
    /// `HEAD` of a blob leads to a server that refuses it.
    SignsForGet,
    /// Uploads are begun one redirect further.
    RedirectsPosts,
}

#[derive(Default)]
struct State {
    /// By repository and digest.
    blobs: HashMap<(String, String), Vec<u8>>,
    /// By repository and tag or digest.
    manifests: HashMap<(String, String), (String, Vec<u8>)>,
    uploads: HashMap<String, Vec<u8>>,
    times: HashMap<Class, usize>,
    tokens: HashMap<String, usize>,
    next: usize,
}

/// Starts one. With `auth`, it wants a token, which the user `me` with the password `secret` gets at `/token`.
pub fn start(quirk: Quirk, auth: bool) -> Liar {
    let state = Mutex::new(State::default());
    Liar::start(move |asked, body| {
        let mut bytes = Vec::new();
        let mut state = state.lock().unwrap();
        answer(&quirk, auth, &mut state, asked, body, &mut bytes)
    })
}

fn class_of(asked: &Asked) -> Option<Class> {
    let path = asked.path.split('?').next().unwrap();
    Some(match asked.method.as_str() {
        _ if path == "/token" => Class::Token,
        "GET" if path.contains("/manifests/") => Class::GetManifest,
        "PUT" if path.contains("/manifests/") => Class::PutManifest,
        "GET" if path.contains("/blobs/sha256") => Class::GetBlob,
        "HEAD" => Class::HeadBlob,
        "POST" => Class::BeginUpload,
        "PATCH" => Class::SendBytes,
        "PUT" => Class::EndUpload,
        _ => return None,
    })
}

fn challenge(quirk: &Quirk, asked: &Asked) -> Answer {
    let host = asked.header("host").unwrap();
    let text = match quirk {
        Quirk::RelativeRealm => "Bearer realm=\"/token\",service=\"s\"".to_owned(),
        Quirk::Empty => format!("Bearer realm=\"http://{host}/token\",service=\"\",scope=\"\",error=\"\""),
        _ => format!("Bearer realm=\"http://{host}/token\",service=\"s\""),
    };
    Answer::new(401, "").with("WWW-Authenticate", text)
}

fn answer(
    quirk: &Quirk,
    auth: bool,
    state: &mut State,
    asked: &Asked,
    body: &mut dyn Read,
    bytes: &mut Vec<u8>,
) -> Answer {
    let class = class_of(asked);
    let mut cut = false;
    if let (Some(class), Quirk::Fails(failing, times, status, after)) = (class, quirk)
        && class == *failing
    {
        let so_far = state.times.entry(class).or_default();
        *so_far += 1;
        if *so_far <= *times {
            if *status > 1 {
                std::io::copy(body, &mut std::io::sink()).unwrap();
            }
            match (status, after) {
                (0, _) => return Answer::hang_up(),
                (1, _) => cut = true,
                (status, None) => return Answer::new(*status, ""),
                (status, Some(after)) => return Answer::new(*status, "").with("Retry-After", after),
            }
        }
    }
    if let (Some(Class::GetManifest), Quirk::SaysBusyInWords(times)) = (class, quirk) {
        let so_far = state.times.entry(Class::GetManifest).or_default();
        *so_far += 1;
        if *so_far <= *times {
            return Answer::new(403, r#"{"errors": [{"code": "TOOMANYREQUESTS", "message": "Rate exceeded"}]}"#);
        }
    }
    if class == Some(Class::Token) {
        let answer = token(quirk, state, asked);
        return if cut { answer.cut(5) } else { answer };
    }
    if auth {
        let token = asked.header("authorization").and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
        let left = state.tokens.get_mut(token).filter(|left| **left > 0);
        match (left, quirk) {
            (Some(left), _) => *left -= 1,
            (None, Quirk::HidesFromStrangers(status)) if asked.path != "/v2/" => return Answer::new(*status, ""),
            (None, _) => return challenge(quirk, asked),
        }
    }
    // A connection that is cut while a body arrives.
    let whole = body.read_to_end(bytes).is_ok();
    let answer = serve(quirk, state, asked, if whole { bytes } else { &[] });
    if cut { answer.cut(20) } else { answer }
}

fn token(quirk: &Quirk, state: &mut State, asked: &Asked) -> Answer {
    // me:secret
    if asked.header("authorization") != Some("Basic bWU6c2VjcmV0") {
        return Answer::new(401, "");
    }
    if let Quirk::RefusesScopes(status) = quirk
        && asked.path.matches("scope=").count() > 1
    {
        return Answer::new(*status, r#"{"details": "no"}"#);
    }
    let token = format!("t{}", state.tokens.len());
    state.tokens.insert(token.clone(), if let Quirk::ShortTokens(uses) = quirk { *uses } else { 1000 });
    match quirk {
        Quirk::Empty => Answer::new(200, format!(r#"{{"token": "", "access_token": "{token}"}}"#)),
        _ => Answer::new(200, format!(r#"{{"token": "{token}"}}"#)),
    }
}

fn serve(quirk: &Quirk, state: &mut State, asked: &Asked, bytes: &[u8]) -> Answer {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    if path == "/v2/" {
        return Answer::new(200, "{}");
    }
    if path == "/signed" {
        return Answer::new(403, "<Error><Code>SignatureDoesNotMatch</Code></Error>");
    }
    if let Some((repository, reference)) = path.strip_prefix("/v2/").and_then(|path| path.split_once("/manifests/")) {
        return manifest(quirk, state, asked, (repository.to_owned(), reference.to_owned()), bytes);
    }
    let Some((repository, rest)) = path.strip_prefix("/v2/").and_then(|path| path.split_once("/blobs/")) else {
        return upload(quirk, state, asked, path, query, bytes);
    };
    if rest.starts_with("uploads/") {
        return upload(quirk, state, asked, path, query, bytes);
    }
    let Some(blob) = state.blobs.get(&(repository.to_owned(), rest.to_owned())) else { return Answer::new(404, "") };
    if *quirk == Quirk::SignsForGet && asked.method == "HEAD" {
        let port = asked.header("host").unwrap().rsplit(':').next().unwrap();
        return Answer::redirect(format!("http://localhost:{port}/signed"));
    }
    match asked.from() {
        0 => Answer::new(200, blob.clone()),
        from => {
            let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
            Answer::new(206, &blob[from..]).with("Content-Range", range)
        }
    }
}

fn manifest(quirk: &Quirk, state: &mut State, asked: &Asked, key: (String, String), bytes: &[u8]) -> Answer {
    if asked.method == "PUT" {
        // A registry refuses a manifest if it lacks one of its blobs.
        let document: Value = serde_json::from_slice(bytes).unwrap();
        let blobs = document["layers"].as_array().unwrap().iter().chain([&document["config"]]);
        for blob in blobs {
            let digest = blob["digest"].as_str().unwrap().to_owned();
            if !state.blobs.contains_key(&(key.0.clone(), digest)) {
                return Answer::new(400, r#"{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN"}]}"#);
            }
        }
        let kind = asked.header("content-type").unwrap().to_owned();
        state.manifests.insert((key.0.clone(), Digest::of(bytes).to_string()), (kind.clone(), bytes.to_vec()));
        state.manifests.insert(key, (kind, bytes.to_vec()));
        return Answer::new(201, "").with("Docker-Content-Digest", Digest::of(bytes).to_string());
    }
    let Some((kind, bytes)) = state.manifests.get(&key) else { return Answer::new(404, "") };
    let digest = if *quirk == Quirk::Empty { String::new() } else { Digest::of(bytes).to_string() };
    Answer::new(200, bytes.clone()).with("Content-Type", kind).with("Docker-Content-Digest", digest)
}

/// How the address of an upload reads.
fn location(quirk: &Quirk, id: &str, asked: &Asked) -> String {
    match quirk {
        Quirk::Location(form) => form.replace("ID", id).replace("HOST", asked.header("host").unwrap()),
        _ => format!("/v2/x/blobs/uploads/{id}?_state=a%2Fb"),
    }
}

fn upload(quirk: &Quirk, state: &mut State, asked: &Asked, path: &str, query: &str, bytes: &[u8]) -> Answer {
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let repository =
        path.strip_prefix("/v2/").and_then(|path| path.split_once("/blobs/")).map_or("x", |(name, _)| name);
    if asked.method == "POST" {
        if let (Some(digest), Some(from)) = (value("mount"), value("from")) {
            if let Quirk::RefusesMounts(status) = quirk {
                return Answer::new(*status, "");
            }
            if let Some(blob) = state.blobs.get(&(from.to_owned(), digest.to_owned())).cloned() {
                state.blobs.insert((repository.to_owned(), digest.to_owned()), blob);
                return Answer::new(201, "");
            }
        }
        if *quirk == Quirk::RedirectsPosts && !path.ends_with("/again/") {
            return Answer::redirect(format!("{path}again/"));
        }
        state.next += 1;
        // The repository is part of the name, since addresses may say nothing else.
        let id = format!("{}-{}", repository.replace('/', "."), state.next);
        state.uploads.insert(id.clone(), Vec::new());
        return Answer::new(202, "").with("Location", location(quirk, &id, asked)).with("Range", "0-0");
    }
    let id = value("id").unwrap_or_else(|| path.rsplit('/').next().unwrap()).to_owned();
    let Some(whole) = state.uploads.get_mut(&id) else { return Answer::new(404, "") };
    let is_first = whole.is_empty();
    let cuts = matches!(quirk, Quirk::CutsUploads | Quirk::CutsUploadsAndForgets | Quirk::CutsUploadsAndMiscounts);
    match asked.method.as_str() {
        "DELETE" => {
            state.uploads.remove(&id);
            Answer::new(204, "")
        }
        "PATCH" => {
            // Every upload once; a second one of the same blob is whole.
            if cuts && is_first && state.next < 5 {
                whole.extend(&bytes[..bytes.len() / 2]);
                return Answer::hang_up();
            }
            whole.extend(bytes);
            let range = format!("0-{}", whole.len().saturating_sub(1));
            match quirk {
                Quirk::NoLocation => Answer::new(202, ""),
                _ => Answer::new(202, "").with("Location", location(quirk, &id, asked)).with("Range", range),
            }
        }
        "GET" if *quirk == Quirk::CutsUploadsAndForgets => Answer::new(405, ""),
        "GET" => {
            let told = if *quirk == Quirk::CutsUploadsAndMiscounts { whole.len() / 2 } else { whole.len() };
            let range = format!("0-{}", told.saturating_sub(1));
            Answer::new(204, "").with("Location", location(quirk, &id, asked)).with("Range", range)
        }
        "PUT" => {
            let Some(digest) = value("digest").map(str::to_owned) else { return Answer::new(400, "") };
            let whole = state.uploads.remove(&id).unwrap_or_default();
            if Digest::of(&whole).to_string() != digest {
                return Answer::new(400, r#"{"errors": [{"code": "DIGEST_INVALID"}]}"#);
            }
            let repository = id.rsplit_once('-').unwrap().0.replace('.', "/");
            let is_new = state.blobs.insert((repository, digest), whole).is_none();
            match quirk {
                Quirk::LosesTheEnd if is_new => Answer::hang_up(),
                _ => Answer::new(201, ""),
            }
        }
        _ => Answer::new(405, ""),
    }
}

/// Gives a request to the server at `host`, and its answer back.
pub fn pass_on(host: &str, path: &str, asked: &Asked, body: &mut dyn Read) -> Answer {
    use std::io::Write;
    let mut bytes = Vec::new();
    body.read_to_end(&mut bytes).unwrap();
    let mut connection = std::net::TcpStream::connect(host).unwrap();
    let mut head = format!("{} {path} HTTP/1.1\r\nContent-Length: {}\r\n", asked.method, bytes.len());
    for name in ["authorization", "content-type", "range", "content-range", "host"] {
        if let Some(value) = asked.header(name) {
            head += &format!("{name}: {value}\r\n");
        }
    }
    connection.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    connection.write_all(&bytes).unwrap();
    let mut whole = Vec::new();
    connection.read_to_end(&mut whole).unwrap();
    let end = whole.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(whole[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = Answer::new(status, &whole[end + 4..]);
    for (name, value) in head.lines().skip(1).filter_map(|line| line.split_once(": ")) {
        if name != "Connection" {
            answer = answer.with(name, value);
        }
    }
    answer
}
