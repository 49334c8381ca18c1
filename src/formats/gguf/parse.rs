//! Reads the head of a GGUF file: keys, then names, shapes and places of tensors.
//!
//! Nothing is believed. A count must fit into the bytes that are left, at the least size of what it counts, before room is
//! made for it; so a damaged file can make us allocate a few times its own size, and no more.

use super::kind::Kind;
use super::value::{ARRAY, Array, BOOL, Metadata, TEXT, Value, each_number};
use crate::tensor::Shape;
use std::collections::HashSet;
use std::ops::Range;

/// First bytes of a file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// The version that is written; version 2 is read too.
pub(super) const VERSION: u32 = 3;
/// Data of a tensor begins at a multiple of this, where no key says otherwise.
pub(super) const ALIGNMENT: u32 = 32;
/// Key with another alignment.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// Most axes of a tensor.
pub(super) const AXES: usize = 4;

/// Arrays may stand in arrays this deep.
const DEPTH: usize = 4;
/// Least bytes of a key with its value, of a tensor's entry, of a text and of an array.
const KEY_BYTES: u64 = 13;
const ENTRY_BYTES: u64 = 24;
const TEXT_BYTES: u64 = 8;
const ARRAY_BYTES: u64 = 12;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Sizes of the axes, outermost first: the reverse of the order in the file.
    pub shape: Shape,
    /// How its elements are stored.
    pub kind: Kind,
    /// Where in the file.
    pub(super) bytes: Range<usize>,
}

/// The head of a file.
pub(super) struct Head {
    pub version: u32,
    pub metadata: Metadata,
    pub tensors: Vec<Stored>,
}

/// Why a file is not read.
#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    /// It contradicts itself or ends too early.
    Damaged(String),
    /// It is of a kind that is not read.
    Unsupported { what: String, expected: String },
}

type Result<T> = std::result::Result<T, Fault>;

/// Reads the head of a whole file; errors about keys call it `place`.
pub(super) fn parse(file: &[u8], place: &str) -> Result<Head> {
    let mut cursor = Cursor { file, at: 0 };
    if cursor.take(4)? != MAGIC {
        return Err(Fault::Damaged("it does not begin with `GGUF`".into()));
    }
    let version = cursor.u32()?;
    if !(2..=VERSION).contains(&version) {
        let what = match version.swap_bytes() {
            2..=VERSION => "big-endian order".into(),
            _ => format!("version {version}"),
        };
        return Err(Fault::Unsupported { what, expected: "version 2 or 3, little-endian".into() });
    }
    let (tensors, keys) = (cursor.count(ENTRY_BYTES)?, cursor.count(KEY_BYTES)?);
    let metadata = read_keys(&mut cursor, keys, place)?;
    let alignment = alignment_of(&metadata).map_err(Fault::Damaged)?;
    let entries = (0..tensors).map(|_| Entry::read(&mut cursor)).collect::<Result<Vec<_>>>()?;
    let start = (cursor.at as u64).next_multiple_of(u64::from(alignment));
    let tensors = place_all(entries, start, u64::from(alignment), file.len() as u64)?;
    Ok(Head { version, metadata, tensors })
}

/// The alignment that the keys ask for.
pub(super) fn alignment_of(metadata: &Metadata) -> std::result::Result<u32, String> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT),
        Some(Value::U32(x)) if x.is_power_of_two() => Ok(*x),
        Some(other) => Err(format!("`{ALIGNMENT_KEY}` is {other:?}, expected a u32 that is a power of two")),
    }
}

fn read_keys(cursor: &mut Cursor, count: usize, place: &str) -> Result<Metadata> {
    let (mut metadata, mut known) = (Metadata::new(place), HashSet::new());
    for _ in 0..count {
        let key = cursor.text()?;
        if !known.insert(key.clone()) {
            return Err(cursor.fault(format!("key `{key}` stands there twice")));
        }
        let id = cursor.u32()?;
        let value = cursor.value(id)?;
        metadata.push(key, value);
    }
    Ok(metadata)
}

/// A tensor's entry in the head.
struct Entry {
    name: String,
    shape: Shape,
    kind: Kind,
    size: u64,
    offset: u64,
}

impl Entry {
    fn read(cursor: &mut Cursor) -> Result<Entry> {
        let name = cursor.text()?;
        let axes = cursor.u32()? as usize;
        if axes > AXES {
            return Err(cursor.fault(format!("tensor `{name}` has {axes} axes, expected at most {AXES}")));
        }
        let mut sizes = (0..axes).map(|_| cursor.u64()).collect::<Result<Vec<u64>>>()?;
        sizes.reverse();
        let id = cursor.u32()?;
        let offset = cursor.u64()?;
        let kind = Kind::of(id).ok_or_else(|| Fault::Unsupported {
            what: format!("type {id} of tensor `{name}`"),
            expected: "a type of the gguf package 0.19".into(),
        })?;
        let whole = || {
            let count = sizes.iter().try_fold(1u64, |count, &size| count.checked_mul(size))?;
            let row = sizes.last().copied().unwrap_or(1);
            let fits = row % kind.elements() as u64 == 0 && count > 0;
            (count / kind.elements() as u64).checked_mul(kind.size_bytes() as u64).filter(|_| fits)
        };
        let size = whole().filter(|&size| size <= cursor.file.len() as u64).ok_or_else(|| {
            let elements = kind.elements();
            cursor.fault(format!(
                "tensor `{name}` has shape {sizes:?}; expected rows of whole blocks of {elements} elements, within the file"
            ))
        })?;
        // No axis is empty, and a byte holds at most eight elements: each size is a small multiple of the file's.
        let shape = Shape::new(sizes.iter().map(|&size| size as usize).collect::<Vec<_>>());
        Ok(Entry { name, shape, kind, size, offset })
    }
}

/// Where each tensor lies: aligned, within the file, and apart from the others.
fn place_all(entries: Vec<Entry>, start: u64, alignment: u64, length: u64) -> Result<Vec<Stored>> {
    let (mut tensors, mut known) = (Vec::with_capacity(entries.len()), HashSet::new());
    for Entry { name, shape, kind, size, offset } in entries {
        let damaged = |reason: String| Fault::Damaged(format!("tensor `{name}` {reason}"));
        if offset % alignment != 0 {
            return Err(damaged(format!("begins at {offset}, expected a multiple of {alignment}")));
        }
        let from = start.checked_add(offset);
        let range = from.and_then(|from| Some(from..from.checked_add(size)?)).filter(|r| r.end <= length);
        let Some(range) = range else {
            return Err(damaged(format!(
                "has {size} bytes at {offset} of the data, beyond the file's {length}"
            )));
        };
        if !known.insert(name.clone()) {
            return Err(damaged("stands there twice".into()));
        }
        tensors.push(Stored { name, shape, kind, bytes: range.start as usize..range.end as usize });
    }
    let mut order: Vec<&Stored> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.bytes.start);
    match order.windows(2).find(|pair| pair[0].bytes.end > pair[1].bytes.start) {
        Some(pair) => {
            Err(Fault::Damaged(format!("tensors `{}` and `{}` overlap", pair[0].name, pair[1].name)))
        }
        None => Ok(tensors),
    }
}

struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

/// Reads one number after the other.
macro_rules! readers {
    ($(($id:literal, $variant:ident, $type:ident)),*) => {
        /// A value of the type with that number.
        fn value(&mut self, id: u32) -> Result<Value> {
            Ok(match id {
                $($id => Value::$variant($type::from_le_bytes(self.fixed()?)),)*
                BOOL => Value::Bool(self.truth()?),
                TEXT => Value::Text(self.text()?),
                ARRAY => Value::Array(self.array(DEPTH)?),
                _ => return Err(self.fault(format!("a value has type {id}, expected 0 to 12"))),
            })
        }

        fn array(&mut self, depth: usize) -> Result<Array> {
            let id = self.u32()?;
            Ok(match id {
                $($id => {
                    let count = self.count(size_of::<$type>() as u64)?;
                    let read = |_| Ok($type::from_le_bytes(self.fixed()?));
                    Array::$variant((0..count).map(read).collect::<Result<_>>()?)
                })*
                BOOL => {
                    let count = self.count(1)?;
                    Array::Bool((0..count).map(|_| self.truth()).collect::<Result<_>>()?)
                }
                TEXT => {
                    let count = self.count(TEXT_BYTES)?;
                    Array::Text((0..count).map(|_| self.text()).collect::<Result<_>>()?)
                }
                ARRAY if depth > 0 => {
                    let count = self.count(ARRAY_BYTES)?;
                    Array::Array((0..count).map(|_| self.array(depth - 1)).collect::<Result<_>>()?)
                }
                ARRAY => return Err(self.fault("arrays stand too deep in arrays".into())),
                _ => return Err(self.fault(format!("an array has type {id}, expected 0 to 12"))),
            })
        }
    };
}

impl<'a> Cursor<'a> {
    each_number!(readers);

    fn fault(&self, reason: String) -> Fault {
        Fault::Damaged(format!("before byte {}: {reason}", self.at))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let left = self.file.len() - self.at;
        let count = usize::try_from(count).ok().filter(|&count| count <= left).ok_or_else(|| {
            Fault::Damaged(format!("at byte {}: {count} bytes are announced, {left} are left", self.at))
        })?;
        let bytes = &self.file[self.at..self.at + count];
        self.at += count;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N as u64)?.try_into().expect("as many as were taken"))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.fixed()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.fixed()?))
    }

    /// How many follow, each of so many bytes or more.
    fn count(&mut self, least_bytes: u64) -> Result<usize> {
        let (count, left) = (self.u64()?, (self.file.len() - self.at) as u64);
        match count.checked_mul(least_bytes) {
            Some(bytes) if bytes <= left => Ok(count as usize),
            _ => Err(self.fault(format!("{count} elements are announced, {left} bytes are left"))),
        }
    }

    fn truth(&mut self) -> Result<bool> {
        match self.fixed()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.fault(format!("a truth value is {other}, expected 0 or 1"))),
        }
    }

    fn text(&mut self) -> Result<String> {
        let count = self.u64()?;
        let bytes = self.take(count)?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.fault("a text is no UTF-8".into()))
    }
}
