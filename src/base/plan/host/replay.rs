//! One plan with its memory, ready to be run again and again.

use super::words::Words;
use super::{Store, first_word};
use crate::ops::Operator;
use crate::plan::{Error, Place, Plan, Result};
use crate::tensor::{DType, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A plan, its slots and what each node does with them.
pub(super) struct Replay {
    plan: Plan,
    slots: Vec<Words>,
    constants: Vec<Tensor>,
    steps: Vec<Step>,
    runs: u32,
}

/// Where a value's words are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Home {
    Feed(usize),
    Constant(usize),
    Buffer(Buffer, usize),
}

/// Memory that is taken as a whole while a node writes to it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Buffer {
    Slot(usize),
    Arena(usize),
}

/// One node that computes.
struct Step {
    node: usize,
    op: Arc<dyn Operator>,
    inputs: Vec<(Home, Type)>,
    outputs: Vec<Type>,
    /// Each buffer written, and the outputs in it, by first word.
    written: Vec<(Buffer, Vec<(usize, usize)>)>,
    /// Outputs to be rounded to 16 bits, with their type.
    halves: Vec<(usize, DType)>,
    spent: Duration,
}

impl Replay {
    pub fn new(plan: Plan) -> Self {
        let mut slot_words = vec![0; plan.slots.len()];
        let mut constants = vec![];
        let mut homes: Vec<Option<Home>> = vec![None; plan.places.len()];
        for (at, info) in plan.graph.values().iter().enumerate() {
            homes[at] = plan.places[at].map(|place| match place {
                Place::Slot(slot) => {
                    slot_words[slot] = info.kind.host_words().max(slot_words[slot]);
                    Home::Buffer(Buffer::Slot(slot), 0)
                }
                Place::Arena(span) => {
                    Home::Buffer(Buffer::Arena(span.arena), first_word(span, info.kind.dtype))
                }
                Place::Input(offset) => {
                    let number = plan.feeds.iter().position(|f| f.offset_bytes == offset);
                    Home::Feed(number.expect("a place among the inputs is a feed's"))
                }
                Place::Constant(offset) => {
                    let number = plan.known.iter().position(|k| k.offset_bytes == offset);
                    Home::Constant(number.expect("a place among the constants is a known value's"))
                }
            });
        }
        for known in &plan.known {
            constants.push(known.tensor.to_precision(held(known.kind.dtype)));
        }
        let steps = plan.graph.nodes().iter().enumerate().filter(|(_, node)| !node.op.is_view());
        let steps = steps
            .map(|(number, node)| {
                let seat = |v: &crate::ops::Value| {
                    let home = homes[v.index()].expect("values of a live node have places");
                    (home, plan.graph.kind(*v).clone())
                };
                let outputs: Vec<(Home, Type)> = node.outputs.iter().map(seat).collect();
                Step::new(number, node.op.clone(), node.inputs.iter().map(seat).collect(), outputs)
            })
            .collect();
        let slots = slot_words.into_iter().map(Words::zeros).collect();
        Replay { plan, slots, constants, steps, runs: 0 }
    }

    pub fn memory_bytes(&self) -> u64 {
        let slots: usize = self.slots.iter().map(|s| 4 * s.len()).sum();
        slots as u64 + self.plan.feed_bytes + self.plan.known_bytes
    }

    pub fn times(&self) -> Vec<(usize, Duration)> {
        self.steps.iter().map(|step| (step.node, step.spent / self.runs.max(1))).collect()
    }

    pub fn run(&mut self, arenas: &mut [Store], feeds: &[&Tensor]) -> Result<Vec<Tensor>> {
        let fed = self.checked(feeds)?;
        let mut before = Instant::now();
        for step in &mut self.steps {
            step.run(&mut self.slots, arenas, &self.constants, &fed);
            let now = Instant::now();
            step.spent += now - before;
            before = now;
        }
        self.runs += 1;
        let reads = self.plan.reads.iter();
        reads
            .map(|read| match read.place {
                Place::Slot(slot) => Ok(View::of_words(&read.kind, &self.slots[slot]).to_tensor()),
                Place::Arena(span) => arenas[span.arena].take(span, &read.kind),
                Place::Input(_) | Place::Constant(_) => Err(Error::Feed {
                    expected: "results made by operators".into(),
                    got: format!("`{}`, which is fed", read.name),
                }),
            })
            .collect()
    }

    /// The feeds as lent, rounded where the plan holds 16 bits.
    fn checked<'a>(&self, feeds: &[&'a Tensor]) -> Result<Vec<Cow<'a, Tensor>>> {
        let expected = &self.plan.feeds;
        if feeds.len() != expected.len() {
            let names: Vec<String> = expected.iter().map(|f| format!("{} {}", f.name, f.kind)).collect();
            return Err(Error::Feed { expected: names.join(", "), got: format!("{} values", feeds.len()) });
        }
        let check = |(feed, &tensor): (&crate::plan::Feed, &&'a Tensor)| {
            let (got, wanted) = (tensor.data.dtype(), feed.kind.dtype);
            if tensor.shape != feed.kind.shape || !(got == wanted || got.is_float() && wanted.is_float()) {
                let expected = format!("`{}` {}", feed.name, feed.kind);
                return Err(Error::Feed { expected, got: tensor.host_type().to_string() });
            }
            Ok(match got == DType::F64 || wanted.is_half() {
                true => Cow::Owned(tensor.to_precision(held(wanted))),
                false => Cow::Borrowed(tensor),
            })
        };
        expected.iter().zip(feeds).map(check).collect()
    }
}

impl Step {
    fn new(
        node: usize,
        op: Arc<dyn Operator>,
        inputs: Vec<(Home, Type)>,
        outputs: Vec<(Home, Type)>,
    ) -> Self {
        let mut written: Vec<(Buffer, Vec<(usize, usize)>)> = vec![];
        for (number, (home, _)) in outputs.iter().enumerate() {
            let &Home::Buffer(buffer, first) = home else {
                unreachable!("operators write no feeds or constants")
            };
            match written.iter_mut().find(|(b, _)| *b == buffer) {
                Some((_, parts)) => parts.push((first, number)),
                None => written.push((buffer, vec![(first, number)])),
            }
        }
        written.iter_mut().for_each(|(_, parts)| parts.sort_unstable());
        let outputs: Vec<Type> = outputs.into_iter().map(|(_, kind)| kind).collect();
        let types = outputs.iter().map(|kind| kind.dtype).enumerate();
        let halves = types.filter(|(_, dtype)| dtype.is_half()).collect();
        Step { node, op, inputs, outputs, written, halves, spent: Duration::ZERO }
    }

    fn run(&mut self, slots: &mut [Words], arenas: &mut [Store], constants: &[Tensor], fed: &[Cow<Tensor>]) {
        let mut taken: Vec<Words> = self
            .written
            .iter()
            .map(|(buffer, _)| match *buffer {
                Buffer::Slot(slot) => std::mem::take(&mut slots[slot]),
                Buffer::Arena(arena) => std::mem::take(&mut arenas[arena].words),
            })
            .collect();
        let overwritten = self.op.in_place();
        let inputs: Vec<View> = self
            .inputs
            .iter()
            .enumerate()
            .map(|(number, (home, kind))| match *home {
                _ if overwritten.iter().any(|&(_, input)| input == number) => View::absent(kind),
                Home::Feed(feed) => reshaped(&fed[feed], kind),
                Home::Constant(constant) => reshaped(&constants[constant], kind),
                Home::Buffer(Buffer::Slot(slot), first) => View::of_words(kind, &slots[slot][first..]),
                Home::Buffer(Buffer::Arena(arena), first) => {
                    View::of_words(kind, &arenas[arena].words[first..])
                }
            })
            .collect();
        let mut outputs: Vec<Option<ViewMut>> = self.outputs.iter().map(|_| None).collect();
        for ((_, parts), words) in self.written.iter().zip(&mut taken) {
            let (mut rest, mut at) = (&mut words[..], 0);
            for &(first, number) in parts {
                let kind = &self.outputs[number];
                let (mine, others) = rest[first - at..].split_at_mut(kind.host_words());
                outputs[number] = Some(ViewMut::of_words(kind, mine));
                (rest, at) = (others, first + kind.host_words());
            }
        }
        let mut outputs: Vec<ViewMut> = outputs.into_iter().flatten().collect();
        self.op.host(&inputs, &mut outputs);
        for &(number, dtype) in &self.halves {
            round_to_half(outputs[number].floats(), dtype);
        }
        drop(outputs);
        for ((buffer, _), words) in self.written.iter().zip(taken) {
            match *buffer {
                Buffer::Slot(slot) => slots[slot] = words,
                Buffer::Arena(arena) => arenas[arena].words = words,
            }
        }
    }
}

/// A tensor under the shape of a view of it.
fn reshaped<'a>(tensor: &'a Tensor, kind: &'a Type) -> View<'a> {
    View::of_tensor(tensor).reshaped(&kind.shape)
}

fn round_to_half(x: &mut [f32], dtype: DType) {
    x.par_chunks_mut(1 << 14).for_each(|x| x.iter_mut().for_each(|x| *x = dtype.round(*x)));
}

/// How a value of that storage is held.
fn held(dtype: DType) -> DType {
    if dtype.is_half() { dtype } else { DType::F32 }
}
