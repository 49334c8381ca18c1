//! Bits where they help most: a scheme for each layer within a budget of bits per weight.
//!
//! The least sum of losses under a bound on the sum of bits, one choice for each layer. For a price of a bit each layer chooses for
//! itself; the price is found by halving, and what then is left of the budget goes to the layers that gain most by the bit.

use super::scheme::named;
use super::sensitivity::Sensitivity;
use super::{Assignment, Error, Result};
use std::collections::BTreeMap;

/// Halvings of the price of a bit.
const HALVINGS: usize = 100;

/// One way to code one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Bits of all its weights.
    pub bits: f64,
    /// What it costs in loss.
    pub loss: f64,
}

/// For each layer the number of its choice, so that together they take at most `budget` bits; none if there is no such choice.
pub fn assign(layers: &[Vec<Choice>], budget: f64) -> Option<Vec<usize>> {
    let pick = |price: f64| -> Vec<usize> {
        let best = |choices: &Vec<Choice>| {
            let cost = |&at: &usize| choices[at].loss + price * choices[at].bits;
            let order = |a: &usize, b: &usize| {
                cost(a).total_cmp(&cost(b)).then(choices[*a].bits.total_cmp(&choices[*b].bits))
            };
            (0..choices.len()).min_by(order)
        };
        layers.iter().filter_map(best).collect()
    };
    let bits = |picked: &[usize]| layers.iter().zip(picked).map(|(c, &at)| c[at].bits).sum::<f64>();
    if layers.iter().any(Vec::is_empty) {
        return None;
    }
    let fewest = |choices: &Vec<Choice>| {
        (0..choices.len()).min_by(|&a, &b| choices[a].bits.total_cmp(&choices[b].bits)).unwrap_or(0)
    };
    let mut best: Vec<usize> = layers.iter().map(fewest).collect();
    if bits(&best) > budget {
        return None;
    }
    let (mut low, mut high) = (0.0f64, 1.0f64);
    while bits(&pick(high)) > budget && high < 1e300 {
        high *= 16.0;
    }
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        let picked = pick(middle);
        if bits(&picked) <= budget {
            (best, high) = (picked, middle);
        } else {
            low = middle;
        }
    }
    // What is left over: the exchange that gains most by the bit, as long as one fits.
    loop {
        let left = budget - bits(&best);
        let mut exchange: Option<(usize, usize, f64)> = None;
        for (layer, choices) in layers.iter().enumerate() {
            let now = choices[best[layer]];
            for (at, other) in choices.iter().enumerate() {
                let (more, gain) = (other.bits - now.bits, now.loss - other.loss);
                let worth = gain / more.max(1.0);
                if more <= left && gain > 0.0 && exchange.is_none_or(|(_, _, best)| worth > best) {
                    exchange = Some((layer, at, worth));
                }
            }
        }
        match exchange {
            Some((layer, at, _)) => best[layer] = at,
            None => return Some(best),
        }
    }
}

impl Sensitivity {
    /// The schemes that keep to `budget` bits per weight, all layers together, at the least loss; of those that were measured, or
    /// of `choices`. Gives the estimated loss as well.
    pub fn assign(&self, budget: f64, choices: Option<&[String]>) -> Result<(Assignment, f64)> {
        let mut names: Vec<Vec<&'static str>> = vec![];
        let mut layers = vec![];
        for layer in &self.layers {
            let count = (layer.rows * layer.cols) as f64;
            let (mut here, mut list) = (vec![], vec![]);
            for (name, &loss) in &layer.loss {
                let scheme = named(name)?;
                if let Some(choices) = choices {
                    let wanted =
                        choices.iter().map(|choice| Ok(named(choice)?.name)).collect::<Result<Vec<_>>>()?;
                    if !wanted.contains(&scheme.name) {
                        continue;
                    }
                }
                here.push(scheme.name);
                list.push(Choice { bits: count * scheme.bits_per_weight(layer.rows, layer.cols), loss });
            }
            names.push(here);
            layers.push(list);
        }
        let total: f64 = self.layers.iter().map(|layer| (layer.rows * layer.cols) as f64).sum();
        let least = || {
            let fewest = |list: &Vec<Choice>| list.iter().map(|c| c.bits).fold(f64::INFINITY, f64::min);
            layers.iter().map(fewest).sum::<f64>() / total
        };
        let picked =
            assign(&layers, budget * total).ok_or_else(|| Error::Budget { budget, least: least() })?;
        let mut each = BTreeMap::new();
        let mut loss = 0.0;
        for (number, &at) in picked.iter().enumerate() {
            each.insert(self.layers[number].weight.clone(), named(names[number][at])?);
            loss += layers[number][at].loss;
        }
        Ok((Assignment { scheme: named("f32")?, each }, loss))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random::Stream;

    fn cost(layers: &[Vec<Choice>], picked: &[usize]) -> (f64, f64) {
        let both = layers.iter().zip(picked).map(|(choices, &at)| choices[at]);
        both.fold((0.0, 0.0), |(bits, loss), choice| (bits + choice.bits, loss + choice.loss))
    }

    #[test]
    fn the_choice_keeps_to_the_budget_and_comes_near_the_best_there_is() {
        for seed in 0..20 {
            let mut random = Stream::new(&[seed]);
            let layers: Vec<Vec<Choice>> = (0..6)
                .map(|_| {
                    let (size, mind) = (1.0 + random.uniform() * 9.0, random.uniform());
                    let choice =
                        |bits: f64| Choice { bits: bits * size, loss: mind * size * 4f64.powf(-bits) };
                    [3.0, 4.0, 8.0].map(choice).to_vec()
                })
                .collect();
            let least: f64 = layers.iter().map(|choices| choices[0].bits).sum();
            for budget in [least, least * 1.2, least * 1.7, least * 9.0] {
                let (bits, loss) = cost(&layers, &assign(&layers, budget).unwrap());
                assert!(bits <= budget);
                let all = (0..3usize.pow(6))
                    .map(|code| (0..6).map(|l| code / 3usize.pow(l) % 3).collect::<Vec<_>>());
                let fitting = all.map(|picked| cost(&layers, &picked)).filter(|(bits, _)| *bits <= budget);
                let best = fitting.map(|(_, loss)| loss).fold(f64::INFINITY, f64::min);
                // With few layers the last one that does not fit may cost something.
                assert!(loss <= 1.6 * best + 1e-12, "{loss} {best}");
            }
            assert_eq!(assign(&layers, least * 0.99), None);
        }
    }

    #[test]
    fn a_budget_below_the_least_scheme_is_an_error() {
        let loss = [("int8".to_string(), 0.1), ("int4-g32".to_string(), 0.4)].into();
        let layer =
            super::super::LayerScore { weight: "a".into(), rows: 4, cols: 64, loss, pruned: BTreeMap::new() };
        let known = Sensitivity { family: "gpt2".into(), tokens: 1, pruned_by: None, layers: vec![layer] };
        assert!(matches!(known.assign(4.0, None), Err(Error::Budget { least, .. }) if least == 4.5));
        assert!(matches!(known.assign(8.0, Some(&["int8".into()])), Err(Error::Budget { .. })));
        let (assignment, loss) = known.assign(9.0, None).unwrap();
        assert_eq!((assignment.of("a").name, loss), ("int8", 0.1));
        assert_eq!(known.assign(5.0, None).unwrap().0.of("a").name, "int4-g32");
    }
}
