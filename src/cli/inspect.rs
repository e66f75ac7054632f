//! `bitnet inspect`: what a model file holds, from its header alone.

use super::args::SourceArgs;
use super::failure::{Failure, chain};
use super::header::Header;
use super::model::Source;
use super::output::{self, bytes, count};
use bitnet_rust::backend::KvType;
use bitnet_rust::model::{Config, forward, resolve, weights};
use bitnet_rust::plan::{Plan, WeightKind};
use bitnet_rust::tokenizer::{TemplateOrigin, Tokenizer};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[derive(Args)]
pub struct InspectArgs {
    /// Model to look at (see `bitnet --help`)
    #[arg(value_parser = Source::parse, default_value = "default", hide_default_value = true)]
    model: Source,
    /// List every tensor, too
    #[arg(long)]
    tensors: bool,
    /// Show the forward pass as it would be run, too
    #[arg(long)]
    plan: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: SourceArgs,
}

/// What is known of the model once its configuration is understood.
struct Model {
    config: Config,
    plan: Plan,
}

pub fn inspect(args: InspectArgs) -> Result<(), Failure> {
    let header = Header::open(&args.model, &args.source)?;
    // A model that cannot run can still be looked at.
    let model = understand(&header);
    let tokenizer = match header.tokenizer() {
        Ok(tokenizer) => tokenizer.map_err(|e| chain(&e)),
        Err(failure) => Err(failure.message().unwrap_or_default().to_string()),
    };
    match args.json {
        true => output::json(&as_json(&args, &header, &model, &tokenizer)),
        false => output::stdout(as_text(&args, &header, &model, &tokenizer).as_bytes()),
    }
}

fn understand(header: &Header) -> Result<Model, String> {
    let config = header.config().map_err(|e| chain(&e))?;
    let map = resolve(&config, header.naming(), header.tensors(), weights::Options::default())
        .map_err(|e| chain(&e))?;
    let plan = forward(&config, &map);
    Ok(Model { config, plan })
}

/// Parameters of a plan's weights: all, and ternary ones.
fn parameters(plan: &Plan) -> (u64, u64) {
    plan.weights.iter().fold((0, 0), |(all, ternary), spec| {
        let (n, k) = spec.kind.shape();
        let elems = u64::from(n) * u64::from(k);
        let is_ternary = matches!(spec.kind, WeightKind::Ternary { .. });
        (all + elems, ternary + if is_ternary { elems } else { 0 })
    })
}

/// Tensors of each type: how many, elements, bytes.
fn types(header: &Header) -> BTreeMap<String, (u64, u64, u64)> {
    let mut types = BTreeMap::new();
    for tensor in header.tensors() {
        let entry: &mut (u64, u64, u64) = types.entry(tensor.dtype.to_string()).or_default();
        entry.0 += 1;
        entry.1 += tensor.elems();
        entry.2 += tensor.bytes;
    }
    types
}

fn name(header: &Header) -> Option<String> {
    let Header::Gguf { metadata, .. } = header else { return None };
    metadata.get_str("general.name").ok().flatten().map(|s| output::harmless(s).into_owned())
}

/// Memory against that of the same weights as floats.
fn saved(plan: &Plan, bytes_a_weight: u64) -> f64 {
    1.0 - plan.weight_bytes() as f64 / (parameters(plan).0 * bytes_a_weight) as f64
}

fn origin(tokenizer: &Tokenizer) -> &'static str {
    match tokenizer.chat_template().origin() {
        TemplateOrigin::Model | TemplateOrigin::Caller => "the model's own",
        TemplateOrigin::Replaced => "that of BitNet-b1.58-2B-4T, for the file's placeholder",
        TemplateOrigin::Fallback => "none; one that fits the vocabulary is used",
    }
}

fn as_text(
    args: &InspectArgs,
    header: &Header,
    model: &Result<Model, String>,
    tokenizer: &Result<Tokenizer, String>,
) -> String {
    let mut out = String::new();
    let mut line = |label: &str, value: String| out += &format!("{label:<13} {value}\n");
    if let Some(name) = name(header) {
        line("name", name);
    }
    let tensors = header.tensors().len();
    line(
        "format",
        format!("{}, {tensors} tensors, {}", header.format(), bytes(header.file_bytes())),
    );
    match model {
        Ok(Model { config, plan }) => {
            let (all, ternary) = parameters(plan);
            let share = 100.0 * ternary as f64 / all.max(1) as f64;
            line("architecture", config.architecture.name().to_string());
            line("parameters", format!("{}, {share:.1} % of them ternary", count(all)));
            line(
                "shape",
                format!(
                    "{} layers, hidden {}, feed-forward {}, {} heads of {} ({} for keys and values), vocabulary {}",
                    config.num_hidden_layers,
                    config.hidden_size,
                    config.intermediate_size,
                    config.num_attention_heads,
                    config.head_dim,
                    config.num_key_value_heads,
                    plan.vocab,
                ),
            );
            line("context", format!("{} tokens", config.max_position_embeddings));
            let (f32s, f16s) = (saved(plan, 4), saved(plan, 2));
            line(
                "memory",
                format!(
                    "{} of weights on the device: {:.1} % less than as f32, {:.1} % less than as f16",
                    bytes(plan.weight_bytes()),
                    100.0 * f32s,
                    100.0 * f16s,
                ),
            );
            let kv = KvType::F16.bytes(plan.kv.elems_per_token());
            line("KV cache", format!("{} a token as f16", bytes(kv)));
        }
        Err(why) => line("cannot run", why.clone()),
    }
    for (dtype, (n, elems, size)) in types(header) {
        line(
            "tensors",
            format!("{n:>5} {dtype:<8} {:>10} weights {:>10}", count(elems), bytes(size)),
        );
    }
    match tokenizer {
        Ok(t) => {
            let special = |id: Option<u32>| {
                id.map_or("none".to_string(), |id| {
                    let text = String::from_utf8_lossy(t.token_bytes(id).unwrap_or_default());
                    format!("{id} {text:?}")
                })
            };
            let ends: Vec<String> = t.eos_ids().iter().map(|&id| special(Some(id))).collect();
            let prefix = if t.add_bos() { "put in front of texts" } else { "not put in front" };
            line("tokenizer", format!("{} tokens", t.vocab_size()));
            line("text begins", format!("{}, {prefix}", special(t.bos())));
            line("text ends", if ends.is_empty() { "none".to_string() } else { ends.join(", ") });
            line("chat template", origin(t).to_string());
        }
        Err(why) => line("no tokenizer", why.clone()),
    }
    if args.tensors {
        for t in header.tensors() {
            let name = output::harmless(&t.name).into_owned();
            out += &format!(
                "{name:<40} {:<8} {:?} {}\n",
                t.dtype.to_string(),
                t.shape,
                bytes(t.bytes)
            );
        }
    }
    if let (true, Ok(model)) = (args.plan, model) {
        out += &model.plan.to_string();
    }
    out
}

fn as_json(
    args: &InspectArgs,
    header: &Header,
    model: &Result<Model, String>,
    tokenizer: &Result<Tokenizer, String>,
) -> Value {
    let types: serde_json::Map<String, Value> = types(header)
        .into_iter()
        .map(|(dtype, (n, elems, size))| {
            (dtype, json!({"tensors": n, "elements": elems, "bytes": size}))
        })
        .collect();
    let mut out = json!({
        "name": name(header),
        "format": header.format(),
        "file_bytes": header.file_bytes(),
        "tensors": header.tensors().len(),
        "types": types,
    });
    match model {
        Ok(Model { config, plan }) => {
            let (all, ternary) = parameters(plan);
            out["architecture"] = config.architecture.name().into();
            out["parameters"] = all.into();
            out["ternary_parameters"] = ternary.into();
            out["layers"] = config.num_hidden_layers.into();
            out["hidden_size"] = config.hidden_size.into();
            out["intermediate_size"] = config.intermediate_size.into();
            out["heads"] = config.num_attention_heads.into();
            out["kv_heads"] = config.num_key_value_heads.into();
            out["head_dim"] = config.head_dim.into();
            out["vocab_size"] = plan.vocab.into();
            out["context"] = config.max_position_embeddings.into();
            out["weight_bytes"] = plan.weight_bytes().into();
            out["saved_against_f32"] = saved(plan, 4).into();
            out["saved_against_f16"] = saved(plan, 2).into();
            out["kv_bytes_per_token_f16"] = KvType::F16.bytes(plan.kv.elems_per_token()).into();
        }
        Err(why) => out["error"] = why.as_str().into(),
    }
    out["tokenizer"] = match tokenizer {
        Ok(t) => json!({
            "tokens": t.vocab_size(),
            "bos": t.bos(),
            "add_bos": t.add_bos(),
            "eos": t.eos_ids(),
            "chat_template": t.chat_template().source(),
            "chat_template_origin": origin(t),
        }),
        Err(why) => json!({ "error": why }),
    };
    if args.tensors {
        let row = |t: &bitnet_rust::format::TensorInfo| json!({"name": t.name, "type": t.dtype.to_string(), "shape": t.shape, "bytes": t.bytes});
        out["tensor_list"] = header.tensors().iter().map(row).collect();
    }
    if let (true, Ok(model)) = (args.plan, model) {
        out["plan"] = model.plan.to_string().into();
    }
    out
}
