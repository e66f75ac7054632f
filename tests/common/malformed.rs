//! The malformed models of `tests/malformed`, rebuilt from their patches.

use std::path::Path;

use serde_json::Value;

/// A bad (or, for control, a good) model.
pub struct Case {
    /// Name of the file or folder.
    pub name: String,
    /// `control`, `container`, `tensor-info`, `semantics`, `safetensors` or `model folder`.
    pub category: String,
    /// Whether it is a valid model.
    pub must_load: bool,
    /// What a loader should do, in words.
    pub expect: String,
    /// Its files by name; a single file has the empty name.
    pub files: Vec<(String, Vec<u8>)>,
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/malformed");
    let corpus: Value = serde_json::from_slice(&read(&root.join("corpus.json"))).unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let cases: Vec<Case> = corpus
        .as_array()
        .unwrap()
        .iter()
        .map(|case| Case {
            name: text(&case["name"]),
            category: text(&case["category"]),
            must_load: case["must_load"].as_bool().unwrap(),
            expect: text(&case["expect"]),
            files: case["files"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(file, patch)| {
                    let base = patch["base"].as_str().map_or(Vec::new(), |b| read(&root.join(b)));
                    let bytes = apply(&base, patch["ops"].as_array().unwrap());
                    let hash = format!("{:016x}", fnv1a(&bytes));
                    assert_eq!(
                        hash,
                        text(&patch["fnv1a"]),
                        "{} {file} is not as it was",
                        case["name"]
                    );
                    (file.clone(), bytes)
                })
                .collect(),
        })
        .collect();
    assert_eq!(cases.len(), 141);
    cases
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn apply(base: &[u8], ops: &[Value]) -> Vec<u8> {
    let number = |v: &Value| usize::try_from(v.as_u64().unwrap()).unwrap();
    ops.iter()
        .flat_map(|op| match op {
            Value::Array(range) => base[number(&range[0])..number(&range[1])].to_vec(),
            Value::String(text) => hex(text),
            op => hex(op["hex"].as_str().unwrap()).repeat(number(&op["times"])),
        })
        .collect()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
