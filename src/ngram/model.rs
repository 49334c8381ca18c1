//! Probabilities from counts.

use super::smoothing::Smoothing;
use super::trie::Trie;
use super::{Error, MOST_ORDER, Result};
use rayon::prelude::*;
use std::ops::Range;

/// Counts of runs and the way probabilities come of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    trie: Trie,
    vocabulary: usize,
    smoothing: Smoothing,
    discounts: Vec<Vec<f64>>,
    /// For each context that has a place in a level; the empty one is by itself.
    contexts: Vec<Vec<Context>>,
    empty: Context,
}

/// What follows a context.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Context {
    /// Sum of the counts.
    total: f64,
    /// Share that was taken off them; of Katz's, the factor of what the next shorter context says.
    left: f64,
}

impl Model {
    /// Counts the runs of a text.
    pub fn train(tokens: &[u32], vocabulary: usize, order: usize, smoothing: Smoothing) -> Result<Model> {
        if !(1..=MOST_ORDER).contains(&order) {
            return Err(Error::Setting { setting: "order", expected: "1 to 16", got: order.to_string() });
        }
        if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
            return Err(Error::Length { got: tokens.len(), expected: "1 to 2^32 - 1" });
        }
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Error::Token { token, vocabulary });
        }
        smoothing.check()?;
        let mut trie = Trie::count(tokens, order);
        if smoothing.counts_what_stands_before() {
            trie.count_what_stands_before();
        }
        let discounts = smoothing.discounts(&trie);
        Ok(Model::of(trie, vocabulary, smoothing, discounts))
    }

    /// From tables that are known to be sound.
    pub(super) fn of(trie: Trie, vocabulary: usize, smoothing: Smoothing, discounts: Vec<Vec<f64>>) -> Model {
        let mut model =
            Model { trie, vocabulary, smoothing, discounts, contexts: vec![], empty: Context::default() };
        if model.smoothing == Smoothing::Katz {
            model.back_off();
            return model;
        }
        model.empty = model.sum(0, model.trie.children(0, None));
        let level = |depth: usize| {
            let nodes = 0..model.trie.levels[depth].tokens.len();
            nodes.map(|node| model.sum(depth + 1, model.trie.children(depth + 1, Some(node)))).collect()
        };
        model.contexts = (0..model.order() - 1).map(level).collect();
        model
    }

    fn sum(&self, depth: usize, among: Range<usize>) -> Context {
        let (mut total, mut taken) = (0.0, 0.0);
        for &count in &self.trie.levels[depth].counts[among] {
            total += f64::from(count);
            taken += self.discount(depth, count);
        }
        // What nothing follows leaves all to what is shorter.
        Context { total, left: if total > 0.0 { taken / total } else { 1.0 } }
    }

    /// Katz's contexts, the shorter ones first: each asks those for what follows it.
    fn back_off(&mut self) {
        self.empty = self.katz(&[], self.trie.children(0, None));
        let mut runs: Vec<Vec<u32>> = vec![vec![]];
        for depth in 0..self.order() - 1 {
            let below = |(node, run): (usize, &Vec<u32>)| {
                let node = Some(node).filter(|_| depth > 0);
                let tokens = &self.trie.levels[depth].tokens;
                let longer = |child: usize| [&run[..], &[tokens[child]]].concat();
                self.trie.children(depth, node).map(longer).collect::<Vec<_>>()
            };
            runs = runs.iter().enumerate().flat_map(below).collect();
            let context =
                |(node, run): (usize, &Vec<u32>)| self.katz(run, self.trie.children(depth + 1, Some(node)));
            let contexts = runs.par_iter().enumerate().map(context).collect();
            self.contexts.push(contexts);
        }
    }

    fn katz(&self, run: &[u32], among: Range<usize>) -> Context {
        let depth = run.len();
        let Context { mut total, mut left } = self.sum(depth, among.clone());
        if total == 0.0 {
            return Context { total, left };
        }
        if among.len() == self.vocabulary {
            // There is nothing to back off to: what was taken is given back to all.
            return Context { total: total * (1.0 - left), left: 0.0 };
        }
        if left == 0.0 {
            // Counts that are all too large to be discounted would leave nothing, so one more is thought to have been seen.
            total += 1.0;
            left = 1.0 / total;
        }
        let tokens = &self.trie.levels[depth].tokens[among];
        let shorter = |token: u32| match run {
            [] => 1.0 / self.vocabulary as f64,
            [_, rest @ ..] => self.probability(rest, token),
        };
        let mut others = 1.0 - tokens.iter().map(|&token| shorter(token)).sum::<f64>();
        if others < 1e-6 {
            // Of a difference so small no digits would be left.
            let unseen = (0..self.vocabulary as u32).filter(|token| tokens.binary_search(token).is_err());
            others = unseen.map(shorter).sum();
        }
        Context { total, left: left / others }
    }

    fn discount(&self, depth: usize, count: u32) -> f64 {
        let discounts = &self.discounts[depth];
        let which = match count {
            0 => return 0.0,
            count => (count as usize).min(discounts.len()) - 1,
        };
        // Of fixed discounts none may exceed the count.
        discounts[which].min(f64::from(count))
    }

    /// Tokens of the longest runs.
    pub fn order(&self) -> usize {
        self.trie.order()
    }

    /// Tokens it knows, V.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// How probabilities come of counts.
    pub fn smoothing(&self) -> &Smoothing {
        &self.smoothing
    }

    /// What is taken of counts of one, of two .., the last also of all that are larger, for each length of runs.
    pub fn discounts(&self) -> &[Vec<f64>] {
        &self.discounts
    }

    /// The tables.
    pub fn trie(&self) -> &Trie {
        &self.trie
    }

    /// Bytes in memory: twelve for each run, and sixteen for each that is a context.
    pub fn size_bytes(&self) -> usize {
        let contexts: usize = self.contexts.iter().map(Vec::len).sum();
        self.trie.size_bytes() + contexts * size_of::<Context>()
    }

    /// What can be seen of a context.
    fn seen<'a>(&self, context: &'a [u32]) -> &'a [u32] {
        &context[context.len() - context.len().min(self.order() - 1)..]
    }

    fn context(&self, depth: usize, node: Option<usize>) -> Context {
        node.map_or(self.empty, |node| self.contexts[depth - 1][node])
    }

    /// Probability of a token behind a context, of which only the end counts.
    pub fn probability(&self, context: &[u32], token: u32) -> f64 {
        let context = self.seen(context);
        let even = 1.0 / self.vocabulary as f64;
        let count = |depth: usize, among: Range<usize>| {
            self.trie.find(depth, among, token).map_or(0, |node| self.trie.levels[depth].counts[node])
        };
        match self.smoothing {
            Smoothing::AddK { k } => {
                let (total, count) = match self.trie.behind(context) {
                    None => (0.0, 0),
                    Some((node, among)) => {
                        (self.context(context.len(), node).total, count(context.len(), among))
                    }
                };
                (f64::from(count) + k) / (total + k * self.vocabulary as f64)
            }
            Smoothing::KneserNey { .. } | Smoothing::ModifiedKneserNey => {
                (0..=context.len()).fold(even, |shorter, depth| {
                    let Some((node, among)) = self.trie.behind(&context[context.len() - depth..]) else {
                        return shorter;
                    };
                    let Context { total, left } = self.context(depth, node);
                    if total == 0.0 {
                        return shorter;
                    }
                    let count = count(depth, among);
                    (f64::from(count) - self.discount(depth, count)) / total + left * shorter
                })
            }
            Smoothing::Katz => {
                let mut scale = 1.0;
                for depth in (0..=context.len()).rev() {
                    let Some((node, among)) = self.trie.behind(&context[context.len() - depth..]) else {
                        continue;
                    };
                    let Context { total, left } = self.context(depth, node);
                    let count = count(depth, among);
                    if count > 0 {
                        return scale * (f64::from(count) - self.discount(depth, count)) / total;
                    }
                    scale *= left;
                }
                scale * even
            }
            Smoothing::StupidBackoff { factor } => {
                let mut scale = 1.0;
                for depth in (0..=context.len()).rev() {
                    if let Some((node, among)) = self.trie.behind(&context[context.len() - depth..]) {
                        let count = count(depth, among);
                        if count > 0 {
                            return scale * f64::from(count) / self.context(depth, node).total;
                        }
                    }
                    scale *= factor;
                }
                scale * even
            }
        }
    }

    /// The same for every token at once.
    pub fn distribution(&self, context: &[u32]) -> Vec<f64> {
        let context = self.seen(context);
        let even = 1.0 / self.vocabulary as f64;
        let followers = |depth: usize| {
            let (node, among) = self.trie.behind(&context[context.len() - depth..])?;
            let level = &self.trie.levels[depth];
            let pairs = among.map(|node| (level.tokens[node] as usize, level.counts[node]));
            Some((self.context(depth, node), pairs)).filter(|(context, _)| context.total > 0.0)
        };
        let mut all = vec![even; self.vocabulary];
        match self.smoothing {
            Smoothing::AddK { k } => {
                let found = followers(context.len());
                let total = found.as_ref().map_or(0.0, |(context, _)| context.total);
                let whole = total + k * self.vocabulary as f64;
                all.fill(k / whole);
                for (token, count) in found.into_iter().flat_map(|(_, pairs)| pairs) {
                    all[token] = (f64::from(count) + k) / whole;
                }
            }
            Smoothing::KneserNey { .. } | Smoothing::ModifiedKneserNey => {
                for depth in 0..=context.len() {
                    let Some((Context { total, left }, pairs)) = followers(depth) else { continue };
                    all.iter_mut().for_each(|p| *p *= left);
                    for (token, count) in pairs {
                        all[token] += (f64::from(count) - self.discount(depth, count)) / total;
                    }
                }
            }
            Smoothing::Katz => {
                for depth in 0..=context.len() {
                    let Some((Context { total, left }, pairs)) = followers(depth) else { continue };
                    all.iter_mut().for_each(|p| *p *= left);
                    for (token, count) in pairs {
                        all[token] = (f64::from(count) - self.discount(depth, count)) / total;
                    }
                }
            }
            Smoothing::StupidBackoff { factor } => {
                for depth in 0..=context.len() {
                    all.iter_mut().for_each(|p| *p *= factor);
                    let Some((Context { total, .. }, pairs)) = followers(depth) else { continue };
                    pairs.for_each(|(token, count)| all[token] = f64::from(count) / total);
                }
            }
        }
        all
    }

    /// Mean negative log-likelihood in nats of every token but the first, each behind all that stand before it, and how many they are.
    pub fn loss(&self, tokens: &[u32]) -> Result<(f64, usize)> {
        if tokens.len() < 2 {
            return Err(Error::Length { got: tokens.len(), expected: "two or more" });
        }
        let sum: f64 = self.logs(tokens)?.iter().map(|log| -log).sum();
        Ok((sum / (tokens.len() - 1) as f64, tokens.len() - 1))
    }

    /// Natural logarithms of the probabilities of every token but the first, each behind all that stand before it.
    pub fn logs(&self, tokens: &[u32]) -> Result<Vec<f64>> {
        let vocabulary = self.vocabulary;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Error::Token { token, vocabulary });
        }
        let see = self.order() - 1;
        let log = |at: usize| self.probability(&tokens[at.saturating_sub(see)..at], tokens[at]).ln();
        Ok((1..tokens.len()).map(log).collect())
    }

    /// The weight of what shorter contexts say, by a context's node on a level; only of what sums to one by sharing.
    pub(super) fn left(&self, depth: usize, node: usize) -> f64 {
        self.contexts[depth - 1][node].left
    }
}
