//! `[quantize]`: training for a model that will be deployed in codes.

use serde::{Serialize, Serializer};

use super::error::Error;
use super::read::Section;
use crate::passes::{Deployed, HEADS, QuantizationAware};
use crate::tensor::quant::{Scheme, Share};

/// The quantised model that a run trains for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quantize {
    /// What becomes codes, and which.
    pub scheme: Codes,
    /// Scales of weights are learned (LSQ) instead of found anew in each step.
    pub learned_step: bool,
    /// Weights meant, as name patterns with `*`; each must fit one.
    pub targets: Vec<String>,
    /// Weights among them that stay as they are.
    pub ignore: Vec<String>,
}

/// A scheme by its name: `int4`, `int4-g32` or `W8A8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// Weights in codes of so many bits, with a scale for each output or for so many inputs of it.
    Weights {
        /// 2 to 8.
        bits: u32,
        /// Inputs that share a scale; absent: all.
        group: Option<usize>,
    },
    /// Weights and activations in 8 bits.
    W8A8,
}

impl Codes {
    fn parse(text: &str) -> Option<Codes> {
        if text == "W8A8" {
            return Some(Codes::W8A8);
        }
        let rest = text.strip_prefix("int")?;
        let (bits, group) = match rest.split_once("-g") {
            Some((bits, group)) => (bits, Some(group.parse().ok().filter(|&group| group > 0)?)),
            None => (rest, None),
        };
        let bits = bits.parse().ok().filter(|bits| (2..=8).contains(bits))?;
        Some(Codes::Weights { bits, group })
    }
}

impl std::fmt::Display for Codes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Codes::W8A8 => f.write_str("W8A8"),
            Codes::Weights { bits, group: None } => write!(f, "int{bits}"),
            Codes::Weights { bits, group: Some(group) } => write!(f, "int{bits}-g{group}"),
        }
    }
}

impl Serialize for Codes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Quantize {
    /// The pass that makes the loss that of the quantised model.
    pub fn pass(&self) -> QuantizationAware {
        let deployed = match self.scheme {
            Codes::W8A8 => Deployed::Both,
            Codes::Weights { bits, group } => {
                Deployed::Weights(Scheme::symmetric(bits, group.map_or(Share::Row, Share::Group)))
            }
        };
        QuantizationAware {
            deployed,
            learned_step: self.learned_step,
            targets: self.targets.clone(),
            ignore: self.ignore.clone(),
            trains: true,
        }
    }
}

/// Reads `[quantize]`, where it is written.
pub(super) fn quantize(section: &Section) -> Result<Option<Quantize>, Error> {
    let scheme = section.text("scheme")?;
    let Some(name) = scheme.get() else {
        let alone = ["learned_step", "targets", "ignore"].into_iter().find(|key| section.has(key));
        let hint = "a scheme says what is trained for: scheme = \"int4\"";
        return alone.map_or(Ok(None), |key| Err(section.refuse(key, "absent without `scheme`", hint)));
    };
    let Some(codes) = Codes::parse(name) else {
        let expected = "int2 .. int8, int4-g32 and the like, or W8A8".to_string();
        let hint = "a scale for each output unless -g and a number say how many inputs share one".to_string();
        return Err(scheme.impossible(expected, hint));
    };
    let learned = section.flag("learned_step")?;
    let fits = |&learned: &bool| !learned || codes != Codes::W8A8;
    let hint = "scales of W8A8 are found as the deployed model finds them";
    let learned_step = learned.must(fits, "false beside scheme = \"W8A8\"", hint)?.or(false);
    let some = |names: &Vec<String>| !names.is_empty();
    let targets = section.texts("targets")?.must(some, "at least one pattern", "\"*\" means every layer")?;
    Ok(Some(Quantize {
        scheme: codes,
        learned_step,
        targets: targets.or(vec!["*".to_string()]),
        ignore: section.texts("ignore")?.or(heads()),
    }))
}

/// Layers that are usually left as they are.
pub(super) fn heads() -> Vec<String> {
    HEADS.map(str::to_string).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_named_by_bits_and_group() {
        for name in ["int3", "int8", "int4-g32", "W8A8"] {
            assert_eq!(Codes::parse(name).map(|codes| codes.to_string()).as_deref(), Some(name));
        }
        for wrong in ["int1", "int9", "int", "int4-g0", "int4-g", "w8a8", "float", ""] {
            assert_eq!(Codes::parse(wrong), None, "{wrong}");
        }
    }
}
