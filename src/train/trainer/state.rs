//! What a trainer is set to and what is saved of it: weights, gradients of the last step, the optimiser's state.
//!
//! Weights that are held in pieces come and go as a whole.

use super::{LOSS_SCALE, Trainer};
use crate::model::ParameterSpec;
use crate::ops::block_codes::nearest;
use crate::ops::optimizer::norm::CONTROL;
use crate::passes::{Learned, Piece};
use crate::tensor::{Data, Shape, Tensor, Type};
use crate::train::layout::{GROUP, Placed};
use crate::train::update::Role;
use crate::train::{Error, Result, pieces};
use std::borrow::Cow;
use std::collections::HashMap;

impl Trainer {
    /// Sets every weight from a function of its name and shape.
    pub fn set_weights(&mut self, mut of: impl FnMut(&str, &Shape) -> Result<Tensor>) -> Result<()> {
        let mut tensors = self.layout.tensors.clone();
        tensors.retain(|placed| !is_aside(&self.learned, &self.settings.aside, &placed.name));
        let mut whole: Option<(String, Tensor)> = None;
        for placed in &tensors {
            let tensor = match Piece::parse(&placed.name) {
                None => of(&placed.name, &placed.shape)?,
                Some(piece) => {
                    let (_, tensor) = match whole.take().filter(|(name, _)| *name == piece.whole) {
                        Some(known) => whole.insert(known),
                        None => {
                            let shape = piece.whole_shape(&placed.shape);
                            let tensor = of(&piece.whole, &shape)?;
                            check_shape(&piece.whole, &shape, &tensor)?;
                            whole.insert((piece.whole.clone(), tensor))
                        }
                    };
                    tensor.rows(piece.rows)
                }
            };
            check_shape(&placed.name, &placed.shape, &tensor)?;
            match self.arenas.weight_scales(placed) {
                Some((place, _)) => {
                    let (codes, scales) = nearest(tensor.real::<f32>());
                    let codes = Tensor { shape: placed.shape.clone(), data: Data::I8(codes) };
                    self.engine.write(self.arenas.span(Role::Parameters, placed), &codes)?;
                    self.engine.write(place, &Tensor::f32([scales.len()], scales))?;
                }
                None => self.engine.write(self.arenas.span(Role::Parameters, placed), &tensor)?,
            }
            if let Some(learned) = self.learned.iter().find(|learned| learned.weight == placed.name) {
                let steps = self.layout.find(&learned.name).expect("learned steps are laid out");
                self.engine.write(self.arenas.span(Role::Parameters, steps), &learned.first(&tensor))?;
            }
            self.begin_mask(placed, &tensor)?;
        }
        Ok(())
    }

    /// All weights of the model by name.
    pub fn weights(&mut self) -> Result<Vec<(String, Tensor)>> {
        let mut all = self.tensors_of(Role::Parameters)?;
        all.retain(|(name, _)| !is_aside(&self.learned, &self.settings.aside, name));
        Ok(pieces::join(all))
    }

    /// All gradients of the last step by name, before clipping.
    pub fn gradients(&mut self) -> Result<Vec<(String, Tensor)>> {
        Ok(pieces::join(self.tensors_of(Role::Gradients)?))
    }

    /// Optimiser state by name, for a checkpoint, and what is learned beside the weights.
    pub fn moments(&mut self) -> Result<Vec<(String, Tensor)>> {
        let mut all = self.tensors_of(Role::Parameters)?;
        all.retain(|(name, _)| is_aside(&self.learned, &self.settings.aside, name));
        for placed in &self.layout.tensors {
            for (span, name, kind) in self.arenas.moments(placed) {
                all.push((name, self.engine.read(span, &kind)?));
            }
        }
        if self.settings.loss_scale.scaling().is_some() {
            let control = self.engine.read(self.arenas.control(), &Type::f32([CONTROL]))?;
            all.push((LOSS_SCALE.to_string(), control));
        }
        Ok(pieces::join(all))
    }

    /// Restores optimiser state and the count of steps.
    pub fn restore(&mut self, step: u64, moments: &HashMap<String, Tensor>) -> Result<()> {
        let learned = self
            .layout
            .tensors
            .iter()
            .filter(|placed| is_aside(&self.learned, &self.settings.aside, &placed.name));
        let place =
            |p: &Placed| (self.arenas.span(Role::Parameters, p), p.name.clone(), Type::f32(p.shape.clone()));
        let mut wanted: Vec<_> = learned.map(place).collect();
        wanted.extend(self.layout.tensors.iter().flat_map(|placed| self.arenas.moments(placed)));
        for (span, key, kind) in wanted {
            let wrong = |problem| Error::Mismatch { folder: "checkpoint".into(), problem };
            let (whole, piece) = match pieces::within(&key) {
                Some((whole, piece)) => (whole, Some(piece)),
                None => (key.clone(), None),
            };
            let tensor = moments.get(&whole).ok_or_else(|| wrong(format!("`{whole}` is missing")))?;
            let tensor = match piece {
                None => Cow::Borrowed(tensor),
                // One that has not the rows is refused by its type below.
                Some(piece) if tensor.shape.first() != Some(&piece.of) => Cow::Borrowed(tensor),
                Some(piece) => Cow::Owned(tensor.rows(piece.rows)),
            };
            if tensor.host_type() != kind {
                return Err(wrong(format!("`{key}` is {}, expected {kind}", tensor.host_type())));
            }
            self.engine.write(span, &tensor)?;
        }
        if self.settings.loss_scale.scaling().is_some()
            && let Some(control) = moments.get(LOSS_SCALE)
        {
            let kind = Type::f32([CONTROL]);
            if control.host_type() != kind {
                let problem = format!("`{LOSS_SCALE}` is {}, expected {kind}", control.host_type());
                return Err(Error::Mismatch { folder: "checkpoint".into(), problem });
            }
            self.engine.write(self.arenas.control(), control)?;
        }
        self.step = step;
        Ok(())
    }

    pub(super) fn tensors_of(&mut self, role: Role) -> Result<Vec<(String, Tensor)>> {
        let (engine, arenas) = (&mut self.engine, &self.arenas);
        let mut read = |placed: &Placed| {
            let kind = match role {
                Role::Parameters => arenas.parameter(placed).1,
                _ => Type::f32(placed.shape.clone()),
            };
            let held = engine.read(arenas.span(role, placed), &kind)?;
            let tensor = match arenas.weight_scales(placed).filter(|_| role == Role::Parameters) {
                Some((place, kind)) => numbers(&held, &engine.read(place, &kind)?),
                None => held,
            };
            Ok((placed.name.clone(), tensor))
        };
        self.layout.tensors.iter().map(&mut read).collect()
    }
}

/// True for what is trained and is no weight of the model.
fn is_aside(learned: &[Learned], aside: &[ParameterSpec], name: &str) -> bool {
    learned.iter().any(|learned| learned.name == name) || aside.iter().any(|spec| spec.name == name)
}

/// The numbers that codes stand for.
fn numbers(codes: &Tensor, scales: &Tensor) -> Tensor {
    let blocks = codes.as_i8().chunks(GROUP).zip(scales.real::<f32>());
    let values = blocks.flat_map(|(codes, &scale)| codes.iter().map(move |&code| f32::from(code) * scale));
    Tensor::f32(codes.shape.clone(), values.collect())
}

fn check_shape(name: &str, expected: &Shape, tensor: &Tensor) -> Result<()> {
    if tensor.shape == *expected {
        return Ok(());
    }
    let problem = format!("`{name}` has shape {}, expected {expected}", tensor.shape);
    Err(Error::Mismatch { folder: "weights".into(), problem })
}
