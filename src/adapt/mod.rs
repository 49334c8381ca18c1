//! Low-rank adapters of a model: which layers they stand beside, their files as the package PEFT has them, a model with adapters
//! as a family of its own, and the same model with the adapters merged into its weights.

mod config;
mod error;
mod family;
mod folder;
mod hold;
mod layers;
mod merge;
mod read;

pub use config::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
pub use error::{Error, Result};
pub use family::{Adapted, needed, with_squares};
pub use folder::{Loaded, RECORD_FILE, Record, config_of, file_in, is_adapter, load, load_one, save, stored};
pub use hold::{Hold, hold};
pub use layers::{Layers, Linear};
pub use merge::{merge, unmerge};

use crate::model::{Init, ParameterSpec};
use crate::passes::{Factor, Low, LowRank};

/// Name of an adapter where nobody gave it one; its files lie in a model's own folder, those of others in folders within.
pub const DEFAULT_NAME: &str = "default";

/// How an adapter changes a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// `W + s B A` (Hu et al. 2021).
    #[default]
    Lora,
    /// The same with a magnitude for each output (Liu et al. 2024).
    Dora,
}

/// A linear layer with an adapter beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The layer.
    pub linear: Linear,
    /// Numbers between `A` and `B`.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f32,
}

/// An adapter: what it is, and of which layers. Its numbers are kept elsewhere, by the names of its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Its name, which is part of its parameters' names.
    pub name: String,
    /// How it changes a layer.
    pub kind: Kind,
    /// Rank of its layers, unless they have one of their own.
    pub rank: usize,
    /// Numerator of the scale of its layers, unless they have one of their own.
    pub alpha: f32,
    /// The scale is `alpha / sqrt(rank)` (rsLoRA, Kalajdzievski 2023) instead of `alpha / rank`.
    pub rank_stabilized: bool,
    /// Share of its inputs that is zeroed in training.
    pub dropout: f32,
    /// The layers, in the order of the model.
    pub layers: Vec<Layer>,
    /// Weights of other modules that are trained whole and belong to it, in the order of the model.
    pub whole: Vec<ParameterSpec>,
}

impl Adapter {
    /// What `B(A(x))` is multiplied by in a layer.
    pub fn scale(&self, layer: &Layer) -> f32 {
        let rank = layer.rank as f32;
        layer.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }

    /// The factors it has beside each layer.
    pub fn factors(&self) -> &'static [Factor] {
        match self.kind {
            Kind::Lora => &[Factor::Down, Factor::Up],
            Kind::Dora => &[Factor::Down, Factor::Up, Factor::Magnitude],
        }
    }

    /// The parameter of a factor beside a layer.
    ///
    /// `A` starts as a linear layer does in PyTorch, uniform within `1 / sqrt(in)`, and `B` at zero, so that the model begins as the
    /// one it was. Magnitudes must then be the norms of the weight: see [`merge`].
    pub fn parameter(&self, layer: &Layer, factor: Factor) -> ParameterSpec {
        let Linear { weight, inputs, outputs, .. } = &layer.linear;
        let name = factor.name(weight, &self.name);
        match factor {
            Factor::Down => {
                let bound = (*inputs as f64).sqrt().recip();
                ParameterSpec::new(name, [layer.rank, *inputs], Init::Uniform { bound })
            }
            Factor::Up => ParameterSpec::new(name, [*outputs, layer.rank], Init::Zeros),
            Factor::Magnitude => ParameterSpec::new(name, [*outputs], Init::Ones),
        }
    }

    /// All that is trained of it: the factors layer by layer, then what is trained whole.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let of = |layer| self.factors().iter().map(move |&factor| self.parameter(layer, factor));
        self.layers.iter().flat_map(of).chain(self.whole.iter().cloned()).collect()
    }

    /// The pass that writes it into a graph, as the adapter of that number.
    pub fn pass(&self, number: usize, trains: bool) -> LowRank {
        let low =
            |layer: &Layer| (layer.linear.weight.clone(), Low { rank: layer.rank, scale: self.scale(layer) });
        LowRank {
            name: self.name.clone(),
            number: number as u32,
            layers: self.layers.iter().map(low).collect(),
            magnitude: self.kind == Kind::Dora,
            dropout: self.dropout,
            trains,
        }
    }

    /// One line on what it is.
    pub fn describe(&self) -> String {
        let kind = match self.kind {
            Kind::Lora => "LoRA",
            Kind::Dora => "DoRA",
        };
        let count: usize = self.parameters().iter().map(|spec| spec.shape.count()).sum();
        let whole = match self.whole.len() {
            0 => String::new(),
            number => format!(", {number} weights trained whole"),
        };
        let Adapter { name, rank, alpha, .. } = self;
        format!(
            "`{name}`: {kind} of rank {rank}, alpha {alpha}, beside {} layers{whole}: {count} weights",
            self.layers.len()
        )
    }
}

/// Checks that adapters can stand in one model: names differ, what is trained whole belongs to one and has no adapter beside it, and a
/// weight with magnitudes has no other adapter.
pub fn check_together(adapters: &[Adapter]) -> Result<()> {
    let clash = |problem: String, hint| Err(Error::Together { problem, hint });
    for (at, adapter) in adapters.iter().enumerate() {
        let own: Vec<&str> = adapter.layers.iter().map(|layer| layer.linear.weight.as_str()).collect();
        if let Some(spec) = adapter.whole.iter().find(|spec| own.contains(&spec.name.as_str())) {
            let problem = format!("`{}` is to be trained whole and through a low rank", spec.name);
            return clash(problem, "leave it out of one of the two");
        }
        for other in &adapters[..at] {
            let names = format!("`{}` and `{}`", other.name, adapter.name);
            if other.name == adapter.name {
                return clash(
                    format!("two adapters are named `{}`", adapter.name),
                    "give each a name of its own",
                );
            }
            let theirs = |name: &str| other.layers.iter().any(|layer| layer.linear.weight == name);
            let magnitudes = [adapter.kind, other.kind].contains(&Kind::Dora);
            if let Some(weight) = own.iter().find(|weight| magnitudes && theirs(weight)) {
                let problem = format!("{names} both stand beside `{weight}`, and one of them has magnitudes");
                return clash(problem, "a layer with DoRA has one adapter; others may be LoRA together");
            }
            let shared = |spec: &&ParameterSpec| {
                other.whole.iter().any(|whole| whole.name == spec.name) || theirs(&spec.name)
            };
            let mine = |spec: &&ParameterSpec| own.contains(&spec.name.as_str());
            let both = adapter.whole.iter().find(shared).or_else(|| other.whole.iter().find(mine));
            if let Some(spec) = both {
                let problem = format!("{names} would both change `{}`, one of them whole", spec.name);
                return clash(problem, "what is trained whole belongs to one adapter");
            }
        }
    }
    Ok(())
}
