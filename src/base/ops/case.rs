//! Trials that every operator carries: odd on purpose, run by the conformance harness and by `kiln doctor`.

use super::Operator;
use crate::tensor::random::Stream;
use crate::tensor::{Data, Shape, Tensor};
use std::sync::Arc;

/// One operator applied to concrete inputs.
///
/// Floats held as f64 follow the storage type under test (f32, then f16); floats held as f32 stay f32 whatever the storage,
/// as saved statistics do.
pub struct Case {
    /// What is odd about it, such as `one past the tile`.
    pub label: String,
    /// The operator.
    pub op: Arc<dyn Operator>,
    /// Inputs.
    pub inputs: Vec<Tensor>,
    /// Check derivatives against central differences in f64. False at kinks and for operators without gradient.
    pub differentiable: bool,
    /// Factor on the tolerance; anything but one needs a reason beside it.
    pub slack: f64,
    /// Sums this long enter one output element: the tolerance grows with its root.
    pub sum_length: usize,
    /// For an operator whose output 0 holds rounded whole numbers: which elements lie so near the middle between two that
    /// rounding errors decide, and either is right.
    pub ties: Option<Arc<Ties>>,
}

/// Tells from a case's inputs, element by element of output 0, where either of two neighbouring whole numbers is right.
pub type Ties = dyn Fn(&[Tensor]) -> Vec<bool> + Send + Sync;

/// Cases of a family, with a stream of random inputs.
pub struct Cases {
    /// The cases in order.
    pub list: Vec<Case>,
    random: Stream,
}

impl Cases {
    /// No cases yet; the family's name seeds the inputs.
    pub fn new(family: &str) -> Self {
        let words: Vec<u32> = family.bytes().map(u32::from).collect();
        Cases { list: vec![], random: Stream::new(&words) }
    }

    /// Adds a differentiable case and returns it for adjustment.
    pub fn add(
        &mut self,
        label: impl Into<String>,
        op: impl Operator + 'static,
        inputs: Vec<Tensor>,
    ) -> &mut Case {
        self.add_shared(label, Arc::new(op), inputs)
    }

    /// Adds a case for a shared operator.
    pub fn add_shared(
        &mut self,
        label: impl Into<String>,
        op: Arc<dyn Operator>,
        inputs: Vec<Tensor>,
    ) -> &mut Case {
        let label = label.into();
        self.list.push(Case {
            label,
            op,
            inputs,
            differentiable: true,
            slack: 1.0,
            sum_length: 1,
            ties: None,
        });
        self.list.last_mut().expect("just pushed")
    }

    /// Standard normal floats.
    pub fn normal(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.floats(shape, |r| r.normal())
    }

    /// Normal floats as multiples of 1/32 up to four: the sum of two is exact in halves as well.
    pub fn coarse(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.floats(shape, |r| (r.normal() * 32.0).round().clamp(-128.0, 128.0) / 32.0)
    }

    /// Uniform floats in a range.
    pub fn uniform(&mut self, shape: impl Into<Shape>, low: f64, high: f64) -> Tensor {
        self.floats(shape, |r| low + (high - low) * r.uniform())
    }

    /// Normal floats that stay f32 whatever the storage under test.
    pub fn statistic(&mut self, shape: impl Into<Shape>) -> Tensor {
        let t = self.normal(shape);
        t.to_precision(crate::tensor::DType::F32)
    }

    /// u32 in `0..bound`.
    pub fn indices(&mut self, shape: impl Into<Shape>, bound: u64) -> Tensor {
        let shape = shape.into();
        let data = (0..shape.count()).map(|_| self.random.below(bound) as u32).collect();
        Tensor { shape, data: Data::U32(data) }
    }

    /// i32 in `low..high`.
    pub fn targets(&mut self, shape: impl Into<Shape>, low: i32, high: i32) -> Tensor {
        let shape = shape.into();
        let span = (high - low) as u64;
        let data = (0..shape.count()).map(|_| low + self.random.below(span) as i32).collect();
        Tensor { shape, data: Data::I32(data) }
    }

    /// Every i8 there may be, the lowest and the highest among the first.
    pub fn codes(&mut self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let mut codes: Vec<i8> = (0..shape.count()).map(|_| self.random.below(256) as u8 as i8).collect();
        codes.iter_mut().zip([i8::MIN, i8::MAX]).for_each(|(code, end)| *code = end);
        Tensor { shape, data: Data::I8(codes) }
    }

    fn floats(&mut self, shape: impl Into<Shape>, mut draw: impl FnMut(&mut Stream) -> f64) -> Tensor {
        let shape = shape.into();
        let data = (0..shape.count()).map(|_| draw(&mut self.random)).collect();
        Tensor { shape, data: Data::F64(data) }
    }
}

impl Case {
    /// Marks a case without derivative.
    pub fn no_gradient(&mut self) -> &mut Self {
        self.differentiable = false;
        self
    }

    /// States the length of the sums in one output element.
    pub fn sums(&mut self, length: usize) -> &mut Self {
        self.sum_length = length;
        self
    }

    /// Takes either of two neighbouring whole numbers where `ties` says so.
    pub fn either_step_at(
        &mut self,
        ties: impl Fn(&[Tensor]) -> Vec<bool> + Send + Sync + 'static,
    ) -> &mut Self {
        self.ties = Some(Arc::new(ties));
        self
    }

    /// Output `number` with what is right as either of two whole numbers replaced by the expected one.
    pub fn settled(&self, inputs: &[Tensor], number: usize, got: &Tensor, expected: &Tensor) -> Tensor {
        let (Some(ties), 0, Data::I8(of_got), Data::I8(right)) =
            (&self.ties, number, &got.data, &expected.data)
        else {
            return got.clone();
        };
        let settle = |((&got, &right), tie): ((&i8, &i8), bool)| {
            if tie && got.abs_diff(right) == 1 { right } else { got }
        };
        let data = of_got.iter().zip(right).zip(ties(inputs)).map(settle).collect();
        Tensor { shape: got.shape.clone(), data: Data::I8(data) }
    }

    /// Widens the tolerance by a factor; the reason belongs beside the call.
    pub fn slack(&mut self, factor: f64) -> &mut Self {
        self.slack = factor;
        self
    }
}
