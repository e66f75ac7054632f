//! `out = x / sqrt(mean(x²) + eps) · weight`.

/// Normalises each group of `weight.len()` values of a row.
///
/// # Shapes
/// `x [groups · len]`, `weight [len]`, `out` as `x`.
///
/// # Exactness
/// The oracle: f64 throughout, rounded once.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let square_sum: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let rms = (square_sum / x.len() as f64 + f64::from(eps)).sqrt();
        for ((o, &v), &w) in out.iter_mut().zip(x).zip(weight) {
            *o = (f64::from(v) / rms * f64::from(w)) as f32;
        }
    }
}
