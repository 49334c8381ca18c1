//! `kiln chat`: answers to what is said, orders, conversations that are kept, and what has learned none.

use super::{Bench, Done, done};
use std::io::Write;
use std::process::Stdio;

/// A model that has learned to answer everything with the same word.
fn trained() -> Bench {
    let bench = Bench::new();
    let line = |i: usize| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"is {i} so?\"}}, {{\"role\": \"assistant\", \"content\": \"yes.\"}}]}}\n"
        )
    };
    bench.write("chats.jsonl", (0..40).map(line).collect::<String>());
    bench.write(
        "chat.toml",
        "[model]\nlayers = 1\nheads = 2\nwidth = 32\ncontext = 128\n\
         [data]\nchats = [\"chats.jsonl\"]\ntemplate = \"chatml\"\n\
         [train]\nsteps = 120\nbatch = 8\ncontext = 128\nevaluate = { every = 120, batches = 1 }\n\
         learning_rate = { curve = \"constant\", peak = 1e-2 }\n[run]\nfolder = \"run\"\n",
    );
    bench.kiln(&["train", "chat.toml", "--device", "cpu"]).fine();
    bench
}

fn said(bench: &Bench, arguments: &[&str], lines: &str) -> Done {
    let mut command = bench.command(&[&["chat", "run", "--device", "cpu"], arguments].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    done(child.wait_with_output().unwrap())
}

#[test]
fn what_is_said_is_answered_in_the_template_of_the_model_and_orders_are_obeyed() {
    let bench = trained();
    let talk = said(&bench, &[], "is 7 so?\nis 3 so?\n/save kept.jsonl\n/undo\n/show\n").fine();
    assert_eq!(talk.out, "yes.\nyes.\n", "{}", talk.err);
    assert!(talk.err.contains("4 messages are written") && talk.err.contains("taken back"), "{}", talk.err);
    assert_eq!(talk.err.matches("user: is ").count(), 1, "{}", talk.err);
    let kept = std::fs::read_to_string(bench.path("kept.jsonl")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept["messages"][3]["content"], "yes.");

    // Kept conversations are gone on with, appended to what is there, and are data to learn from.
    let more = said(&bench, &[], "/load kept.jsonl\n/retry\n/clear\nis 1 \\\nso?\n/save kept.jsonl\n").fine();
    assert_eq!(more.out, "yes.\nyes.\n", "{}", more.err);
    assert_eq!(std::fs::read_to_string(bench.path("kept.jsonl")).unwrap().lines().count(), 2);
    let set =
        ["--set", "data.chats=[\"kept.jsonl\"]", "--set", "data.validation=0.5", "--set", "train.steps=1"];
    bench.kiln(&[&["train", "chat.toml", "--device", "cpu", "--out", "again"], &set[..]].concat()).fine();
}

#[test]
fn turns_that_have_no_room_are_left_out_and_what_cannot_be_answered_is_told() {
    let bench = trained();
    let long = "is 7 so? is 7 so? is 7 so?\n".repeat(3);
    let talk = said(&bench, &["--max-new-tokens", "9"], &long).fine();
    assert_eq!(talk.out.lines().count(), 3, "{}", talk.err);
    assert!(talk.err.contains("of the oldest messages were left out"), "{}", talk.err);

    let orders = "/set temperature -1\n/set height 3\n/jump\n/load nothing.jsonl\n/show\n";
    let talk = said(&bench, &["--system", "so"], orders).fine();
    for part in ["temperature", "height", "no order /jump", "nothing.jsonl", "system: so", "seed 0"] {
        assert!(talk.err.contains(part), "{part}: {}", talk.err);
    }
    assert!(talk.out.is_empty());
    said(&bench, &[], &"is 7 so? ".repeat(40)).refused(2, &["there is room for", "fewer words"]);
    said(&bench, &["--num-beams", "2"], "").refused(2, &["--num-beams"]);

    bench.train(&["--out", "plain"]).fine();
    bench.kiln(&["chat", "plain", "--device", "cpu"]).refused(2, &["no chat template", "--template chatml"]);
}

#[test]
fn a_question_is_put_behind_passages_that_are_listed_behind_the_answer() {
    let bench = trained();
    std::fs::create_dir(bench.path("notes")).unwrap();
    bench.write("notes/a", "is 5 so? yes.\n");
    let masked = "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 32\n[data]\ntext = [\"masked.txt\"]\n\
                  [train]\nsteps = 1\nbatch = 2\ncontext = 16\n[run]\nfolder = \"encoder\"\n";
    bench.write("encoder.toml", masked);
    bench.write("masked.txt", "is 5 so? yes.\n".repeat(60));
    bench.kiln(&["train", "encoder.toml", "--device", "cpu"]).fine();
    let cache = bench.path("cache");
    let mut command = bench.command(&["chat", "run", "--device", "cpu", "--retrieve", "notes"]);
    command.args(["--retrieve-encoder", "encoder", "--max-new-tokens", "5"]).env("KILN_CACHE", cache);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"is 5 so?\n/show\n").unwrap();
    let talk = done(child.wait_with_output().unwrap());
    // The template's characters are known to the model, those of what is asked of an assistant are not: nothing is put before.
    assert!(talk.err.contains("passages dropped: 1 because the model has no tokens"), "{}", talk.err);
    assert!(talk.fine().out.starts_with("yes."));
}
