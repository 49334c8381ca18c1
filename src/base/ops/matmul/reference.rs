//! Matmul on the host: f32 through the `matrixmultiply` crate, which also trains on the CPU; f64 by plain loops, the referee.

use super::geometry::{Form, Geometry};
use rayon::prelude::*;

impl Geometry {
    /// Start of the operands of each matrix of the batch.
    pub(super) fn starts(&self) -> impl Iterator<Item = [usize; 2]> {
        let (outer, inner) = (self.outer, self.inner);
        (0..self.matrices()).map(move |matrix| {
            let (o, i) = (matrix / inner.count, matrix % inner.count);
            [o * outer.a + i * inner.a, o * outer.b + i * inner.b]
        })
    }

    /// Elements from one row of A and one step of its K to the next, and the same of B by steps and columns.
    fn strides(&self, form: Form) -> [usize; 4] {
        let [a_row, a_step] = if form == Form::Tn { [1, self.m] } else { [self.k, 1] };
        let [b_step, b_column] = if form == Form::Nt { [1, self.k] } else { [self.n, 1] };
        [a_row, a_step, b_step, b_column]
    }

    /// C = A B in f32.
    pub(super) fn single(&self, form: Form, a: &[f32], b: &[f32], c: &mut [f32]) {
        let [a_row, a_step, b_step, b_column] = self.strides(form).map(|s| s as isize);
        let (m, n, k) = (self.m, self.n, self.k);
        for ([a_start, b_start], c) in self.starts().zip(c.chunks_exact_mut(m * n)) {
            let (a, b) = (&a[a_start..][..m * k], &b[b_start..][..k * n]);
            // SAFETY: the slices hold m * k, k * n and m * n elements, and the strides address each of them within.
            unsafe {
                matrixmultiply::sgemm(
                    m,
                    k,
                    n,
                    1.0,
                    a.as_ptr(),
                    a_row,
                    a_step,
                    b.as_ptr(),
                    b_step,
                    b_column,
                    0.0,
                    c.as_mut_ptr(),
                    n as isize,
                    1,
                );
            }
        }
    }

    /// C = A B in f64.
    pub(super) fn double(&self, form: Form, a: &[f64], b: &[f64], c: &mut [f64]) {
        let [a_row, a_step, b_step, b_column] = self.strides(form);
        let starts: Vec<[usize; 2]> = self.starts().collect();
        c.par_chunks_exact_mut(self.n).enumerate().for_each(|(line, c)| {
            let [a_start, b_start] = starts[line / self.m];
            let a_start = a_start + line % self.m * a_row;
            for (column, c) in c.iter_mut().enumerate() {
                let b_start = b_start + column * b_column;
                *c = (0..self.k).map(|k| a[a_start + k * a_step] * b[b_start + k * b_step]).sum();
            }
        });
    }
}
