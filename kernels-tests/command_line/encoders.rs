//! `kiln forward` and `kiln embed`, and what an encoder is not for.

use super::Bench;
use kiln::formats::{Archive, Raw};
use serde_json::Value;
use std::collections::BTreeMap;

/// A folder with an encoder that guessed hidden letters for a moment.
fn trained() -> Bench {
    let bench = Bench::new();
    bench.write(
        "encoder.toml",
        "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\n\
         [data]\ntext = [\"text.txt\"]\nmasking = { share = 0.3, whole_words = true }\n\
         [train]\nsteps = 3\nbatch = 4\nevaluate = { every = 3, batches = 2 }\n[run]\nfolder = \"run\"\n",
    );
    bench.kiln(&["train", "encoder.toml", "--device", "cpu"]).fine();
    bench
}

fn write(bench: &Bench, name: &str, tensors: &[(&str, [usize; 2], &[i64])]) {
    let raws: Vec<(&str, Raw)> =
        tensors.iter().map(|(name, shape, all)| (*name, Raw::i64(*shape, all))).collect();
    Archive::write_raw(&bench.path(name), &raws, &BTreeMap::new()).unwrap();
}

const FORWARD: [&str; 8] =
    ["forward", "run", "--inputs", "in.safetensors", "--output", "out.safetensors", "--device", "cpu"];

#[test]
fn an_encoder_is_trained_and_a_batch_goes_through_it() {
    let bench = trained();
    let shape = [2, 4];
    let ids: &[i64] = &[1, 2, 3, 4, 5, 6, 7, 8];
    let labels: &[i64] = &[1, -100, -100, 4, -100, 6, -100, -100];
    write(
        &bench,
        "in.safetensors",
        &[
            ("x.input_ids", shape, ids),
            ("x.attention_mask", shape, &[1, 1, 1, 1, 1, 1, 0, 0]),
            ("x.token_type_ids", shape, &[0, 0, 1, 1, 0, 1, 0, 0]),
            ("x.labels", shape, labels),
            ("other", [1, 1], &[0]),
        ],
    );
    let more = ["--prefix", "x.", "--gradients", "gradients.safetensors"];
    bench.kiln(&[&FORWARD[..], &more].concat()).fine();
    let out = Archive::open(&bench.path("out.safetensors")).unwrap();
    assert_eq!(out.names().collect::<Vec<_>>(), ["hidden_states.0", "hidden_states.1", "logits", "loss"]);
    assert_eq!(out.shape("hidden_states.0").unwrap()[..], [2, 4, 16]);
    let loss = out.tensor("loss").unwrap().to_f64()[0];
    assert!(loss > 0.5 && loss < 10.0, "{loss}");
    let gradients = Archive::open(&bench.path("gradients.safetensors")).unwrap();
    let weights = Archive::open(&bench.path("run/checkpoints/step-000003")).unwrap();
    assert!(gradients.names().eq(weights.names()));
    for precision in ["f16", "bf16"] {
        bench.kiln(&[&FORWARD[..], &more, &["--precision", precision]].concat()).fine();
        let half = Archive::open(&bench.path("out.safetensors")).unwrap().tensor("loss").unwrap().to_f64()[0];
        assert!((half - loss).abs() < 0.02, "{precision}: {half}, {loss}");
        let half = Archive::open(&bench.path("gradients.safetensors")).unwrap();
        for name in gradients.names() {
            let [a, b] = [&gradients, &half].map(|archive| archive.tensor(name).unwrap().to_f64());
            let most = a.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            let apart = a.iter().zip(&b).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
            assert!(apart < 0.05 * most + 1e-3, "{precision}: {name} is off by {apart} of {most}");
        }
    }
}

#[test]
fn a_batch_that_does_not_fit_is_refused_by_name() {
    let bench = trained();
    let shape = [1, 3];
    let ids: (&str, [usize; 2], &[i64]) = ("input_ids", shape, &[1, 2, 3]);
    write(&bench, "in.safetensors", &[("input_ids", shape, &[1, 2, 999])]);
    bench.kiln(&FORWARD).refused(1, &["input_ids[0, 2]", "999", "in.safetensors"]);
    write(&bench, "in.safetensors", &[ids, ("attention_mask", [1, 2], &[1, 1])]);
    bench.kiln(&FORWARD).refused(1, &["attention_mask", "[1, 3]"]);
    write(&bench, "in.safetensors", &[("eval.input_ids", shape, &[1, 2, 3])]);
    bench.kiln(&FORWARD).refused(1, &["eval.input_ids", "--prefix"]);
    write(&bench, "in.safetensors", &[ids]);
    let more = ["--gradients", "gradients.safetensors"];
    bench.kiln(&[&FORWARD[..], &more].concat()).refused(2, &["labels"]);
    write(&bench, "in.safetensors", &[("input_ids", [1, 17], &[1; 17])]);
    bench.kiln(&FORWARD).refused(1, &["17", "16"]);
    assert!(!bench.path("out.safetensors").exists());
}

#[test]
fn a_new_roberta_learns_with_a_padding_that_no_text_has() {
    let bench = trained();
    let roberta = ["--set", "run.folder=\"new\"", "--set", "model.family=\"roberta\""];
    bench.train(&roberta).fine();
    let config = |folder: &str| {
        let checkpoints = std::fs::read_dir(bench.path(folder).join("checkpoints")).unwrap();
        let newest =
            checkpoints.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).max().unwrap();
        serde_json::from_slice::<Value>(&std::fs::read(newest.join("config.json")).unwrap()).unwrap()
    };
    let (bert, roberta_keys) = (config("run"), config("new"));
    let size = |keys: &Value| keys["vocab_size"].as_u64().unwrap();
    assert_eq!(size(&roberta_keys), size(&bert) + 1);
    assert_eq!(roberta_keys["pad_token_id"], size(&bert));
    assert_eq!(roberta_keys["max_position_embeddings"], size(&roberta_keys) + 16);
    let tight = format!("model.vocabulary={}", size(&bert) - 1);
    bench
        .train(&[&roberta[..], &["--set", "run.folder=\"tight\"", "--set", &tight]].concat())
        .refused(1, &["vocabulary"]);
}

#[test]
fn an_encoder_neither_continues_a_text_nor_has_a_perplexity() {
    let bench = trained();
    let parts = ["a masked language model", "a causal language model"];
    bench.kiln(&["generate", "run", "--prompt", "1", "--device", "cpu"]).refused(1, &parts);
    bench.kiln(&["evaluate", "run", "--data", "text.txt", "--device", "cpu"]).refused(1, &parts);
    bench
        .train(&["--set", "run.folder=\"new\"", "--set", "data.masking.share=0.2"])
        .refused(1, &["data.masking"]);
    bench
        .train(&["--set", "data.masking.hidden=0.8", "--set", "data.masking.random=0.3"])
        .refused(2, &["random"]);
}

#[test]
fn texts_become_vectors_whatever_stands_beside_them() {
    let bench = trained();
    bench.write("lines.txt", "1 sheep\n22 red sheep jump\n\n3 old\n");
    let embed = |more: &[&str]| {
        let all = bench.kiln(&[&["embed", "run", "--device", "cpu", "--json"], more].concat()).json();
        serde_json::from_value::<Vec<Vec<f64>>>(all["embeddings"].clone()).unwrap()
    };
    let all = embed(&["--data", "lines.txt"]);
    assert_eq!((all.len(), all[0].len()), (4, 16));
    let alone = embed(&["--text", "22 red sheep jump"]);
    let apart = all[1].iter().zip(&alone[0]).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
    assert!(apart < 1e-5, "{apart}");
    let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!(
        (length(&all[1]) - 1.0).abs() < 1e-5
            && (length(&embed(&["--text", "3", "--raw"])[0]) - 1.0).abs() > 0.1
    );
    assert_ne!(embed(&["--text", "3 old", "--pool", "first"]), embed(&["--text", "3 old"]));
    bench
        .kiln(&["embed", "run", "--text", "3", "--json", "--pool", "pooler", "--device", "cpu"])
        .refused(1, &["pooler"]);
    bench.kiln(&["embed", "run", "--json"]).refused(2, &["--text", "--data"]);
    bench.kiln(&["embed", "run", "--data", "lines.txt", "-o", "out.safetensors", "--device", "cpu"]).fine();
    let written = Archive::open(&bench.path("out.safetensors")).unwrap();
    assert_eq!(written.shape("embeddings").unwrap()[..], [4, 16]);
}

#[test]
fn a_folder_of_another_architecture_or_with_other_weights_is_refused_by_name() {
    let bench = trained();
    write(&bench, "in.safetensors", &[("input_ids", [1, 3], &[1, 2, 3])]);
    let folder = "run/checkpoints/step-000003";
    std::fs::create_dir(bench.path("copy")).unwrap();
    std::fs::copy(bench.path(folder).join("model.safetensors"), bench.path("copy/model.safetensors"))
        .unwrap();
    let config = std::fs::read_to_string(bench.path(folder).join("config.json")).unwrap();
    let forward = |config: &str, parts: &[&str]| {
        bench.write("copy/config.json", config);
        let arguments = FORWARD.map(|word| if word == "run" { "copy" } else { word });
        bench.kiln(&arguments).refused(1, parts);
    };
    forward(
        &config.replace("BertForMaskedLM", "BertForQuestionAnswering"),
        &["BertForQuestionAnswering", "BertForMaskedLM", "GPT2LMHeadModel"],
    );
    forward(
        &config.replace("BertForMaskedLM", "BertForTokenClassification"),
        &["missing", "classifier.weight"],
    );
    forward(
        &config.replace("\"intermediate_size\": 64", "\"intermediate_size\": 63"),
        &["intermediate.dense", "[64, 16]", "[63, 16]"],
    );
}

#[test]
fn an_encoder_is_measured_by_texts_that_are_alike_and_an_encoder_decoder_by_pairs_or_text() {
    let bench = Bench::new();
    let word = |at: usize| ["red", "blue", "green", "old"][at % 4];
    let rows: String =
        (0..32).map(|at| format!("{} {at}\tthe {} one\t{}\n", word(at), word(at), at % 4)).collect();
    bench.write("alike.tsv", format!("anchor\tpositive\tscore\n{rows}"));
    bench.write(
        "alike.toml",
        "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\n[data]\nsimilar = [\"alike.tsv\"]\n\
         [train]\nsteps = 30\nbatch = 8\nlearning_rate = 1e-2\nevaluate = { every = 30, batches = 2 }\n[run]\nfolder = \"run\"\n",
    );
    let of = |arguments: &[&str]| bench.kiln(&[arguments, &["--device", "cpu"]].concat());
    of(&["train", "alike.toml"]).fine();
    let measured = of(&["evaluate", "run", "--data", "alike.tsv", "--json"]).json();
    let figure = |name: &str| measured[name].as_f64().unwrap_or_else(|| panic!("{name}: {measured}"));
    assert_eq!(measured["examples"], 32);
    assert!(figure("loss") < 8f64.ln() && figure("accuracy") > 0.2, "{measured}");
    assert!((-1.0..=1.0).contains(&figure("spearman")) && figure("reciprocal_rank") >= figure("accuracy"));
    // A batch of one leaves nothing to be told from.
    let alone = of(&["evaluate", "run", "--data", "alike.tsv", "--batch", "1", "--json"]).json();
    assert_eq!((alone["loss"].as_f64(), alone["accuracy"].as_f64()), (Some(0.0), Some(1.0)));
    assert_eq!(alone["spearman"], measured["spearman"], "cosines do not know their batch");
    of(&["evaluate", "run", "--data", "alike.tsv", "--tokenizer", "char"])
        .refused(2, &["this is an encoder"]);
    bench.write("lone.tsv", "anchor\na\n");
    of(&["evaluate", "run", "--data", "lone.tsv"]).refused(1, &["lone.tsv, line 2: there is no `positive`"]);

    let pairs: String = (0..24).map(|at| format!("{}\t{}\n", word(at), word(at + 1))).collect();
    bench.write("pairs.tsv", &pairs);
    bench.write(
        "pairs.toml",
        "[model]\nfamily = \"t5\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 32\n[data]\npairs = [\"pairs.tsv\"]\n\
         held = 1\n",
    );
    of(&["train", "pairs.toml"]).refused(2, &["held"]);
    bench.write(
        "pairs.toml",
        "[model]\nfamily = \"t5\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 32\n[data]\npairs = [\"pairs.tsv\"]\n\
         validation = 0.5\n[train]\nsteps = 10\nbatch = 12\ncontext = 8\ntarget = 8\nlearning_rate = 1e-2\n\
         evaluate = { every = 10, batches = 1 }\n[run]\nfolder = \"second\"\n",
    );
    let told: serde_json::Value = of(&["train", "pairs.toml", "--json"]).json();
    // The validation part is the last half of the file.
    bench.write("last.tsv", pairs.lines().skip(12).map(|line| format!("{line}\n")).collect::<String>());
    let measured = of(&["evaluate", "second", "--data", "last.tsv", "--batch", "5", "--json"]).json();
    let near = |a: f64, b: f64| (a - b).abs() < 1e-4;
    assert!(
        near(measured["loss"].as_f64().unwrap(), told["val_loss"].as_f64().unwrap()),
        "{measured} {told}"
    );
    assert!(near(measured["perplexity"].as_f64().unwrap(), measured["loss"].as_f64().unwrap().exp()));
    assert_eq!(measured["examples"], 12);
    let cut = of(&["evaluate", "second", "--data", "last.tsv", "--context", "4"]).fine();
    assert!(
        cut.err.contains("of 12 pairs are longer") && cut.out.contains("perplexity"),
        "{} {}",
        cut.err,
        cut.out
    );
    bench.write("plain.txt", "red old green blue red old green blue ".repeat(8));
    // This model has two tokens of its own, and none that stands for a span.
    of(&["evaluate", "second", "--data", "plain.txt"]).refused(1, &["spans"]);
}
