//! From the MODEL of the command line to a session.

use super::args::{LoadArgs, MachineArgs, SourceArgs};
use super::failure::{Failure, chain};
use super::hub::{Hub, Reference};
use super::{default_model, header, interrupt, kernels, output};
use bitnet_rust::error::Error;
use bitnet_rust::session::{Device, DeviceOptions, LoadOptions, Phase, Progress, Session, files};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Inside the program.
    Default,
    /// A file or folder.
    Path(PathBuf),
    /// On the Hub.
    Hub(Reference),
}

impl Source {
    /// Reads a MODEL.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("MODEL is empty".to_string()),
            "default" => Ok(Source::Default),
            _ => match text.strip_prefix("hf:") {
                Some(reference) => Ok(Source::Hub(reference.parse()?)),
                None => Ok(Source::Path(PathBuf::from(text))),
            },
        }
    }

    /// The file or folder; `None` for the model inside the program. Downloads where needed.
    pub fn fetch(&self, args: &SourceArgs) -> Result<Option<PathBuf>, Failure> {
        match self {
            Source::Default => Ok(None),
            Source::Path(path) => Ok(Some(path.clone())),
            Source::Hub(reference) => {
                Hub::from_env(args.offline)?.fetch(reference, args.quiet).map(Some)
            }
        }
    }
}

/// A model ready to run.
pub fn load(source: &Source, args: &SourceArgs, machine: &MachineArgs) -> Result<Session, Failure> {
    load_on(source, args, &machine.device_options(), &machine.load)
}

/// A model ready to run on a certain machine.
pub fn load_on(
    source: &Source,
    args: &SourceArgs,
    device: &DeviceOptions,
    load: &LoadArgs,
) -> Result<Session, Failure> {
    let path = source.fetch(args)?;
    if let Some(path) = &path {
        // Before the GPU is woken up.
        header::check_path(path)?;
    }
    let (device, why_not_gpu) = kernels::open(device).map_err(|e| Failure::Failed(chain(&e)))?;
    // For people only: that a machine has no GPU is no news to its scripts.
    if let Some(why) = why_not_gpu.filter(|_| !args.quiet && std::io::stderr().is_terminal()) {
        output::note(format_args!("running on the CPU ({why})"));
    }
    load_path(device, path.as_deref(), args.quiet, &load.options())
}

fn load_path(
    device: Device,
    path: Option<&Path>,
    quiet: bool,
    options: &LoadOptions,
) -> Result<Session, Failure> {
    // The one inside the program is there before a bar could be seen.
    let bar = output::progress(quiet || path.is_none(), None, "loading");
    let mut total = None;
    let mut on_progress = |p: Progress| {
        if total != p.total_bytes {
            total = p.total_bytes;
            bar.set_style(output::progress(true, total, "").style());
            bar.set_length(total.unwrap_or(0));
        }
        bar.set_position(p.done_bytes);
        if p.phase == Phase::Prepare {
            bar.set_message("preparing");
        }
        !interrupt::interrupted()
    };
    let result = match path {
        None => {
            let bytes = default_model::BYTES;
            files::load_gguf(device, bytes, Some(bytes.len() as u64), options, &mut on_progress)
        }
        Some(path) => files::load_on(device, path, options, &mut on_progress),
    };
    bar.finish_and_clear();
    result.map_err(|e| match (&e, path) {
        // What is wrong with the file; anything else speaks for itself.
        (Error::Format(_) | Error::Model(_) | Error::Weights { .. }, Some(path)) => {
            header::in_file(path.display(), &e)
        }
        _ => e.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_told_apart() {
        assert_eq!(Source::parse("default"), Ok(Source::Default));
        assert_eq!(Source::parse("a/b.gguf"), Ok(Source::Path("a/b.gguf".into())));
        assert!(matches!(Source::parse("hf:a/b"), Ok(Source::Hub(_))));
        assert!(Source::parse("hf:a").is_err());
        assert!(Source::parse("").is_err());
    }
}
