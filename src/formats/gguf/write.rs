//! Writes GGUF files of version 3.

use super::kind::Kind;
use super::parse::{AXES, MAGIC, VERSION, alignment_of};
use super::value::{Array, Metadata, Value, each_number};
use crate::formats::{Error, Result, write_whole};
use crate::tensor::Shape;
use std::borrow::Cow;
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

/// Longest name of a tensor in bytes: ggml keeps it in 64 with a zero at the end.
const NAME_BYTES: usize = 63;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// Its name.
    pub name: String,
    /// Sizes of the axes, outermost first.
    pub shape: Shape,
    /// How its elements are stored.
    pub kind: Kind,
    /// The elements as they are to stand in the file, row-major.
    pub bytes: Cow<'a, [u8]>,
}

/// Writes keys and tensors in the given order. The file appears whole or not at all.
pub fn write(path: &Path, metadata: &Metadata, parts: &[Part]) -> Result<()> {
    let refuse = |reason: String| Error::Draft { path: path.to_path_buf(), reason };
    let alignment = alignment_of(metadata).map_err(refuse)? as usize;
    check(metadata, parts).map_err(refuse)?;
    let head = head(metadata, parts, alignment);
    let fill = |out: &mut dyn Write| {
        out.write_all(&head)?;
        let zeros = |out: &mut dyn Write, written: usize| {
            std::iter::repeat_n(0u8, written.next_multiple_of(alignment) - written)
                .try_for_each(|zero| out.write_all(&[zero]))
        };
        zeros(out, head.len())?;
        parts.iter().try_for_each(|part| {
            out.write_all(&part.bytes)?;
            zeros(out, part.bytes.len())
        })
    };
    write_whole(path, fill).map_err(|source| Error::of_file(path, source))
}

fn check(metadata: &Metadata, parts: &[Part]) -> Result<(), String> {
    let mut keys = HashSet::new();
    if let Some((key, _)) = metadata.entries().iter().find(|(key, _)| !keys.insert(key)) {
        return Err(format!("key `{key}` is given twice"));
    }
    let mut names = HashSet::new();
    for Part { name, shape, kind, bytes } in parts {
        let wrong = |reason: String| Err(format!("tensor `{name}` {reason}"));
        if !names.insert(name) {
            return wrong("is given twice".into());
        }
        if name.is_empty() || name.len() > NAME_BYTES {
            return wrong(format!("has a name of {} bytes, expected 1 to {NAME_BYTES}", name.len()));
        }
        if shape.len() > AXES || shape.count() == 0 {
            return wrong(format!("has shape {shape:?}, expected at most {AXES} axes and none of size 0"));
        }
        if shape.last() % kind.elements() != 0 {
            let elements = kind.elements();
            return wrong(format!(
                "has rows of {}, expected whole {kind} blocks of {elements}",
                shape.last()
            ));
        }
        let expected = shape.count() / kind.elements() * kind.size_bytes();
        if bytes.len() != expected {
            return wrong(format!("has {} bytes of {kind}, expected {expected}", bytes.len()));
        }
    }
    Ok(())
}

fn head(metadata: &Metadata, parts: &[Part], alignment: usize) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((parts.len() as u64).to_le_bytes());
    out.extend((metadata.entries().len() as u64).to_le_bytes());
    for (key, value) in metadata.entries() {
        put_text(&mut out, key);
        out.extend(value.id().to_le_bytes());
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for part in parts {
        put_text(&mut out, &part.name);
        out.extend((part.shape.len() as u32).to_le_bytes());
        part.shape.iter().rev().for_each(|&size| out.extend((size as u64).to_le_bytes()));
        out.extend(part.kind.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += part.bytes.len().next_multiple_of(alignment) as u64;
    }
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

macro_rules! writers {
    ($(($id:literal, $variant:ident, $type:ident)),*) => {
        fn put_value(out: &mut Vec<u8>, value: &Value) {
            match value {
                $(Value::$variant(x) => out.extend(x.to_le_bytes()),)*
                Value::Bool(x) => out.push(u8::from(*x)),
                Value::Text(text) => put_text(out, text),
                Value::Array(array) => put_array(out, array),
            }
        }

        fn put_array(out: &mut Vec<u8>, array: &Array) {
            out.extend(array.id().to_le_bytes());
            out.extend((array.len() as u64).to_le_bytes());
            match array {
                $(Array::$variant(list) => list.iter().for_each(|x| out.extend(x.to_le_bytes())),)*
                Array::Bool(list) => out.extend(list.iter().map(|&x| u8::from(x))),
                Array::Text(list) => list.iter().for_each(|text| put_text(out, text)),
                Array::Array(list) => list.iter().for_each(|array| put_array(out, array)),
            }
        }
    };
}
each_number!(writers);
