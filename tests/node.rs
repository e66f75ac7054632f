//! In Node: the CPU path compiled to WebAssembly. `wasm-pack test --node --test node`, or
//! `tests/run-web.sh`.
#![cfg(target_arch = "wasm32")]

#[path = "common/wasm.rs"]
mod common;

use bitnet_rust::backend::BackendError;
use bitnet_rust::session::{
    Device, DeviceChoice, DeviceOptions, Event, LoadOptions, Loader, Request, Session,
};
use wasm_bindgen_test::wasm_bindgen_test;

const TALES: &[u8] = include_bytes!("../models/tales.gguf");

#[wasm_bindgen_test]
async fn cpu_kernels_agree_with_their_twins() {
    common::check_kernels(DeviceChoice::Cpu).await;
}

async fn load(piece_bytes: usize) -> Session {
    let options = DeviceOptions { choice: DeviceChoice::Cpu, ..DeviceOptions::default() };
    let (device, _) = Device::open(&options).await.unwrap();
    let mut loader = Loader::gguf(device, None, LoadOptions::default());
    for piece in TALES.chunks(piece_bytes) {
        assert_eq!(loader.push(0, piece).await.unwrap(), piece.len());
    }
    loader.finish().await.unwrap()
}

async fn story(session: &mut Session) -> String {
    let mut request = Request::text("Once upon a time");
    request.max_tokens = Some(12);
    request.sampling.seed = 5;
    let mut generation = session.start(request).unwrap();
    let mut text = String::new();
    loop {
        match session.next(&mut generation).await.unwrap() {
            Event::Text(piece) => text += &piece.text,
            Event::Finished(_) => return text,
            Event::Prefill { .. } => {}
        }
    }
}

#[wasm_bindgen_test]
async fn the_default_model_writes_the_same_however_its_bytes_come() {
    let text = story(&mut load(1 << 20).await).await;
    assert!(text.len() > 10, "{text:?}");
    assert_eq!(story(&mut load(77_777).await).await, text);
}

#[wasm_bindgen_test]
async fn an_empty_file_is_an_error() {
    let (device, _) =
        Device::open(&DeviceOptions { choice: DeviceChoice::Cpu, ..DeviceOptions::default() })
            .await
            .unwrap_or_else(|e: BackendError| panic!("{e}"));
    let loader = Loader::gguf(device, Some(0), LoadOptions::default());
    assert_eq!(loader.finish().await.err().unwrap().code(), "corrupt_file");
}
