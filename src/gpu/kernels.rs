//! The one table of kernels: source, parts, bindings, overrides, and what a device must have.
//!
//! A kernel is a file in `shaders/`; a **variant** of it is one choice on each of its axes. A choice
//! brings parts (files in `shaders/parts/`, joined in front), bindings and overrides of its own.
//! Everything that runs is listed here, so that everything can be validated and tested.

use super::params::{self, Params};
use super::wgsl::wgsl;
use crate::backend::BackendError;

/// How a storage binding is used; binding 1 is always the uniform `Params`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Uniform.
    Uniform,
    /// Storage, read.
    Read,
    /// Storage, read and written.
    Write,
}
use Access::{Read, Uniform, Write};

/// What a device must have for a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// Every WebGPU device will do.
    Nothing,
    /// Subgroup operations.
    Subgroups,
    /// `dot4I8Packed`.
    Dot4,
    /// Cooperative matrices of 16 × 16 × 16, f16 to f32, on subgroups of 32; natively only.
    Matrices,
}

/// A piece of WGSL that is joined in front of kernels.
#[derive(Debug)]
pub struct Part {
    /// File name without its ending.
    pub name: &'static str,
    /// The text.
    pub source: &'static str,
}

macro_rules! part {
    ($name:literal) => {
        &Part { name: $name, source: wgsl!(concat!("../../shaders/parts/", $name, ".wgsl")) }
    };
}

/// One value of an axis.
#[derive(Debug)]
pub struct Choice {
    /// Name in labels and tests.
    pub name: &'static str,
    /// Parts it adds.
    pub parts: &'static [&'static Part],
    /// Bindings it adds.
    pub bindings: &'static [(u32, Access)],
    /// Overrides it declares.
    pub overrides: &'static [&'static str],
    /// What the device must have.
    pub need: Need,
    /// Names of choices on earlier axes that it goes with; empty: all.
    pub only_with: &'static [&'static str],
}

const PLAIN: Choice = Choice {
    name: "",
    parts: &[],
    bindings: &[],
    overrides: &[],
    need: Need::Nothing,
    only_with: &[],
};

/// A kernel and its axes.
#[derive(Debug)]
pub struct Kernel {
    /// File name without its ending; the first word of labels.
    pub stem: &'static str,
    /// The text.
    pub source: &'static str,
    /// Parts of every variant.
    pub parts: &'static [&'static Part],
    /// Bindings of every variant, but for the `Params` at 1.
    pub bindings: &'static [(u32, Access)],
    /// Overrides of every variant.
    pub overrides: &'static [&'static str],
    /// Fields of `Params`.
    pub fields: &'static [(&'static str, &'static str)],
    /// A variant is one choice on each.
    pub axes: &'static [&'static [Choice]],
}

macro_rules! kernel {
    ($stem:literal, $params:ident, $parts:expr, $bindings:expr, $overrides:expr, $axes:expr) => {
        Kernel {
            stem: $stem,
            source: wgsl!(concat!("../../shaders/", $stem, ".wgsl")),
            parts: $parts,
            bindings: $bindings,
            overrides: $overrides,
            fields: params::$params::FIELDS,
            axes: $axes,
        }
    };
}

const STEP: &[&Part] = &[part!("step")];
const STEP_ROUND: &[&Part] = &[part!("step"), part!("f16_round")];
const STEP_EXP: &[&Part] = &[part!("step"), part!("exp")];
const STEP_ROUND_EXP: &[&Part] = &[part!("step"), part!("f16_round"), part!("exp")];
const STEP_AT: (u32, Access) = (0, Uniform);

const REDUCE: &[Choice] = &[
    Choice { name: "workgroup", parts: &[part!("reduce_workgroup")], overrides: &["WG"], ..PLAIN },
    Choice {
        name: "subgroup",
        parts: &[part!("reduce_subgroup")],
        overrides: &["WG", "RUN"],
        need: Need::Subgroups,
        ..PLAIN
    },
];
const DOT4: &[Choice] = &[
    Choice { name: "emulated", parts: &[part!("dot4_emulated")], ..PLAIN },
    Choice { name: "builtin", parts: &[part!("dot4_builtin")], need: Need::Dot4, ..PLAIN },
];
/// No choice, but a need. Not on the web, where no bytes are spent on what WebGPU does not have.
#[cfg(not(target_arch = "wasm32"))]
const MATRICES: &[Choice] = &[Choice { name: "f16", need: Need::Matrices, ..PLAIN }];
const ROWS: &[Choice] = &[
    Choice { name: "f32", parts: &[part!("rows_f32")], bindings: &[(4, Read)], ..PLAIN },
    Choice { name: "f16", parts: &[part!("rows_f16")], bindings: &[(4, Read)], ..PLAIN },
    Choice { name: "q8", parts: &[part!("rows_q8")], bindings: &[(4, Read), (5, Read)], ..PLAIN },
    Choice {
        name: "ternary",
        parts: &[part!("rows_ternary")],
        bindings: &[(4, Read), (5, Read)],
        ..PLAIN
    },
    Choice {
        name: "ternary_block",
        parts: &[part!("rows_ternary_block")],
        bindings: &[(4, Read), (5, Read), (6, Read)],
        ..PLAIN
    },
];
const WEIGHTS: &[Choice] = &[
    Choice { name: "f32_any", parts: &[part!("weights_f32_any")], bindings: &[(4, Read)], ..PLAIN },
    Choice { name: "f16_any", parts: &[part!("weights_f16_any")], bindings: &[(4, Read)], ..PLAIN },
    Choice { name: "f32", parts: &[part!("weights_f32")], bindings: &[(4, Read)], ..PLAIN },
    Choice { name: "f16", parts: &[part!("weights_f16")], bindings: &[(4, Read)], ..PLAIN },
    Choice {
        name: "q8",
        parts: &[part!("weights_q8")],
        bindings: &[(4, Read), (5, Read)],
        ..PLAIN
    },
    Choice {
        name: "ternary",
        parts: &[part!("weights_ternary")],
        bindings: &[(4, Read), (5, Read)],
        ..PLAIN
    },
    Choice {
        name: "ternary_block",
        parts: &[part!("weights_ternary_block")],
        bindings: &[(4, Read), (5, Read), (6, Read)],
        ..PLAIN
    },
];
const KV: &[Choice] = &[
    Choice { name: "f32", parts: &[part!("kv_f32")], bindings: &[(4, Write), (5, Write)], ..PLAIN },
    Choice { name: "f16", parts: &[part!("kv_f16")], bindings: &[(4, Write), (5, Write)], ..PLAIN },
    Choice {
        name: "q8",
        parts: &[part!("int8"), part!("kv_q8")],
        bindings: &[(4, Write), (5, Write)],
        ..PLAIN
    },
];
/// What a step's attention finds in the cache: everything, or all but the new position.
const QUERY: &[Choice] = &[
    Choice { name: "plain", parts: &[part!("query_plain")], ..PLAIN },
    Choice {
        name: "append",
        parts: &[part!("head_plain"), part!("query_append")],
        bindings: &[(6, Read)],
        overrides: &["PAIRS", "INTERLEAVED"],
        ..PLAIN
    },
    Choice {
        name: "norm_append",
        parts: &[part!("head_norm"), part!("query_append")],
        bindings: &[(6, Read), (7, Read), (8, Read)],
        overrides: &["PAIRS", "INTERLEAVED"],
        ..PLAIN
    },
];
const ACTS_I8: &[(u32, Access)] = &[(4, Read), (5, Read), (6, Read)];

/// int8 activations of a matrix-vector product: from an earlier dispatch, or made on the spot.
const ACTS: &[Choice] = &[
    Choice { name: "i8", parts: &[part!("acts_i8")], bindings: ACTS_I8, ..PLAIN },
    Choice {
        name: "own_row",
        parts: &[part!("int8"), part!("norm_none"), part!("acts_own_row")],
        bindings: &[(4, Read)],
        overrides: &["ACT_SLOTS"],
        ..PLAIN
    },
    Choice {
        name: "norm_row",
        parts: &[part!("int8"), part!("norm_some"), part!("acts_own_row")],
        bindings: &[(4, Read), (5, Read)],
        overrides: &["ACT_SLOTS"],
        ..PLAIN
    },
    Choice {
        name: "own_group",
        parts: &[
            part!("f16_round"),
            part!("int8"),
            part!("peak"),
            part!("norm_none"),
            part!("acts_own_group"),
        ],
        bindings: &[(4, Read)],
        overrides: &["ACT_SLOTS"],
        ..PLAIN
    },
    Choice {
        name: "norm_group",
        parts: &[
            part!("f16_round"),
            part!("int8"),
            part!("peak"),
            part!("norm_some"),
            part!("acts_own_group"),
        ],
        bindings: &[(4, Read), (5, Read)],
        overrides: &["ACT_SLOTS"],
        ..PLAIN
    },
];
const BY_ROW: &[&str] = &["i8", "own_row", "norm_row"];
const BY_GROUP: &[&str] = &["i8", "own_group", "norm_group"];
/// Sums of the ternary product: the name says how activations and weights are scaled.
const SUM: &[Choice] = &[
    Choice {
        name: "row",
        parts: &[part!("sum_row"), part!("block_none")],
        only_with: BY_ROW,
        ..PLAIN
    },
    Choice {
        name: "group",
        parts: &[part!("sum_group"), part!("block_none")],
        overrides: &["ACT_SHIFT"],
        only_with: BY_GROUP,
        ..PLAIN
    },
    Choice {
        name: "block",
        parts: &[part!("sum_group"), part!("block_f16")],
        bindings: &[(7, Read)],
        overrides: &["ACT_SHIFT", "BLOCK_SHIFT"],
        only_with: BY_GROUP,
        ..PLAIN
    },
];
const TILE_SUM: &[Choice] = &[
    Choice { name: "row", parts: &[part!("tile_row"), part!("block_none")], ..PLAIN },
    Choice {
        name: "group",
        parts: &[part!("tile_group"), part!("block_none")],
        overrides: &["ACT_SHIFT"],
        ..PLAIN
    },
    Choice {
        name: "block",
        parts: &[part!("tile_group"), part!("block_f16")],
        bindings: &[(7, Read)],
        overrides: &["ACT_SHIFT", "BLOCK_SHIFT"],
        ..PLAIN
    },
];

/// All kernels.
pub static KERNELS: &[Kernel] = &[
    kernel!("embed", Embed, STEP, &[STEP_AT, (2, Read), (3, Write)], &[], &[ROWS]),
    kernel!(
        "rms_norm",
        RmsNorm,
        STEP,
        &[STEP_AT, (2, Read)],
        &[],
        &[
            REDUCE,
            &[
                Choice {
                    name: "separate",
                    parts: &[part!("io_separate")],
                    bindings: &[(3, Read), (4, Write)],
                    ..PLAIN
                },
                Choice {
                    name: "inplace",
                    parts: &[part!("io_inplace")],
                    bindings: &[(3, Write)],
                    ..PLAIN
                },
            ]
        ]
    ),
    kernel!(
        "quantize",
        Quantize,
        &[part!("step"), part!("f16_round"), part!("int8"), part!("peak")],
        &[STEP_AT, (2, Read), (3, Write), (4, Write), (5, Write)],
        &["RULE", "HALVES"],
        &[
            REDUCE,
            &[
                Choice { name: "plain", parts: &[part!("source_plain")], ..PLAIN },
                Choice {
                    name: "norm",
                    parts: &[part!("source_norm")],
                    bindings: &[(6, Read)],
                    ..PLAIN
                },
            ]
        ]
    ),
    kernel!(
        "ternary_gemv",
        TernaryGemv,
        STEP_EXP,
        &[STEP_AT, (2, Read), (3, Read), (8, Write)],
        &["BLOCKS", "LANES", "ROWS", "AHEAD", "EPILOGUE"],
        &[REDUCE, DOT4, ACTS, SUM]
    ),
    kernel!(
        "ternary_gemm",
        TernaryGemm,
        &[part!("step"), part!("acts_i8")],
        &[STEP_AT, (2, Read), (3, Read), (4, Read), (5, Read), (6, Read), (8, Write)],
        &["BLOCKS", "EPILOGUE"],
        &[DOT4, TILE_SUM]
    ),
    #[cfg(not(target_arch = "wasm32"))]
    kernel!(
        "ternary_gemm_matrix",
        TernaryGemmMatrix,
        STEP_EXP,
        &[STEP_AT, (2, Read), (3, Read), (4, Read), (5, Read), (8, Write)],
        &["BLOCKS", "EPILOGUE"],
        &[MATRICES]
    ),
    kernel!(
        "dense_gemv",
        DenseGemv,
        STEP,
        &[STEP_AT, (2, Read), (3, Write)],
        &["LANES", "ROWS"],
        &[REDUCE, WEIGHTS]
    ),
    kernel!("dense_gemm", DenseGemm, STEP, &[STEP_AT, (2, Read), (3, Write)], &[], &[WEIGHTS]),
    kernel!("rope", Rope, STEP, &[STEP_AT, (2, Read), (3, Write)], &[], &[]),
    kernel!("kv_append", KvAppend, STEP_ROUND, &[STEP_AT, (2, Read), (3, Read)], &[], &[KV]),
    kernel!(
        "attention_decode",
        AttentionDecode,
        STEP_ROUND_EXP,
        &[STEP_AT, (2, Read), (3, Write)],
        &["QUADS", "LANES", "GROUPS", "ROUNDS"],
        &[REDUCE, KV, QUERY]
    ),
    kernel!(
        "attention_combine",
        AttentionCombine,
        STEP_EXP,
        &[STEP_AT, (2, Read), (3, Write)],
        &[],
        &[]
    ),
    kernel!(
        "attention_prefill",
        AttentionPrefill,
        STEP_ROUND_EXP,
        &[STEP_AT, (2, Read), (3, Write)],
        &["QUADS"],
        &[KV]
    ),
    #[cfg(not(target_arch = "wasm32"))]
    kernel!(
        "attention_prefill_matrix",
        AttentionPrefill,
        STEP,
        &[STEP_AT, (2, Read), (3, Write), (4, Read), (5, Read)],
        &["QUADS"],
        &[MATRICES]
    ),
    kernel!(
        "gated_act",
        GatedAct,
        STEP_EXP,
        &[STEP_AT, (2, Read), (3, Read), (4, Write)],
        &[],
        &[]
    ),
    kernel!("add", Add, STEP, &[STEP_AT, (2, Read), (3, Write)], &[], &[]),
    kernel!("take_outputs", TakeOutputs, STEP, &[STEP_AT, (2, Read), (3, Write)], &[], &[]),
    kernel!("argmax", Argmax, STEP, &[STEP_AT, (2, Read), (3, Write)], &[], &[]),
    kernel!(
        "cross_entropy",
        CrossEntropy,
        &[part!("exp")],
        &[(2, Read), (3, Read), (4, Write)],
        &[],
        &[REDUCE]
    ),
    kernel!(
        "draw",
        Draw,
        &[],
        &[(0, Write), (3, Write), (4, Write)],
        &[],
        &[
            REDUCE,
            &[
                Choice {
                    name: "greedy",
                    parts: &[part!("pick_greedy")],
                    bindings: &[(2, Read)],
                    ..PLAIN
                },
                Choice {
                    name: "sampled",
                    parts: &[part!("pick_sampled")],
                    bindings: &[(2, Read), (5, Write), (6, Write)],
                    ..PLAIN
                },
            ]
        ]
    ),
];

/// A kernel with a choice on each axis.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Index of the choice on each axis; unused places are 0.
    choice: [u8; 4],
}

impl PartialEq for Variant {
    fn eq(&self, other: &Self) -> bool {
        self.kernel.stem == other.kernel.stem && self.choice == other.choice
    }
}
impl Eq for Variant {}
impl std::hash::Hash for Variant {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.kernel.stem, self.choice).hash(state);
    }
}

/// All variants of all kernels.
pub fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for kernel in KERNELS {
        let mut some = vec![Variant { kernel, choice: [0; 4] }];
        for (axis, choices) in kernel.axes.iter().enumerate() {
            some = some
                .iter()
                .flat_map(|v| {
                    let earlier: Vec<_> = v.choices().take(axis).map(|c| c.name).collect();
                    choices.iter().enumerate().filter_map(move |(i, c)| {
                        let fits = c.only_with.is_empty()
                            || c.only_with.iter().any(|n| earlier.contains(n));
                        let mut choice = v.choice;
                        choice[axis] = i as u8;
                        fits.then_some(Variant { kernel, choice })
                    })
                })
                .collect();
        }
        all.extend(some);
    }
    all
}

/// The variant of `stem` with the named choice on each axis. A name that is not in the table is a
/// bug of the caller, found by the tests that compile every op.
pub fn variant(stem: &str, names: &[&str]) -> Option<Variant> {
    let kernel = KERNELS.iter().find(|k| k.stem == stem)?;
    let mut choice = [0; 4];
    if names.len() != kernel.axes.len() {
        return None;
    }
    for ((slot, axis), name) in choice.iter_mut().zip(kernel.axes).zip(names) {
        *slot = axis.iter().position(|c| c.name == *name)? as u8;
    }
    Some(Variant { kernel, choice })
}

/// As [`variant`], for those that run it.
pub(super) fn required(stem: &str, names: &[&str]) -> Result<Variant, BackendError> {
    variant(stem, names).ok_or_else(|| BackendError::Unsupported {
        reason: format!("there is no kernel {stem} {names:?}"),
    })
}

impl Variant {
    /// The choices, one an axis.
    pub fn choices(&self) -> impl Iterator<Item = &'static Choice> + use<> {
        let choice = self.choice;
        self.kernel.axes.iter().zip(choice).map(|(axis, i)| &axis[usize::from(i)])
    }

    /// Stem and choices, such as `ternary_gemv.subgroup.builtin.norm_row.row`.
    pub fn name(&self) -> String {
        let mut name = self.kernel.stem.to_string();
        for choice in self.choices() {
            name.push('.');
            name.push_str(choice.name);
        }
        name
    }

    /// Bindings in order, `Params` included.
    pub fn bindings(&self) -> Vec<(u32, Access)> {
        let mut all = vec![(1, Uniform)];
        all.extend(self.kernel.bindings);
        all.extend(self.choices().flat_map(|c| c.bindings));
        all.sort_by_key(|b| b.0);
        all
    }

    /// Names of the overrides that the module declares. `ACT_SLOTS`, `GROUPS` and `ROUNDS` follow
    /// from others.
    pub fn overrides(&self) -> Vec<&'static str> {
        let mut all = self.kernel.overrides.to_vec();
        all.extend(self.choices().flat_map(|c| c.overrides));
        all
    }

    /// What the device must have.
    pub fn needs(&self, need: Need) -> bool {
        self.choices().any(|c| c.need == need)
    }

    /// The whole text. `web`: with the directives that browsers demand and naga rejects.
    pub fn source(&self, web: bool) -> String {
        let mut text = String::new();
        if self.needs(Need::Matrices) {
            text.push_str("enable f16;\nenable wgpu_cooperative_matrix;\n");
        }
        if web && self.needs(Need::Subgroups) {
            text.push_str("enable subgroups;\ndiagnostic(off, subgroup_uniformity);\n");
        }
        for part in self.kernel.parts.iter().chain(self.choices().flat_map(|c| c.parts)) {
            text.push_str(part.source);
        }
        text.push_str(self.kernel.source);
        text
    }
}
