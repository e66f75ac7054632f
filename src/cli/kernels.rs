//! Which GPU features kernels use: as asked for, as remembered, or measured once an adapter.

use bitnet_rust::backend::BackendError;
use bitnet_rust::session::{Device, DeviceOptions};
use pollster::block_on;

/// Opens a machine; see [`Device::open`].
pub fn open(options: &DeviceOptions) -> Result<(Device, Option<String>), BackendError> {
    let (device, why) = block_on(Device::open(options))?;
    #[cfg(feature = "gpu")]
    let device = match device {
        Device::Gpu(mut gpu) if options.features.is_none() => {
            choose(&mut gpu)?;
            Device::Gpu(gpu)
        }
        other => other,
    };
    Ok((device, why))
}

#[cfg(feature = "gpu")]
fn choose(gpu: &mut bitnet_rust::gpu::Gpu) -> Result<(), BackendError> {
    let identity = gpu.identity().to_string();
    if let Some(features) = memory::read(&identity) {
        gpu.use_features(features);
    } else if !gpu.is_software() {
        let tuning = block_on(gpu.measure_features())?;
        // Without the note it is measured again next time.
        let _ = memory::write(&identity, &tuning);
    }
    Ok(())
}

/// One small file an adapter in the cache folder of the user.
#[cfg(feature = "gpu")]
mod memory {
    use crate::cli::hub::cache_home;
    use bitnet_rust::backend::KernelFeatures;
    use bitnet_rust::gpu::Tuning;
    use bitnet_rust::session::files::NewFile;
    use sha2::{Digest, Sha256};
    use std::io::{self, Write};
    use std::path::PathBuf;

    fn path(identity: &str) -> Option<PathBuf> {
        let hash = Sha256::digest(identity);
        let name: String = hash.iter().take(8).map(|b| format!("{b:02x}")).collect();
        cache_home().map(|c| c.join("bitnet-rust").join("kernels").join(name))
    }

    pub fn read(identity: &str) -> Option<KernelFeatures> {
        let text = std::fs::read_to_string(path(identity)?).ok()?;
        // The name of the file is short for the identity: the first line is all of it.
        let mut lines = text.lines();
        (lines.next()? == identity).then(|| lines.next()?.parse().ok()).flatten()
    }

    pub fn write(identity: &str, tuning: &Tuning) -> io::Result<()> {
        let Some(path) = path(identity) else { return Ok(()) };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = NewFile::create(&path)?;
        writeln!(file, "{identity}\n{}", tuning.best)?;
        // For those who want to know why.
        for t in &tuning.trials {
            let (features, prefill, decode) = (t.features, t.prefill_ms, t.decode_ms);
            writeln!(
                file,
                "{features}: prompt {prefill:.3} ms, token {decode:.4} ms, nmse {:.1e}",
                t.nmse
            )?;
        }
        file.finish()
    }
}
