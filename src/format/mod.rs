//! Model files as push parsers: feed slices of any size, get a header and then tensor data.
//!
//! [`gguf`] reads GGUF v2 and v3, [`safetensors`] reads safetensors files and the index of sharded
//! ones. Neither does I/O, keeps tensor data, or needs to see a file twice: data events borrow
//! from the input. This room knows containers, not models; what a key or a tensor means is the
//! business of [`crate::model`]. It may import no other room.
//!
//! # Hostile files
//! Every number of a header is checked before it is used: against the size of the file where that
//! is known, and against a cap in any case ([`MAX_HEADER_BYTES`], [`MAX_TENSORS`], …). A parser
//! never holds more than a small multiple of the header bytes that it was really given.

mod dtype;
pub mod gguf;
pub mod gguf_write;
mod metadata;
pub mod safetensors;

pub use dtype::DType;
pub use metadata::{Array, MAX_NUMBERS, Metadata, Strings, Value, ValueType};

/// Largest header. Stops a file from making us keep it all as metadata; the largest known headers
/// (262 k tokens with their merges) take 16 MiB.
pub const MAX_HEADER_BYTES: u64 = 32 << 20;
/// Most tensors in a file. Stops a forged count from costing memory a tensor; the largest known
/// mixture-of-experts checkpoints have some 60,000.
pub const MAX_TENSORS: u64 = 1 << 16;
/// Most metadata entries in a file. Stops the same; real files have fewer than 100.
pub const MAX_METADATA: u64 = 1 << 16;
/// Most dimensions of a tensor. GGUF allows 4; safetensors sets no bound, and a shape of a million
/// ones must not cost eight megabytes.
pub const MAX_DIMS: usize = 8;
/// Longest name of a tensor in safetensors. Keeps error messages short; GGUF allows 64 bytes.
pub const MAX_NAME_BYTES: usize = 512;

/// Where a tensor lies in its file, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first (the reverse of GGUF's `ne`).
    pub shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes, without padding.
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elems(&self) -> u64 {
        // Checked by the parsers when the tensor was read.
        self.shape.iter().product()
    }
}

/// What a parser found in its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The header is complete: metadata and tensor infos can be read. Comes once, before any data.
    Header,
    /// A piece of a tensor. Tensors come in file order, each from its first to its last byte.
    Data {
        /// Index into the parser's `tensors()`.
        tensor: usize,
        /// Offset of `bytes` inside the tensor.
        offset: u64,
        /// The data, borrowed from the input.
        bytes: &'a [u8],
    },
    /// All input is used up.
    NeedInput,
}

/// The container of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// GGUF (or a byte-swapped one, which its parser explains).
    Gguf,
    /// Safetensors.
    Safetensors,
}

/// The container that `start`, the first bytes of a file (9 are enough), belong to.
///
/// # Errors
/// [`FormatError::Unrecognized`] when it is neither, [`FormatError::UnexpectedEnd`] when there are
/// too few bytes to tell.
pub fn sniff(start: &[u8]) -> Result<Container, FormatError> {
    match start {
        [b'G', b'G', b'U', b'F', ..] | [b'F', b'U', b'G', b'G', ..] => Ok(Container::Gguf),
        [_, _, _, _, _, _, _, _, b'{', ..] => Ok(Container::Safetensors),
        _ if start.len() < 9 => Err(FormatError::UnexpectedEnd {
            reading: "the first bytes of a model file".into(),
            offset: start.len() as u64,
        }),
        _ => Err(FormatError::Unrecognized { start: start[..8].to_vec() }),
    }
}

/// Why bytes are not a model file that we read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Neither GGUF nor safetensors.
    #[error("neither a GGUF nor a safetensors file (first bytes {start:02x?})")]
    Unrecognized {
        /// The first bytes.
        start: Vec<u8>,
    },
    /// The file does not start with `GGUF`.
    #[error("bad magic {got:02x?}: a GGUF file starts with 47 47 55 46 (\"GGUF\")")]
    BadMagic {
        /// The first bytes.
        got: [u8; 4],
    },
    /// A big-endian GGUF file.
    #[error("byte-swapped (big-endian) GGUF file: only little-endian files are supported")]
    ByteSwapped,
    /// A GGUF version that we do not read.
    #[error("unsupported GGUF version {got} (2 and 3 are supported)")]
    Version {
        /// The version.
        got: u32,
    },
    /// The file ends too soon.
    #[error("unexpected end of file at byte {offset}, reading {reading}")]
    UnexpectedEnd {
        /// What was being read.
        reading: String,
        /// Where the file ended.
        offset: u64,
    },
    /// A count or length that cannot be true, or that is above a cap.
    #[error("{what} at byte {offset} is {got}: {limit}")]
    Implausible {
        /// What is counted.
        what: String,
        /// Position of the number in the file.
        offset: u64,
        /// The number.
        got: u64,
        /// What it may be.
        limit: String,
    },
    /// Text that is not UTF-8.
    #[error("{what} at byte {offset} is not valid UTF-8")]
    NotUtf8 {
        /// Which text.
        what: String,
        /// Position in the file.
        offset: u64,
    },
    /// A metadata value type that does not exist.
    #[error("unknown metadata value type {got} of key '{key}' at byte {offset}")]
    UnknownValueType {
        /// The key.
        key: String,
        /// The type.
        got: u32,
        /// Position in the file.
        offset: u64,
    },
    /// An array of arrays.
    #[error("key '{key}' at byte {offset} holds nested arrays, which are not supported")]
    NestedArray {
        /// The key.
        key: String,
        /// Position in the file.
        offset: u64,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("boolean of key '{key}' at byte {offset} is {got} (0 or 1 expected)")]
    BadBool {
        /// The key.
        key: String,
        /// The byte.
        got: u8,
        /// Position in the file.
        offset: u64,
    },
    /// A metadata key twice.
    #[error("duplicate metadata key '{key}'")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A required metadata key is missing.
    #[error("missing required metadata key '{key}'")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value of the wrong type.
    #[error("metadata key '{key}' has the wrong type: {got} ({expected} expected)")]
    WrongValueType {
        /// The key.
        key: String,
        /// The type that was asked for.
        expected: &'static str,
        /// The type, or the value, in the file.
        got: String,
    },
    /// `general.alignment` is not a sane power of two.
    #[error(
        "general.alignment is {got}: it must be a power of two, at most {}",
        gguf::MAX_ALIGNMENT
    )]
    Alignment {
        /// The value.
        got: u32,
    },
    /// A tensor type that does not exist (any more).
    #[error("tensor '{tensor}' has the unknown or removed type {got}")]
    UnknownTensorType {
        /// The tensor.
        tensor: String,
        /// The type id, or name.
        got: String,
    },
    /// A tensor name twice.
    #[error("duplicate tensor name '{tensor}'")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// A shape that no tensor of that type can have.
    #[error("tensor '{tensor}' has the bad shape {shape:?}: {reason}")]
    BadShape {
        /// The tensor.
        tensor: String,
        /// The dimensions, as the file gives them.
        shape: Vec<u64>,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that does not start on the alignment.
    #[error(
        "tensor '{tensor}' starts at offset {offset}, not a multiple of the alignment {alignment}"
    )]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its offset inside the data section.
        offset: u64,
        /// The alignment.
        alignment: u64,
    },
    /// A tensor that does not lie inside the file.
    #[error(
        "data of tensor '{tensor}' goes past the end of the file: {bytes} bytes at offset {offset}, \
         the file has {file_bytes}"
    )]
    TensorPastEnd {
        /// The tensor.
        tensor: String,
        /// First byte, from the start of the file.
        offset: u64,
        /// Length.
        bytes: u64,
        /// Length of the file.
        file_bytes: u64,
    },
    /// A tensor whose place in the file cannot be computed.
    #[error("data offset {offset} of tensor '{tensor}' overflows")]
    OffsetOverflow {
        /// The tensor.
        tensor: String,
        /// The offset as the file gives it.
        offset: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors '{first}' and '{second}' overlap at byte {offset}")]
    Overlap {
        /// The tensor that starts first.
        first: String,
        /// The one that starts inside it.
        second: String,
        /// Start of the second.
        offset: u64,
    },
    /// Bytes after the last tensor (safetensors forbids them).
    #[error("the file goes on after its last tensor, which ends at byte {offset}")]
    TrailingBytes {
        /// End of the last tensor.
        offset: u64,
    },
    /// Bytes between tensors that belong to none (safetensors forbids them).
    #[error("{bytes} bytes at offset {offset} of the file belong to no tensor")]
    Hole {
        /// First such byte.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// The offsets of a tensor do not match its shape.
    #[error("tensor '{tensor}' has {got} bytes of data, its shape and type need {expected}")]
    SizeMismatch {
        /// The tensor.
        tensor: String,
        /// Bytes by shape and type.
        expected: u64,
        /// Bytes by its offsets.
        got: u64,
    },
    /// A JSON text that is not what it should be.
    #[error("{what} is not valid: {message}")]
    Json {
        /// Which text.
        what: &'static str,
        /// What the JSON reader says, with line and column.
        message: String,
    },
    /// A shard name that is not a plain file name.
    #[error(
        "tensor '{tensor}' is said to lie in '{path}', which is not a file name inside the folder"
    )]
    ShardPath {
        /// The tensor.
        tensor: String,
        /// The name in the index.
        path: String,
    },
}

/// Gathers the bytes of one header item from inputs of any size.
#[derive(Debug, Default)]
struct Gather {
    bytes: Vec<u8>,
    /// Bytes of the file taken so far, these included.
    at: u64,
}

impl Gather {
    /// Takes from `input` until `len` bytes are gathered; whether they are.
    /// Memory grows with what arrives, never with what `len` promises.
    fn fill(&mut self, input: &mut &[u8], len: usize) -> bool {
        let n = len.saturating_sub(self.bytes.len()).min(input.len());
        let (now, later) = input.split_at(n);
        self.bytes.extend_from_slice(now);
        self.at += n as u64;
        *input = later;
        self.bytes.len() == len
    }
}

/// Emits data events: walks over the tensors in file order.
#[derive(Debug, Default)]
struct Walk {
    /// Indices of the tensors with data, in file order.
    order: Vec<usize>,
    /// Position in `order`.
    next: usize,
}

impl Walk {
    fn new(tensors: &[TensorInfo]) -> Self {
        let mut order: Vec<usize> = (0..tensors.len()).filter(|&i| tensors[i].bytes > 0).collect();
        order.sort_by_key(|&i| tensors[i].offset);
        Walk { order, next: 0 }
    }

    fn done(&self) -> bool {
        self.next == self.order.len()
    }

    /// The next piece of a tensor in `input`, which starts at byte `at` of the file; bytes between
    /// tensors are skipped. `None` when the input is used up or all tensors are complete.
    fn step<'a>(
        &mut self,
        tensors: &[TensorInfo],
        at: &mut u64,
        input: &mut &'a [u8],
    ) -> Option<Event<'a>> {
        let &tensor = self.order.get(self.next)?;
        let info = &tensors[tensor];
        *at += take_up_to(input, info.offset.saturating_sub(*at)).len() as u64;
        if input.is_empty() {
            return None;
        }
        let offset = *at - info.offset;
        let bytes = take_up_to(input, info.bytes - offset);
        *at += bytes.len() as u64;
        if offset + bytes.len() as u64 == info.bytes {
            self.next += 1;
        }
        Some(Event::Data { tensor, offset, bytes })
    }

    /// The error of a file that ended at byte `at`, if it ended too soon.
    fn finish(&self, tensors: &[TensorInfo], at: u64) -> Result<(), FormatError> {
        match self.order.get(self.next) {
            None => Ok(()),
            Some(&i) => Err(FormatError::TensorPastEnd {
                tensor: tensors[i].name.clone(),
                offset: tensors[i].offset,
                bytes: tensors[i].bytes,
                file_bytes: at,
            }),
        }
    }
}

/// Splits off the first `max` bytes of `input`, or all of it.
fn take_up_to<'a>(input: &mut &'a [u8], max: u64) -> &'a [u8] {
    let n = usize::try_from(max).map_or(input.len(), |max| max.min(input.len()));
    let (now, later) = input.split_at(n);
    *input = later;
    now
}
