//! Every kernel on a GPU against its plain twin.
//!
//! Needs an adapter: `BITNET_ADAPTER=llvmpipe` (with `VK_ICD_FILENAMES` pointing at lavapipe) or a
//! real one. `REQUIRE_GPU=1` turns a missing adapter into a failure; otherwise it is a visible skip.
#![cfg(all(feature = "gpu", not(target_arch = "wasm32")))]

use bitnet_rust::backend::Backend;
use bitnet_rust::gpu::{Gpu, Options};
use bitnet_rust::selfcheck;

fn open(options: Options) -> Option<Gpu> {
    match pollster::block_on(Gpu::new(options)) {
        Ok(gpu) => Some(gpu),
        Err(e) if std::env::var("REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(e) => {
            eprintln!("SKIPPED: {e}");
            None
        }
    }
}

/// Runs every case of the self-check; `KERNEL` restricts it to one stem.
fn check(options: Options) {
    let Some(mut gpu) = open(options) else { return };
    let only = std::env::var("KERNEL").ok();
    let mut failures = Vec::new();
    let mut ran = 0;
    for case in selfcheck::cases() {
        if only.as_ref().is_some_and(|o| o != case.kernel) {
            continue;
        }
        ran += 1;
        if let Err(e) = pollster::block_on(case.run(&mut gpu)) {
            failures.push(format!("{} {}: {e}", case.kernel, case.variant));
        }
    }
    eprintln!("{ran} cases on {}", gpu.caps().adapter);
    assert!(failures.is_empty(), "{} of {ran} failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn kernels_agree_with_their_twins() {
    check(Options::default());
}

#[test]
fn kernels_agree_with_their_twins_without_subgroups_and_dot4() {
    check(Options { subgroups: false, dot4: false, ..Options::default() });
}
