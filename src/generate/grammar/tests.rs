use super::*;
use crate::data::tokenizer::Tokenizer;
use crate::deploy::Deployment;
use crate::generate::tests::{lively, with_vocabulary};
use crate::generate::{Beams, CausalRows, Finish, Request, Room, Session, Settings, Sought, search};
use crate::train::Target;

const CONTEXT: usize = 160;

/// Every byte is a token, with a few of several bytes.
fn tokenizer() -> Tokenizer {
    let text = r#"{"name": "é 日", "name": "é", "tags": ["a", "b"], "name": "é 日"}"#;
    Tokenizer::train_byte_pair(&text.repeat(3), 290).unwrap()
}

/// A model that knows nothing of JSON, for so many texts at once.
fn session(tokenizer: &Tokenizer, rows: usize) -> Session {
    let family = with_vocabulary(CONTEXT, tokenizer.vocabulary_size());
    let weights = lively(&*family);
    let room = Room { rows, tokens: CONTEXT };
    let rows = CausalRows::new(&*family, &Deployment::new(&weights), &Target::Host, room).unwrap();
    Session::new(Box::new(rows), Some(Arc::new(tokenizer.clone())))
}

fn one_of(json: &Json, names: &[&str]) -> bool {
    names.iter().any(|name| json == name)
}

fn within(json: &Json, least: f64, most: f64) -> bool {
    json.as_f64().is_some_and(|number| (least..=most).contains(&number))
}

fn letters(json: &Json, least: usize, most: usize) -> bool {
    json.as_str().is_some_and(|text| (least..=most).contains(&text.chars().count()))
}

type Valid = fn(&Json) -> bool;

/// Schemas, each with what is valid by it.
fn schemas() -> Vec<(Json, Valid)> {
    vec![
        (
            json!({
                "type": "object",
                "properties": {
                    "name": { "type": "string", "minLength": 1, "maxLength": 4 },
                    "kind": { "enum": ["é日", "日本\n", "\"quoted\\", 7] },
                    "note": { "type": "string", "maxLength": 3 },
                },
                "required": ["name", "kind"],
                "additionalProperties": false,
            }),
            |json| {
                let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
                letters(&json["name"], 1, 4)
                    && (one_of(&json["kind"], &["é日", "日本\n", "\"quoted\\"]) || json["kind"] == 7)
                    && (json["note"].is_null() || letters(&json["note"], 0, 3))
                    && keys.iter().all(|key| ["name", "kind", "note"].contains(key))
            },
        ),
        (
            json!({
                "type": "array",
                "items": { "type": "integer", "minimum": -3, "maximum": 120 },
                "minItems": 2,
                "maxItems": 5,
            }),
            |json| {
                let items = json.as_array().unwrap();
                (2..=5).contains(&items.len())
                    && items.iter().all(|item| item.is_i64() && within(item, -3.0, 120.0))
            },
        ),
        (
            json!({
                "type": "object",
                "properties": {
                    "at": {
                        "type": "object",
                        "properties": {
                            "x": { "type": "number", "minimum": 0, "exclusiveMaximum": 1 },
                            "on": { "type": ["boolean", "null"] },
                        },
                        "required": ["x", "on"],
                        "additionalProperties": false,
                    },
                    "more": { "type": "array", "items": { "$ref": "#/$defs/part" }, "minItems": 1, "maxItems": 2 },
                },
                "required": ["at", "more"],
                "additionalProperties": false,
                "$defs": { "part": { "anyOf": [{ "const": "日" }, { "type": "array", "maxItems": 0 }] } },
            }),
            |json| {
                let x = &json["at"]["x"];
                let on = &json["at"]["on"];
                let part = |part: &Json| part == "日" || *part == json!([]);
                within(x, 0.0, 1.0)
                    && *x != 1.0
                    && (on.is_boolean() || on.is_null())
                    && json["more"].as_array().is_some_and(|more| !more.is_empty() && more.iter().all(part))
            },
        ),
    ]
}

#[test]
fn a_text_that_ends_by_itself_is_json_that_is_valid_by_its_schema() {
    let tokenizer = tokenizer();
    let spelling = Spelling::of(&tokenizer).unwrap();
    let mut session = session(&tokenizer, 3);
    for (schema, is_valid) in schemas() {
        let grammar = Some(Arc::new(Grammar::schema(&schema, &spelling).unwrap()));
        let mut written = std::collections::BTreeMap::<_, (String, Option<Finish>)>::new();
        for seed in 0..5 {
            let grammar = grammar.clone();
            let settings =
                Settings { do_sample: true, temperature: 0.7, seed, grammar, ..Settings::greedy(120) };
            session.admit(Request::new(vec![5, 9], settings)).unwrap();
        }
        while !session.is_idle() {
            for event in session.step().unwrap() {
                let text = written.entry(event.ticket).or_default();
                text.0 += &event.text;
                text.1 = event.finish;
            }
        }
        let ended = |text: &&(String, Option<Finish>)| text.1 == Some(Finish::Complete);
        assert!(written.values().filter(ended).count() >= 4, "{schema}: {written:?}");
        for (text, _) in written.values().filter(ended) {
            let json: Json = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(is_valid(&json), "{schema}: {text}");
        }
        let different: std::collections::BTreeSet<&String> = written.values().map(|(text, _)| text).collect();
        assert!(different.len() > 1, "{written:?}");
    }
}

#[test]
fn beams_keep_to_a_schema_and_an_end_stands_only_behind_a_whole_text() {
    let tokenizer = tokenizer();
    let spelling = Spelling::of(&tokenizer).unwrap();
    let mut session = session(&tokenizer, 3);
    let (schema, is_valid) = schemas().swap_remove(1);
    let grammar = Grammar::schema(&schema, &spelling).unwrap();
    let end = tokenizer.encode("z").unwrap()[0];
    let settings = Settings { grammar: Some(Arc::new(grammar)), ends: vec![end], ..Settings::greedy(60) };
    let sought = [Sought { prompt: &[5, 9], row: 0, stream: 0 }];
    let found = search(session.rows(), &sought, &settings, &Beams::of(3), None).unwrap();
    let ids = &found[0][0].ids[2..];
    let text = tokenizer.decode(ids.strip_suffix(&[end]).unwrap_or(ids)).unwrap();
    assert!(is_valid(&serde_json::from_str(&text).unwrap()), "{text}");

    let number = Grammar::schema(&json!({ "type": "integer" }), &spelling).unwrap();
    let may_end = |text: &str| {
        let mut scores = vec![0.0; tokenizer.vocabulary_size()];
        number.restrict(&mut scores, &tokenizer.encode(text).unwrap(), &[end]);
        scores[end as usize] == 0.0
    };
    assert_eq!(["", "-", "4", "-40"].map(may_end), [false, false, true, true]);
}

#[test]
fn what_may_follow_a_text_does_not_depend_on_what_was_asked_before() {
    let tokenizer = tokenizer();
    let spelling = Spelling::of(&tokenizer).unwrap();
    let schema = json!({ "type": "array", "items": { "type": "string", "maxLength": 9 } });
    let asked = Grammar::schema(&schema, &spelling).unwrap();
    let texts: Vec<Vec<u32>> =
        (0..90).map(|i| tokenizer.encode(&format!("[\"{}\", \"日{}", i % 7, i)).unwrap()).collect();
    // Back and forth, with more texts than readers are kept of, wrong ones between, and each cut off somewhere.
    for (number, text) in texts.iter().enumerate() {
        let cut = &text[..text.len() - number % 5];
        let expected = Grammar::schema(&schema, &spelling).unwrap().open(cut);
        assert_eq!(asked.open(cut), expected, "{number}");
        assert!(!asked.matches(cut));
        let wrong = [cut, &tokenizer.encode("\u{1}").unwrap()].concat();
        assert!(!asked.is_open(&wrong, &[3]) && asked.is_open(cut, &[]), "{number}");
    }
    assert!(asked.matches(&tokenizer.encode("[ \"a\",\n  \"é\" ]").unwrap()));
}

#[test]
fn a_text_is_stuck_where_what_must_come_is_banned_and_complete_where_it_is_whole() {
    let tokenizer = tokenizer();
    let spelling = Spelling::of(&tokenizer).unwrap();
    let mut session = session(&tokenizer, 1);
    let grammar = Arc::new(Grammar::schema(&json!({ "const": "ab" }), &spelling).unwrap());
    let mut finish = |bad_words: Vec<Vec<u32>>| {
        let settings = Settings { grammar: Some(grammar.clone()), bad_words, ..Settings::greedy(9) };
        session.admit(Request::new(vec![5, 9], settings)).unwrap();
        let mut text = String::new();
        loop {
            for event in session.step().unwrap() {
                text += &event.text;
                if let Some(finish) = event.finish {
                    return (text, finish);
                }
            }
        }
    };
    assert_eq!(finish(vec![]), ("\"ab\"".into(), Finish::Complete));
    let with_b = (0..tokenizer.vocabulary_size() as u32)
        .filter(|id| tokenizer.decode(&[*id]).is_ok_and(|text| text.contains('b')));
    let (text, how) = finish(with_b.map(|id| vec![id]).collect());
    assert_eq!((text.as_str(), how), ("\"a", Finish::Stuck));
}

#[test]
fn a_bad_schema_is_refused_with_its_place_and_reason() {
    let spelling = Spelling::of(&tokenizer()).unwrap();
    let refused = |schema: Json| match Grammar::schema(&schema, &spelling) {
        Err(Error::Schema { reason }) => reason,
        other => panic!("{schema}: {other:?}"),
    };
    for (schema, part) in [
        (json!({ "type": "strin" }), "strin"),
        (json!(7), "schema"),
        (json!(false), "nsatisfiable"),
        (json!({ "type": "string", "minLength": 5, "maxLength": 3 }), "nsatisfiable"),
        (json!({ "type": "integer", "minimum": 3, "maximum": 2 }), "nsatisfiable"),
        (json!({ "type": "array", "uniqueItems": true }), "uniqueItems"),
        (json!({ "properties": { "a": { "$ref": "#/$defs/none" } }, "required": ["a"] }), "none"),
        (json!({ "type": "string", "pattern": "a(b" }), "a(b"),
    ] {
        let reason = refused(schema.clone());
        assert!(reason.contains(part), "{schema}: {reason}");
    }
    // There is nothing to write a brace with.
    let letters = Spelling::of(&Tokenizer::characters("ab")).unwrap();
    assert!(!Grammar::json_object(&letters).unwrap().is_open(&[], &[0]));
}
