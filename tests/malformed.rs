//! The malformed models, loaded the way a user's model is: a clear error or a working session,
//! never a panic, a long wait or a wild allocation. (`tests/formats.rs` does the same for the
//! parsers alone, and has the bare safetensors files.)

#[path = "common/malformed.rs"]
mod malformed;

use bitnet_rust::error::Error;
use bitnet_rust::session::{
    Device, DeviceChoice, DeviceOptions, Event, LoadOptions, Prompt, Request, Session, files,
};
use bitnet_rust::tokenizer::Message;
use malformed::Case;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Counts live bytes and their peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards to the system allocator; only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn load(path: &Path) -> Result<Session, Error> {
    let options =
        DeviceOptions { choice: DeviceChoice::Cpu, threads: Some(1), ..DeviceOptions::default() };
    let (device, _) = pollster::block_on(Device::open(&options)).unwrap();
    files::load_on(device, path, &LoadOptions::default(), &mut |_| true)
}

/// All that a user would do with the model; the first error.
fn use_model(path: &Path) -> Result<(), Error> {
    let mut session = load(path)?;
    let mut run = |request: Request| -> Result<(), Error> {
        let mut generation = session.start(Request { max_tokens: Some(3), ..request })?;
        while !matches!(pollster::block_on(session.next(&mut generation))?, Event::Finished(_)) {}
        Ok(())
    };
    run(Request::new(Prompt::Ids(vec![1, 2, 3])))?;
    run(Request::text("Hello"))?;
    run(Request::chat(vec![Message::new("user", "Hello")]))
}

fn write(case: &Case, root: &Path) -> std::path::PathBuf {
    let path = root.join(case.name.trim_end_matches('/'));
    for (name, bytes) in &case.files {
        let file = if name.is_empty() { path.clone() } else { path.join(name) };
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    path
}

#[test]
fn every_malformed_model_gives_a_clear_error_or_works() {
    let root = std::env::temp_dir().join(format!("bitnet-malformed-{}", std::process::id()));
    let mut failures = Vec::new();
    let mut report = String::new();
    for case in malformed::cases().iter().filter(|c| c.category != "safetensors") {
        let path = write(case, &root);
        let size: usize = case.files.iter().map(|f| f.1.len()).sum();
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        let start = Instant::now();
        let result = use_model(&path);
        let (time, peak) = (start.elapsed(), PEAK.load(Relaxed) - before);
        let mut fail = |why: String| failures.push(format!("{}: {why}", case.name));
        match &result {
            Ok(()) if is_error_demanded(case) => fail(format!("loads; expected {}", case.expect)),
            Err(e) if case.must_load => fail(format!("must load, but: {e}")),
            // Errors about the content do not need a path to be understood.
            Err(e)
                if e.to_string().contains(&*root.to_string_lossy())
                    && !matches!(e, Error::Io { .. }) =>
            {
                fail(format!("names a path: {e}"));
            }
            _ => {}
        }
        if peak > (64 << 20) + size {
            fail(format!("{} MB allocated", peak >> 20));
        }
        if time > Duration::from_secs(1) {
            fail(format!("{time:?}"));
        }
        let outcome = match result {
            Ok(()) => "works".to_string(),
            Err(e) => format!("[{}] {e}", e.code()),
        };
        let outcome = outcome.replace(&*root.to_string_lossy(), "");
        report += &format!("{}: {outcome}\n", case.name);
    }
    std::fs::remove_dir_all(&root).unwrap();
    golden(&report);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Whether the manifest allows nothing but an error.
fn is_error_demanded(case: &Case) -> bool {
    let expect = case.expect.trim_start();
    expect.starts_with("error:") && !expect.contains(", or ") && !expect.contains("(or ")
}

/// The messages are part of the product: a change of one is to be seen.
fn golden(report: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/model_errors.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, report).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    for (got, want) in report.lines().zip(golden.lines()) {
        assert_eq!(got, want);
    }
    assert_eq!(report.len(), golden.len());
}
