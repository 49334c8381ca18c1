//! Templates against what transformers makes of them: `kernels-tests/golden/chats`.

use super::*;
use crate::data::Error;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

fn special() -> BTreeMap<String, String> {
    [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(key, token)| (key.into(), token.into())).into()
}

fn date() -> Date {
    "2024-07-26".parse().unwrap()
}

fn file(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/golden/chats");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

fn template(name: &str) -> Template {
    Template::new(name, &file(name), special(), date()).unwrap()
}

#[test]
fn templates_write_what_transformers_writes_and_refuse_what_it_refuses() {
    let expected: Value = serde_json::from_str(&file("expected.json")).unwrap();
    let cases = expected["cases"].as_array().unwrap();
    let mut refused = 0;
    for case in cases {
        let (name, chat) = (case["template"].as_str().unwrap(), case["chat"].as_str().unwrap());
        let messages = expected["chats"][chat].as_array().unwrap();
        let written = template(name).render(messages, case["opened"] == true);
        match (&case["text"], written) {
            (Value::String(text), Ok(written)) => assert_eq!(&written, text, "{name}, {chat}"),
            (Value::Object(_), Err(error)) => {
                refused += 1;
                let told = error.to_string();
                assert!(told.starts_with(&format!("chat template {name}, line ")), "{told}");
                // What the template itself says comes through.
                let theirs = case["text"]["error"].as_str().unwrap();
                if let Some(reason) = theirs.strip_prefix("TemplateError: ") {
                    assert!(told.contains(reason), "{told}");
                }
            }
            (theirs, ours) => panic!("{name}, {chat}: expected {theirs}, got {ours:?}"),
        }
    }
    assert_eq!((cases.len(), refused), (70, 12));
}

#[test]
fn answers_are_where_templates_mark_them() {
    let expected: Value = serde_json::from_str(&file("expected.json")).unwrap();
    let marked = |case: &&Value| case["answers"].is_array() && case["opened"] == false;
    for case in expected["cases"].as_array().unwrap().iter().filter(marked) {
        let messages = expected["chats"][case["chat"].as_str().unwrap()].as_array().unwrap();
        let Rendered { text, answers } = template("marked.jinja").conversation(messages, 0).unwrap();
        assert_eq!(text, case["text"]);
        let found: Vec<&str> = answers.into_iter().map(|range| &text[range]).collect();
        assert_eq!(json!(found), case["answers"]);
    }
}

#[test]
fn elsewhere_answers_are_what_is_written_behind_the_prompt() {
    let say = |role: &str, content: &str| json!({ "role": role, "content": content });
    let all = [say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d")];
    for (name, expected) in [
        ("chatml.jinja", ["b<|im_end|>\n", "d<|im_end|>\n"]),
        ("llama-2.jinja", [" b </s>", " d </s>"]),
        ("llama-3.jinja", ["b<|eot_id|>", "d<|eot_id|>"]),
        ("mistral.jinja", [" b</s>", " d</s>"]),
        ("zephyr.jinja", ["b</s>\n", "d</s>\n"]),
        ("marked.jinja", ["b</s>", "d</s>"]),
    ] {
        let found = |first| {
            let Rendered { text, answers } = template(name).conversation(&all, first).unwrap();
            answers.into_iter().map(|range| text[range].to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found(0), expected, "{name}");
        assert_eq!(found(3), expected[1..], "{name}: answers of the prompt are not learnt");
    }
}

#[test]
fn a_template_that_rewrites_what_was_said_is_refused() {
    // The rules move to the last question: what stood before the first answer is gone once there is a second.
    let say = |role: &str, content: &str| json!({ "role": role, "content": content });
    let all = [
        say("system", "r"),
        say("user", "a"),
        say("assistant", "b"),
        say("user", "c"),
        say("assistant", "d"),
    ];
    let error = template("mistral.jinja").conversation(&all, 0).unwrap_err().to_string();
    assert!(error.contains("writes earlier turns otherwise") && error.contains("hint"), "{error}");
}

#[test]
fn a_template_that_is_none_is_refused_with_its_line() {
    let error = Template::new("t.jinja", "a\n{% if x %}\n{% endfor %}", special(), date()).unwrap_err();
    let Error::Template { name, line, .. } = &error else { panic!("{error}") };
    assert_eq!((name.as_str(), line.as_str()), ("t.jinja", ", line 3"));
    for source in
        ["{{ nothing.at_all }}", "{{ messages.shout() }}", "{{ 'a' | loud }}", "{{ strftime_now('%q') }}"]
    {
        let error = Template::new("t.jinja", source, special(), date()).and_then(|t| t.render(&[], false));
        assert!(matches!(error, Err(Error::Template { .. })), "{source}");
    }
}

#[test]
fn a_folder_gives_its_template_and_its_special_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let render = || {
        let template = Template::of_folder(folder.path(), date()).unwrap().unwrap();
        template.render(&[json!({"role": "user", "content": "x"})], false).unwrap()
    };
    assert!(Template::of_folder(folder.path(), date()).unwrap().is_none());
    write(
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "<e>", "lstrip": false}, "bos_token": "<b>"}"#,
    );
    assert!(Template::of_folder(folder.path(), date()).unwrap().is_none());
    write("special_tokens_map.json", r#"{"eos_token": "<old>", "pad_token": {"content": "<p>"}}"#);
    write(
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "<e>"}, "chat_template": [{"name": "tools", "template": "no"},
            {"name": "default", "template": "{{ eos_token }}{{ pad_token }}{{ messages[0].content }}"}]}"#,
    );
    assert_eq!(render(), "<e><p>x");
    write("chat_template.jinja", "{{ messages[0]['content'] * 2 }}");
    assert_eq!(render(), "xx");
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    write("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": ""}]}"#);
    let error = Template::of_folder(folder.path(), date()).unwrap_err().to_string();
    assert!(error.contains("`default`") && error.contains("rag"), "{error}");
    let error = Template::named("no.jinja", None, date()).unwrap_err().to_string();
    assert!(error.contains("no.jinja") && error.contains("chatml"), "{error}");
}
