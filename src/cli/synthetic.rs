//! `bitnet bench --synthetic`: the speed of a device on a model of a known shape with random weights,
//! and where its time goes.

use super::args::{KvArg, MachineArgs};
use super::failure::{Failure, chain};
use super::{kernels, output};
use bitnet_rust::backend::{Backend, Decode, KvType, Outputs, RunOptions, Step};
use bitnet_rust::plan::MatrixType;
use bitnet_rust::sampling::Sampling;
use bitnet_rust::session::Device;
use bitnet_rust::synthetic;
use clap::ValueEnum;
use pollster::block_on;
use serde_json::json;
use std::time::Instant;

/// Element type of embedding and head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HeadArg {
    F32,
    F16,
    Q8,
}

pub struct Wanted<'a> {
    pub name: &'a str,
    pub head: HeadArg,
    pub prompt_tokens: u32,
    pub tokens: u32,
    pub repetitions: u32,
    pub json: bool,
}

pub fn bench(wanted: &Wanted<'_>, machine: &MachineArgs) -> Result<(), Failure> {
    let failed = |e: &dyn std::error::Error| Failure::Failed(chain(e));
    let dense = match wanted.head {
        HeadArg::F32 => MatrixType::F32,
        HeadArg::F16 => MatrixType::F16,
        HeadArg::Q8 => MatrixType::Q8,
    };
    let plan = synthetic::plan(wanted.name, Some(dense))?;
    let options = machine.device_options();
    let (mut device, _) = kernels::open(&options).map_err(|e| failed(&e))?;
    let started = Instant::now();
    block_on(synthetic::load(&mut device, &plan)).map_err(|e| failed(&e))?;
    let prompt = wanted.prompt_tokens;
    let kv_type = match machine.load.kv {
        KvArg::F32 => KvType::F32,
        KvArg::F16 => KvType::F16,
        KvArg::Q8 => KvType::Q8,
    };
    let context = machine.load.context.unwrap_or(0).max(prompt + wanted.tokens + 1);
    let run = RunOptions { context, kv_type, max_tokens: prompt.min(device.chunk_tokens()) };
    block_on(device.prepare(&plan, run)).map_err(|e| failed(&e))?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;

    let ids: Vec<u32> = (0..prompt).map(|i| (i * 7919 + 13) % plan.vocab).collect();
    let sampling = Sampling::greedy();
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for i in 0..=wanted.repetitions {
        let started = Instant::now();
        let chunks = ids.chunks(run.max_tokens as usize);
        for (c, tokens) in (0u32..).zip(chunks) {
            let pos = c * run.max_tokens;
            let step = Step { tokens, pos, outputs: Outputs::Last };
            block_on(device.forward(step)).map_err(|e| failed(&e))?;
        }
        let draw = |feed, pos, count| Decode {
            feed,
            pos,
            count,
            ahead: 0,
            sampling: &sampling,
            stop: &[],
        };
        // The first token ends the prefill: nothing else waits for the device.
        let first = block_on(device.decode(draw(None, prompt, 1))).map_err(|e| failed(&e))?;
        let prefill_s = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let feed = first.first().copied();
        block_on(device.decode(draw(feed, prompt, wanted.tokens))).map_err(|e| failed(&e))?;
        let decode_s = started.elapsed().as_secs_f64();
        // The first round pays for caches and compilers.
        if i > 0 {
            prefill.push(f64::from(prompt) / prefill_s);
            decode.push(f64::from(wanted.tokens) / decode_s);
        }
    }
    let (prefill, decode) = (super::bench::median(prefill), super::bench::median(decode));
    // Its last whole chunk: attention grows on the way.
    let pos = (prompt / run.max_tokens - 1) * run.max_tokens;
    let ids = &ids[pos as usize..][..run.max_tokens as usize];
    let steps = [
        ("a decoded token", profile(&mut device, &[1], prompt)?),
        ("a chunk of the prompt", profile(&mut device, ids, pos)?),
    ];
    let copy_gb_s = block_on(device.copy_gb_s()).map_err(|e| failed(&e))?;
    let caps = device.caps().clone();
    if wanted.json {
        return output::json(&json!({
            "model": format!("synthetic {}", wanted.name),
            "weight_bytes": plan.weight_bytes(),
            "allocated_bytes": device.allocated_bytes(),
            "backend": caps.backend,
            "adapter": caps.adapter,
            "api": caps.api,
            "threads": caps.threads,
            "kernel_features": device.features().map(|f| f.to_string()),
            "load_ms": load_ms,
            "context": prompt,
            "tokens": wanted.tokens,
            "repetitions": wanted.repetitions,
            "prefill_tok_s": prefill,
            "decode_tok_s": decode,
            "copy_gb_s": copy_gb_s,
            "kernels": steps.iter().flat_map(|(step, kernels)| kernels.iter().map(move |k| json!({
                "step": step, "kernel": k.kernel, "op": k.op, "dispatches": k.dispatches,
                "us": k.us / f64::from(k.dispatches), "gb_s": k.gb_s(),
            }))).collect::<Vec<_>>(),
        }));
    }
    let mut text = format!(
        "model     synthetic {} ({} of weights, {} on the device)\n\
         machine   {} {}\n\
         load      {load_ms:.0} ms\n\
         prefill   {prefill:.1} tok/s ({prompt} tokens)\n\
         decode    {decode:.1} tok/s ({} tokens from position {prompt})\n",
        wanted.name,
        output::bytes(plan.weight_bytes()),
        output::bytes(device.allocated_bytes()),
        caps.adapter,
        caps.api,
        wanted.tokens,
    );
    if let Some(features) = device.features() {
        text += &format!("kernels   {features}\n");
    }
    if let Some(copy) = copy_gb_s {
        text += &format!("copy      {copy:.0} GB/s read and written\n");
    }
    for (step, kernels) in steps.iter().filter(|s| !s.1.is_empty()) {
        let total: f64 = kernels.iter().map(|k| k.us).sum();
        text += &format!("\n{step}, {total:.0} us on the device:\n");
        text +=
            &format!("{:>8} {:>9} {:>8} {:>7}  kernel\n", "times", "us each", "GB/s", "of copy");
        for k in kernels {
            text += &format!(
                "{:>8} {:>9.2} {:>8.1} {:>7}  {} ({})\n",
                k.dispatches,
                k.us / f64::from(k.dispatches),
                k.gb_s(),
                copy_gb_s.map_or("-".into(), |copy| format!("{:.0} %", 100.0 * k.gb_s() / copy)),
                k.kernel,
                k.op
            );
        }
    }
    output::stdout(text.as_bytes())
}

/// All dispatches of a kernel for one operation of the layers.
struct KernelTime {
    kernel: String,
    op: String,
    dispatches: u32,
    us: f64,
    weight_bytes: u64,
}

impl KernelTime {
    /// Weights read, per second.
    fn gb_s(&self) -> f64 {
        self.weight_bytes as f64 / 1e3 / self.us.max(1e-9)
    }
}

fn profile(device: &mut Device, tokens: &[u32], pos: u32) -> Result<Vec<KernelTime>, Failure> {
    let step = Step { tokens, pos, outputs: Outputs::Last };
    // A processor takes seconds for a chunk.
    let repeats = if tokens.len() == 1 { 9 } else { 3 };
    let times = block_on(device.profile(step, repeats)).map_err(|e| Failure::Failed(chain(&e)))?;
    let mut all: Vec<KernelTime> = Vec::new();
    for time in times {
        // blk.3.attn_qkv → attn_qkv
        let op = match time.label.strip_prefix("blk.").and_then(|l| l.split_once('.')) {
            Some((_, op)) => op.to_string(),
            None => time.label,
        };
        let i = all.iter().position(|k| k.op == op && k.kernel == time.kernel);
        let i = i.unwrap_or_else(|| {
            let kernel = time.kernel.clone();
            all.push(KernelTime { kernel, op, dispatches: 0, us: 0.0, weight_bytes: 0 });
            all.len() - 1
        });
        all[i].dispatches += 1;
        all[i].us += time.ns / 1e3;
        all[i].weight_bytes += time.weight_bytes;
    }
    Ok(all)
}
