//! A model as it runs, not as it is trained: its graph over weights as they are stored, where those lie, and how they get there.

mod forward;

pub use forward::{Outcome, forward};

use crate::graph::{Graph, Source, ValueInfo};
use crate::model::{self, Extent, Family, Forward, Mode, Reading, Weights};
use crate::ops::cache_write::CacheWriteEmit;
use crate::passes::{
    self, CodedCache, Coding, Epilogue, Fuse, Group, HalfCache, Pass, Pieces, Report, Residual, Tidy,
};
use crate::plan::{Engine, Plan, Residents};
use crate::tensor::{DType, Type};
use crate::train::{self, Frozen, Target, frozen};

/// What can go wrong while a model is made ready.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device or the plans.
    #[error(transparent)]
    Run(#[from] train::Error),
    /// The weights or the family.
    #[error(transparent)]
    Model(#[from] model::Error),
}

/// Result of making a model ready.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How keys and values of what was read are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// In 32 bits.
    #[default]
    Full,
    /// In 16 bits, where the device computes with them.
    Halves,
    /// As 8-bit codes with a scale for each token and head, for heads of a multiple of four elements.
    Codes,
}

/// Weights on their way to a device: how graphs read them, and the tensors that are uploaded, by parameter.
#[derive(Clone, Debug)]
pub struct Deployment {
    weights: Frozen,
    cache: Cache,
    most_bytes: u64,
}

impl Deployment {
    /// What is uploaded of a model's weights.
    pub fn new(weights: &Weights) -> Deployment {
        Deployment { weights: Frozen::of(weights, ""), cache: Cache::Full, most_bytes: u64::MAX }
    }

    /// Cuts tables, and scores that a loss reads, into pieces that a device can bind.
    pub fn within(self, target: &Target) -> Deployment {
        self.within_bytes(target.caps().max_binding_bytes)
    }

    /// The same for a device that binds so many bytes at once.
    pub fn within_bytes(self, most_bytes: u64) -> Deployment {
        Deployment { most_bytes, ..self }
    }

    /// Keeps keys and values of what was read as 8-bit codes: a fourth of the memory, for heads of a multiple of four elements.
    pub fn with_coded_cache(self) -> Deployment {
        self.with_cache(Cache::Codes)
    }

    /// Keeps keys and values of what was read in another way.
    pub fn with_cache(self, cache: Cache) -> Deployment {
        Deployment { cache, ..self }
    }

    /// A forward pass over the weights as they are stored; `results` names what is wanted of it. With `group`, matmuls of one
    /// row are joined, as it pays where a text is continued.
    pub fn graph(
        &self,
        family: &dyn Family,
        extent: Extent,
        mode: Mode,
        results: impl FnOnce(&mut Graph, Forward) -> Result<()>,
    ) -> Result<Graph> {
        self.graph_of(family, &Reading::new(extent, mode), results)
    }

    /// The same for a reading with padding or kinds of token.
    pub fn graph_of(
        &self,
        family: &dyn Family,
        reading: &Reading,
        results: impl FnOnce(&mut Graph, Forward) -> Result<()>,
    ) -> Result<Graph> {
        Ok(self.graph_with_reports(family, reading, results)?.0)
    }

    /// The same, with what each pass did to it.
    pub fn graph_with_reports(
        &self,
        family: &dyn Family,
        reading: &Reading,
        results: impl FnOnce(&mut Graph, Forward) -> Result<()>,
    ) -> Result<(Graph, Vec<Report>)> {
        self.graph_built(reading.mode, |graph| {
            let forward = family.read(graph, reading)?;
            results(graph, forward)
        })
    }

    /// The same for what `build` writes of a pass in that mode.
    pub fn graph_built(
        &self,
        mode: Mode,
        build: impl FnOnce(&mut Graph) -> Result<()>,
    ) -> Result<(Graph, Vec<Report>)> {
        let mut graph = Graph::new();
        build(&mut graph)?;
        let (graph, mut reports) = passes::run(&[&self.pieces()], graph).map_err(train::Error::from)?;
        reports.retain(|report| !report.changes.is_empty());
        let quantize = self.weights.quantize_in(&graph);
        let mut list: Vec<&dyn Pass> = vec![&quantize, &Tidy, &Residual, &Fuse];
        let continues = matches!(mode, Mode::Continue { .. });
        if continues {
            list.extend([&Coding as &dyn Pass, &Group]);
        }
        if continues || graph.nodes().iter().any(|node| node.op.writing_codes().is_some()) {
            match self.cache {
                Cache::Full => {}
                Cache::Halves => list.push(&HalfCache),
                Cache::Codes => list.push(&CodedCache),
            }
        }
        list.push(&Epilogue);
        let (graph, more) = passes::run(&list, graph).map_err(train::Error::from)?;
        reports.extend(more);
        Ok((graph, reports))
    }

    /// The pass over one source of an encoder-decoder, in as many rows of memory as there are to be: the input `seat`, U32 [1, 2] with zero
    /// before it, says to which one its keys and values go. They stay in the states where passes that write look for them.
    pub fn remembering(&self, family: &dyn Family, reading: &Reading, rows: usize) -> Result<Graph> {
        let (graph, _) = self.graph_built(Mode::Evaluate, |graph| {
            let kept = family.remember(graph, reading)?;
            let seat = graph.input("seat", Type::new(DType::U32, [1, 2]));
            for pair in kept.chunks(2) {
                let [(keys, new_keys), (values, new_values)] = pair else {
                    let expected = "an encoder-decoder whose memory is keys and values".to_string();
                    let got = family.interface().task.describe();
                    return Err(model::Error::Task { expected, got }.into());
                };
                let mut place = |name: &String, of| {
                    let kind: &Type = graph.kind(of);
                    let shape = [&[rows], &kind.shape[1..]].concat();
                    let kind = kind.with_shape(&shape[..]);
                    graph.state(name, kind)
                };
                let places = [place(keys, *new_keys), place(values, *new_values)];
                let written =
                    graph.cache_write(places, [*new_keys, *new_values], seat).map_err(model::Error::from)?;
                graph.output(keys, written[0]);
                graph.output(values, written[1]);
            }
            Ok(())
        })?;
        Ok(graph)
    }

    /// Cuts what cannot be bound.
    fn pieces(&self) -> Pieces {
        Pieces { whole: self.weights.coded(), ..Pieces::of(self.most_bytes) }
    }

    /// Plans for graphs of one model and an engine with its weights, ready to run. A result that is called as a state is stays
    /// there, for others to read.
    pub fn engine(&self, target: &Target, graphs: &[Graph]) -> Result<(Box<dyn Engine>, Vec<Plan>)> {
        let mut residents = place(graphs, target.caps().max_binding_bytes);
        // A result may have the name of a weight, such as its gradient: that has a place of its own.
        let is_state = |name: &str| {
            let of = |graph: &Graph| graph.named(name).map(|value| graph.info(value).source.clone());
            graphs.iter().any(|graph| matches!(of(graph), Some(Source::State)))
        };
        for (name, _) in graphs.iter().flat_map(Graph::outputs).filter(|(name, _)| is_state(name)) {
            if let Some(&span) = residents.places.get(name) {
                residents.results.insert(name.clone(), span);
            }
        }
        let plans = target.plans(&graphs.iter().collect::<Vec<_>>(), &residents, None)?;
        let mut engine = target.engine(&residents.arenas, plans.clone())?;
        for (name, &span) in &residents.places {
            if let Some(tensor) = self.weights.tensor(name) {
                engine.write(span, &tensor).map_err(train::Error::from)?;
            }
        }
        Ok((engine, plans))
    }

    /// Bytes of all weights as a device holds them.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.size_bytes()
    }
}

/// Places for all parameters and states of graphs, as [`frozen::place`] gives them.
pub fn place(graphs: &[Graph], most_bytes: u64) -> Residents {
    let mut residents = Residents::default();
    let kept = |info: &&ValueInfo| matches!(info.source, Source::Parameter | Source::State);
    frozen::place(graphs.iter().flat_map(|graph| graph.values()).filter(kept), most_bytes, &mut residents);
    residents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Config, Stored, initial};
    use crate::tensor::Tensor;

    #[test]
    fn a_model_in_pieces_says_what_it_says_as_a_whole_whether_its_weights_have_32_bits_or_16() {
        let config = serde_json::json!({
            "architectures": ["GPT2LMHeadModel"], "vocab_size": 200, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2,
        });
        let family =
            model::from_config(&Config::new("config.json", config.as_object().unwrap().clone())).unwrap();
        let target = Target::open("cpu").unwrap();
        let extent = Extent { batch: 2, context: 8 };
        let whole = initial(&family.parameters(), 3);
        let mut halves = whole.clone();
        let table = whole.get("transformer.wte.weight").unwrap().to_precision(DType::F16);
        halves.store("transformer.wte.weight", Stored::Halves(DType::F16, table));
        for (how, weights) in [("f32", &whole), ("f16", &halves)] {
            let run = |deployment: Deployment| {
                let results = |graph: &mut Graph, forward: Forward| {
                    graph.output("logits", forward.logits);
                    let loss = model::loss(graph, forward.logits, 0.0)?;
                    graph.output("loss", loss);
                    Ok(())
                };
                let graph = deployment.graph(family.as_ref(), extent, Mode::Evaluate, results).unwrap();
                let (mut engine, plans) = deployment.engine(&target, &[graph]).unwrap();
                let tokens = Tensor::u32([2, 8], (0..16).map(|i| i * 13 % 200).collect());
                let targets = Tensor::i32([16], (0..16).map(|i| i * 7 % 200).collect());
                let given = |feed: &crate::plan::Feed| if feed.name == "tokens" { &tokens } else { &targets };
                let results = engine.run(0, &plans[0].feeds.iter().map(given).collect::<Vec<_>>()).unwrap();
                let embeddings = plans[0].dispatches.len();
                (results.iter().flat_map(Tensor::to_f64).collect::<Vec<f64>>(), embeddings)
            };
            let (expected, few) = run(Deployment::new(weights));
            // A table of 12800 bytes.
            let (got, more) = run(Deployment::new(weights).within_bytes(4096));
            let far = expected.iter().zip(&got).map(|(e, g)| (e - g).abs()).fold(0.0, f64::max);
            assert!(expected.len() == got.len() && far < 1e-5, "{how}: {far} apart");
            assert!(more > few, "{how}: {more} steps, {few} as a whole");
        }
    }
}
