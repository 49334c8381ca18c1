//! A batch from texts of unlike lengths, filled up to the same.

use super::super::{Error, Extent, Family, Result};
use super::Inputs;
use std::collections::BTreeMap;

/// A text for a model: its tokens, and the kind of each.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Tokens.
    pub ids: &'a [u32],
    /// For each its kind; passed over by models that know one kind alone.
    pub kinds: &'a [u32],
}

impl Inputs {
    /// Texts side by side, none longer than the extent; rows beyond them repeat the last one. Targets are not among them.
    pub fn of_rows(family: &dyn Family, rows: &[Row], extent: Extent) -> Result<Inputs> {
        let interface = family.interface();
        if interface.sound.is_some() {
            let expected = "one that reads texts".to_string();
            return Err(Error::Task { expected, got: interface.task.describe() });
        }
        let Extent { batch, context } = extent;
        let padding = interface.silent.or(interface.padding).unwrap_or(0);
        let (mut tokens, mut mask, mut kinds) = (vec![], vec![], vec![]);
        for number in 0..batch {
            let Row { ids, kinds: own } = rows[number.min(rows.len() - 1)];
            let beyond = |&&id: &&u32| id as usize >= family.vocabulary();
            if let Some(id) = ids.iter().find(beyond) {
                let expected = format!("below {}, the tokens that the model knows", family.vocabulary());
                return Err(Error::Input { name: "input_ids".into(), expected, got: id.to_string() });
            }
            let filled = context - ids.len();
            tokens.extend(ids.iter().copied().chain(std::iter::repeat_n(padding, filled)));
            mask.extend(std::iter::repeat_n(1, ids.len()).chain(std::iter::repeat_n(0, filled)));
            let known = interface.kinds as u32 - 1;
            let of_kind = own.iter().map(|&kind| kind.min(known));
            kinds.extend(of_kind.chain(std::iter::repeat_n(0, filled)));
        }
        let mut numbers = BTreeMap::from([("tokens", tokens), ("mask", mask)]);
        if interface.kinds > 1 {
            numbers.insert("kinds", kinds);
        }
        Ok(Inputs {
            interface,
            extent,
            target: context,
            numbers,
            features: None,
            targets: None,
            follows: None,
        })
    }
}
