//! Scaled dot-product attention, fused: scores are never stored, memory grows with T alone.
//!
//! `out[b, t, h] = sum over s of softmax(scale * q[b, t, h] . k[b, :, g])[s] * v[b, s, g]`, with `g = h / (H / G)`.
//!
//! Heads stand beside time, [B, T, H, D], so that projections need no transposes. The packed form reads one [B, T, (H + 2G) D]
//! as a joint projection gives it: heads of the queries, then of the keys, then of the values.

mod broadcast;
mod cases;
pub mod coded;
mod fast;
mod geometry;
mod gradient;
mod host;
mod lane;
mod lower;
mod step;
mod text;
mod tile;

pub use cases::cases;
pub use coded::AttentionCoded;
pub use gradient::AttentionGradient;

use super::launch::{Caps, Variant};
use super::seats::{expect_seats, is_seated, seat};
use super::ties::{Digit, Port, Tie};
use super::{
    Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_shape, in_precision,
    in_type,
};
use crate::tensor::{DType, Data, Tensor, Type, View, ViewMut};
use geometry::Geometry;
use std::sync::Arc;

/// Largest head size the kernels are made for.
pub const MAX_HEAD_SIZE: usize = 256;

/// How queries, keys and values lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Three inputs: q [B, T, H, D], k and v [B, S, G, D].
    Separate,
    /// One input [B, T, (H + 2G) D].
    Packed {
        /// Heads of the queries, H.
        heads: usize,
        /// Heads of the keys and values, G.
        key_heads: usize,
    },
}

/// Dropout on the probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share of probabilities set to zero, in `0.0..1.0`; the others are divided by one minus it.
    pub probability: f32,
    /// Number of this operator among those that draw.
    pub salt: u32,
}

/// Attention of queries over keys.
///
/// Outputs: out [B, T, H, D], and the logarithm of each row's sum of exponentials, lse F32 [B, H, T], which the gradient reads.
/// A query with nothing to attend to gives zeros (and lse zero).
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Where the inputs lie.
    pub layout: Layout,
    /// Query `t` sees keys up to `t + (S - T)`.
    pub causal: bool,
    /// Factor on the scores; `1 / sqrt(D)` when absent.
    pub scale: Option<f32>,
    /// Only keys less than this far from the query's own position are seen.
    pub window: Option<usize>,
    /// An input `mask` U32 [B, S] follows: zero hides a key from every query.
    pub masked: bool,
    /// The mask holds numbers of texts that lie side by side: a query sees the keys of its own, and zero is no text. Where there are as
    /// many queries as keys.
    pub segmented: bool,
    /// Dropout; an input `rng: U32 [2]` follows.
    pub dropout: Option<Dropout>,
    /// Keys and values are caches of which only the first rows are filled; an input `position: U32 [1]` follows, and query `t`
    /// sees keys up to `position + t`. As U32 [B, 2] it holds position and number of the cache of each sequence, and there may be more
    /// caches than sequences. Causal and separate alone, without mask, dropout and gradient.
    pub cached: bool,
}

impl Attention {
    /// Every query sees every key.
    pub fn full() -> Self {
        Attention {
            layout: Layout::Separate,
            causal: false,
            scale: None,
            window: None,
            masked: false,
            segmented: false,
            dropout: None,
            cached: false,
        }
    }

    /// Queries see no later keys.
    pub fn causal() -> Self {
        Attention { causal: true, ..Attention::full() }
    }

    /// Another factor on the scores.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// A sliding window.
    pub fn window(mut self, window: usize) -> Self {
        self.window = Some(window);
        self
    }

    /// Dropout on the probabilities; none for a probability of zero.
    pub fn dropout(mut self, probability: f32, salt: u32) -> Self {
        self.dropout = (probability != 0.0).then_some(Dropout { probability, salt });
        self
    }

    /// The mask tells texts apart that lie side by side.
    pub fn segmented(mut self) -> Self {
        self.segmented = true;
        self
    }

    /// Number of inputs that hold queries, keys and values.
    fn sources(&self) -> usize {
        if self.layout == Layout::Separate { 3 } else { 1 }
    }

    /// Heads of the keys and values, for these inputs.
    pub fn key_heads(&self, inputs: &[Type]) -> usize {
        match self.layout {
            Layout::Separate => inputs[1].shape[2],
            Layout::Packed { key_heads, .. } => key_heads,
        }
    }

    /// Settings as text, for this operator and its gradient.
    fn describe(&self) -> String {
        let mut words = vec![];
        if let Layout::Packed { heads, key_heads } = self.layout {
            words.push(format!("heads={heads};key_heads={key_heads}"));
        }
        for (flag, word) in [
            (self.causal, "causal"),
            (self.masked, "masked"),
            (self.segmented, "segmented"),
            (self.cached, "cached"),
        ] {
            if flag {
                words.push(word.into());
            }
        }
        words.extend(self.scale.map(|x| format!("scale={x}")));
        words.extend(self.window.map(|x| format!("window={x}")));
        words.extend(self.dropout.map(|x| format!("dropout={};salt={}", x.probability, x.salt)));
        words.join(";")
    }

    /// Checks queries, keys, values and the trailing mask and rng, whatever stands between them.
    fn geometry(&self, op: &'static str, sources: &[Type], trailing: &[Type]) -> Result<Geometry> {
        let seated = self.cached && trailing.last().is_some_and(is_seated);
        let geometry = Geometry::of(op, self, sources, seated)?;
        let mut trailing = trailing.iter();
        if self.masked {
            let mask = trailing.next().expect("inputs were counted");
            expect_dtype(op, "mask", mask, DType::U32)?;
            expect_shape(op, "mask", mask, &[geometry.batch, geometry.keys])?;
        }
        if self.dropout.is_some() {
            let rng = trailing.next().expect("inputs were counted");
            expect_dtype(op, "rng", rng, DType::U32)?;
            expect_shape(op, "rng", rng, &[2])?;
        }
        if self.cached {
            let position = trailing.next().expect("inputs were counted");
            let caches = if seated { sources[1].shape[0] } else { geometry.batch };
            expect_seats(op, position, [geometry.batch, caches])?;
        }
        Ok(geometry)
    }

    /// The reference where each sequence stands in a cache that it names: one after the other.
    fn one_by_one(&self, g: &Geometry, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        for b in 0..g.batch {
            let [first, cache] = seat(inputs[3].as_u32(), b);
            let sources =
                [(0, b), (1, cache), (2, cache)].map(|(i, at): (usize, usize)| inputs[i].rows(at..at + 1));
            let mut made = [0, 1].map(|i: usize| outputs[i].rows(b..b + 1));
            let position = Tensor::u32([1], vec![first as u32]);
            self.reference(&[&sources[0], &sources[1], &sources[2], &position], &mut made);
            for (to, from) in outputs.iter_mut().zip(&made) {
                let first = b * from.shape.count();
                in_type!(from, to, |x, y| y[first..first + x.len()].copy_from_slice(x));
            }
        }
    }

    /// Inputs after the sources (and what the gradient puts between): mask, rng, position.
    fn trailing(&self) -> usize {
        usize::from(self.masked) + usize::from(self.dropout.is_some()) + usize::from(self.cached)
    }

    /// The same of lent inputs.
    fn lent_extras<'a>(&self, trailing: &[View<'a>]) -> (Option<&'a [u32]>, [u32; 2]) {
        let mask = self.masked.then(|| trailing[0].as_u32());
        let rng = self.dropout.map(|_| trailing[usize::from(self.masked)].as_u32());
        (mask, rng.map_or([0, 0], |r| [r[0], r[1]]))
    }

    /// Splits trailing inputs into mask and rng.
    fn extras<'a>(&self, trailing: &[&'a Tensor]) -> (Option<&'a [u32]>, [u32; 2]) {
        let mask = self.masked.then(|| trailing[0].as_u32());
        let rng = self.dropout.map(|_| trailing[usize::from(self.masked)].as_u32());
        (mask, rng.map_or([0, 0], |r| [r[0], r[1]]))
    }
}

impl Operator for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn settings(&self) -> String {
        self.describe()
    }

    fn attention(&self) -> Option<&Attention> {
        Some(self)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let expected = self.sources() + self.trailing();
        if inputs.len() != expected {
            return Err(Error::InputCount { op, expected, got: inputs.len() });
        }
        let (sources, trailing) = inputs.split_at(self.sources());
        let g = self.geometry(op, sources, trailing)?;
        Ok(vec![
            inputs[0].with_shape([g.batch, g.queries, g.heads, g.size]),
            Type::f32([g.batch, g.heads, g.queries]),
        ])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let types: Vec<Type> = inputs.iter().map(|t| t.host_type()).collect();
        let n = self.sources();
        let mut g = self.geometry(self.name(), &types[..n], &types[n..]).expect("the signature was checked");
        if g.seated {
            return self.one_by_one(&g, inputs, outputs);
        }
        if self.cached {
            g.shift = i64::from(inputs[n].as_u32()[0]);
        }
        let (mask, rng) = self.extras(&inputs[n..]);
        in_precision!(inputs, outputs, R, host::forward::<R>(&g, &inputs[..n], mask, rng, outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let types: Vec<Type> = inputs.iter().map(View::host_type).collect();
        let n = self.sources();
        let mut g = self.geometry(self.name(), &types[..n], &types[n..]).expect("the signature was checked");
        if self.cached {
            g.shift = i64::from(inputs[n].as_u32()[0]);
        }
        let (mask, rng) = self.lent_extras(&inputs[n..]);
        let [out, lse] = outputs else { unreachable!("attention has two outputs") };
        if g.seated {
            return step::each(&g, inputs, out.floats(), lse.floats());
        }
        let sources = fast::Sources::new(&g, &inputs[..n], mask, rng);
        match self.cached && g.queries <= step::FEW {
            true => step::host(&sources, out.floats(), lse.floats()),
            false => fast::forward(&sources, out.floats(), lse.floats()),
        }
    }

    /// One operator gives the gradients of all sources: see [`AttentionGradient`].
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        if self.cached {
            let hint = "a cache is for reading texts, not for training: leave `cached` out";
            return Err(Error::NoGradient { op: self.name(), hint });
        }
        if up[1].is_some() {
            let hint = "lse is a statistic for the backward step; let nothing that is trained depend on it";
            return Err(Error::NoGradient { op: self.name(), hint });
        }
        let mut gradients = vec![None; site.inputs.len()];
        let Some(up) = up[0] else { return Ok(gradients) };
        let (sources, trailing) = site.inputs.split_at(self.sources());
        let mut inputs = sources.to_vec();
        inputs.extend([site.output(0), site.output(1), up]);
        inputs.extend(trailing);
        let found = emit.apply(Arc::new(AttentionGradient(self.clone())), &inputs)?;
        for (i, gradient) in found.into_iter().enumerate() {
            gradients[i] = site.needs(i).then_some(gradient);
        }
        Ok(gradients)
    }

    /// A head of the keys goes with that of the values and with all queries that read it; some of these may go alone if each
    /// head of the keys loses equally many.
    fn ties(&self, inputs: &[Type], _outputs: &[Type]) -> Vec<Tie> {
        let n = self.sources();
        let g = self.geometry(self.name(), &inputs[..n], &inputs[n..]).expect("the signature was checked");
        let (heads, key_heads, shared) = (g.heads, g.key_heads, g.heads / g.key_heads);
        let out = Digit::axis(Port::Output(0), 2, heads);
        let [query, group, key, value] = match self.layout {
            Layout::Separate => [
                Digit::axis(Port::Input(0), 2, heads),
                Digit::runs(Port::Input(0), 2, 0, key_heads, shared),
                Digit::axis(Port::Input(1), 2, key_heads),
                Digit::axis(Port::Input(2), 2, key_heads),
            ],
            Layout::Packed { .. } => {
                let runs = |start, count, inner| Digit::runs(Port::Input(0), 2, start, count, inner);
                [
                    runs(0, heads, g.size),
                    runs(0, key_heads, shared * g.size),
                    runs(heads * g.size, key_heads, g.size),
                    runs((heads + key_heads) * g.size, key_heads, g.size),
                ]
            }
        };
        vec![Tie::Same(query, out), Tie::Same(group, key), Tie::Same(key, value), Tie::Even(group)]
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let n = self.sources();
        let g = self.geometry(self.name(), &inputs[..n], &inputs[n..]).expect("the signature was checked");
        lower::forward(self, &g, inputs[0].dtype, caps)
    }

    fn over_codes(&self) -> Option<Arc<dyn Operator>> {
        self.cached.then(|| Arc::new(AttentionCoded(self.clone())) as _)
    }

    fn is_heavy(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let n = self.sources();
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        let pairs = self.geometry(self.name(), &inputs[..n], &inputs[n..]).map_or(0.0, |g| g.pairs());
        Cost { flops: 4.0 * pairs, bytes }
    }
}

/// Builders of attention.
pub trait AttentionEmit {
    /// `q` [B, T, H, D] over `k`, `v` [B, S, G, D]; `mask` U32 [B, S] hides keys where zero, or numbers texts; `rng` is needed for
    /// dropout.
    fn attention(
        &mut self,
        how: &Attention,
        sources: [Value; 3],
        mask: Option<Value>,
        rng: Option<Value>,
    ) -> Result<Value>;

    /// The same over one `packed` [B, T, (H + 2G) D], with `heads` = [H, G].
    fn attention_packed(
        &mut self,
        how: &Attention,
        packed: Value,
        heads: [usize; 2],
        mask: Option<Value>,
        rng: Option<Value>,
    ) -> Result<Value>;

    /// `q` [B, T, H, D], of which the first stands at `position` U32 \[1\], over caches of keys and values [B, S, G, D]; or at a position of
    /// its own in a cache that it names, U32 [B, 2].
    fn attention_cached(&mut self, how: &Attention, sources: [Value; 3], position: Value) -> Result<Value>;
}

impl<E: Emit + ?Sized> AttentionEmit for E {
    fn attention(
        &mut self,
        how: &Attention,
        sources: [Value; 3],
        mask: Option<Value>,
        rng: Option<Value>,
    ) -> Result<Value> {
        build(self, how, Layout::Separate, &sources, mask, rng)
    }

    fn attention_packed(
        &mut self,
        how: &Attention,
        packed: Value,
        [heads, key_heads]: [usize; 2],
        mask: Option<Value>,
        rng: Option<Value>,
    ) -> Result<Value> {
        build(self, how, Layout::Packed { heads, key_heads }, &[packed], mask, rng)
    }

    fn attention_cached(&mut self, how: &Attention, sources: [Value; 3], position: Value) -> Result<Value> {
        let op = Attention { cached: true, ..how.clone() };
        Ok(self.apply(Arc::new(op), &[&sources[..], &[position]].concat())?[0])
    }
}

fn build<E: Emit + ?Sized>(
    emit: &mut E,
    how: &Attention,
    layout: Layout,
    sources: &[Value],
    mask: Option<Value>,
    rng: Option<Value>,
) -> Result<Value> {
    let op = Attention { layout, masked: mask.is_some(), ..how.clone() };
    let mut inputs = sources.to_vec();
    inputs.extend(mask);
    if op.dropout.is_some() {
        inputs.extend(rng);
    }
    Ok(emit.apply(Arc::new(op), &inputs)?[0])
}

/// Checks that sources are floats of one type.
fn expect_alike(op: &'static str, names: &[&'static str], types: &[Type]) -> Result<()> {
    for (&input, t) in names.iter().zip(types) {
        expect_float(op, input, t)?;
        expect_dtype(op, input, t, types[0].dtype)?;
    }
    Ok(())
}
