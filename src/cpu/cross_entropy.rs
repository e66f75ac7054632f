//! `−ln softmax(logits)[target]`.

/// What a row of logits loses on its target, in nats: 0 when it is certain of it.
///
/// # Shapes
/// `logits [V]`, `target < V`.
///
/// # Exactness
/// The oracle: the largest logit taken off, so that nothing overflows; sum in f64, rounded once.
pub fn cross_entropy(logits: &[f32], target: u32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - f64::from(max)).exp()).sum();
    (sum.ln() - (f64::from(logits[target as usize]) - f64::from(max))) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_entropy_is_minus_ln_p() {
        // p = 1/2, 1/4, 1/4, far from zero: e^1000 is no number.
        let logits = [1000.0 + 2f32.ln(), 1000.0, 1000.0];
        assert!((cross_entropy(&logits, 0) - 2f32.ln()).abs() < 1e-4);
        assert!((cross_entropy(&logits, 2) - 4f32.ln()).abs() < 1e-4);
        assert_eq!(cross_entropy(&[0.0; 1024], 7), 1024f32.ln());
        assert_eq!(cross_entropy(&[0.0, f32::NEG_INFINITY], 0), 0.0);
        assert_eq!(cross_entropy(&[0.0, f32::NEG_INFINITY], 1), f32::INFINITY);
        assert_eq!(cross_entropy(&[-3.0], 0), 0.0);
        assert!(cross_entropy(&[0.0, f32::NAN], 0).is_nan(), "not a good prediction");
    }
}
