//! The narrow waist: a forward pass written down as a list of operations over named buffers.
//!
//! A model *writes* a [`Plan`] once (`model::forward`); a backend *prepares* it once (allocates,
//! compiles, binds) and replays it for every step. `model` and the machines (`cpu`, `gpu`) never
//! see each other: they meet here. A plan can be printed, compared, timed op by op and run on two
//! backends side by side.
//!
//! This room knows nothing about files, devices or text. It may import no other room.
//!
//! # Letters
//! `T` tokens of one step, `R` rows whose logits are wanted, `N` out-features, `K` in-features,
//! `H` query heads, `G` key/value heads, `D` head_dim, `V` vocabulary, `L` layers.
//! Shapes are row-major, outermost first: `[N, K]`.
//!
//! # Rows
//! Every buffer holds one row a token (`[T, dim]`) or one row a wanted output (`[R, dim]`, filled
//! by [`Op::TakeOutputs`]). Operations work row by row; only [`Op::KvAppend`] and
//! [`Op::Attention`] look at other positions, through the KV cache.

use serde::{Deserialize, Serialize};

/// Index of a buffer in [`Plan::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufId(pub u32);

/// Index of a weight in [`Plan::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// A contiguous run of features inside every row of a buffer: `row[at .. at + dim]`.
///
/// Fused projections (q, k and v in one matrix) write one buffer whose parts are read as slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// The buffer.
    pub buf: BufId,
    /// First feature, in elements.
    pub at: u32,
    /// Number of features.
    pub dim: u32,
}

/// What the rows of a buffer stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// One row a token of the step.
    Tokens,
    /// One row a wanted output (see [`Op::TakeOutputs`]).
    Outputs,
}

/// How activations are rounded to int8 in front of a ternary product. The rule belongs to the
/// format of the file: it is what the reference programs do, and their outputs tell the rules apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ActQuant {
    /// One scale a token: `s = 127 / max(1e-5, max|x|)`, `q = round_half_even(x·s)` clamped to
    /// −128..127, `d = 1/s`. I2_S, Hugging Face packed and master weights.
    ///
    /// Source: microsoft/BitNet `ggml-bitnet-mad.cpp`; transformers `integrations/bitnet.py`.
    PerToken,
    /// llama.cpp's Q8_K: per 256 values, `iscale = −127 / v` with `v` the (signed) value of largest
    /// magnitude (the first such), `q = min(127, round_half_even(x·iscale))`, `d = 1/iscale`;
    /// an all-zero block has `d = 0`. TQ1_0, TQ2_0.
    Block256,
    /// llama.cpp's Q8_0: per 32 values, `q = round_half_even(x · (127 / max|x|))` and
    /// `d = max|x| / 127`, stored as f16; an all-zero block has `d = 0`. Q1_0, Q2_0.
    ///
    /// Source: the vectorised `quantize_row_q8_0` (the scalar one rounds half away from zero).
    Block32,
}

impl ActQuant {
    /// Number of values along the row that share one scale; `None` when the whole row does.
    pub fn group(self) -> Option<u32> {
        match self {
            ActQuant::PerToken => None,
            ActQuant::Block256 => Some(256),
            ActQuant::Block32 => Some(32),
        }
    }

    /// Number of scales in a row of `dim` values.
    pub fn groups(self, dim: u32) -> u32 {
        self.group().map_or(1, |g| dim.div_ceil(g))
    }
}

/// Element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufKind {
    /// f32.
    F32,
    /// int8 values (rows padded with zeros to a multiple of 64) with f32 multipliers `d`,
    /// one a group: the value stands for `q · d`.
    Quant(ActQuant),
}

/// A named activation buffer, `[T, dim]` or `[R, dim]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BufSpec {
    /// Name for traces and labels, such as `x` or `qkv`.
    pub name: &'static str,
    /// Features a row.
    pub dim: u32,
    /// Element type.
    pub kind: BufKind,
    /// What a row is.
    pub rows: Rows,
}

/// Element type of a dense (not ternary) matrix on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MatrixType {
    /// IEEE single precision, 4 bytes.
    F32,
    /// IEEE half precision, 2 bytes.
    F16,
    /// int8 values `[N, K]` and f16 scales `[N, K/32]`: value = q·d (the contents of Q8_0, in two
    /// planes so that both load aligned). `K` is a multiple of 32.
    Q8,
}

/// Storage of a weight on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WeightKind {
    /// Ternary (or ±1) matrix `[N, K]` in the packed layout of [`crate::ternary`]: codes, one f32
    /// scale a row, and, where `block` is set, one f16 scale a `block` values along the row.
    /// The weight is `(code − 1) · block_scale · row_scale`.
    Ternary {
        /// Out-features.
        n: u32,
        /// In-features.
        k: u32,
        /// Block length of the f16 scales (64, 128 or 256).
        block: Option<u32>,
    },
    /// Dense matrix `[N, K]`.
    Matrix {
        /// Out-features.
        n: u32,
        /// In-features.
        k: u32,
        /// Element type.
        dtype: MatrixType,
    },
    /// f32 vector, such as the weight of a norm.
    Vector {
        /// Number of elements.
        len: u32,
    },
}

/// The separately written arrays of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WeightPart {
    /// Packed codes of a ternary matrix, the values of a dense matrix, or a vector.
    Data,
    /// f32 `[N]`, ternary matrices.
    RowScales,
    /// f16: `[N, K/block]` of a ternary matrix, `[N, K/32]` of a Q8 matrix.
    BlockScales,
}

impl WeightPart {
    /// All of them.
    pub const ALL: [WeightPart; 3] =
        [WeightPart::Data, WeightPart::RowScales, WeightPart::BlockScales];
}

/// A weight that a plan reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightSpec {
    /// Name for errors, traces and labels, such as `blk.3.attn_qkv`.
    pub name: String,
    /// Shape and storage.
    pub kind: WeightKind,
}

impl WeightKind {
    /// `[N, K]` of a matrix; `[1, len]` of a vector.
    pub fn shape(self) -> (u32, u32) {
        match self {
            WeightKind::Ternary { n, k, .. } | WeightKind::Matrix { n, k, .. } => (n, k),
            WeightKind::Vector { len } => (1, len),
        }
    }

    /// Bytes of one row of `part` (0 when the weight has no such part).
    pub fn row_bytes(self, part: WeightPart) -> u64 {
        use MatrixType::*;
        match (self, part) {
            (WeightKind::Ternary { k, .. }, WeightPart::Data) => u64::from(k.div_ceil(64)) * 16,
            (WeightKind::Ternary { .. }, WeightPart::RowScales) => 4,
            (WeightKind::Ternary { k, block: Some(b), .. }, WeightPart::BlockScales) => {
                u64::from(k.div_ceil(b)) * 2
            }
            (WeightKind::Matrix { k, dtype: F32, .. }, WeightPart::Data) => u64::from(k) * 4,
            (WeightKind::Matrix { k, dtype: F16, .. }, WeightPart::Data) => u64::from(k) * 2,
            (WeightKind::Matrix { k, dtype: Q8, .. }, WeightPart::Data) => u64::from(k),
            (WeightKind::Matrix { k, dtype: Q8, .. }, WeightPart::BlockScales) => {
                u64::from(k.div_ceil(32)) * 2
            }
            (WeightKind::Vector { len }, WeightPart::Data) => u64::from(len) * 4,
            _ => 0,
        }
    }

    /// Bytes of `part`.
    pub fn part_bytes(self, part: WeightPart) -> u64 {
        u64::from(self.shape().0) * self.row_bytes(part)
    }

    /// Bytes of all parts.
    pub fn bytes(self) -> u64 {
        WeightPart::ALL.iter().map(|&p| self.part_bytes(p)).sum()
    }
}

/// Gate of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `max(0, x)²`. Overflows f16: kept in f32.
    Relu2,
}

/// Which elements of a head a rotary embedding turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// Pairs `(2i, 2i+1)`: GGUF files of architecture `llama`.
    Interleaved,
    /// Pairs `(i, i + dim/2)`: everything else ("NeoX").
    HalfSplit,
}

/// Rotary embedding: pair `i` of position `p` turns by `p · inv_freq[i]`; cosine and sine are
/// multiplied by `mscale` (YaRN; 1 otherwise).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Which elements form a pair.
    pub layout: RopeLayout,
    /// Angular step of each pair, `[rope_dim / 2]`; elements past `rope_dim` stay as they are.
    pub inv_freq: Vec<f32>,
    /// Factor on cosine and sine.
    pub mscale: f32,
}

/// Shape of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvSpec {
    /// `L`.
    pub layers: u32,
    /// `G`.
    pub kv_heads: u32,
    /// `D`.
    pub head_dim: u32,
}

impl KvSpec {
    /// Elements one position takes in the cache, keys and values of all layers.
    pub fn elems_per_token(self) -> u64 {
        u64::from(self.layers) * 2 * u64::from(self.kv_heads) * u64::from(self.head_dim)
    }
}

/// One operation. Unless said otherwise, inputs and outputs have the same rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `out[t] = table[id[t]]`, a dense or a ternary row, as f32.
    Embed {
        /// `[V, K]`.
        table: WeightId,
        /// f32 `[T, K]`.
        out: BufId,
    },
    /// `out = x / sqrt(mean(x²) + eps) · weight`, over groups of `len(weight)` features: one group
    /// a row for layer norms, one a head for q/k norms. `out` may be `x`.
    RmsNorm {
        /// f32; `dim` is a multiple of the weight's length.
        x: Slice,
        /// `[len]`.
        weight: WeightId,
        /// f32, same `dim`.
        out: Slice,
        /// Added to the mean square.
        eps: f32,
    },
    /// Rounds `x` to int8 by the rule of `out` ([`BufKind::Quant`]).
    Quantize {
        /// f32.
        x: Slice,
        /// Quantised, same dim.
        out: BufId,
    },
    /// `out[n] = row_scale[n] · Σ_g d_g · block_scale · Σ_k q[k]·(code[n,k] − 1)`: the ternary
    /// product of W2A8. When `x` is an f32 buffer, the same with the float activations.
    TernaryLinear {
        /// Quantised or f32, `dim = K`.
        x: BufId,
        /// Ternary `[N, K]`.
        weight: WeightId,
        /// f32, `dim = N`.
        out: Slice,
    },
    /// `out[n] = Σ_k x[k] · w[n,k]` with a dense matrix.
    DenseLinear {
        /// f32, `dim = K`.
        x: BufId,
        /// Dense `[N, K]`.
        weight: WeightId,
        /// f32, `dim = N`.
        out: Slice,
    },
    /// Turns each head of `x` in place by its token's position ([`Plan::rope`]).
    Rope {
        /// f32, `dim` = heads · head_dim.
        x: Slice,
        /// `D`.
        head_dim: u32,
    },
    /// Writes keys and values of this step's tokens to the cache at their positions.
    KvAppend {
        /// f32, `dim = G·D`.
        k: Slice,
        /// f32, `dim = G·D`.
        v: Slice,
        /// Layer of the cache.
        layer: u32,
    },
    /// Causal attention of each token over positions `0..=pos(token)` of the cache:
    /// `softmax(q·kᵀ · scale) · v`; query head `h` reads key/value head `h / (H/G)`.
    Attention {
        /// f32, `dim = H·D`.
        q: Slice,
        /// Layer of the cache.
        layer: u32,
        /// `H`.
        heads: u32,
        /// Factor on the scores.
        scale: f32,
        /// f32, `dim = H·D`.
        out: Slice,
    },
    /// `out = act(gate) · up`.
    GatedAct {
        /// f32.
        gate: Slice,
        /// f32, same dim.
        up: Slice,
        /// The activation.
        act: Activation,
        /// f32, same dim.
        out: Slice,
    },
    /// `x += y`.
    Add {
        /// f32, read and written.
        x: BufId,
        /// f32, same dim.
        y: BufId,
    },
    /// Copies the rows whose logits are wanted (none, the last one, or all): `[T, dim]` → `[R, dim]`.
    TakeOutputs {
        /// f32, rows are tokens.
        x: BufId,
        /// f32, rows are outputs.
        out: BufId,
    },
}

impl Op {
    /// The kernel's stem: the same word names the shader, the twin, the tests and the bench rows.
    pub fn stem(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Quantize { .. } => "quantize",
            Op::TernaryLinear { .. } => "ternary_linear",
            Op::DenseLinear { .. } => "dense_linear",
            Op::Rope { .. } => "rope",
            Op::KvAppend { .. } => "kv_append",
            Op::Attention { .. } => "attention",
            Op::GatedAct { .. } => "gated_act",
            Op::Add { .. } => "add",
            Op::TakeOutputs { .. } => "take_outputs",
        }
    }

    /// The weight that the operation reads.
    pub fn weight(&self) -> Option<WeightId> {
        match *self {
            Op::Embed { table: weight, .. }
            | Op::RmsNorm { weight, .. }
            | Op::TernaryLinear { weight, .. }
            | Op::DenseLinear { weight, .. } => Some(weight),
            _ => None,
        }
    }

    /// What the operation writes; `None` for [`Op::KvAppend`], which writes the cache.
    pub fn output(&self) -> Option<BufId> {
        match *self {
            Op::Embed { out, .. } | Op::Quantize { out, .. } | Op::TakeOutputs { out, .. } => {
                Some(out)
            }
            Op::RmsNorm { out, .. }
            | Op::TernaryLinear { out, .. }
            | Op::DenseLinear { out, .. }
            | Op::Attention { out, .. }
            | Op::GatedAct { out, .. } => Some(out.buf),
            Op::Rope { x, .. } => Some(x.buf),
            Op::Add { x, .. } => Some(x),
            Op::KvAppend { .. } => None,
        }
    }
}

/// A forward pass: buffers, weights, and the operations in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The activation buffers.
    pub buffers: Vec<BufSpec>,
    /// The weights.
    pub weights: Vec<WeightSpec>,
    /// The operations, in order.
    pub ops: Vec<Op>,
    /// Label of each operation, such as `blk.3.attn_norm`; as many as `ops`.
    pub labels: Vec<String>,
    /// The rotary embedding of every [`Op::Rope`].
    pub rope: RopeSpec,
    /// The KV cache.
    pub kv: KvSpec,
    /// `V`.
    pub vocab: u32,
    /// Where the logits end up: f32 `[R, V]`.
    pub logits: BufId,
}

impl Plan {
    /// The spec of a buffer.
    pub fn buffer(&self, id: BufId) -> &BufSpec {
        &self.buffers[id.0 as usize]
    }

    /// The spec of a weight.
    pub fn weight(&self, id: WeightId) -> &WeightSpec {
        &self.weights[id.0 as usize]
    }

    /// All of a buffer as a slice.
    pub fn whole(&self, id: BufId) -> Slice {
        Slice { buf: id, at: 0, dim: self.buffer(id).dim }
    }

    /// Bytes of all weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.iter().map(|w| w.kind.bytes()).sum()
    }
}

impl std::fmt::Display for Plan {
    /// One line a buffer, a weight and an operation.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |buf: BufId| self.buffer(buf).name;
        let slice = |s: Slice| {
            if s.at == 0 && s.dim == self.buffer(s.buf).dim {
                name(s.buf).to_string()
            } else {
                format!("{}[{}..{}]", name(s.buf), s.at, s.at + s.dim)
            }
        };
        for b in &self.buffers {
            writeln!(f, "buffer {:14} [{:?}, {}] {:?}", b.name, b.rows, b.dim, b.kind)?;
        }
        for w in &self.weights {
            writeln!(f, "weight {:24} {:?}", w.name, w.kind)?;
        }
        for (op, label) in self.ops.iter().zip(&self.labels) {
            let what = match *op {
                Op::Embed { out, .. } => format!("{} = ids", name(out)),
                Op::RmsNorm { x, out, .. } => format!("{} = {}", slice(out), slice(x)),
                Op::Quantize { x, out } => format!("{} = {}", name(out), slice(x)),
                Op::TernaryLinear { x, out, .. } | Op::DenseLinear { x, out, .. } => {
                    format!("{} = {}", slice(out), name(x))
                }
                Op::Rope { x, .. } => format!("{} turned", slice(x)),
                Op::KvAppend { k, v, layer } => {
                    format!("cache[{layer}] = {}, {}", slice(k), slice(v))
                }
                Op::Attention { q, layer, out, .. } => {
                    format!("{} = {}, cache[{layer}]", slice(out), slice(q))
                }
                Op::GatedAct { gate, up, act, out } => {
                    format!("{} = {act:?} {}, {}", slice(out), slice(gate), slice(up))
                }
                Op::Add { x, y } => format!("{} += {}", name(x), name(y)),
                Op::TakeOutputs { x, out } => format!("{} = {}", name(out), name(x)),
            };
            writeln!(f, "{:14} {label:24} {what}", op.stem())?;
        }
        Ok(())
    }
}
