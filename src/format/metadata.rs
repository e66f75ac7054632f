//! Metadata of GGUF files: typed values under string keys, in file order.

use std::collections::HashMap;

use super::FormatError;

/// Type of a metadata value, with its id in the file.
///
/// Source: ggml `gguf.h` (`enum gguf_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// The type with this id.
    pub fn from_id(id: u32) -> Option<Self> {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
            .into_iter()
            .find(|&t| t as u32 == id)
    }

    /// Name, as it is written in Rust.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// Bytes of one scalar; `None` for strings and arrays.
    pub fn scalar_bytes(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::String | ValueType::Array => None,
        }
    }
}

/// Most elements of an array that is copied out as numbers. Stops 32 million one-byte elements
/// from becoming 128 MB; the longest arrays of real files have one element a token.
pub const MAX_NUMBERS: usize = 1 << 22;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// Its type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// A scalar from its little-endian bytes. `None` when `bytes` is not that long, the type is
    /// not a scalar, or a boolean is neither 0 nor 1.
    pub(super) fn scalar(ty: ValueType, bytes: &[u8]) -> Option<Value> {
        fn le<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
            bytes.try_into().ok()
        }
        Some(match ty {
            ValueType::U8 => Value::U8(u8::from_le_bytes(le(bytes)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(le(bytes)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(le(bytes)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(le(bytes)?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(le(bytes)?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(le(bytes)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(le(bytes)?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(le(bytes)?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(le(bytes)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(le(bytes)?)),
            ValueType::Bool => match bytes {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                _ => return None,
            },
            ValueType::String | ValueType::Array => return None,
        })
    }

    /// The value, when it is an integer of any width that fits.
    pub fn as_i128(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The value, when it is a float.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }
}

/// Many strings in two allocations: a vocabulary costs no more memory than its bytes in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    text: String,
    /// End of each string in `text`.
    ends: Vec<usize>,
}

impl Strings {
    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String `i`.
    pub fn get(&self, i: usize) -> Option<&str> {
        let end = *self.ends.get(i)?;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        self.text.get(start..end)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }

    /// Appends one.
    pub fn push(&mut self, s: &str) {
        self.text.push_str(s);
        self.ends.push(self.text.len());
    }

    pub(super) fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut all = Strings::default();
        strings.into_iter().for_each(|s| all.push(s.as_ref()));
        all
    }
}

/// An array of scalars or of strings (nested arrays are refused by the parser).
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Numbers or booleans, as in the file.
    Scalars {
        /// Type of the elements.
        ty: ValueType,
        /// The elements, little-endian.
        bytes: Vec<u8>,
    },
    /// Strings.
    Strings(Strings),
}

impl Array {
    /// Type of the elements.
    pub fn elem_type(&self) -> ValueType {
        match self {
            Array::Scalars { ty, .. } => *ty,
            Array::Strings(_) => ValueType::String,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::Scalars { ty, bytes } => bytes.len() / ty.scalar_bytes().unwrap_or(1),
            Array::Strings(s) => s.len(),
        }
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as values.
    pub fn iter(&self) -> impl Iterator<Item = Value> {
        let (scalars, strings) = match self {
            Array::Scalars { ty, bytes } => (Some((*ty, bytes)), None),
            Array::Strings(s) => (None, Some(s)),
        };
        scalars
            .into_iter()
            .flat_map(|(ty, bytes)| {
                let size = ty.scalar_bytes().unwrap_or(1);
                bytes.chunks_exact(size).filter_map(move |b| Value::scalar(ty, b))
            })
            .chain(strings.into_iter().flat_map(|s| s.iter().map(|s| Value::String(s.to_owned()))))
    }
}

/// Metadata of a file: typed values under string keys, in file order.
///
/// The getters take any width of integer that holds the value, as converters differ there, and
/// never turn one kind of value into another.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// All entries, in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// [`FormatError::DuplicateKey`].
    pub fn insert(&mut self, key: String, value: Value) -> Result<(), FormatError> {
        if self.index.insert(key.clone(), self.entries.len()).is_some() {
            return Err(FormatError::DuplicateKey { key });
        }
        self.entries.push((key, value));
        Ok(())
    }

    /// The value of a key if it is there and `read` takes it; `expected` names what `read` takes.
    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FormatError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(v) => Ok(Some(v)),
            None => Err(FormatError::WrongValueType {
                key: key.into(),
                expected,
                got: match value {
                    Value::Array(a) => format!("array of {}", a.elem_type().name()),
                    Value::String(_) => "string".into(),
                    v => format!("{v:?}"),
                },
            }),
        }
    }

    /// An integer that fits u32.
    ///
    /// # Errors
    /// [`FormatError::WrongValueType`], as all of these getters.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, FormatError> {
        self.typed(key, "u32", |v| v.as_i128()?.try_into().ok())
    }

    /// An integer that fits u64.
    ///
    /// # Errors
    /// [`FormatError::WrongValueType`].
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, FormatError> {
        self.typed(key, "u64", |v| v.as_i128()?.try_into().ok())
    }

    /// A float (f64 is rounded).
    ///
    /// # Errors
    /// [`FormatError::WrongValueType`].
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>, FormatError> {
        self.typed(key, "f32", |v| v.as_f64().map(|v| v as f32))
    }

    /// A boolean.
    ///
    /// # Errors
    /// [`FormatError::WrongValueType`].
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        self.typed(key, "bool", |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// A string.
    ///
    /// # Errors
    /// [`FormatError::WrongValueType`].
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, FormatError> {
        self.typed(key, "string", |v| match v {
            Value::String(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// [`FormatError::WrongValueType`].
    pub fn strings(&self, key: &str) -> Result<Option<&Strings>, FormatError> {
        self.typed(key, "array of strings", |v| match v {
            Value::Array(Array::Strings(s)) => Some(s),
            _ => None,
        })
    }

    /// An array of at most [`MAX_NUMBERS`] integers that fit i32.
    ///
    /// # Errors
    /// [`FormatError::WrongValueType`].
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i32>>, FormatError> {
        self.typed(key, "array of i32", |v| numbers(v, |v| v.as_i128()?.try_into().ok()))
    }

    /// An array of at most [`MAX_NUMBERS`] floats (f64 is rounded).
    ///
    /// # Errors
    /// [`FormatError::WrongValueType`].
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, FormatError> {
        self.typed(key, "array of f32", |v| numbers(v, |v| v.as_f64().map(|v| v as f32)))
    }

    /// [`Metadata::get_u32`] of a key that must be there.
    ///
    /// # Errors
    /// [`FormatError::MissingKey`] too, as for all that are required.
    pub fn require_u32(&self, key: &str) -> Result<u32, FormatError> {
        required(key, self.get_u32(key))
    }

    /// [`Metadata::get_u64`] of a key that must be there.
    ///
    /// # Errors
    /// [`FormatError::MissingKey`], [`FormatError::WrongValueType`].
    pub fn require_u64(&self, key: &str) -> Result<u64, FormatError> {
        required(key, self.get_u64(key))
    }

    /// [`Metadata::get_f32`] of a key that must be there.
    ///
    /// # Errors
    /// [`FormatError::MissingKey`], [`FormatError::WrongValueType`].
    pub fn require_f32(&self, key: &str) -> Result<f32, FormatError> {
        required(key, self.get_f32(key))
    }

    /// [`Metadata::get_str`] of a key that must be there.
    ///
    /// # Errors
    /// [`FormatError::MissingKey`], [`FormatError::WrongValueType`].
    pub fn require_str(&self, key: &str) -> Result<&str, FormatError> {
        required(key, self.get_str(key))
    }

    /// [`Metadata::strings`] of a key that must be there.
    ///
    /// # Errors
    /// [`FormatError::MissingKey`], [`FormatError::WrongValueType`].
    pub fn require_strings(&self, key: &str) -> Result<&Strings, FormatError> {
        required(key, self.strings(key))
    }
}

fn required<T>(key: &str, value: Result<Option<T>, FormatError>) -> Result<T, FormatError> {
    value?.ok_or_else(|| FormatError::MissingKey { key: key.into() })
}

fn numbers<T>(value: &Value, read: impl Fn(Value) -> Option<T>) -> Option<Vec<T>> {
    match value {
        Value::Array(a @ Array::Scalars { .. }) if a.len() <= MAX_NUMBERS => {
            a.iter().map(read).collect()
        }
        _ => None,
    }
}
