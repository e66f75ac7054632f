//! [`ModelInfo`]: what there is to show about a loaded model.

use crate::backend::RunOptions;
use crate::format::DType;
use crate::model::Config;
use crate::plan::{Plan, WeightKind};
use std::collections::BTreeMap;

/// Facts about a loaded model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// `general.name`, or the file's architecture.
    pub name: String,
    /// `GGUF` or `safetensors`.
    pub format: &'static str,
    /// The configuration.
    pub config: Config,
    /// `V`.
    pub vocab_size: u32,
    /// Weights, counted one by one.
    pub parameters: u64,
    /// Of them, ternary ones.
    pub ternary_parameters: u64,
    /// Tensors of each type in the file: how many, and their bytes.
    pub tensor_types: BTreeMap<String, (usize, u64)>,
    /// Bytes of the weights on the device.
    pub weight_bytes: u64,
    /// Positions in the KV cache.
    pub context: u32,
    /// Bytes of the KV cache when full.
    pub kv_bytes: u64,
}

impl ModelInfo {
    pub(super) fn new(
        name: String,
        format: &'static str,
        config: Config,
        plan: &Plan,
        tensors: impl Iterator<Item = (DType, u64)>,
        options: RunOptions,
    ) -> Self {
        let mut tensor_types = BTreeMap::new();
        for (dtype, bytes) in tensors {
            let entry = tensor_types.entry(dtype.to_string()).or_insert((0, 0));
            entry.0 += 1;
            entry.1 += bytes;
        }
        let (mut parameters, mut ternary_parameters) = (0, 0);
        for spec in &plan.weights {
            let (n, k) = spec.kind.shape();
            let count = u64::from(n) * u64::from(k);
            parameters += count;
            if matches!(spec.kind, WeightKind::Ternary { .. }) {
                ternary_parameters += count;
            }
        }
        ModelInfo {
            name,
            format,
            config,
            vocab_size: plan.vocab,
            parameters,
            ternary_parameters,
            tensor_types,
            weight_bytes: plan.weight_bytes(),
            context: options.context,
            kv_bytes: options.kv_type.bytes(plan.kv.elems_per_token() * u64::from(options.context)),
        }
    }

    /// Share of memory saved against the same weights in f32.
    pub fn saved_against_f32(&self) -> f64 {
        1.0 - self.weight_bytes as f64 / (self.parameters as f64 * 4.0)
    }
}
