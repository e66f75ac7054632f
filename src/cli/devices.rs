//! `bitnet devices`: the machines that `--backend` and `--adapter` choose from.

use super::failure::{Failure, chain};
use super::output;
use bitnet_rust::backend::Backend;
use bitnet_rust::cpu::Cpu;
use clap::Args;
use serde_json::json;

#[derive(Args)]
pub struct DevicesArgs {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub fn devices(args: DevicesArgs) -> Result<(), Failure> {
    let cpu = Cpu::new(None).map_err(|e| Failure::Failed(chain(&e)))?;
    let caps = cpu.caps();
    let gpus = adapters();
    if args.json {
        return output::json(&json!({
            "cpu": {"name": caps.adapter, "api": caps.api, "threads": caps.threads},
            "gpu": gpus,
        }));
    }
    let mut text = format!("cpu  {} ({}, {} threads)\n", caps.adapter, caps.api, caps.threads);
    if gpus.is_empty() {
        text += "gpu  none\n";
    }
    for gpu in gpus {
        text += &format!("gpu  {gpu}\n");
    }
    output::stdout(text.as_bytes())
}

#[cfg(feature = "gpu")]
fn adapters() -> Vec<String> {
    pollster::block_on(bitnet_rust::gpu::adapters())
}

#[cfg(not(feature = "gpu"))]
fn adapters() -> Vec<String> {
    Vec::new()
}
