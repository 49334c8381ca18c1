//! A model that reads a text once: keys and values of what it has read stay in caches, and each further token costs one pass.
//!
//! Of a recurrent model the state after all of it stays instead, from which no token can be taken back: a text that does not begin
//! with the one before is read from its start.
//!
//! Two plans share weights and caches: one reads [`CHUNK`] tokens at a time, one a single token. Tokens that a text shares with
//! the one read before, from the first on, are not read again.

use super::Result;
use crate::deploy::{self, Deployment};
use crate::model::{Extent, Family, Mode};
use crate::ops::Value;
use crate::plan::{Engine, Plan};
use crate::tensor::Tensor;
use crate::train::{self, Target};
use std::time::{Duration, Instant};

/// Tokens read at a time, while there are as many: enough that a pass over the weights is not the larger part of the work.
const CHUNK: usize = 128;
/// A rest of at most one token in so many of a chunk is read one by one: a pass over a chunk takes as long however few count.
const REST: usize = 16;

/// How fast texts were read and continued.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Tokens read together with others: prompts.
    pub read: usize,
    /// Time that took.
    pub reading: Duration,
    /// Tokens read one after another, each behind the one drawn before.
    pub steps: usize,
    /// Time that took.
    pub stepping: Duration,
    /// Kernels that a device starts for one token of one text; none on the host, or where no pass reads one.
    pub dispatches: Option<usize>,
}

/// What one pass does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Tokens it reads.
    pub tokens: usize,
    /// Floating-point operations, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes that must be read and written at least.
    pub bytes: f64,
}

fn work_of(plan: &Plan, tokens: usize) -> Work {
    let kinds = |values: &[Value]| values.iter().map(|&v| plan.graph.kind(v).clone()).collect::<Vec<_>>();
    let costs =
        plan.graph.nodes().iter().map(|node| node.op.cost(&kinds(&node.inputs), &kinds(&node.outputs)));
    costs.fold(Work { tokens, ..Work::default() }, |sum, cost| Work {
        flops: sum.flops + cost.flops,
        bytes: sum.bytes + cost.bytes,
        ..sum
    })
}

/// A model on a device, with what it has read.
pub(super) struct Reader {
    engine: Box<dyn Engine>,
    /// Names of the feeds of each plan, and how many tokens it reads: the most first.
    plans: Vec<(Vec<String>, usize)>,
    works: Vec<Work>,
    /// Tokens whose keys and values the caches hold.
    held: Vec<u32>,
    /// What is held is a sum of all that was read.
    sums_up: bool,
    pub capacity: usize,
    pub pace: Pace,
}

impl Reader {
    /// Room for `capacity` tokens.
    pub fn new(
        family: &dyn Family,
        deployment: &Deployment,
        target: &Target,
        capacity: usize,
    ) -> Result<Reader> {
        let mut counts = vec![capacity.min(CHUNK), 1];
        counts.dedup();
        let graph = |&count: &usize| {
            let extent = Extent { batch: 1, context: count };
            deployment.graph(family, extent, Mode::Continue { capacity }, |graph, forward| {
                graph.output("logits", forward.logits);
                Ok(())
            })
        };
        let graphs = counts.iter().map(graph).collect::<deploy::Result<Vec<_>>>()?;
        let (engine, plans) = deployment.engine(target, &graphs)?;
        let names = |plan: &Plan| plan.feeds.iter().map(|f| f.name.clone()).collect();
        let works = plans.iter().zip(&counts).map(|(plan, &tokens)| work_of(plan, tokens)).collect();
        let named = plans.iter().map(names).zip(counts).collect();
        let (held, sums_up) = (vec![], family.interface().sums_up);
        Ok(Reader { engine, plans: named, works, held, sums_up, capacity, pace: Pace::default() })
    }

    /// Bytes of device memory held.
    pub fn memory_bytes(&self) -> u64 {
        self.engine.memory_bytes()
    }

    /// Work of the pass over many tokens and of that over one.
    pub fn passes(&self) -> [Work; 2] {
        [self.works[0], self.works[self.works.len() - 1]]
    }

    /// Scores of the token after `text`, which has at least one token and not more than there is room for.
    pub fn scores(&mut self, text: &[u32]) -> Result<Vec<f32>> {
        let start = Instant::now();
        let shared = self.held.iter().zip(text).take_while(|(held, token)| held == token).count();
        let known = match self.sums_up && (shared < self.held.len() || shared == text.len()) {
            true => 0,
            false => shared.min(text.len() - 1),
        };
        self.held.truncate(known);
        let mut scores = vec![];
        while self.held.len() < text.len() {
            scores = self.read(text)?;
        }
        let count = text.len() - known;
        let (tokens, time) = match count {
            1 => (&mut self.pace.steps, &mut self.pace.stepping),
            _ => (&mut self.pace.read, &mut self.pace.reading),
        };
        *tokens += count;
        *time += start.elapsed();
        Ok(scores)
    }

    /// Reads on behind what is held, with one pass.
    fn read(&mut self, text: &[u32]) -> Result<Vec<f32>> {
        let first = self.held.len();
        let left = text.len() - first;
        let most = self.plans[0].1;
        let number = if left <= most / REST { self.plans.len() - 1 } else { 0 };
        let (names, count) = &self.plans[number];
        let live = left.min(*count);
        let mut tokens = text[first..first + live].to_vec();
        // What stands behind the last token is not seen by it, and is written over before anything sees it.
        tokens.resize(*count, 0);
        let positions = (first..first + count).map(|p| p as u32).collect();
        let feed = |name: &String| match name.as_str() {
            "tokens" => Tensor::u32([1, *count], tokens.clone()),
            "positions" => Tensor::u32([1, *count], Vec::clone(&positions)),
            "position" => Tensor::u32([1], vec![first as u32]),
            "live" => Tensor::u32([1], vec![live as u32]),
            _ => Tensor::u32([1], vec![live as u32 - 1]),
        };
        let feeds: Vec<Tensor> = names.iter().map(feed).collect();
        // Should the pass fail, nobody knows what it left.
        let mut held = std::mem::take(&mut self.held);
        let results =
            self.engine.run(number, &feeds.iter().collect::<Vec<_>>()).map_err(train::Error::from)?;
        held.extend(&text[first..first + live]);
        self.held = held;
        Ok(results[0].real::<f32>().to_vec())
    }
}
