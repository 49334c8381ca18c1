//! How a forward pass stands in its text: it sees the whole of it, or goes on behind what caches hold.

use super::layers::{located, sorting};
use super::{Extent, Mode, Reading, Result};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::attention::{Attention, AttentionEmit};
use crate::ops::cache_write::CacheWriteEmit;
use crate::ops::embedding::EmbeddingEmit;
use crate::ops::slice::SliceEmit;
use crate::tensor::{DType, Type};

/// Where the tokens of a forward pass stand.
pub(super) enum Course {
    /// From the start of each text; a mask U32 [B, T] hides what is none.
    Whole(Option<Value>),
    /// From the starts of texts that stand side by side.
    Packed(Packed),
    /// Behind what caches hold.
    Behind(Behind),
}

/// What a pass over texts side by side reads beside its tokens.
pub(super) struct Packed {
    /// Number of each token's text, U32 [B, T]; zero where there is none.
    segments: Value,
    /// Position of each token in its text, U32 [B, T].
    places: Value,
    /// The pass is to be trained.
    trains: bool,
}

/// What a pass behind caches reads beside its tokens.
pub(super) struct Behind {
    /// Position of the first token, U32 \[1\]; or of that of each sequence and the number of its cache, U32 [B, 2].
    first: Value,
    /// Position of each token, U32 [B, T].
    each: Value,
    /// Rows of which scores are wanted, as many of each sequence; absent where those are all.
    scored: Option<Value>,
    /// Rows of a cache.
    capacity: usize,
    /// Caches there are.
    caches: usize,
}

impl Course {
    /// Declares the inputs that the mode asks for.
    pub fn declare(graph: &mut Graph, reading: &Reading) -> Course {
        let extent = reading.extent;
        let mut numbers = |name: &str, shape: &[usize]| graph.input(name, Type::new(DType::U32, shape));
        if reading.packed {
            let shape = [extent.batch, extent.context];
            let [segments, places] = ["segments", "places"].map(|name| numbers(name, &shape));
            return Course::Packed(Packed { segments, places, trains: reading.mode == Mode::Train });
        }
        let Mode::Continue { capacity } = reading.mode else {
            return Course::Whole(reading.padded.then(|| numbers("mask", &[extent.batch, extent.context])));
        };
        let scored = reading.seats.map_or(1, |seats| seats.scored);
        let first = if reading.seats.is_some() { &[extent.batch, 2][..] } else { &[1] };
        Course::Behind(Behind {
            first: numbers("position", first),
            each: numbers("positions", &[extent.batch, extent.context]),
            scored: (extent.context > scored).then(|| numbers("scored", &[extent.batch * scored])),
            capacity,
            caches: reading.seats.map_or(extent.batch, |seats| seats.caches),
        })
    }

    /// Positions there may be, for tables of angles.
    pub fn positions(&self, extent: Extent) -> usize {
        match self {
            Course::Whole(_) | Course::Packed(_) => extent.context,
            Course::Behind(behind) => behind.capacity,
        }
    }

    /// Position of each token where that is not its time.
    pub fn given(&self) -> Option<Value> {
        match self {
            Course::Whole(_) => None,
            Course::Packed(packed) => Some(packed.places),
            Course::Behind(behind) => Some(behind.each),
        }
    }

    /// Rows of a table of positions, [T, C] or [B, T, C].
    pub fn places(&self, graph: &mut Graph, table: Value, extent: Extent) -> crate::ops::Result<Value> {
        match self {
            Course::Whole(_) => graph.slice(table, 0, 0, extent.context),
            Course::Packed(packed) if packed.trains => {
                let [order, starts] = sorting("places");
                let rows = graph.kind(table).shape[0];
                let order = graph.input(order, Type::new(DType::U32, [extent.positions()]));
                let starts = graph.input(starts, Type::new(DType::U32, [rows + 1]));
                graph.embedding_trained(table, packed.places, order, starts)
            }
            Course::Packed(packed) => graph.embedding(table, packed.places),
            Course::Behind(behind) => graph.embedding(table, behind.each),
        }
    }

    /// Attention of q [B, T, H, D] over k and v [B, T, G, D] and, behind caches, over what they hold: the states `scope.keys` and
    /// `scope.values` F32 [B, S, G, D].
    pub fn attend(
        &self,
        graph: &mut Graph,
        scope: &str,
        how: &Attention,
        [q, k, v]: [Value; 3],
        rng: Option<Value>,
    ) -> crate::ops::Result<Value> {
        let ([k, v], position) = self.held(graph, scope, [k, v])?;
        match position {
            Some(first) => graph.attention_cached(how, [q, k, v], first),
            None => graph.attention(&self.how(how), [q, k, v], self.mask(), rng),
        }
    }

    /// Keys and values to attend to: these [B, T, G, D] or, behind caches, what the states `scope.keys` and `scope.values`
    /// F32 [B, S, G, D], or as many as there are caches, hold with these written to them, and the position of the first query.
    pub fn held(
        &self,
        graph: &mut Graph,
        scope: &str,
        [k, v]: [Value; 2],
    ) -> crate::ops::Result<([Value; 2], Option<Value>)> {
        let Course::Behind(behind) = self else { return Ok(([k, v], None)) };
        let mut shape = graph.kind(k).shape.to_vec();
        (shape[0], shape[1]) = (behind.caches, behind.capacity);
        let caches =
            ["keys", "values"].map(|name| graph.state(format!("{scope}.{name}"), Type::f32(&shape[..])));
        Ok((graph.cache_write(caches, [k, v], behind.first)?, Some(behind.first)))
    }

    /// Attention as it is here: texts side by side do not see each other.
    pub fn how(&self, how: &Attention) -> Attention {
        match self {
            Course::Packed(_) => how.clone().segmented(),
            _ => how.clone(),
        }
    }

    /// The mask U32 [B, T] of what is no text, or tells texts apart.
    pub fn mask(&self) -> Option<Value> {
        match self {
            Course::Whole(mask) => *mask,
            Course::Packed(packed) => Some(packed.segments),
            Course::Behind(_) => None,
        }
    }

    /// The rows of x [N, C] of which scores are wanted.
    pub fn scored(&self, graph: &mut Graph, scope: &str, x: Value) -> Result<Value> {
        match self {
            Course::Behind(Behind { scored: Some(rows), .. }) => {
                located(graph, scope, |g| g.embedding(x, *rows))
            }
            _ => Ok(x),
        }
    }
}
