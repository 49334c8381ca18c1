//! A narrower model: the same family with fewer heads, neurons or channels.

use super::{Config, Error, Family, Result, from_config};
use serde_json::json;

/// Sizes that differ from those of a model; absent ones stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Heads of the queries in each block.
    pub heads: Option<usize>,
    /// Heads of the keys and values in each block.
    pub key_heads: Option<usize>,
    /// Width inside the feed-forward part.
    pub hidden: Option<usize>,
    /// Channels of the residual stream.
    pub width: Option<usize>,
}

/// Keys of `config.json` for a size, in any family.
const HEADS: &[&str] = &["n_head", "num_attention_heads"];
const KEY_HEADS: &[&str] = &["num_key_value_heads"];
const HIDDEN: &[&str] = &["n_inner", "intermediate_size"];
const WIDTH: &[&str] = &["n_embd", "hidden_size"];

/// The family with other sizes. Its heads keep their `head_size` channels, whatever becomes of the width.
pub fn resized(family: &dyn Family, head_size: usize, sizes: Sizes) -> Result<Box<dyn Family>> {
    let mut keys = family.config();
    let place = format!("{} with other sizes", family.name());
    let new =
        [(HEADS, sizes.heads), (KEY_HEADS, sizes.key_heads), (HIDDEN, sizes.hidden), (WIDTH, sizes.width)];
    for (names, size) in new {
        let Some(size) = size else { continue };
        // A family without such a key has as many as heads of the queries.
        let implied = names == KEY_HEADS && sizes.heads == Some(size);
        let Some(key) = names.iter().find(|key| keys.contains_key(**key)) else {
            if implied {
                continue;
            }
            let (expected, got) = ("among the family's keys".to_string(), "absent".to_string());
            return Err(Error::Setting { place, key: names.join(" or "), expected, got });
        };
        keys.insert((*key).into(), json!(size));
    }
    keys.insert("head_dim".into(), json!(head_size));
    from_config(&Config::new(place, keys))
}
