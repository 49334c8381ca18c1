//! `kiln judge` as raters meet it: by requests, and in a browser.
//!
//! The trials with a browser need chromium and chromedriver. Where there are none they are counted as ignored, unless
//! `KILN_REQUIRE_BROWSER=1`.

#[path = "judge/browser.rs"]
mod browser;
#[path = "judge/served.rs"]
mod served;

use browser::{Browser, Driver, ENTER, ESCAPE, LEFT, RIGHT};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use served::{Bench, CONTEST, HOSTILE, files};
use std::collections::BTreeSet;

type Check = fn() -> Result<(), Failed>;

const CHECKS: &[(&str, Check)] = &[
    ("a_killed_process_loses_no_judgement_and_answers_are_not_written_again", killed),
    ("sessions_end_only_by_an_explicit_takeover", taken_over),
    ("orders_are_kept_differ_between_raters_and_are_balanced", orders),
    ("a_locked_file_is_left_alone_while_results_are_read", locked),
    ("a_damaged_file_is_kept_aside_and_never_overwritten", damaged),
    ("files_of_others_and_of_other_contests_are_refused_with_what_differs", foreign),
    ("three_models_are_compared_and_counted", counted),
    ("models_write_their_answers_once", written),
    ("requests_from_elsewhere_and_nonsense_are_refused", nonsense),
];

const IN_BROWSER: &[(&str, Check)] = &[
    ("a_keyboard_is_enough_to_judge_every_pair", keyboard),
    ("a_reload_and_a_crash_in_mid_session_go_on_at_the_same_place", reloaded),
    ("two_raters_at_once_do_not_disturb_each_other_and_one_name_is_one_session", two_raters),
    ("hostile_answers_are_shown_and_never_run", hostile),
];

fn main() {
    let arguments = Arguments::from_args();
    let required = std::env::var("KILN_REQUIRE_BROWSER").as_deref() == Ok("1");
    let absent = browser::find("chromedriver").is_none() && !required;
    let trial = |ignored| {
        move |&(name, check): &(&'static str, Check)| Trial::test(name, check).with_ignored_flag(ignored)
    };
    let trials = CHECKS.iter().map(trial(false)).chain(IN_BROWSER.iter().map(trial(absent)));
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

#[track_caller]
fn same<T: PartialEq + std::fmt::Debug>(got: T, expected: T) -> Result<(), Failed> {
    let place = std::panic::Location::caller();
    if got == expected { Ok(()) } else { Err(format!("{place}: got {got:?}, expected {expected:?}").into()) }
}

#[track_caller]
fn ensure(fits: bool, what: impl std::fmt::Debug) -> Result<(), Failed> {
    let place = std::panic::Location::caller();
    if fits { Ok(()) } else { Err(format!("{place}: {what:?}").into()) }
}

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&CONTEST[..], more].concat()
}

fn killed() -> Result<(), Failed> {
    let bench = Bench::new(30)?;
    let served = bench.serve(&with(&["--port", "0"]))?;
    let (token, mut rating) = served.enter("anna")?;
    for _ in 0..20 {
        rating = served.judge(&token, &rating, "left")?;
    }
    let port = served.port().to_string();
    // No time to tidy up: what the last reply confirmed must be on the disk.
    served.kill()?;
    same(bench.results()?["judgements"].clone(), json!(20))?;
    let again = bench.serve(&["--port", &port])?;
    let (status, reply) = again.ask(&json!({ "do": "state", "token": token, "page": "2" }))?;
    same((status, &reply["rating"]), (200, &rating))?;
    // The reply to a judgement may be lost on the way: sent again it is the same one, not another.
    let shown = &rating["shown"]["item"];
    let request = json!({ "do": "judge", "token": token, "page": "2", "item": shown, "verdict": "tie" });
    let first = again.ask(&request)?;
    same(again.ask(&request)?, first)?;
    let other = json!({ "do": "judge", "token": token, "page": "2", "item": shown, "verdict": "left" });
    same(again.ask(&other)?.0, 409)?;
    same(bench.results()?["judgements"].clone(), json!(21))
}

fn taken_over() -> Result<(), Failed> {
    let bench = Bench::new(4)?;
    let served = bench.serve(&with(&["--port", "0"]))?;
    let (first, rating) = served.enter("anna")?;
    served.judge(&first, &rating, "tie")?;
    let (status, reply) = served.ask(&json!({ "do": "enter", "name": "  anna ", "page": "2" }))?;
    same((status, reply["kind"].as_str()), (409, Some("active")))?;
    let (status, reply) =
        served.ask(&json!({ "do": "enter", "name": "anna", "page": "2", "takeover": true }))?;
    same((status, &reply["rating"]["done"]), (200, &json!(1)))?;
    let (status, reply) = served.ask(&json!({ "do": "undo", "token": first, "page": "anna" }))?;
    same((status, reply["kind"].as_str()), (401, Some("ended")))?;
    // A page that was closed holds the name no longer.
    let (bert, _) = served.enter("bert")?;
    same(served.ask(&json!({ "do": "leave", "token": bert, "page": "bert" }))?.0, 200)?;
    served.enter("bert").map(drop)
}

fn orders() -> Result<(), Failed> {
    let bench = Bench::new(20)?;
    let served = bench.serve(&with(&["--port", "0"]))?;
    let mut seen = vec![];
    for name in ["anna", "bert"] {
        let (token, mut rating) = served.enter(name)?;
        let (mut questions, mut lefts) = (vec![], 0);
        while !rating["shown"].is_null() {
            questions.push(rating["shown"]["prompt"].to_string());
            lefts += usize::from(rating["shown"]["left"].as_str().is_some_and(|text| text.starts_with('a')));
            rating = served.judge(&token, &rating, "left")?;
        }
        same((questions.iter().collect::<BTreeSet<_>>().len(), lefts), (20, 10))?;
        seen.push(questions);
    }
    ensure(seen[0] != seen[1], "both raters saw the same order")?;
    // Each side was chosen as often: whoever always says left prefers nobody.
    let results = bench.results()?;
    same(results["pairs"][0]["win_rate_a"]["value"].clone(), json!(0.5))?;
    same(results["position"]["left"].clone(), json!(40))?;
    // The same seed gives the same order in another file.
    let other = Bench::new(20)?;
    let served = other.serve(&with(&["--port", "0"]))?;
    same(served.enter("anna")?.1["shown"]["prompt"].to_string(), seen[0][0].clone())
}

fn locked() -> Result<(), Failed> {
    let bench = Bench::new(3)?;
    let served = bench.serve(&with(&["--port", "0"]))?;
    let (token, rating) = served.enter("anna")?;
    bench.refused(&with(&["--port", "0"]), 1, &["judgements.sqlite is in use", "hint"])?;
    let rating = served.judge(&token, &rating, "right")?;
    same(bench.results()?["judgements"].clone(), json!(1))?;
    bench.refused(
        &with(&["--results", "other.sqlite", "--port", served.port()]),
        1,
        &[served.port(), "--port 0"],
    )?;
    served.judge(&token, &rating, "right").map(drop)
}

fn damaged() -> Result<(), Failed> {
    let bench = Bench::new(40)?;
    let judge = |count: usize| -> Result<(), Failed> {
        let served = bench.serve(&with(&["--port", "0"]))?;
        let (token, mut rating) = served.enter("anna")?;
        for _ in 0..count {
            rating = served.judge(&token, &rating, "left")?;
        }
        served.kill()
    };
    judge(3)?;
    // A start moves the log of a killed process into the file proper.
    judge(0)?;
    let file = bench.path("judgements.sqlite");
    let mut bytes = std::fs::read(&file)?;
    // Pages in the middle become noise; the head still says what it is.
    let length = bytes.len();
    bytes[200..].iter_mut().for_each(|byte| *byte = 0xa5);
    std::fs::write(&file, &bytes)?;
    for ending in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(bench.path(&format!("judgements.sqlite{ending}")));
    }
    bench.refused(&["results", "judgements.sqlite"], 1, &["judgements.sqlite is damaged"])?;
    same(std::fs::read(&file)?.len(), length)?;
    judge(2)?;
    ensure(bench.said()?.contains("corrupt-1"), bench.said()?)?;
    same(std::fs::read(bench.path("judgements.sqlite.corrupt-1"))?, bytes)?;
    same(bench.results()?["judgements"].clone(), json!(2))?;
    // A file of which nothing is left to be known by, but which was ours.
    std::fs::write(&file, "noise")?;
    bench.refused(&["--port", "0"], 1, &["judgements.sqlite is damaged", "corrupt-2"])?;
    same(files(bench.folder.path(), "judgements.sqlite.corrupt-2")?.is_empty(), false)?;
    same(std::fs::read(bench.path("judgements.sqlite.corrupt-2"))?, b"noise".to_vec())
}

fn foreign() -> Result<(), Failed> {
    let bench = Bench::new(3)?;
    bench.write("notes.txt", "not a database")?;
    bench.refused(
        &with(&["--results", "notes.txt"]),
        1,
        &["notes.txt is no results file", "no SQLite database"],
    )?;
    same(std::fs::read(bench.path("notes.txt"))?, b"not a database".to_vec())?;
    same(files(bench.folder.path(), "notes.txt")?.len(), 1)?;
    bench.refused(&["results", "notes.txt"], 1, &["no results file"])?;
    bench.refused(&["results", "absent.sqlite"], 1, &["absent.sqlite"])?;
    bench.refused(&["--results", "absent.sqlite"], 2, &["absent.sqlite", "hint"])?;
    bench.serve(&with(&["--port", "0"]))?.kill()?;
    let prompts = std::fs::read_to_string(bench.path("p.jsonl"))?;
    bench.write("p.jsonl", prompts.replace("question 1", "question one"))?;
    bench.refused(&with(&[]), 1, &["another contest", "prompt 2", "question one", "question 1"])?;
    bench.write("p.jsonl", prompts)?;
    let answers = std::fs::read_to_string(bench.path("b.jsonl"))?;
    bench.write("b.jsonl", answers.replace("b 2", "b two"))?;
    bench.refused(&with(&[]), 1, &["answer 3 of model b.jsonl", "b two"])?;
    bench.write("b.jsonl", &answers)?;
    bench.refused(&with(&["--order-seed", "7"]), 1, &["order-seed: 0 in the file, 7 given"])?;
    bench.write("c.jsonl", &answers)?;
    bench.refused(&with(&["--answers", "c=c.jsonl"]), 1, &["models: a.jsonl, b.jsonl in the file"])?;
    bench.write("b.jsonl", "{\"answer\": \"one\"}\n")?;
    bench.refused(&with(&[]), 2, &["1 answers", "3 prompts"])?;
    bench.refused(
        &["--answers-a", "a.jsonl", "--prompts", "p.jsonl", "--results", "new"],
        1,
        &["two models or more"],
    )?;
    let twice =
        ["--answers", "x=a.jsonl", "--answers", "x=a.jsonl", "--prompts", "p.jsonl", "--results", "new"];
    bench.refused(&twice, 1, &["two models have the name \"x\""])?;
    same(files(bench.folder.path(), "new")?.is_empty(), true)
}

fn counted() -> Result<(), Failed> {
    let bench = Bench::new(4)?;
    std::fs::copy(bench.path("a.jsonl"), bench.path("c.jsonl"))?;
    let served = bench.serve(&with(&["--answers", "c=c.jsonl", "--port", "0"]))?;
    for name in ["anna", "bert"] {
        let (token, mut rating) = served.enter(name)?;
        same(rating["total"].clone(), json!(12))?;
        while !rating["shown"].is_null() {
            // What begins with a b is better; of the same letters neither is.
            let starts =
                |side: &str| rating["shown"][side].as_str().is_some_and(|text| text.starts_with('b'));
            let verdict = match (starts("left"), starts("right")) {
                (true, _) => "left",
                (_, true) => "right",
                _ => "tie",
            };
            rating = served.judge(&token, &rating, verdict)?;
        }
    }
    let results = bench.results()?;
    let pair = &results["pairs"][0];
    same((&pair["a_wins"], &pair["b_wins"], &pair["ties"]), (&json!(0), &json!(8), &json!(0)))?;
    same(pair["win_rate_a"]["value"].clone(), json!(0.0))?;
    same(results["pairs"][1]["ties"].clone(), json!(8))?;
    // Of 24 judgements with the shares 4/24, 12/24, 8/24 both raters said the same each time.
    let agreement = &results["agreement"];
    same((&agreement["pairs"], &agreement["cohen_kappa"]), (&json!(12), &json!(1.0)))?;
    same(results["scores"][1]["score"].clone(), Value::Null)?;
    let text = String::from_utf8(bench.kiln(&["judge", "results", "judgements.sqlite"])?.stdout)?;
    ensure(text.contains("none is finite") && text.contains("24 judgements of 4 prompts by 2 raters"), text)
}

fn written() -> Result<(), Failed> {
    let bench = Bench::new(3)?;
    let text: String = (0..120).map(|i| format!("{i} sheep jump over the fence.\n")).collect();
    bench.write("text.txt", text)?;
    let recipe = "[model]\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 32\n[data]\ntext = [\"text.txt\"]\n[train]\nsteps = 3\nbatch = 4\ncontext = 16\nevaluate = { every = 3, batches = 2 }\n";
    bench.write("tiny.toml", recipe)?;
    for (folder, seed) in [("one", "train.seed=1"), ("two", "train.seed=2")] {
        let folder = format!("run.folder={folder}");
        let output =
            bench.kiln(&["train", "tiny.toml", "--device", "cpu", "--set", &folder, "--set", seed])?;
        ensure(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
    }
    bench.write(
        "p.jsonl",
        "{\"prompt\": \"7 sheep\", \"id\": \"seven\"}\n{\"prompt\": \"over the\", \"id\": \"over\"}\n",
    )?;
    let given = [
        "--a",
        "one",
        "--b",
        "two",
        "--prompts",
        "p.jsonl",
        "--device",
        "cpu",
        "--max-new-tokens",
        "8",
        "--do-sample",
    ];
    let start = |more: &[&'static str]| bench.serve(&[&given[..], &["--port", "0"], more].concat());
    let served = start(&[])?;
    ensure(bench.said()?.contains("one is to write 2 of 2"), bench.said()?)?;
    let (_, first) = served.enter("anna")?;
    let left = first["shown"]["left"].as_str().unwrap_or_default().to_string();
    same(left.chars().count(), 8)?;
    served.kill()?;
    let served = start(&[])?;
    ensure(!bench.said()?.contains("writes"), bench.said()?)?;
    same(served.enter("anna")?.1, first)?;
    served.kill()?;
    bench.refused(&[&given[..], &["--seed", "5"]].concat(), 1, &["seed: 0 in the file, 5 given"])?;
    bench.refused(&[&given[..], &["--num-beams", "2"]].concat(), 2, &["one answer"])?;
    // A model that was trained on under the same name is another one.
    std::fs::remove_dir_all(bench.path("one"))?;
    std::fs::rename(bench.path("two"), bench.path("one"))?;
    std::fs::create_dir(bench.path("two"))?;
    bench.refused(&given, 1, &["two"])?;
    let swapped =
        ["--a", "one", "--model", "two=one", "--prompts", "p.jsonl", "--max-new-tokens", "8", "--do-sample"];
    bench.refused(&swapped, 1, &["model one: its files have changed"])
}

fn nonsense() -> Result<(), Failed> {
    let bench = Bench::new(3)?;
    let served = bench.serve(&with(&["--port", "0"]))?;
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let elsewhere = agent.get(&served.url).header("host", "example.com").call()?;
    same(elsewhere.status().as_u16(), 403)?;
    let page = agent.get(&served.url).call()?;
    let policy = page.headers().get("content-security-policy").ok_or("there is a policy")?.to_str()?;
    ensure(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), policy)?;
    // A form of another page can send text, but not JSON.
    let form =
        agent.post(format!("{}api", served.url)).content_type("text/plain").send("{\"do\":\"enter\"}")?;
    same(form.status().as_u16(), 415)?;
    let (token, rating) = served.enter("anna")?;
    let item = rating["shown"]["item"].as_i64().ok_or("an item is shown")?;
    let judge = |item: i64, verdict: &str, comment: &str| json!({ "do": "judge", "token": token, "page": "1", "item": item, "verdict": verdict, "comment": comment });
    for (request, status) in [
        (json!({}), 400),
        (json!({ "do": "dance" }), 400),
        (json!({ "do": "enter", "name": "   ", "page": "1" }), 400),
        (json!({ "do": "enter", "name": "x".repeat(65), "page": "1" }), 400),
        (json!({ "do": "state", "token": "", "page": "1" }), 401),
        (json!({ "do": "undo", "token": token, "page": "1" }), 409),
        (judge(item, "best", ""), 400),
        (judge(item + 1, "left", ""), 409),
        (judge(-1, "left", ""), 409),
        (judge(item, "left", &"x".repeat(10_001)), 400),
    ] {
        let (got, reply) = served.ask(&request)?;
        same((got, &request), (status, &request))?;
        ensure(reply["error"].is_string(), reply)?;
    }
    same(bench.results()?["judgements"].clone(), json!(0))
}

/// Enters by the keyboard alone.
fn sign_in(browser: &Browser, url: &str, name: &str) -> Result<(), Failed> {
    browser.go(url)?;
    browser.until("document.activeElement.id === 'name'")?;
    browser.press(name.chars().chain([ENTER]))
}

/// Waits for so many judged pairs.
fn done(browser: &Browser, count: usize, total: usize) -> Result<(), Failed> {
    browser.until(&format!("document.getElementById('progress').textContent === '{count} of {total}'"))
}

fn keyboard() -> Result<(), Failed> {
    let bench = Bench::new(6)?;
    let served = bench.serve(&with(&["--port", "0"]))?;
    let driver = Driver::start()?;
    let browser = driver.open()?;
    sign_in(&browser, &served.url, "Ännä <b>")?;
    done(&browser, 0, 6)?;
    same(browser.text("rater")?, "Ännä <b>".to_string())?;
    browser.press([LEFT])?;
    done(&browser, 1, 6)?;
    // A comment holds letters that are keys elsewhere.
    browser.press("c".chars().chain("stub, \"t\" & b".chars()).chain([ESCAPE]))?;
    same(browser.value("document.getElementById('comment').value")?, json!("stub, \"t\" & b"))?;
    browser.press(['t'])?;
    done(&browser, 2, 6)?;
    same(browser.value("document.getElementById('comment').value")?, json!(""))?;
    let shown = browser.text("prompt")?;
    browser.press(['s'])?;
    done(&browser, 3, 6)?;
    browser.press(['u'])?;
    done(&browser, 2, 6)?;
    same(browser.text("prompt")?, shown)?;
    for (key, count) in [('b', 3), ('s', 4), (RIGHT, 5), ('1', 6)] {
        browser.press([key])?;
        done(&browser, count, 6)?;
    }
    browser.until("!document.getElementById('finished').hidden")?;
    let results = bench.results()?;
    let verdicts = json!({ "bad": 1, "left": 2, "right": 1, "skip": 1, "tie": 1 });
    same(results["raters"][0]["verdicts"].clone(), verdicts)?;
    let csv = bench.csv()?;
    same(csv.len(), 6)?;
    ensure(csv[1].contains("tie,,\"stub, \"\"t\"\" & b\","), &csv[1])?;
    ensure(csv.iter().all(|line| line.starts_with("Ännä <b>,")), &csv)?;
    // Nothing was asked of anybody else.
    let urls = browser.requests()?;
    ensure(urls.len() > 8, &urls)?;
    ensure(urls.iter().all(|url| url.starts_with(&served.url)), &urls)
}

fn reloaded() -> Result<(), Failed> {
    let bench = Bench::new(5)?;
    let served = bench.serve(&with(&["--port", "0"]))?;
    let driver = Driver::start()?;
    let browser = driver.open()?;
    sign_in(&browser, &served.url, "anna")?;
    done(&browser, 0, 5)?;
    browser.press([LEFT])?;
    done(&browser, 1, 5)?;
    browser.press("cnot yet".chars())?;
    let place = |browser: &Browser| -> Result<Vec<String>, Failed> {
        ["prompt", "left", "right", "progress"].map(|id| browser.text(id)).into_iter().collect()
    };
    let before = place(&browser)?;
    browser.reload()?;
    done(&browser, 1, 5)?;
    same(place(&browser)?, before.clone())?;
    same(browser.value("document.getElementById('comment').value")?, json!("not yet"))?;
    let port = served.port().to_string();
    served.kill()?;
    browser.press([RIGHT])?;
    browser.until("document.getElementById('error').textContent.includes('not kept')")?;
    same(place(&browser)?, before)?;
    bench.refused(&["--order-seed", "5"], 2, &["--order-seed 5", "begun with 0"])?;
    let served = bench.serve(&["--port", &port])?;
    browser.press([RIGHT])?;
    done(&browser, 2, 5)?;
    same(browser.value("document.getElementById('error').hidden")?, json!(true))?;
    // A table is never written over judgements.
    let refused = bench.kiln(&["judge", "results", "judgements.sqlite", "--csv", "judgements.sqlite"])?;
    same(refused.status.code(), Some(2))?;
    let csv = bench.csv()?;
    ensure(csv[0].contains(",left,") && csv[1].contains(",right,") && csv[1].contains(",not yet,"), &csv)?;
    served.kill()
}

fn two_raters() -> Result<(), Failed> {
    let bench = Bench::new(8)?;
    let served = bench.serve(&with(&["--port", "0"]))?;
    let driver = Driver::start()?;
    let (anna, bert) = (driver.open()?, driver.open()?);
    sign_in(&anna, &served.url, "anna")?;
    done(&anna, 0, 8)?;
    // The same name a second time, while the first is at it.
    sign_in(&bert, &served.url, "anna")?;
    bert.until("!document.getElementById('taken').hidden")?;
    ensure(bert.text("taken-text")?.contains("somebody is judging as \"anna\""), bert.text("taken-text")?)?;
    sign_in(&bert, &served.url, "bert")?;
    done(&bert, 0, 8)?;
    let mut seen = [vec![], vec![]];
    for count in 1..=8 {
        for ((browser, key), seen) in [(&anna, LEFT), (&bert, 't')].into_iter().zip(&mut seen) {
            seen.push((browser.text("prompt")?, browser.text("left")?));
            browser.press([key])?;
            done(browser, count, 8)?;
        }
    }
    ensure(seen[0] != seen[1], "both raters saw the same order")?;
    let results = bench.results()?;
    same(results["raters"][0]["verdicts"]["left"].clone(), json!(8))?;
    same(results["raters"][1]["verdicts"]["tie"].clone(), json!(8))?;
    // Whoever takes the name over goes on there, and the other one is told.
    bert.click("other")?;
    bert.until("document.activeElement.id === 'name'")?;
    bert.press("anna".chars().chain([ENTER]))?;
    bert.until("!document.getElementById('taken').hidden")?;
    bert.click("takeover")?;
    done(&bert, 8, 8)?;
    anna.press(['u'])?;
    anna.until("document.getElementById('error').textContent.includes('has ended')")?;
    same(bench.results()?["judgements"].clone(), json!(16))
}

fn hostile() -> Result<(), Failed> {
    let bench = Bench::new(1)?;
    let served = bench.serve(&with(&["--port", "0"]))?;
    let driver = Driver::start()?;
    let browser = driver.open()?;
    sign_in(&browser, &served.url, "<img src=y onerror=alert(1)>")?;
    done(&browser, 0, 1)?;
    for side in ["left", "right"] {
        ensure(browser.text(side)?.ends_with(HOSTILE), browser.text(side)?)?;
        same(browser.value(&format!("document.getElementById('{side}').children.length"))?, json!(0))?;
    }
    same(browser.value("document.images.length")?, json!(0))?;
    // Were markup to slip through, the policy would still not run it.
    browser
        .value("document.getElementById('left').innerHTML = document.getElementById('left').textContent")?;
    browser.until("document.images.length === 1 && document.images[0].complete")?;
    same(browser.title()?, json!("Which answer is better?"))?;
    ensure(!browser.requests()?.iter().any(|url| !url.starts_with(&served.url)), "a request went elsewhere")
}
