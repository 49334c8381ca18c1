//! Any bytes as a GGUF file: tensors decoded, and the whole taken for a model with its tokenizer.

#![no_main]

use kiln::exchange::import_gguf;
use kiln::formats::gguf::Gguf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("model.gguf");
    std::fs::write(&file, bytes).expect("a file can be written");
    let Ok(gguf) = Gguf::open(&file) else { return };
    for tensor in gguf.tensors() {
        let _ = gguf.tensor(tensor);
    }
    let _ = import_gguf(&file);
});
