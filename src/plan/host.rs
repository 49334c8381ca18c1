//! The host as an engine: the same plans, replayed with the operators' references over reused memory.

use super::prepare::storage_roots;
use super::{Arena, Engine, Error, Place, Plan, Result, Span, Ticket};
use crate::ops::Value;
use crate::tensor::{DType, Data, Tensor, Type};
use std::collections::HashMap;

/// Replays plans on the processor: the referee of a device, the fall-back where there is none, and its yardstick.
pub struct HostEngine {
    arenas: Vec<Store>,
    plans: Vec<Ready>,
    finished: HashMap<Ticket, Vec<Tensor>>,
    next: u64,
}

/// An arena's elements, with a count of the times they were overwritten.
struct Store {
    whole: Tensor,
    version: u64,
}

/// A plan with its memory.
struct Ready {
    plan: Plan,
    roots: Vec<Value>,
    slots: Vec<Tensor>,
    /// Copies of parameters, by value, with the version of the arena they were taken from.
    parameters: HashMap<usize, (u64, Tensor)>,
    constants: HashMap<usize, Tensor>,
}

impl HostEngine {
    /// An engine with zeroed arenas. Variants of the plans do not matter here: references compute every operator.
    pub fn new(arenas: &[Arena], plans: Vec<Plan>) -> Self {
        let arenas = arenas.iter().map(|a| Store { whole: Tensor::zeros(&a.kind), version: 1 }).collect();
        let plans = plans.into_iter().map(Ready::new).collect();
        HostEngine { arenas, plans, finished: HashMap::new(), next: 0 }
    }
}

impl Engine for HostEngine {
    fn describe(&self) -> String {
        format!("host, {} threads", rayon::current_num_threads())
    }

    fn write(&mut self, span: Span, tensor: &Tensor) -> Result<()> {
        self.arenas[span.arena].put(span, tensor)
    }

    fn read(&mut self, span: Span, kind: &Type) -> Result<Tensor> {
        self.arenas[span.arena].take(span, kind)
    }

    fn submit(&mut self, number: usize, feeds: &[&Tensor]) -> Result<Ticket> {
        let results = self.plans[number].run(&mut self.arenas, feeds)?;
        self.next += 1;
        let ticket = Ticket(self.next);
        self.finished.insert(ticket, results);
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket, _wait: bool) -> Result<Option<Vec<Tensor>>> {
        Ok(self.finished.remove(&ticket))
    }

    fn memory_bytes(&self) -> u64 {
        let arenas: u64 = self.arenas.iter().map(|a| a.whole.host_type().size_bytes()).sum();
        arenas + self.plans.iter().map(|p| p.plan.run_bytes()).sum::<u64>()
    }
}

impl Store {
    fn put(&mut self, span: Span, tensor: &Tensor) -> Result<()> {
        let first = (span.offset_bytes / 4) as usize;
        let range = first..first + tensor.data.len();
        let whole = self.whole.data.len();
        let outside =
            || Error::Feed { expected: format!("at most {whole} words"), got: format!("words {range:?}") };
        match (&mut self.whole.data, &tensor.to_precision(DType::F32).data) {
            (Data::F32(to), Data::F32(from)) => {
                to.get_mut(range.clone()).ok_or_else(outside)?.copy_from_slice(from)
            }
            (Data::U32(to), Data::U32(from)) => {
                to.get_mut(range.clone()).ok_or_else(outside)?.copy_from_slice(from)
            }
            (to, from) => {
                return Err(Error::Feed { expected: to.dtype().to_string(), got: from.dtype().to_string() });
            }
        }
        self.version += 1;
        Ok(())
    }

    fn take(&self, span: Span, kind: &Type) -> Result<Tensor> {
        let first = (span.offset_bytes / 4) as usize;
        let range = first..first + kind.shape.count();
        let outside = || Error::Feed {
            expected: format!("at most {} words", self.whole.data.len()),
            got: format!("words {range:?}"),
        };
        let data = match &self.whole.data {
            Data::F32(from) => Data::F32(from.get(range.clone()).ok_or_else(outside)?.to_vec()),
            Data::U32(from) => Data::U32(from.get(range.clone()).ok_or_else(outside)?.to_vec()),
            other => {
                return Err(Error::Feed { expected: "f32 or u32".into(), got: other.dtype().to_string() });
            }
        };
        Ok(Tensor { shape: kind.shape.clone(), data })
    }
}

/// A tensor of nothing, left in the place of one that is in use.
fn nothing() -> Tensor {
    Tensor { shape: [0].into(), data: Data::F32(vec![]) }
}

/// Gives `tensor` a type, keeping its memory where the element type allows.
fn shaped(mut tensor: Tensor, kind: &Type) -> Tensor {
    let count = kind.shape.count();
    match (&mut tensor.data, kind.dtype) {
        (Data::F32(v), DType::F32 | DType::F16) => v.resize(count, 0.0),
        (Data::U32(v), DType::U32) => v.resize(count, 0),
        (Data::I32(v), DType::I32) => v.resize(count, 0),
        (data, dtype) => *data = Data::zeros(dtype, count),
    }
    tensor.shape = kind.shape.clone();
    tensor
}

impl Ready {
    fn new(plan: Plan) -> Self {
        let roots = storage_roots(&plan.graph);
        let slots = plan.slots.iter().map(|_| nothing()).collect();
        let mut constants = HashMap::new();
        for (at, info) in plan.graph.values().iter().enumerate() {
            if let crate::graph::Source::Constant(tensor) = &info.source {
                constants.insert(at, tensor.to_precision(host_precision(info.kind.dtype)));
            }
        }
        Ready { plan, roots, slots, parameters: HashMap::new(), constants }
    }

    fn run(&mut self, arenas: &mut [Store], feeds: &[&Tensor]) -> Result<Vec<Tensor>> {
        let mut fed = self.take_feeds(feeds)?;
        for number in 0..self.plan.graph.nodes().len() {
            let node = self.plan.graph.nodes()[number].clone();
            if node.op.is_view() {
                continue;
            }
            // Inputs are taken out of their places for the time of the operator and put back after it.
            let mut held: Vec<(Value, Tensor)> = vec![];
            for &value in &node.inputs {
                let known = held.iter().any(|(v, _)| *v == value);
                if !known {
                    let twin = held.iter().find(|(v, _)| self.roots[v.index()] == self.roots[value.index()]);
                    let tensor = match twin {
                        Some((_, tensor)) => tensor.clone(),
                        None => self.take(value, arenas, &mut fed)?,
                    };
                    held.push((value, shaped(tensor, self.plan.graph.kind(value))));
                }
            }
            let mut outputs: Vec<Tensor> = node
                .outputs
                .iter()
                .map(|&v| {
                    let old = match self.plan.places[v.index()] {
                        Some(Place::Slot(slot)) => std::mem::replace(&mut self.slots[slot], nothing()),
                        _ => nothing(),
                    };
                    shaped(old, self.plan.graph.kind(v))
                })
                .collect();
            let inputs: Vec<&Tensor> = node
                .inputs
                .iter()
                .map(|v| &held.iter().find(|(h, _)| h == v).expect("every input is held").1)
                .collect();
            node.op.reference(&inputs, &mut outputs);
            for (value, tensor) in held {
                self.give_back(value, tensor, arenas, &mut fed);
            }
            for (&value, output) in node.outputs.iter().zip(outputs) {
                let half = self.plan.graph.kind(value).dtype == DType::F16;
                let output = if half { output.to_precision(DType::F16) } else { output };
                match self.plan.places[value.index()] {
                    Some(Place::Slot(slot)) => self.slots[slot] = output,
                    Some(Place::Arena(span)) => self.store(span, output, arenas)?,
                    _ => {}
                }
            }
        }
        self.plan
            .reads
            .clone()
            .iter()
            .map(|read| match read.place {
                Place::Slot(slot) => Ok(shaped(self.slots[slot].clone(), &read.kind)),
                Place::Arena(span) => arenas[span.arena].take(span, &read.kind),
                Place::Input(_) | Place::Constant(_) => Err(Error::Feed {
                    expected: "results made by operators".into(),
                    got: format!("`{}`, which is fed", read.name),
                }),
            })
            .collect()
    }

    fn take_feeds(&self, feeds: &[&Tensor]) -> Result<HashMap<u64, Tensor>> {
        let names = || {
            self.plan.feeds.iter().map(|f| format!("{} {}", f.name, f.kind)).collect::<Vec<_>>().join(", ")
        };
        if feeds.len() != self.plan.feeds.len() {
            return Err(Error::Feed { expected: names(), got: format!("{} values", feeds.len()) });
        }
        let mut fed = HashMap::new();
        for (feed, &tensor) in self.plan.feeds.iter().zip(feeds) {
            let same = tensor.data.dtype() == feed.kind.dtype
                || (tensor.data.dtype().is_float() && feed.kind.dtype.is_float());
            if tensor.shape != feed.kind.shape || !same {
                return Err(Error::Feed {
                    expected: format!("`{}` {}", feed.name, feed.kind),
                    got: tensor.host_type().to_string(),
                });
            }
            fed.insert(feed.offset_bytes, tensor.to_precision(host_precision(feed.kind.dtype)));
        }
        Ok(fed)
    }

    fn take(&mut self, value: Value, arenas: &mut [Store], fed: &mut HashMap<u64, Tensor>) -> Result<Tensor> {
        let root = self.roots[value.index()].index();
        Ok(match self.plan.places[value.index()].expect("a value that is read has a place") {
            Place::Slot(slot) => std::mem::replace(&mut self.slots[slot], nothing()),
            Place::Input(offset) => fed.remove(&offset).expect("fed and given back after each node"),
            Place::Constant(_) => self.constants.remove(&root).expect("given back after each node"),
            Place::Arena(span) => {
                let kind = self.plan.graph.values()[root].kind.clone();
                let store = &mut arenas[span.arena];
                if is_whole(&store.whole, &kind) {
                    return Ok(std::mem::replace(&mut store.whole, nothing()));
                }
                match self.parameters.remove(&root) {
                    Some((version, tensor)) if version == store.version => tensor,
                    _ => store.take(span, &kind)?,
                }
            }
        })
    }

    fn give_back(
        &mut self,
        value: Value,
        mut tensor: Tensor,
        arenas: &mut [Store],
        fed: &mut HashMap<u64, Tensor>,
    ) {
        let root = self.roots[value.index()].index();
        tensor.shape = self.plan.graph.values()[root].kind.shape.clone();
        match self.plan.places[value.index()].expect("a value that is read has a place") {
            Place::Slot(slot) => self.slots[slot] = tensor,
            Place::Input(offset) => {
                fed.insert(offset, tensor);
            }
            Place::Constant(_) => {
                self.constants.insert(root, tensor);
            }
            Place::Arena(span) => {
                let store = &mut arenas[span.arena];
                // While a whole arena is out, nothing is in its place.
                if store.whole.data.is_empty() {
                    store.whole = tensor;
                } else {
                    self.parameters.insert(root, (store.version, tensor));
                }
            }
        }
    }

    fn store(&self, span: Span, output: Tensor, arenas: &mut [Store]) -> Result<()> {
        let store = &mut arenas[span.arena];
        if is_whole(&store.whole, &output.host_type()) {
            store.whole = output;
            store.version += 1;
            return Ok(());
        }
        store.put(span, &output)
    }
}

fn is_whole(whole: &Tensor, kind: &Type) -> bool {
    whole.shape == kind.shape && whole.data.dtype() == kind.dtype
}

fn host_precision(dtype: DType) -> DType {
    if dtype == DType::F16 { DType::F16 } else { DType::F32 }
}

#[cfg(test)]
mod tests {
    use super::super::{Residents, first_variant, plan};
    use super::*;
    use crate::graph::{Feeds, Graph, evaluate, gradient};
    use crate::ops::launch::Caps;
    use crate::ops::pointwise::PointwiseEmit;
    use crate::ops::reduce::ReduceEmit;

    #[test]
    fn a_replayed_plan_gives_what_the_interpreter_gives() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([3, 8]));
        let w = graph.parameter("w", Type::f32([8]));
        let y = graph.mul(x, w).unwrap();
        let bent = graph.pointwise("gelu", &[y], 0.0).unwrap();
        let loss = graph.mean_all(bent).unwrap();
        let dw = gradient(&mut graph, loss, &[w]).unwrap()[0].unwrap();
        graph.output("loss", loss);
        graph.output("dw", dw);
        let at = |arena| Span { arena, offset_bytes: 256 };
        let arena = |name: &str| Arena { name: name.into(), kind: Type::f32([128]) };
        let residents = Residents {
            arenas: vec![arena("parameters"), arena("gradients")],
            places: [("w".to_string(), at(0))].into(),
            results: [("dw".to_string(), at(1))].into(),
        };
        let planned = plan(&graph, &residents, &Caps::portable(), &mut first_variant).unwrap();
        let mut engine = HostEngine::new(&residents.arenas, vec![planned]);
        for round in 0..3 {
            let x = Tensor::f32([3, 8], (0..24).map(|i| ((i * 7 + round) % 5) as f32 - 2.0).collect());
            let w = Tensor::f32([8], (0..8).map(|i| 0.1 * (i + round) as f32).collect());
            engine.write(at(0), &w).unwrap();
            let loss = engine.run(0, &[&x]).unwrap();
            let feeds = Feeds::new().with("x", x).with("w", w);
            let expected = evaluate(&graph, &feeds, DType::F32).unwrap();
            assert_eq!(loss[0], expected["loss"]);
            assert_eq!(engine.read(at(1), &Type::f32([8])).unwrap(), expected["dw"]);
        }
    }
}
