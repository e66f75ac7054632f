//! The header of a model: what can be known without reading its weights.

use super::args::SourceArgs;
use super::default_model;
use super::failure::{Failure, chain};
use super::hub::{Hub, Peek};
use super::model::Source;
use bitnet_rust::error::Error;
use bitnet_rust::format::{Container, Event, FormatError, Metadata, TensorInfo};
use bitnet_rust::format::{gguf, safetensors, sniff};
use bitnet_rust::model::weights::Naming;
use bitnet_rust::model::{Config, ModelError};
use bitnet_rust::tokenizer::{Tokenizer, TokenizerError};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Largest JSON file that is read: no tokenizer comes near, and a device file never ends.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// Metadata and tensors of a model.
pub enum Header {
    Gguf { metadata: Metadata, tensors: Vec<TensorInfo>, file_bytes: u64 },
    Folder { folder: PathBuf, config: String, tensors: Vec<TensorInfo>, file_bytes: u64 },
}

impl Header {
    /// Reads the header of a MODEL; of one on the Hub no more than that is downloaded.
    pub fn open(source: &Source, args: &SourceArgs) -> Result<Self, Failure> {
        let reference = match source {
            Source::Default => return Header::read(None),
            Source::Path(path) => return Header::read(Some(path)),
            Source::Hub(reference) => reference,
        };
        match Hub::from_env(args.offline)?.peek(reference, args.quiet)? {
            Peek::Local(path) => Header::read(Some(&path)),
            Peek::Gguf(file) => {
                let bytes = file.size_bytes();
                Header::gguf(file, bytes).map_err(|e| in_file(format_args!("hf:{reference}"), &e))
            }
            Peek::Folder { hub, reference, commit, snapshot } => {
                Header::folder(&snapshot, |shard| {
                    let file = hub.remote_file(&reference, &commit, shard)?;
                    Ok((file.size_bytes(), Box::new(file)))
                })
            }
        }
    }

    /// Reads the header of a file or folder, or of the model inside the program.
    pub fn read(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else {
            let bytes = default_model::BYTES;
            return Header::gguf(bytes, bytes.len() as u64).map_err(|e| in_file("default", &e));
        };
        let cannot = |e: std::io::Error| cannot_read(path, &e);
        let meta = check_path(path)?;
        if meta.is_dir() {
            return Header::folder(path, |shard| open_file(&path.join(shard)));
        }
        let mut file = File::open(path).map_err(cannot)?;
        let mut start = Vec::new();
        file.by_ref().take(9).read_to_end(&mut start).map_err(cannot)?;
        match sniff(&start).map_err(|e| in_file(path.display(), &e.into()))? {
            Container::Gguf => Header::gguf(start.as_slice().chain(file), meta.len())
                .map_err(|e| in_file(path.display(), &e)),
            Container::Safetensors => {
                let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
                let folder = folder.unwrap_or(Path::new("."));
                Header::folder(folder, |shard| open_file(&folder.join(shard)))
            }
        }
    }

    fn gguf(reader: impl Read, file_bytes: u64) -> Result<Self, Error> {
        let mut parser = gguf::Parser::new(Some(file_bytes));
        if !read_header(reader, |input| parser.next(input).map(|e| e == Event::Header))? {
            parser.finish()?;
        }
        Ok(Header::Gguf {
            metadata: parser.metadata().clone(),
            tensors: parser.tensors().to_vec(),
            file_bytes,
        })
    }

    /// `open` gives the length of a file with weights, and its bytes.
    fn folder(
        folder: &Path,
        mut open: impl FnMut(&str) -> Result<(u64, Box<dyn Read>), Failure>,
    ) -> Result<Self, Failure> {
        check_path(folder)?;
        let config = read_text(&folder.join("config.json"))?.unwrap_or_default();
        let index_path = folder.join("model.safetensors.index.json");
        let shards = match read_text(&index_path)? {
            Some(text) => safetensors::Index::parse(text.as_bytes())
                .map_err(|e| in_file(index_path.display(), &e.into()))?
                .shards()
                .to_vec(),
            None => vec!["model.safetensors".to_string()],
        };
        let (mut tensors, mut file_bytes) = (Vec::new(), 0);
        for shard in shards {
            let path = folder.join(&shard);
            let (bytes, file) = open(&shard)?;
            let mut parser = safetensors::Parser::new(Some(bytes));
            let complete =
                read_header(file, |input| parser.next(input).map(|e| e == Event::Header))
                    .map_err(|e| in_file(path.display(), &e))?;
            if !complete {
                parser.finish().map_err(|e| in_file(path.display(), &e.into()))?;
            }
            tensors.extend_from_slice(parser.tensors());
            file_bytes += bytes;
        }
        Ok(Header::Folder { folder: folder.to_path_buf(), config, tensors, file_bytes })
    }

    /// The tensors.
    pub fn tensors(&self) -> &[TensorInfo] {
        match self {
            Header::Gguf { tensors, .. } | Header::Folder { tensors, .. } => tensors,
        }
    }

    /// Bytes of all files with weights.
    pub fn file_bytes(&self) -> u64 {
        match self {
            Header::Gguf { file_bytes, .. } | Header::Folder { file_bytes, .. } => *file_bytes,
        }
    }

    /// Name of the container.
    pub fn format(&self) -> &'static str {
        match self {
            Header::Gguf { .. } => "GGUF",
            Header::Folder { .. } => "safetensors",
        }
    }

    /// Whose tensor names it uses.
    pub fn naming(&self) -> Naming {
        match self {
            Header::Gguf { .. } => Naming::Gguf,
            Header::Folder { .. } => Naming::Hf,
        }
    }

    /// The configuration.
    pub fn config(&self) -> Result<Config, ModelError> {
        match self {
            Header::Gguf { metadata, .. } => Config::from_gguf(metadata),
            Header::Folder { config, .. } => Config::from_hf(config),
        }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Result<Result<Tokenizer, TokenizerError>, Failure> {
        let folder = match self {
            Header::Gguf { metadata, .. } => return Ok(Tokenizer::from_gguf(metadata)),
            Header::Folder { folder, .. } => folder,
        };
        let text = |name: &str| read_text(&folder.join(name));
        let Some(tokenizer) = text("tokenizer.json")? else {
            return Err(Failure::Failed(format!("{} has no tokenizer.json", folder.display())));
        };
        let (config, generation) =
            (text("tokenizer_config.json")?, text("generation_config.json")?);
        let template = text("chat_template.jinja")?;
        let tokenizer = Tokenizer::from_hf(&tokenizer, config.as_deref(), generation.as_deref());
        Ok(tokenizer.map(|mut t| {
            if let Some(template) = template {
                t.set_chat_template(template);
            }
            t
        }))
    }
}

fn open_file(path: &Path) -> Result<(u64, Box<dyn Read>), Failure> {
    let file = File::open(path).map_err(|e| cannot_read(path, &e))?;
    let bytes = file.metadata().map_err(|e| cannot_read(path, &e))?.len();
    Ok((bytes, Box::new(file)))
}

/// Whether there is something that could be a model.
pub fn check_path(path: &Path) -> Result<std::fs::Metadata, Failure> {
    let meta = std::fs::metadata(path).map_err(|e| cannot_read(path, &e))?;
    if !meta.is_dir() || path.join("config.json").exists() {
        return Ok(meta);
    }
    let entries = std::fs::read_dir(path).map_err(|e| cannot_read(path, &e))?;
    let ggufs = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "gguf"))
        .map(|p| p.display().to_string());
    let ggufs: Vec<String> = ggufs.collect();
    let hint = match ggufs.is_empty() {
        true => String::new(),
        false => format!("; it holds {}", ggufs.join(", ")),
    };
    let path = path.display();
    Err(Failure::Failed(format!("{path} is no model folder: it has no config.json{hint}")))
}

/// Feeds a parser until it says that the header is complete; false at the end of the file.
fn read_header(
    mut reader: impl Read,
    mut next: impl FnMut(&mut &[u8]) -> Result<bool, FormatError>,
) -> Result<bool, Error> {
    let io = |source| Error::Io { path: String::new(), source };
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(io(e)),
        };
        let mut input = &buffer[..n];
        while !input.is_empty() {
            if next(&mut input)? {
                return Ok(true);
            }
        }
    }
}

fn cannot_read(path: &Path, e: &std::io::Error) -> Failure {
    Failure::because(format!("cannot read {}", path.display()), e)
}

/// An error of a file, with its name in front.
pub fn in_file(path: impl std::fmt::Display, e: &Error) -> Failure {
    match e {
        Error::Io { source, .. } => Failure::because(format!("cannot read {path}"), source),
        e => Failure::Failed(format!("{path}: {}", chain(e))),
    }
}

/// A text file, or `None` when there is none.
fn read_text(path: &Path) -> Result<Option<String>, Failure> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(cannot_read(path, &e)),
    };
    let mut text = String::new();
    let n = file.take(MAX_JSON_BYTES + 1).read_to_string(&mut text);
    match n.map_err(|e| cannot_read(path, &e))? as u64 {
        n if n > MAX_JSON_BYTES => Err(Failure::Failed(format!("{} is too large", path.display()))),
        _ => Ok(Some(text)),
    }
}
