//! Rotary position embedding.

use crate::plan::{RopeLayout, RopeSpec};

/// `(cos, sin)` of every pair of a token at `pos`, times `mscale`.
///
/// # Exactness
/// The angle `pos · inv_freq` is rounded to f32 first, as the reference programs do; it decides
/// the result far more than the last bit of the cosine.
pub fn angles(spec: &RopeSpec, pos: u32) -> impl Iterator<Item = (f32, f32)> + '_ {
    spec.inv_freq.iter().map(move |&step| {
        let angle = pos as f32 * step;
        (angle.cos() * spec.mscale, angle.sin() * spec.mscale)
    })
}

/// Turns each head of one token's row in place.
///
/// # Shapes
/// `x [heads · head_dim]`, `angles [rope_dim / 2]`.
pub fn rope(layout: RopeLayout, angles: &[(f32, f32)], head_dim: usize, x: &mut [f32]) {
    for head in x.chunks_exact_mut(head_dim) {
        for (i, &(cos, sin)) in angles.iter().enumerate() {
            let (a, b) = match layout {
                RopeLayout::Interleaved => (2 * i, 2 * i + 1),
                RopeLayout::HalfSplit => (i, i + angles.len()),
            };
            let (u, v) = (head[a], head[b]);
            head[a] = u * cos - v * sin;
            head[b] = u * sin + v * cos;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_layouts_turn_the_same_pairs() {
        let spec =
            RopeSpec { layout: RopeLayout::HalfSplit, inv_freq: vec![1.0, 0.1], mscale: 1.0 };
        let table: Vec<_> = angles(&spec, 3).collect();
        let mut split = [1.0, 2.0, 3.0, 4.0, 9.0];
        rope(RopeLayout::HalfSplit, &table, 5, &mut split);
        let mut inter = [1.0, 3.0, 2.0, 4.0, 9.0];
        rope(RopeLayout::Interleaved, &table, 5, &mut inter);
        assert_eq!(split, [inter[0], inter[2], inter[1], inter[3], 9.0]);
        let expected = 1.0 * 3f32.cos() - 3.0 * 3f32.sin();
        assert_eq!(split[0], expected);
        assert_eq!(rope_zero(), [1.0, 2.0, 3.0, 4.0]);
    }

    fn rope_zero() -> [f32; 4] {
        let spec =
            RopeSpec { layout: RopeLayout::HalfSplit, inv_freq: vec![1.0, 0.1], mscale: 1.0 };
        let mut x = [1.0, 2.0, 3.0, 4.0];
        rope(spec.layout, &angles(&spec, 0).collect::<Vec<_>>(), 4, &mut x);
        x
    }
}
