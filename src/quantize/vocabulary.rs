//! GGUF metadata of a Hugging Face model: its numbers, its vocabulary and its chat template.

use serde_json::Value as Json;

use super::input::unsupported;
use super::{LinearType, QuantizeError};
use crate::error::Error;
use crate::format::{Array, Metadata, Strings, Value, ValueType};
use crate::model::Config;
use crate::model::config::{Architecture, RopeScaling};
use crate::session::HfFiles;
use crate::tokenizer::Tokenizer;

/// Pre-tokenizers to try, by their names in GGUF files.
const PRE_TOKENIZERS: [&str; 4] = ["llama-bpe", "qwen2", "gpt-2", "falcon"];

/// Texts on which pre-tokenizers differ: contractions in both cases, runs of digits, of spaces, of
/// line ends and of punctuation, letters after marks, other scripts.
const PROBES: [&str; 8] = [
    "It's HE'S we'LL they'd I'm you're\n\n\nline  two   three    ",
    "1 12 123 1234 12345678901 3.14159 1,000,000 x1y22z333",
    "(a) [b] {c} \"d\" 'e' `f` <g> --h-- ...i... #j_k $l%m^n&o*p ~q",
    "\tif x:\r\n\t\treturn  x+1; // comment\r\n\r\n",
    "Grüße, señor! Привет мир. 你好,世界 日本語テスト مرحبا नमस्ते 🙂👍🏽",
    "a\u{a0}b\u{2003}c\u{200b}d é e\u{301} Ⅷ ½ ١٢٣ ０１２",
    " leading and trailing \n",
    "snake_case camelCase HTTPServer v2.0-rc1 user@example.com http://a.b/c?d=e&f=g",
];

/// Metadata of the output, and what the user should know.
pub(super) fn metadata(
    config: &Config,
    vocab: u32,
    name: &str,
    hf: &HfFiles,
    linears: LinearType,
) -> Result<(Metadata, Vec<String>), QuantizeError> {
    let mut m = Metadata::default();
    let arch = config.architecture.name();
    let mut put = |key: &str, value: Value| m.insert(key.to_owned(), value);
    put("general.architecture", Value::String(arch.into()))?;
    put("general.name", Value::String(name.into()))?;
    let own = |key: &str| format!("{arch}.{key}");
    for (key, value) in [
        ("vocab_size", vocab),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("rope.dimension_count", config.rope_dim),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
    ] {
        put(&own(key), Value::U32(value))?;
    }
    put(&own("attention.layer_norm_rms_epsilon"), Value::F32(config.rms_norm_eps))?;
    put(&own("rope.freq_base"), Value::F32(config.rope_theta))?;
    let implied = u64::from(config.head_dim) * u64::from(config.num_attention_heads);
    if config.architecture == Architecture::Qwen3 || implied != u64::from(config.hidden_size) {
        put(&own("attention.key_length"), Value::U32(config.head_dim))?;
        put(&own("attention.value_length"), Value::U32(config.head_dim))?;
    }
    match config.rope_scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            put(&own("rope.scaling.type"), Value::String("linear".into()))?;
            put(&own("rope.scaling.factor"), Value::F32(factor))?;
        }
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
            put(&own("rope.scaling.type"), Value::String("yarn".into()))?;
            put(&own("rope.scaling.factor"), Value::F32(factor))?;
            put(&own("rope.scaling.original_context_length"), Value::U32(original_context))?;
            put(&own("rope.scaling.yarn_beta_fast"), Value::F32(beta_fast))?;
            put(&own("rope.scaling.yarn_beta_slow"), Value::F32(beta_slow))?;
            if let Some(f) = attention_factor {
                // In GGUF it multiplies what the factor implies.
                let f = f / (0.1 * factor.ln() + 1.0);
                put(&own("rope.scaling.attn_factor"), Value::F32(f))?;
            }
        }
        RopeScaling::Llama3 { .. } => {
            return Err(unsupported("rope_scaling of type llama3 cannot be written to GGUF yet"));
        }
    }
    put("general.file_type", Value::U32(linears.file_type()))?;
    let mut notes = Vec::new();
    match &hf.tokenizer {
        Some(text) => tokenizer(&mut m, text, vocab as usize, hf)?,
        None => notes.push("No tokenizer.json: the output has no tokenizer.".to_owned()),
    }
    m.insert("general.quantization_version".into(), Value::U32(2))?;
    Ok((m, notes))
}

/// `tokenizer.*`.
fn tokenizer(
    m: &mut Metadata,
    text: &str,
    vocab: usize,
    hf: &HfFiles,
) -> Result<(), QuantizeError> {
    let bad = |reason: &str| unsupported(format!("tokenizer.json: {reason}"));
    let config = hf.tokenizer_config.as_deref();
    let original =
        Tokenizer::from_hf(text, config, hf.generation_config.as_deref()).map_err(Error::from)?;
    let json: Json = serde_json::from_str(text).map_err(|e| bad(&e.to_string()))?;
    let model = &json["model"];
    if model["type"] != "BPE" || model["byte_fallback"] == Json::Bool(true) {
        return Err(bad("only byte-level BPE vocabularies can be written to GGUF"));
    }
    let (tokens, types) = tokens(&json, vocab).ok_or_else(|| bad("ids outside the vocabulary"))?;
    let merges = merges(&model["merges"]).ok_or_else(|| bad("malformed merges"))?;
    let mut put = |key: &str, value: Value| m.insert(format!("tokenizer.{key}"), value);
    put("ggml.model", Value::String("gpt2".into()))?;
    put("ggml.tokens", Value::Array(Array::Strings(tokens)))?;
    let types = types.iter().flat_map(|t| t.to_le_bytes()).collect();
    put("ggml.token_type", Value::Array(Array::Scalars { ty: ValueType::I32, bytes: types }))?;
    put("ggml.merges", Value::Array(Array::Strings(merges)))?;
    let ids =
        [("bos", original.bos()), ("eos", original.eos()), ("padding", padding(&original, config))];
    for (name, id) in ids {
        if let Some(id) = id {
            put(&format!("ggml.{name}_token_id"), Value::U32(id))?;
        }
    }
    put("ggml.add_bos_token", Value::Bool(original.add_bos()))?;
    if let Some(template) = template(hf) {
        put("chat_template", Value::String(template))?;
    }
    // Which of the names GGUF knows describes this tokenizer is found by trying: the one that cuts
    // all probes as the original does.
    for pre in PRE_TOKENIZERS {
        let mut tried = m.clone();
        tried.insert("tokenizer.ggml.pre".into(), Value::String(pre.into()))?;
        let Ok(tokenizer) = Tokenizer::from_gguf(&tried) else { continue };
        let same = |text: &&str| {
            matches!(
                (original.encode(text, false), tokenizer.encode(text, false)),
                (Ok(a), Ok(b)) if a == b
            )
        };
        if !PROBES.iter().all(same) {
            continue;
        }
        // Ends of a turn that are not known by their names.
        let known = tokenizer.eos_ids();
        let ends = original.eos_ids().iter().filter(|id| !known.contains(id));
        let mut keys = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"].iter();
        for &id in ends {
            let key = keys.next().ok_or_else(|| bad("more than three tokens end a turn"))?;
            tried.insert((*key).into(), Value::U32(id))?;
        }
        *m = tried;
        return Ok(());
    }
    Err(bad(&format!(
        "its pre-tokenizer is none of those that can be written to GGUF ({})",
        PRE_TOKENIZERS.join(", ")
    )))
}

/// `tokenizer.ggml.token_type`: normal, control, user-defined, unused.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// All tokens by id with their types; ids without a token get a placeholder.
fn tokens(json: &Json, vocab: usize) -> Option<(Strings, Vec<i32>)> {
    let mut tokens: Vec<Option<&str>> = vec![None; vocab];
    let mut types = vec![UNUSED; vocab];
    let mut set = |id: &Json, token, ty| {
        let id = usize::try_from(id.as_u64()?).ok()?;
        *tokens.get_mut(id)? = Some(token);
        *types.get_mut(id)? = ty;
        Some(())
    };
    for (token, id) in json["model"]["vocab"].as_object()? {
        set(id, token, NORMAL)?;
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let special = added["special"] == Json::Bool(true);
        let ty = if special { CONTROL } else { USER_DEFINED };
        set(&added["id"], added["content"].as_str()?, ty)?;
    }
    let named = tokens.iter().enumerate();
    let named = named.map(|(i, t)| t.map_or_else(|| format!("[PAD{i}]"), str::to_owned));
    Some((named.collect(), types))
}

/// Merges as `left right`; `tokenizer.json` has them so, or as pairs.
fn merges(json: &Json) -> Option<Strings> {
    let one = |merge: &Json| match merge {
        Json::String(s) => Some(s.clone()),
        pair => match &pair.as_array()?[..] {
            [a, b] => Some(format!("{} {}", a.as_str()?, b.as_str()?)),
            _ => None,
        },
    };
    json.as_array()?.iter().map(one).collect::<Option<Vec<_>>>().map(|m| m.iter().collect())
}

/// The padding token of `tokenizer_config.json`.
fn padding(tokenizer: &Tokenizer, config: Option<&str>) -> Option<u32> {
    let config: Json = serde_json::from_str(config?).ok()?;
    let token = &config["pad_token"];
    tokenizer.id(token.as_str().or_else(|| token["content"].as_str())?)
}

/// The chat template as it is in the model's files.
fn template(hf: &HfFiles) -> Option<String> {
    if hf.chat_template.is_some() {
        return hf.chat_template.clone();
    }
    let config: Json = serde_json::from_str(hf.tokenizer_config.as_deref()?).ok()?;
    match &config["chat_template"] {
        Json::String(source) => Some(source.clone()),
        // A list of named ones: the default is the one to write.
        Json::Array(named) => named
            .iter()
            .find(|t| t["name"] == "default")
            .and_then(|t| t["template"].as_str())
            .map(str::to_owned),
        _ => None,
    }
}
