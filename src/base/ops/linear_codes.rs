//! The gradient of a linear layer whose products are made of int8 codes.
//!
//! A layer `y = x W + bias` is written as whatever computes y, followed by [`LinearCodes`]: a view of y that takes x, the weight
//! and the bias as further inputs and sends the gradient there, past the codes, which have none.
//!
//! [`Backward::Products`], for training in mixed precision: `dx = up W^T` and `dW = x^T up`, each of them a product of codes with a
//! scale for each row of both operands, found anew (largest magnitude over 127), or a plain matmul.
//!
//! [`Backward::Straight`], for training with quantisation: rounding counts as the identity, so `dx = up W'^T` and `dW = x'^T up`
//! with the numbers x' and W' that the codes stand for.

use super::dequantize_rows::DequantizeRowsEmit;
use super::launch::{Caps, Variant};
use super::matmul::{Form, MatmulEmit};
use super::matmul_int8::{Codes, MatmulInt8Emit};
use super::quantize_columns::QuantizeColumnsEmit;
use super::quantize_rows::{QuantizeRowsEmit, Rule};
use super::reduce::ReduceEmit;
use super::reshape::ReshapeEmit;
use super::{Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_float, expect_shape};
use crate::tensor::{Shape, Tensor, Type};
use std::sync::Arc;

/// Which products of a linear layer are made of codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Products {
    /// `y = x W`.
    pub forward: bool,
    /// `dx = up W^T`.
    pub input_gradient: bool,
    /// `dW = x^T up`; its sums run over all positions of a batch.
    pub weight_gradient: bool,
}

impl Products {
    /// All of them.
    pub const ALL: Products = Products { forward: true, input_gradient: true, weight_gradient: true };

    /// True if every product is a plain matmul.
    pub fn is_none(&self) -> bool {
        *self == Products::default()
    }
}

/// How the gradient is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backward {
    /// By products of codes or plain ones.
    Products(Products),
    /// From what the codes of the forward product stand for, straight through their rounding.
    Straight,
}

/// y as it is, with a gradient for x and the weight. Inputs: y [.., N], x [.., K], the weight ([K, N] for `Form::Nn`, [N, K] for
/// `Form::Nt`), with `has_bias` the bias `[N]`, and for [`Backward::Straight`] the codes of x [.., K] with scales [..] and those of
/// the weight [N, K] with scales `[N]`; output: y.
#[derive(Clone, Copy, Debug)]
pub struct LinearCodes {
    /// How the weight is stored.
    pub form: Form,
    /// Whether there is a bias, which y already holds.
    pub has_bias: bool,
    /// Where the gradient comes from.
    pub backward: Backward,
}

impl LinearCodes {
    fn expected_inputs(&self) -> usize {
        3 + self.has_bias as usize + if self.backward == Backward::Straight { 4 } else { 0 }
    }

    /// Codes of x and of the weight, for [`Backward::Straight`].
    fn codes(&self, site: &Site) -> [Codes; 2] {
        let first = 3 + self.has_bias as usize;
        let at = |i: usize| Codes { codes: site.input(first + i), scales: site.input(first + i + 1) };
        [at(0), at(2)]
    }

    fn gradient_of_x(&self, emit: &mut dyn Emit, site: &Site, up: Value) -> Result<Value> {
        let weight = site.input(2);
        match self.backward {
            Backward::Straight => {
                let [_, Codes { codes, scales }] = self.codes(site);
                let weight = emit.dequantize_rows(codes, scales)?;
                emit.matmul_form(Form::Nn, up, weight)
            }
            Backward::Products(Products { input_gradient: true, .. }) => {
                let [codes, scales] = emit.quantize_rows(up, Rule::Narrow)?;
                let up = Codes { codes, scales };
                let [codes, scales] = match self.form {
                    Form::Nt => emit.quantize_columns(weight, Rule::Narrow)?,
                    _ => emit.quantize_rows(weight, Rule::Narrow)?,
                };
                emit.linear_int8(up, Codes { codes, scales }, None)
            }
            Backward::Products(_) => {
                emit.matmul_form(if self.form == Form::Nt { Form::Nn } else { Form::Nt }, up, weight)
            }
        }
    }

    fn gradient_of_weight(&self, emit: &mut dyn Emit, site: &Site, up: Value) -> Result<Value> {
        let rows = |emit: &mut dyn Emit, x: Value| {
            let shape = emit.type_of(x).shape;
            emit.reshape(x, Shape::from([shape.rows(), shape.last()]))
        };
        let (x, up) = match self.backward {
            Backward::Straight => {
                let [Codes { codes, scales }, _] = self.codes(site);
                let x = emit.dequantize_rows(codes, scales)?;
                (rows(emit, x)?, rows(emit, up)?)
            }
            Backward::Products(Products { weight_gradient: true, .. }) => {
                let mut turned = |x: Value| {
                    let [codes, scales] = emit.quantize_columns(x, Rule::Narrow)?;
                    Ok::<_, Error>(Codes { codes, scales })
                };
                let (x, up) = (turned(site.input(1))?, turned(up)?);
                return match self.form {
                    Form::Nt => emit.linear_int8(up, x, None),
                    _ => emit.linear_int8(x, up, None),
                };
            }
            Backward::Products(_) => (rows(emit, site.input(1))?, rows(emit, up)?),
        };
        match self.form {
            Form::Nt => emit.matmul_form(Form::Tn, up, x),
            _ => emit.matmul_form(Form::Tn, x, up),
        }
    }
}

impl Operator for LinearCodes {
    fn name(&self) -> &'static str {
        "linear_codes"
    }

    fn settings(&self) -> String {
        let bias = if self.has_bias { ",bias" } else { "" };
        let backward = match self.backward {
            Backward::Straight => "straight".to_string(),
            Backward::Products(Products { input_gradient, weight_gradient, .. }) => {
                format!("int8 dx={input_gradient} dw={weight_gradient}")
            }
        };
        format!("form={}{bias},backward={backward}", self.form.name())
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        if inputs.len() != self.expected_inputs() {
            return Err(Error::InputCount { op, expected: self.expected_inputs(), got: inputs.len() });
        }
        let (y, x, weight) = (&inputs[0], &inputs[1], &inputs[2]);
        for (name, input) in [("y", y), ("x", x), ("weight", weight)] {
            expect_float(op, name, input)?;
            super::rows::expect_rows(op, name, input)?;
        }
        let (n, k) = (y.shape.last(), x.shape.last());
        expect_shape(op, "y", y, &[&x.shape[..x.shape.len() - 1], &[n]].concat())?;
        let expected = match self.form {
            Form::Nn => [k, n],
            Form::Nt => [n, k],
            Form::Tn => {
                let (expected, got) = ("nn or nt".to_string(), "tn".to_string());
                return Err(Error::Setting { op, setting: "form", expected, got });
            }
        };
        expect_shape(op, "weight", weight, &expected)?;
        if self.has_bias {
            expect_shape(op, "bias", &inputs[3], &[n])?;
        }
        if self.backward == Backward::Straight {
            let [x_codes, _, w_codes, _] = &inputs[inputs.len() - 4..] else { unreachable!("counted above") };
            expect_shape(op, "codes of x", x_codes, &x.shape)?;
            expect_shape(op, "codes of the weight", w_codes, &[n, k])?;
        }
        Ok(vec![y.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        outputs[0].data = inputs[0].data.clone();
    }

    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let mut gradients = vec![None; site.inputs.len()];
        let Some(up) = up[0] else { return Ok(gradients) };
        if site.needs(1) {
            gradients[1] = Some(self.gradient_of_x(emit, site, up)?);
        }
        if site.needs(2) {
            gradients[2] = Some(self.gradient_of_weight(emit, site, up)?);
        }
        if self.has_bias && site.needs(3) {
            let shape = emit.type_of(site.input(3)).shape;
            gradients[3] = Some(emit.sum_to(up, &shape)?);
        }
        Ok(gradients)
    }

    fn launch(&self, _inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        vec![]
    }

    fn cost(&self, _inputs: &[Type], _outputs: &[Type]) -> Cost {
        Cost::default()
    }

    fn is_view(&self) -> bool {
        true
    }
}

/// A linear layer whose products are made of codes.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// [.., K].
    pub x: Value,
    /// [K, N] or [N, K].
    pub weight: Value,
    /// `[N]`.
    pub bias: Option<Value>,
    /// How the weight is stored: `Form::Nn` or `Form::Nt`.
    pub form: Form,
}

/// Builders of linear layers with products of codes.
pub trait LinearCodesEmit {
    /// `x W + bias` with these products made of codes, forward and back.
    fn linear_in_codes(&mut self, layer: Linear, products: Products) -> Result<Value>;
    /// `x W + bias` as it is deployed in int8 codes of weights and of activations, a scale for each output and each row of x,
    /// with a gradient straight through.
    fn linear_straight(&mut self, layer: Linear, rule: Rule) -> Result<Value>;
    /// The deployed product alone: the sum, codes of x and codes of the weight.
    fn linear_deployed(&mut self, layer: Linear, rule: Rule) -> Result<(Value, [Codes; 2])>;
}

impl<E: Emit + ?Sized> LinearCodesEmit for E {
    fn linear_in_codes(&mut self, layer: Linear, products: Products) -> Result<Value> {
        let Linear { x, weight, bias, form } = layer;
        let y = match products.forward {
            true => self.linear_deployed(layer, Rule::Narrow)?.0,
            false => self.linear(form, x, weight, bias)?,
        };
        let op = LinearCodes { form, has_bias: bias.is_some(), backward: Backward::Products(products) };
        let inputs: Vec<Value> = [y, x, weight].into_iter().chain(bias).collect();
        self.apply_one(Arc::new(op), &inputs)
    }

    fn linear_straight(&mut self, layer: Linear, rule: Rule) -> Result<Value> {
        let Linear { x, weight, bias, form } = layer;
        let (y, [of_x, of_weight]) = self.linear_deployed(layer, rule)?;
        let op = LinearCodes { form, has_bias: bias.is_some(), backward: Backward::Straight };
        let codes = [of_x.codes, of_x.scales, of_weight.codes, of_weight.scales];
        let inputs: Vec<Value> = [y, x, weight].into_iter().chain(bias).chain(codes).collect();
        self.apply_one(Arc::new(op), &inputs)
    }

    fn linear_deployed(&mut self, layer: Linear, rule: Rule) -> Result<(Value, [Codes; 2])> {
        let [codes, scales] = self.quantize_rows(layer.x, Rule::Narrow)?;
        let x = Codes { codes, scales };
        let [codes, scales] = match layer.form {
            Form::Nt => self.quantize_rows(layer.weight, rule)?,
            _ => self.quantize_columns(layer.weight, rule)?,
        };
        let weight = Codes { codes, scales };
        Ok((self.linear_int8(x, weight, layer.bias)?, [x, weight]))
    }
}

/// Both forms, with and without a bias: a view has no kernel.
pub fn cases() -> Cases {
    let mut cases = Cases::new("linear_codes");
    for (form, has_bias) in [(Form::Nn, false), (Form::Nt, true)] {
        let weight: [usize; 2] = if form == Form::Nn { [5, 3] } else { [3, 5] };
        let mut inputs = vec![cases.normal([2, 4, 3]), cases.normal([2, 4, 5]), cases.normal(weight)];
        inputs.extend(has_bias.then(|| cases.normal([3])));
        let backward = Backward::Products(Products::ALL);
        let op = LinearCodes { form, has_bias, backward };
        // Its gradient is that of the layer, not of the view: the unit tests compare it.
        cases.add(op.settings(), op, inputs).no_gradient();
    }
    cases
}
