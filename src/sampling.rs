//! How the next token is drawn from the logits: parameters and the random numbers, shared by every
//! backend so that a seed gives the same tokens on all of them.
//!
//! The steps, in order:
//! 1. **Penalties** over the last `penalty_window` tokens of the sequence (prompt included): for a
//!    token seen `c > 0` times, a positive logit is divided by `repetition_penalty` and any other
//!    multiplied by it; then `frequency_penalty·c + presence_penalty` is subtracted.
//! 2. `temperature == 0`: the largest logit wins (the smaller id on a tie). Done.
//! 3. Logits are divided by `temperature`.
//! 4. **top-k**: the `top_k` largest stay (ties: smaller ids first).
//! 5. **top-p**: over the softmax of what is left, the shortest prefix in descending order (ties:
//!    smaller ids first) whose probabilities sum to at least `top_p` stays.
//! 6. **min-p**: tokens with `p ≥ min_p · p_max` stay.
//! 7. **Draw** by the Gumbel-max rule: the token with the largest `logit + gumbel(seed, position, id)`
//!    wins, which samples the softmax of what is left exactly. Noise is a function of
//!    (seed, position, id) and of nothing else, so that the result does not depend on the backend,
//!    on batching, or on how the vocabulary is split over threads.
//!
//! This room may import no other room. The twin is `cpu::sample`.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Parameters of one draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 picks the most probable token.
    pub temperature: f32,
    /// Keep the `top_k` largest logits; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set with at least this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this share of the largest probability; 0 keeps all.
    pub min_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// How many of the last tokens the penalties look at.
    pub penalty_window: u32,
    /// Same seed, same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.7,
            top_k: 40,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 64,
            seed: 0,
        }
    }
}

/// A token and its logit, ordered by what is likelier: of equal logits the smaller id wins, and NaN
/// counts as −∞.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) logit: f32,
    pub(crate) id: u32,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |v: f32| if v.is_nan() { f32::NEG_INFINITY } else { v };
        key(self.logit)
            .partial_cmp(&key(other.logit))
            .unwrap_or(Ordering::Equal)
            .then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

/// Largest first, at the cost of only those that are taken.
pub(crate) fn descending(candidates: Vec<Candidate>) -> impl Iterator<Item = Candidate> {
    let mut heap = BinaryHeap::from(candidates);
    std::iter::from_fn(move || heap.pop())
}

/// A sampling parameter outside its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} must be {expected}, got {got}")]
pub struct SamplingError {
    /// The parameter.
    pub name: &'static str,
    /// Its range, in words.
    pub expected: &'static str,
    /// What was given.
    pub got: String,
}

impl Sampling {
    /// Greedy decoding.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// Whether any penalty changes the logits.
    pub fn has_penalties(&self) -> bool {
        self.penalty_window > 0
            && (self.repetition_penalty != 1.0
                || self.presence_penalty != 0.0
                || self.frequency_penalty != 0.0)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// Names the first parameter that is out of range or not finite.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |name, value: f32, ok: bool, expected| {
            if ok && value.is_finite() {
                Ok(())
            } else {
                Err(SamplingError { name, expected, got: value.to_string() })
            }
        };
        let (t, p, m) = (self.temperature, self.top_p, self.min_p);
        check("temperature", t, (0.0..=100.0).contains(&t), "a number from 0 to 100")?;
        check("top_p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        check("min_p", m, (0.0..=1.0).contains(&m), "a number from 0 to 1")?;
        let r = self.repetition_penalty;
        check("repetition_penalty", r, r > 0.0 && r <= 100.0, "above 0 and at most 100")?;
        for (name, v) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            check(name, v, (-100.0..=100.0).contains(&v), "a number from -100 to 100")?;
        }
        Ok(())
    }
}

/// Threefry-2x32 with 20 rounds: a keyed permutation of 64-bit counters, made of 32-bit additions,
/// rotations and exclusive-ors only, so that WGSL computes the same bits.
///
/// # Source
/// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11; test vectors
/// of the Random123 library.
pub fn threefry2x32(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];
    // 0x1BD11BDA: the parity constant of Threefish (Skein 1.3).
    let ks = [key[0], key[1], 0x1BD1_1BDA ^ key[0] ^ key[1]];
    let mut x = [counter[0].wrapping_add(ks[0]), counter[1].wrapping_add(ks[1])];
    for round in 0..20 {
        x[0] = x[0].wrapping_add(x[1]);
        x[1] = x[1].rotate_left(ROTATIONS[round % 8]) ^ x[0];
        if round % 4 == 3 {
            let i = round / 4 + 1;
            x[0] = x[0].wrapping_add(ks[i % 3]);
            x[1] = x[1].wrapping_add(ks[(i + 1) % 3]).wrapping_add(i as u32);
        }
    }
    x
}

/// Standard Gumbel noise of (seed, position, id): `−ln(−ln(u))` with
/// `u = ((bits >> 9) + 1/2) / 2²³`, exact in f32 and strictly between 0 and 1.
pub fn gumbel(seed: u64, position: u32, id: u32) -> f32 {
    let bits = threefry2x32([seed as u32, (seed >> 32) as u32], [position, id])[0];
    let u = ((bits >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0);
    -(-u.ln()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threefry_known_answers() {
        // Random123 kat_vectors, threefry2x32 20 rounds.
        assert_eq!(threefry2x32([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry2x32([!0, !0], [!0, !0]), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(
            threefry2x32([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]),
            [0xc492_3a9c, 0x483d_f7a0]
        );
    }

    #[test]
    fn gumbel_is_finite_and_has_the_right_mean() {
        let n = 100_000;
        let mean =
            (0..n).map(|i| f64::from(gumbel(7, i / 1000, i % 1000))).sum::<f64>() / f64::from(n);
        assert!((mean - 0.577_215_66).abs() < 0.02, "mean {mean}");
    }

    #[test]
    fn ranges_are_checked() {
        assert!(Sampling::default().validate().is_ok());
        for bad in [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { temperature: f32::NAN, ..Sampling::default() },
            Sampling { top_p: 0.0, ..Sampling::default() },
            Sampling { min_p: 1.5, ..Sampling::default() },
            Sampling { repetition_penalty: 0.0, ..Sampling::default() },
            Sampling { presence_penalty: f32::INFINITY, ..Sampling::default() },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
