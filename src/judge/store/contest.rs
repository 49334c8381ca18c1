//! The contest in a results file: what is compared, and the answers.

use super::{Store, schema};
use crate::judge::{Contest, Contestant, Error, Prompt, Result};
use rusqlite::params;
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeSet;

/// Differences that are told; more are counted.
const MOST_TOLD: usize = 5;

/// Refuses a contest that cannot be.
pub fn check(contest: &Contest) -> Result<()> {
    let refuse = |text: String| Err(Error::Contest(text));
    if contest.contestants.len() < 2 {
        return refuse(format!("a contest needs two models or more, got {}", contest.contestants.len()));
    }
    if contest.prompts.is_empty() {
        return refuse("a contest needs a prompt".into());
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = contest.contestants.iter().find(|one| !names.insert(&one.name)) {
        return refuse(format!(
            "two models have the name {:?}\n  hint: --model NAME=MODEL names each",
            twice.name
        ));
    }
    let mut keys = BTreeSet::new();
    match contest.prompts.iter().find(|prompt| !keys.insert(&prompt.key)) {
        Some(twice) => refuse(format!("two prompts have the id {:?}", twice.key)),
        None => Ok(()),
    }
}

impl Store {
    /// Writes a new contest, as one transaction.
    pub(super) fn begin(&mut self, contest: &Contest) -> Result<()> {
        let path = self.path.clone();
        let mut write = || -> rusqlite::Result<()> {
            let change = self.connection.transaction()?;
            change.execute_batch(schema::TABLES)?;
            change.pragma_update(None, "application_id", schema::APPLICATION)?;
            change.pragma_update(None, "user_version", schema::VERSION)?;
            let settings = Json::Object(contest.settings.clone()).to_string();
            for (key, value) in [("settings", settings), ("order_seed", contest.order_seed.to_string())] {
                change.execute("INSERT INTO contest VALUES (?1, ?2)", params![key, value])?;
            }
            for (id, Contestant { name, source, digest }) in contest.contestants.iter().enumerate() {
                change.execute(
                    "INSERT INTO models VALUES (?1, ?2, ?3, ?4)",
                    params![id as i64, name, source, digest],
                )?;
            }
            for (id, Prompt { key, text }) in contest.prompts.iter().enumerate() {
                change.execute("INSERT INTO prompts VALUES (?1, ?2, ?3)", params![id as i64, key, text])?;
                for second in 1..contest.contestants.len() {
                    for first in 0..second {
                        change.execute(
                            "INSERT INTO items (prompt, first, second) VALUES (?1, ?2, ?3)",
                            params![id as i64, first as i64, second as i64],
                        )?;
                    }
                }
            }
            change.commit()
        };
        write().map_err(|source| super::fault(&path, source))
    }

    /// The contest that it holds.
    pub fn contest(&self) -> Result<Contest> {
        let read = || -> rusqlite::Result<Contest> {
            let value = |key: &str| -> rusqlite::Result<String> {
                self.connection.query_row("SELECT value FROM contest WHERE key = ?1", [key], |row| row.get(0))
            };
            let settings: Map<String, Json> = serde_json::from_str(&value("settings")?).unwrap_or_default();
            let order_seed = value("order_seed")?.parse().unwrap_or_default();
            let mut models =
                self.connection.prepare("SELECT name, source, digest FROM models ORDER BY id")?;
            let contestants = models
                .query_map([], |row| {
                    Ok(Contestant { name: row.get(0)?, source: row.get(1)?, digest: row.get(2)? })
                })?
                .collect::<rusqlite::Result<_>>()?;
            let mut prompts = self.connection.prepare("SELECT key, text FROM prompts ORDER BY id")?;
            let prompts = prompts
                .query_map([], |row| Ok(Prompt { key: row.get(0)?, text: row.get(1)? }))?
                .collect::<rusqlite::Result<_>>()?;
            Ok(Contest { settings, order_seed, contestants, prompts })
        };
        read().map_err(|source| self.fault(source))
    }

    /// Refuses a contest that is not the one in the file.
    pub(super) fn compare(&self, given: &Contest) -> Result<()> {
        let held = self.contest()?;
        let mut differences = vec![];
        let names = |contest: &Contest| {
            contest.contestants.iter().map(|one| one.name.clone()).collect::<Vec<_>>().join(", ")
        };
        if names(&held) != names(given) {
            differences.push(format!("models: {} in the file, {} given", names(&held), names(given)));
        } else {
            for (held, given) in held.contestants.iter().zip(&given.contestants) {
                let (name, source) = (&held.name, &held.source);
                match (&held.digest, &given.digest) {
                    (Some(held), Some(given)) if held != given => {
                        differences.push(format!(
                            "model {name}: its files have changed since the answers were written"
                        ));
                    }
                    (Some(_), None) => {
                        differences.push(format!("model {name}: {source} in the file, ready answers given"))
                    }
                    (None, Some(_)) => differences
                        .push(format!("model {name}: ready answers in the file, {} given", given.source)),
                    _ => {}
                }
            }
        }
        if held.prompts.len() != given.prompts.len() {
            let (held, given) = (held.prompts.len(), given.prompts.len());
            differences.push(format!("prompts: {held} in the file, {given} given"));
        }
        for (number, (held, given)) in held.prompts.iter().zip(&given.prompts).enumerate() {
            if held != given {
                let number = number + 1;
                let shown = |prompt: &Prompt| format!("{}: {:?}", prompt.key, shortened(&prompt.text));
                differences.push(format!(
                    "prompt {number}: {} in the file, {} given",
                    shown(held),
                    shown(given)
                ));
            }
        }
        let keys: BTreeSet<&String> = held.settings.keys().chain(given.settings.keys()).collect();
        for key in keys {
            let of = |settings: &Map<String, Json>| settings.get(key).cloned().unwrap_or_default();
            let (held, given) = (of(&held.settings), of(&given.settings));
            // A flag that is not given is the same as one that an older program did not have.
            let is_nothing =
                |value: &Json| matches!(value, Json::Null | Json::Bool(false)) || *value == json!([]);
            if held != given && !(is_nothing(&held) && is_nothing(&given)) {
                differences.push(format!("{}: {held} in the file, {given} given", key.replace('_', "-")));
            }
        }
        if held.order_seed != given.order_seed {
            differences
                .push(format!("order-seed: {} in the file, {} given", held.order_seed, given.order_seed));
        }
        if differences.is_empty() {
            return Ok(());
        }
        if differences.len() > MOST_TOLD {
            let more = differences.len() - MOST_TOLD;
            differences.truncate(MOST_TOLD);
            differences.push(format!("and {more} more"));
        }
        Err(Error::Differs { path: self.path.clone(), differences })
    }

    /// Numbers of the prompts to which a model has no answer yet.
    pub fn unanswered(&self, model: usize) -> Result<Vec<usize>> {
        let read = || -> rusqlite::Result<Vec<usize>> {
            let text = "SELECT id FROM prompts WHERE id NOT IN (SELECT prompt FROM answers WHERE model = ?1) ORDER BY id";
            let mut prompts = self.connection.prepare(text)?;
            let ids = prompts.query_map([model as i64], |row| row.get::<_, i64>(0))?;
            ids.map(|id| Ok(id? as usize)).collect()
        };
        read().map_err(|source| self.fault(source))
    }

    /// Keeps an answer. One that is there already must be the same.
    pub fn keep_answer(&self, prompt: usize, model: usize, text: &str) -> Result<()> {
        let place = params![prompt as i64, model as i64, text];
        let added = self.connection.execute("INSERT OR IGNORE INTO answers VALUES (?1, ?2, ?3)", place);
        if added.map_err(|source| self.fault(source))? == 1 {
            return Ok(());
        }
        let held: String = self
            .connection
            .query_row(
                "SELECT text FROM answers WHERE prompt = ?1 AND model = ?2",
                params![prompt as i64, model as i64],
                |row| row.get(0),
            )
            .map_err(|source| self.fault(source))?;
        if held == text {
            return Ok(());
        }
        let name = self.contest()?.contestants.swap_remove(model).name;
        let difference = format!(
            "answer {} of model {name}: {:?} in the file, {:?} given",
            prompt + 1,
            shortened(&held),
            shortened(text)
        );
        Err(Error::Differs { path: self.path.clone(), differences: vec![difference] })
    }
}

/// The beginning of a text that may be long.
fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_string(),
    }
}
