//! GGUF v2 and v3, as a push parser.
//!
//! ```text
//! "GGUF" · u32 version · u64 tensor count · u64 metadata count
//! metadata: (string key, u32 type, value)…
//! infos:    (string name, u32 dims, u64 ne[dims] innermost first, u32 type, u64 offset)…
//! padding to general.alignment (32), then the tensors at their offsets
//! ```
//! A string is a u64 length and its bytes; an array is a u32 type, a u64 length and its elements.
//!
//! # What is stricter than the reference readers
//! Duplicate keys and names, overlapping or misaligned tensors, booleans other than 0 and 1, and
//! nested arrays are errors. Bytes that belong to no tensor are padding and are skipped.
//!
//! # Q2_0
//! Two layouts share type id 42: 64 weights a scale (llama.cpp) and 128 (older PrismML files).
//! The distance between the tensors' offsets tells which; [`DType::Q2_0_128`] names the second.
//!
//! # Source
//! ggml `docs/gguf.md`, `src/gguf.cpp`.

use std::collections::HashSet;

use super::{
    Array, DType, Event, FormatError, Gather, MAX_HEADER_BYTES, MAX_METADATA, MAX_TENSORS,
    Metadata, Strings, TensorInfo, Value, ValueType, Walk,
};

/// Alignment of files that do not give one.
pub const DEFAULT_ALIGNMENT: u32 = 32;
/// Largest `general.alignment`. A larger one only makes a file that is mostly padding.
pub const MAX_ALIGNMENT: u32 = 1 << 20;
/// Longest metadata key (the specification's bound).
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// Longest string value. Stops one string from being gathered to the size of the whole header;
/// the longest real ones are chat templates (50 kB) and embedded tokenizer.json files (9 MB).
const MAX_STRING_BYTES: u64 = 16 << 20;
/// Longest tensor name (the specification's bound).
const MAX_NAME_BYTES: u64 = 64;
/// Most dimensions (`GGML_MAX_DIMS`).
const MAX_DIMS: u32 = 4;
/// Bytes of the smallest metadata entry: key length, type, a one-byte value.
const MIN_ENTRY_BYTES: u64 = 8 + 4 + 1;
/// Bytes of the smallest tensor info: name length, dimensions, one `ne`, type, offset.
const MIN_INFO_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// What is read next. Every state gathers a known number of bytes and then acts on them.
#[derive(Debug)]
enum State {
    Magic,
    Version,
    Counts,
    KeyLen,
    Key(usize),
    ValueType,
    Scalar(ValueType),
    StringLen,
    String(usize),
    ArrayHead,
    Scalars { ty: ValueType, bytes: Vec<u8>, left: usize },
    ElemLen(Strings, u64),
    Elem(Strings, u64, usize),
    NameLen,
    Name(usize),
    Dims,
    Info(u32),
    Data,
}

/// The parser. Feed it the file from its first byte with [`Parser::next`].
#[derive(Debug)]
pub struct Parser {
    state: State,
    gather: Gather,
    file_bytes: Option<u64>,
    entries_left: u64,
    infos_left: u64,
    key: String,
    name: String,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    names: HashSet<String>,
    alignment: u32,
    data_start: u64,
    walk: Walk,
    error: Option<FormatError>,
}

impl Parser {
    /// A parser for a file of that many bytes; give them where they are known, as lies of the
    /// header are then found before its end.
    pub fn new(file_bytes: Option<u64>) -> Self {
        Parser {
            state: State::Magic,
            gather: Gather::default(),
            file_bytes,
            entries_left: 0,
            infos_left: 0,
            key: String::new(),
            name: String::new(),
            metadata: Metadata::default(),
            tensors: Vec::new(),
            names: HashSet::new(),
            alignment: DEFAULT_ALIGNMENT,
            data_start: 0,
            walk: Walk::default(),
            error: None,
        }
    }

    /// The next event in `input`, which is advanced past the bytes used. Call it until it returns
    /// [`Event::NeedInput`], then give more.
    ///
    /// # Errors
    /// [`FormatError`]; from then on always the same one.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Event<'a>, FormatError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let event = self.step(input);
        if let Err(error) = &event {
            self.error = Some(error.clone());
        }
        event
    }

    /// The metadata; complete once [`Event::Header`] has come.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors, in the order of the header; complete once [`Event::Header`] has come.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Alignment of the data section and of every tensor in it.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// Where the data section starts in the file, once the header is complete.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Whether all tensors have been seen to their last byte.
    pub fn is_done(&self) -> bool {
        self.error.is_none() && matches!(self.state, State::Data) && self.walk.done()
    }

    /// To be called where the file ends.
    ///
    /// # Errors
    /// The error of [`Parser::next`], or what is missing.
    pub fn finish(&self) -> Result<(), FormatError> {
        match (&self.error, &self.state) {
            (Some(error), _) => Err(error.clone()),
            (None, State::Data) => self.walk.finish(&self.tensors, self.gather.at),
            (None, _) => {
                Err(FormatError::UnexpectedEnd { reading: self.reading(), offset: self.gather.at })
            }
        }
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Event<'a>, FormatError> {
        loop {
            if let State::Data = self.state {
                return Ok(match self.walk.step(&self.tensors, &mut self.gather.at, input) {
                    Some(event) => event,
                    None => {
                        // Padding, or whatever follows the last tensor.
                        self.gather.at += input.len() as u64;
                        *input = &[];
                        Event::NeedInput
                    }
                });
            }
            if !self.gather_item(input) {
                return Ok(Event::NeedInput);
            }
            self.check_header_bytes()?;
            let bytes = std::mem::take(&mut self.gather.bytes);
            self.item(&bytes)?;
            self.gather.bytes = bytes;
            self.gather.bytes.clear();
            if let State::Data = self.state {
                self.gather.bytes = Vec::new();
                return Ok(Event::Header);
            }
        }
    }

    /// Gathers the bytes that the state needs; whether they are all there.
    fn gather_item(&mut self, input: &mut &[u8]) -> bool {
        let len = match &mut self.state {
            State::Magic | State::Version | State::ValueType | State::Dims => 4,
            State::KeyLen | State::StringLen | State::ElemLen(..) | State::NameLen => 8,
            State::ArrayHead => 12,
            State::Counts => 16,
            State::Scalar(ty) => ty.scalar_bytes().unwrap_or(0),
            State::Key(len) | State::String(len) | State::Elem(_, _, len) | State::Name(len) => {
                *len
            }
            State::Info(dims) => *dims as usize * 8 + 12,
            State::Scalars { bytes, left, .. } => {
                // Straight into the array: these can be millions.
                let n = (*left).min(input.len());
                bytes.extend_from_slice(&input[..n]);
                *input = &input[n..];
                *left -= n;
                self.gather.at += n as u64;
                return *left == 0;
            }
            State::Data => 0,
        };
        self.gather.fill(input, len)
    }

    /// Acts on the gathered bytes of the state and moves to the next.
    fn item(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let offset = self.gather.at - bytes.len() as u64;
        // `bytes` has the length that `gather_item` asked for in this state.
        let u32_at =
            |at: usize| bytes[at..].first_chunk().map_or(0, |b: &[u8; 4]| u32::from_le_bytes(*b));
        let u64_at =
            |at: usize| bytes[at..].first_chunk().map_or(0, |b: &[u8; 8]| u64::from_le_bytes(*b));
        self.state = match std::mem::replace(&mut self.state, State::Data) {
            State::Magic => match bytes {
                b"GGUF" => State::Version,
                b"FUGG" => return Err(FormatError::ByteSwapped),
                _ => {
                    let got = bytes.first_chunk().copied().unwrap_or_default();
                    return Err(FormatError::BadMagic { got });
                }
            },
            State::Version => match u32_at(0) {
                2 | 3 => State::Counts,
                v if matches!(v.swap_bytes(), 2 | 3) => return Err(FormatError::ByteSwapped),
                got => return Err(FormatError::Version { got }),
            },
            State::Counts => {
                self.infos_left = u64_at(0);
                self.entries_left = u64_at(8);
                self.check_count(
                    || "tensor count".into(),
                    offset,
                    self.infos_left,
                    MAX_TENSORS,
                    MIN_INFO_BYTES,
                )?;
                let entries = self.entries_left;
                self.check_count(
                    || "metadata count".into(),
                    offset + 8,
                    entries,
                    MAX_METADATA,
                    MIN_ENTRY_BYTES,
                )?;
                self.next_entry()?
            }
            State::KeyLen => State::Key(self.length(
                || "length of a metadata key".into(),
                offset,
                u64_at(0),
                MAX_KEY_BYTES,
            )?),
            State::Key(_) => {
                self.key = text(bytes, offset, || "metadata key".into())?.to_owned();
                if self.metadata.get(&self.key).is_some() {
                    return Err(FormatError::DuplicateKey { key: self.key.clone() });
                }
                State::ValueType
            }
            State::ValueType => match self.value_type(u32_at(0), offset)? {
                ValueType::String => State::StringLen,
                ValueType::Array => State::ArrayHead,
                ty => State::Scalar(ty),
            },
            State::Scalar(ty) => {
                let Some(value) = Value::scalar(ty, bytes) else {
                    return Err(self.bad_bool(bytes, offset));
                };
                self.entry(value)?
            }
            State::StringLen => {
                let what = || format!("length of string '{}'", self.key);
                State::String(self.length(what, offset, u64_at(0), MAX_STRING_BYTES)?)
            }
            State::String(_) => {
                let s = text(bytes, offset, || format!("value of '{}'", self.key))?.to_owned();
                self.entry(Value::String(s))?
            }
            State::ArrayHead => {
                let len = u64_at(4);
                let what = || format!("length of array '{}'", self.key);
                match self.value_type(u32_at(0), offset)? {
                    ValueType::Array => {
                        return Err(FormatError::NestedArray { key: self.key.clone(), offset });
                    }
                    ValueType::String => {
                        // Each string brings at least its length.
                        self.check_count(what, offset + 4, len, MAX_HEADER_BYTES / 8, 8)?;
                        self.elements(Strings::default(), len)?
                    }
                    ty => {
                        let size = ty.scalar_bytes().unwrap_or(1) as u64;
                        self.check_count(what, offset + 4, len, MAX_HEADER_BYTES / size, size)?;
                        let left = self.length(what, offset + 4, len * size, MAX_HEADER_BYTES)?;
                        State::Scalars { ty, bytes: Vec::new(), left }
                    }
                }
            }
            State::Scalars { ty, bytes: mut elems, .. } => {
                let start = self.gather.at - elems.len() as u64;
                if ty == ValueType::Bool
                    && let Some(i) = elems.iter().position(|&b| b > 1)
                {
                    return Err(self.bad_bool(&elems[i..], start + i as u64));
                }
                elems.shrink_to_fit();
                self.entry(Value::Array(Array::Scalars { ty, bytes: elems }))?
            }
            State::ElemLen(strings, left) => {
                let what = || format!("length of string {} of '{}'", strings.len(), self.key);
                let len = self.length(what, offset, u64_at(0), MAX_STRING_BYTES)?;
                State::Elem(strings, left, len)
            }
            State::Elem(mut strings, left, _) => {
                let what = || format!("string {} of '{}'", strings.len(), self.key);
                let s = text(bytes, offset, what)?;
                strings.push(s);
                self.elements(strings, left - 1)?
            }
            State::NameLen => {
                let what = || format!("length of the name of tensor {}", self.tensors.len());
                State::Name(self.length(what, offset, u64_at(0), MAX_NAME_BYTES)?)
            }
            State::Name(_) => {
                let what = || format!("name of tensor {}", self.tensors.len());
                self.name = text(bytes, offset, what)?.to_owned();
                if !self.names.insert(self.name.clone()) {
                    return Err(FormatError::DuplicateTensor { tensor: self.name.clone() });
                }
                State::Dims
            }
            State::Dims => match u32_at(0) {
                dims @ 1..=MAX_DIMS => State::Info(dims),
                dims => {
                    return Err(FormatError::Implausible {
                        what: format!("number of dimensions of tensor '{}'", self.name),
                        offset,
                        got: dims.into(),
                        limit: format!("1 to {MAX_DIMS} are possible"),
                    });
                }
            },
            State::Info(dims) => {
                let dims = dims as usize;
                let shape: Vec<u64> = (0..dims).rev().map(|i| u64_at(8 * i)).collect();
                self.info(shape, u32_at(8 * dims), u64_at(8 * dims + 4))?;
                self.next_info()?
            }
            State::Data => State::Data,
        };
        Ok(())
    }

    /// A value type from its id.
    fn value_type(&self, id: u32, offset: u64) -> Result<ValueType, FormatError> {
        ValueType::from_id(id).ok_or_else(|| FormatError::UnknownValueType {
            key: self.key.clone(),
            got: id,
            offset,
        })
    }

    fn bad_bool(&self, bytes: &[u8], offset: u64) -> FormatError {
        let got = bytes.first().copied().unwrap_or_default();
        FormatError::BadBool { key: self.key.clone(), got, offset }
    }

    /// Keeps the value of `self.key`; what comes after it.
    fn entry(&mut self, value: Value) -> Result<State, FormatError> {
        let key = std::mem::take(&mut self.key);
        if key == "general.alignment" {
            let Value::U32(got) = value else {
                return Err(FormatError::WrongValueType {
                    key,
                    expected: "u32",
                    got: value.value_type().name().into(),
                });
            };
            if !got.is_power_of_two() || got > MAX_ALIGNMENT {
                return Err(FormatError::Alignment { got });
            }
            self.alignment = got;
        }
        self.metadata.insert(key, value)?;
        self.entries_left -= 1;
        self.next_entry()
    }

    /// More elements of a string array, or its end.
    fn elements(&mut self, mut strings: Strings, left: u64) -> Result<State, FormatError> {
        if left > 0 {
            return Ok(State::ElemLen(strings, left));
        }
        strings.shrink();
        self.entry(Value::Array(Array::Strings(strings)))
    }

    fn next_entry(&mut self) -> Result<State, FormatError> {
        if self.entries_left > 0 { Ok(State::KeyLen) } else { self.next_info() }
    }

    fn next_info(&mut self) -> Result<State, FormatError> {
        if self.infos_left > self.tensors.len() as u64 {
            return Ok(State::NameLen);
        }
        self.lay_out()?;
        Ok(State::Data)
    }

    /// Keeps a tensor info, with its offset still relative to the data section.
    fn info(&mut self, shape: Vec<u64>, id: u32, offset: u64) -> Result<(), FormatError> {
        let name = std::mem::take(&mut self.name);
        let Some(dtype) = DType::from_gguf_id(id) else {
            return Err(FormatError::UnknownTensorType { tensor: name, got: id.to_string() });
        };
        if let Some(d) = shape.iter().find(|&&d| d == 0 || i64::try_from(d).is_err()) {
            let reason = format!("dimension {d}");
            return Err(FormatError::BadShape { tensor: name, shape, reason });
        }
        let bytes = dtype.tensor_bytes(&name, &shape)?;
        if !offset.is_multiple_of(self.alignment.into()) {
            let alignment = self.alignment.into();
            return Err(FormatError::Misaligned { tensor: name, offset, alignment });
        }
        self.tensors.push(TensorInfo { name, dtype, shape, offset, bytes });
        Ok(())
    }

    /// With the header complete: checks that the tensors lie apart and inside the file.
    fn lay_out(&mut self) -> Result<(), FormatError> {
        self.names = HashSet::new();
        self.data_start = self.gather.at.next_multiple_of(self.alignment.into());
        for t in &mut self.tensors {
            let start = t.offset.checked_add(self.data_start);
            let end = start.and_then(|start| start.checked_add(t.bytes));
            let (Some(start), Some(_)) = (start, end) else {
                return Err(FormatError::OffsetOverflow {
                    tensor: t.name.clone(),
                    offset: t.offset,
                });
            };
            t.offset = start;
        }
        self.walk = Walk::new(&self.tensors);
        self.tell_q2_0_apart()?;
        for (&i, &j) in self.walk.order.iter().zip(self.walk.order.iter().skip(1)) {
            let (a, b) = (&self.tensors[i], &self.tensors[j]);
            if a.offset + a.bytes > b.offset {
                return Err(FormatError::Overlap {
                    first: a.name.clone(),
                    second: b.name.clone(),
                    offset: b.offset,
                });
            }
        }
        let past = |t: &&TensorInfo| self.file_bytes.is_some_and(|end| t.offset + t.bytes > end);
        match (self.tensors.iter().find(past), self.file_bytes) {
            (Some(t), Some(file_bytes)) => Err(FormatError::TensorPastEnd {
                tensor: t.name.clone(),
                offset: t.offset,
                bytes: t.bytes,
                file_bytes,
            }),
            _ => Ok(()),
        }
    }

    /// If any Q2_0 tensor has too little room for groups of 64 before the next tensor (or the end
    /// of the file), all have groups of 128.
    fn tell_q2_0_apart(&mut self) -> Result<(), FormatError> {
        let ends = self.walk.order.iter().skip(1).map(|&i| Some(self.tensors[i].offset));
        let cramped = self.walk.order.iter().zip(ends.chain([self.file_bytes])).any(|(&i, end)| {
            let t = &self.tensors[i];
            t.dtype == DType::Q2_0 && end.is_some_and(|end| t.offset + t.bytes > end)
        });
        if cramped {
            for t in self.tensors.iter_mut().filter(|t| t.dtype == DType::Q2_0) {
                t.bytes = DType::Q2_0_128.tensor_bytes(&t.name, &t.shape)?;
                t.dtype = DType::Q2_0_128;
            }
        }
        Ok(())
    }

    /// A length as usize, if that many bytes can still come.
    fn length(
        &self,
        what: impl Fn() -> String,
        offset: u64,
        got: u64,
        cap: u64,
    ) -> Result<usize, FormatError> {
        self.check_count(&what, offset, got, cap, 1)?;
        usize::try_from(got)
            .map_err(|_| implausible(what(), offset, got, "does not fit memory".into()))
    }

    /// Whether `got` things of at least `min_bytes` can still come in this file and this header,
    /// and are not above `cap`.
    fn check_count(
        &self,
        what: impl Fn() -> String,
        offset: u64,
        got: u64,
        cap: u64,
        min_bytes: u64,
    ) -> Result<(), FormatError> {
        let fit = |end: u64| end.saturating_sub(self.gather.at) / min_bytes;
        let limit = match self.file_bytes {
            Some(file) if got > fit(file) => {
                format!("at most {} fit the {file} bytes of the file", fit(file))
            }
            _ if got > cap => format!("at most {cap} are supported"),
            _ if got > fit(MAX_HEADER_BYTES) => {
                format!("a header of more than {MAX_HEADER_BYTES} bytes is not supported")
            }
            _ => return Ok(()),
        };
        Err(implausible(what(), offset, got, limit))
    }

    fn check_header_bytes(&self) -> Result<(), FormatError> {
        if self.gather.at > MAX_HEADER_BYTES {
            let limit = format!("at most {MAX_HEADER_BYTES} are supported");
            return Err(implausible("length of the header".into(), 0, self.gather.at, limit));
        }
        Ok(())
    }

    /// What the state is about, for errors.
    fn reading(&self) -> String {
        match &self.state {
            State::Magic | State::Version | State::Counts => "the GGUF header".into(),
            State::KeyLen | State::Key(_) => {
                format!("metadata entry {}", self.metadata.len())
            }
            State::ValueType | State::Scalar(_) | State::StringLen | State::String(_) => {
                format!("the value of '{}'", self.key)
            }
            State::ArrayHead | State::Scalars { .. } | State::ElemLen(..) | State::Elem(..) => {
                format!("array '{}'", self.key)
            }
            State::NameLen | State::Name(_) => {
                format!("the tensor infos (number {})", self.tensors.len())
            }
            State::Dims | State::Info(_) => format!("the info of tensor '{}'", self.name),
            State::Data => "tensor data".into(),
        }
    }
}

fn implausible(what: String, offset: u64, got: u64, limit: String) -> FormatError {
    FormatError::Implausible { what, offset, got, limit }
}

fn text(bytes: &[u8], offset: u64, what: impl FnOnce() -> String) -> Result<&str, FormatError> {
    std::str::from_utf8(bytes).map_err(|_| FormatError::NotUtf8 { what: what(), offset })
}
