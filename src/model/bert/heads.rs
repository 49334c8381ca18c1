//! What stands on BERT's stream: guessing tokens, classifying texts and tokens, or nothing.

use super::super::layers::{Layers, located};
use super::super::{Extent, Init, ParameterSpec, Result, Task};
use super::{Activation, Bert, Encoder};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::reshape::ReshapeEmit;
use crate::ops::slice::SliceEmit;

/// Module that scores whether a text follows another.
const FOLLOWING: &str = "cls.seq_relationship";

impl Bert {
    /// The module that makes one vector of a text beside its scores, if there is one.
    pub(super) fn pooler(&self) -> Option<String> {
        let has = match self.task {
            Task::States => self.dialect.has_pooler() && self.pools,
            Task::SequenceClass { .. } => self.dialect == Encoder::Bert,
            Task::NextSentence | Task::Pretraining => true,
            _ => false,
        };
        has.then(|| format!("{}pooler.dense", self.prefix()))
    }

    /// The modules of the head with a weight of their own.
    pub(super) fn head_modules(&self) -> Vec<&'static str> {
        let guess = self.dialect.guess();
        match self.task {
            Task::HiddenToken if self.tie => vec![guess.transform, guess.norm],
            Task::HiddenToken => vec![guess.transform, guess.norm, guess.decoder],
            Task::Pretraining if self.tie => vec![guess.transform, guess.norm, FOLLOWING],
            Task::Pretraining => vec![guess.transform, guess.norm, guess.decoder, FOLLOWING],
            Task::NextSentence => vec![FOLLOWING],
            Task::SequenceClass { .. } => self.dialect.text_head().to_vec(),
            Task::TokenClass { .. } => vec!["classifier"],
            _ => vec![],
        }
    }

    /// True for a parameter that belongs to what stands on the stream, a pooler among it.
    pub(super) fn has_in_head(&self, parameter: &str) -> bool {
        let mut modules = self.head_modules();
        let pooler = self.pooler();
        modules.extend(pooler.as_deref());
        let within =
            |module: &&str| parameter.strip_prefix(*module).is_some_and(|rest| rest.starts_with('.'));
        modules.iter().any(within) || self.guesses() && parameter == self.dialect.guess().bias
    }

    pub(super) fn head_parameters(&self, list: &mut Vec<ParameterSpec>) {
        let c = self.width;
        let parts = matches!(self.task, Task::States | Task::NextSentence | Task::Pretraining);
        if let Some(pooler) = self.pooler().filter(|_| parts) {
            self.linear_parameters(&pooler, [c, c], list);
        }
        if matches!(self.task, Task::NextSentence | Task::Pretraining) {
            self.linear_parameters(FOLLOWING, [2, c], list);
        }
        match self.task {
            Task::HiddenToken | Task::Pretraining => {
                let guess = self.dialect.guess();
                self.linear_parameters(guess.transform, [c, c], list);
                self.norm_parameters(guess.norm, list);
                if !self.tie {
                    let normal = Init::Normal { deviation: self.deviation };
                    let name = format!("{}.weight", guess.decoder);
                    list.push(ParameterSpec::new(name, [self.vocabulary, c], normal));
                }
                list.push(ParameterSpec::new(guess.bias, [self.vocabulary], Init::Zeros));
            }
            Task::SequenceClass { classes, .. } => {
                let [first, second] = self.dialect.text_head();
                self.linear_parameters(first, [c, c], list);
                self.linear_parameters(second, [classes, c], list);
            }
            Task::TokenClass { classes } => self.linear_parameters("classifier", [classes, c], list),
            _ => {}
        }
    }

    /// What the head makes of the stream [N, C], and the vector of each text where there is one.
    pub(super) fn head(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        extent: Extent,
        x: Value,
    ) -> Result<(Value, Option<Value>)> {
        match self.task {
            Task::HiddenToken | Task::Pretraining => Ok((self.guess(graph, layers, x)?, None)),
            Task::NextSentence => Ok((self.follows(graph, layers, extent, x)?, None)),
            Task::SequenceClass { .. } => Ok((self.classify(graph, layers, extent, x)?, None)),
            Task::TokenClass { .. } => {
                let x = layers.dropout(graph, "dropout", self.dropout.classifier, x)?;
                Ok((layers.linear(graph, "classifier", Form::Nt, x)?, None))
            }
            _ => {
                let Some(pooler) = self.pooler() else { return Ok((x, None)) };
                let first = self.first_tokens(graph, extent, x)?;
                let pooled = layers.linear(graph, &pooler, Form::Nt, first)?;
                Ok((x, Some(layers.activate(graph, &pooler, Activation::Tanh, pooled)?)))
            }
        }
    }

    fn guess(&self, graph: &mut Graph, layers: &Layers, x: Value) -> Result<Value> {
        let guess = self.dialect.guess();
        let activation = if self.dialect == Encoder::Roberta { Activation::Gelu } else { self.activation };
        let x = layers.linear(graph, guess.transform, Form::Nt, x)?;
        let x = layers.activate(graph, guess.transform, activation, x)?;
        let x = layers.layer_norm(graph, guess.norm, x, self.norm_epsilon)?;
        let words = format!("{}embeddings.word_embeddings", self.prefix());
        let table = layers.weight(if self.tie { &words } else { guess.decoder });
        let (module, leaf) = guess.bias.rsplit_once('.').expect("the name has a module");
        let bias = layers.find(module, leaf);
        located(graph, guess.decoder, |graph| graph.linear(Form::Nt, x, table, bias))
    }

    /// Scores [B, 2] of whether the second part of each text follows the first, from the vector of the first token.
    pub(super) fn follows(
        &self,
        graph: &mut Graph,
        layers: &Layers,
        extent: Extent,
        x: Value,
    ) -> Result<Value> {
        let pooler = self.pooler().expect("a model that scores pairs has one");
        let first = self.first_tokens(graph, extent, x)?;
        let pooled = layers.linear(graph, &pooler, Form::Nt, first)?;
        let pooled = layers.activate(graph, &pooler, Activation::Tanh, pooled)?;
        layers.linear(graph, FOLLOWING, Form::Nt, pooled)
    }

    /// True where hidden tokens are guessed.
    pub(super) fn guesses(&self) -> bool {
        matches!(self.task, Task::HiddenToken | Task::Pretraining)
    }

    fn classify(&self, graph: &mut Graph, layers: &mut Layers, extent: Extent, x: Value) -> Result<Value> {
        let [first, second] = self.dialect.text_head();
        let share = self.dropout.classifier;
        let mut x = self.first_tokens(graph, extent, x)?;
        if self.dialect == Encoder::Roberta {
            x = layers.dropout(graph, first, share, x)?;
        }
        let x = layers.linear(graph, first, Form::Nt, x)?;
        let activation =
            if self.dialect == Encoder::DistilBert { Activation::Relu } else { Activation::Tanh };
        let x = layers.activate(graph, first, activation, x)?;
        let x = layers.dropout(graph, second, share, x)?;
        layers.linear(graph, second, Form::Nt, x)
    }

    /// Rows [B, C] of the first token of each text.
    fn first_tokens(&self, graph: &mut Graph, extent: Extent, x: Value) -> Result<Value> {
        located(graph, "first", |graph| {
            let x = graph.reshape(x, [extent.batch, extent.context, self.width].into())?;
            let x = graph.slice(x, 1, 0, 1)?;
            graph.reshape(x, [extent.batch, self.width].into())
        })
    }
}
