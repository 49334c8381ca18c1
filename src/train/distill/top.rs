//! What is kept of a teacher that has run ahead: for each position the likeliest tokens, and all others together.

use crate::ops::distillation::HIDDEN;
use rayon::prelude::*;

/// The likeliest tokens of some positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Top {
    /// [N, K]: the tokens, the likeliest first.
    pub columns: Vec<u32>,
    /// [N, K + 1]: logarithms of their probabilities, and of that of all others together.
    pub logs: Vec<f32>,
}

impl Top {
    /// The `picks` likeliest of each row of logits [N, V], at a temperature. Of equals the first is the likelier.
    pub fn of(logits: &[f32], cols: usize, picks: usize, temperature: f64) -> Top {
        let mut top = Top {
            columns: vec![0; logits.len() / cols * picks],
            logs: vec![0.0; logits.len() / cols * (picks + 1)],
        };
        let rows = top.columns.par_chunks_mut(picks).zip(top.logs.par_chunks_mut(picks + 1));
        rows.zip(logits.par_chunks(cols)).for_each(|((columns, logs), row)| {
            let mut order: Vec<u32> = (0..cols as u32).collect();
            let falling = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
            if picks < cols {
                order.select_nth_unstable_by(picks, falling);
            }
            let (top, others) = order.split_at_mut(picks);
            top.sort_unstable_by(falling);
            let score = |&token: &u32| f64::from(row[token as usize]) / temperature;
            let most = score(&top[0]);
            let sum = |tokens: &[u32]| tokens.iter().map(|token| (score(token) - most).exp()).sum::<f64>();
            let (of_top, of_others) = (sum(top), sum(others));
            let whole = (of_top + of_others).ln();
            columns.copy_from_slice(top);
            for (log, token) in logs.iter_mut().zip(top.iter()) {
                *log = (score(token) - most - whole) as f32;
            }
            // What is nothing has a logarithm that is low and still a number.
            logs[picks] = ((of_others.ln() - whole) as f32).max(HIDDEN);
        });
        top
    }
}
