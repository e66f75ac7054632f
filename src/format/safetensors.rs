//! Safetensors, as a push parser, and the index of files in several shards.
//!
//! ```text
//! u64 header length · header, a JSON object:
//!   "name": {"dtype": "BF16", "shape": [N, K], "data_offsets": [begin, end]}, …
//!   "__metadata__": {"key": "value", …}
//! the tensors, back to back: offsets count from the end of the header
//! ```
//! As in the reference reader the data must be covered without holes, overlaps or trailing bytes.
//!
//! # Source
//! huggingface/safetensors `README.md`, `src/tensor.rs`.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{
    DType, Event, FormatError, Gather, MAX_DIMS, MAX_HEADER_BYTES, MAX_METADATA, MAX_NAME_BYTES,
    MAX_TENSORS, TensorInfo, Walk,
};

/// Most shards of a model. Stops a forged index from asking for a million files; the largest
/// checkpoints have some 200.
pub const MAX_SHARDS: usize = 4096;

#[derive(Debug)]
enum State {
    HeaderLen,
    Header(usize),
    Data,
}

/// The parser. Feed it the file from its first byte with [`Parser::next`].
#[derive(Debug)]
pub struct Parser {
    state: State,
    gather: Gather,
    file_bytes: Option<u64>,
    metadata: BTreeMap<String, String>,
    tensors: Vec<TensorInfo>,
    walk: Walk,
    data_end: u64,
    error: Option<FormatError>,
}

impl Parser {
    /// A parser for a file of that many bytes; give them where they are known, as lies of the
    /// header are then found at once.
    pub fn new(file_bytes: Option<u64>) -> Self {
        Parser {
            state: State::HeaderLen,
            gather: Gather::default(),
            file_bytes,
            metadata: BTreeMap::new(),
            tensors: Vec::new(),
            walk: Walk::default(),
            data_end: 0,
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

    /// The strings under `__metadata__`; complete once [`Event::Header`] has come.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensors, in file order; complete once [`Event::Header`] has come.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
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
        let reading = match (&self.error, &self.state) {
            (Some(error), _) => return Err(error.clone()),
            (None, State::Data) => return self.walk.finish(&self.tensors, self.gather.at),
            (None, State::HeaderLen) => "the length of the safetensors header",
            (None, State::Header(_)) => "the safetensors header",
        };
        Err(FormatError::UnexpectedEnd { reading: reading.into(), offset: self.gather.at })
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Event<'a>, FormatError> {
        loop {
            match self.state {
                State::HeaderLen => {
                    if !self.gather.fill(input, 8) {
                        return Ok(Event::NeedInput);
                    }
                    let bytes = self.gather.bytes.first_chunk().copied().unwrap_or_default();
                    self.state = State::Header(self.header_len(u64::from_le_bytes(bytes))?);
                    self.gather.bytes.clear();
                }
                State::Header(len) => {
                    if !self.gather.fill(input, len) {
                        return Ok(Event::NeedInput);
                    }
                    let bytes = std::mem::take(&mut self.gather.bytes);
                    self.header(&bytes)?;
                    self.state = State::Data;
                    return Ok(Event::Header);
                }
                State::Data => {
                    if let Some(event) = self.walk.step(&self.tensors, &mut self.gather.at, input) {
                        return Ok(event);
                    }
                    if !input.is_empty() {
                        return Err(FormatError::TrailingBytes { offset: self.data_end });
                    }
                    return Ok(Event::NeedInput);
                }
            }
        }
    }

    fn header_len(&self, got: u64) -> Result<usize, FormatError> {
        let limit = match self.file_bytes {
            _ if got == 0 => "an empty header".to_owned(),
            Some(file) if got > file.saturating_sub(8) => {
                format!("past the end of the file of {file} bytes")
            }
            _ if got > MAX_HEADER_BYTES => format!("at most {MAX_HEADER_BYTES} are supported"),
            _ => match usize::try_from(got) {
                Ok(len) => return Ok(len),
                Err(_) => "does not fit memory".to_owned(),
            },
        };
        let what = "length of the safetensors header".to_owned();
        Err(FormatError::Implausible { what, offset: 0, got, limit })
    }

    fn header(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let what = "safetensors header";
        let text = std::str::from_utf8(bytes)
            .map_err(|_| FormatError::NotUtf8 { what: what.into(), offset: 8 })?;
        let Header { metadata, tensors } = json(what, text)?;
        self.metadata = metadata;
        let data_start = self.gather.at;
        for (name, entry) in tensors {
            self.tensors.push(tensor(name, entry, data_start)?);
        }
        self.tensors.sort_by_key(|t| (t.offset, t.bytes));
        self.check_cover(data_start)?;
        self.walk = Walk::new(&self.tensors);
        Ok(())
    }

    /// Whether the tensors cover the data exactly.
    fn check_cover(&mut self, data_start: u64) -> Result<(), FormatError> {
        let mut end = data_start;
        let mut last = "";
        for t in &self.tensors {
            if t.offset < end {
                return Err(FormatError::Overlap {
                    first: last.into(),
                    second: t.name.clone(),
                    offset: t.offset,
                });
            }
            if t.offset > end {
                return Err(FormatError::Hole { offset: end, bytes: t.offset - end });
            }
            // Checked when the tensor was read.
            end += t.bytes;
            last = &t.name;
            if let Some(file_bytes) = self.file_bytes
                && end > file_bytes
            {
                return Err(FormatError::TensorPastEnd {
                    tensor: t.name.clone(),
                    offset: t.offset,
                    bytes: t.bytes,
                    file_bytes,
                });
            }
        }
        self.data_end = end;
        match self.file_bytes {
            Some(file) if file > end => Err(FormatError::TrailingBytes { offset: end }),
            _ => Ok(()),
        }
    }
}

/// Checks one entry of the header.
fn tensor(name: String, entry: Entry, data_start: u64) -> Result<TensorInfo, FormatError> {
    let Entry { dtype, shape: Shape(shape), data_offsets: [begin, end] } = entry;
    let Some(dtype) = DType::from_safetensors(&dtype) else {
        return Err(FormatError::UnknownTensorType { tensor: name, got: dtype });
    };
    let expected = dtype.tensor_bytes(&name, &shape)?;
    let (Some(offset), Some(_)) = (data_start.checked_add(begin), data_start.checked_add(end))
    else {
        return Err(FormatError::OffsetOverflow { tensor: name, offset: begin.max(end) });
    };
    match end.checked_sub(begin) {
        Some(bytes) if bytes == expected => Ok(TensorInfo { name, dtype, shape, offset, bytes }),
        Some(got) => Err(FormatError::SizeMismatch { tensor: name, expected, got }),
        None => Err(FormatError::BadShape {
            tensor: name,
            shape,
            reason: format!("its data begins at {begin} and ends at {end}"),
        }),
    }
}

/// Parses a whole JSON text; serde_json itself bounds the nesting.
fn json<'t, T: Deserialize<'t>>(what: &'static str, text: &'t str) -> Result<T, FormatError> {
    serde_json::from_str(text).map_err(|e| FormatError::Json { what, message: e.to_string() })
}

/// The header as it is in the file.
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, Entry)>,
}

#[derive(serde::Deserialize)]
struct Entry {
    #[serde(deserialize_with = "short_string")]
    dtype: String,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// At most [`MAX_DIMS`] dimensions.
struct Shape(Vec<u64>);

/// At most [`MAX_METADATA`] strings, each key once.
struct StringMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header { metadata: BTreeMap::new(), tensors: Vec::new() };
                let mut names = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name.len() > MAX_NAME_BYTES {
                        return Err(A::Error::custom(format!(
                            "a tensor name of {} bytes ({MAX_NAME_BYTES} are supported)",
                            name.len()
                        )));
                    }
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("duplicate tensor name '{name}'")));
                    }
                    if names.len() as u64 > MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let inside = |e: A::Error| A::Error::custom(format!("in '{name}': {e}"));
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<StringMap>().map_err(inside)?.0;
                    } else {
                        let entry = map.next_value().map_err(inside)?;
                        header.tensors.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(V)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_DIMS} dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::with_capacity(MAX_DIMS);
                while let Some(d) = seq.next_element::<u64>()? {
                    if dims.len() == MAX_DIMS {
                        return Err(A::Error::invalid_length(MAX_DIMS + 1, &self));
                    }
                    dims.push(d);
                }
                Ok(Shape(dims))
            }
        }
        deserializer.deserialize_seq(V)
    }
}

impl<'de> Deserialize<'de> for StringMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = StringMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StringMap, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if strings.len() as u64 == MAX_METADATA {
                        return Err(A::Error::custom(format!("more than {MAX_METADATA} entries")));
                    }
                    let value = map.next_value()?;
                    if strings.insert(key, value).is_some() {
                        return Err(A::Error::custom("a key twice"));
                    }
                }
                Ok(StringMap(strings))
            }
        }
        deserializer.deserialize_map(V)
    }
}

/// A name of a type: long ones would only be copied into the error.
fn short_string<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let s = String::deserialize(deserializer)?;
    if s.len() > 32 {
        return Err(D::Error::custom(format!("a dtype of {} bytes", s.len())));
    }
    Ok(s)
}

/// `model.safetensors.index.json`: which file holds which tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    shards: Vec<String>,
    /// Tensor → position in `shards`.
    weight_map: BTreeMap<String, usize>,
}

impl Index {
    /// Parses the text of the index.
    ///
    /// # Errors
    /// [`FormatError::Json`] when it is not an index, [`FormatError::ShardPath`] when a shard is
    /// anything but a plain file name (it could otherwise make us read any file of the user),
    /// [`FormatError::Implausible`] when it is too large.
    pub fn parse(bytes: &[u8]) -> Result<Index, FormatError> {
        #[derive(serde::Deserialize)]
        struct File {
            weight_map: WeightMap,
        }
        let what = "model.safetensors.index.json";
        let implausible = |what: &str, got: u64, limit: u64| FormatError::Implausible {
            what: what.into(),
            offset: 0,
            got,
            limit: format!("at most {limit} are supported"),
        };
        if bytes.len() as u64 > MAX_HEADER_BYTES {
            return Err(implausible(what, bytes.len() as u64, MAX_HEADER_BYTES));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|_| FormatError::NotUtf8 { what: what.into(), offset: 0 })?;
        let WeightMap { files, tensors } = json::<File>(what, text)?.weight_map;
        for (name, &i) in &tensors {
            if !is_file_name(&files[i]) {
                let (tensor, path) = (name.clone(), files[i].clone());
                return Err(FormatError::ShardPath { tensor, path });
            }
        }
        Ok(Index { shards: files, weight_map: tensors })
    }

    /// The files, in the order in which the index first names them.
    pub fn shards(&self) -> &[String] {
        &self.shards
    }

    /// The file that holds a tensor.
    pub fn shard_of(&self, tensor: &str) -> Option<&str> {
        self.weight_map.get(tensor).map(|&i| self.shards[i].as_str())
    }

    /// All tensors with their files.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.weight_map.iter().map(|(t, &i)| (t.as_str(), self.shards[i].as_str()))
    }
}

/// Every shard name once, and the tensors' positions in them.
struct WeightMap {
    files: Vec<String>,
    tensors: BTreeMap<String, usize>,
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = WeightMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut files: Vec<String> = Vec::new();
                let mut positions: BTreeMap<String, usize> = BTreeMap::new();
                let mut tensors = BTreeMap::new();
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    let next = positions.len();
                    let i = *positions.entry(file).or_insert_with_key(|file| {
                        files.push(file.clone());
                        next
                    });
                    if files.len() > MAX_SHARDS {
                        return Err(A::Error::custom(format!("more than {MAX_SHARDS} files")));
                    }
                    if tensors.len() as u64 == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    if let Some(twice) = tensors.insert(tensor, i) {
                        let file = &files[twice];
                        return Err(A::Error::custom(format!("a tensor of '{file}' twice")));
                    }
                }
                Ok(WeightMap { files, tensors })
            }
        }
        deserializer.deserialize_map(V)
    }
}

/// Whether a path names a file of the folder itself, on every operating system.
fn is_file_name(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 255
        && path != "."
        && path != ".."
        && !path.contains(|c: char| matches!(c, '/' | '\\' | ':') || c.is_control())
}
