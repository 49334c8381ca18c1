//! Sizes of a matmul: which axes are rows, columns and sum, and how the batch is walked.

use super::super::{Error, Result};
use crate::ops::launch::Launch;
use crate::tensor::{Shape, Type};

/// Which operand is stored with its two last axes exchanged. No data is ever transposed: kernels read it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// A as [M, K], B as [K, N].
    Nn,
    /// A as [M, K], B as [N, K].
    Nt,
    /// A as [K, M], B as [K, N].
    Tn,
}

impl Form {
    /// Short name in the graph's text form.
    pub fn name(self) -> &'static str {
        match self {
            Form::Nn => "nn",
            Form::Nt => "nt",
            Form::Tn => "tn",
        }
    }
}

/// One axis of the batch: how many matrices, and the elements from one to the next (zero where broadcast).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Level {
    pub count: usize,
    pub a: usize,
    pub b: usize,
}

const SINGLE: Level = Level { count: 1, a: 0, b: 0 };

/// A matmul as the kernels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Geometry {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub outer: Level,
    pub inner: Level,
}

impl Geometry {
    /// Sizes for these operands, with neighbouring batch axes merged.
    pub(in crate::ops) fn of(form: Form, a: &Shape, b: &Shape) -> Result<Self> {
        let ([m, k], [n, _], output) = fit(form, a, b)?;
        let batch = Shape::new(&output[..output.len() - 2]);
        let strides = |x: &Shape, size: usize| {
            let mut strides = Shape::new(&x[..x.len() - 2]).broadcast_strides(&batch);
            strides.iter_mut().for_each(|s| *s *= size);
            strides
        };
        let (of_a, of_b) = (strides(a, m * k), strides(b, n * k));
        let mut levels: Vec<Level> = vec![];
        for axis in (0..batch.len()).rev().filter(|&axis| batch[axis] != 1) {
            let level = Level { count: batch[axis], a: of_a[axis], b: of_b[axis] };
            match levels.last_mut() {
                Some(last) if level.a == last.a * last.count && level.b == last.b * last.count => {
                    last.count *= level.count;
                }
                _ => levels.push(level),
            }
        }
        if levels.len() > 2 {
            let expected = "at most two runs of batch axes broadcast alike".to_string();
            return Err(Error::Shape { op: "matmul", input: "a", expected, got: a.clone() });
        }
        let inner = levels.first().copied().unwrap_or(SINGLE);
        let outer = levels.get(1).copied().unwrap_or(SINGLE);
        let sizes = Geometry { m, n, k, outer, inner };
        // One B for all: the batch of A is nothing but more rows.
        if form != Form::Tn && outer == SINGLE && inner.b == 0 && inner.a == m * k {
            return Ok(Geometry { m: m * inner.count, inner: SINGLE, ..sizes });
        }
        Ok(sizes)
    }

    /// Matrices in the batch.
    pub(in crate::ops) fn matrices(&self) -> usize {
        self.outer.count * self.inner.count
    }

    /// Gives the parameters all matmul shaders share.
    pub(in crate::ops) fn params(&self, launch: Launch) -> Launch {
        launch
            .param("m", self.m)
            .param("n", self.n)
            .param("k", self.k)
            .param("inner", self.inner.count)
            .param("a_outer", self.outer.a)
            .param("a_inner", self.inner.a)
            .param("b_outer", self.outer.b)
            .param("b_inner", self.inner.b)
    }
}

/// Sizes [M, K] and [N, K] and the shape of the output, or why the operands do not fit.
pub(in crate::ops) fn fit(form: Form, a: &Shape, b: &Shape) -> Result<([usize; 2], [usize; 2], Shape)> {
    let bad = |input, expected: String, got: &Shape| Error::Shape {
        op: "matmul",
        input,
        expected,
        got: got.clone(),
    };
    for (input, x) in [("a", a), ("b", b)] {
        if x.len() < 2 || x.contains(&0) {
            return Err(bad(input, "a matrix or a batch of matrices, with elements".into(), x));
        }
    }
    let last = |x: &Shape| [x[x.len() - 2], x[x.len() - 1]];
    let swapped = |x: &Shape| [x[x.len() - 1], x[x.len() - 2]];
    let [m, k] = if form == Form::Tn { swapped(a) } else { last(a) };
    let [n, summed] = if form == Form::Nt { last(b) } else { swapped(b) };
    if k != summed {
        let axis = if form == Form::Nt { "last" } else { "last but one" };
        return Err(bad("b", format!("{k} as its {axis} axis, to be summed with a"), b));
    }
    let batch = |x: &Shape| Shape::new(&x[..x.len() - 2]);
    let mut sizes = batch(a).broadcast(&batch(b))?.to_vec();
    sizes.extend([m, n]);
    Ok(([m, k], [n, k], Shape::new(sizes)))
}

/// Shape of the output, with the operands checked.
pub(in crate::ops) fn output(form: Form, a: &Type, b: &Type) -> Result<Shape> {
    let (_, _, shape) = fit(form, &a.shape, &b.shape)?;
    Geometry::of(form, &a.shape, &b.shape)?;
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(form: Form, a: &[usize], b: &[usize]) -> Result<Geometry> {
        Geometry::of(form, &Shape::new(a), &Shape::new(b))
    }

    #[test]
    fn a_batch_against_one_matrix_becomes_rows() {
        let g = of(Form::Nn, &[2, 3, 5, 7], &[7, 4]).unwrap();
        assert_eq!((g.m, g.n, g.k, g.matrices()), (30, 4, 7, 1));
        let g = of(Form::Tn, &[6, 7, 5], &[7, 4]).unwrap();
        assert_eq!((g.m, g.matrices(), g.inner.a, g.inner.b), (5, 6, 35, 0));
    }

    #[test]
    fn a_broadcast_axis_outside_a_shared_one_takes_two_levels() {
        let g = of(Form::Nn, &[2, 3, 5, 33], &[3, 33, 13]).unwrap();
        assert_eq!(g.inner, Level { count: 3, a: 165, b: 429 });
        assert_eq!(g.outer, Level { count: 2, a: 495, b: 0 });
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        assert!(of(Form::Nn, &[2, 3], &[4, 5]).is_err());
        assert!(of(Form::Nn, &[3], &[3, 5]).is_err());
        assert!(of(Form::Nt, &[2, 3], &[0, 3]).is_err());
        assert!(of(Form::Nn, &[2, 2, 3], &[3, 3, 5]).is_err());
        let three_patterns = of(Form::Nn, &[2, 1, 2, 4, 3], &[1, 2, 2, 3, 5]);
        assert!(three_patterns.is_err());
    }
}
