//! Which kernels are fastest on the GPU at hand.

use super::to_js;
use crate::backend::BackendError;
use crate::gpu::{Gpu, Options};
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

/// What `kernels` is best set to, measured on a device of its own; nothing once `given_up` has settled.
/// There must be a GPU, and nothing else for it to do.
#[wasm_bindgen(js_name = measureKernels)]
pub async fn measure_kernels(
    page_adds_subgroups: bool,
    given_up: js_sys::Promise,
) -> Result<Option<String>, JsValue> {
    let failed = |e: BackendError| to_js(e.into());
    let options = Options { page_adds_subgroups, ..Options::default() };
    let mut gpu = Gpu::new(options).await.map_err(failed)?;
    let tuning = {
        let mut given_up = pin!(JsFuture::from(given_up));
        let mut measured = pin!(gpu.measure_features());
        poll_fn(|context| match given_up.as_mut().poll(context) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => measured.as_mut().poll(context).map(Some),
        })
        .await
    };
    gpu.destroy();
    let tuning = tuning.transpose().map_err(failed)?;
    Ok(tuning.map(|tuning| tuning.best.to_string()))
}
