//! Scores and residual streams of models over a text, side by side.

use super::statistics::{Comparison, Noise, Summary};
use super::{Error, Result};
use crate::data::windows::Batch;
use crate::deploy::Deployment;
use crate::model::{Extent, Family, Mode, Weights};
use crate::plan::Engine;
use crate::tensor::Tensor;
use crate::train::job::feeds_of;
use crate::train::{self, Target};

/// Bytes of the reference's results that are kept from one comparison to the next; beyond that it computes them again.
const KEPT_BYTES: usize = 1 << 30;

/// A model: what it is and its weights.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// The architecture.
    pub family: &'a dyn Family,
    /// The weights, as they are stored.
    pub weights: &'a Weights,
}

/// What a model makes of a batch.
struct Pass {
    /// Scores at each position, [N, V].
    logits: Tensor,
    /// The residual stream after each block, [N, C] each.
    hidden: Vec<Tensor>,
}

impl Pass {
    fn size_bytes(&self) -> usize {
        4 * (self.logits.shape.count() + self.hidden.iter().map(|x| x.shape.count()).sum::<usize>())
    }
}

/// A model on a device, ready to score batches of one size.
pub struct Scored {
    engine: Box<dyn Engine>,
    feeds: Vec<String>,
    extent: Extent,
}

impl Scored {
    /// Brings a model to a device.
    pub fn new(model: Model, target: &Target, extent: Extent) -> Result<Scored> {
        let deployment = Deployment::new(model.weights).within(target);
        let graph = deployment.graph(model.family, extent, Mode::Evaluate, |graph, forward| {
            graph.output("logits", forward.logits);
            for (number, value) in forward.hidden.into_iter().enumerate() {
                graph.output(format!("hidden.{number}"), value);
            }
            Ok(())
        })?;
        let (engine, plans) = deployment.engine(target, &[graph])?;
        let feeds = plans[0].feeds.iter().map(|feed| feed.name.clone()).collect();
        Ok(Scored { engine, feeds, extent })
    }

    fn run(&mut self, batch: &Batch) -> Result<Pass> {
        let feeds = feeds_of(batch, self.extent);
        let list: Option<Vec<&Tensor>> = self.feeds.iter().map(|name| feeds.get(name)).collect();
        let list = list.expect("tokens are all that a forward pass takes");
        let mut results = self.engine.run(0, &list).map_err(train::Error::from)?;
        let hidden = results.split_off(1);
        Ok(Pass { logits: results.swap_remove(0), hidden })
    }
}

/// How far a model is from the reference.
#[derive(Clone, Debug)]
pub struct Apart {
    /// Token by token.
    pub summary: Summary,
    /// Signal to noise of the residual stream in dB, by place; none where it is the same. Empty for models of other sizes.
    pub hidden: Vec<(String, Option<f64>)>,
}

/// The model that others are held against.
pub struct Reference<'a> {
    scored: Scored,
    batches: &'a [Batch],
    /// What it made of the first batches, as many as there is room for.
    kept: Vec<Pass>,
    left_bytes: usize,
}

impl<'a> Reference<'a> {
    /// For comparisons over these batches.
    pub fn new(scored: Scored, batches: &'a [Batch]) -> Reference<'a> {
        Reference { scored, batches, kept: vec![], left_bytes: KEPT_BYTES }
    }

    /// Runs another over the text, or for `None` holds the reference against itself.
    pub fn against(&mut self, mut other: Option<&mut Scored>) -> Result<Apart> {
        let mut comparison = Comparison::default();
        let mut noises: Vec<Noise> = vec![];
        let mut fresh;
        for (number, batch) in self.batches.iter().enumerate() {
            if number == self.kept.len() {
                fresh = Some(self.scored.run(batch)?);
                let bytes = fresh.as_ref().map_or(0, Pass::size_bytes);
                if bytes <= self.left_bytes {
                    self.left_bytes -= bytes;
                    self.kept.extend(fresh.take());
                } else {
                    // No later batch is kept either, so that those that are stay the first.
                    self.left_bytes = 0;
                }
            } else if number > self.kept.len() {
                fresh = Some(self.scored.run(batch)?);
            } else {
                fresh = None;
            }
            let first = fresh.as_ref().unwrap_or_else(|| &self.kept[number]);
            let run = other.as_mut().map(|other| other.run(batch)).transpose()?;
            let second = run.as_ref().unwrap_or(first);
            let vocabulary = first.logits.shape.last();
            let (a, b) = (first.logits.real::<f32>(), second.logits.real::<f32>());
            let size = batch.context * vocabulary;
            for (row, targets) in batch.targets.chunks(batch.context).enumerate() {
                let at = row * size..(row + 1) * size;
                comparison.add(&a[at.clone()], &b[at], targets, vocabulary);
            }
            // Models of other depth or width have no places in common.
            let alike = first.hidden.len() == second.hidden.len()
                && first.hidden.iter().zip(&second.hidden).all(|(x, y)| x.shape == y.shape);
            noises.resize(if alike { first.hidden.len() } else { 0 }, Noise::default());
            // What fills the last batch up stands behind all that counts.
            let live = batch.targets.iter().rposition(|&target| target >= 0).map_or(0, |last| last + 1);
            for (noise, (x, y)) in noises.iter_mut().zip(first.hidden.iter().zip(&second.hidden)) {
                let rows = live * x.shape.last();
                noise.add(&x.real::<f32>()[..rows], &y.real::<f32>()[..rows]);
            }
        }
        let summary = comparison.summary().ok_or(Error::ShortText { expected: 2, got: 0 })?;
        for (which, loss) in ["first", "second"].into_iter().zip(summary.losses) {
            if !loss.value.is_finite() {
                return Err(Error::NotFinite { which });
            }
        }
        let last = noises.len().saturating_sub(1);
        let place = |number: usize| match number {
            0 => "embedding".to_string(),
            _ if number == last => "final norm".to_string(),
            _ => format!("block {}", number - 1),
        };
        let hidden = noises.iter().enumerate().map(|(n, noise)| (place(n), noise.decibels())).collect();
        Ok(Apart { summary, hidden })
    }
}

/// Signal to noise of each weight in dB, in the first model's order; none where both are the same.
pub fn weight_noise(first: Model, second: Model) -> Result<Vec<(String, Option<f64>)>> {
    let of = |spec: crate::model::ParameterSpec| {
        let (a, b) = (first.weights.numbers(&spec.name)?, second.weights.numbers(&spec.name)?);
        let mut noise = Noise::default();
        noise.add(a.real(), b.real());
        Ok((spec.name, noise.decibels()))
    };
    first.family.parameters().into_iter().map(of).collect()
}

/// Refuses models that do not have the same weights in the same shapes.
pub fn expect_alike(first: &dyn Family, second: &dyn Family) -> Result<()> {
    let unlike = |what: String, first: String, second: String| Err(Error::Unlike { what, first, second });
    let (a, b) = (first.vocabulary(), second.vocabulary());
    if a != b {
        return unlike("vocabulary".into(), format!("{a} tokens"), format!("{b} tokens"));
    }
    let (a, b) = (first.parameters(), second.parameters());
    if let Some((a, b)) = a.iter().zip(&b).find(|(a, b)| (&a.name, &a.shape) != (&b.name, &b.shape)) {
        let words = |spec: &crate::model::ParameterSpec| format!("{} {}", spec.name, spec.shape);
        return unlike("their weights".into(), words(a), words(b));
    }
    if a.len() != b.len() {
        return unlike("the number of weights".into(), a.len().to_string(), b.len().to_string());
    }
    Ok(())
}

/// As many of the batches, spread evenly, as have at most so many tokens; one at least.
pub fn spread_evenly(batches: Vec<Batch>, most_tokens: usize) -> Vec<Batch> {
    let each = batches.first().map_or(1, |batch| batch.rows * batch.context).max(1);
    let (all, wanted) = (batches.len(), (most_tokens / each).max(1));
    if wanted >= all {
        return batches;
    }
    let chosen: Vec<usize> = (0..wanted).map(|n| n * all / wanted).collect();
    let is_chosen = |(number, batch)| chosen.contains(&number).then_some(batch);
    batches.into_iter().enumerate().filter_map(is_chosen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::windows::sweep;
    use crate::model::{Activation, Design, build, initial};

    fn design() -> Design {
        Design {
            layers: 2,
            heads: 2,
            kv_heads: None,
            head_size: None,
            width: 16,
            hidden: Some(24),
            context: 8,
            vocabulary: 11,
            activation: Activation::named("gelu").unwrap(),
            norm_epsilon: 1e-5,
            dropout: 0.0,
            bias: true,
            tie: false,
            rope_theta: None,
            window: None,
        }
    }

    fn batches() -> Vec<Batch> {
        let tokens: Vec<u32> = (0..70).map(|n| n * n % 11).collect();
        sweep(&tokens, 8, 2).unwrap().collect()
    }

    #[test]
    fn a_model_is_nowhere_from_itself_and_noise_in_a_block_shows_from_there_on() {
        let family = build("gpt2", &design()).unwrap();
        let weights = initial(&family.parameters(), 3);
        let mut other = weights.clone();
        let name = "transformer.h.1.mlp.c_proj.weight";
        let mut tensor = weights.get(name).unwrap().clone();
        tensor.real_mut::<f32>().iter_mut().for_each(|x| *x *= 1.1);
        other.set(name, tensor);
        let (batches, extent) = (batches(), Extent { batch: 2, context: 8 });
        let model = |weights| Model { family: family.as_ref(), weights };
        let scored = |weights| Scored::new(model(weights), &Target::Host, extent).unwrap();
        let mut reference = Reference::new(scored(&weights), &batches);
        // The second time all is at hand.
        for _ in 0..2 {
            let same = reference.against(Some(&mut scored(&weights))).unwrap();
            assert_eq!(
                (same.summary.most, same.summary.agreement.value, same.summary.tokens),
                (0.0, 1.0, 69)
            );
            assert!(same.hidden.iter().all(|(_, decibels)| decibels.is_none()));
            let apart = reference.against(Some(&mut scored(&other))).unwrap();
            let places: Vec<&str> = apart.hidden.iter().map(|(place, _)| place.as_str()).collect();
            assert_eq!(places, ["embedding", "block 0", "final norm"]);
            assert!(apart.hidden[1].1.is_none() && apart.hidden[2].1.unwrap() > 10.0, "{:?}", apart.hidden);
            assert!(apart.summary.divergence.value > 0.0 && apart.summary.divergence.error.unwrap() > 0.0);
        }
        let alone = reference.against(None).unwrap();
        assert_eq!(alone.summary.losses[0], alone.summary.losses[1]);
        let noise = weight_noise(model(&weights), model(&other)).unwrap();
        let changed: Vec<_> = noise.iter().filter(|(_, decibels)| decibels.is_some()).collect();
        // A tenth off everywhere: 20 dB.
        assert!(changed.len() == 1 && changed[0].0 == name && (changed[0].1.unwrap() - 20.0).abs() < 1e-3);
    }

    #[test]
    fn what_does_not_fit_in_memory_is_computed_again() {
        let family = build("gpt2", &design()).unwrap();
        let weights = initial(&family.parameters(), 3);
        let other = initial(&family.parameters(), 4);
        let (batches, extent) = (batches(), Extent { batch: 2, context: 8 });
        let scored =
            |weights| Scored::new(Model { family: family.as_ref(), weights }, &Target::Host, extent).unwrap();
        let mut whole = Reference::new(scored(&weights), &batches);
        let mut tight = Reference { left_bytes: 6000, ..Reference::new(scored(&weights), &batches) };
        let expected = whole.against(Some(&mut scored(&other))).unwrap();
        for _ in 0..2 {
            let got = tight.against(Some(&mut scored(&other))).unwrap();
            assert!(got.summary == expected.summary && got.hidden == expected.hidden);
        }
        assert!((1..batches.len()).contains(&tight.kept.len()), "{}", tight.kept.len());
    }

    #[test]
    fn models_of_other_designs_are_refused() {
        let first = build("gpt2", &design()).unwrap();
        let wider = build("gpt2", &Design { vocabulary: 12, ..design() }).unwrap();
        let deeper = build("gpt2", &Design { layers: 3, ..design() }).unwrap();
        let error = |other: &dyn Family| expect_alike(first.as_ref(), other).unwrap_err().to_string();
        assert!(error(wider.as_ref()).contains("vocabulary: 11 tokens and 12 tokens"));
        assert!(error(deeper.as_ref()).contains("hint"));
        expect_alike(first.as_ref(), first.as_ref()).unwrap();
    }

    #[test]
    fn a_long_text_is_measured_at_places_spread_evenly() {
        let all = batches();
        assert_eq!(spread_evenly(all.clone(), 1000), all);
        let some = spread_evenly(all.clone(), 33);
        assert!(some.len() == 2 && some[0] == all[0] && some[1] == all[2], "{}", all.len());
        assert_eq!(spread_evenly(all, 1).len(), 1);
    }
}
