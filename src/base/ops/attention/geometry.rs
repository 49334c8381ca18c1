//! Sizes, strides and reach of one attention: the facts that host and kernels share.

use super::{Attention, Layout, MAX_HEAD_SIZE, expect_alike};
use crate::ops::{Error, Result, expect_shape};
use crate::tensor::Type;

/// "No limit" for `before` and `after`: far beyond any position, and sums with positions stay in 32 bits.
const UNLIMITED: i64 = 1 << 29;

/// Where everything lies. The row of query head `h` at time `t` starts at `(b T + t) query_stride + h D`, that of key head `g`
/// at `key_offset + (b S + s) key_stride + g D`, and so for the values.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub size: usize,
    pub query_stride: usize,
    pub key_stride: usize,
    pub key_offset: usize,
    pub value_offset: usize,
    /// Position of query 0 among the keys: S - T.
    pub shift: i64,
    /// Keys seen before the query's position, at most.
    pub before: i64,
    /// Keys seen after the query's position, at most.
    pub after: i64,
    pub scale: f32,
    /// Dropout's salt, threshold and factor on what is kept; the threshold zero keeps all.
    pub salt: u32,
    pub threshold: u32,
    pub kept: f32,
    /// True if a padding mask is read.
    pub masked: bool,
    /// True if the mask holds numbers of texts.
    pub segmented: bool,
    /// True if each sequence has a position of its own, in a cache that it names.
    pub seated: bool,
}

impl Geometry {
    pub fn of(op: &'static str, how: &Attention, sources: &[Type], seated: bool) -> Result<Geometry> {
        let sizes = match how.layout {
            Layout::Separate => separate_sizes(op, sources, seated)?,
            Layout::Packed { heads, key_heads } => packed_sizes(op, heads, key_heads, sources)?,
        };
        check_settings(op, how, sizes)?;
        let [batch, queries, keys, heads, key_heads, size] = sizes;
        let width = (heads + 2 * key_heads) * size;
        let (query_stride, key_stride, key_offset, value_offset) = match how.layout {
            Layout::Separate => (heads * size, key_heads * size, 0, 0),
            Layout::Packed { .. } => (width, width, heads * size, (heads + key_heads) * size),
        };
        let reach = how.window.map_or(UNLIMITED, |w| w as i64 - 1);
        let probability = how.dropout.map_or(0.0, |d| d.probability);
        Ok(Geometry {
            batch,
            queries,
            keys,
            heads,
            key_heads,
            size,
            query_stride,
            key_stride,
            key_offset,
            value_offset,
            // The position in a cache is known when it runs: until then it counts as the start.
            shift: if how.cached { 0 } else { keys as i64 - queries as i64 },
            before: reach,
            after: if how.causal { 0 } else { reach },
            scale: how.scale.unwrap_or(1.0 / (size as f32).sqrt()),
            salt: how.dropout.map_or(0, |d| d.salt),
            threshold: (f64::from(probability) * 4_294_967_296.0) as u32,
            kept: 1.0 / (1.0 - probability),
            masked: how.masked,
            segmented: how.segmented,
            seated,
        })
    }

    /// Keys that query `t` sees, apart from the mask.
    pub fn reach(&self, t: usize) -> std::ops::Range<usize> {
        let position = t as i64 + self.shift;
        let limit = self.keys as i64;
        let end = (position + self.after + 1).clamp(0, limit);
        (position - self.before).clamp(0, end) as usize..end as usize
    }

    /// The geometry of one sequence that stands at `position` of a cache.
    pub fn alone(&self, position: usize) -> Geometry {
        Geometry { batch: 1, shift: position as i64, seated: false, ..self.clone() }
    }

    /// Words of the padding mask.
    pub fn masked_words(&self) -> usize {
        if self.masked { self.batch * self.keys } else { 0 }
    }

    /// Query heads for each key head.
    pub fn share(&self) -> usize {
        self.heads / self.key_heads
    }

    /// Multiply-adds of one product of queries with keys.
    pub fn pairs(&self) -> f64 {
        let seen: usize = (0..self.queries).map(|t| self.reach(t).len()).sum();
        (self.batch * self.heads * self.size) as f64 * seen as f64
    }
}

fn separate_sizes(op: &'static str, sources: &[Type], seated: bool) -> Result<[usize; 6]> {
    let [q, k, v] = sources else { unreachable!("sources were counted") };
    expect_alike(op, &["q", "k", "v"], sources)?;
    let (&[batch, queries, heads, size], &[caches, keys, key_heads, _]) = (&q.shape[..], &k.shape[..]) else {
        let (input, bad) = if q.shape.len() == 4 { ("k", k) } else { ("q", q) };
        let expected = "[batch, time, heads, head size]".to_string();
        return Err(Error::Shape { op, input, expected, got: bad.shape.clone() });
    };
    let held = if seated { caches } else { batch };
    expect_shape(op, "k", k, &[held, keys, key_heads, size])?;
    expect_shape(op, "v", v, &[held, keys, key_heads, size])?;
    Ok([batch, queries, keys, heads, key_heads, size])
}

fn packed_sizes(op: &'static str, heads: usize, key_heads: usize, sources: &[Type]) -> Result<[usize; 6]> {
    expect_alike(op, &["packed"], sources)?;
    let parts = heads + 2 * key_heads;
    match sources[0].shape[..] {
        [batch, time, width] if parts > 0 && width % parts == 0 => {
            Ok([batch, time, time, heads, key_heads, width / parts])
        }
        _ => {
            let expected = format!("[batch, time, a multiple of the {parts} heads of q, k and v]");
            Err(Error::Shape { op, input: "packed", expected, got: sources[0].shape.clone() })
        }
    }
}

fn check_settings(op: &'static str, how: &Attention, sizes: [usize; 6]) -> Result<()> {
    let [batch, queries, keys, heads, key_heads, size] = sizes;
    let wrong = |setting, expected: String, got: String| Err(Error::Setting { op, setting, expected, got });
    if key_heads == 0 || heads == 0 || !heads.is_multiple_of(key_heads) {
        return wrong("heads", format!("a multiple of the {key_heads} key heads"), heads.to_string());
    }
    if batch == 0 || queries == 0 || keys == 0 {
        let got = format!("batch {batch}, {queries} queries, {keys} keys");
        return wrong("sizes", "at least one of each".into(), got);
    }
    if size == 0 || size > MAX_HEAD_SIZE {
        return wrong("head size", format!("1 to {MAX_HEAD_SIZE}"), size.to_string());
    }
    let refused = [
        (how.layout != Layout::Separate, "packed"),
        (!how.causal, "without causal"),
        (how.masked, "masked"),
        (how.dropout.is_some(), "with dropout"),
    ];
    if let Some((_, got)) = refused.iter().find(|(refused, _)| how.cached && *refused) {
        let expected = "causal and separate, without mask or dropout";
        return wrong("cached", expected.into(), (*got).into());
    }
    if how.segmented && (!how.masked || queries != keys) {
        let got = if how.masked { format!("{queries} queries, {keys} keys") } else { "no mask".into() };
        return wrong("segmented", "a mask, and as many queries as keys".into(), got);
    }
    if how.window == Some(0) {
        return wrong("window", "at least 1".into(), "0".into());
    }
    match how.dropout {
        Some(d) if !(0.0..1.0).contains(&d.probability) => {
            wrong("dropout", "0.0 to below 1.0".into(), d.probability.to_string())
        }
        _ => Ok(()),
    }
}
