//! A batch of rows of numbers, standardised as the model has learnt them.

use super::super::row_mlp::{FEATURES, columns_of};
use super::super::{Extent, Family, Result};
use super::{Inputs, LABELS, refuse};
use crate::formats::Raw;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

impl Inputs {
    /// So many rows of numbers that are standardised already.
    pub fn of_numbers(family: &dyn Family, numbers: Vec<f32>, rows: usize) -> Result<Inputs> {
        let interface = family.interface();
        if numbers.len() != rows * interface.columns {
            let expected = format!("of shape [{rows}, {}]", interface.columns);
            return Err(refuse(FEATURES, expected, format!("{} numbers", numbers.len())));
        }
        Ok(Inputs {
            interface,
            extent: Extent { batch: rows, context: 1 },
            target: 1,
            numbers: BTreeMap::new(),
            features: Some(Tensor::f32([rows, interface.columns], numbers)),
            targets: None,
            follows: None,
        })
    }

    /// From `features`, as a table has them, and perhaps `labels`.
    pub(super) fn of_table(given: &BTreeMap<String, Raw>, family: &dyn Family) -> Result<Inputs> {
        if let Some(name) = given.keys().find(|name| ![FEATURES, LABELS].contains(&name.as_str())) {
            let expected = format!("one of {FEATURES}, {LABELS} (behind --prefix)");
            return Err(refuse(name, expected, "not known"));
        }
        let columns = columns_of(family);
        let shape = || format!("F32 of shape [B, {}], a number for each column", columns.len());
        let raw = given.get(FEATURES).ok_or_else(|| refuse(FEATURES, shape(), "absent"))?;
        let floats = raw.floats().ok_or_else(|| refuse(FEATURES, shape(), raw.element.to_string()))?;
        let rows = match raw.shape[..] {
            [rows, width] if rows > 0 && width == columns.len() => rows,
            _ => return Err(refuse(FEATURES, shape(), format!("{:?}", raw.shape))),
        };
        let numbers = floats.into_iter().zip(columns.iter().cycle());
        let numbers = numbers.map(|(number, column)| column.standard(f64::from(number))).collect();
        let mut inputs = Inputs::of_numbers(family, numbers, rows)?;
        if let Some(raw) = given.get(LABELS) {
            inputs.label(raw, family.vocabulary())?;
        }
        Ok(inputs)
    }
}
