//! Any bytes as `config.json`: the family that it describes, its parameters, and the configuration it would save.

#![no_main]

use kiln::model::{Config, from_config};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(keys) = serde_json::from_slice(bytes) else { return };
    let Ok(family) = from_config(&Config::new("config.json", keys)) else { return };
    assert!(!family.parameters().is_empty());
    let again = from_config(&Config::new("the same, saved", family.config()));
    assert_eq!(again.expect("what was read can be saved").parameters(), family.parameters());
});
