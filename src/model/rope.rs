//! Rotary positions as a configuration describes them: the base, the share of a head that turns, the scaling to longer texts.
//!
//! Pair `i` of a head with R turning elements turns by `theta^(-2i / R)` per position. Scaled forms slow pairs down:
//!
//! - `linear` divides every rate by `factor` (positions are interpolated);
//! - `llama3` divides by `factor` the pairs whose wavelength exceeds `original / low` tokens, leaves those below
//!   `original / high`, and blends in between.
//!
//! Keys come in two spellings: `rope_theta` and `rope_scaling` beside the others, or all in one table `rope_parameters`.

use super::{Config, Error, Result};
use crate::graph::Graph;
use crate::ops::rotary::tables_of;
use crate::ops::{Emit, Value};
use serde_json::{Map, Value as Json, json};

/// Keys of a `config.json` that describe rotary positions, in any family.
pub(super) const ROPE_KEYS: &[&str] =
    &["rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"];

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the rates.
    pub theta: f64,
    /// Share of each head that turns, from its first element.
    pub share: f64,
    /// Change of the rates for longer texts.
    pub scaling: Scaling,
}

/// A change of the rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// None.
    None,
    /// All rates divided.
    Linear {
        /// By this.
        factor: f64,
    },
    /// Slow pairs divided, fast ones left, as in Llama 3.1.
    Llama3 {
        /// The divisor of slow pairs.
        factor: f64,
        /// Pairs turning less often than this within `original` tokens are slow.
        low: f64,
        /// Pairs turning more often than this are fast.
        high: f64,
        /// Tokens of the texts before the context was widened.
        original: usize,
    },
}

/// Where a family keeps base and share outside of `rope_parameters`, and what they are when absent.
pub(super) struct Spelling {
    pub theta: &'static [&'static str],
    pub share: &'static [&'static str],
    pub usual: Rope,
}

impl Rope {
    /// Whole heads, unscaled.
    pub const fn plain(theta: f64) -> Self {
        Rope { theta, share: 1.0, scaling: Scaling::None }
    }

    /// From a `config.json` in either spelling.
    pub(super) fn read(config: &Config, spelling: &Spelling) -> Result<Self> {
        let table = match config.inner("rope_parameters")? {
            Some(table) => Some(table),
            None => config.inner("rope_scaling")?,
        };
        // A table wins over the older keys beside it, as in transformers 5.
        let number = |inside: &'static str, beside: &[&'static str], usual: f64| {
            let beside = config.number(beside, usual)?;
            table.as_ref().map_or(Ok(beside), |table| table.number(&[inside], beside))
        };
        let theta = number("rope_theta", spelling.theta, spelling.usual.theta)?;
        if theta <= 0.0 {
            return Err(config.refuse(spelling.theta[0], "above zero"));
        }
        let share = number("partial_rotary_factor", spelling.share, spelling.usual.share)?;
        if !(share > 0.0 && share <= 1.0) {
            return Err(config.refuse(spelling.share[0], "above 0 and at most 1"));
        }
        let scaling = table.map_or(Ok(Scaling::None), |table| Scaling::read(&table, config))?;
        Ok(Rope { theta, share, scaling })
    }

    /// Elements of a head that turn.
    pub(super) fn rotated(&self, head_size: usize) -> usize {
        (head_size as f64 * self.share) as usize
    }

    /// Refuses heads of which no pairs can be made.
    pub(super) fn check(&self, place: &str, key: &str, head_size: usize) -> Result<()> {
        let rotated = self.rotated(head_size);
        if rotated > 0 && rotated.is_multiple_of(2) {
            return Ok(());
        }
        let expected =
            format!("one of which an even number of elements turns ({} of each head do)", self.share);
        let (place, key) = (place.to_string(), key.to_string());
        Err(Error::Setting { place, key, expected, got: head_size.to_string() })
    }

    /// Angle per position of each pair.
    pub fn rates(&self, head_size: usize) -> Vec<f64> {
        let rotated = self.rotated(head_size);
        let plain = |i: usize| self.theta.powf(-2.0 * i as f64 / rotated as f64);
        (0..rotated / 2).map(|i| self.scaling.apply(plain(i))).collect()
    }

    /// Tables of cos and sin for positions `0..context`, F32 [T, R/2].
    pub(super) fn tables(&self, graph: &mut Graph, context: usize, head_size: usize) -> [Value; 2] {
        tables_of(context, &self.rates(head_size)).map(|table| graph.constant(table))
    }

    /// Writes both spellings: transformers 4 reads one and transformers 5 the other.
    pub(super) fn write(&self, keys: &mut Map<String, Json>, spelling: &Spelling) {
        let mut table = self.scaling.keys();
        if self.scaling != Scaling::None {
            keys.insert("rope_scaling".into(), Json::Object(table.clone()));
        }
        table.insert("rope_theta".into(), json!(self.theta));
        if self.share != 1.0 {
            table.insert("partial_rotary_factor".into(), json!(self.share));
            keys.insert(spelling.share[0].into(), json!(self.share));
        }
        keys.insert(spelling.theta[0].into(), json!(self.theta));
        keys.insert("rope_parameters".into(), Json::Object(table));
    }
}

impl Scaling {
    fn read(table: &Config, config: &Config) -> Result<Self> {
        let factor = || match table.needed_number("factor")? {
            factor if factor > 0.0 => Ok(factor),
            _ => Err(table.refuse("factor", "above zero")),
        };
        match table.word(&["rope_type", "type"], "default")? {
            "default" if table.keys().values().any(Json::is_object) => {
                Err(config.refuse("rope_parameters", "one table for all layers"))
            }
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear { factor: factor()? }),
            "llama3" => {
                let (low, high) =
                    (table.needed_number("low_freq_factor")?, table.needed_number("high_freq_factor")?);
                if !(low > 0.0 && high > low) {
                    return Err(table.refuse("high_freq_factor", format!("above low_freq_factor = {low}")));
                }
                let original = table.needed_count("original_max_position_embeddings")?;
                Ok(Scaling::Llama3 { factor: factor()?, low, high, original })
            }
            _ => {
                let key = if table.keys().contains_key("rope_type") { "rope_type" } else { "type" };
                Err(table.refuse(key, "default, linear or llama3"))
            }
        }
    }

    fn apply(self, rate: f64) -> f64 {
        match self {
            Scaling::None => rate,
            Scaling::Linear { factor } => rate / factor,
            Scaling::Llama3 { factor, low, high, original } => {
                let turns = original as f64 * rate / std::f64::consts::TAU;
                let fast = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                rate * (fast + (1.0 - fast) / factor)
            }
        }
    }

    fn keys(self) -> Map<String, Json> {
        let keys = match self {
            Scaling::None => json!({ "rope_type": "default" }),
            Scaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            Scaling::Llama3 { factor, low, high, original } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }),
        };
        let Json::Object(keys) = keys else { unreachable!("the literals above are objects") };
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPELLING: Spelling =
        Spelling { theta: &["rope_theta"], share: &["partial_rotary_factor"], usual: Rope::plain(10_000.0) };

    fn read(json: Json) -> Result<Rope> {
        Rope::read(&Config::new("config.json", json.as_object().unwrap().clone()), &SPELLING)
    }

    #[test]
    fn the_rates_of_llama_3_2_are_those_of_transformers() {
        // `ROPE_INIT_FUNCTIONS["llama3"]` of transformers 5.23.0 with the settings of Llama 3.2 1B.
        let rope = read(json!({ "rope_theta": 500000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        } }));
        let rates = rope.unwrap().rates(64);
        assert_eq!(rates.len(), 32);
        for (pair, expected) in [
            (0, 1.0),
            (1, 0.663601279258728),
            (14, 0.0032114461064338684),
            (15, 0.0012905480107292533),
            (16, 0.000429556705057621),
            (17, 9.708286233944818e-05),
            (18, 1.9461638657958247e-05),
            (31, 9.418306490260875e-08),
        ] {
            let error = (rates[pair] / expected - 1.0).abs();
            assert!(error < 1e-5, "pair {pair}: {} instead of {expected}", rates[pair]);
        }
    }

    #[test]
    fn both_spellings_say_the_same_and_a_table_wins() {
        let linear = Rope { scaling: Scaling::Linear { factor: 4.0 }, ..Rope::plain(5e5) };
        for keys in [
            json!({ "rope_theta": 5e5, "rope_scaling": { "type": "linear", "factor": 4.0 } }),
            json!({ "rope_parameters": { "rope_theta": 5e5, "rope_type": "linear", "factor": 4.0 } }),
            json!({ "rope_theta": 1e4, "rope_parameters": { "rope_theta": 5e5, "rope_type": "linear", "factor": 4 } }),
        ] {
            assert_eq!(read(keys.clone()).unwrap(), linear, "{keys}");
        }
        for keys in [
            json!({}),
            json!({ "rope_scaling": null }),
            json!({ "rope_parameters": { "rope_type": "default" } }),
        ] {
            assert_eq!(read(keys.clone()).unwrap(), Rope::plain(1e4), "{keys}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let llama3 = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 };
        for scaling in [Scaling::None, Scaling::Linear { factor: 2.5 }, llama3] {
            let rope = Rope { theta: 12345.0, share: 0.25, scaling };
            let mut keys = Map::new();
            rope.write(&mut keys, &SPELLING);
            assert_eq!(read(Json::Object(keys.clone())).unwrap(), rope);
            // Each spelling holds everything by itself.
            let table = keys.remove("rope_parameters").unwrap();
            assert_eq!(read(Json::Object(keys)).unwrap(), rope);
            assert_eq!(read(json!({ "rope_parameters": table })).unwrap(), rope);
        }
    }

    #[test]
    fn scaling_that_is_not_known_or_not_whole_is_refused_by_key() {
        for (table, key) in [
            (json!({ "rope_type": "yarn", "factor": 4.0 }), "rope_type"),
            (json!({ "type": "dynamic", "factor": 4.0 }), "type"),
            (json!({ "rope_type": "linear" }), "factor"),
            (json!({ "rope_type": "linear", "factor": 0 }), "factor"),
            (json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0 }), "high_freq_factor"),
            (json!({ "sliding_attention": {}, "full_attention": {} }), "rope_parameters"),
        ] {
            let error = read(json!({ "rope_parameters": table })).unwrap_err();
            assert!(matches!(&error, Error::Setting { key: named, .. } if named == key), "{key}: {error}");
        }
        assert!(
            matches!(read(json!({ "rope_scaling": 3 })), Err(Error::Setting { key, .. }) if key == "rope_scaling")
        );
    }
}
