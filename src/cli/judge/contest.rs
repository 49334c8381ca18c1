//! A contest from flags: prompts, who answers them, the file that keeps everything, and the page.

use super::Run;
use super::answers::Author;
use crate::cli::Usage;
use crate::cli::folder::resolve;
use crate::data::records::{self, Record};
use crate::judge::{Contest, Contestant, Prompt, Store, serve};
use anyhow::Context;
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Whose answers they are.
enum Entrant {
    Model(PathBuf),
    Answers(PathBuf),
}

/// Goes on with a contest, or begins one, and serves it.
pub fn run(run: &Run) -> anyhow::Result<()> {
    let entrants = entrants(run)?;
    let store = match (&run.prompts, entrants.is_empty()) {
        (None, true) if run.results.exists() => {
            let store = Store::reopen(&run.results)?;
            let held = store.contest()?.order_seed;
            if let Some(given) = run.order_seed.filter(|given| *given != held) {
                return usage(&format!(
                    "--order-seed {given} is given, and {} was begun with {held}\n  hint: leave it out, or name another file",
                    run.results.display()
                ));
            }
            store
        }
        (None, true) => {
            let text = format!(
                "there is nothing to judge: {} does not exist yet\n  hint: kiln judge --a MODEL --b MODEL --prompts FILE",
                run.results.display()
            );
            return Err(Usage(text).into());
        }
        (None, false) => return usage("--prompts is missing: what the models are to answer"),
        (Some(_), true) => {
            return usage(
                "there is nobody to answer\n  hint: --a MODEL --b MODEL, or --answers-a FILE --answers-b FILE",
            );
        }
        (Some(prompts), false) => write(run, prompts, &entrants)?,
    };
    if let Some(place) = store.set_aside() {
        eprintln!(
            "damaged  the results file was damaged and now lies at {}; a new one was begun",
            place.display()
        );
    }
    for (at, one) in store.contest()?.contestants.iter().enumerate() {
        let missing = store.unanswered(at)?.len();
        if missing > 0 {
            let name = &one.name;
            return usage(&format!(
                "{name} has not answered {missing} prompts yet\n  hint: give --prompts and the models once more"
            ));
        }
    }
    let path = run.results.display().to_string();
    let served = serve(store, run.port, |address| {
        eprintln!("results  {path}, counted by: kiln judge results {path}");
        eprintln!("page     for this machine alone; Ctrl-C ends");
        // Who reads the address from a pipe must get it now.
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "http://{address}/").and_then(|()| out.flush());
    })?;
    eprintln!("{} judgements stand in {path}", served.judgements);
    Ok(())
}

fn usage<T>(text: &str) -> anyhow::Result<T> {
    Err(Usage(text.to_string()).into())
}

/// Models and files of answers by name, `--a` and `--b` first.
fn entrants(run: &Run) -> anyhow::Result<Vec<(String, Entrant)>> {
    let mut all = vec![];
    for (model, answers) in [(&run.a, &run.answers_a), (&run.b, &run.answers_b)] {
        let entrant = match (model, answers) {
            (Some(path), _) => (path, Entrant::Model(path.clone())),
            (None, Some(path)) => (path, Entrant::Answers(path.clone())),
            (None, None) => continue,
        };
        all.push((entrant.0.display().to_string(), entrant.1));
    }
    let named = |flag: &str, given: &String| -> anyhow::Result<(String, PathBuf)> {
        match given.split_once('=') {
            Some((name, path)) if !name.trim().is_empty() && !path.is_empty() => {
                Ok((name.trim().into(), path.into()))
            }
            _ => usage(&format!("{flag} has {given:?}, expected NAME=PATH\n  hint: {flag} tuned=runs/sft")),
        }
    };
    for given in &run.models {
        let (name, path) = named("--model", given)?;
        all.push((name, Entrant::Model(path)));
    }
    for given in &run.answers {
        let (name, path) = named("--answers", given)?;
        all.push((name, Entrant::Answers(path)));
    }
    Ok(all)
}

/// Opens the file for the contest, and has every answer written that it has not got yet.
fn write(run: &Run, prompts: &Path, entrants: &[(String, Entrant)]) -> anyhow::Result<Store> {
    let (prompts, named) = read_prompts(prompts)?;
    let mut author = Author::new(run)?;
    let (mut contestants, mut ready, mut places) = (vec![], vec![], vec![]);
    for (name, entrant) in entrants {
        let (path, digest) = match entrant {
            Entrant::Model(path) => {
                let place = resolve(path, false)?;
                let digest = digest_of(&place)?;
                places.push(Some(place));
                ready.push(None);
                (path, Some(digest))
            }
            Entrant::Answers(path) => {
                places.push(None);
                ready.push(Some(read_answers(path, &prompts, named)?));
                (path, None)
            }
        };
        contestants.push(Contestant { name: name.clone(), source: path.display().to_string(), digest });
    }
    let settings = if places.iter().any(Option::is_some) { settings(run)? } else { Map::new() };
    let contest = Contest { settings, order_seed: run.order_seed.unwrap_or_default(), contestants, prompts };
    let store = Store::open(&run.results, &contest)?;
    // Ready answers first: where they differ from those in the file, no model has written in vain.
    for (at, answers) in ready.iter().enumerate() {
        for (prompt, text) in answers.iter().flatten().enumerate() {
            store.keep_answer(prompt, at, text)?;
        }
    }
    for (at, place) in places.iter().enumerate() {
        let missing = store.unanswered(at)?;
        if let (Some(place), false) = (place, missing.is_empty()) {
            let name = &contest.contestants[at].name;
            let count = contest.prompts.len();
            eprintln!(
                "answers  {name} is to write {} of {count}; each is kept once it is whole",
                missing.len()
            );
            let asked: Vec<_> =
                missing.iter().map(|&prompt| (prompt, contest.prompts[prompt].text.as_str())).collect();
            author.write(place, &asked, &mut |prompt, text| Ok(store.keep_answer(prompt, at, text)?))?;
        }
    }
    Ok(store)
}

/// How answers are written, as it is kept.
fn settings(run: &Run) -> anyhow::Result<Map<String, Json>> {
    let Json::Object(mut settings) = serde_json::to_value(&run.flags)? else { return Ok(Map::new()) };
    settings.insert("chat".into(), json!(run.chat));
    settings.insert("system".into(), json!(run.system));
    Ok(settings)
}

/// Prompts, and whether they have names of their own.
fn read_prompts(path: &Path) -> anyhow::Result<(Vec<Prompt>, bool)> {
    let rows = records::read(path)?;
    let named = rows.iter().all(|row| row.find(&["id"]).is_some());
    let prompt = |(number, row): (usize, &Record)| -> anyhow::Result<Prompt> {
        let text = row.text(&["prompt", "question", "instruction"])?;
        let key = match named {
            true => id(row).unwrap_or_default(),
            false => (number + 1).to_string(),
        };
        Ok(Prompt { key, text })
    };
    Ok((rows.iter().enumerate().map(prompt).collect::<anyhow::Result<_>>()?, named))
}

fn id(row: &Record) -> Option<String> {
    row.find(&["id"]).map(|(_, value)| value.as_str().map_or_else(|| value.to_string(), String::from))
}

/// An answer to each prompt: by id where prompts and rows have one, else in their order.
fn read_answers(path: &Path, prompts: &[Prompt], named: bool) -> anyhow::Result<Vec<String>> {
    let rows = records::read(path)?;
    let shown = path.display();
    let texts = rows
        .iter()
        .map(|row| Ok(row.text(&["answer", "response", "output", "completion", "text"])?))
        .collect::<anyhow::Result<Vec<String>>>()?;
    if !named || rows.iter().any(|row| id(row).is_none()) {
        let (got, expected) = (texts.len(), prompts.len());
        if got != expected {
            return usage(&format!(
                "{shown} has {got} answers, there are {expected} prompts\n  hint: one on each line, in their order, or each with the `id` of its prompt"
            ));
        }
        return Ok(texts);
    }
    let mut by_id = HashMap::new();
    for (row, text) in rows.iter().zip(texts) {
        let id = id(row).unwrap_or_default();
        if by_id.insert(id.clone(), text).is_some() {
            return usage(&format!("{shown} has two answers with the id {id:?}"));
        }
    }
    let of = |prompt: &Prompt| match by_id.remove(&prompt.key) {
        Some(text) => Ok(text),
        None => usage(&format!("{shown} has no answer with the id {:?}", prompt.key)),
    };
    let answers = prompts.iter().map(of).collect::<anyhow::Result<Vec<_>>>()?;
    match by_id.keys().min() {
        Some(id) => usage(&format!("{shown} has an answer with the id {id:?}, which no prompt has")),
        None => Ok(answers),
    }
}

/// A hash of what a model is: its weights, settings and tokenizer.
fn digest_of(place: &Path) -> anyhow::Result<String> {
    let mut files = vec![];
    if place.is_dir() {
        for entry in std::fs::read_dir(place).with_context(|| place.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let begins =
                ["model", "adapter", "config.json", "generation_config", "tokenizer", "chat_template"];
            if path.is_file() && begins.iter().any(|begin| name.starts_with(begin)) {
                files.push(path);
            }
        }
        files.sort();
    } else {
        files.push(place.to_path_buf());
    }
    let mut hash = Sha256::new();
    for path in files {
        hash.update(path.file_name().unwrap_or_default().to_string_lossy().as_bytes());
        let mut file = File::open(&path).with_context(|| path.display().to_string())?;
        std::io::copy(&mut file, &mut hash).with_context(|| path.display().to_string())?;
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
