//! Keys and their values, as the head of a GGUF file holds them.

use crate::formats::{Error, Result};

/// Value types with their number in the file, the type that holds one, and the variant's name.
macro_rules! each_number {
    ($apply:ident) => {
        $apply! {
            (0, U8, u8), (1, I8, i8), (2, U16, u16), (3, I16, i16), (4, U32, u32), (5, I32, i32), (6, F32, f32),
            (10, U64, u64), (11, I64, i64), (12, F64, f64)
        }
    };
}
pub(super) use each_number;

/// Number of the type of truth values.
pub(super) const BOOL: u32 = 7;
/// Number of the type of texts.
pub(super) const TEXT: u32 = 8;
/// Number of the type of arrays.
pub(super) const ARRAY: u32 = 9;

macro_rules! enums {
    ($(($id:literal, $variant:ident, $type:ident)),*) => {
        /// A value of a key.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Value {
            $(#[doc = concat!("One ", stringify!($type), ".")] $variant($type),)*
            /// True or false.
            Bool(bool),
            /// UTF-8 text.
            Text(String),
            /// Many of one type.
            Array(Array),
        }

        /// Values of one type, one after the other.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array {
            $(#[doc = concat!("Many ", stringify!($type), ".")] $variant(Vec<$type>),)*
            /// Truth values.
            Bool(Vec<bool>),
            /// Texts.
            Text(Vec<String>),
            /// Arrays of arrays.
            Array(Vec<Array>),
        }

        impl Value {
            /// Number of the type in the file.
            pub(super) fn id(&self) -> u32 {
                match self {
                    $(Value::$variant(_) => $id,)*
                    Value::Bool(_) => BOOL,
                    Value::Text(_) => TEXT,
                    Value::Array(_) => ARRAY,
                }
            }

            /// A number as f64; `None` for what is no number.
            pub fn number(&self) -> Option<f64> {
                match *self {
                    $(Value::$variant(x) => Some(x as f64),)*
                    _ => None,
                }
            }
        }

        impl Array {
            /// Number of the elements' type in the file.
            pub(super) fn id(&self) -> u32 {
                match self {
                    $(Array::$variant(_) => $id,)*
                    Array::Bool(_) => BOOL,
                    Array::Text(_) => TEXT,
                    Array::Array(_) => ARRAY,
                }
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Array::$variant(list) => list.len(),)*
                    Array::Bool(list) => list.len(),
                    Array::Text(list) => list.len(),
                    Array::Array(list) => list.len(),
                }
            }

            /// Numbers as f64; `None` for what are no numbers.
            pub fn numbers(&self) -> Option<Vec<f64>> {
                match self {
                    $(Array::$variant(list) => Some(list.iter().map(|&x| x as f64).collect()),)*
                    _ => None,
                }
            }
        }

        $(impl From<$type> for Value {
            fn from(x: $type) -> Value {
                Value::$variant(x)
            }
        })*
    };
}
each_number!(enums);

impl Array {
    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<bool> for Value {
    fn from(x: bool) -> Value {
        Value::Bool(x)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_string())
    }
}

impl From<Vec<String>> for Value {
    fn from(texts: Vec<String>) -> Value {
        Value::Array(Array::Text(texts))
    }
}

impl From<Vec<i32>> for Value {
    fn from(numbers: Vec<i32>) -> Value {
        Value::Array(Array::I32(numbers))
    }
}

impl Value {
    /// What it is, for messages: short values themselves, of long ones the kind.
    fn describe(&self) -> String {
        match self {
            Value::Array(array) => format!("an array of {}", array.len()),
            Value::Text(text) if text.len() > 60 => format!("a text of {} bytes", text.len()),
            Value::Text(text) => format!("`{text}`"),
            Value::Bool(x) => x.to_string(),
            other => other.number().map_or_else(String::new, |x| x.to_string()),
        }
    }
}

/// Keys with values, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    place: String,
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// No keys yet; errors call them those of `place`.
    pub fn new(place: impl Into<String>) -> Self {
        Metadata { place: place.into(), entries: vec![] }
    }

    /// Keys and values, in order.
    pub fn entries(&self) -> &[(String, Value)] {
        &self.entries
    }

    /// Sets a key, in place if it is there and last if not.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.entries.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.entries.push((key, value)),
        }
    }

    /// Adds a key known to be new.
    pub(super) fn push(&mut self, key: String, value: Value) {
        self.entries.push((key, value));
    }

    /// A value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// An error about a key as it stands here.
    pub fn refuse(&self, key: &str, expected: impl Into<String>) -> Error {
        let got = self.get(key).map_or_else(|| "absent".to_string(), Value::describe);
        Error::Key { place: self.place.clone(), key: key.to_string(), expected: expected.into(), got }
    }

    /// A text that must be there.
    pub fn text(&self, key: &str) -> Result<&str> {
        match self.get(key) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(self.refuse(key, "a text")),
        }
    }

    /// Texts that must be there.
    pub fn texts(&self, key: &str) -> Result<&[String]> {
        match self.get(key) {
            Some(Value::Array(Array::Text(texts))) => Ok(texts),
            _ => Err(self.refuse(key, "an array of texts")),
        }
    }

    /// A number; `None` where the key is absent.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.number().map(Some).ok_or_else(|| self.refuse(key, "a number"))
    }

    /// A whole number of 0 to 2^32 - 1; `None` where the key is absent.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(number) = self.number(key)? else { return Ok(None) };
        let whole = number >= 0.0 && number <= f64::from(u32::MAX) && number.fract() == 0.0;
        if whole { Ok(Some(number as usize)) } else { Err(self.refuse(key, "a whole number")) }
    }

    /// A whole number above zero that must be there.
    pub fn needed_count(&self, key: &str) -> Result<usize> {
        let count = self.count(key)?.filter(|&n| n > 0);
        count.ok_or_else(|| self.refuse(key, "a whole number above zero"))
    }

    /// A truth value; `None` where the key is absent.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(x)) => Ok(Some(*x)),
            Some(_) => Err(self.refuse(key, "true or false")),
        }
    }
}
