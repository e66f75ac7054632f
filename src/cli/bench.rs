//! `bitnet bench`: prefill and decode speed, as medians over some runs.

use super::args::{MachineArgs, SourceArgs};
use super::failure::Failure;
use super::model::{Source, load};
use super::synthetic::{HeadArg, Wanted};
use super::{interrupt, output};
use bitnet_rust::backend::Backend;
use bitnet_rust::sampling::Sampling;
use bitnet_rust::session::{Event, Prompt, Request, Session};
use bitnet_rust::synthetic;
use clap::Args;
use serde_json::json;
use std::time::Instant;

#[derive(Args)]
pub struct BenchArgs {
    /// Model to run (see `bitnet --help`)
    #[arg(value_parser = Source::parse, default_value = "default", hide_default_value = true)]
    model: Source,
    /// Instead of a model: random weights in the shape of one (tiny: to try it)
    #[arg(long, value_name = "SHAPE", value_parser = synthetic::NAMES, conflicts_with = "model")]
    synthetic: Option<String>,
    /// Embedding and head of a synthetic model
    #[arg(long, value_enum, default_value = "q8", value_name = "TYPE", requires = "synthetic")]
    head: HeadArg,
    /// Tokens of the prompt
    #[arg(short, long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens to write
    #[arg(short = 'n', long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
    /// Runs, after one to warm up
    #[arg(short, long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    source: SourceArgs,
}

/// Tokens a second: of the prompt, of the text.
type Speeds = (f64, f64);

pub fn bench(args: BenchArgs) -> Result<(), Failure> {
    interrupt::listen();
    if let Some(name) = &args.synthetic {
        let wanted = Wanted {
            name,
            head: args.head,
            prompt_tokens: args.prompt_tokens,
            tokens: args.tokens,
            repetitions: args.repetitions,
            json: args.json,
        };
        return super::synthetic::bench(&wanted, &args.machine);
    }
    let started = Instant::now();
    let mut session = load(&args.model, &args.source, &args.machine)?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let context = session.info().context;
    let wanted = u64::from(args.prompt_tokens) + u64::from(args.tokens);
    if wanted > u64::from(context) {
        return Err(Failure::Usage(format!(
            "{wanted} tokens do not fit the context of {context}: set --prompt-tokens, --tokens or --context"
        )));
    }
    let bar =
        output::progress(args.source.quiet, Some(u64::from(args.repetitions) + 1), "measuring");
    let mut runs = Vec::new();
    for i in 0..=args.repetitions {
        let speeds = measure(&mut session, args.prompt_tokens, args.tokens)?;
        // The first one pays for caches and compilers.
        if i > 0 {
            runs.push(speeds);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let prefill = median(runs.iter().map(|r| r.0).collect());
    let decode = median(runs.iter().map(|r| r.1).collect());
    let (info, caps) = (session.info(), session.device().caps());
    // Decoding reads every weight once a token.
    let weights_gb_s = decode * info.weight_bytes as f64 / 1e9;
    if args.json {
        return output::json(&json!({
            "model": info.name,
            "parameters": info.parameters,
            "weight_bytes": info.weight_bytes,
            "backend": caps.backend,
            "adapter": caps.adapter,
            "api": caps.api,
            "threads": caps.threads,
            "load_ms": load_ms,
            "context": args.prompt_tokens,
            "prompt_tokens": args.prompt_tokens,
            "tokens": args.tokens,
            "repetitions": args.repetitions,
            "prefill_tok_s": prefill,
            "decode_tok_s": decode,
            "weights_gb_s": weights_gb_s,
            "runs": runs.iter().map(|r| json!({"prefill_tok_s": r.0, "decode_tok_s": r.1})).collect::<Vec<_>>(),
        }));
    }
    let spread = |of: fn(&Speeds) -> f64| {
        let (low, high) =
            runs.iter().map(of).fold((f64::MAX, 0f64), |a, x| (a.0.min(x), a.1.max(x)));
        format!("{low:.1} to {high:.1}")
    };
    let text = format!(
        "model     {} ({} parameters, {} of weights on the device)\n\
         machine   {} {} ({} threads)\n\
         load      {load_ms:.0} ms\n\
         prefill   {prefill:.1} tok/s ({} tokens; {})\n\
         decode    {decode:.1} tok/s ({} tokens; {}; reads {weights_gb_s:.2} GB/s of weights)\n",
        info.name,
        output::count(info.parameters),
        output::bytes(info.weight_bytes),
        caps.adapter,
        caps.api,
        caps.threads,
        args.prompt_tokens,
        spread(|r| r.0),
        args.tokens,
        spread(|r| r.1),
    );
    output::stdout(text.as_bytes())
}

fn measure(session: &mut Session, prompt_tokens: u32, tokens: u32) -> Result<Speeds, Failure> {
    session.reset();
    let vocab = session.info().vocab_size.max(1);
    let ids = (0..prompt_tokens).map(|i| (i.wrapping_mul(7919) + 13) % vocab).collect();
    let mut request = Request::new(Prompt::Ids(ids));
    request.max_tokens = Some(tokens);
    request.sampling = Sampling::greedy();
    request.ignore_eos = true;
    let mut generation = session.start(request)?;
    loop {
        if interrupt::interrupted() {
            return Err(Failure::Interrupted);
        }
        if let Event::Finished(done) = pollster::block_on(session.next(&mut generation))? {
            return Ok((done.prefill_tok_s(), done.decode_tok_s()));
        }
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    if n % 2 == 1 { values[n / 2] } else { (values[n / 2 - 1] + values[n / 2]) / 2.0 }
}

#[cfg(test)]
mod tests {
    #[test]
    fn medians() {
        assert_eq!(super::median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(super::median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
