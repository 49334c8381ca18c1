//! What a model that classifies says of texts, and how often it is right.

use super::{Error, Result};
use crate::data::labelled::Labelled;
use crate::data::tagged::Tagged;
use crate::data::tokenizer::{Encoded, Tokenizer, WordNumbers};
use crate::deploy::Deployment;
use crate::exchange::Opened;
use crate::graph::Graph;
use crate::model::{self, Extent, Inputs, Labels, Mode, Row, Task};
use crate::plan::Engine;
use crate::tensor::Tensor;
use crate::train::lesson::scores::largest;
use crate::train::lesson::{Classes, Scores, Tally, Target as Right, firsts, reading_of};
use crate::train::{self, Target};
use std::collections::BTreeMap;
use std::path::Path;

/// Lengths are rounded up to a multiple of this, so that few plans serve all texts.
const STEP: usize = 16;

/// A model that classifies, on a device.
pub struct Classifier {
    opened: Opened,
    tokenizer: Tokenizer,
    /// What its classes are called, and what its scores mean.
    pub classes: Classes,
    target: Target,
    batch: usize,
    most: usize,
    /// Engines by the padded length of their texts.
    engines: BTreeMap<usize, Ready>,
}

/// An engine for batches of one size.
struct Ready {
    engine: Box<dyn Engine>,
    graph: Graph,
    feeds: Vec<String>,
}

impl Classifier {
    /// A model for batches of so many texts, of which at most `most` tokens are read. `path` is named where its tokenizer is missing.
    pub fn new(
        mut opened: Opened,
        path: &Path,
        target: Target,
        batch: usize,
        most: Option<usize>,
    ) -> Result<Classifier> {
        let tokenizer = opened.tokenizer.take();
        let tokenizer = tokenizer.ok_or_else(|| Error::NoTokenizer { model: path.to_path_buf() })?;
        let family = opened.family.as_ref();
        let classes = Classes::of(family).ok_or_else(|| model::Error::Task {
            expected: "one that classifies texts or tokens".into(),
            got: family.interface().task.describe(),
        })?;
        let most = most.unwrap_or(usize::MAX).min(family.context());
        Ok(Classifier {
            opened,
            tokenizer,
            classes,
            target,
            batch: batch.max(1),
            most,
            engines: BTreeMap::new(),
        })
    }

    /// True for a model that classifies each token.
    pub fn tags(&self) -> bool {
        matches!(self.opened.family.interface().task, Task::TokenClass { .. })
    }

    /// The device in use.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Its scores of each text, or pair of texts, one for each class.
    pub fn classify(&mut self, texts: &[(&str, Option<&str>)]) -> Result<Vec<Vec<f32>>> {
        let encode = |(text, second): &(&str, Option<&str>)| {
            Ok(self.tokenizer.encode_input(text, *second, self.most)?)
        };
        let inputs = texts.iter().map(encode).collect::<Result<Vec<_>>>()?;
        self.scores(&inputs)
    }

    /// How often it is right about texts with labels.
    pub fn measure(&mut self, rows: &[Labelled]) -> Result<Scores> {
        let targets = rows.iter().map(|row| self.classes.target(row)).collect::<Result<Vec<_>, _>>()?;
        let texts: Vec<_> = rows.iter().map(|row| (row.text.as_str(), row.second.as_deref())).collect();
        let all = self.classify(&texts)?;
        let mut tally = Tally::new(&self.classes);
        all.iter().zip(&targets).for_each(|(scores, target)| tally.add(scores, target));
        Ok(tally.finish())
    }

    /// The class of each word of some sentences; none for words beyond those that are read.
    pub fn tag(&mut self, sentences: &[&[String]]) -> Result<Vec<Vec<Option<usize>>>> {
        let (inputs, words) = self.words(sentences)?;
        let (all, width) = (self.scores(&inputs)?, self.classes.names.len());
        let mut found = vec![];
        for ((scores, words), sentence) in all.iter().zip(&words).zip(sentences) {
            let mut tags = vec![None; sentence.len()];
            for (row, word) in scores.chunks(width).zip(firsts(words)) {
                if let Some(word) = word {
                    tags[word] = Some(largest(row));
                }
            }
            found.push(tags);
        }
        Ok(found)
    }

    /// How often it is right about words with tags; those beyond what is read do not count.
    pub fn measure_tags(&mut self, rows: &[Tagged]) -> Result<Scores> {
        let right = rows.iter().map(|row| self.classes.tags(row)).collect::<Result<Vec<_>, _>>()?;
        let sentences: Vec<&[String]> = rows.iter().map(|row| &row.words[..]).collect();
        let (inputs, words) = self.words(&sentences)?;
        let all = self.scores(&inputs)?;
        let mut tally = Tally::new(&self.classes);
        for ((scores, words), right) in all.iter().zip(&words).zip(&right) {
            let tags = firsts(words).into_iter().map(|word| word.map(|word| right[word])).collect();
            tally.add(scores, &Right::Tags(tags));
        }
        Ok(tally.finish())
    }

    /// Sentences as tokens, with the word of each.
    fn words(&self, sentences: &[&[String]]) -> Result<(Vec<Encoded>, Vec<WordNumbers>)> {
        let encode = |sentence: &&[String]| Ok(self.tokenizer.encode_words(sentence, self.most)?);
        let all = sentences.iter().map(encode).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().unzip())
    }

    /// Scores of inputs in their order: one for each class, or for each token.
    fn scores(&mut self, inputs: &[Encoded]) -> Result<Vec<Vec<f32>>> {
        // Texts of like length share a batch, so that little is computed for padding.
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        order.sort_by_key(|&number| inputs[number].ids.len());
        let mut all = vec![vec![]; inputs.len()];
        for numbers in order.chunks(self.batch) {
            let longest = numbers.last().map_or(1, |&number| inputs[number].ids.len());
            let length = longest.next_multiple_of(STEP).clamp(1, self.most.max(longest));
            let rows: Vec<&Encoded> = numbers.iter().map(|&number| &inputs[number]).collect();
            for (&number, scores) in numbers.iter().zip(self.run(&rows, length)?) {
                all[number] = scores;
            }
        }
        Ok(all)
    }

    fn run(&mut self, rows: &[&Encoded], length: usize) -> Result<Vec<Vec<f32>>> {
        let extent = Extent { batch: self.batch, context: length };
        if !self.engines.contains_key(&length) {
            let ready = self.ready(extent)?;
            self.engines.insert(length, ready);
        }
        let given: Vec<Row> = rows.iter().map(|row| Row { ids: &row.ids, kinds: &row.kinds }).collect();
        let inputs = Inputs::of_rows(self.opened.family.as_ref(), &given, extent)?;
        let ready = self.engines.get_mut(&length).expect("it was just made");
        let feeds = inputs.feeds(&ready.graph)?;
        let list: Vec<&Tensor> =
            ready.feeds.iter().map(|name| feeds.get(name).expect("every input is fed")).collect();
        let result = ready.engine.run(0, &list).map_err(train::Error::from)?.swap_remove(0);
        let all: Vec<f32> = result.to_f64().iter().map(|&x| x as f32).collect();
        let (one, width) = (all.len() / self.batch, self.classes.names.len());
        let tags = self.tags();
        let of = |(row, scores): (&&Encoded, &[f32])| match tags {
            true => scores[..row.ids.len() * width].to_vec(),
            false => scores.to_vec(),
        };
        Ok(rows.iter().zip(all.chunks(one)).map(of).collect())
    }

    fn ready(&self, extent: Extent) -> Result<Ready> {
        let family = self.opened.family.as_ref();
        let deployment = Deployment::new(&self.opened.weights);
        let reading = reading_of(family, extent, Mode::Evaluate);
        let graph = deployment.graph_of(family, &reading, |graph, forward| {
            graph.output("scores", forward.logits);
            Ok(())
        })?;
        let (engine, plans) = deployment.engine(&self.target, std::slice::from_ref(&graph))?;
        let feeds = plans[0].feeds.iter().map(|feed| feed.name.clone()).collect();
        Ok(Ready { engine, graph, feeds })
    }
}

/// What scores stand for: shares of one, a share for each class by itself, or the numbers themselves.
pub fn probabilities(labels: Labels, scores: &[f32]) -> Vec<f64> {
    match labels {
        Labels::One => {
            let most = scores.iter().fold(f32::NEG_INFINITY, |most, &x| most.max(x));
            let all: Vec<f64> = scores.iter().map(|&x| f64::from(x - most).exp()).collect();
            let sum: f64 = all.iter().sum();
            all.into_iter().map(|x| x / sum).collect()
        }
        Labels::Any => scores.iter().map(|&x| 1.0 / (1.0 + (-f64::from(x)).exp())).collect(),
        Labels::Numbers => scores.iter().map(|&x| f64::from(x)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_become_shares_or_stay_numbers() {
        let shares = probabilities(Labels::One, &[8.0, 8.0 - 3f32.ln()]);
        assert!((shares[0] - 0.75).abs() < 1e-6 && (shares[1] - 0.25).abs() < 1e-6, "{shares:?}");
        assert_eq!(probabilities(Labels::Any, &[0.0, 0.0]), [0.5, 0.5]);
        assert_eq!(probabilities(Labels::Numbers, &[-2.5]), [-2.5]);
    }
}
