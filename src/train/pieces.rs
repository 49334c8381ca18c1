//! Weights that are larger than a kernel may bind: trained in pieces, known to all others as a whole.
//!
//! [`Pieces`] cuts the loss; here weights are cut to fit it, and what comes back is joined. A checkpoint does
//! not tell whether there were pieces.

use super::layout::Layout;
use super::recipe::Rule;
use super::trainer::{BuildLoss, Settings, Weight};
use super::{Error, Frozen, Result, Target};
use crate::graph::Graph;
use crate::model::Mode;
use crate::ops::Value;
use crate::passes::{Pass, Piece, Pieces, StoredWeight};
use crate::tensor::{Data, Tensor};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// How the weights of a loss are cut.
pub(super) struct Cut {
    pass: Pieces,
    /// The weights, some in pieces.
    pub weights: Vec<Weight>,
}

impl Cut {
    /// Cuts what a device cannot bind at once.
    pub fn new(target: &Target, weights: &[Weight], build: &BuildLoss, settings: &Settings) -> Result<Cut> {
        let most_bytes = settings.page_bytes.unwrap_or(target.caps().max_binding_bytes);
        let pass = Pieces { whole: settings.frozen.coded(), ..Pieces::of(most_bytes) };
        let is_large = |weight: &Weight| 4 * weight.shape.count() as u64 > most_bytes;
        if !weights.iter().any(is_large) {
            return Ok(Cut { pass, weights: weights.to_vec() });
        }
        let mut graph = Graph::new();
        build(&mut graph, Mode::Train)?;
        let pieces = pass.cut(&graph);
        let trained = weights.iter().find(|weight| pieces.contains_key(&weight.name));
        if let (Rule::Lamb { .. }, Some(weight)) = (&settings.optimizer.rule, trained) {
            return Err(Error::OnlyInPieces {
                name: weight.name.clone(),
                limit_bytes: most_bytes,
                why: "LAMB takes the norm of whole weights",
                hint: "adamw trains in pieces",
            });
        }
        let of = |weight: &Weight| match pieces.get(&weight.name) {
            None => vec![weight.clone()],
            Some(list) => list.iter().map(|piece| part_of(weight, piece)).collect(),
        };
        Ok(Cut { weights: weights.iter().flat_map(of).collect(), pass })
    }

    /// Writes the loss over the pieces into an empty graph.
    pub fn write(&self, build: &BuildLoss, graph: &mut Graph, mode: Mode) -> Result<Value> {
        /// A result's name that no loss has.
        const LOSS: &str = "the loss";
        let mut whole = Graph::new();
        let loss = build(&mut whole, mode)?;
        whole.output(LOSS, loss);
        *graph = self.pass.rewrite(&whole)?;
        let loss = graph.result(LOSS).expect("results stay results");
        graph.forget_output(LOSS);
        Ok(loss)
    }

    /// The same of another graph over these weights.
    pub fn of_graph(&self, graph: &Graph) -> Result<Graph> {
        Ok(self.pass.rewrite(graph)?)
    }

    /// Refuses pieces that would be held in another way than as f32: a checkpoint could not tell them as a whole.
    pub fn check(&self, layout: &Layout) -> Result<()> {
        let held = |number: usize| layout.pages[layout.tensors[number].page].class != Default::default();
        let wrong =
            (0..layout.tensors.len()).find(|&n| Piece::parse(&layout.tensors[n].name).is_some() && held(n));
        match wrong.and_then(|n| Piece::parse(&layout.tensors[n].name)) {
            None => Ok(()),
            Some(piece) => Err(Error::OnlyInPieces {
                name: piece.whole,
                limit_bytes: self.pass.most_bytes,
                why: "pieces are trained in f32 and without masks only",
                hint: "leave it out by `ignore`",
            }),
        }
    }
}

fn part_of(weight: &Weight, piece: &Piece) -> Weight {
    let shape = [&[piece.rows.len()], &weight.shape[1..]].concat();
    Weight { name: piece.name(), shape: shape.into(), decays: weight.decays }
}

/// The piece that a tensor belongs to, and what its name has behind that of the piece.
fn piece_of(name: &str) -> Option<(Piece, &str)> {
    let end = name.rfind('/').filter(|at| name[..*at].contains('#'))?;
    let digits = name[end + 1..].bytes().take_while(u8::is_ascii_digit).count();
    let (piece, rest) = name.split_at(end + 1 + digits);
    Some((Piece::parse(piece)?, rest))
}

/// Name of the whole that a tensor is some rows of, and those rows.
pub(super) fn within(name: &str) -> Option<(String, Piece)> {
    piece_of(name).map(|(piece, rest)| (format!("{}{rest}", piece.whole), piece))
}

/// Tensors of which pieces are put together, in the places of the first ones.
pub fn join(list: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    if list.iter().all(|(name, _)| piece_of(name).is_none()) {
        return list;
    }
    let mut parts: BTreeMap<String, Vec<(usize, Tensor)>> = BTreeMap::new();
    let mut order = vec![];
    for (name, tensor) in list {
        let (name, start) = within(&name).map_or((name, 0), |(whole, piece)| (whole, piece.rows.start));
        let known = parts.entry(name.clone()).or_default();
        if known.is_empty() {
            order.push(name);
        }
        known.push((start, tensor));
    }
    let whole = |name: String| {
        let mut list = parts.remove(&name).expect("each is named once");
        list.sort_by_key(|(start, _)| *start);
        let mut list = list.into_iter().map(|(_, tensor)| tensor);
        let first = list.next().expect("there is one at least");
        let tensor = list.fold(first, |mut all, part| {
            append(&mut all, part);
            all
        });
        (name, tensor)
    };
    order.into_iter().map(whole).collect()
}

/// Puts more rows behind those of a tensor.
fn append(all: &mut Tensor, part: Tensor) {
    match (&mut all.data, part.data) {
        (Data::F32(all), Data::F32(part)) => all.extend(part),
        (Data::F64(all), Data::F64(part)) => all.extend(part),
        (Data::I32(all), Data::I32(part)) => all.extend(part),
        (Data::U32(all), Data::U32(part)) => all.extend(part),
        (Data::I8(all), Data::I8(part)) => all.extend(part),
        _ => unreachable!("pieces of one tensor are of one type"),
    }
    all.shape = [&[all.shape[0] + part.shape[0]], &all.shape[1..]].concat().into();
}

impl Frozen {
    /// Names of those that are read as codes.
    pub fn coded(&self) -> Vec<String> {
        let is_coded = |weight: &StoredWeight| matches!(weight, StoredWeight::Codes(_));
        self.quantize()
            .weights
            .iter()
            .filter(|(_, weight)| is_coded(weight))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// What is uploaded for a parameter, which may be a piece.
    pub fn tensor(&self, name: &str) -> Option<Cow<'_, Tensor>> {
        match self.get(name) {
            Some(tensor) => Some(Cow::Borrowed(tensor)),
            None => {
                within(name).and_then(|(whole, piece)| Some(Cow::Owned(self.get(&whole)?.rows(piece.rows))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_joined_in_the_order_of_their_rows_whatever_stands_behind_their_names() {
        let tensor = |rows: usize, value: f32| Tensor::f32([rows, 2], vec![value; 2 * rows]);
        let list = [
            ("a", tensor(1, 0.0)),
            ("t#0..2/3", tensor(2, 1.0)),
            ("t#2..3/3", tensor(1, 2.0)),
            ("t#2..3/3.moment1", tensor(1, 4.0)),
            ("t#0..2/3.moment1", tensor(2, 3.0)),
        ];
        let joined = join(list.map(|(name, tensor)| (name.to_string(), tensor)).to_vec());
        let names: Vec<&str> = joined.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "t", "t.moment1"]);
        assert_eq!(joined[1].1, Tensor::f32([3, 2], vec![1.0, 1.0, 1.0, 1.0, 2.0, 2.0]));
        assert_eq!(joined[2].1, Tensor::f32([3, 2], vec![3.0, 3.0, 3.0, 3.0, 4.0, 4.0]));
        let (whole, piece) = within("t#2..3/3.moment1").unwrap();
        assert_eq!((whole.as_str(), joined[2].1.rows(piece.rows)), ("t.moment1", tensor(1, 4.0)));
    }
}
