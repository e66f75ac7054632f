//! The `Params` struct of every kernel, as the shader declares it.
//!
//! `tests/shaders.rs` compares names and offsets with the WGSL.

use bytemuck::{Pod, Zeroable};

/// A kernel's parameters: plain words in a uniform buffer.
pub trait Params: Pod {
    /// Name and type (`u32` or `f32`) of each field, in order.
    const FIELDS: &'static [(&'static str, &'static str)];
}

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ident),* $(,)? })*) => {$(
        $(#[$doc])*
        #[allow(missing_docs)] // The fields are described where they are used: in the shader.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
        pub struct $name { $(pub $field: $type),* }

        impl Params for $name {
            const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), stringify!($type))),*];
        }

        // Four bytes a field and nothing between: what WGSL makes of u32 and f32 members.
        const _: () = assert!(size_of::<$name>() == 4 * <$name as Params>::FIELDS.len());
    )*};
}

params! {
    /// The `Step` of `shaders/parts/step.wgsl`.
    Step { pos: u32, tokens: u32, out_first: u32, out_rows: u32, drawn: u32, splits: u32, pad1: u32, pad2: u32 }
    /// `shaders/embed.wgsl`.
    Embed { dim: u32, out_stride: u32, row_first: u32, rows: u32, block: u32 }
    /// `shaders/rms_norm.wgsl`.
    RmsNorm { len: u32, x_stride: u32, x_at: u32, out_stride: u32, out_at: u32, eps: f32 }
    /// `shaders/quantize.wgsl`.
    Quantize { dim: u32, x_stride: u32, x_at: u32, groups: u32, runs: u32, eps: f32 }
    /// `shaders/ternary_gemv.wgsl`.
    TernaryGemv {
        rows: u32, half: u32, k: u32, groups: u32, x_stride: u32, out_stride: u32, out_at: u32, eps: f32,
    }
    /// `shaders/ternary_gemm.wgsl`.
    TernaryGemm { rows: u32, k: u32, groups: u32, out_stride: u32, out_at: u32, by_outputs: u32 }
    /// `shaders/ternary_gemm_matrix.wgsl`.
    TernaryGemmMatrix { rows: u32, half: u32, out_stride: u32, out_at: u32 }
    /// `shaders/dense_gemv.wgsl`.
    DenseGemv { rows: u32, k: u32, block: u32, x_stride: u32, out_stride: u32, out_at: u32 }
    /// `shaders/dense_gemm.wgsl`.
    DenseGemm {
        rows: u32, k: u32, block: u32, x_stride: u32, out_stride: u32, out_at: u32, by_outputs: u32,
    }
    /// `shaders/rope.wgsl`.
    Rope { head_dim: u32, pairs: u32, total: u32, interleaved: u32, x_stride: u32, x_at: u32 }
    /// `shaders/kv_append.wgsl`.
    KvAppend { kv_quads: u32, k_stride: u32, k_at: u32, v_stride: u32, v_at: u32 }
    /// `shaders/attention_decode.wgsl`.
    AttentionDecode {
        group: u32, kv_quads: u32, q_stride: u32, q_at: u32, k_at: u32, v_at: u32, out_stride: u32,
        out_at: u32, scale: f32, eps: f32,
    }
    /// `shaders/attention_combine.wgsl`.
    AttentionCombine { head_dim: u32, out_stride: u32, out_at: u32 }
    /// `shaders/attention_prefill.wgsl`.
    AttentionPrefill {
        group: u32, kv_quads: u32, q_stride: u32, q_at: u32, out_stride: u32, out_at: u32, scale: f32,
    }
    /// `shaders/gated_act.wgsl`.
    GatedAct {
        dim: u32, act: u32, gate_stride: u32, gate_at: u32, up_stride: u32, up_at: u32,
        out_stride: u32, out_at: u32,
    }
    /// `shaders/add.wgsl`.
    Add { dim: u32, x_stride: u32, y_stride: u32 }
    /// `shaders/take_outputs.wgsl`.
    TakeOutputs { dim: u32, x_stride: u32, out_stride: u32 }
    /// `shaders/argmax.wgsl`.
    Argmax { vocab: u32, stride: u32 }
    /// `shaders/cross_entropy.wgsl`.
    CrossEntropy { vocab: u32, stride: u32 }
    /// `shaders/draw.wgsl`.
    Draw {
        vocab: u32, stride: u32, shares: u32, window: u32, temperature: f32, top_p: f32, min_p: f32,
        top_k: u32, repetition: f32, presence: f32, frequency: f32, seed_low: u32, seed_high: u32,
    }
}
