//! [`Definition`]: a vocabulary and its rules, from wherever they were read; [`Encoder`]: text to
//! ids with them.
//!
//! Everything a file says is checked here, before the `tokenizers` crate sees it: that crate takes
//! well-formed vocabularies for granted.

use super::error::{TokenizerError, excerpt};
use super::normalize::{Chain, Normalize};
use super::pieces::Pieces;
use super::pre::Step;
use std::sync::Mutex;
use tokenizers::models::bpe::{BpeConfig, BpeScratch, PipelineBPE};
use tokenizers::pipeline::{
    Model, PipelineToken, PreTokenizerScratch, Segment, Span, SpecialSegmentIterator, normalize_all,
};
use tokenizers::utils::byte_level::char_to_byte;
use tokenizers::vocab::bucket_added_vocabulary::{AddedToken, AddedVocabulary};

/// Largest vocabulary, and largest id of a `tokenizer.json`, whose ids need not be dense: a single
/// hostile id could otherwise ask for gigabytes of tables. The largest known have 262,144.
const MAX_TOKENS: usize = 1 << 22;
/// Longest token. Lengths of added tokens are 16-bit in the crate; real tokens stay below 1 KiB.
const MAX_TOKEN_BYTES: usize = 1 << 14;
/// Words whose ids are remembered between calls.
const CACHED_WORDS: usize = 8192;
/// Longest text: spans are 32-bit, and normalizers may make it longer.
const MAX_TEXT_BYTES: usize = 1 << 28;

/// How tokens are written in the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// GPT-2's: one printable character a byte.
    ByteLevel,
    /// SentencePiece's: text with `▁` for a space, and `<0x0A>` for bytes that have no other token.
    SentencePiece,
}

/// How a token comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// By merges.
    Model,
    /// Found in the text as it stands, before merges.
    Added(AddedFlags),
    /// Never (padding of the vocabulary).
    Unused,
}

/// Details of a token that is found in the text as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AddedFlags {
    pub(super) special: bool,
    pub(super) normalized: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    pub(super) single_word: bool,
    /// Merges may produce it, too.
    pub(super) in_model: bool,
}

/// A vocabulary and its rules.
pub(super) struct Definition {
    pub(super) alphabet: Alphabet,
    /// By id; `None` where a `tokenizer.json` leaves an id out.
    pub(super) tokens: Vec<Option<(String, Role)>>,
    pub(super) merges: Vec<(String, String)>,
    pub(super) normalizers: Vec<Normalize>,
    pub(super) steps: Vec<Step>,
    pub(super) unk_token: Option<String>,
    pub(super) fuse_unk: bool,
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
    /// Decoding drops a space at the start of a text.
    pub(super) strip_leading_space: bool,
}

/// Whether a vocabulary of this size is worth looking at.
pub(super) fn check_size(tokens: u64) -> Result<(), TokenizerError> {
    if tokens > MAX_TOKENS as u64 {
        return Err(TokenizerError::VocabularyTooLarge { tokens, limit: MAX_TOKENS });
    }
    Ok(())
}

impl Definition {
    /// The tables for both directions.
    pub(super) fn build(self) -> Result<(Encoder, Pieces), TokenizerError> {
        check_size(self.tokens.len() as u64)?;
        let pieces = self.pieces()?;
        let mut config = BpeConfig {
            byte_level: self.alphabet == Alphabet::ByteLevel,
            unk_token: self.unk_token,
            fuse_unk: self.fuse_unk,
            byte_fallback: self.byte_fallback,
            ignore_merges: self.ignore_merges,
            cache_capacity: CACHED_WORDS,
            ..BpeConfig::default()
        };
        let mut added = Vec::new();
        let mut ids = BpeConfig::default().vocab;
        let mut longest = 0;
        for (id, token) in self.tokens.into_iter().enumerate() {
            let (id, Some((text, role))) = (id as u32, token) else { continue };
            let duplicate = |text: &str, first: u32| TokenizerError::Token {
                id,
                text: excerpt(text),
                reason: format!("the same text as token {first}"),
            };
            let flags = match role {
                Role::Unused => continue,
                Role::Added(flags) => Some(flags),
                Role::Model => None,
            };
            if let Some(f) = flags {
                added.push(AddedToken {
                    content: text.clone(),
                    single_word: f.single_word,
                    lstrip: f.lstrip,
                    rstrip: f.rstrip,
                    normalized: f.normalized,
                    special: f.special,
                });
                if let Some(first) = ids.insert(text.clone(), id) {
                    return Err(duplicate(&text, first));
                }
            }
            // Text outside the alphabet cannot come from merging bytes; a token that only looks
            // like another one's bytes must not take its place.
            let reachable = self.alphabet != Alphabet::ByteLevel
                || text.chars().all(|c| char_to_byte(c).is_some());
            if flags.is_none_or(|f| f.in_model) && reachable {
                longest = longest.max(text.len());
                if let Some(&first) = config.vocab.get(&text) {
                    return Err(duplicate(&text, first));
                }
                config.vocab.insert(text, id);
            }
        }
        check_merges(&self.merges, &config, longest)?;
        config.merges = self.merges;
        let model_tokens = config.vocab.len();
        let refused = |e: tokenizers::Error| TokenizerError::Build { reason: e.to_string() };
        let mut added_vocabulary = AddedVocabulary::new();
        // A metaspace normalizer prepends its mark to words, which added tokens do not have.
        let declared = match self.normalizers.split_last() {
            Some((Normalize::Metaspace(_), rest)) => rest,
            _ => &self.normalizers,
        };
        added_vocabulary
            .add_tokens(added, model_tokens, |text| ids.get(text).copied(), Some(&Chain(declared)))
            .map_err(refused)?;
        let encoder = Encoder {
            model: PipelineBPE::from_config(config).map_err(refused)?,
            added: added_vocabulary,
            normalizers: self.normalizers,
            steps: self.steps,
            scratch: Mutex::new(None),
        };
        Ok((encoder, pieces))
    }

    /// What each id stands for.
    fn pieces(&self) -> Result<Pieces, TokenizerError> {
        let mut pieces = Pieces::default();
        pieces.strip_leading_space = self.strip_leading_space;
        let mut bytes = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            bytes.clear();
            let mut special = false;
            if let Some((text, role)) = token {
                let wrong = |reason: String| TokenizerError::Token {
                    id: id as u32,
                    text: excerpt(text),
                    reason,
                };
                if text.is_empty() && *role != Role::Unused {
                    return Err(wrong("the token is empty".to_string()));
                }
                if text.len() > MAX_TOKEN_BYTES {
                    let n = text.len();
                    return Err(wrong(format!("{n} bytes, more than {MAX_TOKEN_BYTES}")));
                }
                match role {
                    Role::Added(flags) => {
                        special = flags.special;
                        bytes.extend_from_slice(text.as_bytes());
                    }
                    Role::Model | Role::Unused => self.write_bytes(text, &mut bytes),
                }
            }
            if pieces.push(&bytes, special).is_none() {
                return Err(TokenizerError::Build {
                    reason: "the tokens together have more than 4 GiB".to_string(),
                });
            }
        }
        Ok(pieces)
    }

    /// The bytes that a token of the model stands for.
    fn write_bytes(&self, text: &str, out: &mut Vec<u8>) {
        match self.alphabet {
            Alphabet::ByteLevel => {
                match text.chars().map(char_to_byte).collect::<Option<Vec<u8>>>() {
                    Some(bytes) => out.extend_from_slice(&bytes),
                    None => out.extend_from_slice(text.as_bytes()),
                }
            }
            Alphabet::SentencePiece => match byte_token(text) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(text.replace('▁', " ").as_bytes()),
            },
        }
    }
}

/// The byte that `<0x0A>` stands for.
pub(super) fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// Every merge joins two tokens into a third. (The crate checks that, too, but not that the result
/// fits the buffer that it writes it to.)
fn check_merges(
    merges: &[(String, String)],
    config: &BpeConfig,
    longest: usize,
) -> Result<(), TokenizerError> {
    let mut product = String::new();
    for (index, (left, right)) in merges.iter().enumerate() {
        product.clear();
        product.push_str(left);
        product.push_str(right);
        let reason = if !config.vocab.contains_key(left) || !config.vocab.contains_key(right) {
            "joins something that is not a token"
        } else if product.len() > longest || !config.vocab.contains_key(&product) {
            "makes something that is not a token"
        } else {
            continue;
        };
        let merge = excerpt(&format!("{left} {right}"));
        return Err(TokenizerError::Merge { index, merge, reason });
    }
    Ok(())
}

/// Buffers that encoding needs, kept between calls.
#[derive(Default)]
struct Scratch {
    words: Option<BpeScratch>,
    cutting: PreTokenizerScratch,
    spans: Vec<Span>,
    next: Vec<Span>,
    ids: Vec<PipelineToken>,
}

/// Text to ids.
pub(super) struct Encoder {
    added: AddedVocabulary,
    normalizers: Vec<Normalize>,
    steps: Vec<Step>,
    model: PipelineBPE,
    scratch: Mutex<Option<Box<Scratch>>>,
}

impl Encoder {
    /// The id of a text that is exactly one token added to the model.
    pub(super) fn added_id(&self, text: &str) -> Option<u32> {
        self.added.token_to_id(text)
    }

    /// Ids of `text`. Special tokens in it become their ids if `parse_special`, else they are text.
    pub(super) fn encode(
        &self,
        text: &str,
        parse_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TokenizerError::TextTooLong { bytes: text.len(), limit: MAX_TEXT_BYTES });
        }
        // A second thread gets buffers of its own.
        let kept = self.scratch.lock().ok().and_then(|mut s| s.take());
        let mut scratch = kept.unwrap_or_default();
        scratch.ids.clear();
        let result = self.encode_into(text, parse_special, &mut scratch);
        let ids = PipelineToken::cast_slice(&scratch.ids).to_vec();
        if let Ok(mut slot) = self.scratch.lock() {
            *slot = Some(scratch);
        }
        result.map(|()| ids)
    }

    fn encode_into(
        &self,
        text: &str,
        parse_special: bool,
        s: &mut Scratch,
    ) -> Result<(), TokenizerError> {
        let failed = |e: tokenizers::Error| TokenizerError::Encode { reason: e.to_string() };
        for segment in SpecialSegmentIterator::new(text, &self.added, false, !parse_special) {
            let (text, offset) = match segment {
                Segment::SpecialToken(id) => {
                    s.ids.push(id.into());
                    continue;
                }
                Segment::Text { text, input_offset } => (text, input_offset),
            };
            let normalized = normalize_all(&self.normalizers, text, offset).map_err(failed)?;
            if u32::try_from(normalized.len()).is_err() {
                let bytes = normalized.len();
                return Err(TokenizerError::TextTooLong { bytes, limit: u32::MAX as usize });
            }
            // Some added tokens are looked for after normalization.
            for segment in
                SpecialSegmentIterator::new(&normalized, &self.added, true, !parse_special)
            {
                match segment {
                    Segment::SpecialToken(id) => s.ids.push(id.into()),
                    Segment::Text { text, .. } => self.encode_plain(text, s)?,
                }
            }
        }
        Ok(())
    }

    /// Cuts and merges.
    fn encode_plain(&self, text: &str, s: &mut Scratch) -> Result<(), TokenizerError> {
        s.spans.clear();
        s.spans.push(Span { start: 0, end: text.len() as u32 });
        for step in &self.steps {
            s.next.clear();
            for span in &s.spans {
                let from = s.next.len();
                step.cut(&text[span.range()], &mut s.cutting, &mut s.next)?;
                for cut in &mut s.next[from..] {
                    cut.start += span.start;
                    cut.end += span.start;
                }
            }
            std::mem::swap(&mut s.spans, &mut s.next);
        }
        let words = s.words.get_or_insert_with(|| self.model.init_scratch());
        self.model
            .tokenize_spans(text, &s.spans, words, &mut s.ids)
            .map_err(|e| TokenizerError::Encode { reason: e.to_string() })
    }
}
