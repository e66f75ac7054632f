//! The parsers on good, bad and hostile files, fed in pieces of any size.
//! `UPDATE_GOLDEN=1 cargo test --test formats` rewrites the list of error messages.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use bitnet_rust::format::{
    Array, Container, DType, Event, FormatError, Metadata, TensorInfo, Value, gguf, safetensors,
    sniff,
};
use proptest::prelude::*;

#[path = "common/malformed.rs"]
mod malformed;

// ---------------------------------------------------------------- memory

/// Counts the live bytes of each thread and their peak.
struct Counting;

thread_local! {
    static LIVE: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    LIVE.with(|live| {
        let now = live.get().0 + bytes;
        live.set((now, live.get().1.max(now)));
    });
}

// SAFETY: hands every call to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Old and new may exist side by side while the contents move.
        count(new_size as isize);
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `f` returns, and the most bytes that it held at any time.
fn peak_of<T>(f: impl FnOnce() -> T) -> (T, u64) {
    let before = LIVE.get().0;
    LIVE.set((before, before));
    let value = f();
    (value, (LIVE.get().1 - before) as u64)
}

// ---------------------------------------------------------------- driving a parser

/// What a parser made of a file.
#[derive(Clone, Debug, PartialEq)]
struct Parsed {
    keys: Vec<String>,
    tensors: Vec<TensorInfo>,
    /// FNV-1a of each tensor's data.
    data: Vec<u64>,
}

/// Feeds a file in pieces of `chunk` bytes, and checks the order of events on the way.
fn parse(
    container: Container,
    bytes: &[u8],
    chunk: usize,
    size_known: bool,
) -> Result<Parsed, FormatError> {
    let size = size_known.then_some(bytes.len() as u64);
    let mut gguf = gguf::Parser::new(size);
    let mut safetensors = safetensors::Parser::new(size);
    let mut next = |input: &mut &[u8], seen: &mut Seen| -> Result<bool, FormatError> {
        let event = match container {
            Container::Gguf => gguf.next(input)?,
            Container::Safetensors => safetensors.next(input)?,
        };
        let tensors = match container {
            Container::Gguf => gguf.tensors(),
            Container::Safetensors => safetensors.tensors(),
        };
        seen.event(&event, tensors);
        Ok(event != Event::NeedInput)
    };
    let mut seen = Seen::default();
    for mut input in bytes.chunks(chunk) {
        while next(&mut input, &mut seen)? {}
        assert!(input.is_empty(), "NeedInput leaves no input");
    }
    let (done, keys, tensors) = match container {
        Container::Gguf => {
            gguf.finish()?;
            let keys = gguf.metadata().iter().map(|(k, _)| k.to_owned()).collect();
            (gguf.is_done(), keys, gguf.tensors())
        }
        Container::Safetensors => {
            safetensors.finish()?;
            let keys = safetensors.metadata().keys().cloned().collect();
            (safetensors.is_done(), keys, safetensors.tensors())
        }
    };
    assert!(done);
    for (t, seen) in tensors.iter().zip(&seen.tensors) {
        assert_eq!(t.bytes, seen.1, "all of '{}' was given", t.name);
    }
    let data = seen.tensors.iter().map(|t| t.0).collect();
    Ok(Parsed { keys, tensors: tensors.to_vec(), data })
}

#[derive(Default)]
struct Seen {
    header: bool,
    /// Hash and length of each tensor's data so far.
    tensors: Vec<(u64, u64)>,
    /// Where in the file the last data ended.
    at: u64,
}

impl Seen {
    fn event(&mut self, event: &Event<'_>, tensors: &[TensorInfo]) {
        match event {
            Event::Header => {
                assert!(!self.header, "one header");
                self.header = true;
                self.tensors = vec![(0xcbf2_9ce4_8422_2325, 0); tensors.len()];
            }
            Event::Data { tensor, offset, bytes } => {
                assert!(self.header && !bytes.is_empty());
                let (hash, len) = &mut self.tensors[*tensor];
                assert_eq!(*offset, *len, "no gaps");
                assert!(tensors[*tensor].offset + offset >= self.at, "file order");
                *hash = bytes
                    .iter()
                    .fold(*hash, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
                *len += bytes.len() as u64;
                self.at = tensors[*tensor].offset + *len;
            }
            Event::NeedInput => {}
        }
    }
}

/// The result for all piece sizes; it must be the same for each.
fn parse_all_ways(container: Container, bytes: &[u8], known: bool) -> Result<Parsed, FormatError> {
    let whole = parse(container, bytes, usize::MAX, known);
    for chunk in [1, 7, 4096] {
        assert_eq!(parse(container, bytes, chunk, known), whole, "in pieces of {chunk}");
    }
    whole
}

// ---------------------------------------------------------------- writing test files

/// A GGUF file, written by hand so that it can be wrong.
#[derive(Clone)]
struct File {
    version: u32,
    entries: Vec<(String, u32, Vec<u8>)>,
    /// Name, `ne`, type id, offset.
    infos: Vec<(String, Vec<u64>, u32, u64)>,
    data: Vec<u8>,
}

impl File {
    fn new() -> Self {
        File { version: 3, entries: Vec::new(), infos: Vec::new(), data: Vec::new() }
    }
    fn entry(mut self, key: &str, ty: u32, value: impl Into<Vec<u8>>) -> Self {
        self.entries.push((key.into(), ty, value.into()));
        self
    }
    fn info(mut self, name: &str, ne: &[u64], ty: u32, offset: u64) -> Self {
        self.infos.push((name.into(), ne.into(), ty, offset));
        self
    }
    fn data(mut self, bytes: usize) -> Self {
        self.data = (0..bytes).map(|i| (i * 7 + i / 256) as u8).collect();
        self
    }
    fn bytes(&self) -> Vec<u8> {
        let mut b = b"GGUF".to_vec();
        b.extend(self.version.to_le_bytes());
        b.extend((self.infos.len() as u64).to_le_bytes());
        b.extend((self.entries.len() as u64).to_le_bytes());
        for (key, ty, value) in &self.entries {
            b.extend(string(key));
            b.extend(ty.to_le_bytes());
            b.extend(value);
        }
        for (name, ne, ty, offset) in &self.infos {
            b.extend(string(name));
            b.extend((ne.len() as u32).to_le_bytes());
            ne.iter().for_each(|n| b.extend(n.to_le_bytes()));
            b.extend(ty.to_le_bytes());
            b.extend(offset.to_le_bytes());
        }
        b.resize(b.len().next_multiple_of(32), 0);
        b.extend(&self.data);
        b
    }
}

fn string(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

fn array(ty: u32, len: usize, elems: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &(len as u64).to_le_bytes(), elems].concat()
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut b = (header.len() as u64).to_le_bytes().to_vec();
    b.extend(header.as_bytes());
    b.resize(b.len() + data, 7);
    b
}

fn header_of(file: &File) -> (Metadata, Vec<TensorInfo>) {
    let bytes = file.bytes();
    let mut parser = gguf::Parser::new(Some(bytes.len() as u64));
    assert_eq!(parser.next(&mut &bytes[..]).unwrap(), Event::Header);
    (parser.metadata().clone(), parser.tensors().to_vec())
}

/// One entry of each type.
fn all_types() -> File {
    let le = |v: &[f64]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    File::new()
        .entry("u8", 0, [200])
        .entry("i8", 1, [0xfe])
        .entry("u16", 2, 60000u16.to_le_bytes())
        .entry("i16", 3, (-5i16).to_le_bytes())
        .entry("u32", 4, 4_000_000_000u32.to_le_bytes())
        .entry("i32", 5, (-7i32).to_le_bytes())
        .entry("f32", 6, 0.5f32.to_le_bytes())
        .entry("bool", 7, [1])
        .entry("string", 8, string("grüße"))
        .entry("u64", 10, (1u64 << 40).to_le_bytes())
        .entry("i64", 11, (-1i64 << 40).to_le_bytes())
        .entry("f64", 12, 0.25f64.to_le_bytes())
        .entry("strings", 9, array(8, 3, &[string("a"), string(""), string("ü")].concat()))
        .entry("i32s", 9, array(5, 2, &[[1, 0, 0, 0], [0xff; 4]].concat()))
        .entry("f64s", 9, array(12, 2, &le(&[1.5, -2.0])))
        .entry("bools", 9, array(7, 2, &[0, 1]))
        .entry("empty", 9, array(8, 0, &[]))
        .entry("none", 9, array(6, 0, &[]))
        .info("late", &[64], 0, 512)
        .info("early", &[256, 2], 35, 0)
        .data(512 + 256)
}

// ---------------------------------------------------------------- tests

#[test]
fn every_malformed_file_gives_the_same_clean_answer_in_any_pieces() {
    let mut golden = String::new();
    for case in malformed::cases() {
        let files = case.files.iter().filter_map(|(name, bytes)| match &name[..] {
            "" if case.name.ends_with(".gguf") => Some((name, Container::Gguf, bytes)),
            "" | "model.safetensors" => Some((name, Container::Safetensors, bytes)),
            _ => None,
        });
        for (file, container, bytes) in files {
            let name = format!("{}/{file}", case.name);
            let name = name.trim_end_matches('/');
            let mut answers = Vec::new();
            for known in [true, false] {
                let (answer, peak) = peak_of(|| parse_all_ways(container, bytes, known));
                // Much less than what is allowed: 64 MB and the file.
                assert!(peak < (1 << 20) + 4 * bytes.len() as u64, "{name}: {peak} bytes");
                answers.push(match answer {
                    Ok(parsed) => format!("{} tensors", parsed.tensors.len()),
                    Err(error) => error.to_string(),
                });
            }
            let is_error = !answers[0].ends_with(" tensors");
            assert!(!(is_error && case.must_load), "{name}: {}", answers[0]);
            match &case.category[..] {
                "container" | "tensor-info" | "safetensors" if !case.must_load => {
                    assert!(is_error, "{name} must be refused: {}", case.expect);
                }
                _ => {}
            }
            golden += &format!("{name}: {}\n", answers[0]);
            if answers[1] != answers[0] {
                golden += &format!("    size unknown: {}\n", answers[1]);
            }
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format_errors.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &golden).unwrap();
    }
    let before = std::fs::read_to_string(&path).unwrap();
    for (now, before) in golden.lines().zip(before.lines()) {
        assert_eq!(now, before);
    }
    assert_eq!(golden.len(), before.len());
}

#[test]
fn good_files_are_given_whole_and_in_file_order() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut files = 0;
    for family in std::fs::read_dir(fixtures).unwrap().filter_map(|e| Some(e.ok()?.path())) {
        for folder in
            std::fs::read_dir(family).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()))
        {
            for path in
                std::fs::read_dir(folder).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()))
            {
                let ext = path.extension().and_then(|e| e.to_str());
                if !matches!(ext, Some("gguf" | "safetensors")) {
                    continue;
                }
                let bytes = std::fs::read(&path).unwrap();
                let container = sniff(&bytes[..9]).unwrap();
                assert_eq!(container == Container::Gguf, ext == Some("gguf"));
                let parsed = parse_all_ways(container, &bytes, true).unwrap();
                assert_eq!(parse_all_ways(container, &bytes, false), Ok(parsed.clone()));
                for (t, hash) in parsed.tensors.iter().zip(&parsed.data) {
                    let data = &bytes[t.offset as usize..][..t.bytes as usize];
                    let fnv = data.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &b| {
                        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
                    });
                    assert_eq!(fnv, *hash, "{}: {}", path.display(), t.name);
                }
                files += 1;
            }
        }
    }
    assert!(files >= 10, "only {files} fixtures found");
}

#[test]
fn infos_may_come_in_any_order() {
    let file = all_types();
    let parsed = parse_all_ways(Container::Gguf, &file.bytes(), true).unwrap();
    let names: Vec<_> = parsed.tensors.iter().map(|t| (&t.name[..], &t.shape[..])).collect();
    assert_eq!(names, [("late", &[64][..]), ("early", &[2, 256])], "header order, outermost first");
    // Version 2 is read alike, and padding after the last tensor may be missing or plentiful.
    let v2 = File { version: 2, ..file.clone() };
    assert_eq!(parse_all_ways(Container::Gguf, &v2.bytes(), true).unwrap().data, parsed.data);
    let longer = [file.bytes(), vec![1; 100]].concat();
    assert_eq!(parse_all_ways(Container::Gguf, &longer, true).unwrap(), parsed);
}

#[test]
fn all_value_types_are_read() {
    let (m, _) = header_of(&all_types());
    assert_eq!(m.len(), 18);
    assert_eq!(m.get_u32("u8"), Ok(Some(200)));
    assert_eq!(m.get("i8"), Some(&Value::I8(-2)));
    assert_eq!(m.get_u32("u16"), Ok(Some(60000)));
    assert_eq!(m.get("i16"), Some(&Value::I16(-5)));
    assert_eq!(m.get_u32("u32"), Ok(Some(4_000_000_000)));
    assert_eq!(m.get("i32"), Some(&Value::I32(-7)));
    assert_eq!(m.get_f32("f32"), Ok(Some(0.5)));
    assert_eq!(m.get_bool("bool"), Ok(Some(true)));
    assert_eq!(m.get_str("string"), Ok(Some("grüße")));
    assert_eq!(m.get_u64("u64"), Ok(Some(1 << 40)));
    assert_eq!(m.get("i64"), Some(&Value::I64(-1 << 40)));
    assert_eq!(m.get_f32("f64"), Ok(Some(0.25)));
    let strings = m.strings("strings").unwrap().unwrap();
    assert_eq!(strings.iter().collect::<Vec<_>>(), ["a", "", "ü"]);
    assert_eq!((strings.get(2), strings.get(3)), (Some("ü"), None));
    assert_eq!(m.integers("i32s"), Ok(Some(vec![1, -1])));
    assert_eq!(m.floats("f64s"), Ok(Some(vec![1.5, -2.0])));
    let Some(Value::Array(bools)) = m.get("bools") else { panic!() };
    assert_eq!(bools.iter().collect::<Vec<_>>(), [Value::Bool(false), Value::Bool(true)]);
    assert!(m.strings("empty").unwrap().unwrap().is_empty());
    assert_eq!(m.floats("none"), Ok(Some(vec![])));
    assert_eq!(m.get_u32("absent"), Ok(None));
    assert_eq!(m.require_u32("absent"), Err(FormatError::MissingKey { key: "absent".into() }));
    for key in ["i8", "f32", "bool", "string", "strings", "u64"] {
        match m.get_u32(key) {
            Err(FormatError::WrongValueType { key: k, expected: "u32", .. }) => assert_eq!(k, key),
            other => panic!("{key}: {other:?}"),
        }
    }
    assert!(m.get_bool("u8").is_err() && m.get_f32("u32").is_err() && m.get_str("bool").is_err());
    assert!(m.strings("i32s").is_err() && m.integers("strings").is_err());
}

#[test]
fn group_size_of_q2_0_follows_from_the_offsets() {
    let dtypes = |a: u64, b: u64, data: usize| {
        let file = File::new().info("b", &[128, 64], 42, a).info("a", &[128, 64], 42, b).data(data);
        let (_, tensors) = header_of(&file);
        parse_all_ways(Container::Gguf, &file.bytes(), true).unwrap();
        (tensors[0].dtype, tensors[0].bytes, tensors[1].dtype)
    };
    assert_eq!(dtypes(0, 2304, 2 * 2304), (DType::Q2_0, 2304, DType::Q2_0));
    assert_eq!(dtypes(0, 2176, 2 * 2176), (DType::Q2_0_128, 2176, DType::Q2_0_128));
}

#[test]
fn a_header_of_a_large_vocabulary_is_read() {
    let n = 152_000;
    let tokens: Vec<u8> = (0..n).flat_map(|i| string(&format!("token{i}"))).collect();
    let merges: Vec<u8> = (0..n).flat_map(|i| string(&format!("left{i} right{i}"))).collect();
    let file = File::new()
        .entry("tokenizer.ggml.tokens", 9, array(8, n, &tokens))
        .entry("tokenizer.ggml.merges", 9, array(8, n, &merges))
        .entry("tokenizer.ggml.token_type", 9, array(5, n, &vec![0; 4 * n]));
    let bytes = file.bytes();
    assert!(bytes.len() > 6 << 20);
    for known in [true, false] {
        for chunk in [1 << 16, usize::MAX] {
            let run = || parse(Container::Gguf, &bytes, chunk, known).unwrap();
            let (parsed, peak) = peak_of(run);
            assert_eq!(parsed.keys.len(), 3);
            assert!(peak < 3 * bytes.len() as u64, "{peak} bytes for {}", bytes.len());
        }
    }
    let (m, _) = header_of(&file);
    let tokens = m.require_strings("tokenizer.ggml.tokens").unwrap();
    assert_eq!((tokens.len(), tokens.get(n - 1)), (n, Some("token151999")));
}

/// The files that make a reader keep the most for each of their bytes.
#[test]
fn the_greediest_headers_stay_within_bounds() {
    let no_tensors = |entry: Vec<u8>| File::new().entry("k", 9, entry).bytes();
    let many = |count: usize, each: &dyn Fn(usize) -> String| {
        let all: Vec<String> = (0..count).map(each).collect();
        safetensors(&format!("{{{}}}", all.join(",")), 0)
    };
    let mut entries = File::new();
    let mut infos = File::new();
    for i in 0..65_000 {
        entries = entries.entry(&format!("{i:x}"), 0, [1]);
        infos = infos.info(&format!("{i:x}"), &[1], 24, 32 * i);
    }
    let files: Vec<(&str, Container, Vec<u8>)> = vec![
        ("empty strings", Container::Gguf, no_tensors(array(8, 4_000_000, &vec![0; 32_000_000]))),
        ("bytes", Container::Gguf, no_tensors(array(0, 33_000_000, &vec![0; 33_000_000]))),
        (
            "one string",
            Container::Gguf,
            File::new().entry("k", 8, string(&"x".repeat(16 << 20))).bytes(),
        ),
        ("entries", Container::Gguf, entries.bytes()),
        ("infos", Container::Gguf, infos.bytes()),
        (
            "tensors",
            Container::Safetensors,
            many(65_000, &|i| {
                format!(r#""{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)
            }),
        ),
        ("metadata", Container::Safetensors, {
            let all: Vec<String> = (0..65_000).map(|i| format!(r#""{i:x}":"""#)).collect();
            safetensors(&format!(r#"{{"__metadata__":{{{}}}}}"#, all.join(",")), 0)
        }),
        ("shape", Container::Safetensors, {
            let ones = vec!["1"; 5_000_000].join(",");
            safetensors(
                &format!(r#"{{"a":{{"dtype":"U8","shape":[{ones}],"data_offsets":[0,1]}}}}"#),
                1,
            )
        }),
        ("too long", Container::Safetensors, safetensors(&" ".repeat(33 << 20), 0)),
    ];
    for (name, container, bytes) in files {
        for known in [true, false] {
            for chunk in [65_537, usize::MAX] {
                let (_, peak) = peak_of(|| parse(container, &bytes, chunk, known).map(|_| ()));
                let allowed = (64 << 20) + bytes.len() as u64;
                assert!(peak <= allowed, "{name}: {peak} of {allowed} bytes");
            }
        }
    }
}

/// Bytes changed, cut, put in and taken out: any answer but a panic, and little memory.
#[test]
fn damaged_files_never_panic_and_never_cost_memory() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/malformed");
    let seeds = [
        (Container::Gguf, std::fs::read(root.join("ok-control.gguf")).unwrap(), 7300),
        (Container::Gguf, all_types().bytes(), 1000),
        (Container::Safetensors, std::fs::read(root.join("ok-control.safetensors")).unwrap(), 300),
        (
            Container::Safetensors,
            std::fs::read(root.join("ok-folder/model.safetensors")).unwrap(),
            2000,
        ),
    ];
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % below.max(1)
    };
    let numbers =
        [0, 1, 3, 255, 1 << 31, u64::from(u32::MAX), 1 << 40, 1 << 61, u64::MAX / 2, u64::MAX];
    let (mut refused, mut taken) = (0, 0);
    for (container, seed, header) in &seeds {
        for round in 0..1500 {
            let mut bytes = seed.clone();
            for _ in 0..1 + random(3) {
                let at = random((*header).min(bytes.len()));
                match random(6) {
                    0 | 1 => bytes[at] ^= 1 << random(8),
                    2 => bytes[at] = random(256) as u8,
                    3 => {
                        let number = numbers[random(numbers.len())].to_le_bytes();
                        let n = if random(2) == 0 { 4 } else { 8 };
                        let end = (at + n).min(bytes.len());
                        bytes[at..end].copy_from_slice(&number[..end - at]);
                    }
                    4 => drop(bytes.drain(at..(at + 1 + random(16)).min(bytes.len()))),
                    _ => drop(bytes.splice(at..at, vec![random(256) as u8; 1 + random(16)])),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            if round % 5 == 0 {
                bytes.truncate(random(bytes.len()));
            }
            let known = round % 2 == 0;
            let (answer, peak) = peak_of(|| parse(container.to_owned(), &bytes, usize::MAX, known));
            assert!(peak < (1 << 20) + 4 * bytes.len() as u64, "{peak} bytes for {}", bytes.len());
            let chunk = 1 + random(600);
            assert_eq!(parse(*container, &bytes, chunk, known), answer, "in pieces of {chunk}");
            *(if answer.is_ok() { &mut taken } else { &mut refused }) += 1;
        }
    }
    assert!(refused > 1000 && taken > 100, "{refused} refused, {taken} taken: a poor mix");
}

#[test]
fn an_error_stays() {
    let mut parser = gguf::Parser::new(None);
    let error = parser.next(&mut &b"GGML1234"[..]).unwrap_err();
    assert_eq!(error, FormatError::BadMagic { got: *b"GGML" });
    assert_eq!(parser.next(&mut &b"GGUF"[..]), Err(error.clone()));
    assert_eq!(parser.finish(), Err(error));
    assert!(!parser.is_done());
    let mut parser = safetensors::Parser::new(None);
    let error = parser.next(&mut &[0; 8][..]).unwrap_err();
    assert_eq!(parser.next(&mut &[1; 8][..]), Err(error.clone()));
    assert_eq!(parser.finish(), Err(error));
}

#[test]
fn containers_are_told_by_their_first_bytes() {
    assert_eq!(sniff(b"GGUF"), Ok(Container::Gguf));
    assert_eq!(sniff(&safetensors("{}", 0)), Ok(Container::Safetensors));
    assert!(matches!(sniff(b"PK\x03\x04 a zip archive"), Err(FormatError::Unrecognized { .. })));
    assert!(matches!(sniff(b"GG"), Err(FormatError::UnexpectedEnd { .. })));
}

#[test]
fn an_index_names_files_of_its_folder_only() {
    let index = |map: &str| {
        let text = format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{map}}}"#);
        safetensors::Index::parse(text.as_bytes())
    };
    let good =
        index(r#"{"b":"m-2.safetensors","a":"m-1.safetensors","c":"m-2.safetensors"}"#).unwrap();
    assert_eq!(good.shards(), ["m-2.safetensors", "m-1.safetensors"]);
    assert_eq!(good.shard_of("c"), Some("m-2.safetensors"));
    assert_eq!(good.shard_of("d"), None);
    assert_eq!(good.tensors().next(), Some(("a", "m-1.safetensors")));
    let paths =
        ["../x", "/etc/hostname", "a/b", "..", ".", "", r"..\\x", "C:x", r"a\u0000b", r"a\nb"];
    for path in paths {
        match index(&format!(r#"{{"a":"{path}"}}"#)) {
            Err(FormatError::ShardPath { tensor, .. }) => assert_eq!(tensor, "a"),
            other => panic!("{path}: {other:?}"),
        }
    }
    for bad in [r#"{"a":"x","a":"y"}"#, r#"{"a":1}"#, "[]", "null"] {
        assert!(matches!(index(bad), Err(FormatError::Json { .. })), "{bad}");
    }
    assert!(safetensors::Index::parse(b"{}").is_err());
    assert!(safetensors::Index::parse(&[0xff]).is_err());
    let long: BTreeMap<String, String> =
        (0..5000).map(|i| (format!("t{i}"), format!("f{i}"))).collect();
    assert!(index(&serde_json::to_string(&long).unwrap()).is_err(), "5000 shards");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300), chunk in 1usize..40) {
        for container in [Container::Gguf, Container::Safetensors] {
            for prefix in [&b""[..], b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0", b"\x20\0\0\0\0\0\0\0{\""] {
                let bytes = [prefix, &bytes].concat();
                let whole = parse(container, &bytes, usize::MAX, true);
                prop_assert_eq!(parse(container, &bytes, chunk, true), whole);
            }
        }
    }

    #[test]
    fn metadata_round_trips(strings in prop::collection::vec(".{0,12}", 0..20), numbers in prop::collection::vec(any::<i32>(), 0..50)) {
        let elems: Vec<u8> = strings.iter().flat_map(|s| string(s)).collect();
        let ints: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let file = File::new()
            .entry("s", 9, array(8, strings.len(), &elems))
            .entry("n", 9, array(5, numbers.len(), &ints));
        let (m, _) = header_of(&file);
        let got = m.strings("s").unwrap().unwrap();
        prop_assert_eq!(got.iter().collect::<Vec<_>>(), strings);
        prop_assert_eq!(m.integers("n").unwrap().unwrap(), numbers);
        let scalars = matches!(m.get("n"), Some(Value::Array(Array::Scalars { .. })));
        prop_assert!(scalars);
    }
}
