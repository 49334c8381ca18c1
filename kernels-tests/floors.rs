//! The house has floors, and a floor uses only those below it: reads `src/**/*.rs` and says who climbs.

use std::fs;
use std::path::{Path, PathBuf};

/// Each floor with the floors it may use.
const FLOORS: &[(&str, &[&str])] = &[
    ("tensor", &[]),
    ("ops", &["tensor"]),
    ("graph", &["tensor", "ops"]),
    ("passes", &["tensor", "ops", "graph"]),
    ("plan", &["tensor", "ops", "graph"]),
    ("gpu", &["tensor", "ops", "graph", "plan"]),
    ("data", &["tensor"]),
    ("metrics", &["tensor"]),
    ("formats", &["tensor"]),
    ("ngram", &["tensor", "data", "formats"]),
    ("model", &["tensor", "ops", "graph", "formats"]),
    ("adapt", &["tensor", "ops", "graph", "passes", "formats", "model"]),
    ("exchange", &["tensor", "ops", "data", "formats", "model", "adapt"]),
    ("train", &["tensor", "ops", "graph", "passes", "plan", "gpu", "data", "metrics", "model", "adapt"]),
    ("deploy", &["tensor", "ops", "graph", "passes", "plan", "model", "train"]),
    (
        "generate",
        &["tensor", "ops", "graph", "passes", "plan", "data", "model", "train", "deploy", "exchange"],
    ),
    (
        "evaluate",
        &[
            "tensor", "ops", "graph", "passes", "plan", "data", "model", "train", "deploy", "generate",
            "exchange",
        ],
    ),
    (
        "embed",
        &[
            "tensor", "ops", "graph", "passes", "plan", "data", "formats", "metrics", "model", "train",
            "deploy", "exchange",
        ],
    ),
    ("retrieve", &["tensor", "formats", "ngram", "model", "train", "exchange", "embed"]),
    (
        "tasks",
        &[
            "tensor", "ops", "graph", "plan", "data", "metrics", "ngram", "model", "train", "deploy",
            "generate", "evaluate", "exchange", "retrieve",
        ],
    ),
    ("audio", &[]),
    ("judge", &["tensor"]),
    ("transcribe", &["tensor", "graph", "plan", "data", "model", "train", "deploy", "exchange"]),
    (
        "compress",
        &[
            "tensor", "ops", "graph", "passes", "plan", "formats", "data", "model", "train", "deploy",
            "evaluate", "exchange",
        ],
    ),
    (
        "compare",
        &["tensor", "ops", "graph", "passes", "plan", "data", "model", "train", "deploy", "evaluate"],
    ),
    ("serve", &["tensor", "ops", "data", "model", "train", "deploy", "generate", "embed", "exchange"]),
    ("scale", &["tensor", "formats", "metrics", "model", "train", "tasks", "exchange"]),
    (
        "cli",
        &[
            "tensor",
            "ops",
            "graph",
            "passes",
            "plan",
            "gpu",
            "data",
            "model",
            "train",
            "deploy",
            "generate",
            "evaluate",
            "embed",
            "formats",
            "exchange",
            "compress",
            "compare",
            "adapt",
            "ngram",
            "metrics",
            "audio",
            "judge",
            "transcribe",
            "tasks",
            "retrieve",
            "serve",
            "scale",
        ],
    ),
];

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src is readable").map(|e| e.expect("entry is readable").path())
    {
        if entry.is_dir() {
            rust_files(&entry, found);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            found.push(entry);
        }
    }
}

#[test]
fn every_floor_uses_only_floors_below_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![];
    rust_files(&root, &mut files);
    let mut faults = vec![];
    for file in &files {
        let inside = file.strip_prefix(&root).expect("found under src");
        // The package of the ground floors, whose names are the same from above.
        let inside = inside.strip_prefix("base").unwrap_or(inside);
        let floor = inside.components().next().expect("has a name").as_os_str().to_string_lossy();
        let floor = floor.trim_end_matches(".rs");
        if matches!(floor, "lib" | "main") {
            continue;
        }
        let Some((_, below)) = FLOORS.iter().find(|(name, _)| *name == floor) else {
            faults.push(format!("{} stands on no known floor", inside.display()));
            continue;
        };
        let text = fs::read_to_string(file).expect("source is UTF-8");
        for used in text.split("crate::").skip(1) {
            let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let known = FLOORS.iter().any(|(name, _)| *name == used);
            if !known {
                faults.push(format!("{} imports `{used}` from the roof", inside.display()));
            } else if used != floor && !below.contains(&used.as_str()) {
                faults.push(format!("{}: {floor} must not use {used}", inside.display()));
            }
        }
    }
    assert!(files.len() > 10, "the test looked in the wrong place: {}", root.display());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_source_file_passes_six_hundred_lines() {
    let mut files = vec![];
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let count = |f: &PathBuf| fs::read_to_string(f).expect("source is UTF-8").lines().count();
    let long: Vec<_> = files.iter().filter(|f| count(f) > 600).collect();
    assert!(long.is_empty(), "look for the seam in {long:?}");
}
