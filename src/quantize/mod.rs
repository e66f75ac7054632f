//! Quantising: a model with float master weights, packed weights or another GGUF → a GGUF file
//! with ternary linears.
//!
//! Tensor by tensor: at no time is more in memory than the largest linear, or some rows of the
//! embedding. The output appears under its name only when it is complete.
//!
//! # Which models
//! Rounding weights to −1, 0, +1 ruins a model that was not trained for it: of Gaussian weights it
//! changes 51 % (rms). Master weights of a ternary-trained model look the same, for they start out
//! Gaussian and training never pulls them onto the three values; no statistic of them tells the
//! two kinds apart. So a model is taken when it *says* what it is (`quantization_config`, or
//! architecture `bitnet`), or when its linears *are* ternary: packed, or floats that are all 0 or
//! ± one number. Anything else is refused unless forced.
//!
//! # Scales
//! The absmean is rounded to bf16, as in Hugging Face's packed checkpoints and in the files that
//! the reference quantisers make of them.
//!
//! May import: floors 0 to 4.

mod convert;
mod input;
mod vocabulary;

use std::path::Path;

use crate::error::Error;
use crate::format::DType;
use crate::session::files::NewFile;
use crate::ternary::i2_s;

/// Type of the ternary linears in the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the names that files and programs use")]
pub enum LinearType {
    /// 2 bits, one scale a tensor (bitnet.cpp; rows of a multiple of 128).
    #[default]
    I2_S,
    /// 2.06 bits, one scale a 256 (llama.cpp; rows of a multiple of 256).
    TQ2_0,
    /// 1.69 bits, one scale a 256 (llama.cpp; rows of a multiple of 256).
    TQ1_0,
}

impl LinearType {
    /// Type of the tensors.
    pub fn dtype(self) -> DType {
        match self {
            LinearType::I2_S => DType::I2_S,
            LinearType::TQ2_0 => DType::TQ2_0,
            LinearType::TQ1_0 => DType::TQ1_0,
        }
    }

    /// `general.file_type`.
    ///
    /// # Source
    /// llama.cpp `include/llama.h` (`llama_ftype`); bitnet.cpp for I2_S.
    fn file_type(self) -> u32 {
        match self {
            LinearType::I2_S => 40,
            LinearType::TQ2_0 => 37,
            LinearType::TQ1_0 => 36,
        }
    }
}

/// Type of embedding and head in the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the names that files and programs use")]
pub enum TableType {
    /// 16 bits.
    #[default]
    F16,
    /// 8.5 bits.
    Q8_0,
    /// 6.6 bits.
    Q6_K,
}

impl TableType {
    /// Type of the tensors.
    pub fn dtype(self) -> DType {
        match self {
            TableType::F16 => DType::F16,
            TableType::Q8_0 => DType::Q8_0,
            TableType::Q6_K => DType::Q6_K,
        }
    }
}

/// What to make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Type of the ternary linears.
    pub linears: LinearType,
    /// Type of embedding and head.
    pub tables: TableType,
    /// Also take a model that was not trained for ternary weights.
    pub force: bool,
    /// Layout of I2_S tensors in the input; `None`: told by looking at the data.
    pub i2s: Option<i2_s::Variant>,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The tensor at hand, under its name in the output.
    pub tensor: &'a str,
    /// Bytes written.
    pub done_bytes: u64,
    /// Length that the output will have.
    pub total_bytes: u64,
}

/// One tensor of the output.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TensorReport {
    /// Its name in the output.
    pub name: String,
    /// Its shape, outermost first.
    pub shape: Vec<u64>,
    /// Type in the input.
    pub from: &'static str,
    /// Type in the output.
    pub to: &'static str,
    /// Bytes in the output.
    pub bytes: u64,
    /// Share of weights that are zero, of ternary tensors.
    pub sparsity: Option<f64>,
    /// Root of the mean squared change of the weights, relative to their root mean square.
    pub relative_error: f64,
}

/// What was made.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// All tensors, in file order.
    pub tensors: Vec<TensorReport>,
    /// Number of weights.
    pub weights: u64,
    /// Bytes of the input's tensors.
    pub input_bytes: u64,
    /// Length of the output.
    pub output_bytes: u64,
    /// Bytes of the same weights as f32.
    pub f32_bytes: u64,
    /// Bytes of the same weights as f16.
    pub f16_bytes: u64,
    /// What the user should know, in sentences.
    pub notes: Vec<String>,
}

impl Report {
    /// Share of the f32 size that is saved.
    pub fn saved_against_f32(&self) -> f64 {
        1.0 - self.output_bytes as f64 / (self.f32_bytes as f64).max(1.0)
    }

    /// Share of the f16 size that is saved.
    pub fn saved_against_f16(&self) -> f64 {
        1.0 - self.output_bytes as f64 / (self.f16_bytes as f64).max(1.0)
    }

    /// Share of zeros among all ternary weights.
    pub fn sparsity(&self) -> f64 {
        let ternary = self.tensors.iter().filter_map(|t| {
            let elems: u64 = t.shape.iter().product();
            Some((t.sparsity? * elems as f64, elems as f64))
        });
        let (zeros, all) = ternary.fold((0.0, 0.0), |sum, t| (sum.0 + t.0, sum.1 + t.1));
        zeros / f64::max(all, 1.0)
    }
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The input cannot be read, or is not a model that we know.
    #[error(transparent)]
    Input(#[from] Error),
    /// The model was not trained for ternary weights.
    #[error(
        "{tensor:?} is not ternary (rounding it to three values would change it by {percent:.0} % \
         rms), and nothing says that the model was trained for ternary weights \
         (quantization_config in config.json, or architecture bitnet): the result would write \
         nonsense"
    )]
    NotTernary {
        /// First linear that is not ternary.
        tensor: String,
        /// Relative error of its rounding.
        percent: f64,
    },
    /// Something that the output cannot hold.
    #[error("{reason}")]
    Unsupported {
        /// What.
        reason: String,
    },
    /// The output cannot be written; nothing is left of it.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The output.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The user stopped it; nothing is left of the output.
    #[error("cancelled")]
    Cancelled,
}

/// Told how it goes on; returns whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress<'_>) -> bool;

/// Quantises `input` (a GGUF file, or a folder with `config.json` and safetensors weights) to the
/// GGUF file `output`, which is replaced if it exists.
///
/// # Errors
/// [`QuantizeError`]; `output` is then as it was.
pub fn quantize(
    input: &Path,
    output: &Path,
    options: &Options,
    on_progress: OnProgress<'_>,
) -> Result<Report, QuantizeError> {
    let mut input = input::Input::open(input, output, options)?;
    let cannot_write = |source| QuantizeError::Write { path: output.display().to_string(), source };
    let mut file = NewFile::create(output).map_err(cannot_write)?;
    let report = convert::write(&mut input, options, &mut file, on_progress);
    // The disk may also be full at the very end.
    let report = report.and_then(|report| Ok(file.finish().map(|()| report)?));
    report.map_err(|e| match e {
        QuantizeError::Write { source, .. } => cannot_write(source),
        other => other,
    })
}

/// The path is filled in by [`quantize`]: only it knows.
impl From<std::io::Error> for QuantizeError {
    fn from(source: std::io::Error) -> Self {
        QuantizeError::Write { path: String::new(), source }
    }
}
