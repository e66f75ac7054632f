//! Which tensor of a file plays which part: one table of names, the shapes that the configuration
//! implies, and the device weights that the tensors are gathered into.
//!
//! Matrices that read the same input become one weight (q, k, v; gate, up): fewer kernels a layer.
//! That needs nothing of the kernels, because every row of a packed matrix has its own scale.

use super::config::{Activations, Architecture, Config, HfLinear, ModelError};
use crate::format::{DType, TensorInfo};
use crate::plan::{ActQuant, MatrixType, WeightId, WeightKind, WeightSpec};
use std::collections::HashMap;

/// Whose tensor names a file uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// llama.cpp's, as in GGUF files.
    Gguf,
    /// transformers', as in safetensors files.
    Hf,
}

/// Choices that are the user's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Activation rule of the ternary linears.
    pub activations: Activations,
    /// Device type of dense matrices (embedding, head); `None`: Q8 for Q8_0, else F16.
    pub dense: Option<MatrixType>,
}

/// Where the bytes of a tensor go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// The weight.
    pub weight: WeightId,
    /// First of the weight's rows that the tensor fills.
    pub row: u32,
    /// Number of rows.
    pub rows: u32,
    /// In-features (elements, for a vector).
    pub k: u32,
    /// What is to be done with the bytes.
    pub how: How,
}

/// What a tensor is turned into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    /// Repacked into codes, row and block scales. Float tensors are ternarised by their absmean.
    Ternary,
    /// Converted row by row.
    Dense(MatrixType),
    /// Converted to f32.
    Vector,
    /// One number that multiplies (or divides) the scales of the rows.
    RowScale {
        /// Divide instead of multiply.
        divide: bool,
    },
}

/// A linear: one or more tensors of a file, joined row-wise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// The weight.
    pub weight: WeightId,
    /// Out-features.
    pub n: u32,
    /// How its input is rounded; `None`: not at all.
    pub act: Option<ActQuant>,
    /// Dense, not ternary.
    pub dense: bool,
    /// Norm in front of it (`use_rms_norm`).
    pub input_norm: Option<WeightId>,
}

/// The weights of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Norm before attention, `[hidden]`.
    pub attn_norm: WeightId,
    /// q, k, v: one linear, or three where they cannot be joined.
    pub qkv: Vec<Linear>,
    /// Norms of query and key heads, `[D]`.
    pub qk_norm: Option<(WeightId, WeightId)>,
    /// Norm before the output projection, `[H·D]`.
    pub attn_sub_norm: Option<WeightId>,
    /// Output projection.
    pub attn_output: Linear,
    /// Norm before the feed-forward network, `[hidden]`.
    pub ffn_norm: WeightId,
    /// gate, up: one linear, or two.
    pub gate_up: Vec<Linear>,
    /// Norm before the down projection, `[intermediate]`.
    pub ffn_sub_norm: Option<WeightId>,
    /// Down projection.
    pub ffn_down: Linear,
}

/// All weights of a model, and where each tensor of its file goes.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightMap {
    /// Weights, indexed by [`WeightId`].
    pub specs: Vec<WeightSpec>,
    /// A placement for each tensor, in the order they were given; `None`: not used.
    pub placements: Vec<Option<Placement>>,
    /// `V`.
    pub vocab: u32,
    /// Embedding, `[V, hidden]`.
    pub embedding: WeightId,
    /// The layers.
    pub layers: Vec<Layer>,
    /// Last norm, `[hidden]`.
    pub output_norm: WeightId,
    /// Head, `[V, hidden]`; the embedding's weight when tied.
    pub head: Linear,
}

/// A tensor's part in a model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Embedding,
    OutputNorm,
    Head,
    AttnNorm,
    Q,
    K,
    V,
    AttnOutput,
    QNorm,
    KNorm,
    AttnSubNorm,
    FfnNorm,
    Gate,
    Up,
    Down,
    FfnSubNorm,
}

impl Role {
    const ALL: [Role; 16] = [
        Role::Embedding,
        Role::OutputNorm,
        Role::Head,
        Role::AttnNorm,
        Role::Q,
        Role::K,
        Role::V,
        Role::AttnOutput,
        Role::QNorm,
        Role::KNorm,
        Role::AttnSubNorm,
        Role::FfnNorm,
        Role::Gate,
        Role::Up,
        Role::Down,
        Role::FfnSubNorm,
    ];

    /// Name without `.weight` (and without the layer) in GGUF, and the names in safetensors: the
    /// first is the usual one, the second 1bitLLM's.
    fn stems(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Role::Embedding => ("token_embd", &["model.embed_tokens"]),
            Role::OutputNorm => ("output_norm", &["model.norm"]),
            Role::Head => ("output", &["lm_head"]),
            Role::AttnNorm => ("attn_norm", &["input_layernorm"]),
            Role::Q => ("attn_q", &["self_attn.q_proj"]),
            Role::K => ("attn_k", &["self_attn.k_proj"]),
            Role::V => ("attn_v", &["self_attn.v_proj"]),
            Role::AttnOutput => ("attn_output", &["self_attn.o_proj"]),
            Role::QNorm => ("attn_q_norm", &["self_attn.q_norm"]),
            Role::KNorm => ("attn_k_norm", &["self_attn.k_norm"]),
            Role::AttnSubNorm => {
                ("attn_sub_norm", &["self_attn.attn_sub_norm", "self_attn.inner_attn_ln"])
            }
            Role::FfnNorm => ("ffn_norm", &["post_attention_layernorm"]),
            Role::Gate => ("ffn_gate", &["mlp.gate_proj"]),
            Role::Up => ("ffn_up", &["mlp.up_proj"]),
            Role::Down => ("ffn_down", &["mlp.down_proj"]),
            Role::FfnSubNorm => ("ffn_sub_norm", &["mlp.ffn_sub_norm", "mlp.ffn_layernorm"]),
        }
    }
}

/// The GGUF name of a safetensors tensor, where it has one:
/// `model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`.
pub fn gguf_name(hf: &str) -> Option<String> {
    let stem = hf.strip_suffix(".weight")?;
    let (prefix, stem) = match stem.strip_prefix("model.layers.") {
        Some(rest) => {
            let (layer, stem) = rest.split_once('.')?;
            (format!("blk.{}.", layer.parse::<u32>().ok()?), stem)
        }
        None => (String::new(), stem),
    };
    let role = Role::ALL.into_iter().find(|role| role.stems().1.contains(&stem))?;
    Some(format!("{prefix}{}.weight", role.stems().0))
}

/// How a matrix in a file is stored, as far as its device weight is concerned.
#[derive(Clone, Copy, PartialEq)]
enum Storage {
    Ternary { block: Option<u32>, act: Option<ActQuant>, hf_scale: bool },
    Dense(MatrixType),
}

/// Finds the tensors of the model among `tensors` and lays out its weights.
///
/// # Errors
/// Missing tensors, tensors without a place, wrong shapes and types, all by name.
pub fn resolve(
    config: &Config,
    naming: Naming,
    tensors: &[TensorInfo],
    options: Options,
) -> Result<WeightMap, ModelError> {
    let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let mut r = Resolver {
        config,
        naming,
        tensors,
        options,
        by_name,
        specs: Vec::new(),
        placements: vec![None; tensors.len()],
    };
    let hidden = config.hidden_size;
    let (embedding_tensor, stem) = r.find(None, Role::Embedding)?;
    let vocab = match config.vocab_size {
        0 => tensors[embedding_tensor].shape.first().map_or(0, |&v| v.try_into().unwrap_or(0)),
        v => v,
    };
    let embedding = r.linear("token_embd", &[(embedding_tensor, stem, vocab)], hidden, true)?;
    let mut layers = Vec::new();
    for l in 0..config.num_hidden_layers {
        layers.push(r.layer(l)?);
    }
    let output_norm = r.norm(None, Role::OutputNorm, hidden)?;
    let head = match (config.tie_word_embeddings, r.get(None, Role::Head)) {
        (Some(true), _) | (None, None) => embedding,
        _ => {
            let (tensor, stem) = r.find(None, Role::Head)?;
            r.linear("output", &[(tensor, stem, vocab)], hidden, true)?
        }
    };
    r.check_all_placed()?;
    Ok(WeightMap {
        specs: r.specs,
        placements: r.placements,
        vocab,
        embedding: embedding.weight,
        layers,
        output_norm,
        head,
    })
}

struct Resolver<'a> {
    config: &'a Config,
    naming: Naming,
    tensors: &'a [TensorInfo],
    options: Options,
    by_name: HashMap<&'a str, usize>,
    specs: Vec<WeightSpec>,
    placements: Vec<Option<Placement>>,
}

impl Resolver<'_> {
    fn layer(&mut self, l: u32) -> Result<Layer, ModelError> {
        let c = self.config;
        let at = Some(l);
        let (hidden, ffn) = (c.hidden_size, c.intermediate_size);
        let (q_dim, kv_dim) =
            (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let attn_norm = self.norm(at, Role::AttnNorm, hidden)?;
        let qkv = self.joined(
            l,
            "attn_qkv",
            &[(Role::Q, q_dim), (Role::K, kv_dim), (Role::V, kv_dim)],
            hidden,
        )?;
        let qk_norm = if c.architecture.has_qk_norms() {
            let q = self.norm(at, Role::QNorm, c.head_dim)?;
            Some((q, self.norm(at, Role::KNorm, c.head_dim)?))
        } else {
            None
        };
        let sub_norms = c.architecture.has_sub_norms();
        let mut sub_norm = |role, len| sub_norms.then(|| self.norm(at, role, len)).transpose();
        let attn_sub_norm = sub_norm(Role::AttnSubNorm, q_dim)?;
        let ffn_sub_norm = sub_norm(Role::FfnSubNorm, ffn)?;
        Ok(Layer {
            attn_norm,
            qkv,
            qk_norm,
            attn_sub_norm,
            attn_output: self.single(l, Role::AttnOutput, hidden, q_dim)?,
            ffn_norm: self.norm(at, Role::FfnNorm, hidden)?,
            gate_up: self.joined(
                l,
                "ffn_gate_up",
                &[(Role::Gate, ffn), (Role::Up, ffn)],
                hidden,
            )?,
            ffn_sub_norm,
            ffn_down: self.single(l, Role::Down, hidden, ffn)?,
        })
    }

    /// The tensor of a role with its name (without `.weight`), if the file has it.
    fn get(&self, layer: Option<u32>, role: Role) -> Option<(usize, String)> {
        let (gguf, hf) = role.stems();
        let stems: &[&str] = if self.naming == Naming::Gguf { &[gguf] } else { hf };
        stems.iter().find_map(|stem| {
            let full = self.full_name(layer, stem);
            self.by_name.get(format!("{full}.weight").as_str()).map(|&i| (i, full))
        })
    }

    fn find(&self, layer: Option<u32>, role: Role) -> Result<(usize, String), ModelError> {
        self.get(layer, role).ok_or_else(|| {
            let (gguf, hf) = role.stems();
            let stem = if self.naming == Naming::Gguf { gguf } else { hf[0] };
            ModelError::MissingTensor { name: format!("{}.weight", self.full_name(layer, stem)) }
        })
    }

    fn full_name(&self, layer: Option<u32>, stem: &str) -> String {
        match (layer, self.naming) {
            (None, _) => stem.to_string(),
            (Some(l), Naming::Gguf) => format!("blk.{l}.{stem}"),
            (Some(l), Naming::Hf) => format!("model.layers.{l}.{stem}"),
        }
    }

    fn weight(&mut self, name: String, kind: WeightKind) -> WeightId {
        self.specs.push(WeightSpec { name, kind });
        WeightId(self.specs.len() as u32 - 1)
    }

    fn norm(&mut self, layer: Option<u32>, role: Role, len: u32) -> Result<WeightId, ModelError> {
        let (tensor, _) = self.find(layer, role)?;
        let stem = role.stems().0;
        let label = layer.map_or(stem.to_string(), |l| format!("blk.{l}.{stem}"));
        self.vector(tensor, label, len)
    }

    fn vector(&mut self, tensor: usize, label: String, len: u32) -> Result<WeightId, ModelError> {
        let info = &self.tensors[tensor];
        expect_shape(info, &[len])?;
        if !is_float(info.dtype) {
            return Err(type_error(info, "F32, F16 or BF16"));
        }
        let weight = self.weight(label, WeightKind::Vector { len });
        self.placements[tensor] =
            Some(Placement { weight, row: 0, rows: 1, k: len, how: How::Vector });
        Ok(weight)
    }

    fn single(&mut self, l: u32, role: Role, n: u32, k: u32) -> Result<Linear, ModelError> {
        let (tensor, name) = self.find(Some(l), role)?;
        self.linear(&format!("blk.{l}.{}", role.stems().0), &[(tensor, name, n)], k, false)
    }

    /// One linear for all `parts` if they can share one, else one each.
    fn joined(
        &mut self,
        l: u32,
        label: &str,
        parts: &[(Role, u32)],
        k: u32,
    ) -> Result<Vec<Linear>, ModelError> {
        let found = parts
            .iter()
            .map(|&(role, n)| self.find(Some(l), role).map(|(t, name)| (t, name, n)))
            .collect::<Result<Vec<_>, _>>()?;
        let storages = found
            .iter()
            .map(|&(t, _, n)| self.storage(&self.tensors[t], n, k, false))
            .collect::<Result<Vec<_>, _>>()?;
        let own_norms = self.config.linear_norm_eps.is_some();
        if !own_norms && storages.iter().all(|s| *s == storages[0]) {
            return Ok(vec![self.linear(&format!("blk.{l}.{label}"), &found, k, false)?]);
        }
        parts.iter().map(|&(role, n)| self.single(l, role, n, k)).collect()
    }

    /// A weight of the rows of all `parts` (tensor, name, rows), which are stored alike.
    fn linear(
        &mut self,
        label: &str,
        parts: &[(usize, String, u32)],
        k: u32,
        table: bool,
    ) -> Result<Linear, ModelError> {
        let n = parts.iter().map(|p| p.2).sum();
        let storage = self.storage(&self.tensors[parts[0].0], parts[0].2, k, table)?;
        let (kind, how, act) = match storage {
            Storage::Ternary { block, act, .. } => {
                (WeightKind::Ternary { n, k, block }, How::Ternary, act)
            }
            Storage::Dense(dtype) => (WeightKind::Matrix { n, k, dtype }, How::Dense(dtype), None),
        };
        let weight = self.weight(label.to_string(), kind);
        let mut row = 0;
        for (tensor, name, rows) in parts {
            let placement = Placement { weight, row, rows: *rows, k, how };
            self.placements[*tensor] = Some(placement);
            self.place_scale(name, placement, storage)?;
            row += rows;
        }
        let mut input_norm = None;
        if self.config.linear_norm_eps.is_some() && !table {
            let name = format!("{}.rms_norm.weight", parts[0].1);
            let &tensor =
                self.by_name.get(name.as_str()).ok_or(ModelError::MissingTensor { name })?;
            input_norm = Some(self.vector(tensor, format!("{label}.input_norm"), k)?);
        }
        let dense = matches!(storage, Storage::Dense(_));
        Ok(Linear { weight, n, act, dense, input_norm })
    }

    /// Places the separate scale tensor of a ternary matrix, where it has one.
    fn place_scale(
        &mut self,
        name: &str,
        matrix: Placement,
        storage: Storage,
    ) -> Result<(), ModelError> {
        let Storage::Ternary { hf_scale, .. } = storage else { return Ok(()) };
        let scale_name = match self.naming {
            Naming::Gguf => format!("{name}.scale"),
            Naming::Hf => format!("{name}.weight_scale"),
        };
        match self.by_name.get(scale_name.as_str()) {
            Some(&tensor) => {
                let info = &self.tensors[tensor];
                if info.shape.iter().product::<u64>() != 1 {
                    expect_shape(info, &[1])?;
                }
                if !is_float(info.dtype) {
                    return Err(type_error(info, "F32, F16 or BF16"));
                }
                let divide =
                    self.naming == Naming::Hf && self.config.hf_linear != Some(HfLinear::Multiply);
                self.placements[tensor] =
                    Some(Placement { how: How::RowScale { divide }, ..matrix });
            }
            None if hf_scale => return Err(ModelError::MissingTensor { name: scale_name }),
            None => {}
        }
        Ok(())
    }

    /// How a matrix of `[n, k]` is stored, after checking its shape and type.
    fn storage(
        &self,
        info: &TensorInfo,
        n: u32,
        k: u32,
        table: bool,
    ) -> Result<Storage, ModelError> {
        let ternary = |block, act: ActQuant, hf_scale| {
            let act = match self.options.activations {
                Activations::Auto => Some(act),
                Activations::PerToken => Some(ActQuant::PerToken),
                Activations::Block => Some(ActQuant::Block256),
                Activations::F32 => None,
            };
            Storage::Ternary { block, act, hf_scale }
        };
        if info.dtype == DType::U8 && self.naming == Naming::Hf && !table {
            if self.config.hf_linear.is_none() {
                return Err(type_error(info, "a float (config.json has no quantization_config)"));
            }
            if !n.is_multiple_of(4) {
                return Err(type_error(info, "a float (packed rows come in fours)"));
            }
            expect_shape(info, &[n / 4, k])?;
            return Ok(ternary(None, ActQuant::PerToken, true));
        }
        expect_shape(info, &[n, k])?;
        Ok(match info.dtype {
            DType::I2_S => ternary(None, ActQuant::PerToken, false),
            DType::TQ1_0 | DType::TQ2_0 => ternary(Some(256), ActQuant::Block256, false),
            DType::Q1_0 => ternary(Some(128), ActQuant::Block32, false),
            DType::Q2_0 => ternary(Some(64), ActQuant::Block32, false),
            DType::Q2_0_128 => ternary(Some(128), ActQuant::Block32, false),
            DType::IQ2_BN => ternary(None, ActQuant::PerToken, false),
            d if is_float(d) && !table && self.has_float_masters(info) => {
                ternary(None, ActQuant::PerToken, false)
            }
            DType::Q8_0 => Storage::Dense(self.options.dense.unwrap_or(MatrixType::Q8)),
            // Rounding 4 or 6 bits once more to 8 was measured to cost as much as the int8
            // activations do (cosine 0.9978 on the llama fixture). f16 is off by 2⁻¹² of a value, by
            // which some int8 activations round the other way: rms 0.029 of the logits' deviation
            // there, on every backend; f32 (0.009) would take twice the memory.
            d if is_float(d) || matches!(d, DType::Q6_K | DType::Q4_K | DType::Q4_0) => {
                Storage::Dense(self.options.dense.unwrap_or(MatrixType::F16))
            }
            DType::PQ2_0 | DType::PTQ1_0 => {
                return Err(type_error(
                    info,
                    "one that multiplies the inputs as they are (linears of this type take \
                     Hadamard-rotated inputs, which are not supported)",
                ));
            }
            _ => {
                return Err(type_error(
                    info,
                    "I2_S, TQ1_0, TQ2_0, Q1_0, Q2_0, F32, F16, BF16, Q8_0, Q6_K, Q4_K or Q4_0",
                ));
            }
        })
    }

    /// Whether a float linear holds master weights, to be ternarised at load: in safetensors of
    /// models that were trained so. Float linears of GGUF files are computed as they are.
    fn has_float_masters(&self, info: &TensorInfo) -> bool {
        let c = self.config;
        self.naming == Naming::Hf
            && (c.hf_linear.is_some()
                || matches!(c.architecture, Architecture::BitNet | Architecture::BitNetB158))
            && info.shape.len() == 2
    }

    /// A tensor that is left over would be missing from the computation.
    fn check_all_placed(&self) -> Result<(), ModelError> {
        for (info, placement) in self.tensors.iter().zip(&self.placements) {
            let name = info.name.as_str();
            let redundant = name.ends_with("rotary_emb.inv_freq")
                // Tied models sometimes ship the head as well; the references do not read it.
                || ["output.weight", "lm_head.weight"].contains(&name);
            if placement.is_none() && !redundant {
                return Err(ModelError::UnexpectedTensor {
                    name: name.to_string(),
                    architecture: self.config.architecture.name(),
                });
            }
        }
        Ok(())
    }
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

fn expect_shape(info: &TensorInfo, expected: &[u32]) -> Result<(), ModelError> {
    let expected: Vec<u64> = expected.iter().map(|&d| u64::from(d)).collect();
    if info.shape == expected {
        return Ok(());
    }
    Err(ModelError::Shape { name: info.name.clone(), expected, got: info.shape.clone() })
}

fn type_error(info: &TensorInfo, expected: &'static str) -> ModelError {
    ModelError::TensorType { name: info.name.clone(), expected, got: info.dtype.to_string() }
}
