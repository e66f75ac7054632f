//! Models from the Hugging Face Hub, kept in the cache that its other programs use, too.
//!
//! Our own client rather than `hf-hub`: version 1 brings an async runtime and a second HTTP stack,
//! and the versions before it neither resume, nor check hashes, nor know an offline mode or
//! HF_TOKEN. This one is `ureq` and the few rules below.
//!
//! # Source
//! huggingface_hub's documentation: environment variables, layout of the cache
//! (`models--owner--repo/{blobs,refs,snapshots}`), headers of `/resolve/`.

use super::failure::Failure;
use super::{interrupt, output};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

/// How long to wait for a connection, and for the head of an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one request may send its body; a longer download goes on with another request.
const BODY_TIMEOUT: Duration = Duration::from_secs(300);
/// Attempts in a row that bring nothing before a download is given up.
const ATTEMPTS: u32 = 5;
/// Largest listing of a repository: no honest one comes near.
const MAX_LISTING_BYTES: u64 = 16 << 20;
/// Length of the first range of a file of which only the start is wanted, and of the longest.
const FIRST_RANGE_BYTES: u64 = 64 << 10;
const MAX_RANGE_BYTES: u64 = 4 << 20;
/// Redirections of `/resolve/` to a renamed repository.
const MAX_RENAMES: usize = 5;

/// `owner/repo[@revision][/file]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    repo: String,
    revision: String,
    file: Option<String>,
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("\"hf:{text}\" is not hf:owner/repo[@revision][/file]");
        let name = |s: &str| {
            !s.is_empty()
                && !s.starts_with('.')
                && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let mut parts = text.splitn(3, '/');
        let (Some(owner), Some(repo)) = (parts.next(), parts.next()) else {
            return Err(expected());
        };
        let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
        let file = parts.next();
        if !name(owner) || !name(repo) || !name(revision) || !file.is_none_or(is_safe_path) {
            return Err(expected());
        }
        Ok(Reference {
            repo: format!("{owner}/{repo}"),
            revision: revision.to_string(),
            file: file.map(str::to_string),
        })
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.iter().try_for_each(|file| write!(f, "/{file}"))
    }
}

/// Whether a name from outside stays inside the folder it is put into.
fn is_safe_path(name: &str) -> bool {
    let inside = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    !name.is_empty() && inside && !name.contains(['\\', ':', '\0'])
}

/// What is wanted of a repository: one GGUF file, or a folder's worth of files.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    File(String),
    Folder(Vec<String>),
}

/// Chooses among the files of a repository.
fn choose(reference: &Reference, files: &[String]) -> Result<Wanted, String> {
    let repo = &reference.repo;
    let ggufs: Vec<&String> = files.iter().filter(|f| f.ends_with(".gguf")).collect();
    let list = |files: &[&String]| {
        let lines: Vec<String> = files.iter().map(|f| format!("hf:{repo}/{f}")).collect();
        lines.join(", ")
    };
    if let Some(file) = &reference.file {
        return match files.contains(file) {
            true => Ok(Wanted::File(file.clone())),
            false if ggufs.is_empty() => Err(format!("{repo} has no file {file}")),
            false => Err(format!("{repo} has no file {file}; it has {}", list(&ggufs))),
        };
    }
    match ggufs.as_slice() {
        [one] => return Ok(Wanted::File((*one).clone())),
        [] => {}
        many => return Err(format!("{repo} has several models; name one: {}", list(many))),
    }
    let weights = |f: &&String| f.ends_with(".safetensors") && !f.contains('/');
    if !files.iter().any(|f| f == "config.json") || !files.iter().any(|f| weights(&f)) {
        return Err(format!("{repo} has neither a GGUF file nor safetensors weights"));
    }
    const BESIDE: [&str; 6] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ];
    let small = files.iter().filter(|f| BESIDE.contains(&f.as_str()));
    // Weights last: whatever is wrong with the small files is found before the long download.
    Ok(Wanted::Folder(small.chain(files.iter().filter(weights)).cloned().collect()))
}

/// The Hub, and the cache of what came from it.
#[derive(Clone)]
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    cache: PathBuf,
    offline: bool,
    agent: Agent,
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Where programs of this user keep what can be made again.
pub fn cache_home() -> Option<PathBuf> {
    let home = || std::env::home_dir().map(|h| h.join(".cache"));
    env("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`,
    /// `HF_HUB_CACHE`, `HF_HUB_OFFLINE`.
    pub fn from_env(offline: bool) -> Result<Self, Failure> {
        let base = env("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| cache_home().map(|c| c.join("huggingface")));
        let cache = env("HF_HUB_CACHE").map(PathBuf::from).or(base.as_ref().map(|b| b.join("hub")));
        let cache = cache.ok_or_else(|| {
            Failure::Failed("no home folder for downloads: set HF_HOME".to_string())
        })?;
        let token_file = env("HF_TOKEN_PATH").map(PathBuf::from).or(base.map(|b| b.join("token")));
        let token = env("HF_TOKEN")
            .or_else(|| fs::read_to_string(token_file?).ok())
            .map(|t| t.trim().to_string())
            .filter(|t| !t.is_empty());
        let truthy = |v: String| !matches!(v.to_lowercase().as_str(), "0" | "false" | "no" | "off");
        let config = Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(HEAD_TIMEOUT))
            .timeout_recv_body(Some(BODY_TIMEOUT))
            .http_status_as_error(false)
            .user_agent(concat!("bitnet-rust/", env!("CARGO_PKG_VERSION")));
        Ok(Hub {
            endpoint: env("HF_ENDPOINT")
                .map_or("https://huggingface.co".to_string(), |e| e.trim_end_matches('/').into()),
            token,
            cache,
            offline: offline || env("HF_HUB_OFFLINE").is_some_and(truthy),
            agent: config.build().into(),
        })
    }

    /// The path of a model's file or folder, downloaded if it is not in the cache.
    pub fn fetch(&self, reference: &Reference, quiet: bool) -> Result<PathBuf, Failure> {
        let (commit, wanted) = match self.choose_online(reference, quiet)? {
            Choice::Cached(path) => return Ok(path),
            Choice::Online { commit, wanted } => (commit, wanted),
        };
        let snapshot = self.snapshot(reference, &commit);
        let (names, result) = match wanted {
            Wanted::File(name) => (vec![name.clone()], snapshot.join(name)),
            Wanted::Folder(names) => (names, snapshot.clone()),
        };
        for name in &names {
            self.download(reference, &commit, name, &snapshot.join(name), quiet)?;
        }
        let head = self.repo_folder(reference).join("refs").join(&reference.revision);
        write_small(&head, commit.as_bytes())?;
        Ok(result)
    }

    /// What [`Hub::fetch`] would give, but weights that are not in the cache stay where they are:
    /// of those only as much is read as somebody wants to see.
    pub fn peek(&self, reference: &Reference, quiet: bool) -> Result<Peek, Failure> {
        let (commit, wanted) = match self.choose_online(reference, quiet)? {
            Choice::Cached(path) => return Ok(Peek::Local(path)),
            Choice::Online { commit, wanted } => (commit, wanted),
        };
        let snapshot = self.snapshot(reference, &commit);
        let names = match wanted {
            Wanted::File(name) if snapshot.join(&name).exists() => {
                return Ok(Peek::Local(snapshot.join(name)));
            }
            Wanted::File(name) => {
                return self.remote_file(reference, &commit, &name).map(Peek::Gguf);
            }
            Wanted::Folder(names) => names,
        };
        let (weights, small): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| name.ends_with(".safetensors"));
        for name in &small {
            self.download(reference, &commit, name, &snapshot.join(name), quiet)?;
        }
        if weights.iter().all(|name| snapshot.join(name).exists()) {
            return Ok(Peek::Local(snapshot));
        }
        Ok(Peek::Folder { hub: self.clone(), reference: reference.clone(), commit, snapshot })
    }

    /// A file of a commit, to be read from its start.
    pub fn remote_file(
        &self,
        reference: &Reference,
        commit: &str,
        name: &str,
    ) -> Result<RemoteFile, Failure> {
        let url = self.file_url(reference, commit, name);
        let failed = |e: &str| Failure::Failed(format!("{name}: {e}"));
        let size_bytes = self.look_up(&url).map_err(|e| failed(&e))?.size;
        let size_bytes =
            size_bytes.ok_or_else(|| failed("the server does not say how long it is"))?;
        Ok(RemoteFile {
            hub: self.clone(),
            url,
            size_bytes,
            at: 0,
            range_bytes: FIRST_RANGE_BYTES,
            body: None,
        })
    }

    /// Which files of which commit; or what the cache has, where the network may not or cannot be
    /// used.
    fn choose_online(&self, reference: &Reference, quiet: bool) -> Result<Choice, Failure> {
        if self.offline {
            return self.cached(reference).map(Choice::Cached).ok_or_else(|| {
                Failure::Failed(format!(
                    "hf:{reference} is not in the cache, and the network may not be used"
                ))
            });
        }
        let (commit, files) = match self.list(reference) {
            Ok(listing) => listing,
            // Without a network, what is there is better than nothing.
            Err(Listing::Unreachable(why)) => match self.cached(reference) {
                Some(path) => {
                    if !quiet {
                        output::note(format_args!("{why}; using the cached copy"));
                    }
                    return Ok(Choice::Cached(path));
                }
                None => return Err(Failure::Failed(why)),
            },
            Err(Listing::Refused(why)) => return Err(Failure::Failed(why)),
        };
        let wanted = choose(reference, &files).map_err(Failure::Failed)?;
        Ok(Choice::Online { commit, wanted })
    }

    fn snapshot(&self, reference: &Reference, commit: &str) -> PathBuf {
        self.repo_folder(reference).join("snapshots").join(commit)
    }

    fn file_url(&self, reference: &Reference, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, reference.repo, encode(name))
    }

    fn repo_folder(&self, reference: &Reference) -> PathBuf {
        self.cache.join(format!("models--{}", reference.repo.replace('/', "--")))
    }

    /// The model, if the cache has all of it.
    fn cached(&self, reference: &Reference) -> Option<PathBuf> {
        let folder = self.repo_folder(reference);
        let commit = fs::read_to_string(folder.join("refs").join(&reference.revision)).ok();
        // A revision may also be a commit.
        let commit = commit.unwrap_or_else(|| reference.revision.clone());
        let snapshot = folder.join("snapshots").join(commit.trim());
        let mut files = Vec::new();
        list_files(&snapshot, &snapshot, &mut files);
        match choose(reference, &files).ok()? {
            Wanted::File(name) => Some(snapshot.join(name)),
            Wanted::Folder(_) => Some(snapshot),
        }
    }

    fn get(&self, url: &str) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
        let request = self.agent.get(url);
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Commit and files of a repository.
    fn list(&self, reference: &Reference) -> Result<(String, Vec<String>), Listing> {
        let Reference { repo, revision, .. } = reference;
        let url = format!("{}/api/models/{repo}/revision/{revision}", self.endpoint);
        let unreachable = |e: &dyn std::fmt::Display| {
            Listing::Unreachable(format!("cannot reach {}: {e}", self.endpoint))
        };
        let mut response = self.get(&url).call().map_err(|e| unreachable(&e))?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(unreachable(&status));
        }
        if !status.is_success() {
            return Err(Listing::Refused(self.refusal(reference, status)));
        }
        let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_string();
        let body = body.map_err(|e| unreachable(&e))?;
        let strange =
            || Listing::Refused(format!("{} does not answer as the Hub does", self.endpoint));
        let listing: serde_json::Value = serde_json::from_str(&body).map_err(|_| strange())?;
        let commit = listing["sha"].as_str().unwrap_or_default();
        let files = listing["siblings"].as_array().ok_or_else(strange)?;
        if commit.is_empty() || !commit.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(strange());
        }
        let names = files.iter().filter_map(|f| f["rfilename"].as_str());
        let names = names.filter(|n| is_safe_path(n)).map(str::to_string).collect();
        Ok((commit.to_string(), names))
    }

    /// Why the server says no.
    fn refusal(&self, reference: &Reference, status: StatusCode) -> String {
        let Reference { repo, revision, .. } = reference;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                let token = match &self.token {
                    Some(_) => "or your HF_TOKEN may not read it",
                    None => "or it is private or gated: set HF_TOKEN",
                };
                format!("no model {repo} with revision {revision} at {}, {token}", self.endpoint)
            }
            _ => format!("{} answers {status} for {repo}", self.endpoint),
        }
    }

    /// Puts one file of a commit at `target`.
    fn download(
        &self,
        reference: &Reference,
        commit: &str,
        name: &str,
        target: &Path,
        quiet: bool,
    ) -> Result<(), Failure> {
        if target.exists() {
            return Ok(());
        }
        let url = self.file_url(reference, commit, name);
        let remote = self.look_up(&url).map_err(|e| Failure::Failed(format!("{name}: {e}")))?;
        let blob = self.repo_folder(reference).join("blobs").join(&remote.etag);
        if !blob.exists() {
            self.fill(&url, name, &remote, &blob, quiet)?;
        }
        link(&blob, target).map_err(|e| cannot(target, &e))
    }

    /// Size and hash of a file, without the file. They are in the first answer, which may redirect
    /// to where the bytes are.
    fn look_up(&self, url: &str) -> Result<Remote, String> {
        let mut url = url.to_string();
        for _ in 0..MAX_RENAMES {
            let request = self.agent.head(&url).config().max_redirects(0);
            let request = request.max_redirects_will_error(false).build();
            let request = match &self.token {
                Some(token) => request.header("Authorization", format!("Bearer {token}")),
                None => request,
            };
            let response = request.call().map_err(|e| e.to_string())?;
            let header = |name| text_header(response.headers(), name);
            if let (Some(etag), true) =
                (header("x-linked-etag").or(header("etag")), response.status().as_u16() < 400)
                && (header("x-linked-etag").is_some() || response.status().is_success())
            {
                let etag = etag.trim_start_matches("W/").trim_matches('"').to_string();
                if etag.is_empty() || !etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                {
                    return Err(format!("strange ETag {etag:?}"));
                }
                let size = header("x-linked-size").or(header("content-length"));
                return Ok(Remote { etag, size: size.and_then(|s| s.parse().ok()) });
            }
            // A renamed repository; with a host of its own it would be no business of our token.
            match header("location") {
                Some(path) if response.status().is_redirection() && path.starts_with('/') => {
                    url = format!("{}{path}", self.endpoint);
                }
                _ => return Err(format!("{} answers {}", self.endpoint, response.status())),
            }
        }
        Err("too many redirections".to_string())
    }

    /// Downloads into `blob`, going on where an earlier attempt was cut off.
    fn fill(
        &self,
        url: &str,
        name: &str,
        remote: &Remote,
        blob: &Path,
        quiet: bool,
    ) -> Result<(), Failure> {
        let failed = |e: &str| Failure::Failed(format!("downloading {name}: {e}"));
        let mut partial = blob.as_os_str().to_os_string();
        partial.push(".incomplete");
        let partial = PathBuf::from(partial);
        create_parent(&partial)?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&partial)
            .map_err(|e| cannot(&partial, &e))?;
        // Another process may be at it: wait, and take what it brought.
        file.lock().map_err(|e| cannot(&partial, &e))?;
        if blob.exists() {
            return Ok(());
        }
        let mut have = file.seek(SeekFrom::End(0)).map_err(|e| cannot(&partial, &e))?;
        let bar = output::progress(quiet, remote.size, name);
        bar.set_position(have);
        let mut idle = 0;
        while remote.size.is_none_or(|size| have < size) {
            let before = have;
            let outcome = self.transfer(url, &mut file, &mut have, remote.size, &bar);
            if interrupt::interrupted() {
                return Err(Failure::Interrupted);
            }
            idle = if have > before { 0 } else { idle + 1 };
            match outcome {
                Ok(()) if remote.size.is_none_or(|size| have == size) => break,
                Err(Transfer::Fatal(e)) => return Err(failed(&e)),
                Ok(()) if idle >= ATTEMPTS => return Err(failed("the connection was cut")),
                Err(Transfer::Cut(e)) if idle >= ATTEMPTS => return Err(failed(&e)),
                _ => std::thread::sleep(Duration::from_millis(250 << idle.min(5))),
            }
        }
        bar.finish_and_clear();
        if let Err(e) = verify(&mut file, have, remote) {
            let _ = file.set_len(0);
            return Err(failed(&e));
        }
        fs::rename(&partial, blob).map_err(|e| cannot(blob, &e))
    }

    /// One request for the rest of a file.
    fn transfer(
        &self,
        url: &str,
        file: &mut File,
        have: &mut u64,
        size: Option<u64>,
        bar: &indicatif::ProgressBar,
    ) -> Result<(), Transfer> {
        let cut = |e: &dyn std::fmt::Display| Transfer::Cut(e.to_string());
        let disk = |e: std::io::Error| Transfer::Fatal(format!("cannot write: {e}"));
        let mut request = self.get(url);
        if *have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let mut response = request.call().map_err(|e| cut(&e))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(*have) => {}
            // Servers may ignore ranges: from the start, then.
            StatusCode::OK => {
                *have = 0;
                file.set_len(0).map_err(disk)?;
            }
            s if s.is_server_error() || s == StatusCode::TOO_MANY_REQUESTS => {
                return Err(cut(&format_args!("the server answers {s}")));
            }
            s => return Err(Transfer::Fatal(format!("the server answers {s}"))),
        }
        file.seek(SeekFrom::Start(*have)).map_err(disk)?;
        // Never more than was announced: a server that goes on for ever fills no disk.
        let left = size.map_or(u64::MAX, |size| size.saturating_sub(*have));
        let config = response.body_mut().with_config().limit(u64::MAX);
        let mut body = config.reader().take(left);
        let mut buffer = vec![0; 1 << 18];
        while !interrupt::interrupted() {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => return Err(cut(&e)),
            };
            file.write_all(&buffer[..n]).map_err(disk)?;
            *have += n as u64;
            bar.set_position(*have);
        }
        Ok(())
    }
}

/// What [`Hub::peek`] finds.
pub enum Peek {
    /// A file or folder of this machine.
    Local(PathBuf),
    /// A GGUF file that is not in the cache.
    Gguf(RemoteFile),
    /// A folder whose small files are in the cache, but not its weights.
    Folder {
        /// Where they are.
        hub: Hub,
        /// The repository.
        reference: Reference,
        /// Its commit.
        commit: String,
        /// The folder with the small files.
        snapshot: PathBuf,
    },
}

/// A file on the Hub, read from its start in ranges that grow: as much as the reader asks for, and
/// little more.
pub struct RemoteFile {
    hub: Hub,
    url: String,
    size_bytes: u64,
    /// Bytes read.
    at: u64,
    /// Length of the next range.
    range_bytes: u64,
    /// What is left of the last one.
    body: Option<Box<dyn Read>>,
}

impl RemoteFile {
    /// Its length.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Asks for the next range.
    fn request(&mut self) -> Result<Box<dyn Read>, String> {
        let last = self.size_bytes.min(self.at + self.range_bytes) - 1;
        let range = format!("bytes={}-{last}", self.at);
        let response = self.hub.get(&self.url).header("Range", range).call();
        let response = response.map_err(|e| e.to_string())?;
        let limit = match response.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(self.at) => {
                self.range_bytes = (2 * self.range_bytes).min(MAX_RANGE_BYTES);
                last + 1 - self.at
            }
            // Servers may ignore ranges: then this is all of it, to be read as far as needed.
            StatusCode::OK if self.at == 0 => self.size_bytes,
            status => return Err(format!("the server answers {status} to a range")),
        };
        let body = response.into_body().into_with_config().limit(u64::MAX).reader();
        Ok(Box::new(body.take(limit)))
    }
}

impl Read for RemoteFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut attempts = 0;
        while self.at < self.size_bytes && !buffer.is_empty() {
            let outcome = match self.body.take() {
                Some(body) => Ok(body),
                None if attempts < ATTEMPTS => {
                    attempts += 1;
                    self.request()
                }
                None => Err("the connection was cut".to_string()),
            };
            let mut body = outcome.map_err(std::io::Error::other)?;
            // At the end of a range, or where the connection was cut, the next one goes on.
            if let Ok(n @ 1..) = body.read(buffer) {
                self.at += n as u64;
                self.body = Some(body);
                return Ok(n);
            }
        }
        Ok(0)
    }
}

/// Where a model is.
enum Choice {
    Cached(PathBuf),
    Online { commit: String, wanted: Wanted },
}

/// Why there is no listing.
enum Listing {
    Unreachable(String),
    Refused(String),
}

/// Why a transfer ended early.
enum Transfer {
    /// Trying again may help.
    Cut(String),
    Fatal(String),
}

/// A file on the Hub.
struct Remote {
    /// Name of the blob; for large files their SHA-256.
    etag: String,
    size: Option<u64>,
}

/// Checks what was downloaded against what was announced.
fn verify(file: &mut File, have: u64, remote: &Remote) -> Result<(), String> {
    if let Some(size) = remote.size.filter(|&size| size != have) {
        return Err(format!("{have} bytes came instead of {size}"));
    }
    // Small files have a git hash, which says nothing that TLS does not.
    if remote.etag.len() != 64 || !remote.etag.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut hash = Sha256::new();
    file.seek(SeekFrom::Start(0)).map_err(|e| e.to_string())?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(|e| e.to_string())? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    let got: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if got.eq_ignore_ascii_case(&remote.etag) {
        return Ok(());
    }
    Err(format!("the bytes have SHA-256 {got}, not {}; try again", remote.etag))
}

fn text_header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The first byte that a partial answer brings.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = text_header(response.headers(), "content-range")?.strip_prefix("bytes ")?;
    range.split('-').next()?.parse().ok()
}

/// A path for a URL.
fn encode(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    name.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// All files below a folder, relative to `base`.
fn list_files(base: &Path, folder: &Path, out: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            list_files(base, &path, out);
        } else if path.is_file()
            && let Some(name) = path.strip_prefix(base).ok().and_then(Path::to_str)
        {
            out.push(name.replace('\\', "/"));
        }
    }
}

fn cannot(path: &Path, e: &std::io::Error) -> Failure {
    Failure::because(format!("cannot write {}", path.display()), e)
}

fn create_parent(path: &Path) -> Result<(), Failure> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(|e| cannot(parent, &e)),
        None => Ok(()),
    }
}

fn write_small(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    create_parent(path)?;
    fs::write(path, bytes).map_err(|e| cannot(path, &e))
}

/// Makes `target` stand for `blob`: a relative link, or a copy where there are no links.
fn link(blob: &Path, target: &Path) -> std::io::Result<()> {
    let parent = target.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    #[cfg(unix)]
    {
        // snapshots/<commit>/a/b → ../../../blobs/<etag>
        let blobs = blob.parent().unwrap_or(Path::new("."));
        let root = blobs.parent().unwrap_or(Path::new("."));
        let depth = parent.strip_prefix(root).map_or(0, |p| p.components().count());
        let mut relative: PathBuf = std::iter::repeat_n("..", depth).collect();
        relative.push("blobs");
        relative.extend(blob.file_name());
        match std::os::unix::fs::symlink(&relative, target) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
            Err(_) => {}
        }
    }
    fs::copy(blob, target).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn references() {
        let r = reference("a-b/c.d@v1/x/y.gguf");
        assert_eq!((r.repo.as_str(), r.revision.as_str()), ("a-b/c.d", "v1"));
        assert_eq!(r.file.as_deref(), Some("x/y.gguf"));
        assert_eq!(reference("a/b").revision, "main");
        for bad in
            ["", "a", "a/", "/b", "a/b/", "a/b/../c", "a/b//c", "../b", "a/b@", "a b/c", "a/b?c"]
        {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn choices() {
        let files = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let one = files(&["README.md", "m.gguf"]);
        assert_eq!(choose(&reference("a/b"), &one), Ok(Wanted::File("m.gguf".into())));
        let two = files(&["m.gguf", "n.gguf"]);
        let e = choose(&reference("a/b"), &two).unwrap_err();
        assert!(e.contains("hf:a/b/m.gguf") && e.contains("hf:a/b/n.gguf"), "{e}");
        assert_eq!(choose(&reference("a/b/n.gguf"), &two), Ok(Wanted::File("n.gguf".into())));
        let e = choose(&reference("a/b/o.gguf"), &two).unwrap_err();
        assert!(e.contains("no file o.gguf") && e.contains("m.gguf"), "{e}");
        let folder =
            files(&["config.json", "model.safetensors", "tokenizer.json", "x/y.safetensors"]);
        let Ok(Wanted::Folder(names)) = choose(&reference("a/b"), &folder) else { panic!() };
        assert_eq!(names, ["config.json", "tokenizer.json", "model.safetensors"]);
        assert!(choose(&reference("a/b"), &files(&["config.json"])).is_err());
    }

    #[test]
    fn paths_are_kept_inside() {
        assert!(is_safe_path("a/b.gguf") && is_safe_path("ü.gguf"));
        for bad in ["", "/a", "../a", "a/../b", "./a", "a\\b", "C:a", "a\0b"] {
            assert!(!is_safe_path(bad), "{bad:?}");
        }
        assert_eq!(encode("a b/ü.gguf"), "a%20b/%C3%BC.gguf");
    }
}
