//! `softmax(q·kᵀ · scale) · v` over the cache.

use super::kv_append::KvRows;

/// One token over positions `0..positions` (its own included); query head `h` reads key/value head
/// `h / (H/G)`.
///
/// # Shapes
/// `q [H·D]`, `keys` and `values` rows of `G·D`, `out [H·D]`.
///
/// # Exactness
/// The oracle: f64 and two passes, rounded once.
pub fn attention(
    q: &[f32],
    keys: &KvRows,
    values: &KvRows,
    positions: usize,
    heads: usize,
    scale: f32,
    out: &mut [f32],
) {
    let head_dim = q.len() / heads;
    let group = heads / (keys.dim / head_dim);
    for (h, (q, out)) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
        let at = h / group * head_dim;
        let scores: Vec<f64> = (0..positions)
            .map(|p| {
                let dot: f64 =
                    (0..head_dim).map(|i| f64::from(q[i]) * f64::from(keys.at(p, at + i))).sum();
                dot * f64::from(scale)
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (i, o) in out.iter_mut().enumerate() {
            let sum: f64 =
                (0..positions).map(|p| weights[p] * f64::from(values.at(p, at + i))).sum();
            *o = (sum / total) as f32;
        }
    }
}
