//! `out[n] = Σ_k x[k] · w[n,k]` with a dense matrix.

use super::matrix::Dense;

/// One token.
///
/// # Shapes
/// `x [K]`, `w [N, K]`, `out [N]`.
///
/// # Exactness
/// The oracle: f64 sums, rounded once.
pub fn dense_linear(x: &[f32], w: Dense<'_>, out: &mut [f32]) {
    for (n, out) in out.iter_mut().enumerate().take(w.n) {
        *out = (0..w.k).map(|k| f64::from(x[k]) * f64::from(w.at(n, k))).sum::<f64>() as f32;
    }
}
