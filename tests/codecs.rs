//! The codecs on files that the reference quantisers wrote: the same weights in several layouts
//! decode to the same codes, and encoding gives the reference's bytes.

use std::collections::BTreeMap;
use std::path::Path;

use bitnet_rust::format::{Container, DType, Event, gguf, safetensors, sniff};
use bitnet_rust::ternary::*;

struct Tensor {
    dtype: DType,
    n: usize,
    k: usize,
    bytes: Vec<u8>,
}

fn load(path: &str) -> BTreeMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path);
    let file = std::fs::read(path).unwrap();
    let infos = match sniff(&file).unwrap() {
        Container::Gguf => {
            let mut p = gguf::Parser::new(None);
            assert_eq!(p.next(&mut &file[..]).unwrap(), Event::Header);
            p.tensors().to_vec()
        }
        Container::Safetensors => {
            let mut p = safetensors::Parser::new(None);
            assert_eq!(p.next(&mut &file[..]).unwrap(), Event::Header);
            p.tensors().to_vec()
        }
    };
    let tensors = infos.into_iter().map(|t| {
        let k = *t.shape.last().unwrap() as usize;
        let n = t.elems() as usize / k;
        let bytes = file[t.offset as usize..][..t.bytes as usize].to_vec();
        (t.name, Tensor { dtype: t.dtype, n, k, bytes })
    });
    tensors.collect()
}

fn decode(t: &Tensor) -> Packed {
    let (b, n, k) = (&t.bytes, t.n, t.k);
    match t.dtype {
        DType::I2_S => i2_s::decode(b, n, k, i2_s::Variant::default()),
        DType::TQ1_0 => tq1_0::decode(b, n, k),
        DType::TQ2_0 => tq2_0::decode(b, n, k),
        DType::Q2_0 => q2_0::decode(b, n, k, 64),
        DType::U8 => hf_packed::decode(b, 4 * n, k, vec![1.0; 4 * n]),
        DType::F16 => absmean::decode(dense::Source::F16, b, n, k),
        other => panic!("{other} is not ternary"),
    }
    .unwrap()
}

/// The linear layers of block `l`: GGUF name, HF name.
fn linears(l: usize) -> impl Iterator<Item = (String, String)> {
    [
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ]
    .into_iter()
    .map(move |(g, h)| (format!("blk.{l}.{g}.weight"), format!("model.layers.{l}.{h}.weight")))
}

fn bf16(bytes: &[u8]) -> f32 {
    half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

#[test]
fn i2_s_tq1_0_and_packed_hold_the_same_weights() {
    let i2 = load("bitnet2b4t-mini/gguf/bitnet2b4t-mini-I2_S.gguf");
    let tq1 = load("bitnet2b4t-mini/gguf/bitnet2b4t-mini-TQ1_0.gguf");
    let hf = load("bitnet2b4t-mini/hf-packed-offline/model.safetensors");
    for (gguf, name) in (0..3).flat_map(linears) {
        let (a, b, c) = (decode(&i2[&gguf]), decode(&tq1[&gguf]), decode(&hf[&name]));
        assert_eq!(a.codes, b.codes, "{gguf}");
        assert_eq!(a.codes, c.codes, "{gguf}");
        let scale = bf16(&hf[&format!("{name}_scale")].bytes);
        assert_eq!(a.row_scales, vec![scale; a.n], "{gguf}");
        assert_eq!(
            b.to_f32(),
            a.to_f32().iter().map(|w| half::f16::from_f32(*w).to_f32()).collect::<Vec<_>>()
        );
        // The quantisers' bytes; the last 28 of I2_S mean nothing.
        let codes_and_scale = a.n * a.k / 4 + 4;
        assert_eq!(
            i2_s::encode(&a).unwrap()[..codes_and_scale],
            i2[&gguf].bytes[..codes_and_scale]
        );
        assert_eq!(tq1_0::encode(&a).unwrap(), tq1[&gguf].bytes, "{gguf}");
        assert_eq!(hf_packed::encode(&a).unwrap(), hf[&name].bytes, "{gguf}");
        assert!((0.1..0.9).contains(&a.sparsity()), "{gguf}: {}", a.sparsity());
    }
}

#[test]
fn q2_0_tq1_0_and_packed_hold_the_same_weights() {
    let q2 = load("qwen3-mini/gguf/qwen3-mini-Q2_0.gguf");
    let tq1 = load("qwen3-mini/gguf/qwen3-mini-TQ1_0.gguf");
    let hf = load("qwen3-mini/hf-packed-autobitlinear/model.safetensors");
    for (gguf, name) in (0..2).flat_map(linears) {
        let (a, b, c) = (decode(&q2[&gguf]), decode(&tq1[&gguf]), decode(&hf[&name]));
        assert_eq!(a.codes, b.codes, "{gguf}");
        assert_eq!(a.codes, c.codes, "{gguf}");
        assert_eq!(tq1_0::encode(&b).unwrap(), tq1[&gguf].bytes, "{gguf}");
        assert_eq!(a.block_scales.as_ref().unwrap().0, 64);
    }
}

#[test]
fn tq2_0_holds_the_weights_of_packed() {
    let tq2 = load("llama158-mini/gguf/llama158-mini-TQ2_0-q6k.gguf");
    let hf = load("llama158-mini/hf-packed-bitlinear/model.safetensors");
    for (gguf, name) in (0..2).flat_map(linears) {
        let (a, b) = (decode(&tq2[&gguf]), decode(&hf[&name]));
        assert_eq!(tq2_0::encode(&a).unwrap(), tq2[&gguf].bytes, "{gguf}");
        // llama's q and k rows are permuted: half-split pairs become neighbours.
        let heads = if gguf.contains("attn_q") { 4 } else { 2 };
        let permuted = gguf.contains("attn_q") || gguf.contains("attn_k");
        let (row, head_dim) = (row_bytes(a.k), a.n / heads);
        for r in 0..a.n {
            let (head, i) = (r / head_dim, r % head_dim);
            let from = if permuted { head * head_dim + i % 2 * (head_dim / 2) + i / 2 } else { r };
            assert_eq!(a.codes[r * row..][..row], b.codes[from * row..][..row], "{gguf} row {r}");
        }
        let divisor = bf16(&hf[&format!("{name}_scale")].bytes);
        let d = half::f16::from_bits(a.block_scales.unwrap().1[0]).to_f32();
        assert!((d * divisor - 1.0).abs() < 2e-3, "{gguf}: {d} · {divisor}");
    }
}

#[test]
fn absmean_of_the_master_weights_is_what_the_quantiser_made() {
    let tq2 = load("onebit-mini/gguf/onebit-mini-TQ2_0-scale.gguf");
    let hf = load("onebit-mini/hf-f16-online/model.safetensors");
    for (gguf, name) in (0..2).flat_map(linears) {
        let (a, b) = (decode(&tq2[&gguf]), decode(&hf[&name]));
        assert_eq!(a.codes, b.codes, "{gguf}");
        let scale = &tq2[&gguf.replace(".weight", ".scale")].bytes;
        let scale = f32::from_le_bytes(scale[..4].try_into().unwrap());
        assert!((scale / b.row_scales[0] - 1.0).abs() < 4e-3, "{scale} {}", b.row_scales[0]);
    }
}

#[test]
fn k_quants_are_near_the_weights_they_were_made_of() {
    let gguf = load("llama158-mini/gguf/llama158-mini-TQ2_0-q6k.gguf");
    let hf = load("llama158-mini/hf-packed-bitlinear/model.safetensors");
    let floats = |t: &Tensor| {
        let source = match t.dtype {
            DType::BF16 => dense::Source::BF16,
            DType::Q4_K => dense::Source::Q4_K,
            DType::Q6_K => dense::Source::Q6_K,
            other => panic!("{other}"),
        };
        let mut bytes = Vec::new();
        dense::Rows::new(source, t.k).unwrap().to_f32(&t.bytes, &mut bytes).unwrap();
        let floats = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        floats.collect::<Vec<_>>()
    };
    let cases = [
        ("token_embd.weight", DType::Q4_K, "model.embed_tokens.weight", 0.09),
        ("output.weight", DType::Q6_K, "lm_head.weight", 0.025),
    ];
    for (name, dtype, hf_name, bound) in cases {
        assert_eq!(gguf[name].dtype, dtype);
        let (got, want) = (floats(&gguf[name]), floats(&hf[hf_name]));
        let error: f32 = got.iter().zip(&want).map(|(g, w)| (g - w).powi(2)).sum();
        let relative = (error / want.iter().map(|w| w * w).sum::<f32>()).sqrt();
        assert!(relative < bound, "{name}: {relative}");
    }
}

#[test]
fn q6_k_is_encoded_as_the_reference_does() {
    let gguf = load("llama158-mini/gguf/llama158-mini-TQ2_0-q6k.gguf");
    let hf = load("llama158-mini/hf-packed-bitlinear/model.safetensors");
    let (want, from) = (&gguf["output.weight"], &hf["lm_head.weight"]);
    let mut got = Vec::new();
    dense::Rows::new(dense::Source::BF16, from.k).unwrap().to_q6_k(&from.bytes, &mut got).unwrap();
    assert_eq!(got.len(), want.bytes.len());
    let wrong = got.chunks(210).zip(want.bytes.chunks(210)).filter(|(a, b)| a != b).count();
    assert_eq!(wrong, 0, "of {} blocks", got.len() / 210);
}

#[test]
fn ternary_floats_are_recognised() {
    let tq1 = load("qwen3-mini/gguf/qwen3-mini-TQ1_0.gguf");
    let ternary = decode(&tq1["blk.0.ffn_up.weight"]);
    let (n, k) = (ternary.n, ternary.k);
    let mut bytes: Vec<u8> = ternary.to_f32().iter().flat_map(|w| w.to_le_bytes()).collect();
    let exact = absmean::decode_exact(dense::Source::F32, &bytes, n, k).unwrap().unwrap();
    assert_eq!(exact.codes, ternary.codes);
    assert_eq!(exact.to_f32(), ternary.to_f32());
    // The absmean rule would find the same codes, but a scale that is too small by the zeros' share.
    let absmean = absmean::decode(dense::Source::F32, &bytes, n, k).unwrap();
    assert_eq!(absmean.codes, ternary.codes);
    assert!(absmean.row_scales[0] < 0.95 * exact.row_scales[0]);
    bytes[4..8].copy_from_slice(&0.123f32.to_le_bytes());
    assert_eq!(absmean::decode_exact(dense::Source::F32, &bytes, n, k), Ok(None));
}

/// A trained model, rewritten in each layout of I2_S: its norms tell which.
#[test]
fn i2_s_layouts_of_a_trained_model_are_told_apart() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tales.gguf");
    let tensors = load(path.to_str().unwrap());
    let write = |p: &Packed, variant: i2_s::Variant| {
        let row = row_bytes(p.k);
        let code = |r: usize, c: usize| code(&p.codes[r * row..][..row], c);
        let mut bytes = vec![0; p.n * p.k / 4];
        for (r, c) in (0..p.n).flat_map(|r| (0..p.k).map(move |c| (r, c))) {
            let v = r * p.k + c;
            let (byte, shift) = match variant {
                i2_s::Variant::Group128 => (v / 128 * 32 + v % 32, 6 - v % 128 / 32 * 2),
                i2_s::Variant::Group64 => (v / 64 * 16 + v % 16, 6 - v % 64 / 16 * 2),
                i2_s::Variant::Rows4 => (r / 4 * p.k + c, 6 - r % 4 * 2),
            };
            bytes[byte] |= code(r, c) << shift;
        }
        bytes.extend([0; 32]);
        bytes
    };
    for variant in i2_s::Variant::ALL {
        let mut detector = i2_s::Detector::default();
        for layer in 0..10 {
            for (norm, linear) in [
                ("attn_norm", "attn_q"),
                ("attn_norm", "attn_v"),
                ("attn_sub_norm", "attn_output"),
                ("ffn_norm", "ffn_up"),
                ("ffn_sub_norm", "ffn_down"),
            ] {
                let norm: Vec<f32> = tensors[&format!("blk.{layer}.{norm}.weight")]
                    .bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect();
                let p = decode(&tensors[&format!("blk.{layer}.{linear}.weight")]);
                detector.observe(&norm, &write(&p, variant), p.n, p.k);
                // Early on it may not know, but it must not be wrong.
                let found = detector.variant();
                assert!(found.is_none_or(|f| f == variant), "layer {layer}: {found:?}");
            }
        }
        assert_eq!(detector.variant(), Some(variant));
    }
}
