//! What a model writes first and what it never writes, as its `generation_config.json` says.

use super::{Error, Result, sound_of};
use crate::model::{self, Family};
use serde_json::{Map, Value as Json};
use std::path::Path;

/// Where the rules stand; older models have some of them in `config.json`.
const FILE: &str = "generation_config.json";

/// What is written of a sound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// What was said.
    #[default]
    Transcribe,
    /// The same in English.
    Translate,
}

impl Task {
    /// The model's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Task::Transcribe => "transcribe",
            Task::Translate => "translate",
        }
    }
}

/// Tokens with a meaning of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    place: String,
    /// By the code of a language its token; empty where the model knows one language alone.
    languages: Vec<(String, u32)>,
    tasks: Vec<(String, u32)>,
    /// Says that no times are written.
    untimed: Option<u32>,
    /// What follows the start where nothing else is known, by its place; an open one is the model's choice.
    forced: Vec<Option<u32>>,
    ends: Vec<u32>,
    /// Never written, and never written first.
    never: Vec<u32>,
    never_first: Vec<u32>,
}

impl Rules {
    /// Those of a folder, for a model that hears.
    pub fn beside(folder: &Path, family: &dyn Family) -> Result<Rules> {
        sound_of(family)?;
        let path = folder.join(FILE);
        let file = |source| model::Error::File { path: path.clone(), source };
        let own = match path.is_file() {
            true => {
                let text = std::fs::read(&path).map_err(file)?;
                serde_json::from_slice(&text).map_err(|error| file(error.into()))?
            }
            false => Map::new(),
        };
        let mut keys = family.config();
        keys.extend(own);
        Rules::read(path.display().to_string(), &keys, family.vocabulary())
    }

    /// From keys; tokens beyond the vocabulary are refused, but for those that are never written.
    fn read(place: String, keys: &Map<String, Json>, vocabulary: usize) -> Result<Rules> {
        let reader = Reader { place: &place, keys, vocabulary };
        let untimed = reader.list("no_timestamps_token_id")?.first().copied();
        let strip = |name: String| name.trim_start_matches("<|").trim_end_matches("|>").to_string();
        let several = keys.get("is_multilingual") != Some(&Json::Bool(false));
        let languages = if several { reader.table("lang_to_id")? } else { vec![] };
        Ok(Rules {
            languages: languages.into_iter().map(|(name, id)| (strip(name), id)).collect(),
            tasks: if several { reader.table("task_to_id")? } else { vec![] },
            untimed,
            forced: reader.forced()?,
            ends: reader.list("eos_token_id")?,
            never: reader.numbers("suppress_tokens")?,
            never_first: reader.numbers("begin_suppress_tokens")?,
            place,
        })
    }

    pub(super) fn check(&self, language: Option<&str>, task: Task) -> Result<()> {
        let refuse = |what, expected: String, got: &str| {
            Err(Error::Rule { place: self.place.clone(), what, expected, got: got.to_string() })
        };
        if let Some(language) = language.filter(|language| self.language(language).is_none()) {
            let known: Vec<&str> = self.languages.iter().map(|(name, _)| name.as_str()).collect();
            return match known.is_empty() {
                true => refuse("language", "absent: the model knows one alone".into(), language),
                false => refuse("language", format!("one of {}", known.join(", ")), language),
            };
        }
        if task != Task::Transcribe && self.task(task).is_none() {
            return refuse("task", "transcribe: the model knows no other".into(), task.name());
        }
        Ok(())
    }

    fn language(&self, name: &str) -> Option<u32> {
        self.languages.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, id)| *id)
    }

    fn task(&self, task: Task) -> Option<u32> {
        self.tasks.iter().find(|(known, _)| known == task.name()).map(|(_, id)| *id)
    }

    /// What follows the start, behind which these are the scores: a language, what is done, and that no times are written.
    pub(super) fn opening(&self, language: Option<&str>, task: Task, scores: &[f32]) -> Vec<Option<u32>> {
        if self.languages.is_empty() && self.untimed.is_none() {
            return self.forced.clone();
        }
        let score = |id: u32| scores.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let likeliest =
            || self.languages.iter().map(|(_, id)| *id).max_by(|&a, &b| score(a).total_cmp(&score(b)));
        let language = language.and_then(|name| self.language(name)).or_else(likeliest);
        [language, self.task(task), self.untimed].into_iter().flatten().map(Some).collect()
    }

    /// The likeliest token of those that may be written.
    pub(super) fn choose(&self, scores: &[f32], first: bool) -> u32 {
        let barred = |id: u32| self.never.contains(&id) || first && self.never_first.contains(&id);
        let allowed = (0..scores.len() as u32).filter(|&id| !barred(id));
        let best = allowed.fold(None, |best: Option<u32>, id| match best {
            Some(best) if scores[best as usize] >= scores[id as usize] => Some(best),
            _ => Some(id),
        });
        best.or(self.ends.first().copied()).unwrap_or(0)
    }

    pub(super) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }
}

/// Keys of a file, read with errors that name them.
struct Reader<'a> {
    place: &'a str,
    keys: &'a Map<String, Json>,
    vocabulary: usize,
}

impl Reader<'_> {
    fn refuse<T>(&self, key: &str, expected: &str) -> Result<T> {
        let got = self.keys.get(key).map_or("absent".into(), Json::to_string);
        let (place, key, expected) = (self.place.to_string(), key.to_string(), expected.to_string());
        Err(model::Error::Setting { place, key, expected, got }.into())
    }

    /// A whole number or a list of them.
    fn numbers(&self, key: &str) -> Result<Vec<u32>> {
        let all: &[Json] = match self.keys.get(key) {
            None | Some(Json::Null) => &[],
            Some(Json::Array(all)) => all,
            Some(one) => std::slice::from_ref(one),
        };
        let number = |value: &Json| value.as_u64().and_then(|number| u32::try_from(number).ok());
        match all.iter().map(number).collect() {
            Some(numbers) => Ok(numbers),
            None => self.refuse(key, "tokens by their numbers"),
        }
    }

    /// The same of tokens that the model knows.
    fn list(&self, key: &str) -> Result<Vec<u32>> {
        let all = self.numbers(key)?;
        match all.iter().all(|&id| self.knows(id)) {
            true => Ok(all),
            false => self.refuse(key, &format!("below the vocabulary, {}", self.vocabulary)),
        }
    }

    fn knows(&self, id: u32) -> bool {
        (id as usize) < self.vocabulary
    }

    fn table(&self, key: &str) -> Result<Vec<(String, u32)>> {
        let all = match self.keys.get(key) {
            None | Some(Json::Null) => return Ok(vec![]),
            Some(Json::Object(all)) => all,
            Some(_) => return self.refuse(key, "a table of tokens by their names"),
        };
        let entry = |(name, id): (&String, &Json)| {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| self.knows(id))?;
            Some((name.clone(), id))
        };
        match all.iter().map(entry).collect() {
            Some(entries) => Ok(entries),
            None => self.refuse(key, &format!("tokens below the vocabulary, {}", self.vocabulary)),
        }
    }

    /// Pairs of a place, counted from the start, and the token that stands there, or null.
    fn forced(&self) -> Result<Vec<Option<u32>>> {
        let key = "forced_decoder_ids";
        let all = match self.keys.get(key) {
            None | Some(Json::Null) => return Ok(vec![]),
            Some(Json::Array(all)) => all,
            Some(_) => return self.refuse(key, "pairs of a place and a token"),
        };
        let mut forced = vec![];
        for (number, pair) in all.iter().enumerate() {
            let id = pair[1].as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| self.knows(id));
            if pair[0].as_u64() != Some(number as u64 + 1) || id.is_none() && !pair[1].is_null() {
                return self.refuse(key, "the places 1, 2 .. in their order, each with a token or null");
            }
            forced.push(id);
        }
        Ok(forced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules(keys: Json) -> Result<Rules> {
        Rules::read("generation_config.json".into(), keys.as_object().unwrap(), 20)
    }

    fn many() -> Rules {
        rules(json!({
            "lang_to_id": { "<|en|>": 3, "<|de|>": 4 }, "task_to_id": { "transcribe": 6, "translate": 5 },
            "no_timestamps_token_id": 7, "eos_token_id": [8], "suppress_tokens": [9, 50256],
            "begin_suppress_tokens": [10], "forced_decoder_ids": [[1, null], [2, 6]], "is_multilingual": true,
        }))
        .unwrap()
    }

    #[test]
    fn the_opening_is_language_task_and_no_times() {
        let (rules, mut scores) = (many(), vec![0.0; 20]);
        scores[4] = 1.0;
        let of = |language, task| rules.opening(language, task, &scores);
        assert_eq!(of(Some("EN"), Task::Transcribe), [Some(3), Some(6), Some(7)]);
        assert_eq!(of(None, Task::Translate), [Some(4), Some(5), Some(7)], "the likeliest language");
        let english =
            json!({ "no_timestamps_token_id": 7, "is_multilingual": false, "lang_to_id": { "<|en|>": 3 } });
        let english = super::tests::rules(english).unwrap();
        assert_eq!(english.opening(None, Task::Transcribe, &scores), [Some(7)]);
        assert!(english.check(Some("en"), Task::Transcribe).is_err());
        let old = super::tests::rules(json!({ "forced_decoder_ids": [[1, null], [2, 6]] })).unwrap();
        assert_eq!(old.opening(None, Task::Transcribe, &scores), [None, Some(6)]);
        let error = rules.check(Some("fr"), Task::Transcribe).unwrap_err().to_string();
        assert!(error.contains("one of en, de"), "{error}");
        assert!(old.check(None, Task::Translate).is_err());
    }

    #[test]
    fn the_likeliest_token_that_may_be_written_is_chosen() {
        let (rules, mut scores) = (many(), vec![0.0; 20]);
        (scores[9], scores[10], scores[11]) = (3.0, 2.0, 1.0);
        assert_eq!((rules.choose(&scores, true), rules.choose(&scores, false)), (11, 10));
        assert!(rules.is_end(8) && !rules.is_end(9));
    }

    #[test]
    fn what_is_no_rule_is_refused_by_its_key() {
        for (key, value) in [
            ("eos_token_id", json!(20)),
            ("suppress_tokens", json!([-1])),
            ("lang_to_id", json!({ "<|en|>": 99 })),
            ("task_to_id", json!([1])),
            ("forced_decoder_ids", json!([[2, 3]])),
            ("forced_decoder_ids", json!([[1, "x"]])),
        ] {
            let error = rules(json!({ key: value })).unwrap_err();
            assert!(
                matches!(&error, Error::Model(model::Error::Setting { key: named, .. }) if named == key),
                "{error}"
            );
        }
    }
}
