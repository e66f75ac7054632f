//! `bitnet run` for people and `bitnet generate` for programs: a prompt, and what comes after it.

use super::args::{Ids, MachineArgs, SamplingArgs, SourceArgs, ids};
use super::failure::Failure;
use super::model::{Source, load};
use super::{default_model, interrupt, output};
use bitnet_rust::backend::Backend;
use bitnet_rust::session::{Completion, Event, Piece, Prompt, Request, Session};
use bitnet_rust::tokenizer::Message;
use clap::Args;
use serde_json::json;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

/// Longest prompt that is read from a file or from stdin: more than any context holds.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

#[derive(Args)]
pub struct RunArgs {
    /// Model to run (see `bitnet --help`)
    #[arg(value_parser = Source::parse, default_value = "default", hide_default_value = true)]
    model: Source,
    #[command(flatten)]
    prompt: TextArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    source: SourceArgs,
}

#[derive(Args)]
pub struct GenerateArgs {
    /// Model to run (see `bitnet --help`)
    #[arg(value_parser = Source::parse)]
    model: Source,
    #[command(flatten)]
    prompt: TextArgs,
    /// Token ids to go on from, as they are: 1,2,3
    #[arg(long, value_name = "IDS", value_parser = ids, conflicts_with_all = ["prompt", "file", "chat"])]
    ids: Option<Ids>,
    /// Write on past the end of the text
    #[arg(long)]
    ignore_eos: bool,
    /// Log-probability of each token and of its N likeliest alternatives (with --json)
    #[arg(long, value_name = "N", requires = "json", value_parser = clap::value_parser!(u16).range(0..=100))]
    logprobs: Option<u16>,
    /// One JSON object with text, ids and timings
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    source: SourceArgs,
}

#[derive(Args)]
struct TextArgs {
    /// Text to go on from [default: stdin, if that is not a terminal]
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// File with the text to go on from
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Take the text as a message to the model, in its chat template
    #[arg(long)]
    chat: bool,
    /// System message in front of it
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
}

impl TextArgs {
    fn text(&self) -> Result<Option<String>, Failure> {
        if let Some(text) = &self.prompt {
            return Ok(Some(text.clone()));
        }
        let read = |mut from: Box<dyn Read>, name: &str| {
            let mut text = String::new();
            let n = from.by_ref().take(MAX_PROMPT_BYTES + 1).read_to_string(&mut text);
            match n {
                Ok(n) if n as u64 > MAX_PROMPT_BYTES => {
                    Err(Failure::Usage(format!("{name} is too long for a prompt")))
                }
                Ok(_) => Ok(Some(text)),
                Err(e) => Err(Failure::because(format!("cannot read {name}"), &e)),
            }
        };
        if let Some(path) = &self.file {
            let name = path.display().to_string();
            let file = std::fs::File::open(path)
                .map_err(|e| Failure::because(format!("cannot read {name}"), &e))?;
            return read(Box::new(file), &name);
        }
        if std::io::stdin().is_terminal() {
            return Ok(None);
        }
        // An empty stdin, as under cron, is no prompt.
        let text = read(Box::new(std::io::stdin()), "stdin")?;
        Ok(text.filter(|t| !t.is_empty()))
    }

    /// The prompt; `default` where none is given.
    fn prompt(&self, default: Option<&str>) -> Result<Prompt, Failure> {
        let text = self.text()?.or_else(|| default.map(str::to_string)).ok_or_else(|| {
            Failure::Usage("no prompt: give --prompt TEXT, --file FILE or text on stdin".into())
        })?;
        if text.is_empty() {
            return Err(Failure::Usage("the prompt is empty".to_string()));
        }
        if !self.chat {
            return Ok(Prompt::Text(text));
        }
        let system = self.system.iter().map(|s| Message::new("system", s.as_str()));
        Ok(Prompt::Chat(system.chain([Message::new("user", text)]).collect()))
    }
}

/// What a generation brought.
pub struct Outcome {
    pub ids: Vec<u32>,
    pub text: String,
    pub logprobs: Vec<serde_json::Value>,
    pub completion: Completion,
    pub interrupted: bool,
}

/// Runs a generation to its end, or until Ctrl-C. `show` gets each piece as it comes.
pub fn drive(
    session: &mut Session,
    generation: &mut bitnet_rust::session::Generation,
    mut show: impl FnMut(&Piece) -> Result<(), Failure>,
) -> Result<Outcome, Failure> {
    let (mut ids, mut text, mut logprobs) = (Vec::new(), String::new(), Vec::new());
    let mut interrupted = false;
    let completion = loop {
        if interrupt::interrupted() && !interrupted {
            interrupted = true;
            generation.stop();
        }
        match pollster::block_on(session.next(generation))? {
            Event::Prefill { .. } => {}
            Event::Text(piece) => {
                show(&piece)?;
                ids.extend_from_slice(&piece.ids);
                text.push_str(&piece.text);
                for token in &piece.logprobs {
                    let pair = |l: &bitnet_rust::session::Logprob| json!([l.id, l.logprob]);
                    let (own, others) =
                        token.split_first().map_or((None, &[][..]), |s| (Some(s.0), s.1));
                    logprobs.push(json!({
                        "id": own.map(|l| l.id),
                        "logprob": own.map(|l| l.logprob),
                        "top": others.iter().map(pair).collect::<Vec<_>>(),
                    }));
                }
            }
            Event::Finished(completion) => break completion,
        }
    };
    Ok(Outcome { ids, text, logprobs, completion, interrupted })
}

/// One line about how it went.
pub fn statistics(session: &Session, outcome: &Completion) -> String {
    let caps = session.device().caps();
    let usage = &outcome.usage;
    let cached = match usage.cached_tokens {
        0 => String::new(),
        n => format!(" ({n} cached)"),
    };
    format!(
        "[prompt {}{cached} tokens, {:.1} tok/s · text {} tokens, {:.1} tok/s · {} · {} {}]",
        usage.prompt_tokens,
        outcome.prefill_tok_s(),
        usage.completion_tokens,
        outcome.decode_tok_s(),
        outcome.reason.name(),
        caps.adapter,
        caps.api,
    )
}

pub fn run(args: RunArgs) -> Result<(), Failure> {
    interrupt::listen();
    let sampling = args.sampling.sampling()?;
    let default = (args.model == Source::Default).then_some(default_model::PROMPT);
    let prompt = args.prompt.prompt(default)?;
    let mut session = load(&args.model, &args.source, &args.machine)?;
    let echo = match &prompt {
        Prompt::Text(text) if output::decorate() => {
            format!("\x1b[1m{}\x1b[0m", output::harmless(text))
        }
        Prompt::Text(text) => text.clone(),
        _ => String::new(),
    };
    let mut request = Request::new(prompt);
    request.max_tokens = args.sampling.max_tokens;
    request.sampling = sampling;
    request.stop = args.sampling.stop;
    let mut generation = session.start(request)?;
    // A continuation reads as one text with what it continues.
    output::stdout(echo.as_bytes())?;
    let on_terminal = std::io::stdout().is_terminal();
    let outcome = drive(&mut session, &mut generation, |piece| {
        let text =
            if on_terminal { output::harmless(&piece.text) } else { piece.text.as_str().into() };
        output::stdout(text.as_bytes())
    })?;
    output::stdout(b"\n")?;
    if !args.source.quiet {
        output::note(statistics(&session, &outcome.completion));
    }
    if outcome.interrupted { Err(Failure::Interrupted) } else { Ok(()) }
}

pub fn generate(args: GenerateArgs) -> Result<(), Failure> {
    interrupt::listen();
    let sampling = args.sampling.sampling()?;
    let prompt = match args.ids {
        Some(Ids(ids)) => Prompt::Ids(ids),
        None => args.prompt.prompt(None)?,
    };
    let mut session = load(&args.model, &args.source, &args.machine)?;
    let mut request = Request::new(prompt);
    request.max_tokens = args.sampling.max_tokens;
    request.sampling = sampling;
    request.stop = args.sampling.stop;
    request.ignore_eos = args.ignore_eos;
    request.logprobs = args.logprobs.map(usize::from);
    if args.ignore_eos && request.max_tokens.is_none() && !args.source.quiet {
        output::note("with --ignore-eos and without --max-tokens, the text ends with the context");
    }
    let mut generation = session.start(request)?;
    let outcome = drive(&mut session, &mut generation, |piece| {
        if args.json { Ok(()) } else { output::stdout(piece.text.as_bytes()) }
    })?;
    if args.json {
        let done = &outcome.completion;
        let caps = session.device().caps();
        let mut answer = json!({
            "prompt_ids": generation.prompt_ids(),
            "ids": outcome.ids,
            "text": outcome.text,
            "finish_reason": done.reason.name(),
            "prompt_tokens": done.usage.prompt_tokens,
            "completion_tokens": done.usage.completion_tokens,
            "prefill_ms": done.timings.prefill_ms,
            "first_token_ms": done.timings.first_token_ms,
            "decode_ms": done.timings.decode_ms,
            "prefill_tok_s": done.prefill_tok_s(),
            "decode_tok_s": done.decode_tok_s(),
            "seed": sampling.seed,
            "backend": caps.backend,
            "adapter": caps.adapter,
            "api": caps.api,
        });
        if args.logprobs.is_some() {
            answer["logprobs"] = outcome.logprobs.into();
        }
        output::json(&answer)?;
    } else {
        if std::io::stdout().is_terminal() {
            output::stdout(b"\n")?;
        }
        if !args.source.quiet {
            output::note(statistics(&session, &outcome.completion));
        }
    }
    if outcome.interrupted { Err(Failure::Interrupted) } else { Ok(()) }
}
