//! `[quantize]`: training for a model that will be deployed in codes.

use serde::Serialize;

use super::error::Error;
use super::read::Section;
use crate::passes::{Deployed, HEADS, QuantizationAware};
use crate::tensor::quant::{Scheme, Share};

/// The quantised model that a run trains for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quantize {
    /// What becomes codes, by the name of a scheme: `int4-g32`, `int3`, `W8A8`.
    pub scheme: String,
    /// Scales of weights are learned (LSQ) instead of found anew in each step; codes are then symmetric.
    pub learned_step: bool,
    /// Weights meant, as name patterns with `*`; each must fit one.
    pub targets: Vec<String>,
    /// Weights among them that stay as they are.
    pub ignore: Vec<String>,
}

/// What a name stands for: bits, a scale for each output (`-row`) or for so many inputs of it (`-g32`), and perhaps `-asym`.
fn deployed(name: &str, learned_step: bool) -> Option<Deployed> {
    if name == "W8A8" {
        return (!learned_step).then_some(Deployed::Both);
    }
    let mut parts = name.strip_prefix("int")?.split('-');
    let bits = match parts.next()? {
        "2" => 2,
        "3" => 3,
        "4" => 4,
        "8" => 8,
        _ => return None,
    };
    let rest: Vec<&str> = parts.collect();
    let (share, asymmetric) = match rest[..] {
        [] if bits == 4 => (Share::Group(32), false),
        // A scale for a whole row of so few codes leaves none to spare for a side that no weight is on.
        [] | ["row"] => (Share::Row, bits < 8),
        ["asym"] if bits == 8 => (Share::Row, true),
        [group] => (Share::Group(size(group)?), bits < 4),
        [group, "asym"] => (Share::Group(size(group)?), true),
        _ => return None,
    };
    Some(Deployed::Weights(match (learned_step, asymmetric, bits) {
        (true, ..) | (_, false, 8) => Scheme::symmetric(bits, share),
        (_, true, _) => Scheme::asymmetric(bits, share),
        _ => Scheme::wide(bits, share),
    }))
}

fn size(group: &str) -> Option<usize> {
    group.strip_prefix('g')?.parse().ok().filter(|&size| size > 0)
}

impl Quantize {
    /// The pass that makes the loss that of the quantised model.
    pub fn pass(&self) -> QuantizationAware {
        QuantizationAware {
            deployed: deployed(&self.scheme, self.learned_step).expect("checked when it was read"),
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
    if deployed(name, false).is_none() {
        let expected =
            "int8, int4, int4-g128, int3, int4-row, int4-g32-asym and the like, or W8A8".to_string();
        let hint =
            "-g and a number say how many inputs share a scale, -row that all of an output do".to_string();
        return Err(scheme.impossible(expected, hint));
    }
    let learned = section.flag("learned_step")?;
    let fits = |&learned: &bool| deployed(name, learned).is_some();
    let hint = "scales of W8A8 are found as the deployed model finds them";
    let learned_step = learned.must(fits, "false beside scheme = \"W8A8\"", hint)?.or(false);
    let some = |names: &Vec<String>| !names.is_empty();
    let targets = section.texts("targets")?.must(some, "at least one pattern", "\"*\" means every layer")?;
    Ok(Some(Quantize {
        scheme: name.clone(),
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
    fn schemes_are_named_by_bits_and_what_shares_a_scale() {
        let weights = |name| match deployed(name, false) {
            Some(Deployed::Weights(scheme)) => scheme,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(weights("int8"), Scheme::symmetric(8, Share::Row));
        assert_eq!(weights("int8-asym"), Scheme::asymmetric(8, Share::Row));
        assert_eq!(weights("int4"), Scheme::wide(4, Share::Group(32)));
        assert_eq!(weights("int4-g128"), Scheme::wide(4, Share::Group(128)));
        assert_eq!(weights("int4-g32-asym"), Scheme::asymmetric(4, Share::Group(32)));
        assert_eq!(weights("int4-row"), Scheme::asymmetric(4, Share::Row));
        assert_eq!(weights("int3"), Scheme::asymmetric(3, Share::Row));
        assert_eq!(deployed("int3", true), Some(Deployed::Weights(Scheme::symmetric(3, Share::Row))));
        assert_eq!(deployed("W8A8", false), Some(Deployed::Both));
        for wrong in ["int1", "int9", "int", "int4-g0", "int4-g", "int4-32", "int8-asym-row", "float", ""] {
            assert_eq!(deployed(wrong, false), None, "{wrong}");
        }
    }
}
