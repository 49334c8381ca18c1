//! Any text as `tokenizer.json`: a text encoded and decoded.

#![no_main]

use kiln::data::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|json: &str| {
    let Ok(tokenizer) = Tokenizer::from_json(json, Path::new("tokenizer.json")) else { return };
    if let Ok(ids) = tokenizer.encode_with_special("Any text, with numbers 123 and naïve letters.\n") {
        let _ = tokenizer.decode(&ids);
    }
});
