//! Any bytes as a file of weights: opened, and every tensor of floats read.

#![no_main]

use kiln::formats::Archive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("model.safetensors");
    std::fs::write(&file, bytes).expect("a file can be written");
    let Ok(archive) = Archive::open(&file) else { return };
    let names: Vec<String> = archive.names().map(String::from).collect();
    for name in names {
        let _ = (archive.tensor(&name), archive.integers(&name));
    }
});
