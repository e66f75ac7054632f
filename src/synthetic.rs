//! Models of well-known shapes with random weights, for measuring: made piece by piece on the way to
//! the device, so that no file is needed and the host never holds the model.
//!
//! The plan is the one that a file of that model would give; the text is noise.
//! May import: floors 0 to 4.

use crate::backend::{Backend, BackendError};
use crate::error::Error;
use crate::format::{DType, TensorInfo};
use crate::model::config::RopeScaling;
use crate::model::weights::{Naming, Options};
use crate::model::{Architecture, Config, forward, resolve};
use crate::plan::{
    Activation, MatrixType, Plan, RopeLayout, WeightId, WeightKind, WeightPart, WeightSpec,
};
use half::f16;

/// Names of the shapes.
pub const NAMES: [&str; 4] = ["2b4t", "bonsai-1.7b", "ternary-bonsai-1.7b", "tiny"];

/// Bytes made and written at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// The plan of a model of the shape `name`, dense matrices as `dense` (`None`: as a load would).
///
/// # Errors
/// [`Error::InvalidArgument`] when no shape is called so.
pub fn plan(name: &str, dense: Option<MatrixType>) -> Result<Plan, Error> {
    let (config, linears, embedding) = match name {
        "2b4t" => (bitnet_2b4t(), DType::I2_S, DType::F16),
        "tiny" => (tiny(), DType::I2_S, DType::F16),
        "bonsai-1.7b" => (bonsai(), DType::Q1_0, DType::Q1_0),
        "ternary-bonsai-1.7b" => (bonsai(), DType::Q2_0, DType::Q2_0),
        _ => {
            let reason = format!("no synthetic model {name:?}; there are {}", NAMES.join(", "));
            return Err(Error::InvalidArgument { reason });
        }
    };
    let tensors = tensors(&config, linears, embedding)?;
    let options = Options { dense, ..Options::default() };
    let map = resolve(&config, Naming::Gguf, &tensors, options)?;
    Ok(forward(&config, &map))
}

/// microsoft/bitnet-b1.58-2B-4T.
fn bitnet_2b4t() -> Config {
    Config {
        architecture: Architecture::BitNetB158,
        vocab_size: 128_256,
        hidden_size: 2560,
        intermediate_size: 6912,
        num_hidden_layers: 30,
        num_attention_heads: 20,
        num_key_value_heads: 5,
        head_dim: 128,
        rms_norm_eps: 1e-5,
        hidden_act: Activation::Relu2,
        max_position_embeddings: 4096,
        tie_word_embeddings: Some(true),
        rope_theta: 500_000.0,
        rope_dim: 128,
        rope_layout: RopeLayout::HalfSplit,
        rope_scaling: RopeScaling::None,
        hf_linear: None,
        linear_norm_eps: None,
    }
}

/// For trying the measurement itself.
fn tiny() -> Config {
    Config {
        vocab_size: 512,
        hidden_size: 256,
        intermediate_size: 768,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        rope_dim: 64,
        ..bitnet_2b4t()
    }
}

/// Bonsai 1.7B: the shape of Qwen3-1.7B.
fn bonsai() -> Config {
    Config {
        architecture: Architecture::Qwen3,
        vocab_size: 151_669,
        hidden_size: 2048,
        intermediate_size: 6144,
        num_hidden_layers: 28,
        num_attention_heads: 16,
        num_key_value_heads: 8,
        hidden_act: Activation::Silu,
        max_position_embeddings: 32_768,
        rms_norm_eps: 1e-6,
        rope_theta: 1_000_000.0,
        ..bitnet_2b4t()
    }
}

/// The tensors that a GGUF file of the model has.
fn tensors(config: &Config, linears: DType, embedding: DType) -> Result<Vec<TensorInfo>, Error> {
    let c = config;
    let (hidden, ffn) = (u64::from(c.hidden_size), u64::from(c.intermediate_size));
    let q_dim = u64::from(c.num_attention_heads * c.head_dim);
    let kv_dim = u64::from(c.num_key_value_heads * c.head_dim);
    let mut all = Vec::new();
    let mut add = |name: String, dtype: DType, shape: &[u64]| -> Result<(), Error> {
        let bytes = dtype.tensor_bytes(&name, shape)?;
        all.push(TensorInfo { name, dtype, shape: shape.to_vec(), offset: 0, bytes });
        Ok(())
    };
    add("token_embd.weight".into(), embedding, &[u64::from(c.vocab_size), hidden])?;
    add("output_norm.weight".into(), DType::F32, &[hidden])?;
    for l in 0..c.num_hidden_layers {
        let mut norms = vec![("attn_norm", hidden), ("ffn_norm", hidden)];
        if c.architecture.has_sub_norms() {
            norms.extend([("attn_sub_norm", q_dim), ("ffn_sub_norm", ffn)]);
        }
        if c.architecture.has_qk_norms() {
            let head = u64::from(c.head_dim);
            norms.extend([("attn_q_norm", head), ("attn_k_norm", head)]);
        }
        for (name, len) in norms {
            add(format!("blk.{l}.{name}.weight"), DType::F32, &[len])?;
        }
        for (name, n, k) in [
            ("attn_q", q_dim, hidden),
            ("attn_k", kv_dim, hidden),
            ("attn_v", kv_dim, hidden),
            ("attn_output", hidden, q_dim),
            ("ffn_gate", ffn, hidden),
            ("ffn_up", ffn, hidden),
            ("ffn_down", hidden, ffn),
        ] {
            add(format!("blk.{l}.{name}.weight"), linears, &[n, k])?;
        }
    }
    Ok(all)
}

/// Allocates the plan's weights and fills them with random ones of a sensible size; the same ones
/// for the same plan.
///
/// # Errors
/// Those of the device.
pub async fn load(backend: &mut impl Backend, plan: &Plan) -> Result<(), BackendError> {
    backend.allocate(&plan.weights).await?;
    for (i, spec) in (0u32..).zip(&plan.weights) {
        for part in WeightPart::ALL {
            let total = spec.kind.part_bytes(part);
            let mut random = Random(u64::from(i) << 8 | part as u64);
            for offset in (0..total).step_by(PIECE_BYTES as usize) {
                let bytes = (total - offset).min(PIECE_BYTES) as usize;
                let piece = piece(spec, part, bytes, &mut random);
                backend.write_weight(WeightId(i), part, offset, &piece)?;
            }
        }
    }
    Ok(())
}

/// `bytes` random bytes of a part of a weight.
fn piece(spec: &WeightSpec, part: WeightPart, bytes: usize, random: &mut Random) -> Vec<u8> {
    let (_, k) = spec.kind.shape();
    let spread = 1.0 / (k as f32).sqrt();
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        match (spec.kind, part) {
            (WeightKind::Ternary { .. }, WeightPart::Data) => {
                // Code 3 becomes 1: half zeros, a quarter each of the others. A row whose length is
                // no multiple of 64 has no padding to speak of here.
                let codes = random.next();
                let threes = codes & codes >> 1 & 0x5555_5555_5555_5555;
                out.extend((codes ^ threes << 1).to_le_bytes());
            }
            (WeightKind::Ternary { .. }, WeightPart::RowScales) => {
                out.extend(spread.to_le_bytes());
            }
            (WeightKind::Ternary { .. }, WeightPart::BlockScales) => {
                out.extend(f16::from_f32(0.75 + 0.5 * random.unit()).to_le_bytes());
            }
            (WeightKind::Vector { .. }, _) => out.extend((0.5 + random.unit()).to_le_bytes()),
            (WeightKind::Matrix { dtype: MatrixType::Q8, .. }, WeightPart::Data) => {
                out.extend(random.next().to_le_bytes());
            }
            (WeightKind::Matrix { .. }, WeightPart::BlockScales) => {
                out.extend(f16::from_f32(spread / 64.0).to_le_bytes());
            }
            (WeightKind::Matrix { dtype: MatrixType::F32, .. }, _) => {
                out.extend((random.unit() * 2.0 - 1.0).to_le_bytes());
            }
            (WeightKind::Matrix { .. }, _) => {
                out.extend(f16::from_f32((random.unit() * 2.0 - 1.0) * spread).to_le_bytes());
            }
        }
    }
    out.truncate(bytes);
    out
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// 0..1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 16_777_216.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_sizes_of_their_models() {
        let ternary = |plan: &Plan| -> u64 {
            let kinds = plan.weights.iter().map(|w| w.kind);
            kinds
                .filter_map(|k| match k {
                    WeightKind::Ternary { n, k, .. } => Some(u64::from(n) * u64::from(k)),
                    _ => None,
                })
                .sum()
        };
        let bitnet = plan("2b4t", Some(MatrixType::Q8)).unwrap();
        assert_eq!(ternary(&bitnet), 2_084_044_800);
        assert!(plan("bonsai-1.7b", None).is_ok_and(|p| ternary(&p) > 1_600_000_000));
        assert!(plan("ternary-bonsai-1.7b", None).is_ok());
        assert!(plan("3b5t", None).is_err());
    }

    #[test]
    fn codes_are_ternary() {
        let kind = WeightKind::Ternary { n: 4, k: 256, block: None };
        let spec = WeightSpec { name: "w".into(), kind };
        let codes = piece(&spec, WeightPart::Data, 256, &mut Random(1));
        assert_eq!(codes.len(), 256);
        assert!(codes.iter().all(|b| b & b >> 1 & 0x55 == 0));
    }
}
