//! What was said in sounds: a tiny model that was never taught, so that what counts is that it is asked rightly.

use super::Bench;
#[cfg(feature = "audio")]
use std::path::Path;

#[cfg(not(feature = "audio"))]
#[test]
fn a_program_without_ears_says_so() {
    let bench = Bench::new();
    bench.kiln(&["transcribe", "model", "a.wav"]).refused(2, &["--features audio"]);
}

/// The model of the golden case, with rules of its own.
#[cfg(feature = "audio")]
fn heard(rules: &str) -> Bench {
    let bench = Bench::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/golden/models/whisper");
    std::fs::create_dir(bench.path("model")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(name), bench.path("model").join(name)).unwrap();
    }
    bench.write("model/generation_config.json", rules);
    for (name, rate, count) in
        [("short.wav", 16000, 2000), ("long.wav", 16000, 5000), ("slow.wav", 8000, 2000)]
    {
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: rate,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut writer = hound::WavWriter::create(bench.path(name), spec).unwrap();
        (0..count).for_each(|i| writer.write_sample(((i * i) % 20011) as i16).unwrap());
        writer.finalize().unwrap();
    }
    bench
}

#[cfg(feature = "audio")]
#[test]
fn sounds_are_written_down_part_by_part() {
    let bench = heard(
        "{\"lang_to_id\": {\"<|en|>\": 3, \"<|de|>\": 4}, \"task_to_id\": {\"transcribe\": 5, \"translate\": 6}, \
         \"no_timestamps_token_id\": 7, \"eos_token_id\": 1, \"suppress_tokens\": [11]}",
    );
    let of = |arguments: &[&str]| {
        bench.kiln(&[&["transcribe", "model"][..], arguments, &["--device", "cpu"]].concat())
    };
    let json = of(&["long.wav", "--language", "de", "--task", "translate", "--json"]).json();
    // The model hears 24 frames of 160 samples at once, and 5000 samples are two such parts; it writes 10 tokens, 4 of them before.
    assert_eq!(json["opening"], serde_json::json!([[0, 4, 6, 7], [0, 4, 6, 7]]));
    let ids: Vec<Vec<u32>> = serde_json::from_value(json["ids"].clone()).unwrap();
    assert!(ids.len() == 2 && ids.iter().all(|ids| !ids.is_empty() && ids.len() <= 6), "{json}");
    assert!(ids.concat().iter().all(|&id| id != 11 && id != 1) && json["text"].is_null(), "{json}");
    let few = of(&["short.wav", "long.wav", "--ids", "--most", "2"]).fine().out;
    let counts: Vec<usize> = few.lines().map(|line| line.split(' ').count()).collect();
    assert_eq!(counts, [2, 4]);
    of(&["short.wav", "--language", "fr"]).refused(1, &["language is fr", "one of en, de"]);
    of(&["slow.wav"]).refused(1, &["slow.wav", "16000 samples a second", "8000", "ffmpeg"]);
    of(&["none.wav"]).refused(1, &["none.wav"]);
    of(&["model/config.json"]).refused(1, &["config.json"]);
    bench.train(&[]).fine();
    let causal = bench.kiln(&["transcribe", "run", "short.wav", "--device", "cpu"]);
    causal.refused(1, &["a causal language model", "hears and writes"]);
}
