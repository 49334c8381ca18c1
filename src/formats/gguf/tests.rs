//! Files written here and read back, whole and damaged.

use super::parse::parse;
use super::*;
use std::borrow::Cow;

fn metadata() -> Metadata {
    let mut keys = Metadata::new("test");
    keys.set("general.architecture", "llama");
    keys.set("u8", 200u8);
    keys.set("i8", -3i8);
    keys.set("u16", 65535u16);
    keys.set("i16", -5i16);
    keys.set("i32", -7i32);
    keys.set("f32", 0.1f32);
    keys.set("u64", 9007199254740993u64);
    keys.set("i64", i64::MIN);
    keys.set("f64", 0.1f64);
    keys.set("yes", true);
    keys.set("texts", vec!["a".to_string(), String::new(), "日本".to_string()]);
    keys.set("flags", Value::Array(Array::Bool(vec![true, false])));
    keys.set("inner", Value::Array(Array::Array(vec![Array::U8(vec![1]), Array::F64(vec![])])));
    keys.set("general.alignment", 64u32);
    keys
}

fn parts() -> Vec<Part<'static>> {
    let values: Vec<f32> = (0..192).map(|i| i as f32 - 90.5).collect();
    [(Block::F32, [3, 64]), (Block::Q8_0, [6, 32]), (Block::Q4_1, [2, 96]), (Block::F16, [64, 3])]
        .into_iter()
        .map(|(block, shape)| Part {
            name: format!("{block}.weight"),
            shape: shape.into(),
            kind: block.into(),
            bytes: Cow::Owned(block.encode(&values, shape[1]).unwrap()),
        })
        .collect()
}

fn written() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, &metadata(), &parts()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a partial file is left");
    std::fs::read(&path).unwrap()
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, &metadata(), &parts()).unwrap();
    let file = Gguf::open(&path).unwrap();
    assert_eq!((file.version(), file.metadata().entries()), (3, metadata().entries()));
    for (part, tensor) in parts().iter().zip(file.tensors()) {
        assert_eq!((&part.name, &part.shape, part.kind), (&tensor.name, &tensor.shape, tensor.kind));
        assert_eq!(file.bytes(tensor), &*part.bytes);
        assert_eq!(file.bytes(tensor).as_ptr() as usize % 64, 0, "not aligned");
        assert_eq!(file.tensor(file.find(&part.name).unwrap()).unwrap().shape, part.shape);
    }
    assert_eq!(file.metadata().needed_count("u64").ok(), None, "no count passes 32 bits");
    assert_eq!(file.metadata().count("u16").unwrap(), Some(65535));
    assert!(
        matches!(file.metadata().text("u8"), Err(Error::Key { key, got, .. }) if key == "u8" && got == "200")
    );
}

#[test]
fn a_file_cut_anywhere_is_damaged() {
    let whole = written();
    let data_ends = parse(&whole, "test").ok().unwrap().tensors.last().unwrap().bytes.end;
    for length in 0..data_ends {
        let cut = parse(&whole[..length], "test").err();
        assert!(matches!(cut, Some(Fault::Damaged(_))), "cut to {length}: {cut:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    for length in [0, 3, data_ends - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(Gguf::open(&path), Err(Error::Damaged { .. })), "cut to {length}");
    }
}

#[test]
fn no_flipped_byte_makes_it_panic_or_allocate_beyond_the_file() {
    let whole = written();
    let head = parse(&whole, "test").ok().unwrap().tensors[0].bytes.start;
    let mut refused = 0;
    for at in 0..head {
        for mask in [0x01, 0x80, 0xff, 0x10] {
            let mut bytes = whole.clone();
            bytes[at] ^= mask;
            let Ok(head) = parse(&bytes, "test") else {
                refused += 1;
                continue;
            };
            for tensor in head.tensors {
                assert!(tensor.bytes.end <= bytes.len());
                if let Kind::Block(block) = tensor.kind {
                    let values = block.decode(&bytes[tensor.bytes], tensor.shape.last()).unwrap();
                    assert_eq!(values.len(), tensor.shape.count());
                }
            }
        }
    }
    assert!(refused > head, "only {refused} of {} flips were found", 4 * head);
}

/// A head with one key and one tensor's entry, then 64 bytes.
fn hostile(key: &[u8], tensor: &[u8]) -> Vec<u8> {
    let keys = u64::from(!key.is_empty());
    let tensors = u64::from(!tensor.is_empty());
    let head = [b"GGUF", &3u32.to_le_bytes()[..], &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
    [&head, key, tensor, &[0; 64]].concat()
}

fn name(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn entry(sizes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = [name("t"), (sizes.len() as u32).to_le_bytes().to_vec()].concat();
    sizes.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn announcements_beyond_the_file_are_refused_before_room_is_made() {
    let array = |id: u32, count: u64| {
        [name("k"), 9u32.to_le_bytes().to_vec(), id.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()]
            .concat()
    };
    let deep = (0..100).fold(name("k"), |mut bytes, i| {
        bytes.extend(9u32.to_le_bytes());
        if i > 0 {
            bytes.extend(1u64.to_le_bytes());
        }
        bytes
    });
    for file in [
        hostile(&(u64::MAX).to_le_bytes(), &[]),
        hostile(&array(8, u64::MAX / 8), &[]),
        hostile(&array(0, 1 << 40), &[]),
        hostile(&array(9, 1 << 60), &[]),
        hostile(&array(77, 1), &[]),
        hostile(&deep, &[]),
        hostile(&[], &entry(&[1 << 33, 1 << 33], 0, 0)),
        hostile(&[], &entry(&[u64::MAX], 0, 0)),
        hostile(&[], &entry(&[0, 4], 0, 0)),
        hostile(&[], &entry(&[1, 1, 1, 1, 1], 0, 0)),
        hostile(&[], &entry(&[33], 8, 0)),
        hostile(&[], &entry(&[4], 0, 7)),
        hostile(&[], &entry(&[4], 0, u64::MAX - 31)),
        hostile(&[], &entry(&[4], 0, 64)),
        [b"GGUF", &3u32.to_le_bytes()[..], &u64::MAX.to_le_bytes(), &[0; 8]].concat(),
    ] {
        let fault = parse(&file, "test").err();
        assert!(matches!(fault, Some(parse::Fault::Damaged(_))), "{fault:?}");
    }
}

#[test]
fn other_versions_orders_and_types_are_named() {
    let mut file = hostile(&[], &[]);
    let mut version = |bytes: [u8; 4]| {
        file[4..8].copy_from_slice(&bytes);
        parse(&file, "test").err()
    };
    for (bytes, word) in [(1u32.to_le_bytes(), "version 1"), (3u32.to_be_bytes(), "big-endian order")] {
        let fault = version(bytes);
        assert!(matches!(&fault, Some(Fault::Unsupported { what, .. }) if what == word), "{fault:?}");
    }
    assert_eq!(version(2u32.to_le_bytes()), None);
    let fault = parse(&hostile(&[], &entry(&[4], 99, 0)), "test").err();
    assert!(matches!(fault, Some(Fault::Unsupported { .. })), "{fault:?}");
}

#[test]
fn contradictions_are_found_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut bad: Vec<(Metadata, Vec<Part>)> = vec![];
    let mut change = |alter: fn(&mut Metadata, &mut Vec<Part>)| {
        let (mut keys, mut tensors) = (metadata(), parts());
        alter(&mut keys, &mut tensors);
        bad.push((keys, tensors));
    };
    change(|keys, _| keys.set("general.alignment", 24u32));
    change(|keys, _| keys.push("u8".into(), 1u8.into()));
    change(|_, tensors| tensors.push(tensors[0].clone()));
    change(|_, tensors| tensors[0].name = "n".repeat(64));
    change(|_, tensors| tensors[1].shape = [12, 16].into());
    change(|_, tensors| tensors[0].shape = [1, 1, 1, 3, 64].into());
    change(|_, tensors| tensors[0].bytes.to_mut().truncate(5));
    for (i, (keys, tensors)) in bad.iter().enumerate() {
        assert!(matches!(write(&path, keys, tensors), Err(Error::Draft { .. })), "case {i}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(matches!(Gguf::open(&path), Err(Error::Absent { .. })));
}
