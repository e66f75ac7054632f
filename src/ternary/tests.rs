//! Every codec against the layout's definition, one weight at a time, on random bytes.

use half::f16;
use proptest::prelude::*;

use super::*;

/// The code of weight (`row`, `column`) of a tensor in some layout, straight from its definition.
type Naive = fn(bytes: &[u8], k: usize, row: usize, column: usize) -> u8;
type Decode = fn(&[u8], usize, usize) -> Result<Packed, TernaryError>;

/// Digit `i` of a base-3 byte, by exact division: `byte / 256` is a fraction in base 3.
fn digit(byte: u8, i: u32) -> u8 {
    (u32::from(byte) * 3u32.pow(i + 1) / 256 % 3) as u8
}

/// Layouts of blocks with one f16 scale: name, weights and bytes a block, place of the scale,
/// codec, definition.
const BLOCK_LAYOUTS: &[(&str, usize, usize, usize, Decode, Naive)] = &[
    ("tq2_0", 256, 66, 64, tq2_0::decode, |b, k, row, c| {
        let (block, v) = ((row * k + c) / 256, c % 256);
        b[block * 66 + v / 128 * 32 + v % 32] >> (v % 128 / 32 * 2) & 3
    }),
    ("tq1_0", 256, 54, 52, tq1_0::decode, |b, k, row, c| {
        let (block, v) = (&b[(row * k + c) / 256 * 54..], c % 256);
        match v {
            0..160 => digit(block[v % 32], v as u32 / 32),
            160..240 => digit(block[32 + (v - 160) % 16], (v as u32 - 160) / 16),
            _ => digit(block[48 + (v - 240) % 4], (v as u32 - 240) / 4),
        }
    }),
    (
        "q2_0",
        64,
        18,
        0,
        |b, n, k| q2_0::decode(b, n, k, 64),
        |b, k, row, c| {
            let v = row * k + c;
            b[v / 64 * 18 + 2 + v % 64 / 4] >> (v % 4 * 2) & 3
        },
    ),
    (
        "q2_0_128",
        128,
        34,
        0,
        |b, n, k| q2_0::decode(b, n, k, 128),
        |b, k, row, c| {
            let v = row * k + c;
            b[v / 128 * 34 + 2 + v % 128 / 4] >> (v % 4 * 2) & 3
        },
    ),
    ("q1_0", 128, 18, 0, q1_0::decode, |b, k, row, c| {
        let v = row * k + c;
        (b[v / 128 * 18 + 2 + v % 128 / 8] >> (v % 8) & 1) * 2
    }),
    ("ptq1_0", 128, 28, 26, ptq1_0::decode, |b, k, row, c| {
        let (block, e) = (&b[(row * k + c) / 128 * 28..], c % 128);
        match e {
            0..80 => digit(block[e & 15], e as u32 >> 4),
            80..120 => digit(block[16 + ((e - 80) & 7)], (e as u32 - 80) >> 3),
            _ => digit(block[24 + ((e - 120) & 1)], (e as u32 - 120) >> 1),
        }
    }),
];

fn i2_s_code(variant: i2_s::Variant, b: &[u8], k: usize, row: usize, c: usize) -> u8 {
    let v = row * k + c;
    match variant {
        i2_s::Variant::Group128 => b[v / 128 * 32 + v % 32] >> (6 - v % 128 / 32 * 2) & 3,
        i2_s::Variant::Group64 => b[v / 64 * 16 + v % 16] >> (6 - v % 64 / 16 * 2) & 3,
        i2_s::Variant::Rows4 => b[row / 4 * k + c] >> (6 - row % 4 * 2) & 3,
    }
}

fn codes(p: &Packed) -> Vec<u8> {
    let rows = p.codes.chunks_exact(row_bytes(p.k));
    rows.flat_map(|row| (0..p.k).map(|c| code(row, c))).collect()
}

fn naive(n: usize, k: usize, f: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    (0..n).flat_map(|r| (0..k).map(move |c| (r, c))).map(|(r, c)| f(r, c)).collect()
}

/// A matrix of ternary codes with one scale.
fn ternary(n: usize, k: usize, scale: f32, seed: &[u8]) -> Packed {
    let at = |r: usize, c: usize| {
        let i = r * k + c;
        seed[i % seed.len()].wrapping_mul(31).wrapping_add((i / seed.len()) as u8) % 3
    };
    let codes = pack_rows(n, k, |r, codes| {
        codes.iter_mut().enumerate().for_each(|(c, code)| *code = at(r, c));
    });
    Packed { n, k, codes, row_scales: vec![scale; n], block_scales: None }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn packed_layout_is_as_drawn(n in 1usize..4, k in 1usize..200, seed in prop::collection::vec(any::<u8>(), 1..99)) {
        let p = ternary(n, k, 1.0, &seed);
        let all = naive(n, k, |r, c| seed[(r * k + c) % seed.len()].wrapping_mul(31).wrapping_add(((r * k + c) / seed.len()) as u8) % 3);
        prop_assert_eq!(codes(&p), all.clone());
        let mut one_by_one = vec![0x55; n * row_bytes(k)];
        for (i, &c) in all.iter().enumerate() {
            set_code(&mut one_by_one[i / k * row_bytes(k)..], i % k, c);
        }
        prop_assert_eq!(&p.codes, &one_by_one, "padding is code 1");
        let f: Vec<f32> = all.iter().map(|&c| f32::from(c) - 1.0).collect();
        prop_assert_eq!(p.to_f32(), f);
    }

    #[test]
    fn block_layouts_match_their_definitions(n in 1usize..4, blocks in 1usize..4, bytes in prop::collection::vec(any::<u8>(), 792)) {
        for &(name, elems, block_bytes, d_at, decode, naive_code) in BLOCK_LAYOUTS {
            let k = blocks * elems;
            let mut bytes = bytes[..n * blocks * block_bytes].to_vec();
            let mut scales = Vec::new();
            for (i, block) in bytes.chunks_exact_mut(block_bytes).enumerate() {
                let d = f16::from_f32(0.25 * (i + 1) as f32);
                block[d_at..d_at + 2].copy_from_slice(&d.to_le_bytes());
                scales.push(d.to_bits());
            }
            let p = decode(&bytes, n, k).unwrap();
            prop_assert_eq!(codes(&p), naive(n, k, |r, c| naive_code(&bytes, k, r, c)), "{}", name);
            prop_assert_eq!(&p.row_scales, &vec![1.0; n]);
            prop_assert_eq!(p.block_scales, Some((elems, scales)), "{}", name);
        }
    }

    #[test]
    fn i2_s_variants_match_their_definitions(n4 in 1usize..3, groups in 1usize..4, bytes in prop::collection::vec(any::<u8>(), 768)) {
        let (n, k) = (4 * n4, 128 * groups);
        // No code 3: clear the low bit where both are set.
        let mut bytes: Vec<u8> = bytes[..n * k / 4].iter().map(|b| b & !(b >> 1 & 0x55)).collect();
        bytes.extend(0.5f32.to_le_bytes());
        bytes.extend([0xab; 28]);
        for variant in i2_s::Variant::ALL {
            let p = i2_s::decode(&bytes, n, k, variant).unwrap();
            prop_assert_eq!(codes(&p), naive(n, k, |r, c| i2_s_code(variant, &bytes, k, r, c)), "{:?}", variant);
            prop_assert_eq!(p.row_scales, vec![0.5; n]);
        }
    }

    #[test]
    fn encoders_invert_decoders(n4 in 1usize..3, blocks in 1usize..3, scale in 0.01f32..10.0, seed in prop::collection::vec(any::<u8>(), 1..300)) {
        let (n, k) = (4 * n4, 256 * blocks);
        let p = ternary(n, k, scale, &seed);
        let same = i2_s::decode(&i2_s::encode(&p).unwrap(), n, k, i2_s::Variant::Group128).unwrap();
        prop_assert_eq!(&same, &p);
        let same = hf_packed::decode(&hf_packed::encode(&p).unwrap(), n, k, vec![scale; n]).unwrap();
        prop_assert_eq!(&same, &p);
        for (encode, decode) in [
            (tq1_0::encode as fn(&Packed) -> _, tq1_0::decode as Decode),
            (tq2_0::encode, tq2_0::decode),
        ] {
            let bytes = encode(&p).unwrap();
            let q = decode(&bytes, n, k).unwrap();
            prop_assert_eq!(&q.codes, &p.codes);
            prop_assert_eq!(encode(&q).unwrap(), bytes);
            // Block scales that agree become a tensor scale again.
            let once = i2_s::encode(&q).unwrap();
            let d = if p.sparsity() == 1.0 { 0.0 } else { f16::from_f32(scale).to_f32() };
            prop_assert_eq!(&once[n * k / 4..][..4], &d.to_le_bytes());
        }
    }

    #[test]
    fn hf_packed_matches_its_definition(quarter in 1usize..4, k in 1usize..150, bytes in prop::collection::vec(any::<u8>(), 450)) {
        let (n, bytes) = (4 * quarter, &bytes[..quarter * k]);
        let p = hf_packed::decode(bytes, n, k, vec![2.0; n]).unwrap();
        prop_assert_eq!(codes(&p), naive(n, k, |r, c| bytes[r % quarter * k + c] >> (r / quarter * 2) & 3));
    }

    #[test]
    fn iq2_bn_matches_its_definition(n in 1usize..4, blocks in 1usize..3, bytes in prop::collection::vec(any::<u8>(), 108)) {
        let (k, row) = (64 * blocks, 16 * blocks + 4);
        let mut bytes: Vec<u8> = bytes[..n * row].iter().map(|b| b & !(b >> 1 & 0x55)).collect();
        for (r, row) in bytes.chunks_exact_mut(row).enumerate() {
            row[..4].copy_from_slice(&(r as f32 + 0.5).to_le_bytes());
        }
        let p = iq2_bn::decode(&bytes, n, k).unwrap();
        prop_assert_eq!(codes(&p), naive(n, k, |r, c| bytes[r * row + 4 + c / 64 * 16 + c % 16] >> (c % 64 / 16 * 2) & 3));
        prop_assert_eq!(p.row_scales, (0..n).map(|r| r as f32 + 0.5).collect::<Vec<_>>());
    }

    #[test]
    fn absmean_is_the_training_rule(n in 1usize..5, k in 1usize..100, w in prop::collection::vec(-3.0f32..3.0, 400)) {
        let w = &w[..n * k];
        let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
        let p = absmean::decode(dense::Source::F32, &bytes, n, k).unwrap();
        let s = 1.0 / (w.iter().map(|w| f64::from(w.abs())).sum::<f64>() as f32 / w.len() as f32).max(1e-5);
        for (got, w) in p.to_f32().iter().zip(w) {
            let (want, edge) = ((w * s).round_ties_even().clamp(-1.0, 1.0) / s, (w * s).abs() - 0.5);
            prop_assert!((got - want).abs() <= 1e-6 * want.abs() || edge.abs() < 1e-5, "{} {}", got, want);
        }
    }
}

#[test]
fn absmean_rounds_half_to_even_and_floors_the_mean() {
    // Mean 1: s = 1, and ±0.5 go to 0, not to ±1.
    let w = [0.5f32, -0.5, 1.5, -1.5];
    let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
    let p = absmean::decode(dense::Source::F32, &bytes, 1, 4).unwrap();
    assert_eq!(p.to_f32(), [0.0, 0.0, 1.0, -1.0]);
    let p = absmean::decode(dense::Source::F32, &[0; 16], 1, 4).unwrap();
    assert_eq!((p.to_f32(), p.row_scales), (vec![0.0; 4], vec![1.0 / (1.0 / 1e-5)]));
}

#[test]
fn zero_blocks_and_code_3() {
    let mut p = ternary(4, 256, 0.5, &[1]);
    p.codes.fill(0x55);
    assert_eq!(tq2_0::encode(&p).unwrap()[64..66], [0, 0], "a block of zeros has d = 0");
    set_code(&mut p.codes[row_bytes(256)..], 7, 3);
    let at = |layout| TernaryError::Code { layout, row: 1, column: 7, got: 3 };
    assert_eq!(i2_s::encode(&p), Err(at("I2_S")));
    assert_eq!(tq1_0::encode(&p), Err(at("TQ1_0")));
    let tq2 = tq2_0::decode(&tq2_0::encode(&p).unwrap(), 4, 256).unwrap();
    assert_eq!(tq2.to_f32()[256 + 7], 1.0, "+2 · 0.5");
    let mut i2 = vec![0x55; 256];
    i2[64 + 7] |= 0xc0;
    i2.extend(0.5f32.to_le_bytes());
    i2.extend([0; 28]);
    assert_eq!(i2_s::decode(&i2, 4, 256, i2_s::Variant::Group128), Err(at("I2_S")));
}

#[test]
fn scales_that_are_no_numbers_are_refused() {
    let i2_s = |scale: f32, codes: u8| {
        let mut bytes = vec![codes; 32];
        bytes.extend(scale.to_le_bytes());
        bytes.extend([0; 28]);
        i2_s::decode(&bytes, 1, 128, i2_s::Variant::Group128).is_ok()
    };
    for bad in [f32::NAN, f32::INFINITY, -1.0, -2e-33, 2e-33, 7e10, 0.0] {
        assert!(!i2_s(bad, 0), "{bad}");
    }
    assert!(i2_s(0.0, 0x55) && i2_s(1.0, 0) && i2_s(0.004, 0xaa));
    for d in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
        for &(name, elems, block_bytes, d_at, decode, _) in BLOCK_LAYOUTS {
            let mut bytes = vec![0; 4 * block_bytes];
            bytes[3 * block_bytes + d_at..][..2].copy_from_slice(&d.to_le_bytes());
            match decode(&bytes, 2, 2 * elems) {
                Err(TernaryError::Scale { row: 1, column, .. }) => assert_eq!(column, elems),
                other => panic!("{name}: {other:?}"),
            }
        }
        assert!(hf_packed::decode(&[0; 4], 4, 4, vec![d.to_f32(); 4]).is_err());
    }
}

#[test]
fn wrong_lengths_and_shapes_are_refused() {
    for &(name, elems, block_bytes, _, decode, _) in BLOCK_LAYOUTS {
        for len in [0, block_bytes - 1, block_bytes + 1] {
            let e = decode(&vec![0; len], 1, elems);
            assert!(matches!(e, Err(TernaryError::Length { .. })), "{name}");
        }
        let e = decode(&[], 1, elems / 2);
        assert!(matches!(e, Err(TernaryError::Shape { .. })), "{name}");
        let e = decode(&[], usize::MAX, elems);
        assert!(matches!(e, Err(TernaryError::Shape { .. })), "{name}");
    }
    for variant in i2_s::Variant::ALL {
        assert!(i2_s::decode(&[0; 64], 1, 129, variant).is_err());
        assert!(i2_s::decode(&[0; 64], 4, 128, variant).is_err());
        assert!(i2_s::decode(&[0; 64], usize::MAX - 3, 1 << 20, variant).is_err());
    }
    assert!(hf_packed::decode(&[0; 6], 6, 4, vec![1.0; 6]).is_err());
    let mut p = ternary(4, 256, 1.0, &[0, 1, 2]);
    p.row_scales[2] = 2.0;
    assert!(matches!(i2_s::encode(&p), Err(TernaryError::SeveralScales { .. })));
    p.row_scales[2] = 1e6;
    assert!(matches!(tq2_0::encode(&p), Err(TernaryError::Scale { row: 2, .. })));
}

/// Weights whose columns have more zeros where the norm is small, in each layout.
#[test]
fn i2_s_variant_is_detected_from_the_norm() {
    let (n, k) = (256, 256);
    let hash = |i: usize| {
        let x = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1 << 24) as f32
    };
    let norm: Vec<f32> = (0..k).map(|c| 0.5 + hash(c)).collect();
    let value = |r: usize, c: usize, u: &[f32]| {
        let i = 1000 + r * k + c;
        if hash(i) < 0.6 - 0.3 * u[c] { 1 } else { u8::from(hash(i + n * k) < 0.5) * 2 }
    };
    for truth in i2_s::Variant::ALL {
        let file = |u: &[f32]| {
            let mut bytes = vec![0; n * k / 4];
            for (r, c) in (0..n).flat_map(|r| (0..k).map(move |c| (r, c))) {
                let v = r * k + c;
                let (byte, shift) = match truth {
                    i2_s::Variant::Group128 => (v / 128 * 32 + v % 32, 6 - v % 128 / 32 * 2),
                    i2_s::Variant::Group64 => (v / 64 * 16 + v % 16, 6 - v % 64 / 16 * 2),
                    i2_s::Variant::Rows4 => (r / 4 * k + c, 6 - r % 4 * 2),
                };
                bytes[byte] |= value(r, c, u) << shift;
            }
            bytes.extend([0; 32]);
            bytes
        };
        let mut detector = i2_s::Detector::default();
        detector.observe(&norm, &file(&vec![1.0; k]), n, k);
        assert_eq!(detector.variant(), None, "unrelated weights say nothing");
        detector.observe(&vec![1.0; k], &file(&norm), n, k);
        assert_eq!(detector.variant(), None, "a constant norm says nothing");
        detector.observe(&norm[1..], &file(&norm), n, k);
        detector.observe(&norm, &file(&norm), n, k);
        assert_eq!(detector.variant(), Some(truth));
    }
}

/// The reference loops of ggml, transcribed index by index.
#[test]
fn dense_blocks_match_their_definitions() {
    let bytes: Vec<u8> = (0..420u32).map(|i| (i * i * 7 + i * 13 + 5) as u8).collect();
    let half = |b: &[u8], at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
    let check = |source: dense::Source, value: &dyn Fn(&[u8], usize) -> f32, d_at: &[usize]| {
        let (elems, size) = source.block();
        let mut bytes = bytes[..2 * size].to_vec();
        for block in bytes.chunks_exact_mut(size) {
            for (i, &at) in d_at.iter().enumerate() {
                let d = f16::from_f32(0.01 * (i + 1) as f32);
                block[at..at + 2].copy_from_slice(&d.to_le_bytes());
            }
        }
        let mut out = vec![0.0; 2 * elems];
        source.read_row(0, &bytes, &mut out).unwrap();
        for (i, got) in out.iter().enumerate() {
            assert_eq!(*got, value(&bytes[i / elems * size..], i % elems), "{source:?} {i}");
        }
    };
    check(dense::Source::Q8_0, &|b, i| half(b, 0) * f32::from(b[2 + i] as i8), &[0]);
    check(
        dense::Source::Q4_0,
        &|b, i| half(b, 0) * (f32::from(b[2 + i % 16] >> (i / 16 * 4) & 15) - 8.0),
        &[0],
    );
    check(
        dense::Source::Q4_K,
        &|b, i| {
            let (j, s) = (i / 32, &b[4..16]);
            let (sc, m) = if j < 4 {
                (s[j] & 63, s[j + 4] & 63)
            } else {
                ((s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4)
            };
            let q = b[16 + j / 2 * 32 + i % 32] >> (j % 2 * 4) & 15;
            half(b, 0) * f32::from(sc) * f32::from(q) - half(b, 2) * f32::from(m)
        },
        &[0, 2],
    );
    check(
        dense::Source::Q6_K,
        &|b, i| {
            let (h, l, s) = (i / 128, i % 32, i % 128 / 32);
            let low = b[64 * h + l + s % 2 * 32] >> (s / 2 * 4) & 15;
            let high = b[128 + 32 * h + l] >> (2 * s) & 3;
            let sc = b[192 + 8 * h + l / 16 + 2 * s] as i8;
            half(b, 208) * f32::from(sc) * (f32::from(low | high << 4) - 32.0)
        },
        &[208],
    );
}

#[test]
fn dense_rows_convert_exactly_or_fail() {
    use dense::{Rows, Source};
    let w: Vec<f32> = (0..64).map(|i| (i as f32 - 31.5) * 0.125).collect();
    let f32_bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut out = Vec::new();
    Rows::new(Source::F32, 32).unwrap().to_f32(&f32_bytes, &mut out).unwrap();
    assert_eq!(out, f32_bytes);
    let mut f16_bytes = Vec::new();
    Rows::new(Source::F32, 32).unwrap().to_f16(&f32_bytes, &mut f16_bytes).unwrap();
    let mut again = Vec::new();
    Rows::new(Source::F16, 32).unwrap().to_f16(&f16_bytes, &mut again).unwrap();
    assert_eq!(again, f16_bytes);
    // int8: the largest becomes ±127, and Q8_0 passes through unchanged.
    let (mut q, mut d) = (Vec::new(), Vec::new());
    Rows::new(Source::F32, 32).unwrap().to_q8(&f32_bytes, &mut q, &mut d).unwrap();
    assert_eq!((q.len(), d.len()), (64, 4));
    assert_eq!((q[0] as i8, q[63] as i8), (-127, 127));
    let blocks: Vec<u8> =
        (0..2).flat_map(|i| [&d[2 * i..2 * i + 2], &q[32 * i..32 * i + 32]].concat()).collect();
    let (mut q2, mut d2) = (Vec::new(), Vec::new());
    Rows::new(Source::Q8_0, 32).unwrap().to_q8(&blocks, &mut q2, &mut d2).unwrap();
    assert_eq!((q2, d2), (q, d));
    // What does not fit says where.
    let mut rows = Rows::new(Source::F32, 2).unwrap();
    let wide: Vec<u8> = [1.0f32, 2.0, 3.0, 1e6].iter().flat_map(|w| w.to_le_bytes()).collect();
    let e = rows.to_f16(&wide, &mut Vec::new());
    assert_eq!(e, Err(TernaryError::Value { into: "f16", row: 1, column: 1, got: 1e6 }));
    let mut rows = Rows::new(Source::BF16, 1).unwrap();
    assert!(rows.to_f32(&[0x80, 0x7f], &mut Vec::new()).is_err(), "infinity");
    assert!(rows.to_f32(&[0], &mut Vec::new()).is_err(), "half a weight");
    assert!(rows.to_q8(&[0, 0], &mut Vec::new(), &mut Vec::new()).is_err(), "rows of 1");
    assert!(Rows::new(Source::Q6_K, 128).is_err());
}
