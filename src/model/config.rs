//! [`Config`]: the numbers of a model, under the names of Hugging Face's `config.json`, from there
//! or from GGUF metadata. All are checked here, so that no later room divides by zero or trusts a
//! size that makes no sense.

use crate::format::{FormatError, Metadata};
use crate::plan::{Activation, RopeLayout};
use serde_json::Value as Json;

/// Model families whose forward pass is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// 1bitLLM's `bitnet_b1_58`: SiLU, sub-norms, tied head. GGUF `bitnet`.
    BitNet,
    /// Microsoft's BitNet-b1.58-2B-4T: squared ReLU, sub-norms, tied head. GGUF `bitnet-b1.58`
    /// (older files: `bitnet-25`).
    BitNetB158,
    /// Llama with ternary linears: Llama3-8B-1.58, Falcon-E, Falcon3-1.58, TriLM. GGUF `llama`.
    Llama,
    /// Qwen3 with ternary or 1-bit linears and q/k norms: Bonsai, Ternary-Bonsai. GGUF `qwen3`.
    Qwen3,
}

impl Architecture {
    /// The architecture strings of GGUF files, with what they mean.
    pub const GGUF_NAMES: [(&'static str, Architecture); 5] = [
        ("bitnet", Architecture::BitNet),
        ("bitnet-b1.58", Architecture::BitNetB158),
        ("bitnet-25", Architecture::BitNetB158),
        ("llama", Architecture::Llama),
        ("qwen3", Architecture::Qwen3),
    ];

    /// The name that GGUF files of this architecture carry today.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::BitNet => "bitnet",
            Architecture::BitNetB158 => "bitnet-b1.58",
            Architecture::Llama => "llama",
            Architecture::Qwen3 => "qwen3",
        }
    }

    /// Whether attention output and gated activation pass a norm before their projections.
    pub fn has_sub_norms(self) -> bool {
        matches!(self, Architecture::BitNet | Architecture::BitNetB158)
    }

    /// Whether each query and key head passes a norm before the rotary embedding.
    pub fn has_qk_norms(self) -> bool {
        self == Architecture::Qwen3
    }
}

/// How a context longer than the trained one is reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided by the factor.
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// "YaRN: Efficient Context Window Extension" (Peng et al., 2023).
    Yarn {
        /// Ratio of the wanted to the trained context.
        factor: f32,
        /// Trained context.
        original_context: u32,
        /// Turns over the trained context above which a pair is left alone.
        beta_fast: f32,
        /// Turns below which a pair is interpolated fully.
        beta_slow: f32,
        /// Factor on cosine and sine; `None`: `0.1·ln(factor) + 1`.
        attention_factor: Option<f32>,
    },
    /// Llama 3.1's frequency-dependent interpolation.
    Llama3 {
        /// Factor for low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are interpolated fully.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are left alone.
        high_freq_factor: f32,
        /// Trained context.
        original_context: u32,
    },
}

/// How a safetensors folder stores its ternary linears (`quantization_config`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HfLinear {
    /// `autobitlinear`: outputs are multiplied by `weight_scale`.
    Multiply,
    /// `bitlinear` or no `linear_class`: outputs are divided by `weight_scale`.
    Divide,
}

/// Rule for the activations of ternary linears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// What the file's format asks for, as the reference programs do.
    #[default]
    Auto,
    /// int8, one scale a token.
    PerToken,
    /// int8, one scale a 256 values.
    Block,
    /// Not rounded.
    F32,
}

/// The numbers of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Family.
    pub architecture: Architecture,
    /// `V`; 0 when the file leaves it to the embedding's shape.
    pub vocab_size: u32,
    /// Features of the residual stream.
    pub hidden_size: u32,
    /// Features of the feed-forward network.
    pub intermediate_size: u32,
    /// `L`.
    pub num_hidden_layers: u32,
    /// `H`.
    pub num_attention_heads: u32,
    /// `G`.
    pub num_key_value_heads: u32,
    /// `D`.
    pub head_dim: u32,
    /// Epsilon of every norm.
    pub rms_norm_eps: f32,
    /// Gate of the feed-forward network.
    pub hidden_act: Activation,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: u32,
    /// Whether the head is the embedding; `None`: it is when the file has no head.
    pub tie_word_embeddings: Option<bool>,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// Elements of a head that are turned.
    pub rope_dim: u32,
    /// Which elements form pairs.
    pub rope_layout: RopeLayout,
    /// Context extension.
    pub rope_scaling: RopeScaling,
    /// Scale convention of packed safetensors; `None` without `quantization_config`.
    pub hf_linear: Option<HfLinear>,
    /// Epsilon of the norms in front of every linear (`use_rms_norm`); `None` without them.
    pub linear_norm_eps: Option<f32>,
}

/// A model that makes no sense, or one that this version does not know.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Metadata of the wrong type, or missing.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// `config.json` is not what it should be.
    #[error("config.json: {reason}")]
    Config {
        /// Key and what is wrong with it.
        reason: String,
    },
    /// Something known by name, but not supported.
    #[error("{what} {got:?} is not supported; supported are {supported}")]
    Unsupported {
        /// What kind of thing: architecture, model_type, hidden_act, …
        what: &'static str,
        /// What the file says.
        got: String,
        /// What it could say.
        supported: String,
    },
    /// A number outside its range.
    #[error("{key} is {got}, expected {expected}")]
    Invalid {
        /// Key in the file.
        key: String,
        /// Its range, in words.
        expected: String,
        /// Its value.
        got: String,
    },
    /// A tensor the architecture needs is not there.
    #[error("tensor {name:?} is missing")]
    MissingTensor {
        /// Its name in this kind of file.
        name: String,
    },
    /// A tensor the architecture has no place for: computing without it would give wrong text.
    #[error("tensor {name:?} has no place in architecture {architecture}")]
    UnexpectedTensor {
        /// Its name.
        name: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// A tensor of another shape.
    #[error("tensor {name:?} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Shape by the configuration, outermost first.
        expected: Vec<u64>,
        /// Shape in the file.
        got: Vec<u64>,
    },
    /// A tensor of a type that cannot serve its role.
    #[error("tensor {name:?} has type {got}, expected {expected}")]
    TensorType {
        /// Its name.
        name: String,
        /// What would do.
        expected: &'static str,
        /// Type in the file.
        got: String,
    },
}

// What no real model exceeds by far; a larger value is a damaged file, and sizes computed from it
// could overflow or make a loader allocate without end.
const MAX_DIM: u64 = 1 << 20;
const MAX_HEADS: u64 = 1 << 12;
const MAX_HEAD_DIM: u64 = 1 << 12;
const MAX_LAYERS: u64 = 1 << 32;

impl Config {
    /// The configuration in GGUF metadata.
    ///
    /// # Errors
    /// Missing or ill-typed keys, unknown architectures, numbers out of range.
    pub fn from_gguf(meta: &Metadata) -> Result<Config, ModelError> {
        let name = meta.require_str("general.architecture")?;
        let architecture =
            Architecture::GGUF_NAMES.iter().find(|(n, _)| *n == name).map(|&(_, a)| a).ok_or_else(
                || ModelError::Unsupported {
                    what: "architecture",
                    got: name.to_string(),
                    supported: Architecture::GGUF_NAMES.map(|(n, _)| n).join(", "),
                },
            )?;
        let key = |k: &str| format!("{name}.{k}");
        let heads = meta.require_u32(&key("attention.head_count"))?;
        let hidden_size = meta.require_u32(&key("embedding_length"))?;
        let head_dim = match meta.get_u32(&key("attention.key_length"))? {
            Some(d) => d,
            None => hidden_size.checked_div(heads).unwrap_or(0),
        };
        if let Some(v) = meta.get_u32(&key("attention.value_length"))?
            && v != head_dim
        {
            return Err(invalid(&key("attention.value_length"), v, "the key length"));
        }
        let f32_or = |k: &str, default| -> Result<f32, ModelError> {
            Ok(meta.get_f32(&key(k))?.unwrap_or(default))
        };
        let max_position_embeddings = meta.get_u32(&key("context_length"))?.unwrap_or(2048);
        let factor = f32_or("rope.scaling.factor", 1.0)?;
        let original_context = meta
            .get_u32(&key("rope.scaling.original_context_length"))?
            .unwrap_or(max_position_embeddings);
        let rope_scaling = match meta.get_str(&key("rope.scaling.type"))? {
            None | Some("none") => match meta.get_f32(&key("rope.scale_linear"))? {
                Some(factor) if factor != 1.0 => RopeScaling::Linear { factor },
                _ => RopeScaling::None,
            },
            Some("linear") => RopeScaling::Linear { factor },
            Some("yarn") => RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast: f32_or("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: f32_or("rope.scaling.yarn_beta_slow", 1.0)?,
                attention_factor: meta
                    .get_f32(&key("rope.scaling.attn_factor"))?
                    .filter(|&f| f != 1.0)
                    .map(|f| f * (0.1 * factor.ln() + 1.0)),
            },
            Some(other) => {
                return Err(ModelError::Unsupported {
                    what: "rope.scaling.type",
                    got: other.to_string(),
                    supported: "none, linear, yarn".to_string(),
                });
            }
        };
        Config {
            architecture,
            vocab_size: meta.get_u32(&key("vocab_size"))?.unwrap_or(0),
            hidden_size,
            intermediate_size: meta.require_u32(&key("feed_forward_length"))?,
            num_hidden_layers: meta.require_u32(&key("block_count"))?,
            num_attention_heads: heads,
            num_key_value_heads: meta.get_u32(&key("attention.head_count_kv"))?.unwrap_or(heads),
            head_dim,
            rms_norm_eps: meta.require_f32(&key("attention.layer_norm_rms_epsilon"))?,
            hidden_act: match architecture {
                Architecture::BitNetB158 => Activation::Relu2,
                _ => Activation::Silu,
            },
            max_position_embeddings,
            tie_word_embeddings: architecture.has_sub_norms().then_some(true),
            rope_theta: f32_or("rope.freq_base", 10_000.0)?,
            rope_dim: meta.get_u32(&key("rope.dimension_count"))?.unwrap_or(head_dim),
            rope_layout: match architecture {
                Architecture::Llama => RopeLayout::Interleaved,
                _ => RopeLayout::HalfSplit,
            },
            rope_scaling,
            hf_linear: None,
            linear_norm_eps: None,
        }
        .checked()
    }

    /// The configuration in the text of a `config.json`.
    ///
    /// # Errors
    /// Invalid JSON, missing or ill-typed keys, unknown models, numbers out of range.
    pub fn from_hf(text: &str) -> Result<Config, ModelError> {
        let json: Json = serde_json::from_str(text)
            .map_err(|e| ModelError::Config { reason: format!("not valid JSON: {e}") })?;
        let map = Map { map: &json, place: String::new() };
        if !json.is_object() {
            return Err(ModelError::Config { reason: "not a JSON object".to_string() });
        }
        let model_type = map.str("model_type")?.unwrap_or("");
        let class = json["architectures"][0].as_str().unwrap_or("");
        let architecture = match (model_type, class) {
            // 1bitLLM's class has a small n; its checkpoints call themselves llama or bitnet.
            (_, "BitnetForCausalLM") => Architecture::BitNet,
            ("bitnet", _) => Architecture::BitNetB158,
            ("llama", _) => Architecture::Llama,
            ("qwen3", _) => Architecture::Qwen3,
            _ => {
                return Err(ModelError::Unsupported {
                    what: "model_type",
                    got: model_type.to_string(),
                    supported: "bitnet, llama, qwen3".to_string(),
                });
            }
        };
        for key in ["attention_bias", "mlp_bias"] {
            if map.bool(key)?.unwrap_or(false) {
                return Err(invalid(key, "true", "false (linears with biases are not supported)"));
            }
        }
        if map.get("sliding_window").is_some() && map.bool("use_sliding_window")? == Some(true) {
            return Err(invalid("use_sliding_window", "true", "false"));
        }
        let heads = map.require_u32("num_attention_heads")?;
        let hidden_size = map.require_u32("hidden_size")?;
        let head_dim = match map.u32("head_dim")? {
            Some(d) => d,
            None => hidden_size.checked_div(heads).unwrap_or(0),
        };
        let hidden_act = match map.str("hidden_act")? {
            Some("silu") => Activation::Silu,
            Some("relu2") => Activation::Relu2,
            None if architecture == Architecture::BitNetB158 => Activation::Relu2,
            None => Activation::Silu,
            Some(other) => {
                return Err(ModelError::Unsupported {
                    what: "hidden_act",
                    got: other.to_string(),
                    supported: "silu, relu2".to_string(),
                });
            }
        };
        let max_position_embeddings = map.u32("max_position_embeddings")?.unwrap_or(2048);
        let (hf_linear, linear_norm_eps) = quantization(&map)?;
        let rope_params = map.object("rope_parameters")?;
        let theta_in_params = match &rope_params {
            Some(p) => p.f32("rope_theta")?,
            None => None,
        };
        let scaling = match map.object("rope_scaling")? {
            Some(s) => Some(s),
            None => rope_params,
        };
        Config {
            architecture,
            vocab_size: map.require_u32("vocab_size")?,
            hidden_size,
            intermediate_size: map.require_u32("intermediate_size")?,
            num_hidden_layers: map.require_u32("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: map.u32("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            rms_norm_eps: map.f32("rms_norm_eps")?.unwrap_or(1e-6),
            hidden_act,
            max_position_embeddings,
            tie_word_embeddings: Some(map.bool("tie_word_embeddings")?.unwrap_or(false)),
            rope_theta: theta_in_params.or(map.f32("rope_theta")?).unwrap_or(10_000.0),
            rope_dim: head_dim,
            rope_layout: RopeLayout::HalfSplit,
            rope_scaling: match scaling {
                Some(s) => hf_rope_scaling(&s, max_position_embeddings)?,
                None => RopeScaling::None,
            },
            hf_linear,
            linear_norm_eps,
        }
        .checked()
    }

    fn checked(self) -> Result<Config, ModelError> {
        let range = |key, value: u32, max: u64| {
            if value == 0 || u64::from(value) > max {
                Err(invalid(key, value, &format!("1 to {max}")))
            } else {
                Ok(())
            }
        };
        range("hidden_size (embedding_length)", self.hidden_size, MAX_DIM)?;
        range("intermediate_size (feed_forward_length)", self.intermediate_size, MAX_DIM)?;
        range("num_hidden_layers (block_count)", self.num_hidden_layers, MAX_LAYERS)?;
        range("num_attention_heads (head_count)", self.num_attention_heads, MAX_HEADS)?;
        range("num_key_value_heads (head_count_kv)", self.num_key_value_heads, MAX_HEADS)?;
        range("head_dim", self.head_dim, MAX_HEAD_DIM)?;
        range("max_position_embeddings (context_length)", self.max_position_embeddings, 1 << 32)?;
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(invalid(
                "num_attention_heads (head_count)",
                self.num_attention_heads,
                &format!("a multiple of the {} key/value heads", self.num_key_value_heads),
            ));
        }
        if self.rope_dim == 0 || !self.rope_dim.is_multiple_of(2) || self.rope_dim > self.head_dim {
            return Err(invalid(
                "rope.dimension_count",
                self.rope_dim,
                &format!("an even number up to head_dim = {}", self.head_dim),
            ));
        }
        let positive = |key, value: f32| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(invalid(key, value, "a positive finite number"))
            }
        };
        positive("rope_theta (rope.freq_base)", self.rope_theta)?;
        positive("rms_norm_eps", self.rms_norm_eps)?;
        if let Some(eps) = self.linear_norm_eps {
            positive("quantization_config.rms_norm_eps", eps)?;
        }
        match self.rope_scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => positive("rope_scaling.factor", factor)?,
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
            } => {
                positive("rope_scaling.factor", factor)?;
                positive("rope_scaling.beta_fast", beta_fast)?;
                positive("rope_scaling.beta_slow", beta_slow)?;
                positive("rope_scaling.attention_factor", attention_factor.unwrap_or(1.0))?;
                range("rope_scaling.original_context", original_context, 1 << 32)?;
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("rope_scaling.factor", factor)?;
                positive("rope_scaling.low_freq_factor", low_freq_factor)?;
                positive("rope_scaling.high_freq_factor", high_freq_factor)?;
                range("rope_scaling.original_context", original_context, 1 << 32)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(invalid(
                        "rope_scaling.high_freq_factor",
                        high_freq_factor,
                        "more than low_freq_factor",
                    ));
                }
            }
        }
        Ok(self)
    }
}

fn invalid(key: &str, got: impl ToString, expected: &str) -> ModelError {
    ModelError::Invalid {
        key: key.to_string(),
        expected: expected.to_string(),
        got: got.to_string(),
    }
}

/// `quantization_config` → scale convention and the epsilon of `use_rms_norm`.
fn quantization(map: &Map<'_>) -> Result<(Option<HfLinear>, Option<f32>), ModelError> {
    let Some(q) = map.object("quantization_config")? else {
        return Ok((None, None));
    };
    match q.str("quant_method")? {
        Some("bitnet") => {}
        other => {
            return Err(ModelError::Unsupported {
                what: "quantization_config.quant_method",
                got: other.unwrap_or("(missing)").to_string(),
                supported: "bitnet".to_string(),
            });
        }
    }
    let linear = match q.str("linear_class")? {
        None | Some("bitlinear") => HfLinear::Divide,
        Some("autobitlinear") => HfLinear::Multiply,
        Some(other) => {
            return Err(ModelError::Unsupported {
                what: "quantization_config.linear_class",
                got: other.to_string(),
                supported: "bitlinear, autobitlinear".to_string(),
            });
        }
    };
    let norm_eps = match q.bool("use_rms_norm")? {
        Some(true) => Some(q.f32("rms_norm_eps")?.unwrap_or(1e-6)),
        _ => None,
    };
    Ok((Some(linear), norm_eps))
}

fn hf_rope_scaling(s: &Map<'_>, context: u32) -> Result<RopeScaling, ModelError> {
    let kind = match s.str("rope_type")? {
        Some(kind) => Some(kind),
        None => s.str("type")?,
    };
    let original = s.u32("original_max_position_embeddings")?;
    let factor = || s.f32("factor").map(|f| f.unwrap_or(1.0));
    Ok(match kind {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: factor()? },
        Some("yarn") => RopeScaling::Yarn {
            factor: factor()?,
            original_context: original.unwrap_or(context),
            beta_fast: s.f32("beta_fast")?.unwrap_or(32.0),
            beta_slow: s.f32("beta_slow")?.unwrap_or(1.0),
            attention_factor: s.f32("attention_factor")?,
        },
        Some("llama3") => RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: s.f32("low_freq_factor")?.unwrap_or(1.0),
            high_freq_factor: s.f32("high_freq_factor")?.unwrap_or(4.0),
            original_context: original.unwrap_or(context),
        },
        Some(other) => {
            return Err(ModelError::Unsupported {
                what: "rope_scaling type",
                got: other.to_string(),
                supported: "default, linear, yarn, llama3".to_string(),
            });
        }
    })
}

/// Typed look-ups in a JSON object; `null` counts as absent, as in Python.
struct Map<'a> {
    map: &'a Json,
    place: String,
}

impl<'a> Map<'a> {
    fn get(&self, key: &str) -> Option<&'a Json> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Json) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(v) => Ok(Some(v)),
            None => {
                let mut got = value.to_string();
                got.truncate(got.char_indices().nth(60).map_or(got.len(), |(i, _)| i));
                Err(invalid(&format!("{}{key}", self.place), got, expected))
            }
        }
    }

    fn u32(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.typed(key, "a whole number below 2^32", |v| v.as_u64()?.try_into().ok())
    }

    fn require_u32(&self, key: &str) -> Result<u32, ModelError> {
        self.u32(key)?.ok_or_else(|| ModelError::Config { reason: format!("{key} is missing") })
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.typed(key, "a number", |v| v.as_f64().map(|v| v as f32))
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "true or false", Json::as_bool)
    }

    fn str(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, "a string", Json::as_str)
    }

    fn object(&self, key: &str) -> Result<Option<Map<'a>>, ModelError> {
        let map = self.typed(key, "an object", |v| v.is_object().then_some(v))?;
        Ok(map.map(|map| Map { map, place: format!("{}{key}.", self.place) }))
    }
}
