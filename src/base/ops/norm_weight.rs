//! Gradients of the weight and bias of a normalisation: sums over all rows, column by column.
//!
//! `dweight[c] = sum over r of up[r, c] * n[r, c]`, `dbias[c] = sum over r of up[r, c]`, with `n = (x - mean) * rstd`, or
//! `x * rstd` where nothing is centred (RMS norm, which has no bias either).
//!
//! Two stages, so that there is work for every core: rows are cut into chunks, each chunk is summed by columns into
//! scratch, then the chunks are added in their order. The cut depends on the shape alone, so a run repeats bit for bit.

mod fast;

use super::launch::{Bind, Caps, Kernel, Launch, Variant};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_shape,
    in_precision, rows,
};
use crate::tensor::{DType, Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;

/// Chunks at most: a second stage of this length is short, and as many chunks times columns fill a large GPU.
const MOST_CHUNKS: usize = 64;
/// Rows of a chunk at least: below this the scratch costs more than the sums.
const LEAST_ROWS: usize = 16;
/// Columns, or fours of columns, of a workgroup, one per invocation.
const LANES: usize = 64;

/// Sums over rows. Inputs: x, up, rstd, then mean if centred; outputs: dweight, then dbias if centred.
#[derive(Clone, Debug)]
pub struct NormWeightGradient {
    /// The rows' means are subtracted: layer norm.
    pub centred: bool,
}

fn rows_per_chunk(rows: usize) -> usize {
    rows.div_ceil(MOST_CHUNKS).max(LEAST_ROWS)
}

impl NormWeightGradient {
    fn compute<R: Real>(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let cols = inputs[0].shape.last();
        let [x, up, rstd] = [0, 1, 2].map(|i| inputs[i].real::<R>());
        let mean = self.centred.then(|| inputs[3].real::<R>());
        let chunk = rows_per_chunk(rstd.len());
        let partial: Vec<[Vec<R>; 2]> = (0..rstd.len().div_ceil(chunk))
            .into_par_iter()
            .map(|number| {
                let mut sums = [vec![R::default(); cols], vec![R::default(); cols]];
                let [weight, bias] = &mut sums;
                for row in number * chunk..((number + 1) * chunk).min(rstd.len()) {
                    let (x, up) = (&x[row * cols..][..cols], &up[row * cols..][..cols]);
                    let (middle, scale) = (mean.map_or(R::default(), |m| m[row]), rstd[row]);
                    let each = weight.iter_mut().zip(bias.iter_mut()).zip(x.iter().zip(up));
                    each.for_each(|((weight, bias), (&x, &up))| {
                        *weight += up * ((x - middle) * scale);
                        *bias += up;
                    });
                }
                sums
            })
            .collect();
        for (number, output) in outputs.iter_mut().enumerate() {
            let total = output.real_mut::<R>();
            total.fill(R::default());
            for sums in &partial {
                total.iter_mut().zip(&sums[number]).for_each(|(total, &sum)| *total += sum);
            }
        }
    }
}

impl Operator for NormWeightGradient {
    fn name(&self) -> &'static str {
        "norm_weight_gradient"
    }

    fn settings(&self) -> String {
        format!("centred={}", self.centred)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let expected = 3 + self.centred as usize;
        if inputs.len() != expected {
            return Err(Error::InputCount { op, expected, got: inputs.len() });
        }
        let x = &inputs[0];
        expect_float(op, "x", x)?;
        rows::expect_rows(op, "x", x)?;
        expect_shape(op, "up", &inputs[1], &x.shape)?;
        expect_dtype(op, "up", &inputs[1], x.dtype)?;
        for (name, saved) in ["rstd", "mean"].into_iter().zip(&inputs[2..]) {
            expect_shape(op, name, saved, &[x.shape.rows()])?;
            expect_dtype(op, name, saved, rows::statistic(x, []).dtype)?;
        }
        Ok(vec![x.with_shape([x.shape.last()]); 1 + self.centred as usize])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::compute(self, inputs, outputs);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "second derivatives are not supported" })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let (count, cols) = (inputs[0].shape.rows(), inputs[0].shape.last());
        let chunk = rows_per_chunk(count);
        let packs = cols / rows::width(cols);
        let (chunks, blocks) = (count.div_ceil(chunk), packs.div_ceil(LANES));
        let kinds = 1 + self.centred as usize;
        // Without a mean, rstd is bound in its place and never read as such.
        let mean = Bind::Input(if self.centred { 3 } else { 2 });
        let kernel = |shader| rows::with_width(Kernel::new(shader), rows::width(cols));
        let sums = kernel("norm_weight")
            .constant("LANES", LANES as u32)
            .constant("CENTRED", self.centred as u32)
            .retype("Elem", inputs[0].dtype);
        let bindings = [Bind::Input(0), Bind::Input(1), Bind::Input(2), mean, Bind::Scratch(0)];
        let mut launches = vec![
            Launch::new(sums, bindings, chunks * blocks)
                .param("rows", count)
                .param("packs", packs)
                .param("chunk", chunk)
                .param("blocks", blocks),
        ];
        for kind in 0..kinds {
            let total =
                kernel("norm_weight_total").constant("LANES", LANES as u32).retype("Elem", inputs[0].dtype);
            launches.push(
                Launch::new(total, [Bind::Scratch(0), Bind::Output(kind)], blocks)
                    .param("packs", packs)
                    .param("chunks", chunks)
                    .param("first", kind * packs)
                    .param("stride", kinds * packs),
            );
        }
        let scratch = vec![(chunks.max(1) * kinds * cols * DType::F32.size_bytes()) as u64];
        vec![Variant { name: self.name().into(), launches, scratch }]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 5.0 * inputs[0].shape.count() as f64, bytes }
    }
}

/// One row, primes, one row past a chunk, more rows than chunks of the least size, past a workgroup of columns.
pub fn cases() -> Cases {
    let mut cases = Cases::new("norm_weight");
    for centred in [true, false] {
        for shape in [[1, 1], [7, 13], [17, 65], [1025, 3], [1100, 5], [33, 130], [33, 260], [1025, 4]] {
            let mut inputs = vec![cases.normal(shape), cases.normal(shape)];
            inputs.push(cases.uniform([shape[0]], 0.5, 2.0).to_precision(DType::F32));
            inputs.extend(centred.then(|| cases.statistic([shape[0]])));
            let label = format!("{shape:?} centred={centred}");
            cases.add(label, NormWeightGradient { centred }, inputs).sums(shape[0]).no_gradient();
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_rows_and_stay_few() {
        for rows in [1, 15, 16, 17, 768, 1024, 1025, 100_003] {
            let chunk = rows_per_chunk(rows);
            let chunks = rows.div_ceil(chunk);
            assert!(chunk * chunks >= rows && chunk * (chunks - 1) < rows && chunks <= MOST_CHUNKS);
        }
    }
}
