//! The `bitnet` program: uses the library as an outsider would.
//!
//! What a command answers goes to stdout, everything else (progress, statistics, errors) to stderr.
//! Exit codes: 0 done, 1 failed with one line on stderr, 2 bad usage, 130 stopped with Ctrl-C.

mod args;
mod bench;
mod chat;
mod default_model;
mod devices;
mod eval;
mod failure;
mod generate;
mod header;
mod hub;
mod inspect;
mod interrupt;
mod kernels;
mod logits;
mod model;
mod output;
mod quantize;
mod synthetic;
mod tokenize;
mod trace;

use clap::{CommandFactory, Parser, Subcommand};
use failure::Failure;
use std::io::Write;
use std::process::ExitCode;

/// Runs ternary (1.58-bit) and 1-bit language models on the GPU or the CPU.
#[derive(Parser)]
#[command(name = "bitnet", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
MODEL is one of:
  file.gguf                a GGUF file
  folder                   a folder with config.json, tokenizer.json and safetensors weights
  hf:owner/repo[/file]     a model on the Hugging Face Hub, kept in its usual cache
                           (@revision may follow the repo; HF_TOKEN, HF_HOME, HF_ENDPOINT count)
  default                  the small storyteller inside this program; what is run without MODEL

Examples:
  bitnet run -p \"Once upon a time\"
  bitnet chat hf:microsoft/bitnet-b1.58-2B-4T-gguf
  bitnet generate model.gguf --ids 1,2,3 --max-tokens 32 --temperature 0 --json

Exit codes: 0 done, 1 failed, 2 bad usage, 130 stopped with Ctrl-C.";

#[derive(Subcommand)]
enum Command {
    /// Continue a text, as a stream
    Run(generate::RunArgs),
    /// Talk with a model
    Chat(chat::ChatArgs),
    /// Continue a text or token ids, for programs: only the new text (or JSON) on stdout
    Generate(generate::GenerateArgs),
    /// Write the logits of every position of token ids to a file
    Logits(logits::LogitsArgs),
    /// Text to token ids, or back
    Tokenize(tokenize::TokenizeArgs),
    /// Show what a model file holds; reads only its header
    Inspect(inspect::InspectArgs),
    /// Measure prefill and decode speed
    Bench(bench::BenchArgs),
    /// Measure how well a model predicts a text
    Eval(eval::EvalArgs),
    /// Convert a model to a GGUF file with ternary weights
    Quantize(quantize::QuantizeArgs),
    /// Compare two backends, operation by operation
    Trace(trace::TraceArgs),
    /// List the machines to run on
    Devices(devices::DevicesArgs),
    /// Print a completion script for a shell
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // `--help` goes to stdout, where nobody may be reading any more.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                let _ = writeln!(std::io::stderr(), "error: {message}");
            }
            ExitCode::from(failure.code())
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => generate::run(args),
        Command::Chat(args) => chat::chat(args),
        Command::Generate(args) => generate::generate(args),
        Command::Logits(args) => logits::logits(args),
        Command::Tokenize(args) => tokenize::tokenize(args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Bench(args) => bench::bench(args),
        Command::Eval(args) => eval::eval(args),
        Command::Quantize(args) => quantize::quantize(args),
        Command::Trace(args) => trace::trace(args),
        Command::Devices(args) => devices::devices(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bitnet", &mut script);
            output::stdout(&script)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
