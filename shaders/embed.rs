//! Build step: puts every `shaders/*.wgsl` into the binary, so that kiln is one file.
//!
//! Writes `shaders.rs` with one `(stem, text)` row per file, sorted by stem. A shader needs no entry in any list.

use std::fmt::Write;
use std::path::Path;

fn main() {
    let manifest = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let folder = Path::new(&manifest).join("shaders");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("shaders/ is part of the package")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|e| e == "wgsl"))
        .collect();
    files.sort();
    let mut text = String::from("&[\n");
    for file in &files {
        let stem = file.file_stem().expect("it has an extension").to_string_lossy();
        let _ = writeln!(text, "    ({stem:?}, include_str!({:?})),", file.display().to_string());
    }
    text.push_str("]\n");
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    std::fs::write(Path::new(&out).join("shaders.rs"), text).expect("OUT_DIR can be written");
}
