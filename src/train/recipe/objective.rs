//! How an encoder-decoder, or a BERT, learns from text alone: `data.objective`.

use serde::Serialize;

use super::error::Error;
use super::read::Section;

/// How text is damaged, to be made whole again.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
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
    /// Hidden tokens are guessed, and of two stretches whether the second follows the first, as BERT learns.
    NextSentence {
        /// Share of pairs that are shorter than the context.
        short: f64,
    },
    /// Hidden tokens are guessed, and of two stretches in which order they stand, as ALBERT learns.
    SentenceOrder {
        /// Share of pairs that are shorter than the context.
        short: f64,
    },
}

impl Objective {
    /// As in the paper of T5.
    pub const SPANS: Objective = Objective::Spans { share: 0.15, mean: 3.0 };
    /// As in the paper of BART.
    pub const INFILLING: Objective = Objective::Infilling { share: 0.3, mean: 3.0, shuffle: true };
    /// As in the paper of BERT.
    pub const NEXT_SENTENCE: Objective = Objective::NextSentence { short: 0.1 };
    /// As in the paper of ALBERT.
    pub const SENTENCE_ORDER: Objective = Objective::SentenceOrder { short: 0.1 };

    /// True where pairs of stretches are told apart.
    pub fn is_of_pairs(&self) -> bool {
        matches!(self, Objective::NextSentence { .. } | Objective::SentenceOrder { .. })
    }
}

/// Reads it; absent where the recipe says nothing.
pub(super) fn objective(section: &Section) -> Result<Option<Objective>, Error> {
    if !section.has("objective") {
        return Ok(None);
    }
    let table = section.inner("objective", &["kind", "share", "mean", "shuffle", "short"])?;
    let kinds = [
        ("spans", Objective::SPANS),
        ("infilling", Objective::INFILLING),
        ("next-sentence", Objective::NEXT_SENTENCE),
        ("sentence-order", Objective::SENTENCE_ORDER),
    ];
    let hint = "\"spans\" as in T5, \"infilling\" as in BART, \"next-sentence\" as in BERT, \"sentence-order\" as in ALBERT";
    let usual = table.word("kind", &kinds)?.need(hint)?;
    if usual.is_of_pairs() {
        table.only(&["kind", "short"], "pairs are of whole sentences")?;
    } else {
        table.only(&["kind", "share", "mean", "shuffle"], "only pairs of stretches are cut short")?;
    }
    let short = |usual: f64| -> Result<f64, Error> {
        let fits = |short: &f64| (0.0..=1.0).contains(short);
        Ok(table.number("short")?.must(fits, "from 0 to 1", "BERT has 0.1")?.or(usual))
    };
    let share = |usual: f64| -> Result<f64, Error> {
        let fits = |share: &f64| *share > 0.0 && *share < 1.0;
        Ok(table.number("share")?.must(fits, "above 0 and below 1", "T5 has 0.15, BART 0.3")?.or(usual))
    };
    let mean = |usual: f64| -> Result<f64, Error> {
        let fits = |mean: &f64| (1.0..=100.0).contains(mean);
        Ok(table.number("mean")?.must(fits, "from 1 to 100", "both papers have 3")?.or(usual))
    };
    match usual {
        Objective::NextSentence { short: usual } => {
            Ok(Some(Objective::NextSentence { short: short(usual)? }))
        }
        Objective::SentenceOrder { short: usual } => {
            Ok(Some(Objective::SentenceOrder { short: short(usual)? }))
        }
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
