//! A tokenizer out of Hugging Face files: `tokenizer.json`, and what `tokenizer_config.json` and
//! `generation_config.json` add.

use super::Tokenizer;
use super::bpe::{AddedFlags, Alphabet, Definition, Role, check_size};
use super::chat::ChatTemplate;
use super::error::{TokenizerError, excerpt};
use super::pre;
use serde::de::{
    Deserialize, DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::Value;
use std::fmt;

/// `tokenizer.json`, as far as it is used. The large parts are typed: as JSON values they would
/// take ten times their size.
#[derive(serde::Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(serde::Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(serde::Deserialize)]
struct Model {
    /// Files from before version 0.9 leave it out for BPE.
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: Vocab,
    #[serde(default)]
    merges: Option<Vec<Merge>>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// The vocabulary in file order; empty where it is not a map (other kinds of models).
#[derive(Default)]
struct Vocab(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Vocab;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tokens to ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut vocab = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    vocab.push(entry);
                }
                Ok(Vocab(vocab))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vocab, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Vocab::default())
            }
        }
        d.deserialize_any(Reader)
    }
}

/// `["a", "b"]`, or `"a b"` in older files.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pair of tokens, or two tokens with a space between them")
            }
            fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Merge, E> {
                match s.split_once(' ') {
                    Some((l, r)) if !l.is_empty() && !r.is_empty() && !r.contains(' ') => {
                        Ok(Merge(l.to_string(), r.to_string()))
                    }
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(&excerpt(s)), &self)),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let (left, right) = (seq.next_element()?, seq.next_element()?);
                match (left, right, seq.next_element::<IgnoredAny>()?) {
                    (Some(l), Some(r), None) => Ok(Merge(l, r)),
                    _ => Err(serde::de::Error::invalid_length(2, &self)),
                }
            }
        }
        d.deserialize_any(Reader)
    }
}

fn parse<T: DeserializeOwned>(file: &'static str, text: &str) -> Result<T, TokenizerError> {
    serde_json::from_str(text)
        .map_err(|e| TokenizerError::Json { file, reason: excerpt_long(&e.to_string()) })
}

/// Error messages of the parser quote the input, which may be long.
fn excerpt_long(message: &str) -> String {
    match message.char_indices().nth(300) {
        Some((at, _)) => format!("{}…", &message[..at]),
        None => message.to_string(),
    }
}

pub(super) fn read(
    tokenizer: &str,
    tokenizer_config: Option<&str>,
    generation_config: Option<&str>,
) -> Result<Tokenizer, TokenizerError> {
    let file: File = parse("tokenizer.json", tokenizer)?;
    let config: Value =
        tokenizer_config.map_or(Ok(Value::Null), |t| parse("tokenizer_config.json", t))?;
    let generation: Value =
        generation_config.map_or(Ok(Value::Null), |t| parse("generation_config.json", t))?;
    let prefix = prefix_token(&file.post_processor);
    let definition = definition(file)?;
    let id_of = |text: &str| {
        let same = |t: &Option<(String, Role)>| t.as_ref().is_some_and(|t| t.0 == text);
        definition.tokens.iter().position(same).map(|id| id as u32)
    };
    let named = |key: &str| -> Result<Option<u32>, TokenizerError> {
        let Some(text) = token_text(&config[key]) else { return Ok(None) };
        match id_of(text) {
            Some(id) => Ok(Some(id)),
            None => Err(TokenizerError::Json {
                file: "tokenizer_config.json",
                reason: format!("{key} {:?} is not in the vocabulary", excerpt(text)),
            }),
        }
    };
    let vocab = definition.tokens.len();
    let ids = |key: &str| -> Result<Vec<u32>, TokenizerError> {
        let listed = match &generation[key] {
            Value::Array(ids) => ids.as_slice(),
            one => std::slice::from_ref(one),
        };
        let check = |v: &Value| match v.as_u64() {
            Some(id) if id < vocab as u64 => Ok(id as u32),
            Some(id) => Err(TokenizerError::IdOutOfRange {
                key: format!("generation_config {key}"),
                id,
                vocab,
            }),
            None => Err(TokenizerError::Json {
                file: "generation_config.json",
                reason: format!("{key} is not a token id"),
            }),
        };
        listed.iter().filter(|v| !v.is_null()).map(check).collect()
    };
    let listed_ends = ids("eos_token_id")?;
    let bos = match (named("bos_token")?, ids("bos_token_id")?.first(), prefix) {
        (Some(id), _, _) | (None, Some(&id), _) => Some(id),
        (None, None, prefix) => prefix.filter(|&id| (id as usize) < vocab),
    };
    let eos = named("eos_token")?.or(listed_ends.first().copied());
    let ends: Vec<u32> = eos.into_iter().chain(listed_ends).collect();
    let declared = config["add_bos_token"].as_bool();
    let add_bos = declared.unwrap_or(prefix.is_some() && prefix == bos);
    let template = template_source(&config["chat_template"]).map(str::to_string);
    Tokenizer::build(definition, bos, eos, &ends, add_bos, |tokens| {
        ChatTemplate::new(template, "", tokens)
    })
}

/// A special token's text: a string, or an object with its `content`.
fn token_text(v: &Value) -> Option<&str> {
    v.as_str().or_else(|| v.get("content").and_then(Value::as_str))
}

/// The chat template: a string, or one of several by name.
fn template_source(v: &Value) -> Option<&str> {
    let Some(named) = v.as_array() else { return v.as_str() };
    let default = named.iter().find(|t| t["name"].as_str() == Some("default"));
    default.or(named.first())?["template"].as_str()
}

/// The token that the post-processor puts in front of a text.
fn prefix_token(v: &Value) -> Option<u32> {
    if let Some(members) = v.get("processors").and_then(Value::as_array) {
        return members.iter().find_map(prefix_token);
    }
    let first = v.get("single")?.as_array()?.first()?;
    let name = first.get("SpecialToken")?.get("id")?.as_str()?;
    let id = v.get("special_tokens")?.get(name)?.get("ids")?.as_array()?.first()?;
    id.as_u64().and_then(|id| id.try_into().ok())
}

/// How ids become text again: whether `▁` stands for a space, and whether a text starts with one.
fn decoder(v: &Value) -> (bool, bool) {
    let members = match v.get("decoders").and_then(Value::as_array) {
        Some(members) => members.as_slice(),
        None => std::slice::from_ref(v),
    };
    let (mut spaces, mut strip) = (false, false);
    for member in members {
        match member["type"].as_str() {
            Some("Replace") => spaces |= member["content"].as_str() == Some(" "),
            Some("Metaspace") => {
                spaces = true;
                strip |= member["prepend_scheme"].as_str() != Some("never");
            }
            Some("Strip") => {
                strip |= member["content"].as_str() == Some(" ")
                    && member["start"].as_u64().is_some_and(|n| n > 0);
            }
            _ => {}
        }
    }
    (spaces, strip)
}

fn definition(file: File) -> Result<Definition, TokenizerError> {
    let model = file.model;
    let unsupported = |what, name: &str, supported| {
        Err(TokenizerError::Unsupported { what, name: excerpt(name), supported })
    };
    match model.kind.as_deref() {
        Some("BPE") => {}
        None if model.merges.is_some() => {}
        kind => return unsupported("tokenizer model", kind.unwrap_or("(none)"), "BPE"),
    }
    for (what, affix) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(text) = affix.as_ref().filter(|t| !t.is_empty()) {
            return unsupported(what, text, "none");
        }
    }
    let described = pre::by_description(&file.normalizer, &file.pre_tokenizer)?;
    let (spaces, strip_leading_space) = decoder(&file.decoder);
    let alphabet = match (described.byte_level, spaces) {
        (true, _) => Alphabet::ByteLevel,
        (false, true) => Alphabet::SentencePiece,
        (false, false) => {
            let name = file.decoder["type"].as_str().unwrap_or("(none)");
            return unsupported("decoder", name, "ByteLevel, Metaspace, Replace of ▁ by a space");
        }
    };
    Ok(Definition {
        alphabet,
        tokens: tokens(model.vocab, file.added_tokens)?,
        merges: model.merges.unwrap_or_default().into_iter().map(|m| (m.0, m.1)).collect(),
        normalizers: described.normalizers,
        steps: described.steps,
        unk_token: model.unk_token.filter(|_| alphabet == Alphabet::SentencePiece),
        fuse_unk: model.fuse_unk,
        byte_fallback: model.byte_fallback,
        ignore_merges: model.ignore_merges,
        strip_leading_space: alphabet == Alphabet::SentencePiece && strip_leading_space,
    })
}

/// The tokens of the model and those added to it, by id.
fn tokens(vocab: Vocab, added: Vec<Added>) -> Result<Vec<Option<(String, Role)>>, TokenizerError> {
    let largest = vocab.0.iter().map(|t| t.1).chain(added.iter().map(|t| t.id)).max();
    let len = largest.map_or(0, |id| u64::from(id) + 1);
    check_size(len)?;
    let mut tokens: Vec<Option<(String, Role)>> = vec![None; len as usize];
    let taken = |id: u32, text: &str, other: &str| TokenizerError::Token {
        id,
        text: excerpt(text),
        reason: format!("the id belongs to {:?} already", excerpt(other)),
    };
    for (text, id) in vocab.0 {
        match &mut tokens[id as usize] {
            Some((other, _)) if *other != text => return Err(taken(id, &text, other)),
            slot => *slot = Some((text, Role::Model)),
        }
    }
    for token in added {
        let mut flags = AddedFlags {
            special: token.special,
            normalized: token.normalized,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            single_word: token.single_word,
            in_model: false,
        };
        let slot = &mut tokens[token.id as usize];
        match slot {
            Some((other, _)) if *other != token.content => {
                return Err(taken(token.id, &token.content, other));
            }
            Some(_) => flags.in_model = true,
            None => {}
        }
        *slot = Some((token.content, Role::Added(flags)));
    }
    Ok(tokens)
}
