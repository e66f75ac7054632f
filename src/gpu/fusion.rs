//! Which neighbouring operations of a plan run as one dispatch.
//!
//! Fusion only joins what the plan writes side by side, and only drops a buffer that nothing else
//! reads; everything else runs as it stands. The result is a list of [`Node`]s that point back into
//! the plan, so that labels, shapes and weights stay where they are.

use crate::plan::{ActQuant, BufId, BufKind, Op, Plan, WeightKind};

/// One or more operations of the plan (by index) that run together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// One operation.
    Op(usize),
    /// `RmsNorm`, `Quantize`: the normalised row is never stored.
    NormQuantize {
        /// The norm.
        norm: usize,
        /// The rounding.
        quantize: usize,
    },
    /// `Rope` of the queries, `Rope` of the keys, `KvAppend`, `Attention`.
    AppendAttention {
        /// `RmsNorm` of each head of the queries, and of the keys, before.
        norms: Option<(usize, usize)>,
        /// The append.
        append: usize,
        /// The attention.
        attention: usize,
    },
    /// `TernaryLinear` with what stands before and behind it.
    Linear {
        /// The rounding, done by every workgroup for itself.
        input: Option<Input>,
        /// The product.
        linear: usize,
        /// What becomes of its output.
        then: Then,
    },
}

/// What a fused product makes of its input first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// The norm, if there is one.
    pub norm: Option<usize>,
    /// The rounding.
    pub quantize: usize,
}

/// What a fused product does with its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Writes it.
    Store,
    /// Adds it to the residual: the `Add` at this index.
    Add(usize),
    /// Rows n and n + N/2 go through the `GatedAct` at this index.
    Gated(usize),
}

/// What the device and the step allow.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// One token a step: norms go into the product.
    pub decode: bool,
    /// Bytes of a quantised row that a workgroup can keep in its memory.
    pub row_max: u32,
}

/// The nodes of an unfused run.
pub fn unfused(plan: &Plan) -> Vec<Node> {
    (0..plan.ops.len()).map(Node::Op).collect()
}

/// Joins what can be joined; `gates` says which products can have rows n and n + N/2 in one place.
pub fn fuse(plan: &Plan, rules: Rules, gates: impl Fn(usize) -> bool) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut i = 0;
    while i < plan.ops.len() {
        let norms = head_norms(plan, i);
        let ropes = norms.map_or(i, |n| n.1 + 1);
        if rules.decode && ropes_fold(plan, ropes) {
            nodes.push(Node::AppendAttention { norms, append: ropes + 2, attention: ropes + 3 });
            i = ropes + 4;
            continue;
        }
        let quantize = norm_quantize(plan, i);
        let is_plain = matches!(plan.ops[i], Op::Quantize { .. });
        let input = match quantize {
            Some(quantize) => Some(Input { norm: Some(i), quantize }),
            None if is_plain => Some(Input { norm: None, quantize: i }),
            None => None,
        };
        let prologue = input.filter(|&input| rules.decode && row_fits(plan, input, rules));
        if let (Some(q), None) = (quantize, prologue) {
            nodes.push(Node::NormQuantize { norm: i, quantize: q });
            i = q + 1;
            continue;
        }
        let linear = prologue.map_or(i, |input| input.quantize + 1);
        let product = matches!(plan.ops.get(linear), Some(Op::TernaryLinear { .. }));
        if !product {
            nodes.push(Node::Op(i));
            i += 1;
            continue;
        }
        let source = prologue.and_then(|_| reads(&plan.ops[i]).next());
        let then = follow_up(plan, linear, source, gates(linear));
        nodes.push(Node::Linear { input: prologue, linear, then });
        i = match then {
            Then::Store => linear + 1,
            Then::Add(j) | Then::Gated(j) => j + 1,
        };
    }
    nodes
}

/// Whether `Rope`, `Rope`, `KvAppend`, `Attention` from `i` on can be one dispatch: all read the same
/// rows, heads are whole runs of 32 (one scale of a Q8 cache), pairs come in fours, and nothing reads
/// what was turned afterwards.
fn ropes_fold(plan: &Plan, i: usize) -> bool {
    let Some(&[Op::Rope { x: a, .. }, Op::Rope { x: b, .. }, ref append, ref attention]) =
        plan.ops.get(i..i + 4).and_then(|ops| <&[Op; 4]>::try_from(ops).ok())
    else {
        return false;
    };
    let (&Op::KvAppend { k, v, layer }, &Op::Attention { q, layer: same, .. }) =
        (append, attention)
    else {
        return false;
    };
    let unread = |buf| {
        let touches = |op: &&Op| op.output() == Some(buf) || reads(op).any(|r| r == buf);
        let next = plan.ops[i + 4..].iter().find(touches);
        next.is_none_or(|op| !reads(op).any(|r| r == buf))
    };
    let one_row = q.buf == k.buf && q.buf == v.buf;
    let runs = plan.kv.head_dim.is_multiple_of(32) && plan.rope.inv_freq.len().is_multiple_of(4);
    (a, b, layer) == (q, k, same) && one_row && runs && unread(q.buf)
}

/// The `Quantize` behind the norm at `i`, when nothing else reads the normalised row.
fn norm_quantize(plan: &Plan, i: usize) -> Option<usize> {
    let Op::RmsNorm { x, weight, out, .. } = plan.ops[i] else { return None };
    let Op::Quantize { x: source, .. } = *plan.ops.get(i + 1)? else { return None };
    let whole_row = plan.weight(weight).kind == WeightKind::Vector { len: x.dim };
    (source == out && whole_row && x.buf != out.buf && only_reader(plan, i, out.buf, i + 1))
        .then_some(i + 1)
}

/// The norms of the heads of queries and keys, in place, at `i` and behind it, when ropes of the same
/// follow.
fn head_norms(plan: &Plan, i: usize) -> Option<(usize, usize)> {
    let &[
        Op::RmsNorm { x: a, weight: v, out: c, eps: e },
        Op::RmsNorm { x: b, weight: w, out: d, eps: f },
        Op::Rope { x: q, .. },
        Op::Rope { x: k, .. },
    ] = plan.ops.get(i..i + 4)?
    else {
        return None;
    };
    let head = WeightKind::Vector { len: plan.kv.head_dim };
    let each_head = plan.weight(v).kind == head && plan.weight(w).kind == head;
    // As many features as the kernel has room for.
    let fits = plan.kv.head_dim <= 256;
    ((a, b, c, d) == (q, k, q, k) && e == f && each_head && fits).then_some((i, i + 1))
}

/// Whether a rounding, and the norm before it, can move into the product behind them.
fn row_fits(plan: &Plan, input: Input, rules: Rules) -> bool {
    let q = input.quantize;
    let Op::Quantize { x: rounded, out } = plan.ops[q] else { return false };
    let x = match input.norm.map(|n| &plan.ops[n]) {
        Some(&Op::RmsNorm { x, .. }) => x,
        _ => rounded,
    };
    let Some(&Op::TernaryLinear { x: row, weight, .. }) = plan.ops.get(q + 1) else { return false };
    let BufKind::Quant(rule) = plan.buffer(out).kind else { return false };
    let block = match plan.weight(weight).kind {
        WeightKind::Ternary { block, .. } => block,
        _ => return false,
    };
    let (served, row_bytes) = match rule {
        ActQuant::PerToken => (block.is_none(), x.dim),
        // And a scale, a peak and a sum for each 16 values.
        ActQuant::Block256 | ActQuant::Block32 => (true, x.dim / 4 * 7),
    };
    row == out
        && served
        && x.at == 0
        && row_bytes <= rules.row_max
        && only_reader(plan, q, out, q + 1)
}

/// What can go into the product at `i`, whose fused input reads `source`.
fn follow_up(plan: &Plan, i: usize, source: Option<BufId>, gates: bool) -> Then {
    let Op::TernaryLinear { x, out, .. } = plan.ops[i] else { return Then::Store };
    let private = out == plan.whole(out.buf)
        && out.buf != plan.logits
        && only_reader(plan, i, out.buf, i + 1);
    if !private {
        return Then::Store;
    }
    match plan.ops.get(i + 1) {
        Some(Op::Add { x: to, y }) if *y == out.buf && *to != x && Some(*to) != source => {
            Then::Add(i + 1)
        }
        Some(Op::GatedAct { gate, up, out: to, .. })
            if gates
                && gate.buf == out.buf
                && up.buf == out.buf
                && (gate.at, up.at) == (0, gate.dim)
                && out.dim == 2 * gate.dim
                && to.buf != x
                && Some(to.buf) != source =>
        {
            Then::Gated(i + 1)
        }
        _ => Then::Store,
    }
}

/// The buffers that an operation reads.
pub fn reads(op: &Op) -> impl Iterator<Item = BufId> {
    let (a, b) = match *op {
        Op::Embed { .. } => (None, None),
        Op::RmsNorm { x, .. } | Op::Quantize { x, .. } | Op::Rope { x, .. } => (Some(x.buf), None),
        Op::TernaryLinear { x, .. } | Op::DenseLinear { x, .. } | Op::TakeOutputs { x, .. } => {
            (Some(x), None)
        }
        Op::KvAppend { k, v, .. } => (Some(k.buf), Some(v.buf)),
        Op::Attention { q, .. } => (Some(q.buf), None),
        Op::GatedAct { gate, up, .. } => (Some(gate.buf), Some(up.buf)),
        Op::Add { x, y } => (Some(x), Some(y)),
    };
    a.into_iter().chain(b)
}

/// Whether `reader` alone reads what the operation at `writer` leaves in `buf`.
fn only_reader(plan: &Plan, writer: usize, buf: BufId, reader: usize) -> bool {
    let mut seen = false;
    for (i, op) in plan.ops.iter().enumerate().skip(writer + 1) {
        if reads(op).any(|b| b == buf) {
            if i != reader {
                return false;
            }
            seen = true;
        } else if op.output() == Some(buf) {
            // Written anew; what follows reads something else.
            break;
        }
    }
    seen
}
