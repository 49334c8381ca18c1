//! `[precision]`: every downcast of a run stands here.

use serde::Serialize;
use toml::Value;

use super::error::Error;
use super::quantize::heads;
use super::read::{Section, describe, nearest};
use crate::ops::linear_codes::Products;
use crate::ops::optimizer::norm::Scaling;
use crate::passes::CodedProducts;

/// How floats are stored. Gradients of weights are 32 bits wide whatever it says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Precision {
    /// What is stored in 16 bits, and how.
    pub storage: Storage,
    /// What the loss is multiplied with before the backward pass, so that small gradients are not lost in f16.
    pub loss_scale: LossScale,
    /// How the weights of linear layers are held.
    #[serde(skip_serializing_if = "Held::is_f32")]
    pub weights: Held,
    /// How the optimiser keeps its moments of the weights of linear layers.
    #[serde(skip_serializing_if = "States::is_f32")]
    pub states: States,
    /// Which products of linear layers are made of int8 codes while training.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub int8: Vec<Product>,
    /// Layers that are not, as patterns of the names of their weights.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub int8_ignore: Vec<String>,
}

/// How weights are held. Small tensors, and those that are no linear layer's own, are f32 whatever it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    /// As f32.
    #[default]
    F32,
    /// As bf16, with no copy in 32 bits: updates round stochastically. Adam and AdamW.
    Bf16,
    /// As codes of 8 bits with a scale for each 256, with no copy in more: updates round stochastically.
    Int8,
}

impl Held {
    fn is_f32(&self) -> bool {
        *self == Held::F32
    }
}

/// How moments are kept. Small tensors, and those that are no linear layer's own, have theirs in f32 whatever it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum States {
    /// As f32.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// As codes of 8 bits with a scale for each 256: Adam and AdamW.
    #[serde(rename = "8bit")]
    Bytes,
}

impl States {
    fn is_f32(&self) -> bool {
        *self == States::F32
    }
}

/// One of the three products of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Product {
    /// Of activations and weights.
    Forward,
    /// Of what flows back and weights.
    InputGradient,
    /// Of activations and what flows back, over all positions of a batch.
    WeightGradient,
}

const PRODUCTS: [(&str, Product); 3] = [
    ("forward", Product::Forward),
    ("input_gradient", Product::InputGradient),
    ("weight_gradient", Product::WeightGradient),
];

impl Precision {
    /// The pass that makes products of codes, if there are any.
    pub fn coded_products(&self) -> Option<CodedProducts> {
        let has = |product| self.int8.contains(&product);
        let products = Products {
            forward: has(Product::Forward),
            input_gradient: has(Product::InputGradient),
            weight_gradient: has(Product::WeightGradient),
        };
        let ignore = self.int8_ignore.clone();
        (!products.is_none()).then_some(CodedProducts { products, ignore, trains: true })
    }
}

/// Storage in 16 bits. Sums inside kernels, losses and saved statistics are f32 whatever it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// 32 bits throughout.
    F32,
    /// f16 for activations, what flows back through them and the copies of weights that are computed with, where the adapter
    /// has 16-bit arithmetic; elsewhere for the same values as [`Storage::Bf16`].
    F16,
    /// bf16 for the operands of matmuls alone: the copies of weights, and the activations that are saved for the gradients of
    /// matmuls. All else is f32, gradients too. Needs nothing of the adapter, and no loss scale.
    Bf16,
}

/// A factor on the loss, taken off the gradients again before clipping and update.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum LossScale {
    /// The same throughout; a gradient that is not finite ends the run.
    Fixed(f64),
    /// Follows overflow: a step whose gradients are not finite is skipped and the scale reduced. As with
    /// PyTorch's `GradScaler` a skipped step counts for the learning rate, whose schedule goes on, and for nothing else: Adam's
    /// bias correction counts the updates that were made. A scale that falls below one ends the run.
    Dynamic {
        /// The scale at the start.
        first: f64,
        /// Factor on it after `interval` steps without overflow.
        growth: f64,
        /// Factor on it after an overflow.
        backoff: f64,
        /// Steps between growths.
        interval: u32,
    },
}

impl LossScale {
    /// No scale at all.
    pub const NONE: LossScale = LossScale::Fixed(1.0);
    /// What PyTorch's `GradScaler` begins with.
    pub const DYNAMIC: LossScale =
        LossScale::Dynamic { first: 65536.0, growth: 2.0, backoff: 0.5, interval: 2000 };

    /// The scale of the first step.
    pub fn first(&self) -> f32 {
        match *self {
            LossScale::Fixed(scale) => scale as f32,
            LossScale::Dynamic { first, .. } => first as f32,
        }
    }

    /// How it follows overflow, if it does.
    pub fn scaling(&self) -> Option<Scaling> {
        match *self {
            LossScale::Fixed(_) => None,
            LossScale::Dynamic { growth, backoff, interval, .. } => {
                Some(Scaling { growth: growth as f32, backoff: backoff as f32, interval })
            }
        }
    }
}

pub(super) fn precision(section: &Section) -> Result<Precision, Error> {
    let storage = section
        .word("storage", &[("f32", Storage::F32), ("f16", Storage::F16), ("bf16", Storage::Bf16)])?
        .or(Storage::F32);
    let usual = if storage == Storage::F16 { LossScale::DYNAMIC } else { LossScale::NONE };
    let loss_scale = match section.value("loss_scale") {
        None => usual,
        Some(Value::String(word)) if word == "dynamic" => LossScale::DYNAMIC,
        Some(Value::Table(_)) => dynamic(section)?,
        Some(Value::Integer(_) | Value::Float(_)) => {
            let scale = section.number("loss_scale")?;
            let scale = scale.must(|&s| s > 0.0, "above zero", "powers of two lose nothing: 1024")?;
            LossScale::Fixed(scale.or(1.0))
        }
        Some(other) => {
            let expected = "a number, \"dynamic\" or { first, growth, backoff, interval }";
            let hint = format!("it is {}; \"dynamic\" suits f16", describe(other));
            return Err(section.refuse("loss_scale", expected, &hint));
        }
    };
    let (int8, int8_ignore) = int8(section, storage)?;
    let weights = section
        .word("weights", &[("f32", Held::F32), ("bf16", Held::Bf16), ("int8", Held::Int8)])?
        .or(Held::F32);
    let states = section.word("states", &[("f32", States::F32), ("8bit", States::Bytes)])?.or(States::F32);
    Ok(Precision { storage, loss_scale, weights, states, int8, int8_ignore })
}

/// `int8` and `int8_ignore`; the second means nothing without the first.
fn int8(section: &Section, storage: Storage) -> Result<(Vec<Product>, Vec<String>), Error> {
    let words = section.texts("int8")?;
    let mut products = vec![];
    for word in words.get().into_iter().flatten() {
        let Some((_, product)) = PRODUCTS.iter().find(|(name, _)| name == word) else {
            let names = PRODUCTS.map(|(name, _)| name);
            let hint = match nearest(word, &names) {
                Some(name) => format!("did you mean \"{name}\"?"),
                None => "[] means none".to_string(),
            };
            return Err(words.impossible(format!("any of {}", names.join(", ")), hint));
        };
        if !products.contains(product) {
            products.push(*product);
        }
    }
    if storage == Storage::F16 && !products.is_empty() {
        let hint = "products of codes begin from f32: leave storage out, or the codes";
        return Err(section.refuse("int8", "absent beside storage = \"f16\"", hint));
    }
    if products.is_empty() && section.has("int8_ignore") {
        return Err(section.refuse(
            "int8_ignore",
            "absent without `int8`",
            "int8 = [\"forward\"] is a beginning",
        ));
    }
    let ignore = section.texts("int8_ignore")?;
    let ignore = if products.is_empty() { vec![] } else { ignore.or(heads()) };
    Ok((products, ignore))
}

fn dynamic(section: &Section) -> Result<LossScale, Error> {
    let LossScale::Dynamic { first, growth, backoff, interval } = LossScale::DYNAMIC else {
        unreachable!("the usual one is dynamic")
    };
    let table = section.inner("loss_scale", &["first", "growth", "backoff", "interval"])?;
    let least_one = |s: &f64| *s >= 1.0 && s.is_finite();
    let below_one = |s: &f64| (0.0..1.0).contains(s) && *s > 0.0;
    let counts = |n: &u64| (1..=u32::MAX as u64).contains(n);
    Ok(LossScale::Dynamic {
        first: table.number("first")?.must(least_one, "at least 1", "the usual one is 65536")?.or(first),
        growth: table.number("growth")?.must(least_one, "at least 1", "the usual one is 2")?.or(growth),
        backoff: table
            .number("backoff")?
            .must(below_one, "between 0 and 1", "the usual one is 0.5")?
            .or(backoff),
        interval: table
            .count("interval")?
            .must(counts, "at least 1", "the usual one is 2000")?
            .or(interval as u64) as u32,
    })
}
