//! Shapes of rungs: written one by one, or filled in between two numbers of parameters.

use super::Result;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Tokens and parameters of a rung at most: what lies beyond is a slip of the pen.
pub(super) const MOST: f64 = 1e15;

/// Layers of a rung at most.
const MOST_LAYERS: usize = 64;

/// A shape: `64x4x2`, width by layers by heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    /// Channels of the residual stream.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of each block, which divide the width.
    pub heads: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.width, self.layers, self.heads)
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.to_string()
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Size, String> {
        text.parse()
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("a size is \"{text}\", expected WIDTHxLAYERSxHEADS such as \"64x4x2\"");
        let numbers: Vec<usize> =
            text.trim().split('x').map(|part| part.parse().map_err(|_| wrong())).collect::<Result<_, _>>()?;
        let [width, layers, heads] = numbers[..] else { return Err(wrong()) };
        if width == 0 || layers == 0 || heads == 0 {
            return Err(wrong());
        }
        if !width.is_multiple_of(heads) {
            let (below, above) = (width / heads * heads, (width / heads + 1) * heads);
            let fits = if below == 0 { above.to_string() } else { format!("{below} or {above}") };
            return Err(format!(
                "size \"{text}\": {heads} heads do not divide the width of {width}\n  hint: a width of {fits} does"
            ));
        }
        Ok(Size { width, layers, heads })
    }
}

/// Sizes from one number of parameters to another, filled in geometrically.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Range {
    /// Parameters of the smallest rung, about.
    pub from: f64,
    /// Parameters of the largest.
    pub to: f64,
    /// How many.
    pub rungs: usize,
    /// Channels of a head.
    pub head_size: usize,
    /// Width over layers, about.
    pub aspect: usize,
}

impl Default for Range {
    fn default() -> Range {
        Range { from: 0.0, to: 0.0, rungs: 6, head_size: 16, aspect: 16 }
    }
}

impl Range {
    /// Refuses ends that are none.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(self.from.is_finite()
            && self.to.is_finite()
            && self.from >= 1.0
            && self.to >= self.from
            && self.to <= MOST)
        {
            return Err(format!(
                "range goes from {} to {}, expected two numbers of parameters, the smaller first, at most {MOST:e}",
                self.from, self.to
            ));
        }
        let numbers =
            [("rungs", self.rungs, 2), ("head_size", self.head_size, 1), ("aspect", self.aspect, 1)];
        match numbers.into_iter().find(|(_, got, least)| got < least) {
            Some((key, got, least)) => Err(format!("range.{key} is {got}, expected {least} or more")),
            None => Ok(()),
        }
    }

    /// Shapes whose parameters are near to a geometric row, of about the wanted aspect. `count` counts a shape's parameters.
    pub fn fill(&self, count: &mut dyn FnMut(Size) -> Result<usize>) -> Result<Result<Vec<Size>, String>> {
        let (mut known, mut heads) = (vec![], 0);
        loop {
            // Every number of heads, and from 32 on steps of some three percent.
            heads += (heads / 32).max(1);
            let size = |layers| Size { width: heads * self.head_size, layers, heads };
            // Layers are alike: two models tell what any number of them takes.
            let [one, two] = [count(size(1))? as f64, count(size(2))? as f64];
            known.extend(
                (1..=MOST_LAYERS).map(|layers| (size(layers), one + (layers - 1) as f64 * (two - one))),
            );
            if one > 2.0 * self.to {
                break;
            }
        }
        let off = |&(size, parameters): &(Size, f64), target: f64| {
            let aspect = size.width as f64 / size.layers as f64 / self.aspect as f64;
            (parameters / target).ln().abs() + 0.15 * aspect.ln().abs()
        };
        let step = (self.to / self.from).powf(1.0 / (self.rungs - 1) as f64);
        let mut sizes: Vec<Size> = vec![];
        for rung in 0..self.rungs {
            let target = self.from * step.powi(rung as i32);
            let best = known.iter().min_by(|a, b| off(a, target).total_cmp(&off(b, target)));
            let &(size, _) = best.expect("one head and one layer are always looked at");
            if sizes.contains(&size) {
                let heads = self.head_size;
                return Ok(Err(format!(
                    "range: no {} shapes with heads of {heads} lie apart between {} and {} parameters: {size} would be there twice\n  hint: lower range.rungs or range.head_size, or widen the range",
                    self.rungs, self.from, self.to
                )));
            }
            sizes.push(size);
        }
        Ok(Ok(sizes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_filled_with_shapes_whose_parameters_grow_by_a_factor() {
        // A GPT's: 12 w^2 a layer, and tables of 129 rows.
        let mut count = |size: Size| Ok(12 * size.width * size.width * size.layers + 129 * size.width);
        let range: Range = toml::from_str("from = 5e3\nto = 5e5").unwrap();
        let sizes = range.fill(&mut count).unwrap().unwrap();
        assert_eq!(sizes.len(), 6);
        let parameters: Vec<f64> = sizes.iter().map(|&size| count(size).unwrap() as f64).collect();
        for (at, parameters) in parameters.iter().enumerate() {
            let target = 5e3 * 100f64.powf(at as f64 / 5.0);
            assert!((parameters / target).ln().abs() < 0.35, "{sizes:?} {parameters} {target}");
        }
        let narrow = Range { to: 5.5e3, ..range };
        assert!(narrow.fill(&mut count).unwrap().unwrap_err().contains("there twice"));
    }
}
