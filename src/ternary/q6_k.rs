//! Q6_K blocks from floats, as llama-quantize makes them (decoding is in [`dense`](super::dense)).
//!
//! # Exactness
//! The same steps in the same order and in f32, so that the bytes are those of the reference (but
//! for sums that a compiler may fuse there).
//!
//! # Source
//! ggml `ggml-quants.c` (`make_qx_quants`, `quantize_row_q6_K_ref`).

use half::f16;

/// Blocks (and runs) below this are all zero.
const EPS: f32 = 1e-15;

/// 256 weights as a block of 210 bytes: `ql[128]`, `qh[64]`, `scales[16]`, f16 `d`.
pub(super) fn quantize(w: &[f32; 256]) -> [u8; 210] {
    let mut block = [0; 210];
    let mut scales = [0.0f32; 16];
    let mut q = [0u8; 256];
    for ((scale, w), q) in
        scales.iter_mut().zip(w.as_chunks::<16>().0).zip(q.as_chunks_mut::<16>().0)
    {
        (*scale, *q) = run(w);
    }
    let max = largest(&scales);
    if max.abs() < EPS {
        return block;
    }
    let iscale = -128.0 / max;
    let d = f16::from_f32(1.0 / iscale);
    for (j, scale) in scales.iter().enumerate() {
        let sc = nearest(iscale * scale).min(127) as i8;
        block[192 + j] = sc as u8;
        let d = d.to_f32() * f32::from(sc);
        if d != 0.0 {
            for i in 16 * j..16 * j + 16 {
                q[i] = (nearest(w[i] / d).clamp(-32, 31) + 32) as u8;
            }
        }
    }
    for (h, q) in q.as_chunks::<128>().0.iter().enumerate() {
        for l in 0..32 {
            let (a, b, c, d) = (q[l], q[l + 32], q[l + 64], q[l + 96]);
            block[64 * h + l] = a & 15 | (c & 15) << 4;
            block[64 * h + l + 32] = b & 15 | (d & 15) << 4;
            block[128 + 32 * h + l] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
    block[208..].copy_from_slice(&d.to_le_bytes());
    block
}

/// The scale of 16 weights that makes the least error weighted by `w²`, out of 19 tried, and their
/// values (plus 32).
fn run(w: &[f32; 16]) -> (f32, [u8; 16]) {
    let max = largest(w);
    if max.abs() < EPS {
        return (0.0, [0; 16]);
    }
    let values = |iscale: f32| w.map(|w| nearest(iscale * w).clamp(-32, 31));
    let sums = |values: &[i32; 16]| {
        let (mut wl, mut ll) = (0.0f32, 0.0f32);
        for (w, &l) in w.iter().zip(values) {
            let (weight, l) = (w * w, l as f32);
            wl += weight * w * l;
            ll += weight * l * l;
        }
        (wl, ll)
    };
    let mut best_values = values(-32.0 / max);
    let (wl, ll) = sums(&best_values);
    let mut scale = if ll == 0.0 { 0.0 } else { wl / ll };
    let mut best = scale * wl;
    for i in (-9..=9).filter(|&i| i != 0) {
        let tried = values(-(32.0 + 0.1 * i as f32) / max);
        let (wl, ll) = sums(&tried);
        if ll > 0.0 && wl * wl > best * ll {
            (scale, best, best_values) = (wl / ll, wl / ll * wl, tried);
        }
    }
    (scale, best_values.map(|l| (l + 32) as u8))
}

/// The value of largest magnitude, the first such.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max: f32, &v| if v.abs() > max.abs() { v } else { max })
}

/// Rounds half to even, by adding and taking away 1.5 · 2²³. (Far larger values come up only where
/// the scale is a subnormal f16, and are clamped by the callers anyway.)
fn nearest(x: f32) -> i32 {
    (x.clamp(-4e6, 4e6) + 12_582_912.0).to_bits() as i32 - 12_582_912.0f32.to_bits() as i32
}
