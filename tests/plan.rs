//! The plans of all architectures, as text. `UPDATE_GOLDEN=1 cargo test --test plan` rewrites them.

use bitnet_rust::format::{Event, gguf, safetensors};
use bitnet_rust::model::weights::{Naming, Options};
use bitnet_rust::model::{Config, forward, resolve};
use bitnet_rust::plan::{Op, Plan};
use std::path::Path;

fn fixture(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn gguf_plan(path: &str, options: Options) -> Plan {
    let bytes = std::fs::read(fixture(path)).unwrap();
    let mut parser = gguf::Parser::new(Some(bytes.len() as u64));
    assert_eq!(parser.next(&mut bytes.as_slice()).unwrap(), Event::Header);
    let config = Config::from_gguf(parser.metadata()).unwrap();
    let map = resolve(&config, Naming::Gguf, parser.tensors(), options).unwrap();
    forward(&config, &map)
}

fn folder_plan(path: &str) -> Plan {
    let folder = fixture(path);
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let mut parser = safetensors::Parser::new(Some(bytes.len() as u64));
    assert_eq!(parser.next(&mut bytes.as_slice()).unwrap(), Event::Header);
    let config =
        Config::from_hf(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let map = resolve(&config, Naming::Hf, parser.tensors(), Options::default()).unwrap();
    forward(&config, &map)
}

fn check(name: &str, plan: &Plan) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/plan/{name}.txt"));
    let text = plan.to_string();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert!(text == golden, "{name}: the plan has changed:\n{text}");
}

#[test]
fn bitnet_b158() {
    let path = "bitnet2b4t-mini/gguf/bitnet2b4t-mini-I2_S.gguf";
    check("bitnet-b1.58", &gguf_plan(path, Options::default()));
}

#[test]
fn bitnet_1bitllm() {
    check("bitnet", &folder_plan("onebit-mini/hf-f16-online"));
}

#[test]
fn llama() {
    let path = "llama158-mini/gguf/llama158-mini-TQ2_0-q6k.gguf";
    check("llama", &gguf_plan(path, Options::default()));
}

#[test]
fn llama_with_a_norm_in_front_of_every_linear() {
    check("llama-rms", &folder_plan("llama158-rms-mini/hf-packed-bitlinear-rms"));
}

#[test]
fn qwen3() {
    let path = "qwen3-mini/gguf/qwen3-mini-Q2_0.gguf";
    check("qwen3", &gguf_plan(path, Options::default()));
}

#[test]
fn float_activations_are_not_rounded() {
    let options =
        Options { activations: bitnet_rust::model::Activations::F32, ..Options::default() };
    let plan = gguf_plan("bitnet2b4t-mini/gguf/bitnet2b4t-mini-I2_S.gguf", options);
    assert!(!plan.ops.iter().any(|op| matches!(op, Op::Quantize { .. })));
}
