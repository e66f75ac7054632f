//! Options that several commands share.

use super::failure::Failure;
use bitnet_rust::backend::{KernelFeatures, KvType};
use bitnet_rust::model::Activations;
use bitnet_rust::sampling::Sampling;
use bitnet_rust::session::{DeviceChoice, DeviceOptions, LoadOptions};
use clap::{Args, ValueEnum};
use std::hash::{BuildHasher, Hasher};

/// How a model is found, and what is said about it.
#[derive(Args)]
#[command(next_help_heading = "Other")]
pub struct SourceArgs {
    /// Never use the network: hf: models must be in the cache
    #[arg(long)]
    pub offline: bool,
    /// No progress and no statistics on stderr
    #[arg(short, long)]
    pub quiet: bool,
}

/// Which machine runs the model, and how.
#[derive(Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// Where to run: the GPU if there is a usable one, or else the CPU
    #[arg(long, value_enum, default_value_t)]
    pub backend: BackendArg,
    /// GPU to use: part of its name (see `bitnet devices`)
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
    /// What GPU kernels use, such as subgroups+dot4+matrices, all or none [default: what is fastest,
    /// measured once an adapter]
    #[arg(long, value_name = "FEATURES")]
    pub kernels: Option<KernelFeatures>,
    #[command(flatten)]
    pub cpu: CpuArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

/// Options of the CPU.
#[derive(Args)]
pub struct CpuArgs {
    /// CPU threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// Options of a load.
#[derive(Args)]
pub struct LoadArgs {
    /// Tokens the context has room for [default: the model's, at most 4096]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub context: Option<u32>,
    /// Type of the KV cache
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub kv: KvArg,
    /// Rounding of activations [auto: what the file's format asks for]
    #[arg(long, value_enum, default_value_t, value_name = "RULE")]
    pub activations: ActivationsArg,
}

/// `--backend`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    #[default]
    Auto,
    Gpu,
    Cpu,
}

/// `--kv`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum KvArg {
    F32,
    #[default]
    F16,
    Q8,
}

/// `--activations`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ActivationsArg {
    #[default]
    Auto,
    PerToken,
    Block,
    F32,
}

impl MachineArgs {
    pub fn device_options(&self) -> DeviceOptions {
        self.device_options_for(self.backend)
    }

    pub fn device_options_for(&self, backend: BackendArg) -> DeviceOptions {
        DeviceOptions {
            features: self.kernels,
            ..device_options(backend, self.adapter.clone(), &self.cpu)
        }
    }
}

/// How to open a machine.
pub fn device_options(
    backend: BackendArg,
    adapter: Option<String>,
    cpu: &CpuArgs,
) -> DeviceOptions {
    DeviceOptions {
        choice: match backend {
            BackendArg::Auto => DeviceChoice::Auto,
            BackendArg::Gpu => DeviceChoice::Gpu,
            BackendArg::Cpu => DeviceChoice::Cpu,
        },
        adapter,
        threads: cpu.threads.map(usize::from),
        ..DeviceOptions::default()
    }
}

impl LoadArgs {
    pub fn options(&self) -> LoadOptions {
        let mut options = LoadOptions {
            context: self.context,
            kv_type: match self.kv {
                KvArg::F32 => KvType::F32,
                KvArg::F16 => KvType::F16,
                KvArg::Q8 => KvType::Q8,
            },
            ..LoadOptions::default()
        };
        options.weights.activations = match self.activations {
            ActivationsArg::Auto => Activations::Auto,
            ActivationsArg::PerToken => Activations::PerToken,
            ActivationsArg::Block => Activations::Block,
            ActivationsArg::F32 => Activations::F32,
        };
        options
    }
}

/// How tokens are drawn, and when to stop.
#[derive(Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Most tokens to write [default: until the model ends the text, or the context is full]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// 0 takes the most probable token; higher is bolder
    #[arg(short, long, default_value_t = 0.7, allow_negative_numbers = true, value_name = "T")]
    pub temperature: f32,
    /// Only the K most probable tokens; 0: all
    #[arg(long, default_value_t = 40, value_name = "K")]
    pub top_k: u32,
    /// Only the most probable tokens that together have this probability
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true, value_name = "P")]
    pub top_p: f32,
    /// Only tokens with this share of the largest probability
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "P")]
    pub min_p: f32,
    /// Make tokens that occurred less probable; 1: off
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true, value_name = "F")]
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that occurred
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "F")]
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens, once for each time they occurred
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "F")]
    pub frequency_penalty: f32,
    /// How many of the last tokens the penalties look at
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub penalty_window: u32,
    /// Same seed, same text [default: another one each time]
    #[arg(short, long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// End the text at this string; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    /// The parameters, checked.
    pub fn sampling(&self) -> Result<Sampling, Failure> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            penalty_window: self.penalty_window,
            seed: self.seed.unwrap_or_else(random_seed),
        };
        sampling.validate().map_err(|e| Failure::Usage(e.to_string()))?;
        Ok(sampling)
    }
}

/// A seed that is another each time, and that every JSON reader can hold.
fn random_seed() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 32
}

/// `1,2,3`, with or without spaces.
pub fn ids(text: &str) -> Result<Ids, String> {
    let parts = text.split([',', ' ']).map(str::trim).filter(|p| !p.is_empty());
    let ids: Result<Vec<u32>, String> =
        parts.map(|p| p.parse().map_err(|_| format!("{p:?} is not a token id"))).collect();
    match ids? {
        ids if ids.is_empty() => Err("no token ids".to_string()),
        ids => Ok(Ids(ids)),
    }
}

/// Token ids of the command line (as one value: clap takes a `Vec` for repeated options).
#[derive(Clone, Debug)]
pub struct Ids(pub Vec<u32>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_ids() {
        assert_eq!(ids("1,2, 3").unwrap().0, [1, 2, 3]);
        assert_eq!(ids("7").unwrap().0, [7]);
        assert!(ids("").is_err() && ids(",").is_err());
        assert!(ids("1,x").unwrap_err().contains("\"x\""));
        assert!(ids("-1").is_err() && ids("4294967296").is_err());
    }
}
