//! The draw of [`crate::sampling`], step by step.

use crate::sampling::{Candidate, Sampling, descending, gumbel};

/// Largest value of [`gumbel`]: at `u = 1 − 2⁻²⁴`, `−ln(2⁻²⁴) = 16.636`, rounded up.
const GUMBEL_MAX: f32 = 16.7;

/// The token drawn for `position`, given the logits and the tokens at positions `0..position`.
///
/// # Shapes
/// `logits [V]`, `V ≥ 1`; only the last `penalty_window` tokens of `history` are looked at.
///
/// # Exactness
/// f32 logits; probabilities of top-p are summed in f64. NaN logits never win against a number.
pub fn sample(logits: &[f32], history: &[u32], position: u32, sampling: &Sampling) -> u32 {
    let penalised;
    let logits = if sampling.has_penalties() {
        penalised = apply_penalties(logits, history, sampling);
        &penalised
    } else {
        logits
    };
    let t = sampling.temperature;
    let scale = if t == 0.0 { 1.0 } else { t };
    let candidates = (0u32..).zip(logits).map(|(id, &l)| Candidate { logit: l / scale, id });
    if t == 0.0 {
        return candidates.max().map_or(0, |c| c.id);
    }
    let mut kept: Vec<Candidate> = candidates.collect();
    let k = sampling.top_k as usize;
    if k > 0 && k < kept.len() {
        kept = descending(kept).take(k).collect();
    }
    if sampling.top_p < 1.0 {
        kept = top_p(kept, sampling.top_p);
    }
    if sampling.min_p > 0.0 {
        let max = largest(&kept);
        kept.retain(|c| (c.logit - max).exp() >= sampling.min_p || c.logit == max);
    }
    draw(&kept, position, sampling.seed)
}

/// Step 1: the logits after repetition, frequency and presence penalties.
fn apply_penalties(logits: &[f32], history: &[u32], sampling: &Sampling) -> Vec<f32> {
    let mut out = logits.to_vec();
    let window = history.len().min(sampling.penalty_window as usize);
    let mut recent = history[history.len() - window..].to_vec();
    recent.sort_unstable();
    for seen in recent.chunk_by(|a, b| a == b) {
        if let Some(logit) = out.get_mut(seen[0] as usize) {
            let r = sampling.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / r } else { *logit * r };
            *logit -= sampling.frequency_penalty * seen.len() as f32 + sampling.presence_penalty;
        }
    }
    out
}

fn largest(kept: &[Candidate]) -> f32 {
    kept.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max)
}

/// Step 5.
fn top_p(kept: Vec<Candidate>, top_p: f32) -> Vec<Candidate> {
    let max = largest(&kept);
    let weight =
        |c: &Candidate| if c.logit.is_nan() { 0.0 } else { f64::from((c.logit - max).exp()) };
    let enough = kept.iter().map(weight).sum::<f64>() * f64::from(top_p);
    let mut sum = 0.0;
    let mut prefix = Vec::new();
    for c in descending(kept) {
        sum += weight(&c);
        prefix.push(c);
        if sum >= enough {
            break;
        }
    }
    prefix
}

/// Step 7. The noise of tokens that could not win even with the largest noise is not computed.
fn draw(kept: &[Candidate], position: u32, seed: u64) -> u32 {
    let Some(&top) = kept.iter().max() else { return 0 };
    let noisy = |c: &Candidate| Candidate { logit: c.logit + gumbel(seed, position, c.id), ..*c };
    let mut best = noisy(&top);
    for c in kept {
        if c.logit + GUMBEL_MAX >= best.logit {
            best = best.max(noisy(c));
        }
    }
    best.id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(logits: &[f32], history: &[u32], position: u32, s: &Sampling) -> u32 {
        let mut l: Vec<f64> = logits.iter().map(|&v| f64::from(v)).collect();
        let window = &history[history.len() - history.len().min(s.penalty_window as usize)..];
        for (id, v) in l.iter_mut().enumerate() {
            let count = window.iter().filter(|&&t| t as usize == id).count();
            if count > 0 {
                let r = f64::from(s.repetition_penalty);
                *v = if *v > 0.0 { *v / r } else { *v * r };
                *v -= f64::from(s.frequency_penalty) * count as f64 + f64::from(s.presence_penalty);
            }
        }
        let mut order: Vec<usize> = (0..l.len()).collect();
        order.sort_by(|&a, &b| l[b].total_cmp(&l[a]).then(a.cmp(&b)));
        if s.temperature == 0.0 {
            return order[0] as u32;
        }
        l.iter_mut().for_each(|v| *v /= f64::from(s.temperature));
        if s.top_k > 0 {
            order.truncate(s.top_k as usize);
        }
        let max = l[order[0]];
        let total: f64 = order.iter().map(|&i| (l[i] - max).exp()).sum();
        let mut sum = 0.0;
        let n = order.iter().position(|&i| {
            sum += (l[i] - max).exp() / total;
            sum >= f64::from(s.top_p)
        });
        if s.top_p < 1.0 {
            order.truncate(n.map_or(order.len(), |n| n + 1));
        }
        order.retain(|&i| (l[i] - max).exp() >= f64::from(s.min_p));
        let noisy = |i: usize| l[i] + f64::from(gumbel(s.seed, position, i as u32));
        order.into_iter().max_by(|&a, &b| noisy(a).total_cmp(&noisy(b))).unwrap() as u32
    }

    #[test]
    fn sample_agrees_with_the_rule_written_naively() {
        let mut rng = 0u32;
        let mut uniform = || {
            rng += 1;
            crate::sampling::threefry2x32([1, 2], [rng, 0])[0] as f32 / u32::MAX as f32
        };
        for case in 0..300 {
            let logits: Vec<f32> = (0..500).map(|_| uniform() * 12.0 - 6.0).collect();
            let history: Vec<u32> = (0..100).map(|_| (uniform() * 499.0) as u32).collect();
            let sampling = Sampling {
                temperature: if case % 7 == 0 { 0.0 } else { uniform() * 2.0 + 0.1 },
                top_k: [0, 1, 40, 1000][case % 4],
                top_p: [1.0, 0.9, 0.3][case % 3],
                min_p: [0.0, 0.05][case % 2],
                repetition_penalty: [1.0, 1.3][case / 2 % 2],
                presence_penalty: [0.0, 0.5][case / 3 % 2],
                frequency_penalty: [0.0, 0.25][case / 5 % 2],
                penalty_window: 64,
                seed: case as u64,
            };
            let position = case as u32;
            assert_eq!(
                sample(&logits, &history, position, &sampling),
                naive(&logits, &history, position, &sampling),
                "{sampling:?}"
            );
        }
    }

    #[test]
    fn sample_ties_go_to_the_smaller_id_and_nan_loses() {
        let greedy = Sampling::greedy();
        assert_eq!(sample(&[1.0, 3.0, 3.0, f32::NAN], &[], 0, &greedy), 1);
        assert_eq!(sample(&[f32::NAN, -5.0], &[], 0, &greedy), 1);
        assert_eq!(sample(&[f32::NAN; 3], &[], 0, &greedy), 0);
        let one = Sampling { top_k: 1, temperature: 1.0, ..Sampling::default() };
        assert_eq!(sample(&[1.0, 3.0, 3.0], &[], 9, &one), 1);
        assert_eq!(sample(&[f32::NEG_INFINITY, 0.5], &[], 9, &Sampling::default()), 1);
    }

    #[test]
    fn sample_follows_the_softmax() {
        let logits = [0.0, 1.0, 2.0];
        let all = Sampling { temperature: 1.0, top_k: 0, ..Sampling::default() };
        let n = 20_000;
        let mut counts = [0u32; 3];
        for position in 0..n {
            counts[sample(&logits, &[], position, &all) as usize] += 1;
        }
        let total: f64 = logits.iter().map(|l| f64::exp(*l as f64)).sum();
        for (count, logit) in counts.iter().zip(logits) {
            let p = f64::from(logit).exp() / total;
            assert!((f64::from(*count) / f64::from(n) - p).abs() < 0.015, "{counts:?}");
        }
    }
}
