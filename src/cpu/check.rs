//! Checks of a plan before it runs: what [`crate::plan`] promises holds, so that no kernel can meet
//! a shape it does not expect.

use crate::backend::{BackendError, RunOptions};
use crate::plan::{BufId, BufKind, Op, Plan, Rows, Slice, WeightId, WeightKind};

/// What is wrong, in words.
type Check<T = ()> = Result<T, String>;

/// Checks `plan` against the kinds of the allocated weights.
pub(super) fn check(
    plan: &Plan,
    weights: &[WeightKind],
    options: RunOptions,
) -> Result<(), BackendError> {
    let whole = || -> Check {
        require(options.context > 0 && options.max_tokens > 0, || {
            "context and max_tokens must be at least 1".into()
        })?;
        require(plan.labels.len() == plan.ops.len(), || "as many labels as operations".into())?;
        require(plan.weights.len() == weights.len(), || {
            format!("the plan has {} weights, allocated are {}", plan.weights.len(), weights.len())
        })?;
        for (spec, kind) in plan.weights.iter().zip(weights) {
            require(spec.kind == *kind, || {
                format!("{} is {:?}, allocated is {kind:?}", spec.name, spec.kind)
            })?;
        }
        let heads = plan.kv.kv_heads;
        require(plan.vocab > 0, || "the vocabulary is empty".into())?;
        let elems = u64::from(heads) * u64::from(plan.kv.head_dim);
        require(u32::try_from(elems).is_ok(), || format!("a cache row of {elems} values"))?;
        let logits = floats(plan, plan.logits)?;
        require(logits.dim == plan.vocab && rows(plan, plan.logits) == Rows::Outputs, || {
            "logits must be [R, V]".into()
        })
    };
    whole().map_err(|reason| BackendError::InvalidCall { reason })?;
    for (i, op) in plan.ops.iter().enumerate() {
        check_op(plan, op).map_err(|reason| BackendError::InvalidCall {
            reason: format!("operation {i} ({}): {reason}", plan.labels[i]),
        })?;
    }
    Ok(())
}

fn require(ok: bool, reason: impl FnOnce() -> String) -> Check {
    if ok { Ok(()) } else { Err(reason()) }
}

fn check_op(plan: &Plan, op: &Op) -> Check {
    match op {
        Op::Embed { table, out } => {
            let (n, k) = matrix(plan, *table)?;
            require(n >= plan.vocab, || format!("a table of {n} rows for {} ids", plan.vocab))?;
            same_dim(k, floats(plan, *out)?.dim)?;
            tokens(plan, *out)
        }
        Op::RmsNorm { x, weight, out, .. } => {
            same_dim(slice(plan, *x)?.dim, slice(plan, *out)?.dim)?;
            let len = vector(plan, *weight)?;
            multiple(x.dim, len)?;
            same_rows(plan, x.buf, out.buf)
        }
        Op::Quantize { x, out } => {
            slice(plan, *x)?;
            let spec = plan.buffers.get(out.0 as usize).ok_or("no such buffer")?;
            require(matches!(spec.kind, BufKind::Quant(_)), || "out must be quantised".into())?;
            same_dim(x.dim, spec.dim)?;
            same_rows(plan, x.buf, *out)
        }
        Op::TernaryLinear { x, weight, out } => {
            let WeightKind::Ternary { n, k, .. } = weight_kind(plan, *weight)? else {
                return Err("the weight must be ternary".into());
            };
            let spec = plan.buffers.get(x.0 as usize).ok_or("no such buffer")?;
            same_dim(k, spec.dim)?;
            same_dim(n, slice(plan, *out)?.dim)?;
            require(k > 0, || "an empty row".into())?;
            same_rows(plan, *x, out.buf)
        }
        Op::DenseLinear { x, weight, out } => {
            let WeightKind::Matrix { n, k, .. } = weight_kind(plan, *weight)? else {
                return Err("the weight must be dense".into());
            };
            matrix(plan, *weight)?;
            same_dim(k, floats(plan, *x)?.dim)?;
            same_dim(n, slice(plan, *out)?.dim)?;
            same_rows(plan, *x, out.buf)
        }
        Op::Rope { x, head_dim } => {
            multiple(slice(plan, *x)?.dim, *head_dim)?;
            let turned = plan.rope.inv_freq.len() * 2;
            require(turned <= *head_dim as usize, || {
                format!("{turned} rotary dimensions in a head of {head_dim}")
            })?;
            tokens(plan, x.buf)
        }
        Op::KvAppend { k, v, layer } => {
            let dim = plan.kv.kv_heads * plan.kv.head_dim;
            same_dim(slice(plan, *k)?.dim, dim)?;
            same_dim(slice(plan, *v)?.dim, dim)?;
            layer_exists(plan, *layer)?;
            tokens(plan, k.buf)?;
            tokens(plan, v.buf)
        }
        Op::Attention { q, layer, heads, out, .. } => {
            layer_exists(plan, *layer)?;
            multiple(*heads, plan.kv.kv_heads)?;
            let dim = u64::from(*heads) * u64::from(plan.kv.head_dim);
            require(dim > 0 && u64::from(slice(plan, *q)?.dim) == dim, || {
                format!("q of {} values for {heads} heads of {}", q.dim, plan.kv.head_dim)
            })?;
            same_dim(q.dim, slice(plan, *out)?.dim)?;
            tokens(plan, q.buf)?;
            tokens(plan, out.buf)
        }
        Op::GatedAct { gate, up, out, .. } => {
            same_dim(slice(plan, *gate)?.dim, slice(plan, *up)?.dim)?;
            same_dim(gate.dim, slice(plan, *out)?.dim)?;
            same_rows(plan, gate.buf, up.buf)?;
            same_rows(plan, gate.buf, out.buf)
        }
        Op::Add { x, y } => {
            same_dim(floats(plan, *x)?.dim, floats(plan, *y)?.dim)?;
            same_rows(plan, *x, *y)
        }
        Op::TakeOutputs { x, out } => {
            same_dim(floats(plan, *x)?.dim, floats(plan, *out)?.dim)?;
            tokens(plan, *x)?;
            require(rows(plan, *out) == Rows::Outputs, || "out must hold outputs".into())
        }
    }
}

/// All of an f32 buffer.
fn floats(plan: &Plan, id: BufId) -> Check<Slice> {
    let spec = plan.buffers.get(id.0 as usize).ok_or("no such buffer")?;
    require(spec.kind == BufKind::F32, || format!("{} must be f32", spec.name))?;
    Ok(plan.whole(id))
}

fn slice(plan: &Plan, s: Slice) -> Check<Slice> {
    let whole = floats(plan, s.buf)?;
    let end = s.at.checked_add(s.dim);
    require(end.is_some_and(|end| end <= whole.dim), || {
        format!("{} values at {} of a row of {}", s.dim, s.at, whole.dim)
    })?;
    Ok(s)
}

/// Only after the buffer was seen to exist.
fn rows(plan: &Plan, id: BufId) -> Rows {
    plan.buffer(id).rows
}

fn tokens(plan: &Plan, id: BufId) -> Check {
    require(rows(plan, id) == Rows::Tokens, || format!("{} must hold tokens", plan.buffer(id).name))
}

fn same_rows(plan: &Plan, a: BufId, b: BufId) -> Check {
    require(rows(plan, a) == rows(plan, b), || {
        format!("{} and {} hold different rows", plan.buffer(a).name, plan.buffer(b).name)
    })
}

fn same_dim(a: u32, b: u32) -> Check {
    require(a == b, || format!("{a} features meet {b}"))
}

fn multiple(n: u32, of: u32) -> Check {
    require(of > 0 && n.is_multiple_of(of), || format!("{n} is not a multiple of {of}"))
}

fn layer_exists(plan: &Plan, layer: u32) -> Check {
    require(layer < plan.kv.layers, || format!("layer {layer} of {}", plan.kv.layers))
}

fn weight_kind(plan: &Plan, id: WeightId) -> Check<WeightKind> {
    Ok(plan.weights.get(id.0 as usize).ok_or("no such weight")?.kind)
}

fn vector(plan: &Plan, id: WeightId) -> Check<u32> {
    match weight_kind(plan, id)? {
        WeightKind::Vector { len } => Ok(len),
        other => Err(format!("{other:?} must be a vector")),
    }
}

fn matrix(plan: &Plan, id: WeightId) -> Check<(u32, u32)> {
    use crate::plan::MatrixType::Q8;
    match weight_kind(plan, id)? {
        WeightKind::Vector { .. } => Err("a vector must be a matrix".into()),
        WeightKind::Matrix { k, dtype: Q8, .. } if k % 32 != 0 => {
            Err(format!("int8 rows of {k}, not a multiple of 32"))
        }
        kind => Ok(kind.shape()),
    }
}
