//! How many units go, and which.

use super::super::{Error, Result};
use super::{Group, Part};
use serde::{Deserialize, Serialize};

/// How many of the units of each block go.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    /// So many.
    Count(usize),
    /// This share, in `0.0..1.0`.
    Share(f64),
}

impl Amount {
    /// Refuses shares of nothing or of everything.
    pub fn check(&self, part: Part) -> Result<()> {
        match *self {
            Amount::Share(share) if share > 0.0 && share < 1.0 => Ok(()),
            Amount::Count(count) if count > 0 => Ok(()),
            Amount::Share(got) => Err(wrong(part, got.to_string())),
            Amount::Count(got) => Err(wrong(part, got.to_string())),
        }
    }

    /// The units of a group that go, in order: those of least score, and of each set that must stay even equally many.
    pub(super) fn choose(
        self,
        part: Part,
        group: &Group,
        scores: &[f64],
        multiple_of: usize,
    ) -> Result<Vec<u32>> {
        let all = vec![(0..group.count as u32).collect::<Vec<_>>()];
        let sets = if group.coupling.even.is_empty() { &all } else { &group.coupling.even };
        let each = sets[0].len();
        let refuse = |expected: String, got: usize| {
            Err(Error::Setting { setting: part.name(), expected, got: got.to_string() })
        };
        let kept = match self {
            Amount::Share(share) => {
                let exact = each as f64 * (1.0 - share);
                let rounded = (exact / multiple_of as f64).round() as usize * multiple_of;
                rounded.max(multiple_of).min(each)
            }
            Amount::Count(count) if !count.is_multiple_of(sets.len()) => {
                return refuse(format!("a multiple of {}, the heads of the keys", sets.len()), count);
            }
            Amount::Count(count) if count / sets.len() >= each => {
                let expected = format!("less than all {} of `{}`", group.count, group.scope);
                return refuse(expected, count);
            }
            Amount::Count(count) => each - count / sets.len(),
        };
        let mut removed = vec![];
        for set in sets {
            let mut order = set.clone();
            order.sort_by(|&a, &b| scores[a as usize].total_cmp(&scores[b as usize]));
            removed.extend_from_slice(&order[..each - kept]);
        }
        removed.sort_unstable();
        Ok(removed)
    }
}

fn wrong(part: Part, got: String) -> Error {
    let expected = "a share above 0 and below 1, or a whole number above 0".into();
    Error::Setting { setting: part.name(), expected, got }
}
