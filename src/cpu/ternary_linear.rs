//! `out[n] = row_scale[n] · Σ_g d_g · block_scale · Σ_k q[k]·(code[n,k] − 1)`: W2A8, and the same
//! with f32 activations.

use super::matrix::Ternary;
use crate::plan::ActQuant;
use crate::ternary;
use half::f16;

/// Weights that one SIMD step of the widest machine covers; partial sums repeat with this period.
pub const CHUNK: usize = 256;

/// Length of a run of weights that share the activations' scale and the block scale; all of the
/// row (rounded up to [`CHUNK`]s) where neither has groups.
pub fn segment(rule: ActQuant, w: &Ternary<'_>) -> usize {
    let group = rule.group().map_or(usize::MAX, |g| g as usize);
    let block = w.blocks.map_or(usize::MAX, |(len, _)| len);
    group.min(block).min(w.k.next_multiple_of(CHUNK))
}

/// Partial sums of a row whose segments have `len` weights: as many as there are segments in one SIMD
/// step of the widest machine, and at least 4, so that each of its 128-bit lanes has its own.
pub fn partials(len: usize) -> usize {
    (CHUNK / len).max(4)
}

/// One token.
///
/// # Shapes
/// `q [≥ K]`, `d [groups]`, `w [N, K]`, `out [N]`.
///
/// # Exactness
/// Every implementation on the CPU agrees with this one bit for bit. The sum over a segment (see
/// [`segment`]) is an integer. Segment sums times `d · block_scale` add up in f32, without fused
/// multiply-add, in [`partials`] partial sums in turn, joined pairwise, neighbours first.
pub fn ternary_linear(rule: ActQuant, q: &[i8], d: &[f32], w: Ternary<'_>, out: &mut [f32]) {
    let segment = segment(rule, &w);
    let lanes = partials(segment);
    for (n, out) in out.iter_mut().enumerate().take(w.n) {
        let row = w.row(n);
        let mut partial = [0.0f32; 8];
        for (i, start) in (0..w.k).step_by(segment).enumerate() {
            let end = (start + segment).min(w.k);
            let sum: i32 = (start..end)
                .map(|k| i32::from(q[k]) * (i32::from(ternary::code(row, k)) - 1))
                .sum();
            let d = d[rule.group().map_or(0, |g| start / g as usize)];
            let block =
                w.row_blocks(n).map_or(1.0, |(len, s)| f16::from_bits(s[start / len]).to_f32());
            partial[i % lanes] += sum as f32 * (d * block);
        }
        *out = join(&mut partial, lanes) * w.row_scales[n];
    }
}

/// Adds `lanes` (a power of two) partial sums pairwise, neighbours first.
pub fn join(partial: &mut [f32; 8], lanes: usize) -> f32 {
    let mut lanes = lanes;
    while lanes > 1 {
        lanes /= 2;
        for i in 0..lanes {
            partial[i] = partial[2 * i] + partial[2 * i + 1];
        }
    }
    partial[0]
}

/// One token with f32 activations.
///
/// # Exactness
/// The oracle: f64 sums, rounded once.
pub fn ternary_linear_f32(x: &[f32], w: Ternary<'_>, out: &mut [f32]) {
    for (n, out) in out.iter_mut().enumerate().take(w.n) {
        let sum: f64 = (0..w.k).map(|k| f64::from(x[k]) * f64::from(w.unscaled(n, k))).sum();
        *out = (sum * f64::from(w.row_scales[n])) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[2, 96]`: row 0 all +1 but for a −1 at 95, row 1 all 0 but for a code 3 (+2) at 64.
    fn codes() -> Vec<u8> {
        let mut codes = vec![0b0101_0101; 2 * ternary::row_bytes(96)];
        let (a, b) = codes.split_at_mut(ternary::row_bytes(96));
        for k in 0..96 {
            ternary::set_code(a, k, if k == 95 { 0 } else { 2 });
        }
        ternary::set_code(b, 64, 3);
        codes
    }

    #[test]
    fn ternary_linear_known_answer() {
        let codes = codes();
        let q: Vec<i8> = (0..128).map(|k| if k < 96 { k as i8 } else { 0 }).collect();
        let plain = Ternary { n: 2, k: 96, codes: &codes, row_scales: &[0.5, 2.0], blocks: None };
        let mut out = [0.0; 2];
        ternary_linear(ActQuant::PerToken, &q, &[0.25], plain, &mut out);
        // Σ 0..94 = 4465, minus 95.
        assert_eq!(out, [4370.0 * 0.25 * 0.5, 128.0 * 0.25 * 2.0]);

        let scales: Vec<u16> = [1.0, 2.0, 4.0, 8.0].map(|v| f16::from_f32(v).to_bits()).to_vec();
        let blocks = Ternary { blocks: Some((64, &scales)), ..plain };
        ternary_linear(ActQuant::PerToken, &q, &[0.25], blocks, &mut out);
        let first = 2016.0 + 2.0 * (4465.0 - 2016.0 - 95.0);
        assert_eq!(out, [first * 0.25 * 0.5, 8.0 * 128.0 * 0.25 * 2.0]);

        ternary_linear(ActQuant::Block32, &q, &[1.0, 0.0, 0.5], blocks, &mut out);
        let (a, c) = (496.0, 4465.0 - 2016.0 - 95.0);
        assert_eq!(out, [(a + 2.0 * 0.5 * c) * 0.5, 8.0 * 128.0 * 0.5 * 2.0]);

        let x: Vec<f32> = q.iter().map(|&v| f32::from(v)).collect();
        ternary_linear_f32(&x, blocks, &mut out);
        assert_eq!(out, [first * 0.5, 8.0 * 128.0 * 2.0]);
    }
}
