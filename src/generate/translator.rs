//! A text written in view of another: what encoder-decoders do.
//!
//! Two plans share the weights. One reads the source, once, and leaves the keys and values that the decoder attends to; the other
//! reads one written token at a time and keeps its own keys and values in caches.

use super::rows::start_of;
use super::{Error, Result, Sampling, sample};
use crate::data::tokenizer::Tokenizer;
use crate::deploy::{self, Deployment};
use crate::exchange::{self, Opened};
use crate::model::{self, Extent, Family, Mode, Reading};
use crate::plan::{Engine, Plan};
use crate::tensor::Tensor;
use crate::tensor::random::Stream;
use crate::train::{self, Target};
use std::path::Path;

/// Plans in the order in which the engine numbers them.
const READ: usize = 0;
const WRITE: usize = 1;

/// Most tokens of a source and of what is written, the start among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens read.
    pub source: usize,
    /// Tokens written.
    pub target: usize,
}

/// An encoder-decoder on a device.
pub struct Translator {
    engine: Box<dyn Engine>,
    /// Names of the feeds of each plan.
    feeds: Vec<Vec<String>>,
    lengths: Lengths,
    vocabulary: usize,
    start: u32,
    tokenizer: Option<Tokenizer>,
    device: String,
    /// Which tokens of the source count, [1, S], once there is one.
    mask: Option<Tensor>,
}

impl Translator {
    /// Opens a Hugging Face folder, with its tokenizer if it has one.
    pub fn open(folder: &Path, target: &Target, lengths: Lengths) -> Result<Translator> {
        Translator::with(exchange::open(folder)?, target, lengths)
    }

    /// A translator for a model that is open.
    pub fn with(model: Opened, target: &Target, lengths: Lengths) -> Result<Translator> {
        let deployment = Deployment::new(&model.weights).within(target);
        Translator::over(model.family.as_ref(), &deployment, model.tokenizer, target, lengths)
    }

    /// A translator for a model made ready.
    pub fn over(
        family: &dyn Family,
        deployment: &Deployment,
        tokenizer: Option<Tokenizer>,
        target: &Target,
        lengths: Lengths,
    ) -> Result<Translator> {
        let start = start_of(family)?;
        let graphs = graphs(family, deployment, lengths)?;
        let (engine, plans) = deployment.engine(target, &graphs)?;
        let names = |plan: &Plan| plan.feeds.iter().map(|feed| feed.name.clone()).collect();
        Ok(Translator {
            engine,
            feeds: plans.iter().map(names).collect(),
            lengths,
            vocabulary: family.vocabulary(),
            start,
            tokenizer,
            device: target.describe(),
            mask: None,
        })
    }

    /// Bytes of device memory held.
    pub fn memory_bytes(&self) -> u64 {
        self.engine.memory_bytes()
    }

    /// Device and driver in words.
    pub fn describe(&self) -> &str {
        &self.device
    }

    /// The tokenizer, if the folder had one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The token that stands before all written ones.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// Reads a source, in view of which everything is written from then on.
    pub fn read(&mut self, source: &[u32]) -> Result<()> {
        if source.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if source.len() > self.lengths.source {
            let (limit, got) = (self.lengths.source, source.len());
            return Err(model::Error::Context { limit, got }.into());
        }
        self.check(source)?;
        let row = |mut tokens: Vec<u32>| {
            tokens.resize(self.lengths.source, 0);
            Tensor::u32([1, self.lengths.source], tokens)
        };
        let (tokens, mask) = (row(source.to_vec()), row(vec![1; source.len()]));
        self.run(READ, &[("tokens", &tokens), ("mask", &mask)])?;
        self.mask = Some(mask);
        Ok(())
    }

    /// Scores of the token after `token`, which stands at `position` of the written text; those before it were written before.
    pub fn scores(&mut self, token: u32, position: usize) -> Result<Vec<f32>> {
        if position >= self.lengths.target {
            let (limit, got) = (self.lengths.target, position + 1);
            return Err(model::Error::Context { limit, got }.into());
        }
        self.check(&[token])?;
        let mask = self.mask.clone().ok_or(Error::EmptyPrompt)?;
        let at = position as u32;
        let given = [
            ("mask", &mask),
            ("target_tokens", &Tensor::u32([1, 1], vec![token])),
            ("positions", &Tensor::u32([1, 1], vec![at])),
            ("position", &Tensor::u32([1], vec![at])),
        ];
        let results = self.run(WRITE, &given)?;
        Ok(results[0].real::<f32>().to_vec())
    }

    /// At most `count` tokens in view of `source`, without the start; `see` gets each as it comes and may stop the writing by
    /// returning false.
    pub fn write_ids(
        &mut self,
        source: &[u32],
        count: usize,
        sampling: &Sampling,
        see: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Vec<u32>> {
        sampling.check()?;
        self.read(source)?;
        let mut random = Stream::new(&[sampling.seed as u32, (sampling.seed >> 32) as u32, 0x5a3]);
        let (mut written, mut last) = (vec![], self.start);
        for position in 0..count {
            let scores = self.scores(last, position)?;
            last = sample(&scores, sampling, &mut random);
            written.push(last);
            if !see(last) {
                break;
            }
        }
        Ok(written)
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        match tokens.iter().find(|&&token| token as usize >= self.vocabulary) {
            Some(&token) => Err(Error::UnknownToken { token, vocabulary: self.vocabulary }),
            None => Ok(()),
        }
    }

    fn run(&mut self, plan: usize, given: &[(&str, &Tensor)]) -> Result<Vec<Tensor>> {
        let feed = |name: &String| {
            let found = given.iter().find(|(own, _)| own == name);
            found.expect("the graphs declare these inputs alone").1
        };
        let feeds: Vec<&Tensor> = self.feeds[plan].iter().map(feed).collect();
        Ok(self.engine.run(plan, &feeds).map_err(train::Error::from)?)
    }
}

fn graphs(
    family: &dyn Family,
    deployment: &Deployment,
    lengths: Lengths,
) -> deploy::Result<[crate::graph::Graph; 2]> {
    let extent = Extent { batch: 1, context: lengths.source };
    let whole = Reading { padded: true, target: 1, ..Reading::new(extent, Mode::Evaluate) };
    let (read, _) = deployment.graph_built(Mode::Evaluate, |graph| {
        let kept = family.remember(graph, &whole)?;
        kept.into_iter().for_each(|(name, value)| graph.output(name, value));
        Ok(())
    })?;
    let mode = Mode::Continue { capacity: lengths.target };
    let write = deployment.graph_of(family, &Reading { mode, ..whole }, |graph, forward| {
        graph.output("logits", forward.logits);
        Ok(())
    })?;
    Ok([read, write])
}
