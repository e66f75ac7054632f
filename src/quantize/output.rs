//! A file that appears under its name only when it is complete.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::QuantizeError;

/// Bytes gathered before they go to the disk.
const BUFFER_BYTES: usize = 1 << 20;

/// A temporary file beside the target; it is removed unless [`Atomic::finish`] succeeds.
pub(super) struct Atomic {
    file: BufWriter<File>,
    temporary: PathBuf,
    target: PathBuf,
}

impl Atomic {
    /// Opens the temporary file: in the target's folder, so that renaming it is one step.
    pub(super) fn create(target: &Path) -> Result<Self, QuantizeError> {
        let Some(name) = target.file_name() else {
            let source = std::io::ErrorKind::IsADirectory.into();
            return Err(QuantizeError::Write { path: target.display().to_string(), source });
        };
        if target.is_dir() {
            let source = std::io::ErrorKind::IsADirectory.into();
            return Err(QuantizeError::Write { path: target.display().to_string(), source });
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        let temporary = target.with_file_name(hidden);
        let file = File::create(&temporary).map_err(|e| QuantizeError::from(e).at(target))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Atomic { file, temporary, target: target.to_path_buf() })
    }

    /// Puts everything on the disk and gives the file its name.
    pub(super) fn finish(mut self) -> Result<(), QuantizeError> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        std::fs::rename(&self.temporary, &self.target)?;
        Ok(())
    }
}

impl Write for Atomic {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Atomic {
    fn drop(&mut self) {
        // After `finish` there is no such file any more.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

impl From<std::io::Error> for QuantizeError {
    fn from(source: std::io::Error) -> Self {
        QuantizeError::Write { path: String::new(), source }
    }
}

impl QuantizeError {
    /// Fills in the output's path where only the writer was known.
    pub(super) fn at(self, output: &Path) -> Self {
        match self {
            QuantizeError::Write { path, source } if path.is_empty() => {
                QuantizeError::Write { path: output.display().to_string(), source }
            }
            other => other,
        }
    }
}
