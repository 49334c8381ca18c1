//! Trials of attention and its gradient: odd on purpose.

use super::{Attention, AttentionGradient, Layout};
use crate::ops::{Cases, Operator};
use crate::tensor::{DType, Tensor, Type};

/// One form of attention over one set of sizes.
struct Trial {
    label: &'static str,
    how: Attention,
    /// B, T, S, H, G, D.
    sizes: [usize; 6],
    packed: bool,
    masked: bool,
    /// Of the first query in a cache.
    position: u32,
    /// Positions of the first queries and numbers of their caches, and how many caches there are.
    seats: Option<(&'static [[u32; 2]], usize)>,
}

fn trial(label: &'static str, how: Attention, sizes: [usize; 6]) -> Trial {
    Trial { label, how, sizes, packed: false, masked: false, position: 0, seats: None }
}

fn trials() -> Vec<Trial> {
    let (causal, full) = (Attention::causal, Attention::full);
    let masked = |t: Trial| Trial { masked: true, ..t };
    let packed = |t: Trial| Trial { packed: true, ..t };
    vec![
        trial("one of everything", full(), [1, 1, 1, 1, 1, 1]),
        trial("one query, one key, vectors", causal(), [2, 1, 1, 3, 3, 8]),
        trial("causal primes", causal(), [2, 7, 7, 2, 2, 8]),
        trial("full primes, cross", full(), [1, 5, 13, 3, 3, 20]),
        trial("one query after many keys", causal(), [2, 1, 11, 2, 2, 16]),
        trial("fewer queries than keys", causal(), [1, 6, 19, 2, 2, 12]),
        trial("more queries than keys: first rows see nothing", causal(), [1, 9, 4, 2, 2, 8]),
        trial("one past the tile", causal(), [1, 33, 33, 2, 2, 32]),
        trial("one past two tiles, full", full(), [1, 65, 67, 1, 1, 8]),
        trial("grouped heads", causal(), [2, 9, 9, 6, 2, 8]),
        trial("one key head for all", full(), [1, 10, 10, 4, 1, 16]),
        trial("head size not a multiple of four", causal(), [1, 11, 11, 2, 1, 7]),
        trial("head size below four", causal(), [2, 5, 5, 2, 2, 3]),
        trial("wide heads", causal(), [1, 35, 35, 1, 1, 64]),
        trial("head size one past a chunk", full(), [1, 6, 9, 2, 2, 36]),
        trial("widest fast heads", causal(), [1, 12, 12, 1, 1, 128]),
        trial("beyond the widest fast heads", causal(), [1, 6, 6, 1, 1, 132]),
        trial("own scale", full().scale(0.5), [1, 6, 6, 2, 2, 8]),
        trial("window of one", causal().window(1), [1, 9, 9, 1, 1, 8]),
        trial("sliding window", causal().window(5), [1, 41, 41, 2, 2, 8]),
        trial("window to both sides", full().window(3), [1, 37, 37, 2, 1, 12]),
        trial("window over more keys than queries", causal().window(4), [1, 6, 17, 2, 2, 8]),
        masked(trial("padding", full(), [3, 7, 9, 2, 2, 8])),
        masked(trial("padding, causal, whole rows hidden", causal(), [3, 37, 37, 2, 1, 20])),
        trial("dropout", full().dropout(0.3, 7), [2, 9, 13, 2, 2, 8]),
        masked(trial("dropout, padding, grouped, causal", causal().dropout(0.1, 3), [2, 34, 34, 4, 2, 8])),
        packed(trial("packed", causal(), [2, 10, 10, 2, 2, 8])),
        packed(trial("packed, grouped, odd head size", causal(), [2, 9, 9, 4, 2, 5])),
        packed(masked(trial("packed, padding", full(), [3, 33, 33, 3, 3, 12]))),
        packed(trial("packed, dropout", causal().dropout(0.2, 9), [1, 17, 17, 2, 1, 16])),
        masked(trial("texts side by side", causal().segmented(), [3, 37, 37, 4, 2, 8])),
        masked(trial("texts side by side, full", full().segmented(), [2, 9, 9, 2, 2, 20])),
        masked(trial(
            "texts side by side, window, odd size",
            causal().window(5).segmented(),
            [2, 41, 41, 2, 1, 7],
        )),
        masked(trial("texts side by side, one key", causal().segmented(), [2, 1, 1, 2, 2, 8])),
        packed(masked(trial("packed, texts side by side", causal().segmented(), [2, 70, 70, 2, 2, 32]))),
        packed(masked(trial(
            "packed, texts, dropout",
            causal().segmented().dropout(0.2, 5),
            [1, 34, 34, 2, 1, 16],
        ))),
    ]
}

/// Keys and values are caches, mostly longer than what is filled.
fn cached_trials() -> Vec<Trial> {
    let cached = |label, sizes, position| {
        let how = Attention { cached: true, ..Attention::causal() };
        Trial { position, ..trial(label, how, sizes) }
    };
    let windowed = |t: Trial, window| Trial { how: t.how.clone().window(window), ..t };
    let seated = |t: Trial, seats, caches| Trial { seats: Some((seats, caches)), ..t };
    vec![
        cached("cached: the first token", [1, 1, 7, 2, 2, 8], 0),
        cached("cached: one query of grouped heads", [2, 1, 13, 6, 2, 16], 9),
        cached("cached: many keys, the last of them", [1, 1, 300, 2, 1, 64], 299),
        cached("cached: odd head size", [1, 1, 140, 2, 1, 7], 131),
        cached("cached: several queries", [2, 5, 40, 2, 2, 12], 20),
        cached("cached: one past the tile", [1, 33, 80, 2, 1, 8], 40),
        cached("cached: queries past the end", [1, 4, 6, 1, 1, 8], 4),
        windowed(cached("cached: window", [1, 3, 41, 2, 1, 8], 30), 5),
        windowed(cached("cached: window, a tile", [1, 35, 90, 2, 2, 8], 50), 9),
        windowed(cached("cached: window past the end", [1, 3, 9, 1, 1, 4], 20), 4),
        windowed(cached("cached: window, tiles past the end", [1, 130, 40, 2, 1, 8], 30), 4),
        seated(
            cached("cached: each at its own place", [3, 1, 40, 4, 2, 16], 0),
            &[[7, 2], [0, 0], [39, 1]],
            3,
        ),
        seated(cached("cached: some of the caches", [2, 1, 140, 2, 2, 7], 0), &[[131, 3], [2, 1]], 5),
        seated(cached("cached: a tile in one of the caches", [1, 35, 90, 2, 1, 8], 0), &[[20, 2]], 3),
        windowed(
            seated(cached("cached: own places, window", [2, 3, 41, 2, 1, 8], 0), &[[30, 1], [3, 0]], 2),
            5,
        ),
    ]
}

impl Trial {
    fn op(&self) -> Attention {
        let [_, _, _, heads, key_heads, _] = self.sizes;
        let layout = if self.packed { Layout::Packed { heads, key_heads } } else { Layout::Separate };
        Attention { layout, masked: self.masked, ..self.how.clone() }
    }

    fn sources(&self, cases: &mut Cases) -> Vec<Tensor> {
        let [b, t, s, h, g, d] = self.sizes;
        if self.packed {
            return vec![cases.normal([b, t, (h + 2 * g) * d])];
        }
        let held = self.seats.map_or(b, |(_, caches)| caches);
        vec![cases.normal([b, t, h, d]), cases.normal([held, s, g, d]), cases.normal([held, s, g, d])]
    }

    /// Mask and rng. Of three or more sequences the second is hidden wholly.
    fn trailing(&self, cases: &mut Cases) -> Vec<Tensor> {
        let [b, _, s, ..] = self.sizes;
        let mut inputs = vec![];
        if self.masked {
            let mut mask = cases.indices([b, s], 3).as_u32().to_vec();
            if self.how.segmented {
                mask = texts(&mask, s);
            }
            if b > 2 {
                mask[s..2 * s].fill(0);
            }
            inputs.push(Tensor::u32([b, s], mask));
        }
        if self.how.dropout.is_some() {
            inputs.push(Tensor::u32([2], vec![11, 5]));
        }
        if self.how.cached {
            inputs.push(match self.seats {
                Some((seats, _)) => Tensor::u32([b, 2], seats.concat()),
                None => Tensor::u32([1], vec![self.position]),
            });
        }
        inputs
    }
}

/// Numbers of texts in rows of `size` places: one begins where the number drawn is two; the last ninth of a long row is empty.
fn texts(drawn: &[u32], size: usize) -> Vec<u32> {
    let row = |row: &[u32]| {
        let mut number = 1;
        let end = if size > 30 { size - size / 9 } else { size };
        let mut place = |(at, &drawn): (usize, &u32)| {
            number += u32::from(at > 0 && drawn == 2);
            if at < end { number } else { 0 }
        };
        row.iter().enumerate().map(&mut place).collect::<Vec<u32>>()
    };
    drawn.chunks(size).flat_map(row).collect()
}

/// Every form forward, then the backward operator on what the forward one saves.
pub fn cases() -> Cases {
    let mut cases = Cases::new("attention");
    for trial in trials() {
        let [_, _, keys, _, _, size] = trial.sizes;
        let mut inputs = trial.sources(&mut cases);
        inputs.extend(trial.trailing(&mut cases));
        cases.add(trial.label, trial.op(), inputs).sums(keys.max(size));
    }
    for trial in cached_trials() {
        let [_, _, keys, _, _, size] = trial.sizes;
        let mut inputs = trial.sources(&mut cases);
        inputs.extend(trial.trailing(&mut cases));
        cases.add(trial.label, trial.op(), inputs).no_gradient().sums(keys.max(size));
    }
    for trial in trials() {
        let [_, queries, keys, heads, key_heads, size] = trial.sizes;
        let sources = trial.sources(&mut cases);
        let trailing = trial.trailing(&mut cases);
        let [out, lse] = saved(&trial.op(), &sources, &trailing);
        let up = cases.normal(out.shape.clone());
        let mut inputs = sources;
        inputs.extend([out, lse.to_precision(DType::F32), up]);
        inputs.extend(trailing);
        let length = keys.max(size).max(queries * heads / key_heads);
        let label = format!("gradient: {}", trial.label);
        let case = cases.add(label, AttentionGradient(trial.op()), inputs).no_gradient().sums(length);
        if keys == 1 || trial.how.window == Some(1) {
            // A lone key has probability one whatever its score: dq and dk are zero, the difference of equal numbers, and the
            // tolerance would be relative to that.
            case.slack(256.0);
        }
    }
    cases
}

/// Outputs of the forward operator in f64.
fn saved(op: &Attention, sources: &[Tensor], trailing: &[Tensor]) -> [Tensor; 2] {
    let inputs: Vec<&Tensor> = sources.iter().chain(trailing).collect();
    let types: Vec<Type> = inputs.iter().map(|t| t.host_type()).collect();
    let of_outputs = op.signature(&types).expect("the trials fit together");
    let mut outputs: Vec<Tensor> =
        of_outputs.iter().map(|t| Tensor::zeros(&Type::new(DType::F64, t.shape.clone()))).collect();
    op.reference(&inputs, &mut outputs);
    outputs.try_into().expect("attention has two outputs")
}
