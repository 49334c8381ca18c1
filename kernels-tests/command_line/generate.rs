//! `kiln generate`: beams, several texts, penalties, stop texts, conversations, and what does not go together.

use super::Bench;
use serde_json::Value;

fn trained() -> Bench {
    let bench = Bench::new();
    bench.train(&["--set", "train.steps=30"]).fine();
    bench
}

fn sequences(json: &Value) -> Vec<Vec<u64>> {
    serde_json::from_value(json["sequences"].clone()).unwrap()
}

#[test]
fn beams_and_drawn_texts_are_given_with_their_scores_the_best_first() {
    let bench = trained();
    let run = |more: &[&str]| {
        let given =
            ["generate", "run", "--ids", "1,2,3", "--max-new-tokens", "5", "--device", "cpu", "--json"];
        bench.kiln(&[&given[..], more].concat()).json()
    };
    let beams = run(&["--num-beams", "4", "--num-return-sequences", "3", "--length-penalty", "0.5"]);
    let scores: Vec<f64> = serde_json::from_value(beams["scores"].clone()).unwrap();
    assert!(scores.len() == 3 && scores[0] >= scores[1] && scores[1] >= scores[2] && scores[0] < 0.0);
    let texts = sequences(&beams);
    assert!(texts[0] != texts[1] && texts.iter().all(|ids| ids[..3] == [1, 2, 3]));
    let greedy = run(&[]);
    assert_eq!(greedy["scores"].as_array().unwrap().len(), 1);
    let drawn = run(&["--do-sample", "--temperature", "2", "--num-return-sequences", "4", "--seed", "3"]);
    assert_eq!(drawn, run(&["--temperature", "2", "--num-return-sequences", "4", "--seed", "3"]));
    let mut texts = sequences(&drawn);
    texts.sort();
    texts.dedup();
    assert!(texts.len() > 1, "{drawn}");
    let apart = run(&["--no-repeat-ngram-size", "1", "--repetition-penalty", "1.2"]);
    let mut ids = sequences(&apart).remove(0);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 8, "{apart}");
}

#[test]
fn several_prompts_have_the_texts_that_each_has_alone() {
    let bench = trained();
    let run = |prompts: &[&str], more: &[&str]| {
        let mut arguments = vec!["generate", "run", "--max-new-tokens", "6", "--device", "cpu", "--json"];
        prompts.iter().for_each(|prompt| arguments.extend(["--prompt", prompt]));
        sequences(&bench.kiln(&[&arguments[..], more].concat()).json())
    };
    let prompts = ["7 sheep", "1", "over the red"];
    for more in [&[][..], &["--num-beams", "3"], &["--do-sample", "--seed", "5"]] {
        let alone: Vec<Vec<u64>> = prompts.iter().flat_map(|prompt| run(&[prompt], more)).collect();
        let together = run(&prompts, more);
        assert_eq!(together.len(), 3);
        assert_eq!(together, alone, "{more:?}");
    }
    let text = bench.kiln(&[
        "generate",
        "run",
        "--prompt",
        "7",
        "--prompt",
        "8",
        "--max-new-tokens",
        "3",
        "--device",
        "cpu",
    ]);
    let lines = text.fine().out;
    assert!(lines.starts_with('7') && lines.contains("\n8"), "{lines}");
}

#[test]
fn a_stop_text_ends_it_and_is_not_shown_and_bad_words_never_come() {
    let bench = trained();
    let write = |more: &[&str]| {
        let given =
            ["generate", "run", "--prompt", "7 sheep jump", "--max-new-tokens", "12", "--device", "cpu"];
        bench.kiln(&[&given[..], more].concat()).fine().out
    };
    let whole = write(&[]);
    let behind: Vec<char> = whole["7 sheep jump".len()..].trim_end_matches('\n').chars().collect();
    assert_eq!(behind.len(), 12);
    let stop: String = behind[3..5].iter().collect();
    let stopped = write(&["--stop-strings", &stop]);
    let at = behind.windows(2).position(|pair| pair.iter().collect::<String>() == stop).unwrap();
    let expected: String = behind[..at].iter().collect();
    assert_eq!(stopped, format!("7 sheep jump{expected}\n"));
    let bad = behind[0].to_string();
    assert!(!write(&["--bad-words", &bad])["7 sheep jump".len()..].contains(&bad));
}

#[test]
fn a_conversation_is_written_as_the_models_template_has_it() {
    let bench = trained();
    let folder = bench.path("run/checkpoints/step-000030");
    let chat = [
        "generate",
        "run/checkpoints/step-000030",
        "--chat",
        "--prompt",
        "7",
        "--device",
        "cpu",
        "--max-new-tokens",
        "2",
    ];
    bench.kiln(&chat).refused(2, &["chat template", "hint"]);
    let template = "{% for message in messages %}{{ message['content'] }} sheep{% endfor %}{% if add_generation_prompt %} jump{% endif %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let out = bench.kiln(&chat).fine().out;
    assert!(out.starts_with("7 sheep jump") && out.trim_end_matches('\n').chars().count() == 14, "{out}");
}

#[test]
fn what_does_not_go_together_is_refused_with_a_hint() {
    let bench = trained();
    let run = |more: &[&str]| {
        let given = ["generate", "run", "--device", "cpu", "--max-new-tokens", "3", "--prompt"];
        bench.kiln(&[&given[..], more].concat())
    };
    run(&["7", "--length-penalty", "2"]).refused(2, &["--length-penalty", "--num-beams"]);
    run(&["7", "--num-return-sequences", "2"]).refused(2, &["--do-sample", "hint"]);
    run(&["7", "--num-beams", "2", "--num-return-sequences", "3"]).refused(2, &["num_return_sequences is 3"]);
    run(&["7", "--num-beams", "4", "--num-beam-groups", "3"]).refused(2, &["num_beam_groups is 3"]);
    run(&["7", "--num-beams", "2", "--assistant-model", "run"]).refused(2, &["--assistant-model", "hint"]);
    run(&["7", "--min-p", "2"]).refused(2, &["min_p is 2"]);
    run(&["7", "--min-new-tokens", "9"]).refused(2, &["min_new_tokens is 9"]);
    run(&["7", "--num-beams", "0"]).refused(2, &["num_beams is 0"]);
    run(&["11 sheep jump over the old fence.", "--overflow", "stop"])
        .refused(2, &["33 tokens", "16", "--overflow"]);
    bench.kiln(&["generate", "run", "--ids", "1,x"]).refused(2, &["--ids", "\"x\""]);
    bench.kiln(&["generate", "run", "--ids", "1", "--prompt", "7"]).refused(2, &["cannot be used with"]);
}

#[test]
fn a_draft_an_expression_a_context_and_caches_in_fewer_bits() {
    let bench = trained();
    let write = |more: &[&str]| {
        let given = ["generate", "run", "--prompt", "7 sheep", "--max-new-tokens", "8", "--device", "cpu"];
        bench.kiln(&[&given[..], more].concat())
    };
    let plain = write(&[]).fine().out;
    let helped = write(&["--assistant-model", "run", "--num-assistant-tokens", "3"]).fine();
    assert_eq!(helped.out, plain);
    assert!(helped.err.contains("tokens were right"), "{}", helped.err);
    assert_eq!(write(&["--cache", "f16"]).fine().out.chars().count(), plain.chars().count());
    let out = write(&["--regex", "( sheep| fence){1,2}\\."]).fine().out;
    assert!(
        [" sheep.", " fence."].iter().any(|end| out.trim_end().ends_with(end)) || out.len() == 16,
        "{out}"
    );
    let behind = &out.trim_end_matches('\n')["7 sheep".len()..];
    assert!(behind.starts_with(" sheep") || behind.starts_with(" fence"), "{out}");
    write(&["--context", "8 sheep jump. ", "--context-alpha", "1"]).fine();
    write(&["--regex", "a(b"]).refused(2, &["a(b", "unclosed"]);
    write(&["--regex", "Ü+"]).refused(2, &["Ü+", "no token"]);
    write(&["--context-alpha", "1"]).refused(2, &["--context"]);
    write(&["--context", "8", "--context-alpha", "-1"]).refused(2, &[]);
    write(&["--assistant-model", "run", "--num-beams", "2"]).refused(2, &["--assistant-model", "hint"]);
    bench.train(&["--set", "data.tokenizer=bpe:300", "--out", "other"]).fine();
    write(&["--assistant-model", "other"]).refused(2, &["the draft knows", "its model 30", "hint"]);
}

#[test]
fn a_schema_is_kept_to_and_a_bad_one_is_refused() {
    let bench = trained();
    // A model that knows what JSON is made of, but not JSON.
    std::fs::write(bench.path("letters.txt"), "{\"ab\": [1, 20, true]} ".repeat(40)).unwrap();
    bench.train(&["--set", "train.steps=2", "--set", "data.text=[\"letters.txt\"]", "--out", "json"]).fine();
    std::fs::write(
        bench.path("schema.json"),
        r#"{"type": "array", "items": {"enum": [1, 20]}, "maxItems": 2}"#,
    )
    .unwrap();
    std::fs::write(bench.path("broken.json"), "{\n \"type\": }").unwrap();
    let write = |more: &[&str]| {
        let given = ["generate", "json", "--prompt", "1", "--do-sample", "--device", "cpu"];
        bench.kiln(&[&given[..], more].concat())
    };
    let schema = r#"{"type": "object", "properties": {"ab": {"type": "boolean"}}, "required": ["ab"], "additionalProperties": false}"#;
    // Without an e there is no false.
    let out = write(&["--json-schema", schema, "--max-new-tokens", "300"]).fine().out;
    let text = out.trim().strip_prefix('1').unwrap();
    let json: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    assert_eq!(json, serde_json::json!({ "ab": true }));
    let out = write(&["--json-schema", "schema.json", "--max-new-tokens", "300"]).fine().out;
    let json: Vec<u64> = serde_json::from_str(out.trim().strip_prefix('1').unwrap()).unwrap();
    assert!(json.len() <= 2 && json.iter().all(|item| [1, 20].contains(item)));
    let out = write(&["--json-object", "--max-new-tokens", "3"]).fine();
    assert!(out.out.starts_with("1{") && out.err.contains("--max-new-tokens"), "{} {}", out.out, out.err);
    write(&["--json-schema", "absent.json"]).refused(2, &["absent.json", "hint"]);
    write(&["--json-schema", "broken.json"]).refused(2, &["broken.json", "line 2"]);
    write(&["--json-schema", r#"{"type": "strin"}"#]).refused(2, &["JSON schema", "strin"]);
    write(&["--json-object", "--regex", "a"]).refused(2, &["cannot be used with"]);
}

#[test]
fn contrastive_search_and_early_layers_write_other_texts_and_refuse_what_they_cannot_do() {
    let bench = trained();
    let write = |more: &[&str]| {
        let given = ["generate", "run", "--prompt", "7 sheep", "--max-new-tokens", "8", "--device", "cpu"];
        bench.kiln(&[&given[..], more].concat())
    };
    let greedy = write(&[]).fine().out;
    assert_eq!(write(&["--penalty-alpha", "0", "--top-k", "3"]).fine().out, greedy);
    let apart = write(&["--penalty-alpha", "0.9"]).fine().out;
    assert!(apart != greedy && apart.chars().count() == greedy.chars().count(), "{apart}{greedy}");
    let both = write(&["--penalty-alpha", "0.9", "--prompt", "1", "--json"]).json();
    assert!(sequences(&both).len() == 2 && both["scores"][1].as_f64().unwrap() < 0.0, "{both}");
    let early = write(&["--dola-layers", "high"]).fine().out;
    assert_eq!(early, write(&["--dola-layers", "0"]).fine().out);
    assert_eq!(
        write(&["--dola-layers", "low", "--num-beams", "2", "--json"]).json()["texts"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    write(&["--dola-layers", "7"]).refused(2, &["dola_layers", "layer 7 of a model with 1"]);
    write(&["--dola-layers", "deep"]).refused(2, &["dola_layers is deep", "low, high"]);
    write(&["--penalty-alpha", "2"]).refused(2, &["penalty_alpha is 2"]);
    write(&["--penalty-alpha", "0.5", "--top-k", "0"]).refused(2, &["top_k is 0"]);
    write(&["--penalty-alpha", "0.5", "--top-k", "257"]).refused(2, &["257 texts side by side", "256"]);
    let none = ["generate", "run", "--prompt", "7", "--max-new-tokens", "0", "--device", "cpu"];
    bench.kiln(&none).refused(2, &["--max-new-tokens", "0 is not in 1"]);
    write(&["--penalty-alpha", "0.5", "--do-sample"]).refused(2, &["cannot be used with"]);
}

#[test]
fn beams_end_with_a_stop_text_and_owe_more_to_a_context() {
    let bench = trained();
    let write = |more: &[&str]| {
        let given = ["generate", "run", "--prompt", "7 s", "--max-new-tokens", "8", "--device", "cpu"];
        bench.kiln(&[&given[..], &["--num-beams", "2"], more].concat())
    };
    let whole = write(&[]).fine().out;
    let behind: Vec<char> = whole["7 s".len()..].trim_end_matches('\n').chars().collect();
    assert_eq!(behind.len(), 8, "{whole}");
    // A beam that ends early counts by the mean of its tokens, and so it may be another one that wins: but it stops.
    let stop = behind[2].to_string();
    let stopped = write(&["--stop-strings", &stop]).fine().out;
    assert!(!stopped["7 s".len()..].contains(&stop) && stopped.starts_with("7 s"), "{stopped}");
    let plain = write(&["--context", "1", "--context-alpha", "0"]).fine().out;
    let more = write(&["--context", "1", "--context-alpha", "5", "--prompt", "over"]).fine().out;
    assert!(
        plain.starts_with("17 s") && more.lines().count() == 2 && more.contains("\n1over"),
        "{plain}{more}"
    );
}
