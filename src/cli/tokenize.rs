//! `bitnet tokenize`: text to ids and back; reads only the model's header.

use super::args::{Ids, SourceArgs, ids};
use super::failure::{Failure, chain};
use super::header::Header;
use super::model::Source;
use super::output;
use clap::Args;
use serde_json::json;
use std::io::{IsTerminal, Read};

/// Longest text that is read from stdin.
const MAX_TEXT_BYTES: u64 = 256 << 20;

#[derive(Args)]
pub struct TokenizeArgs {
    /// Model whose tokenizer is used (see `bitnet --help`)
    #[arg(value_parser = Source::parse)]
    model: Source,
    /// Text to encode [default: stdin]
    #[arg(conflicts_with = "decode")]
    text: Option<String>,
    /// Token ids to turn into text instead: 1,2,3
    #[arg(long, value_name = "IDS", value_parser = ids)]
    decode: Option<Ids>,
    /// Put the beginning-of-text token in front [default: as the model's files say]
    #[arg(long, conflicts_with = "no_bos")]
    bos: bool,
    /// Do not put the beginning-of-text token in front
    #[arg(long)]
    no_bos: bool,
    /// Take special tokens such as <|eot_id|> in the text as plain text
    #[arg(long)]
    plain: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: SourceArgs,
}

pub fn tokenize(args: TokenizeArgs) -> Result<(), Failure> {
    let header = Header::open(&args.model, &args.source)?;
    let tokenizer = header.tokenizer()?.map_err(|e| Failure::Failed(chain(&e)))?;
    let failed = |e: bitnet_rust::tokenizer::TokenizerError| Failure::Usage(chain(&e));
    if let Some(Ids(ids)) = &args.decode {
        let text = tokenizer.decode(ids, false).map_err(failed)?;
        return match args.json {
            true => output::json(&json!({"ids": ids, "text": text})),
            false => output::stdout(format!("{text}\n").as_bytes()),
        };
    }
    let text = match args.text {
        Some(text) => text,
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::Usage("no text: give TEXT, or text on stdin".to_string()));
        }
        None => {
            let mut text = String::new();
            let stdin = std::io::stdin().take(MAX_TEXT_BYTES);
            { stdin }
                .read_to_string(&mut text)
                .map_err(|e| Failure::because("cannot read stdin", &e))?;
            text
        }
    };
    let add_bos = args.bos || (tokenizer.add_bos() && !args.no_bos);
    let ids = match args.plain {
        true => tokenizer.encode_plain(&text, add_bos),
        false => tokenizer.encode(&text, add_bos),
    };
    let ids = ids.map_err(failed)?;
    let piece = |id: &u32| String::from_utf8_lossy(tokenizer.token_bytes(*id).unwrap_or_default());
    if args.json {
        let pieces: Vec<_> = ids.iter().map(piece).collect();
        return output::json(&json!({"ids": ids, "pieces": pieces}));
    }
    let lines: String = ids.iter().map(|id| format!("{id}\t{:?}\n", piece(id))).collect();
    output::stdout(lines.as_bytes())
}
