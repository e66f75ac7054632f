//! Pre-tokenization: where a text is cut before merges are applied, by name (GGUF) and by
//! description (`tokenizer.json`).
//!
//! The regular expressions are those of the `tokenizers` crate's hand-written grammars. No regex
//! engine is linked: it would cost half a megabyte of wasm, and a pattern out of a hostile file
//! could make it run for ever.

use super::error::TokenizerError;
use super::normalize::{Form, Normalize};
use serde_json::Value;
use tokenizers::SplitDelimiterBehavior;
use tokenizers::normalizers::metaspace::{MetaspaceNormalizer, PrependBehavior};
use tokenizers::normalizers::{Prepend, Replace};
use tokenizers::pipeline::{PreTokenizer, PreTokenizerScratch, Span};
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

/// GPT-2's expression.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's: digits in groups of up to three.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's: digits one by one.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Falcon's last step, on what the steps before it left.
const DIGIT_TRIPLES: &str = "[0-9][0-9][0-9]";

/// Most steps of a chain (Falcon has four): each is another pass over the text.
const MAX_STEPS: usize = 16;
/// Most normalizers, and the longest text one may put in place of a pattern: with these a text
/// grows by a factor of at most 8⁴, where a hostile chain could double it without end.
const MAX_NORMALIZERS: usize = 4;
const MAX_REPLACEMENT_BYTES: usize = 8;

/// One step of a chain: cuts the pieces that the steps before it left.
#[derive(Debug)]
pub(super) enum Step {
    Split(Split),
    Digits(Digits),
    Punctuation(Punctuation),
    /// Every three ASCII digits in a row are a piece.
    DigitTriples,
}

impl Step {
    fn regex(pattern: &str) -> Result<Step, TokenizerError> {
        if pattern == DIGIT_TRIPLES {
            return Ok(Step::DigitTriples);
        }
        let split = Split::native(
            SplitPattern::Regex(pattern.to_string()),
            SplitDelimiterBehavior::Isolated,
            false,
        )
        .map_err(|e| TokenizerError::Build { reason: e.to_string() })?;
        match split.grammar() {
            Some(_) => Ok(Step::Split(split)),
            None => Err(TokenizerError::Unsupported {
                what: "pre-tokenizer expression",
                name: super::error::excerpt(pattern),
                supported: "those of GPT-2, Llama 3 (cl100k), Qwen 2, o200k, Tekken and Falcon",
            }),
        }
    }

    /// Cuts one piece of text; spans are relative to it.
    pub(super) fn cut(
        &self,
        text: &str,
        scratch: &mut PreTokenizerScratch,
        out: &mut Vec<Span>,
    ) -> Result<(), TokenizerError> {
        let result = match self {
            Step::Split(step) => step.pre_tokenize(text, scratch, out),
            Step::Digits(step) => step.pre_tokenize(text, scratch, out),
            Step::Punctuation(step) => step.pre_tokenize(text, scratch, out),
            Step::DigitTriples => {
                cut_digit_triples(text.as_bytes(), out);
                Ok(())
            }
        };
        result.map_err(|e| TokenizerError::Encode { reason: e.to_string() })
    }
}

fn cut_digit_triples(bytes: &[u8], out: &mut Vec<Span>) {
    // Callers bound a text by u32 (`Encoder::encode`).
    let span = |start: usize, end: usize| Span { start: start as u32, end: end as u32 };
    let (mut start, mut at) = (0, 0);
    while let Some(window) = bytes.get(at..at + 3) {
        if window.iter().all(u8::is_ascii_digit) {
            if start < at {
                out.push(span(start, at));
            }
            out.push(span(at, at + 3));
            at += 3;
            start = at;
        } else {
            at += 1;
        }
    }
    if start < bytes.len() {
        out.push(span(start, bytes.len()));
    }
}

/// Names of `tokenizer.ggml.pre` that are known here.
const NAMES: &str =
    "llama-bpe, llama3, falcon3, falcon_e, gpt-2, gpt2, qwen2, falcon, default, and their kin";

/// What a name stands for.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) steps: Vec<Step>,
    /// A piece that is a token stays whole, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether a text starts with the beginning-of-text token when the file does not say.
    pub(super) add_bos: bool,
}

/// The chain of a `tokenizer.ggml.pre`.
///
/// # Source
/// llama.cpp `src/llama-vocab.cpp` (names, and what they share), bitnet.cpp (`falcon_e`);
/// Falcon's chain from its tokenizer.json. llama.cpp's `default` differs from Falcon's only in
/// that it does not cut at a backtick.
pub(super) fn by_name(name: &str) -> Result<Named, TokenizerError> {
    let plain = |pattern| {
        Ok(Named { steps: vec![Step::regex(pattern)?], ignore_merges: false, add_bos: false })
    };
    match name {
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "falcon_e" | "falcon-e"
        | "pixtral" | "lfm2" => {
            Ok(Named { steps: vec![Step::regex(LLAMA3)?], ignore_merges: true, add_bos: true })
        }
        "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" => plain(GPT2),
        "qwen2" | "stablelm2" | "deepseek-r1-qwen" => plain(QWEN2),
        "falcon" | "default" => Ok(Named {
            steps: vec![
                Step::Punctuation(Punctuation::new(SplitDelimiterBehavior::Contiguous)),
                Step::regex(GPT2)?,
                Step::Digits(Digits::new(false)),
                Step::DigitTriples,
            ],
            ignore_merges: false,
            add_bos: false,
        }),
        other => Err(TokenizerError::Unsupported {
            what: "pre-tokenizer (tokenizer.ggml.pre)",
            name: super::error::excerpt(other),
            supported: NAMES,
        }),
    }
}

/// What the `pre_tokenizer` and `normalizer` of a `tokenizer.json` come to.
#[derive(Debug, Default)]
pub(super) struct Described {
    pub(super) normalizers: Vec<Normalize>,
    pub(super) steps: Vec<Step>,
    /// The vocabulary is written in GPT-2's byte alphabet.
    pub(super) byte_level: bool,
}

/// Reads `normalizer` and `pre_tokenizer`.
///
/// # Source
/// huggingface/tokenizers 0.2x: the serialised forms, and what their defaults mean.
pub(super) fn by_description(
    normalizer: &Value,
    pre_tokenizer: &Value,
) -> Result<Described, TokenizerError> {
    let mut found = Described::default();
    read_normalizer(normalizer, &mut found)?;
    read_pre_tokenizer(pre_tokenizer, &mut found)?;
    if found.normalizers.len() > MAX_NORMALIZERS || found.steps.len() > MAX_STEPS {
        return Err(TokenizerError::Unsupported {
            what: "chain of",
            name: format!(
                "{} normalizers and {} pre-tokenizers",
                found.normalizers.len(),
                found.steps.len()
            ),
            supported: "4 and 16",
        });
    }
    Ok(found)
}

fn kind(v: &Value) -> &str {
    v.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn flag(v: &Value, key: &str, default: bool) -> bool {
    v.get(key).and_then(Value::as_bool).unwrap_or(default)
}

/// The text of a pattern, and whether it is a regular expression.
fn pattern(v: &Value) -> (&str, bool) {
    let of = |k| v.get("pattern").and_then(|p| p.get(k)).and_then(Value::as_str);
    match (of("String"), of("Regex")) {
        (Some(s), _) => (s, false),
        (None, r) => (r.unwrap_or_default(), true),
    }
}

fn members<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn read_normalizer(v: &Value, found: &mut Described) -> Result<(), TokenizerError> {
    let unsupported = |name: &str| TokenizerError::Unsupported {
        what: "normalizer",
        name: super::error::excerpt(name),
        supported: "Sequence, NFC, NFD, NFKC, NFKD, Prepend, Replace of a short string",
    };
    let text = |key| v.get(key).and_then(Value::as_str).unwrap_or_default();
    let normalizer = match kind(v) {
        "" if v.is_null() => return Ok(()),
        "Sequence" => {
            return members(v, "normalizers").iter().try_for_each(|m| read_normalizer(m, found));
        }
        "Prepend" if text("prepend").len() <= MAX_REPLACEMENT_BYTES => {
            Normalize::Prepend(Prepend::new(text("prepend").to_string()))
        }
        "Replace" => {
            let ((from, is_regex), to) = (pattern(v), text("content"));
            if is_regex || from.is_empty() || to.len() > MAX_REPLACEMENT_BYTES {
                return Err(unsupported(&format!("Replace {from:?} by {to:?}")));
            }
            let replace = Replace::new(from, to);
            let failed = |e: tokenizers::Error| TokenizerError::Build { reason: e.to_string() };
            Normalize::Replace(replace.map_err(failed)?)
        }
        other => match Form::by_name(other) {
            Some(form) => Normalize::Unicode(form),
            None => return Err(unsupported(other)),
        },
    };
    found.normalizers.push(normalizer);
    Ok(())
}

fn read_pre_tokenizer(v: &Value, found: &mut Described) -> Result<(), TokenizerError> {
    let unsupported = |name: &str| TokenizerError::Unsupported {
        what: "pre-tokenizer",
        name: super::error::excerpt(name),
        supported: "Sequence, Split, ByteLevel, Metaspace, Digits, Punctuation",
    };
    let behavior = |default| {
        Ok(match v.get("behavior").and_then(Value::as_str).unwrap_or(default) {
            "Removed" => SplitDelimiterBehavior::Removed,
            "Isolated" => SplitDelimiterBehavior::Isolated,
            "MergedWithPrevious" => SplitDelimiterBehavior::MergedWithPrevious,
            "MergedWithNext" => SplitDelimiterBehavior::MergedWithNext,
            "Contiguous" => SplitDelimiterBehavior::Contiguous,
            other => return Err(unsupported(&format!("{} with behavior {other}", kind(v)))),
        })
    };
    let step = match kind(v) {
        "" if v.is_null() => return Ok(()),
        "Sequence" => {
            return members(v, "pretokenizers")
                .iter()
                .try_for_each(|m| read_pre_tokenizer(m, found));
        }
        "ByteLevel" => {
            if flag(v, "add_prefix_space", true) {
                return Err(unsupported("ByteLevel with add_prefix_space"));
            }
            found.byte_level = true;
            if !flag(v, "use_regex", true) {
                return Ok(());
            }
            Step::regex(GPT2)?
        }
        "Metaspace" => return read_metaspace(v, found),
        "Digits" => Step::Digits(Digits::new(flag(v, "individual_digits", false))),
        "Punctuation" => Step::Punctuation(Punctuation::new(behavior("Isolated")?)),
        "Split" => {
            let (text, is_regex) = pattern(v);
            let (how, invert) = (behavior("Isolated")?, flag(v, "invert", false));
            // The expressions cover every text, so cutting out what lies between matches
            // ("Removed", inverted) is the same as keeping the matches apart.
            let whole = match (how, invert) {
                (SplitDelimiterBehavior::Isolated, false) => true,
                (SplitDelimiterBehavior::Removed, true) => text != DIGIT_TRIPLES,
                _ => false,
            };
            if is_regex && whole {
                Step::regex(text)?
            } else if is_regex || text.is_empty() {
                return Err(unsupported(&format!("Split at {text:?}")));
            } else {
                let split = Split::native(SplitPattern::String(text.to_string()), how, invert);
                let split = split.map_err(|e| TokenizerError::Build { reason: e.to_string() })?;
                Step::Split(split)
            }
        }
        other => return Err(unsupported(other)),
    };
    found.steps.push(step);
    Ok(())
}

/// A metaspace rewrites spaces (a normalizer) and may cut in front of them (a step).
fn read_metaspace(v: &Value, found: &mut Described) -> Result<(), TokenizerError> {
    let unsupported = |name: String| TokenizerError::Unsupported {
        what: "pre-tokenizer",
        name,
        supported: "Metaspace with a one-character replacement and a known prepend_scheme",
    };
    let mark = v.get("replacement").and_then(Value::as_str).unwrap_or("▁");
    let mut chars = mark.chars();
    let (Some(delimiter), None) = (chars.next(), chars.next()) else {
        return Err(unsupported(format!("Metaspace with {:?}", super::error::excerpt(mark))));
    };
    // Files from before `prepend_scheme` say `add_prefix_space`.
    let old = if flag(v, "add_prefix_space", true) { "always" } else { "never" };
    let prepend = match v.get("prepend_scheme").and_then(Value::as_str).unwrap_or(old) {
        "always" => PrependBehavior::Always,
        "first" => PrependBehavior::First,
        "never" => PrependBehavior::Never,
        other => {
            return Err(unsupported(format!("Metaspace with prepend_scheme {other:?}")));
        }
    };
    let normalizer = MetaspaceNormalizer::new(delimiter, prepend, false);
    found.normalizers.push(Normalize::Metaspace(normalizer));
    if flag(v, "split", true) {
        let behavior = SplitDelimiterBehavior::MergedWithNext;
        let split = Split::native(SplitPattern::String(mark.to_string()), behavior, false)
            .map_err(|e| TokenizerError::Build { reason: e.to_string() })?;
        found.steps.push(Step::Split(split));
    }
    Ok(())
}

/// The normalizers of a SentencePiece vocabulary in GGUF: spaces become `▁`, and each stretch of
/// text starts with one.
pub(super) fn sentencepiece(prefix: bool) -> Result<Vec<Normalize>, TokenizerError> {
    let replace =
        Replace::new(" ", "▁").map_err(|e| TokenizerError::Build { reason: e.to_string() })?;
    let mut normalizers = vec![Normalize::Replace(replace)];
    if prefix {
        normalizers.insert(0, Normalize::Prepend(Prepend::new("▁".to_string())));
    }
    Ok(normalizers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(steps: &[Step], text: &str) -> Vec<String> {
        let mut pieces = vec![text.to_string()];
        for step in steps {
            let mut next = Vec::new();
            for piece in &pieces {
                let mut spans = Vec::new();
                step.cut(piece, &mut PreTokenizerScratch::default(), &mut spans).unwrap();
                next.extend(spans.iter().map(|s| piece[s.range()].to_string()));
            }
            pieces = next;
        }
        pieces
    }

    #[test]
    fn digit_triples_are_leftmost_and_not_overlapping() {
        let steps = [Step::DigitTriples];
        assert_eq!(cut(&steps, "1234567"), ["123", "456", "7"]);
        assert_eq!(cut(&steps, "ab12"), ["ab12"]);
        assert_eq!(cut(&steps, "½1234é"), ["½", "123", "4é"]);
        assert_eq!(cut(&steps, ""), [""; 0]);
    }

    #[test]
    fn each_family_cuts_digits_its_own_way() {
        let by = |name| cut(&by_name(name).unwrap().steps, "ab 12345, c!");
        assert_eq!(by("llama-bpe"), ["ab", " ", "123", "45", ",", " c", "!"]);
        assert_eq!(by("qwen2"), ["ab", " ", "1", "2", "3", "4", "5", ",", " c", "!"]);
        assert_eq!(by("gpt-2"), ["ab", " 12345", ",", " c", "!"]);
        assert_eq!(by("falcon"), ["ab", " ", "123", "45", ",", " c", "!"]);
    }

    #[test]
    fn unknown_names_say_what_is_known() {
        let e = by_name("spaceballs").unwrap_err().to_string();
        assert!(e.contains("spaceballs") && e.contains("llama-bpe"), "{e}");
    }
}
