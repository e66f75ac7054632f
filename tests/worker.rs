//! The same as `web.rs` in a dedicated worker, which is where the package runs the engine.
#![cfg(target_arch = "wasm32")]

#[path = "common/wasm.rs"]
mod common;

use bitnet_rust::session::DeviceChoice;
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};

wasm_bindgen_test_configure!(run_in_dedicated_worker);

#[wasm_bindgen_test]
async fn webgpu_kernels_agree_with_their_twins_in_a_worker() {
    common::check_kernels(DeviceChoice::Gpu).await;
}

#[wasm_bindgen_test]
async fn cpu_kernels_agree_with_their_twins_in_a_worker() {
    common::check_kernels(DeviceChoice::Cpu).await;
}
