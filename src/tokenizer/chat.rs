//! [`ChatTemplate`]: conversations to prompts, with the Jinja template of the model.
//!
//! Templates come out of downloaded files, so they run on a budget ([`FUEL`]) that bounds
//! their time, their memory and their output. They are compiled when they are rendered: a model
//! with a broken template is still good for plain text.

use super::clock;
use super::error::TokenizerError;
use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, syntax::SyntaxConfig};
use serde::Serialize;
use serde_json::ser::Formatter;
use std::io::{self, Write};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// What a template may look at besides the messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatOptions {
    /// Open the assistant's turn.
    pub add_generation_prompt: bool,
    /// Tools, as JSON schemas; empty: none.
    pub tools: Vec<serde_json::Value>,
    /// The template's own switches, such as `enable_thinking`.
    pub variables: serde_json::Map<String, serde_json::Value>,
}

/// Where a chat template is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateOrigin {
    /// The model's files.
    Model,
    /// The model's own is a known placeholder; this is the one it was trained with.
    Replaced,
    /// The model has none; this one goes by the special tokens of its vocabulary.
    Fallback,
    /// Set by the caller.
    Caller,
}

/// A chat template in Jinja.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatTemplate {
    source: String,
    origin: TemplateOrigin,
    bos: String,
    eos: String,
}

/// What a template wants to know about the vocabulary.
pub(super) struct Tokens<'a> {
    pub(super) bos: String,
    pub(super) eos: String,
    pub(super) has: &'a dyn Fn(&str) -> bool,
}

/// `Role: content<|eot_id|>`, the template of BitNet-b1.58-2B-4T.
///
/// # Source
/// tokenizer_config.json of microsoft/bitnet-b1.58-2B-4T.
const BITNET_2B4T: &str = "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";
/// ChatML, for vocabularies with `<|im_start|>`.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// Llama 3's, for vocabularies with `<|start_header_id|>`.
const LLAMA3: &str = "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
/// Plain text, for vocabularies without any markup.
const PLAIN: &str = "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] | trim + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";

/// What the converter of the official 2B-4T GGUF writes in place of the model's template. The model
/// was not trained with it, and never ends a turn.
///
/// # Source
/// microsoft/BitNet `utils/convert-ms-to-gguf-bitnet.py`, against the model's
/// tokenizer_config.json.
const PLACEHOLDER: &str = "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{% if message['role'] == 'user' %}{{ 'Human: ' + message['content'] + '\\n\\nBITNETAssistant: ' + eos_token }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}";

/// Longest template that is compiled; the longest published ones have some 20 KB.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Budget of a rendering: a unit pays for an instruction or for 64 bytes of data, so that no
/// template runs longer than a fraction of a second or makes more than 16 MB. Llama 3.1's takes
/// about 100 units a message.
///
/// It also bounds how deep values can be nested (three units a level), which the engine walks by
/// recursion: hence [`STACK_BYTES`], and the smaller budget where there is no choice of a stack.
#[cfg(not(target_arch = "wasm32"))]
const FUEL: u64 = 250_000;
#[cfg(target_arch = "wasm32")]
const FUEL: u64 = 20_000;
/// Half a kilobyte a level, measured with minijinja 3.1, and as much again.
#[cfg(not(target_arch = "wasm32"))]
const STACK_BYTES: usize = 96 << 20;
/// Nested calls of macros: each takes stack, of which a wasm thread has 1 MB.
const MAX_RECURSION: usize = 100;
/// Largest result of a string method, and largest set of characters to strip: the library counts
/// such results only once they are there.
const MAX_METHOD_BYTES: usize = 16 << 20;
const MAX_STRIP_BYTES: usize = 1024;

impl ChatTemplate {
    pub(super) fn new(source: Option<String>, architecture: &str, tokens: Tokens<'_>) -> Self {
        let (source, origin) = match source.filter(|s| !s.trim().is_empty()) {
            Some(s) if s.trim() == PLACEHOLDER => {
                (BITNET_2B4T.to_string(), TemplateOrigin::Replaced)
            }
            Some(s) => (s, TemplateOrigin::Model),
            None => {
                let has = tokens.has;
                let fallback = if has("<|im_start|>") && has("<|im_end|>") {
                    CHATML
                } else if architecture.starts_with("bitnet") && has("<|eot_id|>") {
                    BITNET_2B4T
                } else if has("<|start_header_id|>") && has("<|eot_id|>") {
                    LLAMA3
                } else {
                    PLAIN
                };
                (fallback.to_string(), TemplateOrigin::Fallback)
            }
        };
        ChatTemplate { source, origin, bos: tokens.bos, eos: tokens.eos }
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where it is from.
    pub fn origin(&self) -> TemplateOrigin {
        self.origin
    }

    pub(super) fn replace(&mut self, source: String) {
        (self.source, self.origin) = (source, TemplateOrigin::Caller);
    }

    pub(super) fn render(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<String, TokenizerError> {
        #[cfg(target_arch = "wasm32")]
        return self.render_here(messages, options);
        #[cfg(not(target_arch = "wasm32"))]
        std::thread::scope(|scope| {
            let failed = |what: &str| TokenizerError::Template { reason: what.to_string() };
            std::thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, || self.render_here(messages, options))
                .map_err(|e| failed(&format!("no thread to render it: {e}")))?
                .join()
                .unwrap_or_else(|_| Err(failed("the template engine failed")))
        })
    }

    fn render_here(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<String, TokenizerError> {
        let failed = |e: Error| TokenizerError::Template { reason: describe(&e) };
        if self.source.len() > MAX_SOURCE_BYTES {
            let reason = format!("{} bytes, more than {MAX_SOURCE_BYTES}", self.source.len());
            return Err(TokenizerError::Template { reason });
        }
        let mut env = environment();
        env.set_fuel(Some(FUEL));
        let source = without_generation_tags(&self.source);
        let template = env.template_from_named_str("chat template", &source).map_err(failed)?;
        let mut context = options.variables.clone();
        let mut set = |key: &str, value: serde_json::Value| context.insert(key.to_string(), value);
        set("messages", serde_json::json!(messages));
        set("add_generation_prompt", options.add_generation_prompt.into());
        set("bos_token", self.bos.clone().into());
        set("eos_token", self.eos.clone().into());
        // As in transformers, these two are always defined.
        let tools = if options.tools.is_empty() { None } else { Some(options.tools.clone()) };
        set("tools", tools.into());
        set("documents", serde_json::Value::Null);
        template.render(minijinja::value::Serde(context)).map_err(failed)
    }
}

/// The error with its line and its causes.
fn describe(e: &Error) -> String {
    let mut text = match (e.kind(), e.detail()) {
        (ErrorKind::OutOfFuel, _) => "takes too long or writes too much".to_string(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    if let Some(line) = e.line() {
        text.push_str(&format!(" (line {line})"));
    }
    let mut source = std::error::Error::source(e);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Jinja as `transformers` sets it up for chat templates.
///
/// # Source
/// huggingface/transformers `utils/chat_template_utils.py`, `_compile_jinja_template`.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    if let Ok(syntax) = syntax.build() {
        env.set_syntax(syntax);
    }
    env.set_recursion_limit(MAX_RECURSION);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", to_json);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", |format: String| clock::strftime(clock::now(), &format));
    env
}

/// `{% generation %}` marks what a model is trained on; in front of a model it means nothing.
/// The tags become a condition that holds, so that the white space around them is treated as ever.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |e| e + 2);
        let (tag, after) = tag.split_at(end);
        let name = tag
            .trim_start_matches("{%")
            .trim_end_matches("%}")
            .trim_matches(|c: char| matches!(c, '-' | '+') || c.is_whitespace());
        match name {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Python's methods of strings, lists and maps.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let too_large = || Error::new(ErrorKind::InvalidOperation, format!("{name}: too much text"));
    let Some(text) = value.as_str() else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args);
    };
    match name {
        "replace" => {
            if let [old, new, ..] = args
                && let (Some(old), Some(new)) = (old.as_str(), new.as_str())
            {
                let most = text.matches(old).count().saturating_mul(new.len());
                if most.saturating_add(text.len()) > MAX_METHOD_BYTES {
                    return Err(too_large());
                }
            }
        }
        "strip" | "lstrip" | "rstrip" => {
            let chars = args.first().and_then(Value::as_str).unwrap_or_default();
            if chars.len() > MAX_STRIP_BYTES {
                return Err(too_large());
            }
        }
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            let mut joined = String::new();
            for (i, value) in values.try_iter()?.enumerate() {
                if i > 0 {
                    joined.push_str(text);
                }
                joined.push_str(&value.to_string());
                if joined.len() > MAX_METHOD_BYTES {
                    return Err(too_large());
                }
            }
            return Ok(Value::from(joined));
        }
        "removeprefix" | "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            let cut = match name {
                "removeprefix" => text.strip_prefix(affix),
                _ => text.strip_suffix(affix),
            };
            return Ok(Value::from(cut.unwrap_or(text)));
        }
        // Its widths are not limited, and no known template formats that way.
        "format" => return Err(Error::from(ErrorKind::UnknownMethod)),
        _ => {}
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// `json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)`: a space after `,` and
/// `:`, and nothing escaped for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let failed = |e| Error::new(ErrorKind::BadSerialization, "not JSON").with_source(e);
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Value> = options.get("separators")?;
    let separator = |i: usize, default: &str| match &separators {
        Some(pair) => pair.get_item_by_index(i).map(|s| s.to_string()),
        None => Ok(default.to_string()),
    };
    let layout = Layout {
        item: separator(0, if indent.is_some() { "," } else { ", " })?,
        key: separator(1, ": ")?,
        indent: indent.map(|n| " ".repeat(n.min(16))),
        depth: 0,
        filled: false,
    };
    // Known to transformers, without effect here: text is never made ASCII, keys keep their order.
    for ignored in ["ensure_ascii", "sort_keys"] {
        let _: Option<Value> = options.get(ignored)?;
    }
    options.assert_all_used()?;
    if value.kind() == ValueKind::Undefined {
        return Err(Error::new(ErrorKind::UndefinedError, "tojson of an undefined value"));
    }
    let mut out = Capped(Vec::new());
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut out, layout))
        .map_err(failed)?;
    Ok(String::from_utf8_lossy(&out.0).into_owned())
}

/// The layout of `json.dumps`.
struct Layout {
    item: String,
    key: String,
    /// Of a level; without one everything is on one line.
    indent: Option<String>,
    depth: usize,
    /// Whether the list or map that ends next has anything in it.
    filled: bool,
}

impl Layout {
    fn begin<W: ?Sized + Write>(&mut self, w: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        w.write_all(bracket)
    }

    fn next<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.filled = true;
        if !first {
            w.write_all(self.item.as_bytes())?;
        }
        self.line(w)
    }

    fn end<W: ?Sized + Write>(&mut self, w: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if std::mem::replace(&mut self.filled, true) {
            self.line(w)?;
        }
        w.write_all(bracket)
    }

    fn line<W: ?Sized + Write>(&self, w: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        w.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| w.write_all(indent.as_bytes()))
    }
}

impl Formatter for Layout {
    fn begin_array<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.begin(w, b"[")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.next(w, first)
    }

    fn end_array<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.end(w, b"]")
    }

    fn begin_object<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.begin(w, b"{")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.next(w, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(self.key.as_bytes())
    }

    fn end_object<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.end(w, b"}")
    }
}

/// A buffer with an end: a list of a thousand times the same list is small until it is written.
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_METHOD_BYTES {
            return Err(io::Error::other("too much text"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
