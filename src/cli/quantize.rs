//! `bitnet quantize`: a model to a GGUF file with ternary linears.

use super::args::SourceArgs;
use super::failure::{Failure, chain};
use super::model::Source;
use super::output::{self, bytes, count};
use super::{default_model, interrupt};
use bitnet_rust::quantize::{
    LinearType, Options, Progress, QuantizeError, Report, TableType, quantize as run,
};
use bitnet_rust::ternary::i2_s::Variant;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

#[derive(Args)]
pub struct QuantizeArgs {
    /// Model to convert: a folder with float or packed weights, or a GGUF file
    #[arg(value_parser = Source::parse)]
    input: Source,
    /// GGUF file to write
    output: PathBuf,
    /// Type of the ternary linears
    #[arg(long = "type", value_enum, default_value_t, value_name = "TYPE")]
    linears: LinearArg,
    /// Type of embedding and head
    #[arg(long = "embed", value_enum, default_value_t, value_name = "TYPE")]
    tables: TableArg,
    /// Convert a model, too, that was not trained for ternary weights
    #[arg(long)]
    force: bool,
    /// Layout of I2_S tensors in a GGUF input [default: told by looking at the weights]
    #[arg(long, value_enum, value_name = "LAYOUT")]
    i2s_layout: Option<LayoutArg>,
    /// List every tensor, too
    #[arg(long)]
    tensors: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: SourceArgs,
}

/// `--type`.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LinearArg {
    /// 2 bits, for bitnet.cpp and this program
    #[default]
    #[value(name = "i2_s")]
    I2S,
    /// 2.06 bits, for llama.cpp and this program
    #[value(name = "tq2_0")]
    Tq2,
    /// 1.69 bits, for llama.cpp and this program
    #[value(name = "tq1_0")]
    Tq1,
}

/// `--embed`.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum TableArg {
    /// 16 bits
    #[default]
    #[value(name = "f16")]
    F16,
    /// 8.5 bits
    #[value(name = "q8_0")]
    Q8,
    /// 6.6 bits
    #[value(name = "q6_k")]
    Q6,
}

/// `--i2s-layout`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutArg {
    /// x86 builds of bitnet.cpp, and published files
    Group128,
    /// ARM builds
    Group64,
    /// x86 builds without ACT_PARALLEL
    Rows4,
}

impl QuantizeArgs {
    fn options(&self) -> Options {
        Options {
            linears: match self.linears {
                LinearArg::I2S => LinearType::I2_S,
                LinearArg::Tq2 => LinearType::TQ2_0,
                LinearArg::Tq1 => LinearType::TQ1_0,
            },
            tables: match self.tables {
                TableArg::F16 => TableType::F16,
                TableArg::Q8 => TableType::Q8_0,
                TableArg::Q6 => TableType::Q6_K,
            },
            force: self.force,
            i2s: self.i2s_layout.map(|layout| match layout {
                LayoutArg::Group128 => Variant::Group128,
                LayoutArg::Group64 => Variant::Group64,
                LayoutArg::Rows4 => Variant::Rows4,
            }),
        }
    }
}

pub fn quantize(args: QuantizeArgs) -> Result<(), Failure> {
    interrupt::listen();
    let Some(input) = args.input.fetch(&args.source)? else {
        let size = bytes(default_model::BYTES.len() as u64);
        return Err(Failure::Usage(format!("the model inside is quantised already ({size})")));
    };
    let bar = output::progress(args.source.quiet, Some(0), "quantising");
    let result = run(&input, &args.output, &args.options(), &mut |p: Progress<'_>| {
        bar.set_length(p.total_bytes);
        bar.set_position(p.done_bytes);
        !interrupt::interrupted()
    });
    bar.finish_and_clear();
    let report = result.map_err(failure)?;
    for note in report.notes.iter().filter(|_| !args.source.quiet) {
        output::note(format_args!("note: {note}"));
    }
    match args.json {
        true => output::json(&as_json(&report)),
        false => output::stdout(as_text(&report, args.tensors).as_bytes()),
    }
}

fn failure(e: QuantizeError) -> Failure {
    match e {
        QuantizeError::Cancelled => Failure::Interrupted,
        QuantizeError::NotTernary { .. } => {
            Failure::Failed(format!("{}; --force converts it all the same", chain(&e)))
        }
        QuantizeError::Input(e) => Failure::from(e),
        e => Failure::Failed(chain(&e)),
    }
}

fn as_json(report: &Report) -> serde_json::Value {
    json!({
        "weights": report.weights,
        "input_bytes": report.input_bytes,
        "output_bytes": report.output_bytes,
        "f32_bytes": report.f32_bytes,
        "f16_bytes": report.f16_bytes,
        "saved_against_f32": report.saved_against_f32(),
        "saved_against_f16": report.saved_against_f16(),
        "sparsity": report.sparsity(),
        "tensors": report.tensors,
        "notes": report.notes,
    })
}

fn as_text(report: &Report, tensors: bool) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "weights    {}", count(report.weights));
    let _ = writeln!(text, "output     {}", bytes(report.output_bytes));
    for (name, size, saved) in [
        ("as f32", report.f32_bytes, report.saved_against_f32()),
        ("as f16", report.f16_bytes, report.saved_against_f16()),
    ] {
        let _ = writeln!(text, "{name}     {} ({:.1} % saved)", bytes(size), 100.0 * saved);
    }
    let _ = writeln!(text, "zeros      {:.1} % of the ternary weights", 100.0 * report.sparsity());
    let worst = report.tensors.iter().max_by(|a, b| a.relative_error.total_cmp(&b.relative_error));
    if let Some(worst) = worst {
        let percent = 100.0 * worst.relative_error;
        let _ = writeln!(text, "change     at most {percent:.2} % rms ({})", worst.name);
    }
    if tensors {
        let width = report.tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
        let _ = writeln!(text);
        for t in &report.tensors {
            let shape: Vec<_> = t.shape.iter().map(u64::to_string).collect();
            let zeros = t.sparsity.map_or(String::new(), |s| format!("{:5.1} % zeros", 100.0 * s));
            let _ = writeln!(
                text,
                "{:width$}  {:>14}  {:>5} → {:<5}  {:>9}  {:7.3} % rms  {zeros}",
                t.name,
                shape.join(" × "),
                t.from,
                t.to,
                bytes(t.bytes),
                100.0 * t.relative_error,
            );
        }
    }
    text
}
