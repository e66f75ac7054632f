//! `bitnet logits`: what the model thinks of every position, for comparisons.

use super::args::{Ids, MachineArgs, SourceArgs, ids};
use super::failure::Failure;
use super::model::{Source, load};
use super::{interrupt, output};
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
pub struct LogitsArgs {
    /// Model to run (see `bitnet --help`)
    #[arg(value_parser = Source::parse)]
    model: Source,
    /// Token ids: 1,2,3
    #[arg(long, value_name = "IDS", value_parser = ids)]
    ids: Ids,
    /// File to write: f32 little-endian, one row of the vocabulary's size a position
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    source: SourceArgs,
}

pub fn logits(args: LogitsArgs) -> Result<(), Failure> {
    interrupt::listen();
    let mut file = output::new_file(&args.out)?;
    let mut session = load(&args.model, &args.source, &args.machine)?;
    let mut written = Ok(());
    pollster::block_on(session.each_logits(&args.ids.0, 0, |rows| {
        let bytes: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
        if written.is_ok() {
            written = file.write_all(&bytes);
        }
    }))?;
    let cannot_write = |e| output::cannot_write(&args.out, &e);
    written.map_err(cannot_write)?;
    if interrupt::interrupted() {
        return Err(Failure::Interrupted);
    }
    file.finish().map_err(cannot_write)?;
    if !args.source.quiet {
        output::note(format_args!(
            "[{} rows of {} logits in {}]",
            args.ids.0.len(),
            session.info().vocab_size,
            args.out.display()
        ));
    }
    Ok(())
}
