//! Learning from texts that are alike: of each first text the second is to be found among those of the whole batch.
//!
//! ```text
//! v = pool(encoder(text)) / |pool(encoder(text))|
//! loss = mean over i of cross-entropy(scale * v_i . [second texts; third texts], i)
//! ```
//! This is MultipleNegativesRankingLoss of sentence-transformers with its cosine. All other texts of the batch are what a text is not
//! like, so a batch that goes through the model in parts would be another loss: micro-batches are refused, and where batches are
//! accumulated each is measured by itself.

use super::Scores;
use crate::data::tokenizer::Encoded;
use crate::graph::Graph;
use crate::model::{self, Extent, Family, Reading};
use crate::ops::Value;
use crate::ops::cast::CastEmit;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reduce::{Kind, ReduceEmit};
use crate::ops::reshape::ReshapeEmit;
use crate::ops::slice::SliceEmit;
use crate::tensor::{DType, Tensor, Type};
use crate::train::Result;
use crate::train::recipe::{Pooling, Similarity};

/// Input with the weight of each token in its text's vector.
pub(super) const POOLING: &str = "pooling";

/// Added to the square of a length before it is divided by.
const LEAST: f32 = 1e-24;

/// One vector for each text of a reading, at length one: [B, C].
pub(super) fn vectors(family: &dyn Family, graph: &mut Graph, reading: &Reading) -> Result<Value> {
    let forward = family.read(graph, reading)?;
    let stream = *forward.hidden.last().expect("a model has a stream");
    let Extent { batch, context } = reading.extent;
    let width = graph.kind(stream).shape.last();
    let weights = graph.input(POOLING, Type::f32([batch, context, 1]));
    Ok(graph.within("pooling", |graph| {
        let x = graph.cast(stream, DType::F32)?;
        let x = graph.reshape(x, [batch, context, width].into())?;
        let x = graph.mul(x, weights)?;
        let x = graph.reduce(Kind::Sum, x, 1)?;
        let x = graph.reshape(x, [batch, width].into())?;
        let square = graph.mul(x, x)?;
        let square = graph.reduce(Kind::Sum, square, 1)?;
        let square = graph.shift(square, LEAST)?;
        let length = graph.pointwise("sqrt", &[square], 0.0)?;
        graph.div(x, length)
    })?)
}

/// The mean loss of `rows` first texts, behind which stand as many second ones, and perhaps third ones.
pub(super) fn loss(
    family: &dyn Family,
    graph: &mut Graph,
    reading: &Reading,
    rows: usize,
    scale: f64,
) -> Result<Value> {
    let all = reading.extent.batch;
    let vectors = vectors(family, graph, reading)?;
    let scores = graph.within("likeness", |graph| {
        let first = graph.slice(vectors, 0, 0, rows)?;
        let others = graph.slice(vectors, 0, rows, all)?;
        let scores = graph.matmul_form(Form::Nt, first, others)?;
        graph.scale(scores, scale as f32)
    })?;
    Ok(model::loss(graph, scores, 0.0)?)
}

/// Weights of tokens for texts filled up to `length`, F32 [B, T, 1].
pub(super) fn weights(texts: &[&Encoded], pooling: Pooling, length: usize) -> Tensor {
    let mut weights = vec![0.0; texts.len() * length];
    for (row, text) in weights.chunks_mut(length).zip(texts) {
        match pooling {
            Pooling::First => row[0] = 1.0,
            Pooling::Mean => row[..text.ids.len()].fill(1.0 / text.ids.len() as f32),
        }
    }
    Tensor::f32([texts.len(), length, 1], weights)
}

/// Gathers how well second texts are found.
#[derive(Clone, Debug, Default)]
pub struct Finds {
    loss: f64,
    count: usize,
    first: usize,
    reciprocal: f64,
}

impl Finds {
    /// Adds a batch of vectors: those of `rows` first texts, of which `count` are no repetitions, then those of the others.
    pub fn add(&mut self, vectors: &[f32], [rows, count, texts]: [usize; 3], scale: f64) {
        let width = vectors.len() / (rows * texts);
        let vector = |text: usize, row: usize| &vectors[(text * rows + row) * width..][..width];
        let product =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        for row in 0..count {
            let others = (1..texts).flat_map(|text| (0..count).map(move |other| (text, other)));
            let scores: Vec<f64> =
                others.map(|(text, other)| scale * product(vector(0, row), vector(text, other))).collect();
            let right = scores[row];
            let most = scores.iter().fold(f64::NEG_INFINITY, |most, &x| most.max(x));
            self.loss += most - right + scores.iter().map(|x| (x - most).exp()).sum::<f64>().ln();
            let before = scores.iter().filter(|&&x| x > right).count();
            self.first += usize::from(before == 0);
            self.reciprocal += 1.0 / (before + 1) as f64;
            self.count += 1;
        }
    }

    /// All figures.
    pub fn finish(self) -> Scores {
        let share = |sum: f64| sum / self.count as f64;
        let figures =
            vec![("accuracy", share(self.first as f64)), ("reciprocal_rank", share(self.reciprocal))];
        Scores { loss: share(self.loss), examples: self.count, figures }
    }
}

/// Files by which sentence-transformers, and `kiln embed`, know how vectors are made.
pub(super) fn files(similarity: &Similarity, width: usize, context: usize) -> Vec<(String, Vec<u8>)> {
    let module = |number: usize, path: &str, kind: &str| {
        serde_json::json!({ "idx": number, "name": number.to_string(), "path": path,
                            "type": format!("sentence_transformers.models.{kind}") })
    };
    let modules = [module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")];
    let pooling = serde_json::json!({
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": similarity.pooling == Pooling::First,
        "pooling_mode_mean_tokens": similarity.pooling == Pooling::Mean,
        "pooling_mode_max_tokens": false,
        "pooling_mode_mean_sqrt_len_tokens": false,
    });
    let lengths = serde_json::json!({ "max_seq_length": context, "do_lower_case": false });
    let text = |value: &serde_json::Value| serde_json::to_vec_pretty(value).expect("plain data is printable");
    vec![
        ("modules.json".to_string(), text(&modules.to_vec().into())),
        ("1_Pooling/config.json".to_string(), text(&pooling)),
        ("sentence_bert_config.json".to_string(), text(&lengths)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_found_by_their_likeness() {
        let mut finds = Finds::default();
        // Two rows of two texts, each of which finds its own.
        finds.add(&[1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.8, 0.6], [2, 2, 2], 1.0);
        let scores = finds.finish();
        let expected =
            [(1.0f64, 0.8f64), (0.6, 0.0)].map(|(right, other)| (1.0 + (other - right).exp()).ln());
        assert!((scores.loss - (expected[0] + expected[1]) / 2.0).abs() < 1e-6, "{scores:?}");
        assert_eq!(scores.get("accuracy"), Some(1.0));
    }

    #[test]
    fn weights_are_a_mean_over_the_text_or_its_first_token() {
        let text = Encoded { ids: vec![5, 6], kinds: vec![0, 0] };
        assert_eq!(weights(&[&text], Pooling::Mean, 3).real::<f32>(), [0.5, 0.5, 0.0]);
        assert_eq!(weights(&[&text], Pooling::First, 3).real::<f32>(), [1.0, 0.0, 0.0]);
    }
}
