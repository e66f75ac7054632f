//! [`Loader`]: a model's bytes, as they come, onto a device.
//!
//! Nothing but the tensor at hand is kept: ternary tensors are gathered whole (they are small, and
//! some of their layouts put the scale last), big dense tables are converted row by row. So the
//! peak is the packed weights, plus the largest single tensor, plus the header.

use super::device::Device;
use super::generate::Session;
use super::i2s::I2sQueue;
use super::info::ModelInfo;
use super::repack;
use crate::backend::{Backend, BackendError, KvType, RunOptions};
use crate::error::Error;
use crate::format::{DType, Event, FormatError, TensorInfo, gguf, safetensors};
use crate::model::weights::{self, How, Naming, Placement};
use crate::model::{Config, ModelError, WeightMap, forward, resolve};
use crate::plan::{MatrixType, Plan, WeightId, WeightPart};
use crate::ternary::{TernaryError, i2_s};
use crate::tokenizer::{Tokenizer, TokenizerError};
use std::collections::HashMap;

/// Context of a session when the user asks for none: a longer one costs memory that few need.
const DEFAULT_CONTEXT: u32 = 4096;

/// Choices of the user about a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Positions in the KV cache; `None`: the model's, at most 4096.
    pub context: Option<u32>,
    /// Element type of the KV cache.
    pub kv_type: KvType,
    /// Activation rule, type of dense matrices.
    pub weights: weights::Options,
    /// Layout of I2_S tensors; `None`: told by looking at the data.
    pub i2s: Option<i2_s::Variant>,
}

/// The small files beside safetensors weights, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HfFiles {
    /// `config.json`.
    pub config: String,
    /// `tokenizer.json`; without it the session has no tokenizer.
    pub tokenizer: Option<String>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<String>,
    /// `generation_config.json`.
    pub generation_config: Option<String>,
    /// `chat_template.jinja`.
    pub chat_template: Option<String>,
}

/// What a load is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading metadata and the list of tensors.
    Header,
    /// Reading and repacking weights.
    Weights,
    /// Making buffers and compiling kernels.
    Prepare,
}

/// How far a load has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Bytes taken in.
    pub done_bytes: u64,
    /// Bytes of all files, where known.
    pub total_bytes: Option<u64>,
}

// One a file: their size is of no concern.
#[allow(clippy::large_enum_variant)]
enum Parser {
    Gguf(gguf::Parser),
    Safetensors(safetensors::Parser),
}

impl Parser {
    fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Event<'a>, FormatError> {
        match self {
            Parser::Gguf(p) => p.next(input),
            Parser::Safetensors(p) => p.next(input),
        }
    }

    fn finish(&self) -> Result<(), FormatError> {
        match self {
            Parser::Gguf(p) => p.finish(),
            Parser::Safetensors(p) => p.finish(),
        }
    }

    fn tensors(&self) -> &[TensorInfo] {
        match self {
            Parser::Gguf(p) => p.tensors(),
            Parser::Safetensors(p) => p.tensors(),
        }
    }
}

/// One of the files of a model.
struct File {
    parser: Parser,
    has_header: bool,
    /// Bytes of the tensor at hand that are not on the device yet.
    gathered: Vec<u8>,
    /// Rows of it that are.
    rows_done: u64,
}

/// Takes the files of a model and makes a [`Session`] of them.
pub struct Loader {
    device: Device,
    options: LoadOptions,
    hf: Option<HfFiles>,
    files: Vec<File>,
    filling: Option<Filling>,
    done_bytes: u64,
    total_bytes: Option<u64>,
}

/// State between the headers and the end.
struct Filling {
    config: Config,
    name: String,
    tokenizer: Result<Tokenizer, TokenizerError>,
    map: WeightMap,
    plan: Plan,
    /// Index of each file's first tensor in `map.placements`.
    first: Vec<usize>,
    /// Row scales of the ternary weights: they come from several tensors and are multiplied.
    row_scales: HashMap<WeightId, Vec<f32>>,
    /// I2_S tensors that wait for their layout to be known.
    i2s: I2sQueue,
}

impl Loader {
    /// Loads a GGUF file of `bytes` bytes (if known).
    pub fn gguf(device: Device, bytes: Option<u64>, options: LoadOptions) -> Self {
        Loader::new(device, None, vec![(Parser::Gguf(gguf::Parser::new(bytes)), bytes)], options)
    }

    /// Loads safetensors weights: `shards` are the lengths of the files (if known).
    pub fn safetensors(
        device: Device,
        files: HfFiles,
        shards: &[Option<u64>],
        options: LoadOptions,
    ) -> Self {
        let parsers = shards
            .iter()
            .map(|&bytes| (Parser::Safetensors(safetensors::Parser::new(bytes)), bytes))
            .collect();
        Loader::new(device, Some(files), parsers, options)
    }

    fn new(
        device: Device,
        hf: Option<HfFiles>,
        parsers: Vec<(Parser, Option<u64>)>,
        options: LoadOptions,
    ) -> Self {
        let total_bytes = parsers.iter().map(|p| p.1).sum();
        let files = parsers
            .into_iter()
            .map(|(parser, _)| File {
                parser,
                has_header: false,
                gathered: Vec::new(),
                rows_done: 0,
            })
            .collect();
        Loader { device, options, hf, files, filling: None, done_bytes: 0, total_bytes }
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        let phase = if self.filling.is_some() { Phase::Weights } else { Phase::Header };
        Progress { phase, done_bytes: self.done_bytes, total_bytes: self.total_bytes }
    }

    /// Takes the next bytes of file `file` and says how many it took: all, unless that file's
    /// header is complete and another's is not; then the rest must be offered again later.
    /// (Where a model has several files, give each up to the end of its header first.)
    ///
    /// # Errors
    /// Damaged or unknown files, weights that cannot be decoded, device errors. The loader is of
    /// no use afterwards.
    pub async fn push(&mut self, file: usize, bytes: &[u8]) -> Result<usize, Error> {
        if file >= self.files.len() {
            return Err(Error::InvalidArgument { reason: format!("there is no file {file}") });
        }
        let mut input = bytes;
        loop {
            if self.files[file].has_header && self.filling.is_none() {
                break;
            }
            match self.files[file].parser.next(&mut input)? {
                Event::Header => {
                    self.files[file].has_header = true;
                    if self.files.iter().all(|f| f.has_header) {
                        self.begin().await?;
                    }
                }
                Event::Data { tensor, bytes, .. } => self.data(file, tensor, bytes)?,
                Event::NeedInput => break,
            }
        }
        let taken = bytes.len() - input.len();
        self.done_bytes += taken as u64;
        Ok(taken)
    }

    /// Ends the load: checks that nothing is missing and readies the device.
    ///
    /// # Errors
    /// Files that ended too soon; device errors.
    pub async fn finish(mut self) -> Result<Session, Error> {
        for file in &self.files {
            file.parser.finish()?;
        }
        let Some(mut filling) = self.filling else {
            return Err(Error::InvalidArgument { reason: "a model needs a file".to_string() });
        };
        filling.i2s.give_up();
        filling.pack_waiting(&mut self.device)?;
        for (id, scales) in &filling.row_scales {
            self.device.write_weight(
                *id,
                WeightPart::RowScales,
                0,
                bytemuck::cast_slice(scales.as_slice()),
            )?;
        }
        let trained = filling.config.max_position_embeddings;
        let chunk = self.device.chunk_tokens();
        let context = self.options.context.unwrap_or(trained.min(DEFAULT_CONTEXT));
        let run =
            RunOptions { context, kv_type: self.options.kv_type, max_tokens: chunk.min(context) };
        self.device.prepare(&filling.plan, run).await?;
        let format = if self.hf.is_some() { "safetensors" } else { "GGUF" };
        let tensors = self.files.iter().flat_map(|f| f.parser.tensors());
        let info = ModelInfo::new(
            filling.name,
            format,
            filling.config,
            &filling.plan,
            tensors.map(|t| (t.dtype, t.bytes)),
            run,
        );
        Ok(Session::new(self.device, filling.plan, info, filling.tokenizer, run.max_tokens))
    }

    /// All headers are there: find every tensor's place and make room for the weights.
    async fn begin(&mut self) -> Result<(), Error> {
        let mut first = Vec::new();
        let mut tensors: Vec<TensorInfo> = Vec::new();
        for file in &self.files {
            first.push(tensors.len());
            tensors.extend_from_slice(file.parser.tensors());
        }
        let (config, naming, name, tokenizer) = match (&self.files[0].parser, &self.hf) {
            (Parser::Gguf(p), _) => {
                let meta = p.metadata();
                let config = Config::from_gguf(meta)?;
                let name = meta.get_str("general.name").ok().flatten();
                let name = name.unwrap_or(config.architecture.name()).to_string();
                (config, Naming::Gguf, name, Tokenizer::from_gguf(meta))
            }
            (Parser::Safetensors(_), hf) => {
                let hf = hf.as_ref().cloned().unwrap_or_default();
                let config = Config::from_hf(&hf.config)?;
                let name = config.architecture.name().to_string();
                (config, Naming::Hf, name, hf_tokenizer(&hf))
            }
        };
        check_distinct(&tensors)?;
        let map = resolve(&config, naming, &tensors, self.options.weights)?;
        check_tokenizer(&tokenizer, map.vocab, naming)?;
        if self.options.context == Some(0) {
            return Err(Error::InvalidArgument { reason: "the context must be at least 1".into() });
        }
        let plan = forward(&config, &map);
        self.device.allocate(&plan.weights).await?;
        let row_scales = map
            .placements
            .iter()
            .flatten()
            .filter(|p| p.how == How::Ternary)
            .map(|p| (p.weight, vec![1.0; plan.weight(p.weight).kind.shape().0 as usize]))
            .collect();
        let i2s = I2sQueue::new(&map, self.options.i2s);
        self.filling = Some(Filling { config, name, tokenizer, map, plan, first, row_scales, i2s });
        Ok(())
    }

    /// A piece of a tensor.
    fn data(&mut self, file: usize, tensor: usize, bytes: &[u8]) -> Result<(), Error> {
        let Some(filling) = &mut self.filling else { return Ok(()) };
        let File { parser, gathered, rows_done, .. } = &mut self.files[file];
        let info = &parser.tensors()[tensor];
        let Some(placement) = filling.map.placements[filling.first[file] + tensor] else {
            return Ok(());
        };
        gathered.extend_from_slice(bytes);
        let row_bytes = match placement.how {
            How::Dense(_) => info.bytes / u64::from(placement.rows.max(1)),
            _ => info.bytes,
        };
        let rows = gathered.len() as u64 / row_bytes.max(1);
        if rows == 0 {
            return Ok(());
        }
        let whole = (rows * row_bytes) as usize;
        let bytes = &gathered[..whole];
        let mut sink = Sink { device: &mut self.device, info, placement };
        match placement.how {
            How::Ternary if info.dtype == DType::I2_S => {
                filling.i2s.hold(info, placement, bytes);
                filling.pack_waiting(&mut self.device)?;
            }
            How::Ternary => sink.ternary(bytes, i2_s::Variant::default(), filling)?,
            How::Dense(to) => sink.dense(bytes, *rows_done, rows, to)?,
            How::Vector => {
                let values = sink.vector(bytes)?;
                filling.i2s.norm(placement.weight, &values);
                filling.pack_waiting(&mut self.device)?;
            }
            How::RowScale { divide } => sink.row_scale(bytes, divide, filling)?,
        }
        gathered.drain(..whole);
        *rows_done += rows;
        if *rows_done * row_bytes == info.bytes {
            *rows_done = 0;
            // A tensor's worth of memory is not kept for the next, smaller one.
            *gathered = Vec::new();
        }
        Ok(())
    }
}

impl Filling {
    /// Packs the I2_S tensors whose layout is known by now.
    fn pack_waiting(&mut self, device: &mut Device) -> Result<(), Error> {
        let Some((variant, tensors)) = self.i2s.take() else { return Ok(()) };
        for held in tensors {
            let mut sink = Sink { device, info: &held.info, placement: held.placement };
            sink.ternary(&held.bytes, variant, self)?;
        }
        Ok(())
    }
}

/// Complete data of (rows of) a tensor on its way to the device.
struct Sink<'a> {
    device: &'a mut Device,
    info: &'a TensorInfo,
    placement: Placement,
}

impl Sink<'_> {
    fn write(&mut self, part: WeightPart, offset: u64, bytes: &[u8]) -> Result<(), BackendError> {
        self.device.write_weight(self.placement.weight, part, offset, bytes)
    }

    fn ternary(
        &mut self,
        bytes: &[u8],
        variant: i2_s::Variant,
        filling: &mut Filling,
    ) -> Result<(), Error> {
        let Placement { weight, row, rows, k, .. } = self.placement;
        let packed = repack::pack(self.info, bytes, rows as usize, k as usize, variant)
            .map_err(|e| in_tensor(self.info, e))?;
        let kind = filling.plan.weight(weight).kind;
        let at = |part| u64::from(row) * kind.row_bytes(part);
        self.write(WeightPart::Data, at(WeightPart::Data), &packed.codes)?;
        if let Some((_, scales)) = &packed.block_scales {
            let part = WeightPart::BlockScales;
            self.write(part, at(part), bytemuck::cast_slice(scales))?;
        }
        if let Some(all) = filling.row_scales.get_mut(&weight) {
            for (scale, &s) in all[row as usize..].iter_mut().zip(&packed.row_scales) {
                *scale *= s;
            }
        }
        Ok(())
    }

    fn dense(mut self, bytes: &[u8], first: u64, rows: u64, to: MatrixType) -> Result<(), Error> {
        let k = self.placement.k as usize;
        let (values, scales) = repack::convert_rows(self.info.dtype, to, k, bytes)
            .map_err(|e| in_tensor(self.info, e))?;
        let row = u64::from(self.placement.row) + first;
        self.write(WeightPart::Data, row * (values.len() as u64 / rows), &values)?;
        if !scales.is_empty() {
            let offset = row * (scales.len() as u64 / rows);
            self.write(WeightPart::BlockScales, offset, &scales)?;
        }
        Ok(())
    }

    fn vector(&mut self, bytes: &[u8]) -> Result<Vec<f32>, Error> {
        let values = repack::floats(self.info, bytes).map_err(|e| in_tensor(self.info, e))?;
        self.write(WeightPart::Data, 0, bytemuck::cast_slice(&values))?;
        Ok(values)
    }

    fn row_scale(
        &mut self,
        bytes: &[u8],
        divide: bool,
        filling: &mut Filling,
    ) -> Result<(), Error> {
        let Placement { weight, row, rows, .. } = self.placement;
        let values = repack::floats(self.info, bytes).map_err(|e| in_tensor(self.info, e))?;
        let value = values.first().copied().unwrap_or(f32::NAN);
        if !(value.is_finite() && value > 0.0) {
            return Err(Error::Model(ModelError::Invalid {
                key: self.info.name.clone(),
                expected: "a positive finite number".to_string(),
                got: value.to_string(),
            }));
        }
        if let Some(all) = filling.row_scales.get_mut(&weight) {
            for scale in &mut all[row as usize..(row + rows) as usize] {
                *scale = if divide { *scale / value } else { *scale * value };
            }
        }
        Ok(())
    }
}

fn in_tensor(info: &TensorInfo, source: TernaryError) -> Error {
    Error::Weights { tensor: info.name.clone(), source }
}

/// Several safetensors files could hold a tensor twice; each parser has checked its own.
fn check_distinct(tensors: &[TensorInfo]) -> Result<(), FormatError> {
    let mut seen = std::collections::HashSet::new();
    match tensors.iter().find(|t| !seen.insert(t.name.as_str())) {
        None => Ok(()),
        Some(t) => Err(FormatError::DuplicateTensor { tensor: t.name.clone() }),
    }
}

fn hf_tokenizer(hf: &HfFiles) -> Result<Tokenizer, TokenizerError> {
    let mut tokenizer = Tokenizer::from_hf(
        hf.tokenizer.as_deref().unwrap_or_default(),
        hf.tokenizer_config.as_deref(),
        hf.generation_config.as_deref(),
    )?;
    if let Some(template) = &hf.chat_template {
        tokenizer.set_chat_template(template);
    }
    Ok(tokenizer)
}

/// A vocabulary of another size than the embedding belongs to another model.
/// (Embeddings of safetensors models are often padded, so that there may be fewer tokens.)
fn check_tokenizer(
    tokenizer: &Result<Tokenizer, TokenizerError>,
    vocab: u32,
    naming: Naming,
) -> Result<(), ModelError> {
    let Ok(tokenizer) = tokenizer else { return Ok(()) };
    let tokens = tokenizer.vocab_size();
    let fits = match naming {
        Naming::Gguf => tokens == vocab as usize,
        Naming::Hf => tokens <= vocab as usize,
    };
    if fits {
        return Ok(());
    }
    Err(ModelError::Invalid {
        key: "number of tokens of the tokenizer".to_string(),
        expected: format!("{vocab}, the rows of the embedding"),
        got: tokens.to_string(),
    })
}
