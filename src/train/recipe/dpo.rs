//! `[dpo]`: learning which of two answers is the better one.

use serde::{Serialize, Serializer};

use super::error::Error;
use super::read::Section;

/// All keys of the table.
pub(super) const KEYS: &[&str] = &["beta", "loss", "label_smoothing", "reference_free"];

/// What a margin between two answers costs, `m` being how much more than the reference the model prefers the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preferring {
    /// `-log sigmoid(beta m)` (Rafailov et al. 2023).
    Sigmoid,
    /// `(m - 1 / (2 beta))^2` over means of tokens (Azar et al. 2023).
    Ipo,
    /// `max(0, 1 - beta m)` (Zhao et al. 2023).
    Hinge,
}

/// How preferences are learnt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dpo {
    /// How far the model may go from the reference: little for large numbers.
    pub beta: f64,
    /// What a margin costs.
    #[serde(serialize_with = "word")]
    pub loss: Preferring,
    /// How often the worse answer is taken to be the better one, in `0.0..0.5`.
    pub label_smoothing: f64,
    /// The reference prefers neither.
    pub reference_free: bool,
}

fn word<S: Serializer>(loss: &Preferring, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match loss {
        Preferring::Sigmoid => "sigmoid",
        Preferring::Ipo => "ipo",
        Preferring::Hinge => "hinge",
    })
}

/// Reads it where there are preferences to learn.
pub(super) fn dpo(section: &Section, prefers: bool) -> Result<Option<Dpo>, Error> {
    if !prefers {
        return match KEYS.iter().find(|key| section.has(key)) {
            Some(key) => {
                let hint = "name files of preferences: preferences = [\"preferences.jsonl\"] in [data]";
                Err(section.refuse(key, "absent without data.preferences", hint))
            }
            None => Ok(None),
        };
    }
    let words = [("sigmoid", Preferring::Sigmoid), ("ipo", Preferring::Ipo), ("hinge", Preferring::Hinge)];
    let loss = section.word("loss", &words)?.or(Preferring::Sigmoid);
    let beta = section.number("beta")?.must(|&beta| beta > 0.0, "above zero", "0.1 is common")?.or(0.1);
    let hint = "0.1 takes one preference in ten to be wrong";
    let fits = |share: &f64| (0.0..0.5).contains(share);
    let label_smoothing = section.number("label_smoothing")?.must(fits, "from 0 to below 0.5", hint)?.or(0.0);
    if label_smoothing > 0.0 && loss != Preferring::Sigmoid {
        return Err(section.refuse("label_smoothing", "absent beside this loss", "only \"sigmoid\" has it"));
    }
    let reference_free = section.flag("reference_free")?.or(false);
    Ok(Some(Dpo { beta, loss, label_smoothing, reference_free }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::recipe::Recipe;

    fn recipe(text: &str) -> Result<Recipe, String> {
        Recipe::from_text(text, "r.toml", &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn a_recipe_with_preferences_is_the_same_when_it_is_read_again() {
        let data = "[data]\npreferences = [\"p.jsonl\"]\n";
        let first = recipe(data).unwrap();
        let usual = Dpo { beta: 0.1, loss: Preferring::Sigmoid, label_smoothing: 0.0, reference_free: false };
        assert_eq!(first.dpo, Some(usual));
        let text = format!("{data}[dpo]\nbeta = 0.3\nloss = \"ipo\"\nreference_free = true\n");
        for first in [first, recipe(&text).unwrap()] {
            assert_eq!(recipe(&first.to_toml()).unwrap(), first, "{}", first.to_toml());
        }
    }

    #[test]
    fn keys_that_do_not_go_together_are_refused() {
        let data = "[data]\npreferences = \"p\"\n";
        for (text, part) in [
            ("[dpo]\nbeta = 0.1".to_string(), "absent without data.preferences"),
            (format!("{data}[dpo]\nbeta = 0"), "above zero"),
            (format!("{data}[dpo]\nloss = \"hinge\"\nlabel_smoothing = 0.1"), "only \"sigmoid\" has it"),
            (format!("{data}chats = \"c\""), "data.chats"),
            (format!("{data}packing = true"), "data.packing"),
            (format!("{data}learn = \"all\""), "data.learn"),
        ] {
            let error = recipe(&text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
