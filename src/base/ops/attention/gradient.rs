//! The backward step of attention, as one operator for all its sources.

use super::{Attention, expect_alike, fast, host, lower};
use crate::ops::launch::{Caps, Variant};
use crate::ops::{
    Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_shape, in_precision,
};
use crate::tensor::{DType, Tensor, Type, View, ViewMut};

/// Gradients of the sources of attention: dq, dk, dv, or one packed gradient.
///
/// With `p = exp(scale q.k - lse)`, `f` the dropout factor and `delta = up . out` by rows:
/// `dv[s] = sum over t of f p up[t]`; `e = p (f up[t].v[s] - delta[t])`;
/// `dq[t] = scale * sum over s of e k[s]`; `dk[s] = scale * sum over t of e q[t]`, both summed over the heads of a group.
///
/// Inputs: the sources, then out, lse, the gradient of out, then mask and rng if there are any.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionGradient(pub Attention);

impl AttentionGradient {
    /// Positions of out, and of mask or rng.
    fn split(&self) -> (usize, usize) {
        let n = self.0.sources();
        (n, n + 3)
    }
}

impl Operator for AttentionGradient {
    fn name(&self) -> &'static str {
        "attention_gradient"
    }

    fn settings(&self) -> String {
        self.0.describe()
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let (n, after) = self.split();
        let expected = after + self.0.trailing();
        if inputs.len() != expected {
            return Err(Error::InputCount { op, expected, got: inputs.len() });
        }
        let g = self.0.geometry(op, &inputs[..n], &inputs[after..])?;
        let [out, lse, up] = [&inputs[n], &inputs[n + 1], &inputs[n + 2]];
        expect_alike(op, &["q", "out", "up"], &[inputs[0].clone(), out.clone(), up.clone()])?;
        expect_shape(op, "out", out, &[g.batch, g.queries, g.heads, g.size])?;
        expect_shape(op, "up", up, &[g.batch, g.queries, g.heads, g.size])?;
        expect_shape(op, "lse", lse, &[g.batch, g.heads, g.queries])?;
        if lse.dtype != DType::F64 {
            expect_dtype(op, "lse", lse, DType::F32)?;
        }
        Ok(inputs[..n].to_vec())
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let types: Vec<Type> = inputs.iter().map(|t| t.host_type()).collect();
        let (n, after) = self.split();
        let g =
            self.0.geometry(self.name(), &types[..n], &types[after..]).expect("the signature was checked");
        let (mask, rng) = self.0.extras(&inputs[after..]);
        let saved = host::Backward { out: inputs[n], lse: inputs[n + 1], up: inputs[n + 2] };
        in_precision!(inputs, outputs, R, {
            host::backward::<R>(&g, &inputs[..n], &saved, mask, rng, outputs)
        });
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let types: Vec<Type> = inputs.iter().map(View::host_type).collect();
        let (n, after) = self.split();
        let g =
            self.0.geometry(self.name(), &types[..n], &types[after..]).expect("the signature was checked");
        let (mask, rng) = self.0.lent_extras(&inputs[after..]);
        let saved = host::Backward { out: inputs[n], lse: inputs[n + 1], up: inputs[n + 2] };
        fast::backward(&fast::Sources::new(&g, &inputs[..n], mask, rng), &saved, outputs);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "second derivatives of attention are not supported";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let (n, after) = self.split();
        let g =
            self.0.geometry(self.name(), &inputs[..n], &inputs[after..]).expect("the signature was checked");
        lower::backward(&self.0, &g, inputs[0].dtype, caps)
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let (n, after) = self.split();
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        let pairs = self.0.geometry(self.name(), &inputs[..n], &inputs[after..]).map_or(0.0, |g| g.pairs());
        Cost { flops: 10.0 * pairs, bytes }
    }
}
