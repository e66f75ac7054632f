//! The tokenizer against the reference's ids and renderings, against a naive SentencePiece, and
//! against vocabularies and templates that mean harm.

use bitnet_rust::format::{Array, Event, Metadata, Strings, Value, ValueType, gguf};
use bitnet_rust::tokenizer::{ChatOptions, Message, TemplateOrigin, Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn cases() -> serde_json::Value {
    serde_json::from_str(&read(&fixtures().join("tokenizer_cases.json"))).unwrap()
}

fn metadata(path: &Path) -> Metadata {
    let bytes = std::fs::read(path).unwrap();
    let mut parser = gguf::Parser::new(Some(bytes.len() as u64));
    assert_eq!(parser.next(&mut bytes.as_slice()).unwrap(), Event::Header);
    parser.metadata().clone()
}

fn bitnet_metadata() -> Metadata {
    metadata(&fixtures().join("bitnet2b4t-mini/gguf/bitnet2b4t-mini-I2_S.gguf"))
}

/// The metadata with some keys given other values, or none.
fn changed(meta: &Metadata, changes: &[(&str, Option<Value>)]) -> Metadata {
    let mut out = Metadata::default();
    for (key, value) in meta.iter().filter(|(k, _)| changes.iter().all(|c| c.0 != *k)) {
        out.insert(key.to_string(), value.clone()).unwrap();
    }
    for (key, value) in changes {
        if let Some(value) = value {
            out.insert(key.to_string(), value.clone()).unwrap();
        }
    }
    out
}

fn strings<S: AsRef<str>>(list: impl IntoIterator<Item = S>) -> Value {
    Value::Array(Array::Strings(list.into_iter().collect::<Strings>()))
}

fn scalars(ty: ValueType, bytes: Vec<u8>) -> Value {
    Value::Array(Array::Scalars { ty, bytes })
}

fn text(s: &str) -> Option<Value> {
    Some(Value::String(s.to_string()))
}

fn from_folder(folder: &Path) -> Tokenizer {
    Tokenizer::from_hf(
        &read(&folder.join("tokenizer.json")),
        Some(&read(&folder.join("tokenizer_config.json"))),
        Some(&read(&folder.join("generation_config.json"))),
    )
    .unwrap()
}

/// Every tokenizer of the fixtures that the reference's cases hold for, by name.
static ALL: LazyLock<Vec<(String, Tokenizer)>> = LazyLock::new(|| {
    let mut all = Vec::new();
    for family in std::fs::read_dir(fixtures()).unwrap().map(|e| e.unwrap().path()) {
        if !family.join("expected").is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&family).unwrap().map(|e| e.unwrap().path()) {
            if entry.join("tokenizer.json").is_file() {
                all.push((entry.display().to_string(), from_folder(&entry)));
            } else if entry.ends_with("gguf") {
                for file in std::fs::read_dir(&entry).unwrap().map(|e| e.unwrap().path()) {
                    let tokenizer = Tokenizer::from_gguf(&metadata(&file)).unwrap();
                    all.push((file.display().to_string(), tokenizer));
                }
            }
        }
    }
    // As the official file of the 2B-4T model: without a pre-tokenizer.
    let bare = changed(&bitnet_metadata(), &[("tokenizer.ggml.pre", None)]);
    all.push(("no tokenizer.ggml.pre".to_string(), Tokenizer::from_gguf(&bare).unwrap()));
    assert!(all.len() >= 10, "the fixtures are not where they should be");
    all
});

fn ids(v: &serde_json::Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn ids_are_those_of_the_reference() {
    for (name, tokenizer) in ALL.iter() {
        for case in cases()["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(
                tokenizer.encode(text, false).unwrap(),
                ids(&case["ids"]),
                "{name}: {text:?}"
            );
            let with_bos = tokenizer.encode(text, true).unwrap();
            assert_eq!(with_bos, ids(&case["ids_bos"]), "{name}: {text:?}");
        }
    }
}

#[test]
fn decoding_is_that_of_the_reference() {
    for (name, tokenizer) in ALL.iter() {
        for case in cases()["cases"].as_array().unwrap() {
            let decoded = tokenizer.decode(&ids(&case["ids"]), false).unwrap();
            assert_eq!(decoded, case["decoded"].as_str().unwrap(), "{name}");
        }
    }
}

#[test]
fn chats_are_rendered_as_by_the_reference() {
    let cases = cases();
    for (name, tokenizer) in ALL.iter() {
        let template = tokenizer.chat_template();
        // The GGUF files carry the placeholder that their converter writes.
        let own = name.contains("/hf-");
        let origin = if own { TemplateOrigin::Model } else { TemplateOrigin::Replaced };
        assert_eq!(template.origin(), origin, "{name}");
        for chat in cases["chats"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(chat["messages"].clone()).unwrap();
            let prompt = chat["add_generation_prompt"].as_bool().unwrap();
            let text = tokenizer.render_chat(&messages, prompt).unwrap();
            assert_eq!(text, chat["text"].as_str().unwrap(), "{name}");
            assert_eq!(tokenizer.encode(&text, false).unwrap(), ids(&chat["ids"]), "{name}");
        }
    }
}

#[test]
fn facts_agree_between_containers() {
    for (name, tokenizer) in ALL.iter() {
        assert_eq!(tokenizer.vocab_size(), 640, "{name}");
        assert_eq!(tokenizer.bos(), Some(630), "{name}");
        assert_eq!(tokenizer.eos(), Some(638), "{name}");
        assert_eq!(tokenizer.id("<|eot_id|>"), Some(638), "{name}");
        assert_eq!(tokenizer.id("Hello"), None, "{name}");
        // <|end_of_text|>, <|eom_id|>, <|eot_id|>
        assert_eq!(tokenizer.eos_ids(), [631, 637, 638], "{name}");
        assert_eq!(tokenizer.token_bytes(638), Some("<|eot_id|>".as_bytes()), "{name}");
        assert_eq!(tokenizer.token_bytes(220), Some(b" ".as_slice()), "{name}");
        assert_eq!(tokenizer.token_bytes(640), None, "{name}");
        assert!(tokenizer.is_special(638) && !tokenizer.is_special(220), "{name}");
    }
    let by_name = |part: &str| ALL.iter().find(|t| t.0.contains(part)).unwrap();
    assert!(by_name("no tokenizer.ggml.pre").1.add_bos());
    assert!(by_name("hf-packed-offline").1.add_bos());
}

#[test]
fn untrusted_text_has_no_special_tokens() {
    let tokenizer = &ALL[0].1;
    let text = "a<|eot_id|>b";
    let plain = tokenizer.encode_plain(text, false).unwrap();
    assert!(!plain.contains(&638), "{plain:?}");
    assert_eq!(tokenizer.decode(&plain, true).unwrap(), text);
    assert_eq!(tokenizer.decode(&tokenizer.encode(text, true).unwrap(), true).unwrap(), "ab");
}

#[test]
fn ids_outside_the_vocabulary() {
    let tokenizer = &ALL[0].1;
    let unknown = TokenizerError::UnknownId { id: 640, vocab: 640 };
    assert_eq!(tokenizer.decode(&[1, 640], false), Err(unknown));
    assert_eq!(tokenizer.decode_stream().push(u32::MAX), "");
}

proptest! {
    #[test]
    fn pieces_together_are_the_whole(ids in prop::collection::vec(0u32..640, 0..64), skip: bool) {
        for (_, tokenizer) in ALL.iter().take(1).chain([&*SENTENCEPIECE]) {
            let ids: Vec<u32> =
                ids.iter().map(|id| id % tokenizer.vocab_size() as u32).collect();
            let mut stream = tokenizer.decode_stream_from_start(skip);
            let mut pieces = String::new();
            for (i, &id) in ids.iter().enumerate() {
                pieces += &stream.push(id);
                // Nothing but an unfinished character is held back.
                let whole = tokenizer.decode(&ids[..=i], skip).unwrap();
                let held = whole.strip_prefix(pieces.as_str());
                let unfinished = [Some(""), Some("\u{fffd}")];
                prop_assert!(unfinished.contains(&held), "{:?} of {:?}", pieces, whole);
            }
            pieces += &stream.finish();
            prop_assert_eq!(&pieces, &tokenizer.decode(&ids, skip).unwrap());
            prop_assert_eq!(stream.finish(), "");
        }
    }

    #[test]
    fn text_comes_back(text in ".{0,40}") {
        for (_, tokenizer) in ALL.iter().take(1).chain([&*SENTENCEPIECE]) {
            let ids = tokenizer.encode_plain(&text, false).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.as_str());
        }
    }

    #[test]
    fn sentencepiece_merges_are_those_of_the_naive_algorithm(text in "[abc ]{0,24}|.{0,12}") {
        let tokenizer = &SENTENCEPIECE.1;
        prop_assert_eq!(tokenizer.encode(&text, false).unwrap(), naive_sentencepiece(&text));
    }
}

/// A small SentencePiece vocabulary: `<unk>`, `<s>`, `</s>`, 256 bytes, then pieces by score.
const PIECES: [&str; 14] =
    ["▁a", "ab", "▁ab", "bc", "abc", "▁▁", "aa", "▁abc", "▁", "a", "b", "c", "é", "▁▁▁▁"];

fn sentencepiece_metadata() -> Metadata {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(PIECES.map(String::from));
    let mut types = vec![2i32, 3, 3];
    types.extend([6; 256]);
    types.extend([1; PIECES.len()]);
    let mut scores = vec![0f32; 259];
    scores.extend((0..PIECES.len()).map(|i| -(i as f32)));
    let bytes_of = |n: usize, f: &dyn Fn(usize) -> [u8; 4]| (0..n).flat_map(f).collect::<Vec<u8>>();
    let n = tokens.len();
    let mut meta = Metadata::default();
    let mut set = |key: &str, value| meta.insert(format!("tokenizer.ggml.{key}"), value).unwrap();
    set("model", Value::String("llama".to_string()));
    set("tokens", strings(&tokens));
    set("token_type", scalars(ValueType::I32, bytes_of(n, &|i| types[i].to_le_bytes())));
    set("scores", scalars(ValueType::F32, bytes_of(n, &|i| scores[i].to_le_bytes())));
    set("bos_token_id", Value::U32(1));
    set("eos_token_id", Value::U32(2));
    meta
}

static SENTENCEPIECE: LazyLock<(String, Tokenizer)> = LazyLock::new(|| {
    ("SentencePiece".to_string(), Tokenizer::from_gguf(&sentencepiece_metadata()).unwrap())
});

/// The definition: start with characters, join the neighbours whose joint piece has the best
/// score, the leftmost first, until none is left; what is no piece becomes bytes.
fn naive_sentencepiece(text: &str) -> Vec<u32> {
    if text.is_empty() {
        return Vec::new();
    }
    let mut parts: Vec<String> =
        format!("▁{}", text.replace(' ', "▁")).chars().map(String::from).collect();
    let rank = |piece: &str| PIECES.iter().position(|p| *p == piece);
    while let Some((_, at)) = (1..parts.len())
        .filter_map(|i| Some((rank(&format!("{}{}", parts[i - 1], parts[i]))?, i)))
        .min()
    {
        let right = parts.remove(at);
        parts[at - 1].push_str(&right);
    }
    let mut ids = Vec::new();
    for part in parts {
        match rank(&part) {
            Some(i) => ids.push(259 + i as u32),
            None => ids.extend(part.bytes().map(|b| 3 + u32::from(b))),
        }
    }
    ids
}

#[test]
fn sentencepiece_by_hand() {
    let tokenizer = &SENTENCEPIECE.1;
    assert!(tokenizer.add_bos());
    // ▁a (best score), ▁ab, ▁abc.
    assert_eq!(tokenizer.encode("abc", true).unwrap(), [1, 266]);
    // "bc" is better than "ab" only where ▁a has not taken the "a".
    assert_eq!(tokenizer.encode("xbc", false).unwrap(), [267, 3 + 120, 262]);
    assert_eq!(tokenizer.encode("é\n", false).unwrap(), [267, 271, 3 + 10]);
    assert_eq!(tokenizer.decode(&[1, 261, 270, 259], true).unwrap(), "abc a");
    // The continuation of a text keeps its space.
    assert_eq!(tokenizer.decode_stream().push(259), " a");
    assert_eq!(tokenizer.eos_ids(), [2]);
}

#[test]
fn sentencepiece_from_tokenizer_json() {
    let mut vocab = serde_json::Map::new();
    for (id, text) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
        vocab.insert(text.to_string(), json!(id));
    }
    for b in 0..256 {
        vocab.insert(format!("<0x{b:02X}>"), json!(3 + b));
    }
    for (i, piece) in PIECES.iter().enumerate() {
        vocab.insert(piece.to_string(), json!(259 + i));
    }
    let pair = |l: &str, r: &str| json!([l, r]);
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let file = |normalizer: serde_json::Value, pre_tokenizer: serde_json::Value| {
        json!({
            "version": "1.0",
            "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                "vocab": vocab, "merges": [
                    pair("▁", "a"), pair("a", "b"), pair("▁a", "b"), pair("▁", "ab"), pair("b", "c"),
                    pair("a", "bc"), pair("ab", "c"), pair("▁", "▁"), pair("a", "a"),
                    pair("▁", "abc"), pair("▁a", "bc"), pair("▁ab", "c"), pair("▁▁", "▁▁")]},
        })
        .to_string()
    };
    let legacy = file(
        json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}),
        serde_json::Value::Null,
    );
    let metaspace = file(
        serde_json::Value::Null,
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}),
    );
    for (file, leading) in [(legacy, " ab  c"), (metaspace, "ab  c")] {
        let tokenizer = Tokenizer::from_hf(&file, None, None).unwrap();
        assert!(tokenizer.add_bos());
        assert_eq!(tokenizer.bos(), Some(1));
        assert_eq!(tokenizer.eos_ids(), [2]);
        for text in ["abc", leading, "é\nx", "", "aaaa bc abc"] {
            assert_eq!(
                tokenizer.encode(text, false).unwrap(),
                naive_sentencepiece(text),
                "{text:?}"
            );
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        }
    }
}

/// What is wrong with the tokenizer of the fixture when these keys are changed.
fn wrong(changes: &[(&str, Option<Value>)]) -> String {
    Tokenizer::from_gguf(&changed(&bitnet_metadata(), changes)).unwrap_err().to_string()
}

#[test]
fn metadata_that_makes_no_sense() {
    let meta = bitnet_metadata();
    let Some(Value::Array(Array::Strings(tokens))) = meta.get("tokenizer.ggml.tokens") else {
        panic!("no tokens")
    };
    let tokens: Vec<&str> = tokens.iter().collect();
    let key = "tokenizer.ggml.tokens";
    let says = |message: String, parts: &[&str]| {
        assert!(parts.iter().all(|p| message.contains(p)), "{message:?} without {parts:?}");
    };
    says(wrong(&[(key, None)]), &["tokenizer.ggml.tokens", "missing"]);
    says(wrong(&[(key, text("no"))]), &["tokenizer.ggml.tokens", "array of strings"]);
    says(wrong(&[(key, Some(scalars(ValueType::U32, vec![0; 2560])))]), &["array of strings"]);
    says(wrong(&[(key, Some(strings(&tokens[..600])))]), &["token_type", "640", "600"]);
    let mut duplicated = tokens.clone();
    duplicated[600] = duplicated[5];
    says(wrong(&[(key, Some(strings(&duplicated)))]), &["token 600", "token 5"]);
    let mut empty = tokens.clone();
    empty[100] = "";
    says(wrong(&[(key, Some(strings(&empty)))]), &["token 100", "empty"]);
    let long = "a".repeat(100_000);
    let mut too_long = tokens.clone();
    too_long[100] = &long;
    let message = wrong(&[(key, Some(strings(&too_long)))]);
    assert!(message.len() < 300, "{} bytes", message.len());
    says(message, &["token 100", "100000"]);
    let mut no_bytes = tokens.clone();
    no_bytes[0] = "zzzz";
    says(wrong(&[(key, Some(strings(&no_bytes)))]), &["vocabulary"]);

    let types = "tokenizer.ggml.token_type";
    says(wrong(&[(types, Some(scalars(ValueType::I32, vec![0; 400])))]), &["token_type", "100"]);
    says(wrong(&[(types, text("no"))]), &["token_type"]);

    let merges = "tokenizer.ggml.merges";
    says(wrong(&[(merges, None)]), &["tokenizer.ggml.merges"]);
    says(wrong(&[(merges, Some(strings(["Ġt"])))]), &["merge 0"]);
    says(wrong(&[(merges, Some(strings(["Ġ t", "nonsense h"])))]), &["merge 1", "nonsense"]);
    says(wrong(&[(merges, Some(strings(["! \""])))]), &["merge 0", "makes something"]);
    let longest = format!("{} {}", tokens[630], tokens[630]);
    says(wrong(&[(merges, Some(strings([longest])))]), &["merge 0"]);

    for name in ["bos", "eos", "eot", "unknown", "padding"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        says(wrong(&[(&key, Some(Value::U32(640)))]), &[&key, "640"]);
        says(wrong(&[(&key, Some(Value::U64(u64::MAX)))]), &[&key, "18446744073709551615"]);
        says(wrong(&[(&key, Some(Value::I32(-1)))]), &[&key]);
        says(wrong(&[(&key, text("1"))]), &[&key]);
    }
    says(wrong(&[("tokenizer.ggml.model", None)]), &["tokenizer.ggml.model"]);
    says(wrong(&[("tokenizer.ggml.model", text("spaceballs"))]), &["spaceballs", "gpt2"]);
    says(wrong(&[("tokenizer.ggml.pre", text("no-such-pre"))]), &["no-such-pre", "llama-bpe"]);
    says(wrong(&[("tokenizer.ggml.add_bos_token", text("yes"))]), &["add_bos_token"]);
    says(wrong(&[("tokenizer.chat_template", Some(Value::U32(1)))]), &["chat_template"]);
}

#[test]
fn sentencepiece_metadata_that_makes_no_sense() {
    let wrong = |key: &str, value| {
        let meta = changed(&sentencepiece_metadata(), &[(key, value)]);
        Tokenizer::from_gguf(&meta).unwrap_err().to_string()
    };
    let scores = "tokenizer.ggml.scores";
    assert!(wrong(scores, None).contains(scores));
    assert!(wrong(scores, Some(scalars(ValueType::F32, vec![0; 4]))).contains("273"));
    let nan: Vec<u8> = (0..273).flat_map(|_| f32::NAN.to_le_bytes()).collect();
    assert!(wrong(scores, Some(scalars(ValueType::F32, nan))).contains("not a number"));
}

#[test]
fn a_missing_pre_tokenizer_goes_by_the_architecture() {
    let bare = changed(
        &bitnet_metadata(),
        &[("tokenizer.ggml.pre", None), ("general.architecture", text("llama"))],
    );
    let other = Tokenizer::from_gguf(&bare).unwrap();
    // llama.cpp's default takes groups of three digits apart from the word, Llama 3 does not join
    // a space to punctuation in the same way.
    let text = "a  'b";
    assert_ne!(other.encode(text, false).unwrap(), ALL[0].1.encode(text, false).unwrap());
    assert_eq!(other.decode(&other.encode(text, false).unwrap(), false).unwrap(), text);
}

#[test]
fn tokenizer_json_that_makes_no_sense() {
    let good = read(&fixtures().join("bitnet2b4t-mini/hf-packed-offline/tokenizer.json"));
    let good: serde_json::Value = serde_json::from_str(&good).unwrap();
    let wrong = |pointer: &str, value: serde_json::Value| {
        let mut file = good.clone();
        *file.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
        let message = Tokenizer::from_hf(&file.to_string(), None, None).unwrap_err().to_string();
        assert!(message.len() < 500, "{message}");
        message
    };
    for text in ["", "{", "[]", "{\"model\": 5}", "null", "\u{0}", &"[".repeat(100_000)] {
        let e = Tokenizer::from_hf(text, None, None).unwrap_err();
        assert!(matches!(e, TokenizerError::Json { .. }), "{e}");
    }
    assert!(wrong("/model/type", json!("Unigram")).contains("Unigram"));
    assert!(wrong("/model/vocab", json!([["a", 1.0]])).contains("merge 0"));
    assert!(wrong("/model/vocab/!", json!(-1)).contains("tokenizer.json"));
    assert!(wrong("/model/vocab/!", json!(1)).contains("already"));
    assert!(wrong("/model/vocab/!", json!(4_000_000_000u32)).contains("4000000001"));
    assert!(wrong("/added_tokens/0/id", json!(4_000_000_000u32)).contains("4000000001"));
    assert!(wrong("/added_tokens/0/id", json!(5)).contains("already"));
    assert!(wrong("/added_tokens/1/content", json!("<|begin_of_text|>")).contains("token 630"));
    assert!(wrong("/added_tokens/1/content", json!("")).contains("empty"));
    assert!(wrong("/model/merges/0", json!(["Ġ"])).contains("pair of tokens"));
    assert!(wrong("/model/merges/0", json!(["Ġ", "t", "h"])).contains("pair of tokens"));
    assert!(wrong("/model/merges/0", json!("a b c")).contains("pair of tokens"));
    assert!(wrong("/model/merges/0", json!(["zz", "zz"])).contains("merge 0"));
    assert!(wrong("/model/continuing_subword_prefix", json!("##")).contains("##"));
    assert!(wrong("/normalizer", json!({"type": "Precompiled"})).contains("Precompiled"));
    let bomb = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(1000)});
    assert!(wrong("/normalizer", bomb).contains("Replace"));
    let chain = vec![json!({"type": "NFC"}); 100];
    assert!(
        wrong("/normalizer", json!({"type": "Sequence", "normalizers": chain})).contains("100")
    );
    assert!(wrong("/pre_tokenizer", json!({"type": "BertPreTokenizer"})).contains("Bert"));
    let regex = json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"});
    assert!(wrong("/pre_tokenizer", regex).contains("(a+)+$"));
    assert!(wrong("/pre_tokenizer", serde_json::Value::Null).contains("decoder"));
}

#[test]
fn configs_that_make_no_sense() {
    let good = read(&fixtures().join("bitnet2b4t-mini/hf-packed-offline/tokenizer.json"));
    let with = |config: serde_json::Value, generation: serde_json::Value| {
        Tokenizer::from_hf(&good, Some(&config.to_string()), Some(&generation.to_string()))
    };
    assert!(Tokenizer::from_hf(&good, Some("{"), None).is_err());
    let e = with(json!({"bos_token": "<nope>"}), json!({})).unwrap_err().to_string();
    assert!(e.contains("bos_token") && e.contains("<nope>"), "{e}");
    let e = with(json!({}), json!({"eos_token_id": [638, 640]})).unwrap_err().to_string();
    assert!(e.contains("eos_token_id") && e.contains("640"), "{e}");
    assert!(with(json!({}), json!({"eos_token_id": "638"})).is_err());
    // Forms that occur.
    let t = with(
        json!({"bos_token": {"content": "<|begin_of_text|>"}, "add_bos_token": false,
            "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]}),
        json!({"eos_token_id": [5, 638]}),
    )
    .unwrap();
    assert_eq!((t.bos(), t.eos(), t.add_bos()), (Some(630), Some(5), false));
    assert_eq!(t.eos_ids(), [5, 631, 637, 638]);
    assert_eq!(t.render_chat(&[], false).unwrap(), "yes");
}

/// Renders a template with two messages.
fn render(template: &str) -> Result<String, TokenizerError> {
    let meta = changed(&bitnet_metadata(), &[("tokenizer.chat_template", text(template))]);
    let messages = [Message::new("system", " Be brief. "), Message::new("user", "Größe?")];
    Tokenizer::from_gguf(&meta).unwrap().render_chat(&messages, true)
}

#[test]
fn templates_speak_python() {
    for (template, expected) in [
        ("{{ messages[0].role.upper() }}{{ messages[1]['content'] }}", "SYSTEMGröße?"),
        ("{{ messages[0]['content'].strip() + '|' }}", "Be brief.|"),
        ("{{ messages[-1].content.startswith('Gr') }}", "True"),
        ("{{ 'a,b,c'.split(',')[1] }}{{ 'x'.replace('x', 'yy') }}", "byy"),
        ("{{ '-'.join(['a', 'b']) }}{{ 'pre-x'.removeprefix('pre-') }}", "a-bx"),
        ("{% if nope is defined %}a{% else %}b{% endif %}{{ nope }}", "b"),
        ("{% if tools is none %}none{% endif %}", "none"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
            "user",
        ),
        // trim_blocks and lstrip_blocks.
        ("a\n    {% if true %}\nb\n    {% endif %}\nc", "a\nb\nc"),
        (
            "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}",
            "<|begin_of_text|><|eot_id|>True",
        ),
        (
            "{{ {'b': 1, 'a': ['<x>', none, 1.5, true]} | tojson }}",
            "{\"b\": 1, \"a\": [\"<x>\", null, 1.5, true]}",
        ),
        ("{{ {'b': [1]} | tojson(indent=2) }}", "{\n  \"b\": [\n    1\n  ]\n}"),
        ("{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}", "[1,{\"a\":2}]"),
        (
            "{{ {'a': [], 'c': [1, {'d': 2}, []], 'e': {}} | tojson(indent=1, separators=(';', '=')) }}",
            "{\n \"a\"=[];\n \"c\"=[\n  1;\n  {\n   \"d\"=2\n  };\n  []\n ];\n \"e\"={}\n}",
        ),
        ("{{ [[], {}, 1] | tojson(indent=0) }}", "[\n[],\n{},\n1\n]"),
        ("{%- generation -%}\n x {% endgeneration %}y", "x y"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') }}", "<a>"),
        ("{{ strftime_now('%%') }}", "%"),
        (
            "{{ messages | length }}{{ messages | map(attribute='role') | join('/') }}",
            "2system/user",
        ),
    ] {
        assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
    }
    assert_eq!(render("{{ strftime_now('%Y') }}").unwrap().len(), 4);
}

#[test]
fn a_template_for_tools() {
    let template = "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}{{ enable_thinking }}";
    let meta = changed(&bitnet_metadata(), &[("tokenizer.chat_template", text(template))]);
    let mut options = ChatOptions {
        tools: vec![json!({"type": "function", "function": {"name": "f", "arguments": {}}})],
        ..ChatOptions::default()
    };
    options.variables.insert("enable_thinking".to_string(), json!(false));
    let text = Tokenizer::from_gguf(&meta).unwrap().render_chat_with(&[], &options).unwrap();
    assert_eq!(
        text,
        "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": {}}}\nFalse"
    );
}

#[test]
fn bad_templates_fail_when_rendered_and_say_where() {
    for (template, part) in [
        ("{% if %}", "line 1"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("\n\n{{ nope.nope.nope }}", "line 3"),
        ("{{ messages[0].nope() }}", "nope"),
        ("{% include 'etc/passwd' %}", "line 1"),
        ("{{ undefined_function() }}", "undefined_function"),
    ] {
        let e = render(template).unwrap_err();
        assert!(matches!(e, TokenizerError::Template { .. }));
        let message = e.to_string();
        assert!(message.starts_with("chat template: ") && message.contains(part), "{message}");
    }
}

#[test]
fn hostile_templates_run_out_of_budget() {
    let doubling = "{% set x = 'aaaaaaaaaaaaaaaa' %}".to_string()
        + &"{% set x = x ~ x %}".repeat(60)
        + "{{ x }}";
    let many = "{% for a in range(100000) %}".repeat(4) + "x" + &"{% endfor %}".repeat(4);
    let deep = "(".repeat(100_000);
    for template in [
        doubling.as_str(),
        many.as_str(),
        "{{ 'x' * 10000000000 }}",
        "{{ range(100000000) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set x = 'a' * 3000000 %}{{ x.replace('a', x) }}",
        "{% set x = 'a' * 3000000 %}{{ x.join([x] * 100000) }}",
        "{% set x = 'a' * 3000000 %}{{ x.strip(x) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{% set x = [1] * 1000 %}{% set y = [x] * 1000 %}{{ ([y] * 1000) | tojson }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        &format!("{{{{ {deep} }}}}"),
        &"{% if true %}".repeat(100_000),
        &"x".repeat(2 << 20),
    ] {
        let head: String = template.chars().take(60).collect();
        let result = render(template);
        assert!(result.is_err(), "{head}: {:?}", result.map(|t| t.len()));
    }
}

#[test]
fn only_the_placeholder_itself_is_replaced() {
    let own = "{% for message in messages %}Human: {{ message['content'] }}\n{% endfor %}";
    assert_eq!(render(own).unwrap(), "Human:  Be brief. \nHuman: Größe?\n");
}

#[test]
fn without_a_template_the_vocabulary_decides() {
    let chat = |changes: &[(&str, Option<Value>)]| {
        let t = Tokenizer::from_gguf(&changed(&bitnet_metadata(), changes)).unwrap();
        assert_eq!(t.chat_template().origin(), TemplateOrigin::Fallback);
        t.render_chat(&[Message::new("user", "Hi")], true).unwrap()
    };
    let none = ("tokenizer.chat_template", None);
    assert_eq!(chat(std::slice::from_ref(&none)), "<|begin_of_text|>User: Hi<|eot_id|>Assistant: ");
    assert_eq!(
        chat(&[none, ("general.architecture", text("llama"))]),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    let mut own = Tokenizer::from_gguf(&sentencepiece_metadata()).unwrap();
    let hi = [Message::new("user", "Hi")];
    assert_eq!(own.render_chat(&hi, true).unwrap(), "<s>User: Hi\nAssistant:");
    own.set_chat_template("{{ messages[0].content }}!");
    assert_eq!(own.render_chat(&hi, true).unwrap(), "Hi!");
    assert_eq!(own.chat_template().origin(), TemplateOrigin::Caller);
}

/// A tokenizer.json with some of its values replaced by others of its own, or by extremes.
fn mutated(mut file: serde_json::Value, choices: &[(usize, usize)]) -> String {
    fn paths(v: &serde_json::Value, at: String, out: &mut Vec<String>) {
        match v {
            serde_json::Value::Object(map) => map.iter().for_each(|(k, v)| {
                paths(v, format!("{at}/{}", k.replace('~', "~0").replace('/', "~1")), out);
            }),
            serde_json::Value::Array(list) => {
                list.iter().enumerate().for_each(|(i, v)| paths(v, format!("{at}/{i}"), out));
            }
            _ => {}
        }
        out.push(at);
    }
    for &(which, with) in choices {
        let mut all = Vec::new();
        paths(&file, String::new(), &mut all);
        let extremes = [
            json!(null),
            json!(true),
            json!(0),
            json!(-1),
            json!(1e300),
            json!(4_194_303),
            json!(""),
            json!(" "),
            json!("▁"),
            json!("\u{0}"),
            json!("Ġ"),
            json!("a".repeat(20_000)),
            json!([]),
            json!({}),
            json!(["a", "b"]),
            json!("ByteLevel"),
            json!("Metaspace"),
            json!("<0x41>"),
        ];
        let value = match extremes.get(with % (2 * extremes.len())) {
            Some(value) => value.clone(),
            None => file.pointer(&all[with % all.len()]).cloned().unwrap_or_default(),
        };
        if let Some(place) = file.pointer_mut(&all[which % all.len()]) {
            *place = value;
        }
    }
    file.to_string()
}

proptest! {
    #[test]
    fn mutated_files_are_refused_or_work(
        choices in prop::collection::vec((0usize..1 << 20, 0usize..1 << 20), 1..4),
        text in ".{0,30}",
    ) {
        static GOOD: LazyLock<serde_json::Value> = LazyLock::new(|| {
            let path = fixtures().join("bitnet2b4t-mini/hf-packed-offline/tokenizer.json");
            let mut file: serde_json::Value = serde_json::from_str(&read(&path)).unwrap();
            // Most values should not be merges.
            file["model"]["merges"].as_array_mut().unwrap().truncate(20);
            file
        });
        if let Ok(tokenizer) = Tokenizer::from_hf(&mutated(GOOD.clone(), &choices), None, None) {
            for text in [text.as_str(), "Hello <|eot_id|> 12345 \u{1f600}\n", "  a"] {
                let ids = tokenizer.encode(text, true).unwrap();
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                tokenizer.decode(&ids, false).unwrap();
                tokenizer.encode_plain(text, false).unwrap();
            }
        }
    }
}
