//! What the suites in WebAssembly share.

use bitnet_rust::selfcheck;
use bitnet_rust::session::{Device, DeviceChoice, DeviceOptions};

/// Every case of the self-check on a device that must be there.
pub async fn check_kernels(choice: DeviceChoice) {
    let options = DeviceOptions { choice, ..DeviceOptions::default() };
    let (mut device, _) = Device::open(&options).await.unwrap_or_else(|e| panic!("{e}"));
    let mut failed = Vec::new();
    let cases = selfcheck::cases();
    assert!(cases.len() > 40);
    for case in cases {
        if let Err(e) = case.run(&mut device).await {
            failed.push(format!("{}, {}: {e}", case.kernel, case.variant));
        }
    }
    assert!(failed.is_empty(), "{} cases differ:\n{}", failed.len(), failed.join("\n"));
}
