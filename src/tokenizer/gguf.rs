//! A tokenizer out of GGUF metadata (`tokenizer.ggml.*`).

use super::Tokenizer;
use super::bpe::{AddedFlags, Alphabet, Definition, Role, byte_token, check_size};
use super::chat::ChatTemplate;
use super::error::{TokenizerError, excerpt};
use super::pre;
use crate::format::{FormatError, Metadata};
use std::collections::HashMap;

/// Longest token of a SentencePiece vocabulary whose merges are worked out from its scores, which
/// takes time in the square of the length. SentencePiece itself makes tokens of 16 characters at
/// most, unless told otherwise.
const MAX_SENTENCEPIECE_BYTES: usize = 512;

/// `tokenizer.ggml.token_type`.
///
/// # Source
/// llama.cpp `include/llama.h`, `llama_token_type`.
mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

pub(super) fn read(meta: &Metadata) -> Result<Tokenizer, TokenizerError> {
    let model = meta.require_str("tokenizer.ggml.model")?;
    let tokens = meta.require_strings("tokenizer.ggml.tokens")?;
    check_size(tokens.len() as u64)?;
    let types = meta.integers("tokenizer.ggml.token_type")?;
    if let Some(types) = types.as_ref().filter(|t| t.len() != tokens.len()) {
        return Err(TokenizerError::Length {
            key: "tokenizer.ggml.token_type",
            expected: tokens.len(),
            got: types.len(),
        });
    }
    let special = special_ids(meta, tokens.len())?;
    let type_of = |i: usize| {
        let declared = types.as_ref().map_or(token_type::NORMAL, |t| t[i]);
        // A file without types still says which tokens begin and end a text.
        match special.iter().any(|&(_, id)| id as usize == i) {
            true if declared == token_type::NORMAL && types.is_none() => token_type::CONTROL,
            _ => declared,
        }
    };
    let (definition, add_bos) = match model {
        "gpt2" => gpt2(meta, tokens.iter(), type_of)?,
        "llama" => sentencepiece(meta, tokens.iter(), type_of)?,
        other => {
            return Err(TokenizerError::Unsupported {
                what: "tokenizer model (tokenizer.ggml.model)",
                name: excerpt(other),
                supported: "gpt2, llama",
            });
        }
    };
    let id_of = |name: &str| special.iter().find(|s| s.0 == name).map(|s| s.1);
    let (bos, eos) = (id_of("bos_token_id"), id_of("eos_token_id"));
    let ends: Vec<u32> =
        ["eos_token_id", "eot_token_id", "eom_token_id"].iter().filter_map(|n| id_of(n)).collect();
    let add_bos = meta.get_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
    let template = meta.get_str("tokenizer.chat_template")?.map(str::to_string);
    let architecture = meta.get_str("general.architecture")?.unwrap_or_default();
    Tokenizer::build(definition, bos, eos, &ends, add_bos, |tokens| {
        ChatTemplate::new(template, architecture, tokens)
    })
}

/// The ids of `tokenizer.ggml.*_token_id`, checked.
fn special_ids(meta: &Metadata, vocab: usize) -> Result<Vec<(&'static str, u32)>, TokenizerError> {
    let mut found = Vec::new();
    for name in [
        "bos_token_id",
        "eos_token_id",
        "eot_token_id",
        "eom_token_id",
        "unknown_token_id",
        "padding_token_id",
    ] {
        let key = format!("tokenizer.ggml.{name}");
        let Some(id) = meta.get_u64(&key)? else { continue };
        match u32::try_from(id) {
            Ok(small) if (small as usize) < vocab => found.push((name, small)),
            _ => return Err(TokenizerError::IdOutOfRange { key, id, vocab }),
        }
    }
    Ok(found)
}

/// A byte-level vocabulary with merges.
fn gpt2<'a>(
    meta: &Metadata,
    tokens: impl Iterator<Item = &'a str>,
    type_of: impl Fn(usize) -> i32,
) -> Result<(Definition, bool), TokenizerError> {
    let architecture = meta.get_str("general.architecture")?.unwrap_or_default();
    let named = match meta.get_str("tokenizer.ggml.pre")? {
        Some(name) => pre::by_name(name)?,
        // The official file of the 2B-4T model does not say; the family has Llama 3's vocabulary.
        None if architecture.starts_with("bitnet") => pre::by_name("llama-bpe")?,
        None => pre::by_name("default")?,
    };
    let merges = meta.require_strings("tokenizer.ggml.merges")?;
    let mut pairs = Vec::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        // A token may not contain the space that separates them, but may start with one in files
        // whose writer did not map it: then the separator is the first space after the first byte.
        let at = merge.char_indices().skip(1).find(|c| c.1 == ' ').map(|c| c.0);
        match at.map(|at| (&merge[..at], &merge[at + 1..])) {
            Some((left, right)) if !right.is_empty() => {
                pairs.push((left.to_string(), right.to_string()));
            }
            _ => {
                return Err(TokenizerError::Merge {
                    index,
                    merge: excerpt(merge),
                    reason: "not two tokens with a space between them",
                });
            }
        }
    }
    let added = |special| Role::Added(AddedFlags { special, ..AddedFlags::default() });
    let tokens = tokens
        .enumerate()
        .map(|(i, text)| {
            let role = match type_of(i) {
                token_type::CONTROL | token_type::UNKNOWN => added(true),
                token_type::USER_DEFINED => added(false),
                token_type::UNUSED => Role::Unused,
                _ => Role::Model,
            };
            Some((text.to_string(), role))
        })
        .collect();
    let definition = Definition {
        alphabet: Alphabet::ByteLevel,
        tokens,
        merges: pairs,
        normalizers: Vec::new(),
        steps: named.steps,
        unk_token: None,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: named.ignore_merges,
        strip_leading_space: false,
    };
    Ok((definition, named.add_bos))
}

/// A SentencePiece vocabulary with scores.
fn sentencepiece<'a>(
    meta: &Metadata,
    tokens: impl ExactSizeIterator<Item = &'a str>,
    type_of: impl Fn(usize) -> i32,
) -> Result<(Definition, bool), TokenizerError> {
    let key = "tokenizer.ggml.scores";
    let scores =
        meta.floats(key)?.ok_or_else(|| FormatError::MissingKey { key: key.to_string() })?;
    if scores.len() != tokens.len() {
        return Err(TokenizerError::Length { key, expected: tokens.len(), got: scores.len() });
    }
    let prefix = meta.get_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let added =
        |special, in_model| Role::Added(AddedFlags { special, in_model, ..AddedFlags::default() });
    let mut unk = None;
    let tokens: Vec<_> = tokens
        .enumerate()
        .map(|(i, text)| {
            let role = match type_of(i) {
                token_type::UNKNOWN => {
                    unk.get_or_insert_with(|| text.to_string());
                    added(true, true)
                }
                token_type::CONTROL => added(true, false),
                token_type::USER_DEFINED => added(false, false),
                token_type::UNUSED => Role::Unused,
                token_type::BYTE if byte_token(text).is_none() => Role::Unused,
                _ => Role::Model,
            };
            Some((text.to_string(), role))
        })
        .collect();
    let bytes =
        tokens.iter().flatten().filter(|(t, r)| *r == Role::Model && byte_token(t).is_some());
    let byte_fallback = bytes.count() == 256;
    let definition = Definition {
        alphabet: Alphabet::SentencePiece,
        merges: merges_from_scores(&tokens, &scores)?,
        tokens,
        normalizers: pre::sentencepiece(prefix)?,
        steps: Vec::new(),
        unk_token: unk,
        fuse_unk: true,
        byte_fallback,
        ignore_merges: false,
        strip_leading_space: prefix,
    };
    Ok((definition, true))
}

/// SentencePiece joins the neighbours whose joint token has the best score: as merges, all ways to
/// split each token into two others, best token first.
///
/// # Source
/// huggingface/transformers `convert_slow_tokenizer.py`, `generate_merges`; llama.cpp
/// `llm_tokenizer_spm`.
fn merges_from_scores(
    tokens: &[Option<(String, Role)>],
    scores: &[f32],
) -> Result<Vec<(String, String)>, TokenizerError> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, (text, role)) in tokens.iter().enumerate().filter_map(|(i, t)| Some((i, t.as_ref()?)))
    {
        if *role != Role::Model {
            continue;
        }
        let wrong =
            |reason: String| TokenizerError::Token { id: id as u32, text: excerpt(text), reason };
        if scores[id].is_nan() {
            return Err(wrong("its score is not a number".to_string()));
        }
        if text.len() > MAX_SENTENCEPIECE_BYTES {
            let n = text.len();
            return Err(wrong(format!("{n} bytes, more than {MAX_SENTENCEPIECE_BYTES}")));
        }
        ids.insert(text.as_str(), id);
    }
    let mut found = Vec::new();
    for (text, &id) in &ids {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                found.push((id, l, r));
            }
        }
    }
    // Ids make the order definite where scores are equal.
    found.sort_unstable_by(|a, b| scores[b.0].total_cmp(&scores[a.0]).then(a.cmp(b)));
    let text = |id: usize| tokens[id].as_ref().map(|t| t.0.clone()).unwrap_or_default();
    Ok(found.into_iter().map(|(_, l, r)| (text(l), text(r))).collect())
}
