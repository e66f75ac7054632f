//! The forward pass, written as a plan.

use super::config::Config;
use super::rope::rope_spec;
use super::weights::{Layer, Linear, WeightMap};
use crate::plan::{ActQuant, BufId, BufKind, BufSpec, KvSpec, Op, Plan, Rows, Slice, WeightId};

/// The plan of one step of the model: token ids in, logits out.
pub fn forward(config: &Config, weights: &WeightMap) -> Plan {
    let c = config;
    let (q_dim, kv_dim) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let mut w = Writer::new(config, weights);
    let x = w.buffer("x", c.hidden_size, BufKind::F32, Rows::Tokens);

    w.op("token_embd", Op::Embed { table: weights.embedding, out: x });
    for (l, layer) in weights.layers.iter().enumerate() {
        w.layer = Some(l);
        attention(&mut w, layer, l as u32, x, q_dim, kv_dim);
        feed_forward(&mut w, layer, x);
    }
    w.layer = None;

    let last = w.buffer("last", c.hidden_size, BufKind::F32, Rows::Outputs);
    w.op("take_outputs", Op::TakeOutputs { x, out: last });
    let normed = w.norm("output_norm", w.whole(last), weights.output_norm, "last_norm");
    let logits = w.buffer("logits", weights.vocab, BufKind::F32, Rows::Outputs);
    w.linear("output", normed, &weights.head, w.whole(logits));
    w.finish(logits)
}

/// `x += W_o · [sub_norm](softmax(rope(q)·rope(k)ᵀ / √D) · v)`, with `q, k, v` from `norm(x)`.
fn attention(w: &mut Writer<'_>, layer: &Layer, l: u32, x: BufId, q_dim: u32, kv_dim: u32) {
    let c = w.config;
    let normed = w.norm("attn_norm", w.whole(x), layer.attn_norm, "h");
    let qkv = w.buffer("qkv", q_dim + 2 * kv_dim, BufKind::F32, Rows::Tokens);
    let slice = |at, dim| Slice { buf: qkv, at, dim };
    let (q, k, v) = (slice(0, q_dim), slice(q_dim, kv_dim), slice(q_dim + kv_dim, kv_dim));
    w.linears(&["attn_q", "attn_k", "attn_v"], "attn_qkv", normed, &layer.qkv, qkv);
    if let Some((q_norm, k_norm)) = layer.qk_norm {
        let eps = c.rms_norm_eps;
        w.op("attn_q_norm", Op::RmsNorm { x: q, weight: q_norm, out: q, eps });
        w.op("attn_k_norm", Op::RmsNorm { x: k, weight: k_norm, out: k, eps });
    }
    w.op("rope_q", Op::Rope { x: q, head_dim: c.head_dim });
    w.op("rope_k", Op::Rope { x: k, head_dim: c.head_dim });
    w.op("kv_append", Op::KvAppend { k, v, layer: l });
    let attn = w.buffer("attn", q_dim, BufKind::F32, Rows::Tokens);
    let mut attn = w.whole(attn);
    let scale = (1.0 / f64::from(c.head_dim).sqrt()) as f32;
    w.op(
        "attention",
        Op::Attention { q, layer: l, heads: c.num_attention_heads, scale, out: attn },
    );
    if let Some(sub_norm) = layer.attn_sub_norm {
        attn = w.norm("attn_sub_norm", attn, sub_norm, "attn_normed");
    }
    w.residual("attn_output", attn, &layer.attn_output, x);
}

/// `x += W_down · [sub_norm](act(W_gate·h) · W_up·h)`, `h = norm(x)`.
fn feed_forward(w: &mut Writer<'_>, layer: &Layer, x: BufId) {
    let c = w.config;
    let ffn = c.intermediate_size;
    let normed = w.norm("ffn_norm", w.whole(x), layer.ffn_norm, "h");
    let gate_up = w.buffer("gate_up", 2 * ffn, BufKind::F32, Rows::Tokens);
    w.linears(&["ffn_gate", "ffn_up"], "ffn_gate_up", normed, &layer.gate_up, gate_up);
    let gated = w.buffer("gated", ffn, BufKind::F32, Rows::Tokens);
    let mut gated = w.whole(gated);
    let gate = Slice { buf: gate_up, at: 0, dim: ffn };
    let up = Slice { buf: gate_up, at: ffn, dim: ffn };
    w.op("gated_act", Op::GatedAct { gate, up, act: c.hidden_act, out: gated });
    if let Some(sub_norm) = layer.ffn_sub_norm {
        gated = w.norm("ffn_sub_norm", gated, sub_norm, "gated_normed");
    }
    w.residual("ffn_down", gated, &layer.ffn_down, x);
}

/// Collects operations; buffers of the same name, type and size are shared between layers.
struct Writer<'a> {
    config: &'a Config,
    plan: Plan,
    layer: Option<usize>,
}

impl<'a> Writer<'a> {
    fn new(config: &'a Config, weights: &WeightMap) -> Self {
        let plan = Plan {
            buffers: Vec::new(),
            weights: weights.specs.clone(),
            ops: Vec::new(),
            labels: Vec::new(),
            rope: rope_spec(config),
            kv: KvSpec {
                layers: config.num_hidden_layers,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
            },
            vocab: weights.vocab,
            logits: BufId(0),
        };
        Writer { config, plan, layer: None }
    }

    fn finish(mut self, logits: BufId) -> Plan {
        self.plan.logits = logits;
        self.plan
    }

    fn op(&mut self, label: &str, op: Op) {
        self.plan.labels.push(match self.layer {
            Some(l) => format!("blk.{l}.{label}"),
            None => label.to_string(),
        });
        self.plan.ops.push(op);
    }

    fn buffer(&mut self, name: &'static str, dim: u32, kind: BufKind, rows: Rows) -> BufId {
        let spec = BufSpec { name, dim, kind, rows };
        let buffers = &mut self.plan.buffers;
        let i = buffers.iter().position(|b| *b == spec).unwrap_or_else(|| {
            buffers.push(spec);
            buffers.len() - 1
        });
        BufId(i as u32)
    }

    fn whole(&self, buf: BufId) -> Slice {
        self.plan.whole(buf)
    }

    fn norm(&mut self, label: &str, x: Slice, weight: WeightId, out: &'static str) -> Slice {
        self.norm_eps(label, x, weight, out, self.config.rms_norm_eps)
    }

    fn norm_eps(
        &mut self,
        label: &str,
        x: Slice,
        weight: WeightId,
        out: &'static str,
        eps: f32,
    ) -> Slice {
        let rows = self.plan.buffer(x.buf).rows;
        let out = self.buffer(out, x.dim, BufKind::F32, rows);
        let out = self.whole(out);
        self.op(label, Op::RmsNorm { x, weight, out, eps });
        out
    }

    /// `out = W · x`, with what stands in front of the product: norm, rounding.
    fn linear(&mut self, label: &str, x: Slice, linear: &Linear, out: Slice) {
        let mut x = x;
        if let (Some(weight), Some(eps)) = (linear.input_norm, self.config.linear_norm_eps) {
            x = self.norm_eps(&format!("{label}.input_norm"), x, weight, "linear_normed", eps);
        }
        let weight = linear.weight;
        if linear.dense {
            self.op(label, Op::DenseLinear { x: x.buf, weight, out });
            return;
        }
        let x = match linear.act {
            None => x.buf,
            Some(rule) => self.quantize(label, x, rule),
        };
        self.op(label, Op::TernaryLinear { x, weight, out });
    }

    fn quantize(&mut self, label: &str, x: Slice, rule: ActQuant) -> BufId {
        let rows = self.plan.buffer(x.buf).rows;
        let out = self.buffer("q", x.dim, BufKind::Quant(rule), rows);
        self.op(&format!("{label}.quantize"), Op::Quantize { x, out });
        out
    }

    /// Linears that read the same input and fill `out` one after the other.
    fn linears(&mut self, labels: &[&str], joined: &str, x: Slice, linears: &[Linear], out: BufId) {
        let mut at = 0;
        for (i, linear) in linears.iter().enumerate() {
            let label = if linears.len() == 1 { joined } else { labels[i] };
            self.linear(label, x, linear, Slice { buf: out, at, dim: linear.n });
            at += linear.n;
        }
    }

    /// `sum += W · x`.
    fn residual(&mut self, label: &str, x: Slice, linear: &Linear, sum: BufId) {
        let y = self.buffer("y", linear.n, BufKind::F32, Rows::Tokens);
        self.linear(label, x, linear, self.whole(y));
        self.op(&format!("{label}.add"), Op::Add { x: sum, y });
    }
}
