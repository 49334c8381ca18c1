//! Masks of a trainer: set with its weights, chosen anew while it trains.

use super::{Trainer, submit_named};
use crate::graph::Feeds;
use crate::model::turn;
use crate::tensor::mask::Mask;
use crate::tensor::{Tensor, Type, sparse};
use crate::train::Result;
use crate::train::layout::Placed;
use crate::train::prune::{Pruned, Scored, choose, wrong};
use crate::train::recipe::{Method, Removal};
use crate::train::update::Role;

impl Trainer {
    /// Share of the weights meant that the last choice of masks removed.
    pub fn removed(&self) -> Option<f64> {
        self.removed
    }

    /// The mask a weight begins with: of its zeros where they are kept, else one that removes nothing.
    pub(super) fn begin_mask(&mut self, placed: &Placed, tensor: &Tensor) -> Result<()> {
        let Some((span, _)) = self.arenas.mask(placed) else { return Ok(()) };
        let [rows, cols] = [0, 1].map(|axis| placed.shape[axis]);
        let keeps = self.settings.prune.as_ref().is_some_and(|prune| prune.keep_zeros);
        let mask = match keeps {
            true => sparse::expect_some_left(Mask::of_zeros(tensor.real::<f32>(), cols))
                .map_err(|source| wrong(&placed.name, source))?,
            false => Mask::none(rows, cols),
        };
        self.engine.write(span, &words(&mask))?;
        if self.arenas.is_scored(placed.page) {
            self.engine.write(self.arenas.span(Role::Dense, placed), tensor)?;
        }
        Ok(())
    }

    /// Chooses the last masks of the run from the weights as they are, and forgets them: so a share that would leave nothing of a
    /// layer is told before a step is made. What movement will choose nobody knows yet.
    pub fn rehearse_masks(&mut self) -> Result<()> {
        match self.removal() {
            Some(removal) if removal.method != Method::Movement => {
                self.chosen(&removal, removal.amount().share()).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Chooses masks where the step about to be made is one before which that is due.
    pub(super) fn choose_masks(&mut self) -> Result<()> {
        let Some(removal) = self.removal() else { return Ok(()) };
        let Some(share) = removal.due(self.step) else { return Ok(()) };
        let (mut removed, mut all) = (0, 0);
        for (pruned, mask) in self.chosen(&removal, share)? {
            (removed, all) = (removed + mask.count_removed(), all + mask.rows() * mask.cols());
            let placed = self.layout.find(&pruned.name).expect("weights with masks are laid out");
            let (span, _) = self.arenas.mask(placed).expect("chosen weights have masks");
            self.engine.write(span, &words(&if pruned.turned { mask.turned() } else { mask }))?;
        }
        let number = self.masks.expect("there is a plan where masks are chosen");
        let ticket = submit_named(self.engine.as_mut(), &self.plans, number, &Feeds::new())?;
        self.engine.collect(ticket, true)?;
        self.removed = Some(removed as f64 / all as f64);
        Ok(())
    }

    fn removal(&self) -> Option<Removal> {
        self.settings.prune.as_ref()?.removal.clone()
    }

    /// Masks [out, in] of the weights meant that remove a share of them.
    fn chosen(&mut self, removal: &Removal, share: f64) -> Result<Vec<(Pruned, Mask)>> {
        let meant: Vec<Pruned> = self.pruned.iter().filter(|pruned| pruned.is_chosen).cloned().collect();
        let layers =
            meant.iter().map(|pruned| self.scored(pruned, removal.method)).collect::<Result<Vec<_>>>()?;
        let masks = choose(&layers, share, removal.pattern, removal.scope)
            .map_err(|(number, source)| wrong(&meant[number].name, source))?;
        Ok(meant.into_iter().zip(masks).collect())
    }

    /// What a weight is judged by, after all steps submitted so far.
    fn scored(&mut self, pruned: &Pruned, method: Method) -> Result<Scored> {
        let placed = self.layout.find(&pruned.name).expect("weights with masks are laid out").clone();
        let [rows, cols] = pruned.stored();
        let (span, kind) = self.arenas.mask(&placed).expect("chosen weights have masks");
        let words = self.engine.read(span, &kind)?.as_u32().to_vec();
        let mask = Mask::from_words(rows, cols, words).expect("a mask is made for its weight");
        let (scores, gone) = match method {
            Method::Magnitude => (magnitudes(&self.numbers(Role::Parameters, &placed)?), mask),
            Method::L1 => {
                let weights = self.numbers(Role::Parameters, &placed)?;
                (magnitudes(&weights), Mask::of_zeros(&weights, cols))
            }
            Method::Movement => {
                let dense = self.numbers(Role::Dense, &placed)?;
                // Only what was zero from the start is zero behind its mask, and stays there.
                let gone = Mask::of(rows, cols, |at| mask.is_removed(at) && dense[at] == 0.0);
                (self.numbers(Role::Scores, &placed)?, gone)
            }
        };
        Ok(match pruned.turned {
            true => Scored { cols: pruned.cols, scores: turn(&scores, rows, cols), gone: gone.turned() },
            false => Scored { cols, scores, gone },
        })
    }

    fn numbers(&mut self, role: Role, placed: &Placed) -> Result<Vec<f32>> {
        let kind = Type::f32(placed.shape.clone());
        Ok(self.engine.read(self.arenas.span(role, placed), &kind)?.real::<f32>().to_vec())
    }
}

fn magnitudes(weights: &[f32]) -> Vec<f32> {
    weights.iter().map(|x| x.abs()).collect()
}

fn words(mask: &Mask) -> Tensor {
    Tensor::u32([mask.words().len()], mask.words().to_vec())
}
