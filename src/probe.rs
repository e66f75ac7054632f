//! [`Builder`] and [`contents`]: plans written by hand and random weights for them, by which devices are
//! judged ([`crate::selfcheck`]) and timed (`gpu`) with no model at hand.
//!
//! May import: floor 0.

use crate::plan::*;
use crate::sampling::threefry2x32;
use crate::ternary::set_code;
use half::f16;

/// The `i`-th random number of stream `stream`, uniform in −1..1.
pub fn noise(stream: u32, i: usize) -> f32 {
    let bits = threefry2x32([0x5eed, stream], [i as u32, 0])[0];
    (bits >> 8) as f32 / 8_388_608.0 - 1.0
}

/// The first `rows` rows of a random weight.
pub fn contents(kind: WeightKind, part: WeightPart, rows: u32, stream: u32) -> Vec<u8> {
    let row_bytes = kind.row_bytes(part) as usize;
    let bytes = rows as usize * row_bytes;
    let (_, k) = kind.shape();
    let halves = |scale: f32| -> Vec<u8> {
        (0..bytes / 2)
            .flat_map(|i| f16::from_f32(scale * (1.25 + noise(stream + 1000, i))).to_le_bytes())
            .collect()
    };
    match (kind, part) {
        (WeightKind::Ternary { .. }, WeightPart::Data) => {
            let mut codes = vec![0b0101_0101; bytes]; // Padding has code 1.
            for (row, packed) in codes.chunks_exact_mut(row_bytes).enumerate() {
                for i in 0..k as usize {
                    let trit = (noise(stream, row * k as usize + i) * 1.5).round();
                    set_code(packed, i, (trit + 1.0) as u8);
                }
            }
            codes
        }
        (_, WeightPart::RowScales) => {
            let scale = 1.0 / (k as f32).sqrt();
            let row = |i| scale * (1.25 + noise(stream + 2000, i));
            (0..bytes / 4).flat_map(|i| f32::to_le_bytes(row(i))).collect()
        }
        (WeightKind::Matrix { .. }, WeightPart::BlockScales) => halves(1.0 / 127.0),
        (_, WeightPart::BlockScales) => halves(1.0),
        (WeightKind::Matrix { dtype: MatrixType::Q8, .. }, _) => {
            (0..bytes).map(|i| (noise(stream, i) * 127.0).round() as i8 as u8).collect()
        }
        (WeightKind::Matrix { dtype: MatrixType::F16, .. }, _) => {
            (0..bytes / 2).flat_map(|i| f16::from_f32(noise(stream, i)).to_le_bytes()).collect()
        }
        _ => (0..bytes / 4).flat_map(|i| noise(stream, i).to_le_bytes()).collect(),
    }
}

/// Writes a plan that starts with random rows and ends with logits.
pub struct Builder {
    /// What is written so far.
    pub plan: Plan,
}

impl Builder {
    /// A plan of no operations; one cache layer of one head of two values, unless it is set.
    pub fn new(vocab: u32) -> Self {
        Builder {
            plan: Plan {
                buffers: Vec::new(),
                weights: Vec::new(),
                ops: Vec::new(),
                labels: Vec::new(),
                rope: RopeSpec { layout: RopeLayout::HalfSplit, inv_freq: vec![1.0], mscale: 1.0 },
                kv: KvSpec { layers: 1, kv_heads: 1, head_dim: 2 },
                vocab,
                logits: BufId(0),
            },
        }
    }

    /// A buffer: the same one for the same name, type and size.
    pub fn buffer(&mut self, name: &'static str, dim: u32, kind: BufKind, rows: Rows) -> Slice {
        let spec = BufSpec { name, dim, kind, rows };
        let buffers = &mut self.plan.buffers;
        let at = buffers.iter().position(|b| *b == spec).unwrap_or_else(|| {
            buffers.push(spec);
            buffers.len() - 1
        });
        Slice { buf: BufId(at as u32), at: 0, dim }
    }

    /// A buffer of f32, a row a token.
    pub fn floats(&mut self, name: &'static str, dim: u32) -> Slice {
        self.buffer(name, dim, BufKind::F32, Rows::Tokens)
    }

    /// Another weight.
    pub fn weight(&mut self, kind: WeightKind) -> WeightId {
        let name = format!("w{}", self.plan.weights.len());
        self.plan.weights.push(WeightSpec { name, kind });
        WeightId(self.plan.weights.len() as u32 - 1)
    }

    /// The next operation.
    pub fn op(&mut self, op: Op) {
        self.plan.labels.push(op.stem().to_string());
        self.plan.ops.push(op);
    }

    /// Random rows of `dim` values.
    pub fn input(&mut self, name: &'static str, dim: u32) -> Slice {
        let n = self.plan.vocab;
        let table = self.weight(WeightKind::Matrix { n, k: dim, dtype: MatrixType::F32 });
        let out = self.floats(name, dim);
        self.op(Op::Embed { table, out: out.buf });
        out
    }

    /// A product of `x`, rounded by `rule`, with `n` ternary rows.
    pub fn product(&mut self, x: Slice, rule: ActQuant, n: u32, block: Option<u32>) -> Slice {
        let q = self.buffer("q", x.dim, BufKind::Quant(rule), Rows::Tokens);
        self.op(Op::Quantize { x, out: q.buf });
        let weight = self.weight(WeightKind::Ternary { n, k: x.dim, block });
        let out = self.floats("y", n);
        self.op(Op::TernaryLinear { x: q.buf, weight, out });
        out
    }

    /// `x` over its root mean square.
    pub fn norm(&mut self, x: Slice, eps: f32) -> Slice {
        let weight = self.weight(WeightKind::Vector { len: x.dim });
        let out = self.floats("normed", x.dim);
        self.op(Op::RmsNorm { x, weight, out, eps });
        out
    }

    /// Queries, keys and values of heads of `plan.kv`, side by side in a row.
    pub fn heads(&self, row: Slice) -> [Slice; 3] {
        let kv_dim = self.plan.kv.kv_heads * self.plan.kv.head_dim;
        let q_dim = row.dim - 2 * kv_dim;
        [(0, q_dim), (q_dim, kv_dim), (q_dim + kv_dim, kv_dim)].map(|(at, dim)| Slice {
            buf: row.buf,
            at,
            dim,
        })
    }

    /// Attention of `q` over `k` and `v` and what is in the cache of `layer`, positions turned in.
    pub fn attention(&mut self, [q, k, v]: [Slice; 3], layer: u32) -> Slice {
        let head_dim = self.plan.kv.head_dim;
        self.op(Op::Rope { x: q, head_dim });
        self.op(Op::Rope { x: k, head_dim });
        self.op(Op::KvAppend { k, v, layer });
        let out = self.floats("attn", q.dim);
        let scale = 1.0 / (head_dim as f32).sqrt();
        self.op(Op::Attention { q, layer, heads: q.dim / head_dim, scale, out });
        out
    }

    /// `act(gate) · up` of the two halves of `both`.
    pub fn gated(&mut self, both: Slice, act: Activation) -> Slice {
        let dim = both.dim / 2;
        let part = |at| Slice { buf: both.buf, at, dim };
        let out = self.floats("gated", dim);
        self.op(Op::GatedAct { gate: part(0), up: part(dim), act, out });
        out
    }

    /// Logits that are the values of `rows`.
    pub fn finish(mut self, rows: Slice) -> Plan {
        let logits = self.buffer("logits", rows.dim, BufKind::F32, Rows::Outputs);
        self.op(Op::TakeOutputs { x: rows.buf, out: logits.buf });
        self.plan.logits = logits.buf;
        self.plan
    }
}
