//! How well vectors tell texts that are alike from those that are not.

use super::{Embedder, Result};
use crate::data::similar::Similar;
use crate::metrics::correlation::{pearson, spearman};
use crate::train::lesson::{Finds, Scores};

/// Factor on cosines before they compete, as in sentence-transformers.
const SCALE: f64 = 20.0;

impl Embedder {
    /// Of each first text of a batch of `batch` rows the second is to be found among the others of that batch: loss, accuracy, mean
    /// reciprocal rank. Where rows have scores, also the correlations of these with the cosines.
    pub fn measure(&mut self, rows: &[Similar], batch: usize) -> Result<Scores> {
        let mut finds = Finds::default();
        let mut pairs = vec![];
        for rows in rows.chunks(batch.max(1)) {
            let texts = rows[0].texts.len();
            let all: Vec<&str> =
                (0..texts).flat_map(|text| rows.iter().map(move |row| row.texts[text].as_str())).collect();
            let mut vectors = self.embed(&all)?;
            vectors.iter_mut().for_each(|vector| to_length_one(vector));
            let cosine = |row: usize| {
                let both = vectors[row].iter().zip(&vectors[rows.len() + row]);
                both.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
            };
            let scored = rows.iter().enumerate();
            pairs.extend(scored.filter_map(|(at, row)| Some([row.score?, cosine(at)])));
            finds.add(&vectors.concat(), [rows.len(), rows.len(), texts], SCALE);
        }
        let mut found = finds.finish();
        if !pairs.is_empty() {
            found.figures.push(("pearson", pearson(&pairs)));
            found.figures.push(("spearman", spearman(&pairs)));
        }
        Ok(found)
    }
}

fn to_length_one(vector: &mut [f32]) {
    let length = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
}
