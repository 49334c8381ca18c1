//! How an encoder-decoder learns from text alone: `data.objective`.

use serde::Serialize;

use super::error::Error;
use super::read::Section;

/// How text is damaged, to be made whole again.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Objective {
    /// Spans are left out, and the target tells them, as T5 learns.
    Spans {
        /// Share of the tokens left out.
        share: f64,
        /// Tokens in a span, on the mean.
        mean: f64,
    },
    /// Spans are replaced by one mask each and sentences are shuffled, and the target is the text, as BART learns.
    Infilling {
        /// Share of the tokens replaced.
        share: f64,
        /// Tokens in a span, on the mean.
        mean: f64,
        /// Sentences are shuffled.
        shuffle: bool,
    },
}

impl Objective {
    /// As in the paper of T5.
    pub const SPANS: Objective = Objective::Spans { share: 0.15, mean: 3.0 };
    /// As in the paper of BART.
    pub const INFILLING: Objective = Objective::Infilling { share: 0.3, mean: 3.0, shuffle: true };
}

/// Reads it; absent where the recipe says nothing.
pub(super) fn objective(section: &Section) -> Result<Option<Objective>, Error> {
    if !section.has("objective") {
        return Ok(None);
    }
    let table = section.inner("objective", &["kind", "share", "mean", "shuffle"])?;
    let kinds = [("spans", Objective::SPANS), ("infilling", Objective::INFILLING)];
    let usual = table.word("kind", &kinds)?.need("\"spans\" as in T5, or \"infilling\" as in BART")?;
    let share = |usual: f64| -> Result<f64, Error> {
        let fits = |share: &f64| *share > 0.0 && *share < 1.0;
        Ok(table.number("share")?.must(fits, "above 0 and below 1", "T5 has 0.15, BART 0.3")?.or(usual))
    };
    let mean = |usual: f64| -> Result<f64, Error> {
        let fits = |mean: &f64| (1.0..=100.0).contains(mean);
        Ok(table.number("mean")?.must(fits, "from 1 to 100", "both papers have 3")?.or(usual))
    };
    match usual {
        Objective::Spans { share: usual_share, mean: usual_mean } => {
            table.only(&["kind", "share", "mean"], "only infilling shuffles sentences")?;
            Ok(Some(Objective::Spans { share: share(usual_share)?, mean: mean(usual_mean)? }))
        }
        Objective::Infilling { share: usual_share, mean: usual_mean, shuffle } => {
            Ok(Some(Objective::Infilling {
                share: share(usual_share)?,
                mean: mean(usual_mean)?,
                shuffle: table.flag("shuffle")?.or(shuffle),
            }))
        }
    }
}
