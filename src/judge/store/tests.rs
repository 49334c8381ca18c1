use super::*;
use crate::judge::{Contestant, Prompt, Verdict, report};

fn contest(prompts: usize) -> Contest {
    let one = |name: &str| Contestant { name: name.into(), source: name.into(), digest: None };
    let prompt = |at: usize| Prompt { key: at.to_string(), text: format!("question {at}") };
    Contest {
        settings: serde_json::Map::new(),
        order_seed: 3,
        contestants: vec![one("a"), one("b")],
        prompts: (0..prompts).map(prompt).collect(),
    }
}

fn answered(path: &Path, prompts: usize) -> Store {
    let store = Store::open(path, &contest(prompts)).unwrap();
    for prompt in 0..prompts {
        for (model, name) in ["a", "b"].into_iter().enumerate() {
            store.keep_answer(prompt, model, &format!("{name} {prompt}")).unwrap();
        }
    }
    store
}

#[test]
fn what_was_undone_does_not_count_and_is_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = answered(&folder.path().join("j"), 3);
    let (rater, _) = store.enter("anna").unwrap();
    assert!(matches!(store.undo(rater), Err(Error::NothingToUndo)));
    let first = store.rating(rater).unwrap().shown.unwrap();
    store.judge(rater, first.item, Verdict::Left, "why", 5).unwrap();
    store.undo(rater).unwrap();
    let again = store.rating(rater).unwrap();
    assert_eq!((again.shown.as_ref(), again.done, again.comment.as_str()), (Some(&first), 0, "why"));
    assert!(store.judgements().unwrap().is_empty());
    store.judge(rater, first.item, Verdict::Bad, "", 5).unwrap();
    let rows: i64 =
        store.connection.query_row("SELECT count(*) FROM judgements", [], |row| row.get(0)).unwrap();
    assert_eq!((rows, store.judgements().unwrap().len()), (2, 1));
}

#[test]
fn writes_wait_for_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = answered(&folder.path().join("j"), 1);
    let mode: String = store.connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    let synchronous: i64 = store.connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
    assert_eq!((mode.as_str(), synchronous), ("wal", 2));
}

#[test]
fn a_database_of_another_program_is_refused_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("j");
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE things (x); PRAGMA application_id = 7;").unwrap();
    drop(other);
    let before = fs::read(&path).unwrap();
    for error in [Store::open(&path, &contest(1)).err(), Store::read(&path).err(), Store::reopen(&path).err()]
    {
        let said = error.expect("it is refused").to_string();
        assert!(said.contains("another program"), "{said}");
    }
    assert_eq!(fs::read(&path).unwrap(), before);
    // A version that this program does not know.
    let path = folder.path().join("newer");
    let newer = answered(&path, 1);
    newer.connection.pragma_update(None, "user_version", 9).unwrap();
    drop(newer);
    let said = Store::read(&path).err().expect("it is refused").to_string();
    assert!(said.contains("version 9"), "{said}");
}

#[test]
fn another_programs_lock_is_waited_for_and_then_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("j");
    let mut store = answered(&path, 2);
    let (rater, _) = store.enter("anna").unwrap();
    let item = store.rating(rater).unwrap().shown.unwrap().item;
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    store.connection.busy_timeout(Duration::from_millis(50)).unwrap();
    assert!(matches!(store.judge(rater, item, Verdict::Tie, "", 0), Err(Error::Busy { .. })));
    other.execute_batch("ROLLBACK").unwrap();
    store.judge(rater, item, Verdict::Tie, "", 0).unwrap();
}

#[test]
fn counts_of_known_judgements_are_those_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = answered(&folder.path().join("j"), 5);
    // By prompt: anna says a, b, tie, bad, skip; bert says a, a, tie, tie, b.
    for (name, said) in [("anna", ["a", "b", "tie", "bad", "skip"]), ("bert", ["a", "a", "tie", "tie", "b"])]
    {
        let (rater, _) = store.enter(name).unwrap();
        while let Some(shown) = store.rating(rater).unwrap().shown {
            let number: usize = shown.prompt.strip_prefix("question ").unwrap().parse().unwrap();
            let verdict = match said[number] {
                model if shown.left.starts_with(model) => Verdict::Left,
                model if shown.right.starts_with(model) => Verdict::Right,
                other => Verdict::named(other).unwrap(),
            };
            store.judge(rater, shown.item, verdict, "a \"b\",\nc", 1500).unwrap();
        }
    }
    let report = report(&store).unwrap();
    let pair = &report.pairs[0];
    assert_eq!([pair.a_wins, pair.b_wins, pair.ties, pair.both_bad, pair.skipped], [3, 2, 3, 1, 1]);
    // (3 + 4 halves) of 9; odds of 5 to 4.
    assert!((pair.win_rate_a.value.unwrap() - 5.0 / 9.0).abs() < 1e-12);
    assert!((report.scores[0].score.unwrap() - 1.25_f64.ln() / 2.0).abs() < 1e-9);
    // Four prompts judged by both, two alike. Chance: anna a b tie bad a quarter each, bert a 1/2, tie 1/2: 1/4.
    let agreement = &report.agreement;
    assert_eq!((agreement.pairs, agreement.share), (4, Some(0.5)));
    assert!((agreement.cohen_kappa.unwrap() - (0.5 - 0.25) / 0.75).abs() < 1e-12);
    // Labels a 3, b 1, tie 3, bad 1 of 8: 1 - 7 * 4 / (3*5 + 1*7 + 3*5 + 1*7).
    assert!((agreement.krippendorff_alpha.unwrap() - (1.0 - 28.0 / 44.0)).abs() < 1e-12);
    assert_eq!(report.position.left + report.position.right, 5);
    assert_eq!(report.raters[0].median_seconds, Some(1.5));
    let csv = report::csv(&store).unwrap();
    assert!(csv.contains(",\"a \"\"b\"\",\nc\",1.500,"), "{csv}");
}
