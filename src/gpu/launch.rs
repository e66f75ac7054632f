//! What one dispatch needs, before there are buffers: variant, overrides, parameters, bindings, grid.

use super::kernels::Variant;
use super::pipelines::Overrides;
use crate::plan::{BufId, WeightId, WeightPart};

/// A plane of an activation buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plane {
    /// f32, or int8 packed in words.
    Values,
    /// Multipliers of the groups.
    Scales,
    /// Sums of the int8 values.
    Sums,
}

/// What a binding points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bind {
    /// Of an activation buffer.
    Buf(BufId, Plane),
    /// Of a shard of a weight.
    Weight(WeightId, usize, WeightPart),
    /// Keys of a layer.
    Keys(u32),
    /// Values of a layer.
    Values(u32),
    /// The state that changes from step to step.
    Step,
    /// Token ids by position.
    Tokens,
    /// Cosines and sines.
    Rope,
    /// Partial results of split attention.
    Partial,
}

/// Workgroups along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// A number.
    Of(u32),
    /// Tokens or outputs of the step, by the rows of a buffer, over a tile.
    Rows {
        /// Outputs instead of tokens.
        outputs: bool,
        /// Rows a workgroup.
        tile: u32,
    },
    /// Splits of the context.
    Splits,
}

/// Which steps a dispatch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// All.
    Always,
    /// Those whose context is not split.
    Whole,
    /// Those whose context is split.
    Split,
    /// Those that want one row of logits.
    OneOutput,
    /// Those that want more.
    ManyOutputs,
}

/// A dispatch.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub variant: Variant,
    /// Its overrides: exactly the declared ones.
    pub overrides: Overrides,
    /// Its `Params`.
    pub params: Vec<u8>,
    /// Its storage bindings and `Step`.
    pub binds: Vec<(u32, Bind)>,
    /// Its workgroups.
    pub grid: [Extent; 3],
    /// When it runs.
    pub when: When,
    /// Index of its operation in the plan.
    pub op: usize,
    /// Multiply-adds a row, to bound the work of a submit.
    pub work: u64,
}
