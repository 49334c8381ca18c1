//! `--retrieve` and `kiln retrieve`: what is found, put before prompts and listed behind answers; by an encoder, and with the feature
//! `retrieve` by words.

use super::Bench;

/// An encoder of characters, hardly trained, and notes of three files, one of them binary.
fn bench() -> Bench {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.path("notes/more")).unwrap();
    bench.write(
        "notes/fences.txt",
        "1 sheep jump over the red fence.\n\n2 sheep jump over the green fence.\n",
    );
    bench
        .write("notes/more/rows.jsonl", "{\"n\": 1, \"text\": \"the old fence\"}\n{\"text\": \"7 sheep\"}\n");
    bench.write("notes/image.png", b"\x89PNG\0");
    bench
}

fn encoder(bench: &Bench) {
    let masked = "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 48\n[data]\ntext = [\"text.txt\"]\n\
                  [train]\nsteps = 2\nbatch = 2\ncontext = 16\n[run]\nfolder = \"encoder\"\n";
    bench.write("encoder.toml", masked);
    bench.kiln(&["train", "encoder.toml", "--device", "cpu"]).fine();
}

/// A model with room for passages, whose characters it knows.
fn long(bench: &Bench) {
    let text = std::fs::read_to_string(bench.path("text.txt")).unwrap();
    bench.write("text.txt", text + "[1]: notes/more/rows.jsonl, fences.txt-2 by who knows\n");
    let more = ["--set", "model.context=160", "--set", "train.context=160", "--set", "data.validation=0"];
    bench.train(&more).fine();
}

impl Bench {
    fn retrieving(&self, arguments: &[&str]) -> super::Done {
        let mut command = self.command(&[arguments, &["--device", "cpu"]].concat());
        super::done(command.env("KILN_CACHE", self.path("cache")).output().unwrap())
    }
}

#[test]
fn an_encoder_finds_passages_which_are_kept_and_read_again_when_they_change() {
    let bench = bench();
    encoder(&bench);
    let ask = |question: &str| {
        bench.retrieving(&["retrieve", "notes", question, "--encoder", "encoder", "--size", "40", "--json"])
    };
    let first = ask("7 sheep").fine();
    assert!(first.err.contains("4 passages of 2 files, 2 read now; passed over: 1 binary"), "{}", first.err);
    let found = serde_json::from_str::<serde_json::Value>(&first.out).unwrap();
    // A passage is nearest to itself.
    assert_eq!(found[0]["text"], "7 sheep", "{found}");
    assert_eq!(
        (found[0]["path"].as_str(), found[0]["first_line"].as_u64()),
        (Some("more/rows.jsonl"), Some(2))
    );
    assert!((found[0]["score"].as_f64().unwrap() - 1.0).abs() < 1e-5, "{found}");
    let again = ask("7 sheep").fine();
    assert!(again.err.contains("as they were kept") && again.out == first.out, "{}", again.err);
    bench.write("notes/fences.txt", "3 sheep jump over the old fence.\n");
    let changed = ask("3 sheep jump over the old fence.").fine();
    assert!(changed.err.contains("3 passages of 2 files, 1 read now"), "{}", changed.err);
    assert!(changed.out.contains("\"first_line\":1") && changed.out.contains("3 sheep"), "{}", changed.out);
    // A damaged index is made anew.
    let indexes = bench.path("cache/retrieve");
    let kept = std::fs::read_dir(indexes).unwrap().next().unwrap().unwrap().path();
    std::fs::write(kept.join("vectors.safetensors"), b"no").unwrap();
    let mended = ask("3 sheep jump over the old fence.").fine();
    assert!(mended.err.contains("made anew") && mended.out == changed.out, "{}", mended.err);
    assert!(ask("3 sheep").fine().err.contains("as they were kept"));
}

#[test]
fn passages_stand_before_the_prompt_and_are_listed_behind_the_answer() {
    let bench = bench();
    encoder(&bench);
    long(&bench);
    let by = ["--retrieve", "notes", "--retrieve-encoder", "encoder", "--retrieve-size", "40"];
    let write = |more: &[&str]| {
        let asked = ["generate", "run", "--prompt", "7 sheep", "--retrieve-top", "2"];
        bench.retrieving(&[&asked[..], &by, more].concat())
    };
    let plain = write(&["--max-new-tokens", "8"]).fine();
    let (answer, sources) = plain.out.split_once("\n\nSources:\n").expect(&plain.out);
    assert!(answer.starts_with("7 sheep") && !answer.contains("[1]"), "{}", plain.out);
    assert!(sources.starts_with("[1] more/rows.jsonl:2  1.0000"), "{}", plain.out);
    assert_eq!(sources.lines().count(), 2, "{}", plain.out);
    let json = write(&["--max-new-tokens", "8", "--json", "--prompt", "the old fence"]).json();
    assert_eq!(json["sources"].as_array().unwrap().len(), 2, "{json}");
    assert_eq!(json["sources"][1][0]["text"], "the old fence", "{json}");
    assert_eq!(json["sources"][0][0]["cited"], serde_json::json!([false]), "{json}");
    let text = json["texts"][0].as_str().unwrap();
    assert!(
        text.starts_with("[1] more/rows.jsonl:2\n7 sheep\n\n[2] ") && text.contains("\n\n7 sheep"),
        "{text}"
    );
    write(&["--chat"]).refused(2, &["chat template"]);
    // Where there is room for one passage alone the other is dropped, and where there is for none nothing is written.
    let few = write(&["--max-new-tokens", "110"]).fine();
    assert!(few.err.contains("passages dropped: 1 for want of room"), "{}", few.err);
    write(&["--max-new-tokens", "150"])
        .refused(2, &["the model has room for 160 tokens", "--max-new-tokens"]);
}

#[test]
fn what_cannot_be_retrieved_says_why() {
    let bench = bench();
    encoder(&bench);
    bench.train(&[]).fine();
    let ask =
        |folder: &str, encoder: &str| bench.retrieving(&["retrieve", folder, "sheep", "--encoder", encoder]);
    ask("nowhere", "encoder").refused(1, &["no such folder: nowhere", "hint"]);
    std::fs::create_dir(bench.path("bare")).unwrap();
    ask("bare", "encoder").refused(1, &["bare holds no text", "0 files"]);
    bench.write("bare/image.png", b"\x89PNG\0");
    ask("bare", "encoder").refused(1, &["bare holds no text: 1 files, 1 binary"]);
    ask("notes", "run").refused(1, &["run", "a causal language model", "expected an encoder"]);
    ask("notes", "none").refused(1, &["none is not there"]);
    ask("notes", "notes").refused(1, &["config.json"]);
    let more = |flags: &[&str]| {
        bench.retrieving(&[&["retrieve", "notes", "sheep", "--encoder", "encoder"], flags].concat())
    };
    more(&["--size", "8", "--overlap", "5"]).refused(2, &["overlap", "5", "at most half of the size, 4"]);
    more(&["--size", "0"]).refused(2, &["whole number from 1 on"]);
    let write = |flags: &[&str]| {
        let by = ["--retrieve", "notes", "--retrieve-encoder", "encoder"];
        bench.retrieving(&[&["generate", "run"], &by[..], flags].concat())
    };
    write(&["--ids", "1,2"]).refused(2, &["--retrieve does not go with --ids"]);
    write(&["--prompt", "a", "--context", "b"]).refused(2, &["--retrieve does not go with --context"]);
    write(&[]).refused(2, &["--prompt"]);
    bench.retrieving(&["generate", "run", "--retrieve-top", "2"]).refused(2, &["--retrieve"]);
    let words = bench.retrieving(&["retrieve", "notes", "sheep"]);
    match cfg!(feature = "retrieve") {
        true => assert!(words.fine().out.starts_with("[1] ")),
        false => words.refused(2, &["without the index of words", "--features retrieve", "--encoder"]),
    }
}

#[cfg(feature = "retrieve")]
#[test]
fn words_find_passages_and_where_none_matches_that_is_said_and_the_answer_written() {
    let bench = bench();
    long(&bench);
    let found = bench.retrieving(&["retrieve", "notes", "the RED fence", "--size", "8", "--json"]).json();
    assert_eq!(
        (found[0]["path"].as_str(), found[0]["first_line"].as_u64()),
        (Some("fences.txt"), Some(1)),
        "{found}"
    );
    let again = bench.retrieving(&["retrieve", "notes", "the RED fence", "--size", "8", "--json"]).fine();
    assert!(again.err.contains("as they were kept"), "{}", again.err);
    let write = |prompt: &str| {
        let flags = ["--retrieve", "notes", "--max-new-tokens", "5", "--retrieve-size", "8"];
        bench.retrieving(&[&["generate", "run", "--prompt", prompt], &flags[..]].concat())
    };
    let none = write("over").fine();
    assert!(none.out.starts_with("over") && none.out.contains("Sources:"), "{}", none.out);
    let none = write("umps").fine();
    assert!(none.err.contains("no passage matches: the answer is written without"), "{}", none.err);
    assert!(none.out.starts_with("umps") && !none.out.contains("Sources"), "{}", none.out);
}
