//! Activations to int8: the three rules of [`ActQuant`].

use crate::plan::ActQuant;
use half::f16;

/// Rounds the row `x` to `q` with multipliers `d`, so that `q · d ≈ x`.
///
/// # Shapes
/// `x [K]`; `q [≥ K]`, of which everything past `K` becomes 0; `d [groups]`, see [`ActQuant::groups`].
///
/// # Exactness
/// f32 in the order written here; the rules of the reference programs, so that other backends must
/// agree bit for bit wherever their division does.
pub fn quantize(rule: ActQuant, x: &[f32], q: &mut [i8], d: &mut [f32]) {
    q[x.len()..].fill(0);
    let group = rule.group().map_or(x.len(), |g| g as usize).max(1);
    for ((x, q), d) in x.chunks(group).zip(q.chunks_mut(group)).zip(d) {
        let (inverse, multiplier) = scales(rule, x);
        *d = multiplier;
        for (q, &v) in q.iter_mut().zip(x) {
            // `as` saturates, which is the clamp to −128..127; NaN becomes 0.
            *q = (v * inverse).round_ties_even() as i8;
        }
    }
}

/// The factor onto int8 and the multiplier `d` back, of one group.
pub fn scales(rule: ActQuant, x: &[f32]) -> (f32, f32) {
    let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    match rule {
        ActQuant::PerToken => {
            let inverse = 127.0 / max.max(1e-5);
            (inverse, 1.0 / inverse)
        }
        ActQuant::Block256 => {
            // The first value of largest magnitude decides the sign.
            match x.iter().find(|v| v.abs() == max) {
                Some(&v) if max > 0.0 => {
                    let inverse = -127.0 / v;
                    (inverse, 1.0 / inverse)
                }
                _ => (0.0, 0.0),
            }
        }
        // The vectorised form of the reference, which multiplies by 127/max and does not divide by d.
        ActQuant::Block32 => {
            let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
            (inverse, f16::from_f32(max / 127.0).to_f32())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rule: ActQuant, x: &[f32]) -> (Vec<i8>, Vec<f32>) {
        let mut q = vec![99; x.len().next_multiple_of(64)];
        let mut d = vec![0.0; rule.groups(x.len() as u32) as usize];
        quantize(rule, x, &mut q, &mut d);
        (q, d)
    }

    #[test]
    fn quantize_per_token_rounds_half_to_even_and_pads_with_zeros() {
        // max 127 makes the factor exactly 1.
        let (q, d) = run(ActQuant::PerToken, &[127.0, 0.5, 1.5, -2.5, -127.0]);
        assert_eq!(q[..6], [127, 0, 2, -2, -127, 0]);
        assert_eq!((q.len(), d), (64, vec![1.0]));
    }

    #[test]
    fn quantize_per_token_clamps_small_rows() {
        let (q, d) = run(ActQuant::PerToken, &[0.0, 5e-6]);
        assert_eq!(q[..2], [0, 64]); // 5e-6 · 127e5 = 63.5, to even
        assert!((d[0] - 1e-5 / 127.0).abs() < 1e-13);
    }

    #[test]
    fn quantize_block256_takes_its_sign_from_the_largest() {
        let mut x = vec![0.0; 300];
        (x[3], x[4], x[299]) = (2.0, -1.0, -4.0);
        let (q, d) = run(ActQuant::Block256, &x);
        assert_eq!((q[3], q[4], q[299]), (-127, 64, -127));
        assert_eq!(d, [1.0 / (-127.0 / 2.0), 1.0 / (-127.0 / -4.0)]);
        assert_eq!(run(ActQuant::Block256, &[0.0; 256]).1, [0.0]);
    }

    #[test]
    fn quantize_block32_stores_its_scale_as_f16() {
        let (q, d) = run(ActQuant::Block32, &[1.0, -0.5]);
        assert_eq!(q[..2], [127, -64]);
        assert_eq!(d, [f16::from_f32(1.0 / 127.0).to_f32()]);
        assert_eq!(run(ActQuant::Block32, &[0.0; 32]).1, [0.0]);
    }
}
