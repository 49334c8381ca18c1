//! Against scores of whole texts, summed by hand.

use super::*;
use crate::data::tokenizer::Tokenizer;
use crate::graph::{Graph, evaluate};
use crate::model::{Activation, Design, Extent, Init, Mode, build, initial};
use crate::tensor::{DType, Tensor};

const LETTERS: &str = "\n abcdefghijklmnopqrst?";

fn tiny() -> Opened {
    let design = Design {
        layers: 1,
        heads: 2,
        width: 16,
        context: 40,
        vocabulary: LETTERS.len(),
        activation: Activation::Silu,
        hidden: Some(24),
        norm_epsilon: 1e-5,
        dropout: 0.0,
        bias: true,
        tie: true,
        kv_heads: None,
        head_size: None,
        rope_theta: None,
        window: None,
    };
    let family = build("gpt2", &design).unwrap();
    let mut specs = family.parameters();
    // Weights far from those of a new model, which hardly looks at its tokens.
    for spec in specs.iter_mut().filter(|spec| spec.shape.len() > 1) {
        spec.init = Init::Normal { deviation: 0.3 };
    }
    let weights = initial(&specs, 5);
    Opened { family, weights, tokenizer: Some(Tokenizer::characters(LETTERS)) }
}

/// Logarithms of the probabilities of all characters but the first.
fn by_hand(model: &Opened, text: &str) -> Vec<f64> {
    let tokens = model.tokenizer.as_ref().unwrap().encode(text).unwrap();
    let mut graph = Graph::new();
    let extent = Extent { batch: 1, context: tokens.len() };
    let forward = model.family.forward(&mut graph, extent, Mode::Evaluate).unwrap();
    graph.output("logits", forward.logits);
    let feeds = model.weights.feeds().with("tokens", Tensor::u32([1, tokens.len()], tokens.clone()));
    let logits = evaluate(&graph, &feeds, DType::F32).unwrap().remove("logits").unwrap();
    let rows = logits.real::<f32>().chunks(LETTERS.len());
    let log = |(row, &token): (&[f32], &u32)| {
        let sum: f64 = row.iter().map(|score| f64::from(*score).exp()).sum();
        f64::from(row[token as usize]) - sum.ln()
    };
    rows.zip(&tokens[1..]).map(log).collect()
}

fn host() -> Target {
    Target::open("cpu").unwrap()
}

fn task(files: &[(&str, &str)]) -> Result<Task> {
    let folder = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
    Task::open(&folder.path().join("task.toml"), None)
}

fn score(outcome: &Outcome, name: &str) -> f64 {
    let measured = outcome.measured.iter().find(|measured| measured.name == name).unwrap();
    (measured.score)(&crate::metrics::sums(&measured.segments))
}

const QUESTIONS: &str = r#"{"q": "bad", "options": ["a", "fish on a tree"], "right": 1}
{"q": "is it", "options": ["no", "c", "ta ta"], "right": "C"}
{"q": "go", "options": ["home", "north", "a"], "right": "north"}
{"q": "stop", "options": ["s", "one a", "do"], "right": 0}
"#;

const CHOOSE: &str = "kind = \"multiple-choice\"\ndata = \"q.jsonl\"\nprompt = \"{{ q }}?\"\nchoices = \"options\"\nanswer = \"right\"\n";

#[test]
fn a_number_counts_choices_that_are_numbers_and_a_text_is_one_of_them() {
    let row =
        |right: &str| format!("{{\"q\": \"a\", \"options\": [\"2\", \"0\", \"1\"], \"right\": {right}}}\n");
    let rows: String = ["0", "1", "2", "\"2\"", "\"1\""].map(row).concat();
    let task = self::task(&[("task.toml", CHOOSE), ("q.jsonl", &rows)]).unwrap();
    let right: Vec<usize> = task.examples.rows.iter().map(|row| row.right).collect();
    assert_eq!(right, [0, 1, 2, 0, 2]);
}

#[test]
fn the_likeliest_choice_is_that_of_scores_summed_by_hand() {
    let task = self::task(&[("task.toml", CHOOSE), ("q.jsonl", QUESTIONS)]).unwrap();
    let outcome = task.put_to(tiny(), "tiny".as_ref(), host(), 2).unwrap();
    let (model, mut hits) = (tiny(), [0.0, 0.0]);
    let best =
        |numbers: &[f64]| (0..numbers.len()).max_by(|&a, &b| numbers[a].total_cmp(&numbers[b])).unwrap();
    for (row, right) in QUESTIONS.lines().zip([1, 2, 1, 0]) {
        let row: serde_json::Value = serde_json::from_str(row).unwrap();
        let prompt = format!("{}?", row["q"].as_str().unwrap());
        let choices: Vec<&str> =
            row["options"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
        let sum = |choice: &&str| -> f64 {
            let logs = by_hand(&model, &format!("{prompt} {choice}"));
            logs[prompt.len() - 1..].iter().sum()
        };
        let sums: Vec<f64> = choices.iter().map(sum).collect();
        let norms: Vec<f64> =
            sums.iter().zip(&choices).map(|(sum, choice)| sum / choice.len() as f64).collect();
        hits[0] += f64::from(u8::from(best(&sums) == right));
        hits[1] += f64::from(u8::from(best(&norms) == right));
    }
    assert_eq!([score(&outcome, "acc"), score(&outcome, "acc_norm")], hits.map(|hits| hits / 4.0));
    // Neither is right by accident: they differ, and neither is all or nothing.
    assert!(hits[0] != hits[1] || (hits[0] > 0.0 && hits[0] < 4.0), "{hits:?}");
    let mut subject = Subject::new(tiny(), "tiny".as_ref(), host(), 3).unwrap();
    let asked = ["is it? ta ta", "go? a", "bad? fish on a tree", "stop?"];
    let tokens: Vec<_> =
        asked.iter().map(|text| subject.tokenizer().unwrap().encode(text).unwrap()).collect();
    for (text, logs) in asked.iter().zip(subject.logs(&tokens).unwrap()) {
        let expected = by_hand(&model, text);
        assert_eq!(logs.len(), expected.len());
        logs.iter()
            .zip(expected)
            .for_each(|(got, expected)| assert!((got - expected).abs() < 1e-4, "{text}"));
    }
}

#[test]
fn examples_stand_before_a_question_and_never_its_own_answer() {
    let shots = format!("{CHOOSE}shots = 2\nseparator = \"|\"\n");
    let read = |seed: u64| {
        task(&[("task.toml", &format!("{shots}seed = {seed}\n")), ("q.jsonl", QUESTIONS)]).unwrap()
    };
    let known = ["bad? fish on a tree", "is it? ta ta", "go? north", "stop? s"];
    let prompts =
        |task: &Task| -> Vec<String> { task.examples.rows.iter().map(|row| row.prompt.clone()).collect() };
    for (number, prompt) in prompts(&read(1)).iter().enumerate() {
        let parts: Vec<&str> = prompt.split('|').collect();
        assert_eq!(parts.len(), 3, "{prompt}");
        let solved = |part: &&str| known.iter().position(|known| known == part).unwrap();
        let used: Vec<usize> = parts[..2].iter().map(solved).collect();
        assert!(used[0] != used[1] && !used.contains(&number), "{prompt}");
        assert!(known[number].starts_with(parts[2]), "{prompt}");
    }
    assert_eq!(prompts(&read(1)), prompts(&read(1)));
    assert_ne!(prompts(&read(1)), prompts(&read(2)));
}

#[test]
fn perplexity_of_overlapping_windows_is_that_of_their_scores() {
    let text = "go on and see it on a tree\nbad fish is not good on a tree\n";
    let says = "kind = \"perplexity\"\ndata = \"t.txt\"\nwindow = 16\nstride = 4\n";
    let task = self::task(&[("task.toml", says), ("t.txt", text)]).unwrap();
    let outcome = task.put_to(tiny(), "tiny".as_ref(), host(), 3).unwrap();
    let (model, mut sum, mut end) = (tiny(), 0.0, 0);
    for begin in (0..text.len()).step_by(4) {
        let until = text.len().min(begin + 16);
        let logs = by_hand(&model, &text[begin..until]);
        sum -= logs[(end.max(begin + 1) - begin - 1)..].iter().sum::<f64>();
        end = until;
        if end == text.len() {
            break;
        }
    }
    let expected = sum / (text.len() - 1) as f64;
    assert!((score(&outcome, "loss") - expected).abs() < 1e-5);
    assert!((score(&outcome, "perplexity") - expected.exp()).abs() < 1e-3);
    // A byte a character.
    assert!((score(&outcome, "bits_per_byte") - expected / std::f64::consts::LN_2).abs() < 1e-5);
    let wide = says.replace("window = 16", "window = 99");
    let too_wide = self::task(&[("task.toml", &wide), ("t.txt", text)]).unwrap();
    let refused = too_wide.put_to(tiny(), "tiny".as_ref(), host(), 3);
    assert!(matches!(refused, Err(Error::Setting { setting: "window", .. })));
}

#[test]
fn a_task_that_cannot_be_put_is_refused_by_its_line() {
    let of = |says: &str, rows: &str| match task(&[("task.toml", says), ("q.jsonl", rows)]) {
        Ok(_) => panic!("{says} was taken"),
        Err(error) => error,
    };
    let said = |says: &str, rows: &str| of(says, rows).to_string();
    assert!(said(&CHOOSE.replace("multiple-choice", "riddles"), QUESTIONS).contains("riddles"));
    assert!(said(&CHOOSE.replace("choices =", "chocies ="), QUESTIONS).contains("chocies"));
    assert!(said(&CHOOSE.replace("choices = \"options\"\n", ""), QUESTIONS).contains("`choices` is missing"));
    let refused = of(&CHOOSE.replace("\"options\"", "\"choice\""), QUESTIONS);
    assert!(
        matches!(refused, Error::Row { line: 1, .. })
            && refused.to_string().contains("no `choice`, only q, options, right")
    );
    let refused = of(&CHOOSE.replace("{{ q }}", "{{ question }}"), QUESTIONS);
    assert!(matches!(refused, Error::Row { line: 1, hint: "prompt", .. }), "{refused}");
    for answer in ["3", "\"D\"", "\"fish\"", "-1"] {
        let rows =
            format!("{QUESTIONS}{{\"q\": \"x\", \"options\": [\"a\", \"b\", \"c\"], \"right\": {answer}}}\n");
        let refused = of(CHOOSE, &rows);
        assert!(matches!(refused, Error::Answer { line: 5, choices: 3, .. }), "{refused}");
    }
    assert!(matches!(of(CHOOSE, "\n"), Error::Data(crate::data::Error::Empty { .. })));
    assert!(matches!(
        of(&format!("{CHOOSE}shots = 4\n"), QUESTIONS),
        Error::Setting { setting: "shots", .. }
    ));
    assert!(
        said("kind = \"perplexity\"\ndata = \"q.jsonl\"\nwindow = 4\nstride = 9\n", QUESTIONS)
            .contains("stride is 9")
    );
    assert!(matches!(task(&[]), Err(Error::File { .. })));
}

#[test]
fn texts_written_side_by_side_are_those_of_one_prompt_at_a_time() {
    // The last one is longer than the context of 40, and all of them fill it as they are written.
    let rows =
        ["go", "is it", "bad fish on a tree", "a", "stop on a tree and see it on a tree and go home no"];
    let rows: String = rows.iter().map(|q| format!("{{\"q\": \"{q}\", \"reference\": \"a\"}}\n")).collect();
    let says = "kind = \"generation\"\ndata = \"q.jsonl\"\nprompt = \"{{ q }}\"\nmax_new_tokens = 50\n";
    let mut stopped = 0;
    for stop in ["", "stop = [\"t\", \"g\"]\n"] {
        let task = self::task(&[("task.toml", &format!("{says}{stop}")), ("q.jsonl", &rows)]).unwrap();
        let mut alone = vec![];
        for row in &task.examples.rows {
            let tokenizer = Tokenizer::characters(LETTERS);
            let ids = tokenizer.encode(&row.prompt).unwrap();
            let mut writer = crate::generate::Writer::with(tiny(), &host(), ids.len() + 50).unwrap();
            let (mut seen, mut text) = (vec![], String::new());
            let see = &mut |token| {
                seen.push(token);
                text = tokenizer.decode(&seen).unwrap();
                let end = task.file.stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
                end.inspect(|&at| text.truncate(at)).is_none()
            };
            writer.continue_ids(&ids, 50, &crate::generate::Sampling::greedy(), see).unwrap();
            stopped += usize::from(seen.len() < 50);
            alone.push(text.trim().to_string());
        }
        for batch in [1, 2, 8] {
            let (answers, _) = write::write(&task, tiny(), "tiny".as_ref(), &host(), batch).unwrap();
            let texts: Vec<String> = answers.into_iter().map(|answer| answer.text).collect();
            assert_eq!(texts, alone, "{batch} at once, {stop}");
        }
    }
    assert!(stopped > 0, "no text was stopped");
}

#[test]
fn counted_runs_find_texts_as_likely_as_their_own_loss_says() {
    let text = "go on and see it on a tree\nbad fish is not good on a tree\n";
    let says = "kind = \"perplexity\"\ndata = \"t.txt\"\nwindow = 100\n";
    let task = self::task(&[("task.toml", says), ("t.txt", text)]).unwrap();
    let tokenizer = Tokenizer::characters(LETTERS);
    let tokens = tokenizer.encode(text).unwrap();
    let counted =
        Model::train(&tokens, LETTERS.len(), 3, crate::ngram::Smoothing::ModifiedKneserNey).unwrap();
    let expected = counted.loss(&tokens).unwrap().0;
    let outcome = task.put_to_counted(counted, tokenizer, "counted".as_ref()).unwrap();
    assert!((score(&outcome, "loss") - expected).abs() < 1e-12);
}
