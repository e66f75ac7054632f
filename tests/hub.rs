//! Downloads from the Hub, against a small server of our own.
#![cfg(feature = "cli")]

use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A repository as the server has it, and what it does wrong.
#[derive(Default)]
struct Repo {
    files: Vec<(String, Vec<u8>)>,
    /// Bytes after which the connection is cut, for the first answers with a body.
    cuts: Vec<usize>,
    /// Answer ranges with the whole file.
    ignore_ranges: bool,
    /// Send other bytes than were announced.
    corrupt: bool,
    /// Token without which nothing is to be had.
    token: Option<String>,
    /// Head of every request, in order.
    seen: Vec<String>,
}

struct Server {
    url: String,
    repo: Arc<Mutex<Repo>>,
}

impl Server {
    fn start(repo: Repo) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let repo = Arc::new(Mutex::new(repo));
        let (shared, base) = (repo.clone(), url.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up in the middle is no concern of the server's.
                let _ = answer(stream, &shared, &base);
            }
        });
        Server { url, repo }
    }

    fn seen(&self) -> Vec<String> {
        self.repo.lock().unwrap().seen.clone()
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn answer(mut stream: TcpStream, repo: &Mutex<Repo>, base: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while reader.read_line(&mut head)? > 2 {}
    let mut repo = repo.lock().unwrap();
    repo.seen.push(head.clone());
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let reply = |stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]| {
        let n = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {n}\r\nConnection: close\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes())?;
        if method == "HEAD" { Ok(()) } else { stream.write_all(body) }
    };
    let header = |name: &str| {
        let line = head.lines().find(|l| l.to_lowercase().starts_with(name))?;
        Some(line.split_once(": ")?.1.to_string())
    };
    let authorised = match &repo.token {
        Some(token) => header("authorization") == Some(format!("Bearer {token}")),
        None => true,
    };
    if path == "/api/models/owner/repo/revision/main" {
        if !authorised {
            return reply(&mut stream, "401 Unauthorized", "", b"");
        }
        let siblings: Vec<_> =
            repo.files.iter().map(|f| serde_json::json!({"rfilename": f.0})).collect();
        let listing = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return reply(&mut stream, "200 OK", "", listing.as_bytes());
    }
    // Large files are elsewhere; their hash and size are in the answer that says so.
    if let Some(name) = path.strip_prefix(&format!("/owner/repo/resolve/{COMMIT}/")) {
        let Some((_, bytes)) = repo.files.iter().find(|f| f.0 == name) else {
            return reply(&mut stream, "404 Not Found", "", b"");
        };
        let headers = format!(
            "Location: {base}/cdn/{name}\r\nX-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\n",
            hash(bytes),
            bytes.len()
        );
        return reply(&mut stream, "302 Found", &headers, b"");
    }
    let Some(name) = path.strip_prefix("/cdn/") else {
        return reply(&mut stream, "404 Not Found", "", b"");
    };
    let mut bytes = repo.files.iter().find(|f| f.0 == name).unwrap().1.clone();
    if repo.corrupt {
        bytes[100] ^= 1;
    }
    let range = header("range").filter(|_| !repo.ignore_ranges).map(|r| {
        let (from, last) = r.trim_start_matches("bytes=").split_once('-').unwrap();
        (from.parse::<usize>().unwrap(), last.trim().parse().unwrap_or(bytes.len() - 1))
    });
    let (status, headers, body) = match range {
        Some((from, last)) => (
            "206 Partial Content",
            format!("Content-Range: bytes {from}-{last}/{}\r\n", bytes.len()),
            &bytes[from..=last],
        ),
        None => ("200 OK", String::new(), &bytes[..]),
    };
    if repo.cuts.is_empty() {
        return reply(&mut stream, status, &headers, body);
    }
    let cut = repo.cuts.remove(0).min(body.len());
    let n = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {n}\r\nConnection: close\r\n{headers}\r\n"
    )?;
    stream.write_all(&body[..cut])
}

fn fixture(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path);
    std::fs::read(path).unwrap()
}

fn model() -> Vec<u8> {
    fixture("qwen3-mini/gguf/qwen3-mini-TQ1_0.gguf")
}

fn with_file(name: &str) -> Repo {
    Repo {
        files: vec![("README.md".to_string(), b"hello".to_vec()), (name.to_string(), model())],
        ..Repo::default()
    }
}

/// A fresh cache.
fn cache(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hub").join(name);
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn bitnet(server: &str, cache: &Path, args: &[&str], token: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy"] {
        command.env_remove(name);
    }
    for name in ["HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    token.map(|t| command.env("HF_TOKEN", t));
    command
        .env("HF_HOME", cache)
        .env("HF_ENDPOINT", server)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

const INSPECT: [&str; 3] = ["inspect", "--json", "hf:owner/repo"];
/// A command that needs all of a model.
const RUN: [&str; 10] = [
    "generate",
    "hf:owner/repo",
    "--ids",
    "1",
    "--max-tokens",
    "1",
    "--backend",
    "cpu",
    "--json",
    "--quiet",
];

#[track_caller]
fn ok(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn fails(output: &Output, parts: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.starts_with("error: ") && message.lines().count() == 1, "{message}");
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

fn blobs(cache: &Path) -> Vec<String> {
    let folder = cache.join("hub/models--owner--repo/blobs");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().into_string().unwrap()).collect()
}

#[test]
fn downloads_once_into_the_usual_cache() {
    let server = Server::start(with_file("sub/m.gguf"));
    let cache = cache("once");
    ok(&bitnet(&server.url, &cache, &RUN, None));
    let repo = cache.join("hub/models--owner--repo");
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let file = repo.join("snapshots").join(COMMIT).join("sub/m.gguf");
    assert_eq!(std::fs::read(&file).unwrap(), model());
    assert_eq!(blobs(&cache), [hash(&model())]);
    // Again: only the listing is asked for.
    let before = server.seen().len();
    let facts = ok(&bitnet(&server.url, &cache, &INSPECT, None));
    assert_eq!(facts["architecture"], "qwen3");
    assert_eq!(server.seen().len(), before + 1);
    // Without a server, and without asking for one.
    let gone = "http://127.0.0.1:9";
    let out = bitnet(gone, &cache, &INSPECT, None);
    ok(&out);
    assert!(String::from_utf8_lossy(&out.stderr).contains("cached"));
    let offline = ["inspect", "--json", "--offline", "hf:owner/repo/sub/m.gguf"];
    ok(&bitnet(gone, &cache, &offline, None));
    assert!(server.seen().len() == before + 1);
}

#[test]
fn a_cut_connection_is_resumed() {
    let server = Server::start(Repo { cuts: vec![200_000, 0, 100_000], ..with_file("m.gguf") });
    let cache = cache("cut");
    ok(&bitnet(&server.url, &cache, &RUN, None));
    let ranges: Vec<String> = server
        .seen()
        .iter()
        .filter(|h| h.starts_with("GET /cdn/"))
        .map(|h| {
            let range = h.lines().find(|l| l.to_lowercase().starts_with("range"));
            range.map_or(String::new(), |r| r.split_once('=').unwrap().1.to_string())
        })
        .collect();
    assert_eq!(ranges, ["", "200000-", "200000-", "300000-"]);
    assert_eq!(blobs(&cache), [hash(&model())]);
}

#[test]
fn what_another_run_left_is_used() {
    let server = Server::start(with_file("m.gguf"));
    let cache = cache("left");
    let folder = cache.join("hub/models--owner--repo/blobs");
    std::fs::create_dir_all(&folder).unwrap();
    let partial = folder.join(format!("{}.incomplete", hash(&model())));
    std::fs::write(&partial, &model()[..400_000]).unwrap();
    ok(&bitnet(&server.url, &cache, &RUN, None));
    assert!(server.seen().iter().any(|h| h.contains("bytes=400000-")));
    // What is left of something else is found out by its hash, and the next run starts anew.
    let _ = std::fs::remove_dir_all(&cache);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(&partial, vec![7; 400_000]).unwrap();
    fails(&bitnet(&server.url, &cache, &RUN, None), &["m.gguf", "SHA-256"]);
    ok(&bitnet(&server.url, &cache, &RUN, None));
}

#[test]
fn servers_without_ranges() {
    let repo = Repo { cuts: vec![150_000], ignore_ranges: true, ..with_file("m.gguf") };
    let cache = cache("ranges");
    ok(&bitnet(&Server::start(repo).url, &cache, &RUN, None));
}

#[test]
fn a_connection_that_brings_nothing_is_given_up() {
    let server = Server::start(Repo { cuts: vec![0; 100], ..with_file("m.gguf") });
    let cache = cache("nothing");
    fails(&bitnet(&server.url, &cache, &RUN, None), &["m.gguf"]);
    assert!(server.seen().len() < 20);
}

#[test]
fn damaged_downloads_are_not_kept() {
    let server = Server::start(Repo { corrupt: true, ..with_file("m.gguf") });
    let cache = cache("damaged");
    fails(&bitnet(&server.url, &cache, &RUN, None), &["m.gguf", "SHA-256", "try again"]);
    assert!(!cache.join("hub/models--owner--repo/snapshots").exists());
    server.repo.lock().unwrap().corrupt = false;
    ok(&bitnet(&server.url, &cache, &RUN, None));
}

/// First and last byte of every range that was asked for.
fn ranges(server: &Server) -> Vec<(usize, usize)> {
    let seen = server.seen();
    let gets = seen.iter().filter(|head| head.starts_with("GET /cdn/"));
    gets.map(|head| {
        let range = head.lines().find(|l| l.to_lowercase().starts_with("range")).unwrap();
        let (first, last) = range.split_once('=').unwrap().1.split_once('-').unwrap();
        (first.parse().unwrap(), last.parse().unwrap())
    })
    .collect()
}

#[test]
fn of_a_model_that_is_only_looked_at_the_weights_stay_where_they_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tales.gguf");
    let model = std::fs::read(path).unwrap();
    let repo = || Repo { files: vec![("m.gguf".to_string(), model.clone())], ..Repo::default() };
    // As it should be; with a connection that breaks; and without ranges.
    let broken = Repo { cuts: vec![10_000], ..repo() };
    let simple = Repo { ignore_ranges: true, ..repo() };
    for (name, repo) in [("peek", repo()), ("peek-cut", broken), ("peek-simple", simple)] {
        let (server, cache) = (Server::start(repo), cache(name));
        let facts = ok(&bitnet(&server.url, &cache, &INSPECT, None));
        assert_eq!(facts["file_bytes"], model.len());
        assert_eq!(facts["tokenizer"]["tokens"], 4096);
        assert!(blobs(&cache).is_empty());
        let ranges = ranges(&server);
        assert!(ranges.iter().all(|r| r.1 < 1_000_000), "{ranges:?}");
        if name == "peek-cut" {
            assert_eq!((ranges[0].0, ranges[1].0), (0, 10_000));
        }
    }
    let (server, cache) = (Server::start(repo()), cache("peek-tokenize"));
    let text = ["tokenize", "hf:owner/repo", "once", "--json"];
    assert!(ok(&bitnet(&server.url, &cache, &text, None))["ids"][0].is_number());
    assert!(blobs(&cache).is_empty());
    // A server that sends nothing is given up.
    let server = Server::start(Repo { cuts: vec![0; 100], ..repo() });
    fails(
        &bitnet(&server.url, &cache, &INSPECT, None),
        &["hf:owner/repo", "the connection was cut"],
    );
    assert!(server.seen().len() < 20);
}

#[test]
fn several_models_need_a_name() {
    let mut repo = with_file("a.gguf");
    repo.files.push(("b.gguf".to_string(), model()));
    let server = Server::start(repo);
    let cache = cache("several");
    let list = ["several models", "hf:owner/repo/a.gguf", "hf:owner/repo/b.gguf"];
    fails(&bitnet(&server.url, &cache, &INSPECT, None), &list);
    let named = |name: &str| bitnet(&server.url, &cache, &["inspect", "--json", name], None);
    ok(&named("hf:owner/repo/b.gguf"));
    fails(&named("hf:owner/repo/c.gguf"), &["no file c.gguf", "a.gguf"]);
}

#[test]
fn folders_of_safetensors() {
    let files = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let folder = "bitnet2b4t-mini/hf-packed-offline";
    let mut files: Vec<_> =
        files.iter().map(|f| (f.to_string(), fixture(&format!("{folder}/{f}")))).collect();
    files.push(("pytorch_model.bin".to_string(), vec![0; 10]));
    // Names that would leave the cache are left out.
    files.push(("../../../../evil.safetensors".to_string(), vec![0; 10]));
    let server = Server::start(Repo { files, ..Repo::default() });
    let cache = cache("folder");
    let facts = ok(&bitnet(&server.url, &cache, &INSPECT, None));
    assert_eq!((&facts["format"], &facts["vocab_size"]), (&"safetensors".into(), &640.into()));
    assert_eq!(facts["tokenizer"]["tokens"], 640);
    assert_eq!(blobs(&cache).len(), 4);
    ok(&bitnet(&server.url, &cache, &RUN, None));
    assert_eq!(blobs(&cache).len(), 5);
}

#[test]
fn what_is_not_there() {
    let server =
        Server::start(Repo { files: vec![("README.md".into(), vec![1])], ..Repo::default() });
    let cache = cache("absent");
    let inspect = |model: &str| bitnet(&server.url, &cache, &["inspect", model], None);
    fails(&inspect("hf:owner/repo"), &["neither a GGUF file nor safetensors"]);
    fails(&inspect("hf:owner/other"), &["owner/other", "HF_TOKEN"]);
    fails(&inspect("hf:owner/repo@v2"), &["v2"]);
    let gone = bitnet("http://127.0.0.1:9", &cache, &INSPECT, None);
    fails(&gone, &["cannot reach http://127.0.0.1:9"]);
    let offline = bitnet(&server.url, &cache, &["inspect", "--offline", "hf:owner/repo"], None);
    fails(&offline, &["not in the cache", "network"]);
}

#[test]
fn the_token_goes_to_the_hub() {
    let server = Server::start(Repo { token: Some("secret".into()), ..with_file("m.gguf") });
    let cache = cache("token");
    let without = bitnet(&server.url, &cache, &INSPECT, None);
    fails(&without, &["private or gated", "HF_TOKEN"]);
    fails(&bitnet(&server.url, &cache, &INSPECT, Some("wrong")), &["may not read it"]);
    ok(&bitnet(&server.url, &cache, &INSPECT, Some("secret")));
    // Or from the file that other programs write.
    std::fs::create_dir_all(&cache).unwrap();
    std::fs::write(cache.join("token"), "secret\n").unwrap();
    ok(&bitnet(&server.url, &cache, &INSPECT, None));
}

#[test]
fn answers_that_are_no_hub() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1000]);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
            );
        }
    });
    fails(&bitnet(&url, &cache("html"), &INSPECT, None), &["does not answer as the Hub does"]);
}
