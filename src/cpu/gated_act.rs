//! `out = act(gate) · up`.

use crate::plan::Activation;

/// One row.
pub fn gated_act(act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
        *o = match act {
            Activation::Silu => g / (1.0 + (-g).exp()) * u,
            Activation::Relu2 => g.max(0.0) * g.max(0.0) * u,
        };
    }
}
