//! `bitnet trace`: the same tokens on two backends, operation by operation.

use super::args::{BackendArg, CpuArgs, Ids, LoadArgs, SourceArgs, device_options, ids};
use super::failure::Failure;
use super::model::{Source, load_on};
use super::{interrupt, output};
use bitnet_rust::session::trace::compare;
use clap::Args;
use serde_json::json;

#[derive(Args)]
pub struct TraceArgs {
    /// Model to run (see `bitnet --help`)
    #[arg(value_parser = Source::parse, default_value = "default", hide_default_value = true)]
    model: Source,
    /// One backend: the reference
    #[arg(long, value_enum, default_value_t = BackendArg::Cpu, value_name = "BACKEND")]
    a: BackendArg,
    /// The other one
    #[arg(long, value_enum, default_value_t = BackendArg::Gpu, value_name = "BACKEND")]
    b: BackendArg,
    /// Token ids to run
    #[arg(long, value_name = "IDS", value_parser = ids, default_value = "1,2,3,4")]
    ids: Ids,
    /// Fail when an operation differs by more than this (energy of the difference over energy)
    #[arg(long, value_name = "NMSE")]
    max_nmse: Option<f64>,
    /// GPU to use: part of its name
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// An array of JSON objects
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cpu: CpuArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    source: SourceArgs,
}

pub fn trace(args: TraceArgs) -> Result<(), Failure> {
    interrupt::listen();
    let open = |backend| {
        let device = device_options(backend, args.adapter.clone(), &args.cpu);
        load_on(&args.model, &args.source, &device, &args.load)
    };
    let (mut a, mut b) = (open(args.a)?, open(args.b)?);
    let differences = pollster::block_on(compare(&mut a, &mut b, &args.ids.0))?;
    if args.json {
        let row = |d: &bitnet_rust::session::trace::OpDifference| json!({"label": d.label, "kernel": d.kernel, "nmse": d.nmse, "max_abs": d.max_abs});
        output::json(&differences.iter().map(row).collect())?;
    } else {
        let mut table =
            format!("{:<28} {:<18} {:>10} {:>10}\n", "operation", "kernel", "nmse", "max abs");
        for d in &differences {
            table += &format!(
                "{:<28} {:<18} {:>10.2e} {:>10.2e}\n",
                d.label, d.kernel, d.nmse, d.max_abs
            );
        }
        output::stdout(table.as_bytes())?;
    }
    // A NaN is no agreement.
    let bad = |limit: f64| differences.iter().find(|d| d.nmse > limit || d.nmse.is_nan());
    match args.max_nmse.and_then(|limit| Some((limit, bad(limit)?))) {
        Some((limit, first)) => Err(Failure::Failed(format!(
            "{} ({}) differs by {:.2e}, more than {limit:e}",
            first.label, first.kernel, first.nmse
        ))),
        None => Ok(()),
    }
}
