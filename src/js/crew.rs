//! Shards in workers: `lib/crew.js` of the package carries the bytes, [`crate::cpu`] knows what they
//! mean.

use crate::backend::BackendError;
use crate::cpu;
use std::pin::Pin;
use std::task::{Context, Poll};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

/// Rows of the matrices of a model that another instance runs.
#[wasm_bindgen]
pub struct Shard(cpu::Shard);

#[wasm_bindgen]
impl Shard {
    /// A shard without weights.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Result<Shard, JsValue> {
        cpu::Shard::new().map(Shard).map_err(|e| super::to_js(e.into()))
    }

    /// Does what a request asks, and says how it went.
    pub fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        self.0.answer(request)
    }
}

#[wasm_bindgen]
extern "C" {
    /// `Crew` of `lib/crew.js`.
    pub type Crew;
    #[wasm_bindgen(method, getter)]
    fn count(this: &Crew) -> usize;
    #[wasm_bindgen(method, getter)]
    fn room(this: &Crew) -> usize;
    /// To shard `to`; all of them where it is negative.
    #[wasm_bindgen(method, catch)]
    fn post(this: &Crew, to: i32, request: &[u8]) -> Result<(), JsValue>;
    /// Nothing when all have answered, else a promise.
    #[wasm_bindgen(method, catch)]
    fn collect(this: &Crew) -> Result<JsValue, JsValue>;
    /// Nothing when the shard was not asked.
    #[wasm_bindgen(method)]
    fn answer(this: &Crew, shard: usize) -> Option<js_sys::Uint8Array>;
    #[wasm_bindgen(method)]
    fn close(this: &Crew);
}

pub(super) struct Carrier {
    crew: Crew,
    waiting: Option<JsFuture>,
}

impl Carrier {
    pub fn new(crew: Crew) -> Self {
        Carrier { crew, waiting: None }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.crew.close();
    }
}

fn lost(error: JsValue) -> BackendError {
    let message = js_sys::Reflect::get(&error, &"message".into()).ok().and_then(|m| m.as_string());
    BackendError::WorkerLost { reason: message.unwrap_or_else(|| format!("{error:?}")) }
}

impl cpu::Carrier for Carrier {
    fn count(&self) -> usize {
        self.crew.count()
    }

    fn room(&self) -> usize {
        self.crew.room()
    }

    fn post(&mut self, to: Option<usize>, request: &[u8]) -> Result<(), BackendError> {
        self.crew.post(to.map_or(-1, |to| to as i32), request).map_err(lost)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Vec<Vec<u8>>, BackendError>> {
        if self.waiting.is_none() {
            let all = self.crew.collect().map_err(lost)?;
            self.waiting = all.dyn_into().ok().map(|p: js_sys::Promise| JsFuture::from(p));
        }
        if let Some(waiting) = &mut self.waiting {
            let Poll::Ready(end) = Pin::new(waiting).poll(context) else { return Poll::Pending };
            self.waiting = None;
            end.map_err(lost)?;
        }
        let answer = |shard| {
            let bytes = self.crew.answer(shard);
            bytes.map_or(cpu::NOTHING.to_vec(), |bytes| bytes.to_vec())
        };
        Poll::Ready(Ok((0..self.crew.count()).map(answer).collect()))
    }
}
