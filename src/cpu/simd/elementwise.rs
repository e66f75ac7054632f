//! Kernels that the compiler vectorises by itself once it may use the instructions: plain loops
//! without branches, with sums in as many parts as a register has.

use crate::cpu::quantize::scales;
use crate::plan::{ActQuant, Activation};

/// Parts of a sum.
const PARTS: usize = 16;

/// 1.5 · 2²³: adding it leaves the integer nearest (ties to even) in the low bits.
const ROUND: f32 = 12_582_912.0;

#[inline(always)]
pub(in crate::cpu) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let mut sums = [0.0f32; PARTS];
        let chunks = x.chunks_exact(PARTS);
        let mut total: f32 = chunks.remainder().iter().map(|v| v * v).sum();
        for chunk in chunks {
            for (sum, &v) in sums.iter_mut().zip(chunk) {
                *sum += v * v;
            }
        }
        total += sums.iter().sum::<f32>();
        let inverse = 1.0 / (total / x.len() as f32 + eps).sqrt();
        for ((o, &v), &w) in out.iter_mut().zip(x).zip(weight) {
            *o = v * inverse * w;
        }
    }
}

#[inline(always)]
pub(in crate::cpu) fn quantize(rule: ActQuant, x: &[f32], q: &mut [i8], d: &mut [f32]) {
    q[x.len()..].fill(0);
    let group = rule.group().map_or(x.len(), |g| g as usize).max(1);
    for ((x, q), d) in x.chunks(group).zip(q.chunks_mut(group)).zip(d) {
        let inverse = match rule {
            ActQuant::PerToken => {
                let mut max = [0.0f32; PARTS];
                let chunks = x.chunks_exact(PARTS);
                let rest = chunks.remainder().iter().fold(0.0f32, |m, v| m.max(v.abs()));
                for chunk in chunks {
                    for (m, &v) in max.iter_mut().zip(chunk) {
                        *m = if v.abs() > *m { v.abs() } else { *m };
                    }
                }
                let inverse = 127.0 / max.iter().fold(rest, |m, &v| m.max(v)).max(1e-5);
                *d = 1.0 / inverse;
                inverse
            }
            _ => {
                let (inverse, multiplier) = scales(rule, x);
                *d = multiplier;
                inverse
            }
        };
        for (q, &v) in q.iter_mut().zip(x) {
            let v = v * inverse;
            // NaN becomes 0, as `as` does in the twin.
            let v = if v.is_nan() { 0.0 } else { v };
            *q = (v.clamp(-128.0, 127.0) + ROUND).to_bits() as i8;
        }
    }
}

#[inline(always)]
pub(in crate::cpu) fn gated_act(act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match act {
        Activation::Silu => {
            for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *o = g / (1.0 + exp(-g)) * u;
            }
        }
        Activation::Relu2 => {
            for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *o = g.max(0.0) * g.max(0.0) * u;
            }
        }
    }
}

/// eˣ to about 2 units in the last place; 0 far below, +∞ far above, NaN stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // x = n·ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts so that r loses nothing.
    let clamped = x.clamp(-87.3, 88.3);
    let n = clamped * std::f32::consts::LOG2_E + ROUND;
    let scale = f32::from_bits((n.to_bits() as i32).wrapping_add(127).wrapping_shl(23) as u32);
    let n = n - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    // Taylor's series: the next term is below 2⁻²⁵ for these r.
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let y = p * scale;
    if x < -87.3 {
        0.0
    } else if x > 88.3 {
        f32::INFINITY
    } else {
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for i in -8700..=8820 {
            let x = i as f32 * 0.01;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) / exact - 1.0).abs();
            assert!(error < 3e-7, "{x}: {error}");
        }
        assert_eq!((exp(0.0), exp(-1000.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert_eq!(exp(1000.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
