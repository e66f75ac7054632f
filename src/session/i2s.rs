//! Which of its three layouts an I2_S file has: nothing in the file says it, so the first tensors
//! wait until the data has.

use crate::format::TensorInfo;
use crate::model::WeightMap;
use crate::model::weights::Placement;
use crate::plan::WeightId;
use crate::ternary::i2_s::{Detector, Variant};
use std::collections::HashMap;

/// Bytes of tensors that may wait: a few layers of any model, and little beside its weights.
const MAX_HELD_BYTES: usize = 32 << 20;

/// An I2_S tensor that waits.
pub(super) struct Held {
    pub info: TensorInfo,
    pub placement: Placement,
    pub bytes: Vec<u8>,
    observed: bool,
}

/// Holds I2_S tensors back until their layout is known.
pub(super) struct I2sQueue {
    variant: Option<Variant>,
    detector: Detector,
    /// The norm in front of each linear.
    norm_of: HashMap<WeightId, WeightId>,
    norms: HashMap<WeightId, Vec<f32>>,
    held: Vec<Held>,
}

impl I2sQueue {
    /// With `choice`, nothing waits.
    pub fn new(map: &WeightMap, choice: Option<Variant>) -> Self {
        let mut norm_of = HashMap::new();
        for layer in &map.layers {
            norm_of.extend(layer.qkv.iter().map(|l| (l.weight, layer.attn_norm)));
            norm_of.extend(layer.gate_up.iter().map(|l| (l.weight, layer.ffn_norm)));
            norm_of.extend(layer.attn_sub_norm.map(|n| (layer.attn_output.weight, n)));
            norm_of.extend(layer.ffn_sub_norm.map(|n| (layer.ffn_down.weight, n)));
        }
        I2sQueue {
            variant: choice,
            detector: Detector::default(),
            norm_of,
            norms: HashMap::new(),
            held: Vec::new(),
        }
    }

    /// Takes note of a norm's weight.
    pub fn norm(&mut self, id: WeightId, weight: &[f32]) {
        if self.variant.is_none() {
            self.norms.insert(id, weight.to_vec());
            self.observe();
        }
    }

    /// Adds a tensor.
    pub fn hold(&mut self, info: &TensorInfo, placement: Placement, bytes: &[u8]) {
        let (info, bytes) = (info.clone(), bytes.to_vec());
        self.held.push(Held { info, placement, bytes, observed: false });
        if self.variant.is_none() {
            self.observe();
        }
    }

    fn observe(&mut self) {
        for held in self.held.iter_mut().filter(|h| !h.observed) {
            let norm = self.norm_of.get(&held.placement.weight);
            if let Some(norm) = norm.and_then(|id| self.norms.get(id)) {
                let (n, k) = (held.placement.rows as usize, held.placement.k as usize);
                self.detector.observe(norm, &held.bytes, n, k);
                held.observed = true;
            }
        }
        self.variant = self.detector.variant();
        let waiting: usize = self.held.iter().map(|h| h.bytes.len()).sum();
        if waiting > MAX_HELD_BYTES {
            self.give_up();
        }
    }

    /// Settles for the layout of published files, where the data does not tell.
    pub fn give_up(&mut self) {
        self.variant.get_or_insert_default();
    }

    /// The tensors that need wait no longer, with their layout.
    pub fn take(&mut self) -> Option<(Variant, Vec<Held>)> {
        let variant = self.variant?;
        self.norms.clear();
        Some((variant, std::mem::take(&mut self.held)))
    }
}
