//! The model to quantise: its tensors under their GGUF names, and the metadata of the output.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::{LinearType, Options, QuantizeError, vocabulary};
use crate::error::Error;
use crate::format::{
    Container, DType, Event, FormatError, Metadata, TensorInfo, Value, gguf, safetensors, sniff,
};
use crate::model::config::HfLinear;
use crate::model::weights::{self, Naming};
use crate::model::{Architecture, Config, ModelError};
use crate::session::files;
use crate::ternary::TernaryError;
use crate::ternary::i2_s::{Detector, Variant};

/// Bytes read at a time while looking for the end of a header.
const HEADER_CHUNK_BYTES: usize = 1 << 20;

/// What a tensor of the output is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// A ternary linear.
    Linear {
        /// Tensor with its separate scale, and whether that divides.
        scale: Option<(usize, bool)>,
        /// Heads whose rows change from half-split to interleaved order (arch `llama`).
        permute_heads: Option<u32>,
    },
    /// Embedding or head.
    Table,
    /// Floats that become f32.
    Vector,
    /// Bytes that stay as they are.
    Raw,
}

/// A tensor of the output.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Its name there.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<u64>,
    /// Where it comes from: an index into [`Input::tensors`].
    pub tensor: usize,
    pub kind: Kind,
}

/// An opened model.
pub(super) struct Input {
    files: Vec<(PathBuf, File)>,
    /// Its tensors, each with the index of its file.
    pub tensors: Vec<(usize, TensorInfo)>,
    /// Metadata of the output.
    pub metadata: Metadata,
    /// The tensors of the output, in order.
    pub jobs: Vec<Job>,
    /// Whether the model says that it was trained for ternary weights.
    pub declared: bool,
    /// Layout of its I2_S tensors.
    pub variant: Variant,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Input {
    pub(super) fn open(
        path: &Path,
        output: &Path,
        options: &Options,
    ) -> Result<Input, QuantizeError> {
        let meta = std::fs::metadata(path).map_err(|e| files::io(path, e))?;
        let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
        if same(path, output) {
            let reason = "the output would replace the input".to_owned();
            return Err(QuantizeError::Unsupported { reason });
        }
        let mut input = if meta.is_dir() {
            Input::open_folder(path, options)?
        } else {
            Input::open_gguf(path, options)?
        };
        input.variant = match options.i2s {
            Some(variant) => variant,
            None => input.detect_variant()?,
        };
        Ok(input)
    }

    fn open_gguf(path: &Path, options: &Options) -> Result<Input, QuantizeError> {
        let mut file = File::open(path).map_err(|e| files::io(path, e))?;
        let bytes = file.metadata().map_err(|e| files::io(path, e))?.len();
        let mut start = Vec::new();
        file.by_ref().take(9).read_to_end(&mut start).map_err(|e| files::io(path, e))?;
        if sniff(&start).map_err(Error::from)? == Container::Safetensors {
            let reason = "a safetensors file needs its config.json: give the folder".to_owned();
            return Err(QuantizeError::Unsupported { reason });
        }
        let mut parser = gguf::Parser::new(Some(bytes));
        let end = || parser_end(path);
        read_header(&mut file, path, |input| Ok(parser.next(input)? == Event::Header), end)?;
        let config = Config::from_gguf(parser.metadata()).map_err(Error::from)?;
        let infos = parser.tensors().to_vec();
        check_model(&config, Naming::Gguf, &infos)?;
        let mut metadata = Metadata::default();
        for (key, value) in parser.metadata().iter() {
            let value = match key {
                "general.file_type" => Value::U32(options.linears.file_type()),
                _ => value.clone(),
            };
            metadata.insert(key.to_owned(), value).map_err(Error::from)?;
        }
        if metadata.get("general.file_type").is_none() {
            let value = Value::U32(options.linears.file_type());
            metadata.insert("general.file_type".into(), value).map_err(Error::from)?;
        }
        let by_name: HashMap<&str, usize> =
            infos.iter().enumerate().map(|(i, t)| (&*t.name, i)).collect();
        let mut jobs = Vec::new();
        for (i, info) in infos.iter().enumerate() {
            let scale_of = info.name.strip_suffix(".scale").map(|stem| format!("{stem}.weight"));
            if scale_of.is_some_and(|matrix| by_name.contains_key(&*matrix)) {
                continue; // folded into the matrix
            }
            let kind = match kind_of(&info.name) {
                Kind::Linear { .. } => {
                    let scale = info.name.replace(".weight", ".scale");
                    let scale = by_name.get(&*scale).map(|&i| (i, false));
                    Kind::Linear { scale, permute_heads: None }
                }
                // Tables that are ternary themselves stay so.
                Kind::Table if is_dense(info.dtype) => Kind::Table,
                Kind::Vector if is_float(info.dtype) => Kind::Vector,
                _ => Kind::Raw,
            };
            let (name, shape) = (info.name.clone(), info.shape.clone());
            jobs.push(Job { name, shape, tensor: i, kind });
        }
        drop(by_name);
        Ok(Input {
            files: vec![(path.to_path_buf(), file)],
            tensors: infos.into_iter().map(|t| (0, t)).collect(),
            metadata,
            jobs,
            declared: is_bitnet(config.architecture),
            variant: Variant::default(),
            notes: Vec::new(),
        })
    }

    fn open_folder(folder: &Path, options: &Options) -> Result<Input, QuantizeError> {
        let hf = files::hf_files(folder)?;
        let config = Config::from_hf(&hf.config).map_err(Error::from)?;
        let mut files = Vec::new();
        let mut tensors = Vec::new();
        for path in files::shards(folder)? {
            let mut file = File::open(&path).map_err(|e| files::io(&path, e))?;
            let bytes = file.metadata().map_err(|e| files::io(&path, e))?.len();
            let mut parser = safetensors::Parser::new(Some(bytes));
            let end = || parser_end(&path);
            read_header(&mut file, &path, |input| Ok(parser.next(input)? == Event::Header), end)?;
            tensors.extend(parser.tensors().iter().map(|t| (files.len(), t.clone())));
            files.push((path, file));
        }
        let infos: Vec<TensorInfo> = tensors.iter().map(|t| t.1.clone()).collect();
        let map = check_model(&config, Naming::Hf, &infos)?;
        if config.linear_norm_eps.is_some() {
            return Err(QuantizeError::Unsupported {
                reason: "GGUF has no place for the norms of use_rms_norm".into(),
            });
        }
        let jobs = hf_jobs(&config, &infos)?;
        let name = folder.canonicalize().ok();
        let name = name.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let (metadata, notes) =
            vocabulary::metadata(&config, map.vocab, &name, &hf, options.linears)?;
        Ok(Input {
            files,
            tensors,
            metadata,
            jobs,
            declared: config.hf_linear.is_some() || is_bitnet(config.architecture),
            variant: Variant::default(),
            notes,
        })
    }

    /// The bytes of a tensor, from byte `start` on.
    pub(super) fn read(
        &mut self,
        tensor: usize,
        start: u64,
        bytes: usize,
    ) -> Result<Vec<u8>, Error> {
        let (file, info) = &self.tensors[tensor];
        let (path, file) = &mut self.files[*file];
        let mut data = vec![0; bytes];
        file.seek(SeekFrom::Start(info.offset + start))
            .and_then(|_| file.read_exact(&mut data))
            .map_err(|e| files::io(path, e))?;
        Ok(data)
    }

    /// All bytes of a tensor; the parser has checked that the file has them.
    pub(super) fn read_all(&mut self, tensor: usize) -> Result<Vec<u8>, Error> {
        let info = &self.tensors[tensor].1;
        let bytes = usize::try_from(info.bytes).map_err(|_| {
            let reason = format!("tensor {:?} does not fit memory", info.name);
            Error::InvalidArgument { reason }
        })?;
        self.read(tensor, 0, bytes)
    }

    /// The layout of the I2_S tensors, from the layers and the norms in front of them.
    fn detect_variant(&mut self) -> Result<Variant, Error> {
        let mut detector = Detector::default();
        let find =
            |input: &Input, name: String| input.tensors.iter().position(|(_, t)| t.name == name);
        for layer in 0.. {
            let mut any = false;
            for (linear, norm) in [
                ("attn_q", "attn_norm"),
                ("attn_v", "attn_norm"),
                ("attn_output", "attn_sub_norm"),
                ("ffn_gate", "ffn_norm"),
                ("ffn_up", "ffn_norm"),
                ("ffn_down", "ffn_sub_norm"),
            ] {
                let Some(matrix) = find(self, format!("blk.{layer}.{linear}.weight")) else {
                    continue;
                };
                let info = self.tensors[matrix].1.clone();
                if info.dtype != DType::I2_S {
                    continue;
                }
                any = true;
                let Some(norm) = find(self, format!("blk.{layer}.{norm}.weight")) else {
                    continue;
                };
                let norm_info = self.tensors[norm].1.clone();
                let norm = crate::session::repack::floats(&norm_info, &self.read_all(norm)?)
                    .map_err(|e| weights_error(&norm_info.name, e))?;
                let bytes = self.read_all(matrix)?;
                if let [n, k] = info.shape[..] {
                    detector.observe(&norm, &bytes, n as usize, k as usize);
                }
                if let Some(variant) = detector.variant() {
                    return Ok(variant);
                }
            }
            if !any {
                break;
            }
        }
        Ok(Variant::default())
    }
}

/// A damaged or undecodable tensor.
pub(super) fn weights_error(tensor: &str, source: TernaryError) -> Error {
    Error::Weights { tensor: tensor.to_owned(), source }
}

fn check_model(
    config: &Config,
    naming: Naming,
    infos: &[TensorInfo],
) -> Result<weights::WeightMap, Error> {
    Ok(weights::resolve(config, naming, infos, weights::Options::default())?)
}

fn is_bitnet(architecture: Architecture) -> bool {
    matches!(architecture, Architecture::BitNet | Architecture::BitNetB158)
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

fn is_dense(dtype: DType) -> bool {
    is_float(dtype) || matches!(dtype, DType::Q8_0 | DType::Q6_K | DType::Q4_K | DType::Q4_0)
}

/// What a tensor of this GGUF name becomes.
fn kind_of(name: &str) -> Kind {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    match stem.rsplit('.').next().unwrap_or_default() {
        "attn_q" | "attn_k" | "attn_v" | "attn_output" | "ffn_gate" | "ffn_up" | "ffn_down" => {
            Kind::Linear { scale: None, permute_heads: None }
        }
        "token_embd" | "output" => Kind::Table,
        _ => Kind::Vector,
    }
}

/// The output's tensors of a Hugging Face model: embedding, layer after layer, norm, head.
fn hf_jobs(config: &Config, infos: &[TensorInfo]) -> Result<Vec<Job>, QuantizeError> {
    let by_name: HashMap<&str, usize> =
        infos.iter().enumerate().map(|(i, t)| (&*t.name, i)).collect();
    let tied = config.tie_word_embeddings == Some(true) || is_bitnet(config.architecture);
    let mut jobs = Vec::new();
    for (tensor, info) in infos.iter().enumerate() {
        // Everything without a name in GGUF was refused by `resolve`, or is read with its matrix.
        let Some(name) = weights::gguf_name(&info.name) else { continue };
        if name == "output.weight" && tied {
            continue;
        }
        let mut shape = info.shape.clone();
        let kind = match kind_of(&name) {
            Kind::Linear { .. } => {
                let scale = by_name.get(format!("{}_scale", info.name).as_str());
                let divide = config.hf_linear != Some(HfLinear::Multiply);
                if info.dtype == DType::U8
                    && let Some(rows) = shape.first_mut()
                {
                    *rows *= 4; // four rows a byte
                }
                let heads = match config.architecture {
                    Architecture::Llama if name.ends_with("attn_q.weight") => {
                        Some(config.num_attention_heads)
                    }
                    Architecture::Llama if name.ends_with("attn_k.weight") => {
                        Some(config.num_key_value_heads)
                    }
                    _ => None,
                };
                Kind::Linear { scale: scale.map(|&i| (i, divide)), permute_heads: heads }
            }
            other => other,
        };
        jobs.push(Job { name, shape, tensor, kind });
    }
    jobs.sort_by_cached_key(|job| {
        let mut parts = job.name.split('.');
        let layer = match (parts.next(), parts.next()) {
            (Some("blk"), Some(layer)) => layer.parse().unwrap_or(u64::MAX),
            (Some("token_embd"), _) => 0,
            _ => u64::MAX,
        };
        (layer, job.name != "token_embd.weight", job.tensor)
    });
    Ok(jobs)
}

/// Feeds a parser from the start of a file until its header is complete.
fn read_header(
    file: &mut File,
    path: &Path,
    mut header: impl FnMut(&mut &[u8]) -> Result<bool, FormatError>,
    end: impl Fn() -> Error,
) -> Result<(), Error> {
    file.seek(SeekFrom::Start(0)).map_err(|e| files::io(path, e))?;
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let chunk = file.by_ref().take(HEADER_CHUNK_BYTES as u64).read_to_end(&mut buffer);
        if chunk.map_err(|e| files::io(path, e))? == 0 {
            return Err(end());
        }
        if header(&mut &buffer[..])? {
            return Ok(());
        }
    }
}

fn parser_end(path: &Path) -> Error {
    files::io(path, std::io::ErrorKind::UnexpectedEof.into())
}

/// Something that the output cannot hold.
pub(super) fn unsupported(reason: impl Into<String>) -> QuantizeError {
    QuantizeError::Unsupported { reason: reason.into() }
}

impl From<ModelError> for QuantizeError {
    fn from(e: ModelError) -> Self {
        QuantizeError::Input(e.into())
    }
}

impl From<FormatError> for QuantizeError {
    fn from(e: FormatError) -> Self {
        QuantizeError::Input(e.into())
    }
}

impl LinearType {
    /// Bytes of a row must be whole: what `in` features must be a multiple of.
    pub(super) fn row_multiple(self) -> u64 {
        match self {
            LinearType::I2_S => 128,
            LinearType::TQ2_0 | LinearType::TQ1_0 => 256,
        }
    }
}
