//! In a page of a real browser: every kernel of the WebGPU backend against its twin, as the browser's
//! own compiler builds it. `wasm-pack test --headless --chrome --test web`, or `tests/run-web.sh`.
#![cfg(target_arch = "wasm32")]

#[path = "common/wasm.rs"]
mod common;

use bitnet_rust::session::DeviceChoice;
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};

wasm_bindgen_test_configure!(run_in_browser);

#[wasm_bindgen_test]
async fn webgpu_kernels_agree_with_their_twins_on_a_page() {
    common::check_kernels(DeviceChoice::Gpu).await;
}
