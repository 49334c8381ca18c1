//! A model that is asked how likely it finds texts.

use super::{Error, Result};
use crate::data::tokenizer::Tokenizer;
use crate::deploy::Deployment;
use crate::evaluate;
use crate::exchange::Opened;
use crate::graph::Graph;
use crate::model::{self, Extent, Forward, Mode, Reading};
use crate::ngram;
use crate::ops::gather::GatherEmit;
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::softmax::SoftmaxEmit;
use crate::plan::Engine;
use crate::tensor::{DType, Tensor, Type};
use crate::train::{self, Target};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Input U32 [N, 1]: the token whose probability is wanted at each place.
const WANTED: &str = "wanted";

/// Lengths are rounded up to a multiple of this, so that few plans serve all texts.
const STEP: usize = 16;

/// A model that tells how likely texts are.
pub struct Subject {
    mind: Mind,
    tokenizer: Option<Tokenizer>,
    path: PathBuf,
}

/// What computes.
enum Mind {
    /// A causal language model on a device.
    Device(Box<Device>),
    /// A model of counted runs.
    Counted(Box<ngram::Model>),
}

struct Device {
    opened: Opened,
    target: Target,
    batch: usize,
    engines: BTreeMap<usize, Ready>,
}

struct Ready {
    engine: Box<dyn Engine>,
    feeds: Vec<String>,
}

impl Subject {
    /// A model for so many texts at once. `path` is named where its tokenizer is missing.
    pub fn new(mut opened: Opened, path: &Path, target: Target, batch: usize) -> Result<Subject> {
        opened.family.interface().expect_causal()?;
        let tokenizer = opened.tokenizer.take();
        let device = Device { opened, target, batch: batch.max(1), engines: BTreeMap::new() };
        Ok(Subject { mind: Mind::Device(Box::new(device)), tokenizer, path: path.into() })
    }

    /// A model of counted runs, which needs no device.
    pub fn counted(model: ngram::Model, tokenizer: Tokenizer, path: &Path) -> Subject {
        Subject { mind: Mind::Counted(Box::new(model)), tokenizer: Some(tokenizer), path: path.into() }
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let missing = || evaluate::Error::NoTokenizer { model: self.path.clone() };
        Ok(self.tokenizer.as_ref().ok_or_else(missing)?)
    }

    /// Tokens it sees at once. A model of counted runs reads texts of any length.
    pub fn context(&self) -> usize {
        match &self.mind {
            Mind::Device(device) => device.opened.family.context(),
            Mind::Counted(_) => u32::MAX as usize,
        }
    }

    /// Natural logarithms of the probabilities of all tokens but the first of each text, each behind those before it.
    pub fn logs(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f64>>> {
        let device = match &mut self.mind {
            Mind::Device(device) => device,
            Mind::Counted(model) => return texts.iter().map(|text| Ok(model.logs(text)?)).collect(),
        };
        device.logs(texts)
    }
}

impl Device {
    fn logs(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f64>>> {
        let vocabulary = self.opened.family.vocabulary();
        let context = self.opened.family.context();
        if let Some(&token) = texts.iter().flatten().find(|&&token| token as usize >= vocabulary) {
            return Err(evaluate::Error::Vocabulary { token, vocabulary }.into());
        }
        if let Some(long) = texts.iter().find(|text| text.len() > context + 1) {
            let (limit, got) = (context, long.len() - 1);
            return Err(model::Error::Context { limit, got }.into());
        }
        // Texts of like length share a batch, so that little is computed for padding.
        let mut order: Vec<usize> = (0..texts.len()).filter(|&at| texts[at].len() > 1).collect();
        order.sort_by_key(|&at| texts[at].len());
        let mut all = vec![vec![]; texts.len()];
        for numbers in order.chunks(self.batch) {
            let longest = texts[numbers[numbers.len() - 1]].len() - 1;
            let length = longest.next_multiple_of(STEP).min(context);
            let rows: Vec<&[u32]> = numbers.iter().map(|&at| &texts[at][..]).collect();
            for (&at, logs) in numbers.iter().zip(self.run(&rows, length)?) {
                all[at] = logs;
            }
        }
        Ok(all)
    }

    fn run(&mut self, rows: &[&[u32]], length: usize) -> Result<Vec<Vec<f64>>> {
        let places = self.batch * length;
        let (mut tokens, mut wanted) = (vec![0; places], vec![0; places]);
        for (row, text) in rows.iter().enumerate() {
            let (start, count) = (row * length, text.len() - 1);
            tokens[start..start + count].copy_from_slice(&text[..count]);
            wanted[start..start + count].copy_from_slice(&text[1..]);
        }
        let tokens = Tensor::u32([self.batch, length], tokens);
        let wanted = Tensor::u32([places, 1], wanted);
        if !self.engines.contains_key(&length) {
            let ready = self.ready(length)?;
            self.engines.insert(length, ready);
        }
        let ready = self.engines.get_mut(&length).expect("it was just made");
        let of = |name: &String| if name == WANTED { &wanted } else { &tokens };
        let feeds: Vec<&Tensor> = ready.feeds.iter().map(of).collect();
        let logs = ready.engine.run(0, &feeds).map_err(train::Error::from)?.swap_remove(0).to_f64();
        Ok(rows.iter().zip(logs.chunks(length)).map(|(text, logs)| logs[..text.len() - 1].to_vec()).collect())
    }

    fn ready(&self, length: usize) -> Result<Ready> {
        let family = self.opened.family.as_ref();
        let deployment = Deployment::new(&self.opened.weights).within(&self.target);
        let reading = Reading::new(Extent { batch: self.batch, context: length }, Mode::Evaluate);
        let graph = deployment.graph_of(family, &reading, |graph, forward| Ok(each(graph, forward)?))?;
        let (engine, plans) = deployment.engine(&self.target, std::slice::from_ref(&graph))?;
        let feeds = plans[0].feeds.iter().map(|feed| feed.name.clone()).collect();
        Ok(Ready { engine, feeds })
    }
}

/// Adds the logarithm of the probability of the token wanted at each place.
fn each(graph: &mut Graph, forward: Forward) -> model::Result<()> {
    let places = graph.kind(forward.logits).shape.rows();
    let wanted = graph.input(WANTED, Type::new(DType::U32, [places, 1]));
    let chosen = graph.gather(forward.logits, wanted)?;
    let chosen = graph.reshape(chosen, [places].into())?;
    let all = graph.log_sum_exp(forward.logits)?;
    let logs = graph.sub(chosen, all)?;
    graph.output("logs", logs);
    Ok(())
}

/// What is asked of a model: how likely a continuation is behind a context.
pub struct Continuation {
    /// All tokens, of which the last ones are seen.
    pub tokens: Vec<u32>,
    /// How many of them are the continuation.
    pub count: usize,
}

impl Subject {
    /// A context and what may follow, as tokens of both together: spaces at the end of the context go with what follows.
    pub fn continuation(&self, context: &str, follows: &str) -> Result<Continuation> {
        let kept = context.trim_end();
        let follows = format!("{}{follows}", &context[kept.len()..]);
        let tokenizer = self.tokenizer()?;
        let mut opening = tokenizer.opening()?;
        let before = tokenizer.encode(kept)?.len();
        let both = tokenizer.encode(&format!("{kept}{follows}"))?;
        if before == 0 && opening.is_empty() {
            // Something must stand before the first token for it to be predicted.
            opening.extend(tokenizer.token_id(crate::data::tokenizer::END_OF_TEXT));
        }
        let count = both.len().saturating_sub(before);
        Ok(Continuation { tokens: [opening, both].concat(), count })
    }

    /// Logarithms of the probabilities of continuations; `place` says where each is from.
    pub fn likelihoods(
        &mut self,
        all: &[Continuation],
        place: &dyn Fn(usize) -> (PathBuf, usize),
    ) -> Result<Vec<f64>> {
        let context = self.context();
        for (at, one) in all.iter().enumerate() {
            if one.count > context {
                let (path, line) = place(at);
                return Err(Error::TooLong { path, line, tokens: one.count, context });
            }
        }
        let seen = |one: &Continuation| one.tokens[one.tokens.len().saturating_sub(context + 1)..].to_vec();
        let logs = self.logs(&all.iter().map(seen).collect::<Vec<_>>())?;
        let sum = |(one, logs): (&Continuation, &Vec<f64>)| {
            logs[logs.len().saturating_sub(one.count)..].iter().sum()
        };
        Ok(all.iter().zip(&logs).map(sum).collect())
    }
}
