//! Which weights have masks while a run trains, and how they are chosen.
//!
//! A mask lies beside its weight in an arena, one bit an element. Gradients of what is removed count as zero before the norm, so
//! that no rule moves such weights or their moments. While masks are chosen anew ([`Removal`]), scores are read back and masks
//! sent, every so many steps: 4 bytes of each chosen weight one way and a bit the other, and the host sorts.

mod choose;

pub(super) use choose::{Scored, choose};

use super::layout::Masked;
use super::recipe::{Prune, Removal};
use super::{Error, Result};
use crate::graph::Graph;
use crate::passes::{chosen_forms, product_forms};
use crate::tensor::sparse;

/// A weight that has a mask.
#[derive(Clone, Debug, PartialEq)]
pub struct Pruned {
    /// Its name.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// It is stored as [in, out].
    pub turned: bool,
    /// More of it is chosen while training goes on.
    pub is_chosen: bool,
}

impl Pruned {
    /// How its page is kept.
    pub fn class(&self) -> Masked {
        if self.is_chosen { Masked::Chosen } else { Masked::Kept }
    }

    /// Rows and columns as it is stored.
    pub fn stored(&self) -> [usize; 2] {
        if self.turned { [self.cols, self.rows] } else { [self.rows, self.cols] }
    }
}

/// The weights with masks in a loss that no pass has touched; a pattern that does not fit one of them is an error.
pub(super) fn survey(prune: &Prune, graph: &Graph) -> Result<Vec<Pruned>> {
    let kept = if prune.keep_zeros { product_forms(graph) } else { vec![] };
    let chosen = match &prune.removal {
        Some(removal) => chosen_forms(graph, &removal.targets, &removal.ignore)?,
        None => vec![],
    };
    let of = |(name, turned): (String, bool), is_chosen| {
        let value = graph.named(&name).expect("weights of layers are named");
        let (first, second) = (graph.kind(value).shape[0], graph.kind(value).shape[1]);
        let (rows, cols) = if turned { (second, first) } else { (first, second) };
        Pruned { name, rows, cols, turned, is_chosen }
    };
    let only_kept = kept.into_iter().filter(|(name, _)| chosen.iter().all(|(other, _)| other != name));
    let all: Vec<Pruned> = only_kept.map(|form| of(form, false)).collect();
    let all: Vec<Pruned> = all.into_iter().chain(chosen.iter().cloned().map(|form| of(form, true))).collect();
    if let Some(Removal { pattern: Some(pattern), .. }) = &prune.removal {
        for pruned in all.iter().filter(|pruned| pruned.is_chosen) {
            pattern.expect_fit(pruned.cols).map_err(|source| wrong(&pruned.name, source))?;
        }
    }
    Ok(all)
}

/// A weight that cannot be pruned as the recipe says.
pub(super) fn wrong(name: &str, source: sparse::Error) -> Error {
    Error::Prune { name: name.to_string(), source }
}
