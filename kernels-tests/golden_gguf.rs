//! A GGUF file that the PyPI package `gguf` wrote: its keys, its tensors, and itself again, byte for byte.
//!
//! The file is `dev/quant/tiny.gguf` of the golden folder.

mod golden;

use kiln::formats::gguf::{Array, Gguf, Part, Value, write};
use libtest_mimic::{Arguments, Failed, Trial};
use std::borrow::Cow;
use std::path::Path;

type Check = fn(&Path) -> Result<(), Failed>;

const CHECKS: &[(&str, Check)] = &[
    ("keys_have_their_values", keys),
    ("tensors_have_their_places_and_floats", tensors),
    ("written_again_it_is_the_same_file", again),
    ("cut_or_with_a_flipped_byte_it_is_refused_or_read_whole", damaged),
];

fn main() {
    let arguments = Arguments::from_args();
    let folder = golden::folder().join("dev/quant");
    let absent = golden::is_absent(&folder);
    let trial = |&(name, check): &(&str, Check)| {
        let folder = folder.clone();
        Trial::test(name, move || check(&folder)).with_ignored_flag(absent)
    };
    libtest_mimic::run(&arguments, CHECKS.iter().map(trial).collect()).exit();
}

fn facts(folder: &Path) -> Result<serde_json::Value, Failed> {
    Ok(serde_json::from_slice(&std::fs::read(folder.join("tiny_gguf.json"))?)?)
}

fn keys(folder: &Path) -> Result<(), Failed> {
    let (file, facts) = (Gguf::open(&folder.join("tiny.gguf"))?, facts(folder)?);
    let names: Vec<&str> = file.metadata().entries().iter().map(|(key, _)| key.as_str()).collect();
    let expected: Vec<&str> =
        facts["keys"].as_array().ok_or("no keys")?.iter().filter_map(|k| k.as_str()).collect();
    if names != expected || u64::from(file.version()) != facts["version"] {
        return Err(format!("{names:?}").into());
    }
    let values = facts["values"].as_object().ok_or("no values")?;
    for (key, expected) in values {
        let same = match file.metadata().get(key).ok_or("a key is missing")? {
            Value::U64(x) => *expected == *x,
            Value::Bool(x) => *expected == *x,
            Value::Text(x) => *expected == x.as_str(),
            Value::F64(x) => *expected == *x,
            Value::Array(Array::I32(list)) => *expected == serde_json::json!(list),
            Value::Array(Array::Text(list)) => *expected == serde_json::json!(list),
            _ => false,
        };
        if !same {
            return Err(format!("{key} is {:?}, expected {expected}", file.metadata().get(key)).into());
        }
    }
    Ok(())
}

fn tensors(folder: &Path) -> Result<(), Failed> {
    let (file, facts) = (Gguf::open(&folder.join("tiny.gguf"))?, facts(folder)?);
    let expected = golden::tensors(&folder.join("tiny_gguf_expected.safetensors"), "")?;
    let listed = facts["tensors"].as_array().ok_or("no tensors")?;
    if listed.len() != file.tensors().len() || listed.len() != expected.len() {
        return Err(format!("{} tensors", file.tensors().len()).into());
    }
    for (fact, stored) in listed.iter().zip(file.tensors()) {
        let mut sizes = stored.shape.to_vec();
        sizes.reverse();
        let head = (
            fact["name"] == stored.name,
            fact["type"] == stored.kind.name(),
            fact["shape_ggml"] == serde_json::json!(sizes),
        );
        let bytes = fact["n_bytes"] == file.bytes(stored).len();
        let (got, wanted) = (file.tensor(stored)?, &expected[&stored.name]);
        if head != (true, true, true) || !bytes || got != *wanted {
            return Err(format!("{} is not as it should be", stored.name).into());
        }
    }
    Ok(())
}

fn again(folder: &Path) -> Result<(), Failed> {
    let file = Gguf::open(&folder.join("tiny.gguf"))?;
    let part = |stored: &kiln::formats::gguf::Stored| Part {
        name: stored.name.clone(),
        shape: stored.shape.clone(),
        kind: stored.kind,
        bytes: Cow::Borrowed(file.bytes(stored)),
    };
    let parts: Vec<Part> = file.tensors().iter().map(part).collect();
    let target = tempfile::tempdir()?;
    let path = target.path().join("again.gguf");
    write(&path, file.metadata(), &parts)?;
    let (given, written) = (std::fs::read(file.path())?, std::fs::read(&path)?);
    match given.iter().zip(&written).position(|(g, w)| g != w) {
        Some(at) => Err(format!("byte {at} differs").into()),
        None if given.len() != written.len() => {
            Err(format!("{} of {} bytes", written.len(), given.len()).into())
        }
        None => Ok(()),
    }
}

fn damaged(folder: &Path) -> Result<(), Failed> {
    let whole = std::fs::read(folder.join("tiny.gguf"))?;
    let target = tempfile::tempdir()?;
    let path = target.path().join("damaged.gguf");
    let read = |bytes: &[u8]| -> Result<bool, Failed> {
        std::fs::write(&path, bytes)?;
        let Ok(file) = Gguf::open(&path) else { return Ok(false) };
        Ok(file.tensors().iter().all(|stored| file.tensor(stored).is_ok()))
    };
    for length in (0..whole.len() - 32).step_by(97) {
        if read(&whole[..length])? {
            return Err(format!("cut to {length} bytes it is read").into());
        }
    }
    let mut refused = 0;
    for at in (0..1216).step_by(5) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        refused += usize::from(!read(&bytes)?);
    }
    // Flips within names and values leave a sound file.
    if refused < 80 {
        return Err(format!("of 244 flips {refused} were found").into());
    }
    Ok(())
}
