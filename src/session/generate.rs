//! [`Session`] and [`Generation`]: from a prompt to text, one step at a time.
//!
//! A generation is pulled: each [`Session::next`] does a bounded piece of work (a chunk of the
//! prompt, or a few tokens) and returns. Whoever drives it can show progress, stop it by not
//! calling again, and keep an event loop alive. The KV cache stays valid whenever it is left.

use super::device::Device;
use super::info::ModelInfo;
use super::stop::StopFilter;
use super::transcript::Transcript;
use crate::backend::{Backend, BackendError, Decode, Outputs, Step};
use crate::cpu::sample;
use crate::error::Error;
use crate::plan::Plan;
use crate::sampling::{Candidate, Sampling, descending};
use crate::tokenizer::{DecodeStream, Message, Tokenizer, TokenizerError};
use std::ops::Range;
use web_time::Instant;

/// Most bytes of logits at a time: what every WebGPU device can bind as one buffer.
const LOGITS_BYTES: u64 = 128 << 20;
/// A burst shorter than this may be twice as long, one longer than that half as long: what is
/// written appears a few times in the blink of an eye, and the device seldom waits for the host.
const BURST_MS: u128 = 15;
const LONG_BURST_MS: u128 = 60;

/// What a generation starts from.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text to go on from.
    Text(String),
    /// A conversation, in the model's own chat template.
    Chat(Vec<Message>),
    /// Token ids as they are.
    Ids(Vec<u32>),
}

/// What is wanted of a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Where to start.
    pub prompt: Prompt,
    /// Most tokens to write; `None`: until the text ends or the context is full.
    pub max_tokens: Option<u32>,
    /// How to draw.
    pub sampling: Sampling,
    /// Strings that end the text; they are not shown.
    pub stop: Vec<String>,
    /// Write on past the model's end-of-text tokens.
    pub ignore_eos: bool,
    /// For each token its log-probability and those of this many alternatives (0: only its own).
    pub logprobs: Option<usize>,
}

impl Request {
    /// Continues `text`, with the defaults.
    pub fn text(text: impl Into<String>) -> Self {
        Request::new(Prompt::Text(text.into()))
    }

    /// Answers a conversation, with the defaults.
    pub fn chat(messages: Vec<Message>) -> Self {
        Request::new(Prompt::Chat(messages))
    }

    /// Continues `prompt`, with the defaults.
    pub fn new(prompt: Prompt) -> Self {
        Request {
            prompt,
            max_tokens: None,
            sampling: Sampling::default(),
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: None,
        }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    Eos,
    /// A stop string was found.
    Stop,
    /// `max_tokens` were written.
    Length,
    /// The KV cache is full.
    ContextFull,
    /// The caller stopped it ([`Generation::stop`]).
    Cancelled,
}

impl FinishReason {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Eos => "eos",
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::ContextFull => "context_full",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// A token and the natural logarithm of its probability before temperature and truncation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logprob {
    /// The token.
    pub id: u32,
    /// ln p.
    pub logprob: f32,
}

/// New text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Text to show; empty while a character or a possible stop string is incomplete.
    pub text: String,
    /// Tokens drawn for it.
    pub ids: Vec<u32>,
    /// For each of them, itself and then the alternatives, likeliest first (if asked for).
    pub logprobs: Vec<Vec<Logprob>>,
}

/// Token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of them, found in the KV cache.
    pub cached_tokens: usize,
    /// Tokens drawn.
    pub completion_tokens: usize,
}

/// Durations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Running the prompt (without its cached tokens); on a GPU with the first draw, which waits for it.
    pub prefill_ms: f64,
    /// From the start to the first token.
    pub first_token_ms: f64,
    /// Drawing the tokens after the first.
    pub decode_ms: f64,
}

/// The end of a generation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Completion {
    /// Why it ended.
    pub reason: FinishReason,
    /// Token counts.
    pub usage: Usage,
    /// Durations.
    pub timings: Timings,
}

impl Completion {
    /// Prompt tokens a second, without the cached ones.
    pub fn prefill_tok_s(&self) -> f64 {
        let tokens = self.usage.prompt_tokens - self.usage.cached_tokens;
        per_second(tokens, self.timings.prefill_ms)
    }

    /// Tokens a second after the first.
    pub fn decode_tok_s(&self) -> f64 {
        per_second(self.usage.completion_tokens.saturating_sub(1), self.timings.decode_ms)
    }
}

fn per_second(tokens: usize, ms: f64) -> f64 {
    if ms > 0.0 { tokens as f64 * 1000.0 / ms } else { 0.0 }
}

/// What a step of a generation brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A part of the prompt was run.
    Prefill {
        /// Prompt tokens in the cache.
        done: usize,
        /// Prompt tokens.
        total: usize,
    },
    /// New text.
    Text(Piece),
    /// The text has ended.
    Finished(Completion),
}

/// A generation under way. Drop it to stop.
pub struct Generation {
    request: Request,
    prompt: Vec<u32>,
    /// Prompt tokens in the cache; the rest is still to be run.
    fed: usize,
    cached_tokens: usize,
    /// The last drawn token, which is not in the cache yet.
    pending: Option<u32>,
    drawn: usize,
    /// Tokens to draw between two looks at the host.
    burst: u32,
    text: DecodeStream,
    filter: StopFilter,
    eos: Vec<u32>,
    started: Instant,
    prefilled: Option<Instant>,
    first: Option<Instant>,
    finished: Option<FinishReason>,
    ended: bool,
}

impl Generation {
    /// Ids of the prompt.
    pub fn prompt_ids(&self) -> &[u32] {
        &self.prompt
    }

    /// Ends it with the next step, which brings the text held back and then the statistics.
    pub fn stop(&mut self) {
        self.finished.get_or_insert(FinishReason::Cancelled);
    }

    fn completion(&self, reason: FinishReason) -> Completion {
        let ms = |from: Instant, to: Option<Instant>| {
            to.map_or(0.0, |to| to.duration_since(from).as_secs_f64() * 1e3)
        };
        Completion {
            reason,
            usage: Usage {
                prompt_tokens: self.prompt.len(),
                cached_tokens: self.cached_tokens,
                completion_tokens: self.drawn,
            },
            timings: Timings {
                prefill_ms: ms(self.started, self.prefilled),
                first_token_ms: ms(self.started, self.first),
                decode_ms: self.first.map_or(0.0, |t| ms(t, Some(Instant::now()))),
            },
        }
    }
}

/// A model on a machine, with its KV cache.
pub struct Session {
    device: Device,
    plan: Plan,
    info: ModelInfo,
    tokenizer: Result<Tokenizer, TokenizerError>,
    context: u32,
    chunk: u32,
    /// The tokens in the KV cache.
    cached: Vec<u32>,
    transcript: Transcript,
}

impl Session {
    pub(super) fn new(
        device: Device,
        plan: Plan,
        info: ModelInfo,
        tokenizer: Result<Tokenizer, TokenizerError>,
        chunk: u32,
    ) -> Self {
        let context = info.context;
        Session {
            device,
            plan,
            info,
            tokenizer,
            context,
            chunk,
            cached: Vec::new(),
            transcript: Transcript::default(),
        }
    }

    /// Facts about the model.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The machine.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The forward pass.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// A model may load without a usable tokenizer; this says what is wrong with it.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        self.tokenizer.as_ref().map_err(|e| Error::Tokenizer(e.clone()))
    }

    /// Tokens in the KV cache.
    pub fn cached(&self) -> &[u32] {
        &self.cached
    }

    /// Forgets the KV cache.
    pub fn reset(&mut self) {
        self.cached.clear();
        self.transcript = Transcript::default();
    }

    /// The ids a prompt becomes, and its text.
    ///
    /// # Errors
    /// Tokenizer and template errors; ids outside the vocabulary.
    pub fn encode(&self, prompt: &Prompt) -> Result<(Vec<u32>, String), Error> {
        let (ids, text) = match prompt {
            Prompt::Text(text) => {
                let tokenizer = self.tokenizer()?;
                (tokenizer.encode(text, tokenizer.add_bos())?, text.clone())
            }
            Prompt::Chat(messages) => {
                let tokenizer = self.tokenizer()?;
                let mut text = tokenizer.render_chat(messages, true)?;
                // Most templates write the beginning-of-text token themselves.
                if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos()) {
                    let bos = String::from_utf8_lossy(tokenizer.token_bytes(bos).unwrap_or(&[]));
                    if !text.starts_with(&*bos) {
                        text.insert_str(0, &bos);
                    }
                }
                (self.transcript.encode(tokenizer, &text)?, text)
            }
            Prompt::Ids(ids) => (ids.clone(), String::new()),
        };
        check_ids(&ids, self.plan.vocab)?;
        Ok((ids, text))
    }

    /// Begins a generation. Nothing is computed yet.
    ///
    /// # Errors
    /// Arguments out of range, an empty prompt, a prompt longer than the context.
    pub fn start(&mut self, request: Request) -> Result<Generation, Error> {
        request.sampling.validate()?;
        let invalid = |reason: &str| Err(Error::InvalidArgument { reason: reason.to_string() });
        if request.max_tokens == Some(0) {
            return invalid("max_tokens must be at least 1");
        }
        if request.stop.iter().any(String::is_empty) {
            return invalid("a stop string must not be empty");
        }
        if request.logprobs.is_some_and(|n| n > 100) {
            return invalid("logprobs must be at most 100");
        }
        let (prompt, prompt_text) = self.encode(&request.prompt)?;
        if prompt.is_empty() {
            return invalid("the prompt is empty");
        }
        if prompt.len() > self.context as usize {
            return Err(Error::ContextFull { prompt_tokens: prompt.len(), context: self.context });
        }
        let (text, mut eos) = match &self.tokenizer {
            Ok(t) => (t.decode_stream(), t.eos_ids().to_vec()),
            Err(_) if matches!(request.prompt, Prompt::Ids(_)) => {
                (DecodeStream::without_tokenizer(), Vec::new())
            }
            Err(e) => return Err(Error::Tokenizer(e.clone())),
        };
        if request.ignore_eos {
            eos.clear();
        }
        // The last prompt token is run even when it is cached: its logits are needed.
        let common = self.cached.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
        let fed = common.min(prompt.len() - 1);
        self.cached.truncate(fed);
        self.device.set_history(&self.cached);
        self.transcript = Transcript::new(&prompt_text, prompt.clone());
        Ok(Generation {
            filter: StopFilter::new(request.stop.clone()),
            request,
            prompt,
            fed,
            cached_tokens: fed,
            pending: None,
            drawn: 0,
            burst: 1,
            text,
            eos,
            started: Instant::now(),
            prefilled: None,
            first: None,
            finished: None,
            ended: false,
        })
    }

    /// Does the next piece of work: a chunk of the prompt, or a few tokens.
    /// After [`Event::Finished`] it returns that again.
    ///
    /// # Errors
    /// Device errors. The generation cannot go on then, but the session can start another.
    pub async fn next(&mut self, g: &mut Generation) -> Result<Event, Error> {
        let result = self.advance(g).await;
        if result.is_err() {
            // What the cache holds after a failed step is not known.
            self.cached.clear();
        }
        result
    }

    async fn advance(&mut self, g: &mut Generation) -> Result<Event, Error> {
        if let Some(reason) = g.finished {
            if !g.ended {
                g.ended = true;
                let rest = g.text.finish();
                let (mut text, _) = g.filter.push(&rest);
                text += &g.filter.finish();
                if reason != FinishReason::Stop && !text.is_empty() {
                    return Ok(Event::Text(Piece { text, ..Piece::default() }));
                }
            }
            return Ok(Event::Finished(g.completion(reason)));
        }
        if g.fed < g.prompt.len() {
            return self.prefill(g).await;
        }
        let wanted = g.request.max_tokens.map_or(u32::MAX, |m| m - g.drawn as u32);
        // Each drawn token but the last is fed, and so is the pending one.
        let room = self.context - self.cached.len() as u32 + u32::from(g.pending.is_none());
        if room == 0 {
            g.finished = Some(FinishReason::ContextFull);
            return Box::pin(self.advance(g)).await;
        }
        let piece = match g.request.logprobs {
            None => self.draw(g, wanted.min(room)).await?,
            Some(alternatives) => self.draw_with_logprobs(g, alternatives).await?,
        };
        Ok(Event::Text(piece))
    }

    async fn prefill(&mut self, g: &mut Generation) -> Result<Event, Error> {
        let end = g.prompt.len().min(g.fed + self.chunk as usize);
        let last = end == g.prompt.len();
        let step = Step {
            tokens: &g.prompt[g.fed..end],
            pos: g.fed as u32,
            outputs: if last { Outputs::Last } else { Outputs::None },
        };
        self.device.forward(step).await?;
        self.cached.extend_from_slice(&g.prompt[g.fed..end]);
        g.fed = end;
        if last {
            g.prefilled = Some(Instant::now());
        }
        Ok(Event::Prefill { done: end, total: g.prompt.len() })
    }

    /// Draws a burst on the device.
    async fn draw(&mut self, g: &mut Generation, most: u32) -> Result<Piece, Error> {
        let started = Instant::now();
        let count = g.burst.min(most);
        let decode = Decode {
            feed: g.pending,
            pos: self.cached.len() as u32,
            count,
            ahead: most - count,
            sampling: &g.request.sampling,
            stop: &g.eos,
        };
        let ids = self.device.decode(decode).await?;
        g.burst = match started.elapsed().as_millis() {
            0..BURST_MS => (g.burst * 2).min(self.device.burst()),
            LONG_BURST_MS.. => (g.burst / 2).max(1),
            _ => g.burst,
        };
        self.cached.extend(g.pending);
        self.cached.extend_from_slice(&ids[..ids.len().saturating_sub(1)]);
        let mut piece = Piece::default();
        for id in ids {
            self.take(g, id, &mut piece);
        }
        Ok(piece)
    }

    /// Draws one token on the host, from logits that are read back.
    async fn draw_with_logprobs(
        &mut self,
        g: &mut Generation,
        alternatives: usize,
    ) -> Result<Piece, Error> {
        if let Some(id) = g.pending {
            let pos = self.cached.len() as u32;
            self.device.forward(Step { tokens: &[id], pos, outputs: Outputs::Last }).await?;
            self.cached.push(id);
        }
        let logits = self.device.logits().await?;
        let pos = self.cached.len() as u32;
        let id = sample(&logits, &self.cached, pos, &g.request.sampling);
        let mut piece =
            Piece { logprobs: vec![logprobs(&logits, id, alternatives)], ..Piece::default() };
        self.take(g, id, &mut piece);
        Ok(piece)
    }

    /// Takes a drawn token into the text.
    fn take(&mut self, g: &mut Generation, id: u32, piece: &mut Piece) {
        if g.finished.is_some() {
            return;
        }
        if g.first.is_none() {
            g.first = Some(Instant::now());
            // A GPU is still busy with the prompt when it has been handed over.
            if self.device.runs_ahead() {
                g.prefilled = g.first;
            }
        }
        g.drawn += 1;
        g.pending = Some(id);
        piece.ids.push(id);
        if let Ok(tokenizer) = &self.tokenizer {
            self.transcript.push(tokenizer, id);
        }
        if g.eos.contains(&id) {
            g.finished = Some(FinishReason::Eos);
            return;
        }
        let (text, stopped) = g.filter.push(&g.text.push(id));
        piece.text += &text;
        if stopped {
            g.finished = Some(FinishReason::Stop);
        } else if g.request.max_tokens.is_some_and(|m| g.drawn >= m as usize) {
            g.finished = Some(FinishReason::Length);
        }
    }

    /// The logits of every position of `ids`, `[T, V]` row after row. The KV cache is overwritten.
    ///
    /// # Errors
    /// No ids, ids out of range, more ids than the context holds; device errors.
    pub async fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, Error> {
        let mut all = Vec::new();
        self.each_logits(ids, 0, |rows| all.extend_from_slice(rows)).await?;
        Ok(all)
    }

    /// As [`Session::logits`], but only of the positions from `first` on, and chunk by chunk: `sink`
    /// gets some rows at a time. The head is not run for the others.
    ///
    /// # Errors
    /// As for [`Session::logits`].
    pub async fn each_logits(
        &mut self,
        ids: &[u32],
        first: usize,
        mut sink: impl FnMut(&[f32]),
    ) -> Result<(), Error> {
        check_ids(ids, self.plan.vocab)?;
        self.each_step(ids, first, async |device, _| {
            sink(&device.logits().await?);
            Ok(())
        })
        .await
    }

    /// `−ln p` of each of `ids[first..]` after all ids before it, in nats. The KV cache is overwritten.
    ///
    /// # Errors
    /// As for [`Session::logits`], where the last id needs no room in the context; nothing comes before
    /// the id at 0.
    pub async fn cross_entropy(&mut self, ids: &[u32], first: usize) -> Result<Vec<f32>, Error> {
        check_ids(ids, self.plan.vocab)?;
        let Some((targets, before)) = ids.get(first..).zip(first.checked_sub(1)) else {
            let reason = format!("nothing predicts the id at {first} of {}", ids.len());
            return Err(Error::InvalidArgument { reason });
        };
        // The last id is predicted only: nothing asks what comes after it.
        let fed = &ids[..ids.len() - 1];
        let mut nats = Vec::with_capacity(targets.len());
        self.each_step(fed, before, async |device, rows| {
            nats.extend(device.cross_entropy(&ids[rows.start + 1..=rows.end]).await?);
            Ok(())
        })
        .await?;
        Ok(nats)
    }

    /// Runs `ids` (checked) from an empty cache, and calls `each` after every step that brings logits, with the
    /// positions they belong to: `first` and all after it.
    async fn each_step(
        &mut self,
        ids: &[u32],
        first: usize,
        mut each: impl AsyncFnMut(&mut Device, Range<usize>) -> Result<(), BackendError>,
    ) -> Result<(), Error> {
        if ids.is_empty() {
            return Err(Error::InvalidArgument { reason: "no token ids were given".to_string() });
        }
        if ids.len() > self.context as usize {
            return Err(Error::ContextFull { prompt_tokens: ids.len(), context: self.context });
        }
        self.cached.clear();
        let (before, wanted) = ids.split_at(first.min(ids.len()));
        let mut pos = 0;
        for tokens in before.chunks(self.chunk as usize) {
            let outputs = Outputs::None;
            self.device.forward(Step { tokens, pos: pos as u32, outputs }).await?;
            pos += tokens.len();
        }
        for tokens in wanted.chunks(rows_a_step(self.plan.vocab, self.chunk)) {
            let outputs = Outputs::All;
            self.device.forward(Step { tokens, pos: pos as u32, outputs }).await?;
            each(&mut self.device, pos..pos + tokens.len()).await?;
            pos += tokens.len();
        }
        self.cached.extend_from_slice(ids);
        Ok(())
    }

    /// Times every dispatch of a step over `ids`, from an empty cache, by timestamps on the device.
    /// Empty where there are none.
    ///
    /// # Errors
    /// As for [`Session::logits`]; the ids must fit one chunk.
    #[cfg(feature = "gpu")]
    pub async fn profile(&mut self, ids: &[u32]) -> Result<Vec<crate::gpu::OpTime>, Error> {
        check_ids(ids, self.plan.vocab)?;
        let Device::Gpu(gpu) = &mut self.device else { return Ok(Vec::new()) };
        if !gpu.caps().timestamps {
            return Ok(Vec::new());
        }
        self.cached.clear();
        let step = Step { tokens: ids, pos: 0, outputs: Outputs::Last };
        Ok(gpu.profile(step, 1).await?)
    }

    /// Runs `ids` from an empty cache and shows the output of every operation to `sink`: index in
    /// [`Plan::ops`], values.
    ///
    /// # Errors
    /// As for [`Session::logits`]; the ids must fit one chunk.
    pub async fn trace(
        &mut self,
        ids: &[u32],
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        check_ids(ids, self.plan.vocab)?;
        self.cached.clear();
        Ok(self.device.trace(Step { tokens: ids, pos: 0, outputs: Outputs::All }, sink).await?)
    }
}

/// Rows of logits in a step: a chunk, unless they take more than [`LOGITS_BYTES`] (rows are padded).
fn rows_a_step(vocab: u32, chunk: u32) -> usize {
    let row_bytes = u64::from(vocab).next_multiple_of(64) * 4;
    (LOGITS_BYTES / row_bytes).clamp(1, chunk.into()) as usize
}

fn check_ids(ids: &[u32], vocab: u32) -> Result<(), Error> {
    match ids.iter().find(|&&id| id >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::InvalidArgument {
            reason: format!("token id {id} is outside the vocabulary of {vocab}"),
        }),
    }
}

/// ln p of `id`, then of the `alternatives` likeliest tokens.
fn logprobs(logits: &[f32], id: u32, alternatives: usize) -> Vec<Logprob> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    let logprob = |id: u32| Logprob {
        id,
        logprob: logits.get(id as usize).map_or(f32::NAN, |&l| l - max - sum.ln() as f32),
    };
    let candidates = (0..).zip(logits).map(|(id, &logit)| Candidate { logit, id }).collect();
    let likeliest = descending(candidates).take(alternatives).map(|c| c.id);
    std::iter::once(id).chain(likeliest).map(logprob).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_logits_fit_a_binding() {
        assert_eq!(rows_a_step(4096, 512), 512);
        let rows = rows_a_step(128_257, 512);
        assert!(rows as u64 * 128_320 * 4 <= LOGITS_BYTES, "{rows}");
        assert!((rows as u64 + 1) * 128_320 * 4 > LOGITS_BYTES, "{rows}");
        assert_eq!(rows_a_step(u32::MAX, 512), 1);
    }
}
