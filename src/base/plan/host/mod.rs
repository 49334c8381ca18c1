//! The host as an engine: the same plans, replayed with the operators' host paths over memory made once.
//!
//! Each slot and arena is a vector of words. Operators get views of them: parameters are read where they lie in their arena,
//! gradients written there, an optimiser works in place. A run allocates nothing that grows with the model.

mod awake;
mod hands;
mod replay;
mod words;

pub use awake::all_threads;

use super::{Arena, Engine, Error, Plan, Result, Span, Ticket};
use crate::tensor::{DType, Tensor, Type, View, ViewMut};
use hands::Hands;
use replay::Replay;
use std::collections::HashMap;
use std::time::Duration;
use words::Words;

/// Replays plans on the processor: what trains where there is no device, and a device's yardstick.
pub struct HostEngine {
    arenas: Vec<Store>,
    plans: Vec<(Replay, Hands)>,
    finished: HashMap<Ticket, Vec<Tensor>>,
    next: u64,
}

/// An arena's elements.
struct Store {
    dtype: DType,
    words: Words,
}

impl HostEngine {
    /// An engine with zeroed arenas. Variants of the plans do not matter here: they are the device's.
    pub fn new(arenas: &[Arena], plans: Vec<Plan>) -> Self {
        let store = |a: &Arena| Store { dtype: a.kind.dtype, words: Words::zeros(a.kind.host_words()) };
        let plans = plans.into_iter().map(|plan| (Hands::of(&plan), plan));
        let plans = plans.map(|(hands, plan)| (Replay::new(plan), hands)).collect();
        HostEngine { arenas: arenas.iter().map(store).collect(), plans, finished: HashMap::new(), next: 0 }
    }

    /// Mean time of each node of a plan over its runs so far, with the node's number; views take none and are left out.
    pub fn times(&self, plan: usize) -> Vec<(usize, Duration)> {
        self.plans[plan].0.times()
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
        let ((plan, hands), arenas) = (&mut self.plans[number], &mut self.arenas);
        let results = hands.run(|| plan.run(arenas, feeds))?;
        self.next += 1;
        let ticket = Ticket(self.next);
        self.finished.insert(ticket, results);
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket, _wait: bool) -> Result<Option<Vec<Tensor>>> {
        Ok(self.finished.remove(&ticket))
    }

    fn profile(&mut self, number: usize, feeds: &[&Tensor]) -> Result<Vec<(usize, f64)>> {
        self.run(number, feeds)?;
        Ok(self.times(number).into_iter().map(|(node, time)| (node, time.as_secs_f64() * 1e3)).collect())
    }

    fn memory_bytes(&self) -> u64 {
        let arenas: usize = self.arenas.iter().map(|a| 4 * a.words.len()).sum();
        arenas as u64 + self.plans.iter().map(|(plan, _)| plan.memory_bytes()).sum::<u64>()
    }
}

/// First word of a span of values of this storage: halves take a word each here.
fn first_word(span: Span, dtype: DType) -> usize {
    let bytes = if dtype.is_half() { dtype.size_bytes() } else { 4 };
    span.offset_bytes as usize / bytes
}

impl Store {
    fn put(&mut self, span: Span, tensor: &Tensor) -> Result<()> {
        // Halves are held as f32 rounded to them.
        let (precision, held) =
            if self.dtype.is_half() { (self.dtype, DType::F32) } else { (DType::F32, self.dtype) };
        let tensor = tensor.to_precision(precision);
        let got = tensor.data.dtype();
        if got != held {
            return Err(Error::Feed { expected: self.dtype.to_string(), got: got.to_string() });
        }
        let kind = tensor.host_type();
        let range = self.range(span, &kind)?;
        ViewMut::of_words(&kind, &mut self.words[range])
            .bytes()
            .copy_from_slice(View::of_tensor(&tensor).bytes());
        Ok(())
    }

    fn take(&self, span: Span, kind: &Type) -> Result<Tensor> {
        let held = Type::new(self.dtype, kind.shape.clone());
        let range = self.range(span, &held)?;
        Ok(View::of_words(&held, &self.words[range]).to_tensor())
    }

    fn range(&self, span: Span, kind: &Type) -> Result<std::ops::Range<usize>> {
        let first = first_word(span, self.dtype);
        let range = first..first + kind.host_words();
        if range.end <= self.words.len() {
            return Ok(range);
        }
        let expected = format!("at most {} words", self.words.len());
        Err(Error::Feed { expected, got: format!("words {range:?}") })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Residents, first_variant, plan};
    use super::*;
    use crate::graph::{Feeds, Graph, evaluate, gradient};
    use crate::ops::cast::CastEmit;
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
            let dw = engine.read(at(1), &Type::f32([8])).unwrap();
            for (got, expected) in [(&loss[0], &expected["loss"]), (&dw, &expected["dw"])] {
                for (got, expected) in got.to_f64().iter().zip(expected.to_f64()) {
                    assert!((got - expected).abs() <= 1e-6 * expected.abs().max(0.1), "{got} {expected}");
                }
            }
        }
    }

    #[test]
    fn halves_that_follow_each_other_in_an_arena_do_not_overlap() {
        let mut graph = Graph::new();
        let half = |count| Type::new(DType::BF16, [count]);
        let [a, b] = ["a", "b"].map(|name| graph.parameter(name, half(64)));
        let [wide_a, wide_b] = [a, b].map(|v| graph.cast(v, DType::F32).unwrap());
        let sum = graph.add(wide_a, wide_b).unwrap();
        graph.output("sum", sum);
        let at = |elements: u64| Span { arena: 0, offset_bytes: 2 * elements };
        let residents = Residents {
            arenas: vec![Arena { name: "parameters".into(), kind: half(128) }],
            places: [("a".to_string(), at(0)), ("b".to_string(), at(64))].into(),
            results: Default::default(),
        };
        let planned = plan(&graph, &residents, &Caps::portable(), &mut first_variant).unwrap();
        let mut engine = HostEngine::new(&residents.arenas, vec![planned]);
        let ramp = |step: f32| Tensor::f32([64], (0..64).map(|i| step * i as f32).collect());
        engine.write(at(0), &ramp(1.0)).unwrap();
        engine.write(at(64), &ramp(-2.0)).unwrap();
        assert_eq!(engine.run(0, &[]).unwrap()[0].to_f64(), ramp(-1.0).to_f64());
        assert_eq!(engine.read(at(0), &half(64)).unwrap().to_f64(), ramp(1.0).to_f64());
        assert_eq!(engine.read(at(64), &half(64)).unwrap().to_f64(), ramp(-2.0).to_f64());
    }
}
