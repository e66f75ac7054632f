//! `Config` → the angular steps of the rotary embedding.

use super::config::{Config, RopeScaling};
use crate::plan::RopeSpec;

/// `inv_freq[i] = theta^(−2i/dim)`, adapted by the context extension.
///
/// # Source
/// transformers `modeling_rope_utils.py` (default, linear, yarn, llama3); Peng et al. 2023 for YaRN.
pub fn rope_spec(config: &Config) -> RopeSpec {
    let dim = f64::from(config.rope_dim);
    let theta = f64::from(config.rope_theta);
    let base = (0..config.rope_dim / 2).map(|i| theta.powf(-2.0 * f64::from(i) / dim));
    let mut mscale = 1.0;
    let inv_freq: Vec<f64> = match config.rope_scaling {
        RopeScaling::None => base.collect(),
        RopeScaling::Linear { factor } => base.map(|f| f / f64::from(factor)).collect(),
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
            let factor = f64::from(factor);
            mscale = attention_factor.map_or_else(
                || if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 },
                f64::from,
            );
            // Pair index that makes `turns` turns over the trained context.
            let pair_of = |turns: f32| {
                let wavelength = f64::from(original_context) / f64::from(turns);
                dim * (wavelength / std::f64::consts::TAU).ln() / (2.0 * theta.ln())
            };
            let low = pair_of(beta_fast).floor().max(0.0);
            let high = pair_of(beta_slow).ceil().min(dim - 1.0);
            let span = if high > low { high - low } else { 0.001 };
            base.enumerate()
                .map(|(i, f)| {
                    let interpolate = ((i as f64 - low) / span).clamp(0.0, 1.0);
                    f / factor * interpolate + f * (1.0 - interpolate)
                })
                .collect()
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let (factor, context) = (f64::from(factor), f64::from(original_context));
            let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
            base.map(|f| {
                let turns = context * f / std::f64::consts::TAU;
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                f / factor * (1.0 - keep) + f * keep
            })
            .collect()
        }
    };
    RopeSpec {
        layout: config.rope_layout,
        inv_freq: inv_freq.iter().map(|&f| f as f32).collect(),
        mscale: mscale as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(rope_theta: f32, rope_scaling: RopeScaling) -> RopeSpec {
        let mut config = Config::from_hf(
            r#"{"model_type": "llama", "hidden_size": 512, "intermediate_size": 512,
                "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 8}"#,
        )
        .unwrap();
        config.rope_theta = rope_theta;
        config.rope_scaling = rope_scaling;
        rope_spec(&config)
    }

    #[track_caller]
    fn assert_steps(spec: &RopeSpec, expected: &[(usize, f64)]) {
        for &(i, want) in expected {
            let got = f64::from(spec.inv_freq[i]);
            assert!((got / want - 1.0).abs() < 1e-6, "pair {i}: {got}, expected {want}");
        }
    }

    // The expected values are those of transformers' formulas, evaluated in Python.
    #[test]
    fn yarn() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 8192,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
        };
        let spec = spec(1e6, scaling);
        assert_steps(
            &spec,
            &[
                (0, 1.0),
                (20, 0.011_570_259_484_946_489),
                (30, 0.000_656_733_371_407_724_5),
                (40, 4.445_698_525_097_307e-5),
                (63, 3.102_344_401_879_299e-7),
            ],
        );
        assert!((spec.mscale - 1.138_629_4).abs() < 1e-6);
    }

    #[test]
    fn llama3() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        assert_steps(
            &spec(5e5, scaling),
            &[
                (0, 1.0),
                (20, 0.016_560_440_080_994_446),
                (30, 0.001_371_893_567_761_138_1),
                (36, 7.784_655_273_932_45e-5),
                (63, 3.068_925_988_914_511e-7),
            ],
        );
    }

    #[test]
    fn linear_divides_every_step() {
        let plain = spec(1e4, RopeScaling::None);
        let scaled = spec(1e4, RopeScaling::Linear { factor: 4.0 });
        for (a, b) in plain.inv_freq.iter().zip(&scaled.inv_freq) {
            assert_eq!(*a, *b * 4.0);
        }
    }
}
