//! Files and folders, on systems that have them: loading models, and writing [`NewFile`]s.

use super::{Device, DeviceOptions, HfFiles, LoadOptions, Loader, Phase, Progress, Session};
use crate::error::Error;
use crate::format::{Container, safetensors, sniff};
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Bytes read at a time: large enough for the disk, small enough for a lively progress bar.
const CHUNK_BYTES: usize = 4 << 20;
/// Largest JSON file that is read whole: no tokenizer comes near, and a device file never ends.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// Bytes gathered before they go to the disk.
const BUFFER_BYTES: usize = 1 << 20;

/// Told how a load goes on; returns whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> bool;

/// Loads a GGUF file, or a folder with `config.json` and safetensors weights, onto `device`.
///
/// # Errors
/// Unreadable, damaged or unknown files; device errors; [`Error::Cancelled`] when `on_progress`
/// returns false.
pub fn load_on(
    device: Device,
    path: &Path,
    options: &LoadOptions,
    on_progress: OnProgress<'_>,
) -> Result<Session, Error> {
    let meta = std::fs::metadata(path).map_err(|e| io(path, e))?;
    if meta.is_dir() {
        return load_folder(device, path, options, on_progress);
    }
    let mut file = File::open(path).map_err(|e| io(path, e))?;
    let mut start = Vec::new();
    file.by_ref().take(9).read_to_end(&mut start).map_err(|e| io(path, e))?;
    match sniff(&start)? {
        Container::Gguf => {
            let bytes = meta.is_file().then_some(meta.len());
            let reader = start.as_slice().chain(file);
            load_gguf(device, reader, bytes, options, on_progress).map_err(|e| at_path(path, e))
        }
        Container::Safetensors => {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            load_folder(device, folder.unwrap_or(Path::new(".")), options, on_progress)
        }
    }
}

/// As [`load_on`], on the best device there is.
///
/// # Errors
/// As for [`load_on`].
pub fn load(
    path: &Path,
    options: &LoadOptions,
    on_progress: OnProgress<'_>,
) -> Result<Session, Error> {
    let (device, _) = pollster::block_on(Device::open(&DeviceOptions::default()))?;
    load_on(device, path, options, on_progress)
}

/// Loads a GGUF file of `bytes` bytes (if known) from a reader.
///
/// # Errors
/// As for [`load_on`].
pub fn load_gguf(
    device: Device,
    mut reader: impl Read,
    bytes: Option<u64>,
    options: &LoadOptions,
    on_progress: OnProgress<'_>,
) -> Result<Session, Error> {
    let mut loader = Loader::gguf(device, bytes, *options);
    pour(&mut loader, 0, &mut reader, on_progress)?;
    finish(loader, on_progress)
}

fn load_folder(
    device: Device,
    folder: &Path,
    options: &LoadOptions,
    on_progress: OnProgress<'_>,
) -> Result<Session, Error> {
    let hf = hf_files(folder)?;
    let paths = shards(folder)?;
    let mut files = Vec::new();
    for path in &paths {
        let file = File::open(path).map_err(|e| io(path, e))?;
        let bytes = file.metadata().map_err(|e| io(path, e))?.len();
        files.push((file, bytes));
    }
    let lengths: Vec<_> = files.iter().map(|f| Some(f.1)).collect();
    let mut loader = Loader::safetensors(device, hf, &lengths, *options);
    // Headers first: a weight may be gathered from several files.
    for (i, (file, _)) in files.iter_mut().enumerate() {
        push_header(&mut loader, i, file).map_err(|e| at_path(&paths[i], e))?;
    }
    for (i, (file, _)) in files.iter_mut().enumerate() {
        pour(&mut loader, i, file, on_progress).map_err(|e| at_path(&paths[i], e))?;
    }
    finish(loader, on_progress)
}

/// The small files of a folder.
pub(crate) fn hf_files(folder: &Path) -> Result<HfFiles, Error> {
    let text = |name: &str| read_text(&folder.join(name));
    Ok(HfFiles {
        config: text("config.json")?.ok_or_else(|| missing(&folder.join("config.json")))?,
        tokenizer: text("tokenizer.json")?,
        tokenizer_config: text("tokenizer_config.json")?,
        generation_config: text("generation_config.json")?,
        chat_template: text("chat_template.jinja")?,
    })
}

/// The weight files of a folder.
pub(crate) fn shards(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let index_path = folder.join("model.safetensors.index.json");
    if let Some(text) = read_text(&index_path)? {
        let index = safetensors::Index::parse(text.as_bytes())?;
        return Ok(index.shards().iter().map(|name| folder.join(name)).collect());
    }
    Ok(vec![folder.join("model.safetensors")])
}

/// Reads just the header of a safetensors file: its length, then as much.
fn push_header(loader: &mut Loader, i: usize, file: &mut File) -> Result<(), Error> {
    let mut bytes = Vec::new();
    file.by_ref().take(8).read_to_end(&mut bytes).map_err(read_error)?;
    pollster::block_on(loader.push(i, &bytes))?;
    let length = bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    bytes.clear();
    // The parser has checked the length against the file and a cap.
    file.take(length).read_to_end(&mut bytes).map_err(read_error)?;
    pollster::block_on(loader.push(i, &bytes))?;
    Ok(())
}

/// Gives the loader all that is left of a file.
fn pour(
    loader: &mut Loader,
    file: usize,
    reader: &mut impl Read,
    on_progress: OnProgress<'_>,
) -> Result<(), Error> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(read_error(e)),
        };
        pollster::block_on(loader.push(file, &buffer[..n]))?;
        if !on_progress(loader.progress()) {
            return Err(Error::Cancelled);
        }
    }
}

fn finish(loader: Loader, on_progress: OnProgress<'_>) -> Result<Session, Error> {
    if !on_progress(Progress { phase: Phase::Prepare, ..loader.progress() }) {
        return Err(Error::Cancelled);
    }
    pollster::block_on(loader.finish())
}

/// A text file, or `None` when there is none.
fn read_text(path: &Path) -> Result<Option<String>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(path, e)),
    };
    let mut text = String::new();
    let read = file.take(MAX_JSON_BYTES + 1).read_to_string(&mut text);
    match read {
        Ok(n) if n as u64 > MAX_JSON_BYTES => {
            Err(io(path, std::io::Error::new(ErrorKind::FileTooLarge, "file is too large")))
        }
        Ok(_) => Ok(Some(text)),
        Err(e) => Err(io(path, e)),
    }
}

fn missing(path: &Path) -> Error {
    io(path, std::io::Error::new(ErrorKind::NotFound, "no such file"))
}

pub(crate) fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.display().to_string(), source }
}

fn read_error(source: std::io::Error) -> Error {
    Error::Io { path: String::new(), source }
}

/// Fills in the path where only the reader was known.
fn at_path(path: &Path, error: Error) -> Error {
    match error {
        Error::Io { path: p, source } if p.is_empty() => io(path, source),
        other => other,
    }
}

/// A file that appears under its name only when it is complete: until then its bytes are in a
/// hidden one beside it, which goes away unless [`NewFile::finish`] succeeds.
#[derive(Debug)]
pub struct NewFile {
    file: BufWriter<File>,
    temporary: PathBuf,
    target: PathBuf,
}

impl NewFile {
    /// Starts writing, in the target's folder, so that giving it its name is one step.
    ///
    /// # Errors
    /// The target is a folder, or its folder cannot be written to.
    pub fn create(target: &Path) -> std::io::Result<Self> {
        let Some(name) = target.file_name().filter(|_| !target.is_dir()) else {
            return Err(ErrorKind::IsADirectory.into());
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        let temporary = target.with_file_name(hidden);
        let file = BufWriter::with_capacity(BUFFER_BYTES, File::create(&temporary)?);
        Ok(NewFile { file, temporary, target: target.to_path_buf() })
    }

    /// Puts everything on the disk and gives the file its name, in place of what had it.
    ///
    /// # Errors
    /// The disk is full, or the name cannot be given.
    pub fn finish(mut self) -> std::io::Result<()> {
        io::Write::flush(&mut self.file)?;
        self.file.get_ref().sync_all()?;
        std::fs::rename(&self.temporary, &self.target)
    }
}

impl io::Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        io::Write::write(&mut self.file, bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        io::Write::flush(&mut self.file)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After `finish` there is no such file any more.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
