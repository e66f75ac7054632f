//! The JavaScript face of the engine: the only place with `#[wasm_bindgen]`.
//!
//! It is thin on purpose. What a web page talks to is the package around it (`pkg-template/`), which
//! runs this in a worker, downloads and caches files, and gives the errors their class. Options and
//! facts cross as plain objects in camelCase; errors as objects `{ name, code, message, details }`.
//!
//! May import: everything below.

use crate::backend::{Backend, KvType};
use crate::error::Error;
use crate::model::{Activations, weights};
use crate::sampling::Sampling;
use crate::selfcheck;
use crate::session::{
    Device, DeviceChoice, DeviceOptions, Event, Generation, HfFiles, LoadOptions, Logprob, Prompt,
    Request,
};
use crate::ternary::i2_s::Variant;
use crate::tokenizer::{Message, TemplateOrigin};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use wasm_bindgen::prelude::*;

mod crew;
#[cfg(feature = "gpu")]
mod measure;

thread_local! {
    static ON_PANIC: RefCell<Option<js_sys::Function>> = const { RefCell::new(None) };
}

#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|info| {
        console_error_panic_hook::hook(info);
        // A panic inside a future ends in a trap that no promise hears of: say it here.
        ON_PANIC.with_borrow(|handler| {
            if let Some(handler) = handler {
                let _ = handler.call1(&JsValue::NULL, &info.to_string().into());
            }
        });
    }));
}

/// Registers what is called with the message of a panic, after which this instance is of no use.
#[wasm_bindgen(js_name = setPanicHandler)]
pub fn set_panic_handler(handler: js_sys::Function) {
    ON_PANIC.set(Some(handler));
}

/// The version of this library.
#[wasm_bindgen]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_string()
}

/// Bytes of this instance's memory.
#[wasm_bindgen(js_name = memoryBytes)]
pub fn memory_bytes() -> f64 {
    core::arch::wasm32::memory_size(0) as f64 * 65536.0
}

/// SHA-256 of bytes that come piece by piece, which `crypto.subtle` cannot do.
#[wasm_bindgen]
#[derive(Default)]
pub struct Sha256(sha2::Sha256);

#[wasm_bindgen]
impl Sha256 {
    /// The hash of nothing so far.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        sha2::Digest::update(&mut self.0, bytes);
    }

    /// The hash in hexadecimal; ends the object.
    pub fn hex(self) -> String {
        sha2::Digest::finalize(self.0).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// An error as `lib/errors.js` reads it.
fn to_js(error: Error) -> JsValue {
    failure(error.code(), &error.to_string())
}

fn failure(code: &str, message: &str) -> JsValue {
    let error = js_sys::Error::new(message);
    error.set_name("BitNetError");
    let _ = js_sys::Reflect::set(&error, &"code".into(), &code.into());
    error.into()
}

/// An object of options. Unknown names and wrong types are the caller's mistakes.
fn read<T: DeserializeOwned>(what: &str, value: JsValue) -> Result<T, JsValue> {
    serde_wasm_bindgen::from_value(value)
        .map_err(|error| failure("invalid_argument", &format!("{what}: {error}")))
}

fn write<T: Serialize>(value: &T) -> Result<JsValue, JsValue> {
    // Plain objects, and plain numbers: no byte count here reaches 2^53.
    let serializer = serde_wasm_bindgen::Serializer::new().serialize_maps_as_objects(true);
    value.serialize(&serializer).map_err(|error| failure("internal", &error.to_string()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OpenOptions {
    device: Option<String>,
    adapter: Option<String>,
    context_length: Option<u32>,
    kv_cache: Option<String>,
    i2s: Option<String>,
    activations: Option<String>,
    kernels: Option<String>,
    subgroups: bool,
}

/// `value` among `choices` by name.
fn choose<T: Copy>(
    what: &str,
    value: Option<&str>,
    choices: &[(&str, T)],
) -> Result<Option<T>, JsValue> {
    let Some(value) = value else { return Ok(None) };
    match choices.iter().find(|(name, _)| *name == value) {
        Some((_, choice)) => Ok(Some(*choice)),
        None => {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            let message = format!("{what} must be one of {}, not {value:?}", names.join(", "));
            Err(failure("invalid_argument", &message))
        }
    }
}

fn device_options(
    device: Option<&str>,
    adapter: Option<String>,
    kernels: Option<String>,
    page_adds_subgroups: bool,
) -> Result<DeviceOptions, JsValue> {
    let choices =
        [("auto", DeviceChoice::Auto), ("webgpu", DeviceChoice::Gpu), ("cpu", DeviceChoice::Cpu)];
    let choice = choose("device", device, &choices)?.unwrap_or_default();
    let invalid = |why: String| failure("invalid_argument", &format!("kernels: {why}"));
    let features = kernels.map(|k| k.parse().map_err(invalid)).transpose()?;
    Ok(DeviceOptions { choice, adapter, threads: None, features, page_adds_subgroups })
}

/// Opens a device. wgpu panics in surroundings that are neither a window nor a worker, and where there
/// is no WebGPU at all it need not be asked.
async fn open_device(mut options: DeviceOptions) -> Result<(Device, Option<String>), JsValue> {
    let global = js_sys::global();
    let navigator = js_sys::Reflect::get(&global, &"navigator".into()).unwrap_or_default();
    let gpu = js_sys::Reflect::get(&navigator, &"gpu".into()).unwrap_or_default();
    let mut fallback = None;
    if !gpu.is_truthy() && options.choice != DeviceChoice::Cpu {
        let reason = "there is no WebGPU here (navigator.gpu is missing)";
        if options.choice == DeviceChoice::Gpu {
            return Err(failure("webgpu_unavailable", reason));
        }
        options.choice = DeviceChoice::Cpu;
        fallback = Some(reason.to_string());
    }
    let (device, why) = Device::open(&options).await.map_err(|e| to_js(e.into()))?;
    if options.choice == DeviceChoice::Auto && device.caps().backend == "gpu" {
        return trusted(device, options).await;
    }
    Ok((device, why.or(fallback)))
}

/// A GPU that nobody asked for by name must compute correctly, or the CPU takes its place.
async fn trusted(
    mut device: Device,
    options: DeviceOptions,
) -> Result<(Device, Option<String>), JsValue> {
    for case in selfcheck::quick() {
        if let Err(error) = case.run(&mut device).await {
            let why = format!("WebGPU failed its self-test: {}: {error}", case.kernel);
            let options = DeviceOptions { choice: DeviceChoice::Cpu, ..options };
            let (cpu, _) = Device::open(&options).await.map_err(|e| to_js(e.into()))?;
            return Ok((cpu, Some(why)));
        }
    }
    Ok((device, None))
}

#[derive(Deserialize)]
struct Files {
    /// Length of each file, where known.
    lengths: Vec<Option<f64>>,
    /// Texts of a safetensors model by file name.
    texts: Option<BTreeMap<String, String>>,
}

/// Takes the files of a model.
#[wasm_bindgen]
pub struct Loader {
    inner: crate::session::Loader,
    fallback: Option<String>,
}

#[wasm_bindgen]
impl Loader {
    /// Opens the device and waits for bytes. Where the CPU is to compute, `start_crew` is called: it
    /// resolves to a `Crew`, or to nothing if one thread is enough.
    pub async fn open(
        options: JsValue,
        files: JsValue,
        start_crew: js_sys::Function,
    ) -> Result<Loader, JsValue> {
        let o: OpenOptions = read("load options", options)?;
        let Files { lengths, texts }: Files = read("files", files)?;
        let kv = [("f16", KvType::F16), ("q8", KvType::Q8), ("f32", KvType::F32)];
        let i2s = [
            ("group128", Variant::Group128),
            ("group64", Variant::Group64),
            ("rows4", Variant::Rows4),
        ];
        let rules = [
            ("per-token", Activations::PerToken),
            ("block", Activations::Block),
            ("f32", Activations::F32),
        ];
        let load = LoadOptions {
            context: o.context_length,
            kv_type: choose("kvCache", o.kv_cache.as_deref(), &kv)?.unwrap_or_default(),
            i2s: choose("i2s", o.i2s.as_deref(), &i2s)?,
            weights: weights::Options {
                activations: choose("activations", o.activations.as_deref(), &rules)?
                    .unwrap_or_default(),
                ..Default::default()
            },
        };
        let device = device_options(o.device.as_deref(), o.adapter, o.kernels, o.subgroups)?;
        let (mut device, fallback) = open_device(device).await?;
        if let Device::Cpu(cpu) = &mut device {
            let crew = js_sys::Promise::resolve(&start_crew.call0(&JsValue::NULL)?);
            let crew = wasm_bindgen_futures::JsFuture::from(crew).await?;
            if !crew.is_undefined() {
                cpu.share(Box::new(crew::Carrier::new(crew.unchecked_into())));
            }
        }
        let lengths: Vec<Option<u64>> = lengths.into_iter().map(|n| n.map(|n| n as u64)).collect();
        let inner = match texts {
            None => {
                let length = lengths.first().copied().flatten();
                crate::session::Loader::gguf(device, length, load)
            }
            Some(mut texts) => {
                let files = HfFiles {
                    config: texts.remove("config.json").unwrap_or_default(),
                    tokenizer: texts.remove("tokenizer.json"),
                    tokenizer_config: texts.remove("tokenizer_config.json"),
                    generation_config: texts.remove("generation_config.json"),
                    chat_template: texts.remove("chat_template.jinja"),
                };
                crate::session::Loader::safetensors(device, files, &lengths, load)
            }
        };
        Ok(Loader { inner, fallback })
    }

    /// Takes the next bytes of a file and says how many it took: all, unless other files' headers
    /// must come first.
    pub async fn push(&mut self, file: usize, bytes: Vec<u8>) -> Result<usize, JsValue> {
        self.inner.push(file, &bytes).await.map_err(to_js)
    }

    /// Ends the load.
    pub async fn finish(self) -> Result<Session, JsValue> {
        let Loader { inner, fallback } = self;
        let inner = inner.finish().await.map_err(to_js)?;
        Ok(Session { inner, fallback, generation: None })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info<'a> {
    name: &'a str,
    format: &'a str,
    architecture: &'a str,
    parameters: f64,
    ternary_parameters: f64,
    vocab_size: u32,
    layers: u32,
    hidden_size: u32,
    tensor_types: BTreeMap<&'a str, TensorType>,
    context_length: u32,
    trained_context_length: u32,
    weight_bytes: f64,
    kv_bytes: f64,
    has_chat_template: bool,
    device: &'a str,
    adapter: &'a str,
    api: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernels: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<&'a str>,
}

#[derive(Serialize)]
struct TensorType {
    count: usize,
    bytes: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GenerateOptions {
    text: Option<String>,
    ids: Option<Vec<u32>>,
    messages: Option<Vec<JsMessage>>,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    penalty_window: Option<u32>,
    seed: Option<u64>,
    stop: Option<Vec<String>>,
    ignore_eos: Option<bool>,
    logprobs: Option<usize>,
}

#[derive(Deserialize)]
struct JsMessage {
    role: String,
    content: String,
}

impl GenerateOptions {
    fn into_request(self) -> Request {
        let d = Sampling::default();
        let prompt = match (self.text, self.ids, self.messages) {
            (Some(text), ..) => Prompt::Text(text),
            (_, Some(ids), _) => Prompt::Ids(ids),
            (.., messages) => Prompt::Chat(
                messages
                    .unwrap_or_default()
                    .into_iter()
                    .map(|m| Message { role: m.role, content: m.content })
                    .collect(),
            ),
        };
        Request {
            max_tokens: self.max_tokens,
            sampling: Sampling {
                temperature: self.temperature.unwrap_or(d.temperature),
                top_k: self.top_k.unwrap_or(d.top_k),
                top_p: self.top_p.unwrap_or(d.top_p),
                min_p: self.min_p.unwrap_or(d.min_p),
                repetition_penalty: self.repetition_penalty.unwrap_or(d.repetition_penalty),
                presence_penalty: self.presence_penalty.unwrap_or(d.presence_penalty),
                frequency_penalty: self.frequency_penalty.unwrap_or(d.frequency_penalty),
                penalty_window: self.penalty_window.unwrap_or(d.penalty_window),
                seed: self.seed.unwrap_or(d.seed),
            },
            stop: self.stop.unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or_default(),
            logprobs: self.logprobs,
            ..Request::new(prompt)
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum JsEvent {
    Prefill {
        done: usize,
        total: usize,
    },
    Text {
        text: String,
        ids: Vec<u32>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        logprobs: Vec<Vec<JsLogprob>>,
    },
    Finished {
        finish_reason: &'static str,
        usage: JsUsage,
        timings: JsTimings,
    },
}

#[derive(Serialize)]
struct JsLogprob {
    id: u32,
    token: String,
    logprob: f32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsUsage {
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsTimings {
    prefill_ms: f64,
    first_token_ms: f64,
    decode_ms: f64,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
}

#[cfg(feature = "gpu")]
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsOpTime<'a> {
    op: &'a str,
    kernel: &'a str,
    ms: f64,
    weight_bytes: f64,
}

/// A loaded model.
#[wasm_bindgen]
pub struct Session {
    inner: crate::session::Session,
    fallback: Option<String>,
    generation: Option<Generation>,
}

#[wasm_bindgen]
impl Session {
    /// Facts about model and device.
    pub fn info(&self) -> Result<JsValue, JsValue> {
        let info = self.inner.info();
        let caps = self.inner.device().caps();
        write(&Info {
            name: &info.name,
            format: info.format,
            architecture: info.config.architecture.name(),
            parameters: info.parameters as f64,
            ternary_parameters: info.ternary_parameters as f64,
            vocab_size: info.vocab_size,
            layers: info.config.num_hidden_layers,
            hidden_size: info.config.hidden_size,
            tensor_types: info
                .tensor_types
                .iter()
                .map(|(name, &(count, bytes))| {
                    (name.as_str(), TensorType { count, bytes: bytes as f64 })
                })
                .collect(),
            context_length: info.context,
            trained_context_length: info.config.max_position_embeddings,
            weight_bytes: info.weight_bytes as f64,
            kv_bytes: info.kv_bytes as f64,
            has_chat_template: self
                .inner
                .tokenizer()
                .is_ok_and(|t| t.chat_template().origin() != TemplateOrigin::Fallback),
            device: if caps.backend == "gpu" { "webgpu" } else { "cpu" },
            adapter: &caps.adapter,
            api: &caps.api,
            kernels: self.inner.device().features().map(|f| f.to_string()),
            threads: (caps.backend == "cpu").then_some(caps.threads),
            fallback: self.fallback.as_deref(),
        })
    }

    /// Begins a generation; the one before ends.
    pub fn start(&mut self, request: JsValue) -> Result<(), JsValue> {
        self.generation = None;
        let options: GenerateOptions = read("options", request)?;
        self.generation = Some(self.inner.start(options.into_request()).map_err(to_js)?);
        Ok(())
    }

    /// Does the next piece of work and says what it brought.
    #[wasm_bindgen(js_name = next)]
    pub async fn next_event(&mut self) -> Result<JsValue, JsValue> {
        let Some(generation) = &mut self.generation else {
            return Err(failure("invalid_argument", "no generation was started"));
        };
        let event = self.inner.next(generation).await.map_err(to_js)?;
        write(&match event {
            Event::Prefill { done, total } => JsEvent::Prefill { done, total },
            Event::Text(piece) => JsEvent::Text {
                logprobs: piece.logprobs.iter().map(|all| self.logprobs(all)).collect(),
                text: piece.text,
                ids: piece.ids,
            },
            Event::Finished(end) => JsEvent::Finished {
                finish_reason: end.reason.name(),
                usage: JsUsage {
                    prompt_tokens: end.usage.prompt_tokens,
                    cached_tokens: end.usage.cached_tokens,
                    completion_tokens: end.usage.completion_tokens,
                },
                timings: JsTimings {
                    prefill_ms: end.timings.prefill_ms,
                    first_token_ms: end.timings.first_token_ms,
                    decode_ms: end.timings.decode_ms,
                    prefill_tokens_per_second: end.prefill_tok_s(),
                    decode_tokens_per_second: end.decode_tok_s(),
                },
            },
        })
    }

    /// Lets the next step end the generation, with its figures.
    pub fn cancel(&mut self) {
        if let Some(generation) = &mut self.generation {
            generation.stop();
        }
    }

    /// Drops the generation.
    pub fn end(&mut self) {
        self.generation = None;
    }

    /// Ids of a text.
    pub fn tokenize(&self, text: &str, add_bos: bool) -> Result<Vec<u32>, JsValue> {
        let tokenizer = self.inner.tokenizer().map_err(to_js)?;
        tokenizer.encode(text, add_bos).map_err(|e| to_js(e.into()))
    }

    /// Text of ids.
    pub fn detokenize(&self, ids: &[u32], skip_special: bool) -> Result<String, JsValue> {
        let tokenizer = self.inner.tokenizer().map_err(to_js)?;
        tokenizer.decode(ids, skip_special).map_err(|e| to_js(e.into()))
    }

    /// The logits of every position, row after row. Forgets the KV cache.
    pub async fn logits(&mut self, ids: Vec<u32>) -> Result<Vec<f32>, JsValue> {
        self.generation = None;
        self.inner.logits(&ids).await.map_err(to_js)
    }

    /// Time of each dispatch of a step over `ids`; empty where the device cannot tell. Forgets the KV
    /// cache.
    #[cfg(feature = "gpu")]
    pub async fn profile(&mut self, ids: Vec<u32>) -> Result<JsValue, JsValue> {
        self.generation = None;
        let times = self.inner.profile(&ids).await.map_err(to_js)?;
        let times = times.iter().map(|t| JsOpTime {
            op: &t.label,
            kernel: &t.kernel,
            ms: t.ns / 1e6,
            weight_bytes: t.weight_bytes as f64,
        });
        write(&times.collect::<Vec<_>>())
    }

    /// Forgets the KV cache.
    pub fn reset(&mut self) {
        self.generation = None;
        self.inner.reset();
    }

    /// Bytes allocated on the device.
    #[wasm_bindgen(js_name = deviceBytes)]
    pub fn device_bytes(&self) -> f64 {
        self.inner.device().allocated_bytes() as f64
    }

    /// Tokens in the KV cache.
    #[wasm_bindgen(js_name = cachedTokens)]
    pub fn cached_tokens(&self) -> usize {
        self.inner.cached().len()
    }
}

impl Session {
    fn logprobs(&self, all: &[Logprob]) -> Vec<JsLogprob> {
        let text = |id: u32| {
            let decoded = self.inner.tokenizer().ok().and_then(|t| t.decode(&[id], false).ok());
            decoded.unwrap_or_default()
        };
        all.iter().map(|l| JsLogprob { id: l.id, token: text(l.id), logprob: l.logprob }).collect()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CheckOptions {
    device: Option<String>,
    subgroups: bool,
}

#[derive(Serialize)]
struct CheckResult<'a> {
    kernel: &'a str,
    variant: &'a str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Runs each kernel of a device against its plain twin; `on_result` gets every result and may return a
/// promise to wait for, which stops the check by rejecting.
#[wasm_bindgen(js_name = checkKernels)]
pub async fn check_kernels(
    options: JsValue,
    on_result: js_sys::Function,
) -> Result<js_sys::Array, JsValue> {
    let options: CheckOptions = read("options", options)?;
    let options = device_options(options.device.as_deref(), None, None, options.subgroups)?;
    let (mut device, _) = open_device(options).await?;
    let results = js_sys::Array::new();
    for case in selfcheck::cases() {
        let error = case.run(&mut device).await.err();
        let ok = error.is_none();
        let result =
            write(&CheckResult { kernel: case.kernel, variant: &case.variant, ok, error })?;
        results.push(&result);
        let waits = on_result.call1(&JsValue::NULL, &result)?;
        wasm_bindgen_futures::JsFuture::from(js_sys::Promise::resolve(&waits)).await?;
    }
    Ok(results)
}
