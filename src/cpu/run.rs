//! The interpreter: a prepared plan, its buffers and cache, and one step after another.

use super::check::check;
use super::kv_append::KvRows;
use super::matrix::Matrix;
use super::quantize::QuantRows;
use super::rows::{RowsMut, RowsRef};
use super::threads::Threads;
use super::weights::Weight;
use super::{add, embed, kernels, kv_append, rope, take_outputs};
use crate::backend::{BackendError, RunOptions, Step};
use crate::plan::{ActQuant, BufId, BufKind, Op, Plan, Rows, Slice, WeightId, WeightKind};
use kernels::Isa;
use std::ops::Range;

/// What a step needs besides the program.
#[derive(Clone, Copy)]
pub(super) struct Machine<'a> {
    pub isa: Isa,
    pub threads: &'a Threads,
    pub weights: &'a [Weight],
}

/// Contents of a plan's buffer.
enum Buffer {
    F32(Vec<f32>),
    Quant(QuantRows),
}

/// A prepared plan.
pub(super) struct Program {
    pub plan: Plan,
    pub options: RunOptions,
    /// Positions the cache holds.
    pub cached: u32,
    buffers: Vec<Buffer>,
    /// Keys and values of each layer.
    cache: Vec<[KvRows; 2]>,
    /// Cosines and sines of the step's tokens, `[T, rope_dim / 2]`.
    angles: Vec<(f32, f32)>,
    tokens: usize,
    outputs: usize,
    pos: usize,
}

impl Program {
    /// `weights`: what was allocated, here and elsewhere.
    pub fn new(
        plan: &Plan,
        weights: &[WeightKind],
        options: RunOptions,
    ) -> Result<Self, BackendError> {
        check(plan, weights, options)?;
        let buffers = plan.buffers.iter().map(|spec| match spec.kind {
            BufKind::F32 => Buffer::F32(Vec::new()),
            BufKind::Quant(rule) => Buffer::Quant(QuantRows::new(rule, spec.dim as usize)),
        });
        let dim = plan.kv.kv_heads as usize * plan.kv.head_dim as usize;
        let layer = || [(); 2].map(|()| KvRows::new(options.kv_type, dim));
        Ok(Program {
            plan: plan.clone(),
            options,
            cached: 0,
            buffers: buffers.collect(),
            cache: (0..plan.kv.layers).map(|_| layer()).collect(),
            angles: Vec::new(),
            tokens: 0,
            outputs: 0,
            pos: 0,
        })
    }

    /// Bytes allocated for cache and buffers.
    pub fn bytes(&self) -> u64 {
        let buffers = self.buffers.iter().map(|b| match b {
            Buffer::F32(v) => v.capacity() * 4,
            Buffer::Quant(rows) => rows.bytes(),
        });
        let cache = self.cache.iter().flatten().map(KvRows::bytes);
        let angles = self.angles.capacity() * size_of::<(f32, f32)>();
        buffers.chain(cache).chain([angles]).map(|b| b as u64).sum()
    }

    /// The logits of the last step.
    pub fn logits(&self) -> &[f32] {
        match &self.buffers[self.plan.logits.0 as usize] {
            Buffer::F32(v) => &v[..self.outputs * self.plan.vocab as usize],
            Buffer::Quant(_) => &[],
        }
    }

    /// Checks a step and makes room for it.
    pub fn begin(&mut self, step: &Step<'_>) -> Result<(), BackendError> {
        let invalid = |reason: String| Err(BackendError::InvalidCall { reason });
        let (n, max) = (step.tokens.len(), self.options.max_tokens as usize);
        if n == 0 || n > max {
            return invalid(format!("a step of {n} tokens, not 1 to {max}"));
        }
        if let Some(id) = step.tokens.iter().find(|&&id| id >= self.plan.vocab) {
            return invalid(format!("token id {id} of a vocabulary of {}", self.plan.vocab));
        }
        if step.pos > self.cached {
            return invalid(format!("position {} of {} in the cache", step.pos, self.cached));
        }
        let end = u64::from(step.pos) + n as u64;
        if end > u64::from(self.options.context) {
            return invalid(format!("{end} positions in a context of {}", self.options.context));
        }
        (self.tokens, self.outputs, self.pos) = (n, step.outputs.rows(n), step.pos as usize);
        // Whatever happens from here on, positions past `pos` are no longer what they were.
        self.cached = step.pos;
        self.make_room(end as usize)?;
        self.angles.clear();
        let turns = self.plan.ops.iter().any(|op| matches!(op, Op::Rope { .. }));
        for t in (step.pos..end as u32).filter(|_| turns) {
            self.angles.extend(rope::angles(&self.plan.rope, t));
        }
        Ok(())
    }

    fn make_room(&mut self, positions: usize) -> Result<(), BackendError> {
        let out_of_memory = |what: &str, bytes: usize| BackendError::OutOfMemory {
            what: what.into(),
            bytes: bytes as u64,
        };
        // The context is a promise of the caller's, not a size to allocate at once.
        for rows in self.cache.iter_mut().flatten() {
            rows.grow(positions, self.options.context as usize)
                .map_err(|_| out_of_memory("the KV cache", rows.bytes()))?;
        }
        for (buffer, spec) in self.buffers.iter_mut().zip(&self.plan.buffers) {
            let rows = match spec.rows {
                Rows::Tokens => self.tokens,
                Rows::Outputs => self.outputs,
            };
            match buffer {
                Buffer::F32(v) => {
                    let len = rows
                        .checked_mul(spec.dim as usize)
                        .ok_or_else(|| out_of_memory(spec.name, usize::MAX))?;
                    if len > v.len() {
                        v.try_reserve_exact(len - v.len())
                            .map_err(|_| out_of_memory(spec.name, len.saturating_mul(4)))?;
                        v.resize(len, 0.0);
                    }
                }
                Buffer::Quant(q) => {
                    q.resize(rows).map_err(|_| out_of_memory(spec.name, q.bytes()))?;
                }
            }
        }
        Ok(())
    }

    /// Runs operation `i` of the step that was begun.
    pub fn run(&mut self, m: Machine<'_>, ids: &[u32], i: usize) -> Result<(), BackendError> {
        let ops = std::mem::take(&mut self.plan.ops);
        let result = self.run_op(m, &ops[i], ids);
        self.plan.ops = ops;
        result
    }

    /// To be called when all operations have run.
    pub fn end(&mut self) {
        self.cached = (self.pos + self.tokens) as u32;
    }

    /// The values operation `i` wrote, multiplied out; `None` when it wrote to the cache.
    pub fn output(&self, i: usize) -> Option<Vec<f32>> {
        let out = match self.plan.ops[i] {
            Op::KvAppend { .. } => return None,
            Op::Embed { out, .. } | Op::Quantize { out, .. } | Op::TakeOutputs { out, .. } => {
                self.plan.whole(out)
            }
            Op::RmsNorm { out, .. }
            | Op::TernaryLinear { out, .. }
            | Op::DenseLinear { out, .. }
            | Op::Attention { out, .. }
            | Op::GatedAct { out, .. } => out,
            Op::Rope { x, .. } => x,
            Op::Add { x, .. } => self.plan.whole(x),
        };
        let rows = self.rows_of(out.buf);
        Some(match &self.buffers[out.buf.0 as usize] {
            Buffer::F32(_) => {
                let x = self.read(out);
                (0..rows).flat_map(|r| x.row(r).iter().copied()).collect()
            }
            Buffer::Quant(q) => (0..rows).flat_map(|r| q.dequantize(r)).collect(),
        })
    }

    /// Rows of a buffer in the step that was begun.
    pub fn rows_of(&self, id: BufId) -> usize {
        match self.plan.buffer(id).rows {
            Rows::Tokens => self.tokens,
            Rows::Outputs => self.outputs,
        }
    }

    /// A slice of an f32 buffer.
    fn read(&self, s: Slice) -> RowsRef<'_> {
        let data: &[f32] = match &self.buffers[s.buf.0 as usize] {
            Buffer::F32(v) => v,
            Buffer::Quant(_) => &[],
        };
        RowsRef::new(data, self.plan.buffer(s.buf).dim as usize, s, self.rows_of(s.buf))
    }

    /// Some rows of the input of a product as bytes, with their rule if they are quantised.
    pub fn activations(&self, x: BufId, rows: Range<usize>) -> (Option<ActQuant>, [&[u8]; 2]) {
        match &self.buffers[x.0 as usize] {
            Buffer::Quant(q) => (Some(q.rule), q.bytes_of(rows)),
            Buffer::F32(v) => {
                let dim = self.plan.buffer(x).dim as usize;
                let v = &v[rows.start * dim..rows.end * dim];
                (None, [bytemuck::cast_slice(v), &[]])
            }
        }
    }

    /// Writes `values` to row `r` of `out`, from its column `at` on.
    pub fn place(&mut self, out: Slice, r: usize, at: usize, values: &[f32]) {
        let stride = self.plan.buffer(out.buf).dim as usize;
        if let Buffer::F32(v) = &mut self.buffers[out.buf.0 as usize] {
            v[r * stride + out.at as usize + at..][..values.len()].copy_from_slice(values);
        }
    }

    /// A slice that is read while `out` is written: a copy when both are in one buffer.
    fn copy_if_shared(&self, s: Slice, out: BufId) -> Option<Vec<f32>> {
        (s.buf == out).then(|| {
            let x = self.read(s);
            (0..x.rows).flat_map(|r| x.row(r).iter().copied()).collect()
        })
    }

    /// What [`Program::copy_if_shared`] copied, or the buffer itself.
    fn input<'a>(&'a self, s: Slice, copy: Option<&'a [f32]>) -> RowsRef<'a> {
        match copy {
            Some(data) => {
                let at_start = Slice { at: 0, ..s };
                RowsRef::new(data, s.dim as usize, at_start, self.rows_of(s.buf))
            }
            None => self.read(s),
        }
    }

    /// Lends `f` the slice `out` to write, and what it reads from `inputs`.
    fn write<const I: usize>(
        &mut self,
        inputs: [Slice; I],
        out: Slice,
        f: impl FnOnce(&Self, [RowsRef<'_>; I], &RowsMut<'_>),
    ) {
        let copies = inputs.map(|s| self.copy_if_shared(s, out.buf));
        let mut buffer = match &mut self.buffers[out.buf.0 as usize] {
            Buffer::F32(v) => std::mem::take(v),
            Buffer::Quant(_) => return,
        };
        let (stride, rows) = (self.plan.buffer(out.buf).dim as usize, self.rows_of(out.buf));
        let mut i = 0;
        let inputs = inputs.map(|s| {
            i += 1;
            self.input(s, copies[i - 1].as_deref())
        });
        f(self, inputs, &RowsMut::new(&mut buffer, stride, out, rows));
        self.buffers[out.buf.0 as usize] = Buffer::F32(buffer);
    }

    fn run_op(&mut self, m: Machine<'_>, op: &Op, ids: &[u32]) -> Result<(), BackendError> {
        let weight = |id: WeightId| &m.weights[id.0 as usize];
        let wrong_kind = || BackendError::InvalidCall { reason: format!("{}: weight", op.stem()) };
        match *op {
            Op::Embed { table, out } => {
                let table = weight(table);
                let held = table.kind.shape().0;
                let table = table.matrix().ok_or_else(wrong_kind)?;
                self.write([], self.plan.whole(out), |_, [], out| {
                    m.threads.split(ids.len(), 1, 1, |rows| {
                        // Other rows come from the shards that hold them.
                        for t in rows.filter(|&t| ids[t] < held) {
                            // SAFETY: each row is one task's.
                            embed::embed(table, ids[t] as usize, unsafe { out.row(t) });
                        }
                    });
                });
            }
            Op::RmsNorm { x, weight: w, out, eps } => {
                let w = weight(w).vector();
                self.write([x], out, |_, [x], out| {
                    m.threads.split(out.rows, 1, kernels::rows_a_task(x.dim), |rows| {
                        for t in rows {
                            // SAFETY: each row is one task's.
                            kernels::rms_norm(m.isa, x.row(t), w, eps, unsafe { out.row(t) });
                        }
                    });
                });
            }
            Op::Quantize { x, out } => {
                let Buffer::Quant(q) = &mut self.buffers[out.0 as usize] else {
                    return Err(wrong_kind());
                };
                let mut q = std::mem::take(q);
                q.quantize(m.isa, m.threads, self.read(x));
                self.buffers[out.0 as usize] = Buffer::Quant(q);
            }
            Op::TernaryLinear { x, weight: w, out } => {
                let Some(Matrix::Ternary(w)) = weight(w).matrix() else {
                    return Err(wrong_kind());
                };
                if matches!(self.plan.buffer(x).kind, BufKind::F32) {
                    self.write([self.plan.whole(x)], out, |_, [x], out| {
                        kernels::ternary_linear_f32(m.isa, m.threads, x, w, out);
                    });
                } else {
                    self.write([], out, |program, [], out| {
                        if let Buffer::Quant(q) = &program.buffers[x.0 as usize] {
                            kernels::ternary_linear(m.isa, m.threads, q, w, out);
                        }
                    });
                }
            }
            Op::DenseLinear { x, weight: w, out } => {
                let Some(Matrix::Dense(w)) = weight(w).matrix() else {
                    return Err(wrong_kind());
                };
                self.write([self.plan.whole(x)], out, |_, [x], out| {
                    kernels::dense_linear(m.isa, m.threads, x, w, out);
                });
            }
            Op::Rope { x, head_dim } => {
                self.write([], x, |program, [], x| {
                    let pairs = program.plan.rope.inv_freq.len();
                    for t in 0..x.rows {
                        let angles = &program.angles[t * pairs..][..pairs];
                        // SAFETY: one row at a time.
                        let row = unsafe { x.row(t) };
                        rope::rope(program.plan.rope.layout, angles, head_dim as usize, row);
                    }
                });
            }
            Op::KvAppend { k, v, layer } => {
                let mut cache = std::mem::take(&mut self.cache[layer as usize]);
                for (cache, x) in cache.iter_mut().zip([k, v]) {
                    let x = self.read(x);
                    for t in 0..self.tokens {
                        kv_append::kv_append(cache, self.pos + t, x.row(t));
                    }
                }
                self.cache[layer as usize] = cache;
            }
            Op::Attention { q, layer, heads, scale, out } => {
                self.write([q], out, |program, [q], out| {
                    let [keys, values] = &program.cache[layer as usize];
                    let cache = kernels::Cache { keys, values, pos: program.pos };
                    kernels::attention(m.isa, m.threads, q, cache, heads as usize, scale, out);
                });
            }
            Op::GatedAct { gate, up, act, out } => {
                self.write([gate, up], out, |_, [gate, up], out| {
                    m.threads.split(out.rows, 1, kernels::rows_a_task(out.dim), |rows| {
                        for t in rows {
                            // SAFETY: each row is one task's.
                            let out = unsafe { out.row(t) };
                            kernels::gated_act(m.isa, act, gate.row(t), up.row(t), out);
                        }
                    });
                });
            }
            Op::Add { x, y } => {
                let (x, y) = (self.plan.whole(x), self.plan.whole(y));
                self.write([y], x, |_, [y], x| {
                    for t in 0..x.rows {
                        // SAFETY: one row at a time.
                        add::add(unsafe { x.row(t) }, y.row(t));
                    }
                });
            }
            Op::TakeOutputs { x, out } => {
                let (x, out) = (self.plan.whole(x), self.plan.whole(out));
                self.write([x], out, |_, [x], out| {
                    let skipped = x.rows - out.rows;
                    for r in 0..out.rows {
                        // SAFETY: one row at a time.
                        take_outputs::take_outputs(x.row(skipped + r), unsafe { out.row(r) });
                    }
                });
            }
        }
        Ok(())
    }
}
