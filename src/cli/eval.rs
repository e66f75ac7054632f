//! `bitnet eval`: how well a model predicts a text.

use super::args::{MachineArgs, SourceArgs};
use super::failure::Failure;
use super::model::{Source, load};
use super::{interrupt, output};
use bitnet_rust::backend::Backend;
use bitnet_rust::error::Error;
use bitnet_rust::session::eval::evaluate;
use clap::Args;
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct EvalArgs {
    /// Model to measure (see `bitnet --help`)
    #[arg(value_parser = Source::parse, default_value = "default")]
    model: Source,
    /// Text to predict, UTF-8; - reads stdin
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Look at no more than the first N characters
    #[arg(long, value_name = "N")]
    max_chars: Option<usize>,
    /// Tokens that each window of a long text adds: the more, the faster and the less each has
    /// before it [default: half the context]
    #[arg(long, value_name = "TOKENS")]
    stride: Option<usize>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    source: SourceArgs,
}

pub fn eval(args: EvalArgs) -> Result<(), Failure> {
    interrupt::listen();
    let mut text = read(&args.text)?;
    if let Some((end, _)) = args.max_chars.and_then(|n| text.char_indices().nth(n)) {
        text.truncate(end);
    }
    let mut session = load(&args.model, &args.source, &args.machine)?;
    let bar = output::counter(args.source.quiet, "tokens");
    let start = std::time::Instant::now();
    let result =
        pollster::block_on(evaluate(&mut session, &text, args.stride, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            !interrupt::interrupted()
        }));
    bar.finish_and_clear();
    let result = match result {
        Err(Error::Cancelled) => return Err(Failure::Interrupted),
        other => other?,
    };
    let seconds = start.elapsed().as_secs_f64();
    let caps = session.device().caps();
    if args.json {
        return output::json(&json!({
            "tokens": result.tokens,
            "chars": result.chars,
            "nats_per_token": result.nats_per_token(),
            "bits_per_char": result.bits_per_char(),
            "perplexity": result.perplexity(),
            "context": session.info().context,
            "backend": caps.backend,
            "adapter": caps.adapter,
            "seconds": seconds,
        }));
    }
    output::stdout(
        format!(
            "{} tokens, {} characters, {seconds:.1} s on {}\n\
             {:.4} nats/token  {:.4} bits/char  perplexity {:.2}\n",
            result.tokens,
            result.chars,
            caps.adapter,
            result.nats_per_token(),
            result.bits_per_char(),
            result.perplexity()
        )
        .as_bytes(),
    )
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|mut f| f.read_to_end(&mut bytes))
    };
    read.map_err(|e| Failure::because(format!("cannot read {}", path.display()), &e))?;
    String::from_utf8(bytes)
        .map_err(|e| Failure::because(format!("{} is not UTF-8 text", path.display()), &e))
}
