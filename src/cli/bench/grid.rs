//! What `kiln bench kernels` times: operators over a grid of shapes, from those of small models to those of large ones.

use crate::cli::Usage;
use crate::ops::Operator;
use crate::ops::attention::{Attention, AttentionGradient};
use crate::ops::cross_entropy::{CrossEntropy, CrossEntropyGradient};
use crate::ops::layer_norm::{LayerNorm, LayerNormGradient};
use crate::ops::matmul::{Form, Matmul};
use crate::ops::matmul_coded::{Layout, MatmulCoded, Packing};
use crate::ops::matmul_int8::MatmulInt8;
use crate::ops::optimizer::{self, BLOCK, Optimizer, SCALARS, norm::CONTROL};
use crate::ops::pointwise::Pointwise;
use crate::ops::quantize_rows::{QuantizeRows, Rule};
use crate::ops::reduce::{self, Reduce};
use crate::ops::rms_norm::{RmsNorm, RmsNormGradient};
use crate::ops::softmax::{self, Softmax, SoftmaxGradient};
use crate::tensor::quant::Grid;
use crate::tensor::random::Stream;
use crate::tensor::{DType, Data, Tensor, Type};
use std::sync::{Arc, OnceLock};

/// Largest size of an axis: three of them multiplied still count in 128 bits with room.
const LARGEST: usize = 1 << 30;
/// Numbers drawn at random before they repeat.
const DRAWN: usize = 1 << 16;

/// What limits an operator, and so in what it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Operations a second.
    Flops,
    /// Bytes a second.
    Bytes,
}

/// An operator and its inputs at a shape, in a storage type.
type Make = fn(&[usize], DType) -> (Arc<dyn Operator>, Vec<Input>);

/// An operator that is timed over a list of shapes.
pub struct Family {
    /// Name, for `--only`.
    pub name: &'static str,
    /// Meaning of the numbers in a shape.
    pub axes: &'static str,
    /// Its figure.
    pub rate: Rate,
    /// The one type it is timed in, along with f32; without one, each type asked for.
    pub only: Option<DType>,
    /// Shapes, each larger than the one before.
    shapes: &'static [&'static [usize]],
    /// More of them for a device that is no processor.
    large: &'static [&'static [usize]],
    make: Make,
}

/// An input of an operator before there are any elements.
pub struct Input {
    /// Element type on the device.
    pub dtype: DType,
    /// Sizes of the axes.
    pub sizes: Vec<usize>,
    fill: Fill,
}

/// What an input holds.
enum Fill {
    Normal,
    Even(f32),
    /// Whole numbers below this.
    Below(usize),
    Given(Vec<f32>),
}

impl Input {
    fn new(dtype: DType, sizes: &[usize], fill: Fill) -> Input {
        Input { dtype, sizes: sizes.to_vec(), fill }
    }

    /// Bytes it takes, whatever its size.
    pub fn size_bytes(&self) -> u128 {
        self.sizes.iter().map(|&n| n as u128).product::<u128>() * self.dtype.size_bytes() as u128
    }

    /// Its type; the sizes must have been found to fit.
    pub fn kind(&self) -> Type {
        Type::new(self.dtype, self.sizes.clone())
    }

    /// Its elements; floats are f32 whatever the storage.
    pub fn tensor(&self) -> Tensor {
        let kind = self.kind();
        let count = kind.shape.count();
        let data = match &self.fill {
            Fill::Normal => Data::F32(normals().iter().copied().cycle().take(count).collect()),
            Fill::Even(x) => Data::F32(vec![*x; count]),
            Fill::Given(x) => Data::F32(x.clone()),
            Fill::Below(bound) => {
                let mut random = Stream::new(&[0x6265_6c6f]);
                let mut draw = || random.below(*bound as u64);
                match self.dtype {
                    DType::I8 => Data::I8((0..count).map(|_| draw() as u8 as i8).collect()),
                    DType::I32 => Data::I32((0..count).map(|_| draw() as i32).collect()),
                    _ => Data::U32((0..count).map(|_| draw() as u32).collect()),
                }
            }
        };
        Tensor { shape: kind.shape, data }
    }
}

fn normals() -> &'static [f32] {
    static DRAWS: OnceLock<Vec<f32>> = OnceLock::new();
    DRAWS.get_or_init(|| {
        let mut random = Stream::new(&[0x6265_6e63]);
        (0..DRAWN).map(|_| random.normal() as f32).collect()
    })
}

/// One operator at one shape in one storage type.
pub struct Subject {
    /// Where it comes from.
    pub family: &'static Family,
    /// Sizes, as `768x512x128`.
    pub shape: String,
    /// Storage of its floats.
    pub dtype: DType,
    /// The operator.
    pub op: Arc<dyn Operator>,
    /// Its inputs.
    pub inputs: Vec<Input>,
}

/// Everything to be timed: families whose name contains `only`, at their own shapes or at those given.
pub fn subjects(
    only: &str,
    shapes: &[String],
    dtypes: &[DType],
    large: bool,
) -> anyhow::Result<Vec<Subject>> {
    let chosen: Vec<&'static Family> = FAMILIES.iter().filter(|f| f.name.contains(only)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = FAMILIES.iter().map(|f| f.name).collect();
        let text = format!("no family of kernels is named like `{only}`\n  hint: {}", names.join(", "));
        return Err(Usage(text).into());
    }
    let given = shapes.iter().map(|text| sizes_of(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut subjects = vec![];
    for family in chosen {
        let own = family.shapes.iter().chain(if large { family.large } else { &[] });
        let list: Vec<&[usize]> = match given.is_empty() {
            true => own.copied().collect(),
            false => given.iter().map(Vec::as_slice).collect(),
        };
        let takes = |dtype: DType| match dtype {
            DType::F32 => true,
            // bf16 is storage, which matmul alone reads.
            DType::BF16 => family.axes == MATMUL_AXES,
            _ => true,
        };
        let takes = |dtype: DType| if family.only.is_some() { dtype == DType::F32 } else { takes(dtype) };
        for &dtype in dtypes.iter().filter(|&&dtype| takes(dtype)) {
            for &sizes in &list {
                subjects.push(family.at(sizes, family.only.unwrap_or(dtype))?);
            }
        }
    }
    Ok(subjects)
}

/// Sizes in a shape such as `768x512x128`.
fn sizes_of(text: &str) -> anyhow::Result<Vec<usize>> {
    let size = |part: &str| part.parse().ok().filter(|n| (1..=LARGEST).contains(n));
    text.split('x').map(size).collect::<Option<Vec<usize>>>().ok_or_else(|| {
        let text = format!(
            "--shape `{text}`: expected sizes from 1 to {LARGEST} with x between, such as 768x512x128"
        );
        Usage(text).into()
    })
}

impl Family {
    fn at(&'static self, sizes: &[usize], dtype: DType) -> anyhow::Result<Subject> {
        if sizes.len() != self.axes.split('x').count() {
            let got: Vec<String> = sizes.iter().map(usize::to_string).collect();
            let text = format!(
                "--shape {} does not suit {}, which takes {}\n  hint: choose one family with --only",
                got.join("x"),
                self.name,
                self.axes
            );
            return Err(Usage(text).into());
        }
        let (op, inputs) = (self.make)(sizes, dtype);
        let shape = sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        Ok(Subject { family: self, shape, dtype, op, inputs })
    }
}

const MATMUL_AXES: &str = "MxNxK";
const CUBES: [&[usize]; 3] = [&[256, 256, 256], &[512, 512, 512], &[1024, 1024, 1024]];
/// Of a token, of a sequence, of a vocabulary: the same for codes and for floats.
const LINEARS: &[&[usize]] = &[
    &[1, 1024, 1024],
    CUBES[0],
    &[768, 128, 512],
    &[128, 1024, 1024],
    CUBES[1],
    CUBES[2],
    &[128, 49_152, 576],
];
const LARGE_CUBES: &[&[usize]] = &[&[2048, 2048, 2048], &[4096, 4096, 4096]];
const ROWS: &[&[usize]] = &[&[768, 128], &[1024, 768], &[4096, 1024]];
const LARGE_ROWS: &[&[usize]] = &[&[8192, 4096]];
const LOGITS: &[&[usize]] = &[&[768, 65], &[128, 49_152], &[1024, 50_257]];
const HEADS: &[&[usize]] = &[&[12, 64, 4, 32], &[4, 256, 6, 64], &[1, 1024, 12, 64]];
const LARGE_HEADS: &[&[usize]] = &[&[8, 1024, 12, 64]];
const LINES: &[&[usize]] = &[&[393_216], &[4_194_304]];
const LARGE_LINES: &[&[usize]] = &[&[33_554_432]];

/// All families: those that spend a step's time.
const FAMILIES: &[Family] = &[
    Family {
        shapes: &[CUBES[0], &[768, 512, 128], CUBES[1], &[1024, 1536, 384], CUBES[2]],
        large: LARGE_CUBES,
        ..matmul("matmul_nn", |sizes, dtype| matmul_at(Form::Nn, sizes, dtype))
    },
    Family {
        shapes: LINEARS,
        large: LARGE_CUBES,
        ..matmul("matmul_nt", |sizes, dtype| matmul_at(Form::Nt, sizes, dtype))
    },
    Family {
        shapes: LINEARS,
        only: Some(DType::I8),
        ..matmul("matmul_int8", |sizes, _| matmul_int8_at(sizes))
    },
    Family {
        only: Some(DType::I8),
        ..coded("matmul_bytes", |sizes, _| coded_at(sizes, Packing::Bytes, Grid::Integers, sizes[2]))
    },
    Family {
        only: Some(DType::U32),
        ..coded("matmul_int4", |sizes, _| coded_at(sizes, Packing::Nibbles, Grid::Integers, 32))
    },
    Family {
        only: Some(DType::U32),
        ..coded("matmul_nf4", |sizes, _| coded_at(sizes, Packing::Nibbles, Grid::NormalFloat, 64))
    },
    Family {
        shapes: &[CUBES[0], &[128, 512, 768], CUBES[1], &[384, 1536, 1024], CUBES[2]],
        large: LARGE_CUBES,
        ..matmul("matmul_tn", |sizes, dtype| matmul_at(Form::Tn, sizes, dtype))
    },
    rows("quantize_rows", |sizes, dtype| {
        (Arc::new(QuantizeRows { rule: Rule::Narrow }), vec![Input::new(dtype, sizes, Fill::Normal)])
    }),
    rows("softmax", |sizes, dtype| {
        (Arc::new(Softmax { kind: softmax::Kind::Softmax }), vec![Input::new(dtype, sizes, Fill::Normal)])
    }),
    rows("softmax_gradient", |sizes, dtype| {
        let y = Input::new(dtype, sizes, Fill::Even(1.0 / sizes[1] as f32));
        let op = SoftmaxGradient { kind: softmax::Kind::Softmax };
        (Arc::new(op), vec![y, Input::new(dtype, sizes, Fill::Normal)])
    }),
    rows("layer_norm", |sizes, dtype| {
        let column = || Input::new(dtype, &sizes[1..], Fill::Normal);
        let op = LayerNorm { eps: 1e-5, has_weight: true, has_bias: true, residual: false };
        (Arc::new(op), vec![Input::new(dtype, sizes, Fill::Normal), column(), column()])
    }),
    rows("layer_norm_gradient", |sizes, dtype| {
        let table = || Input::new(dtype, sizes, Fill::Normal);
        let saved = |x| Input::new(DType::F32, &sizes[..1], Fill::Even(x));
        let weight = Input::new(dtype, &sizes[1..], Fill::Normal);
        let op = LayerNormGradient { has_weight: true, addend: false };
        (Arc::new(op), vec![table(), table(), saved(0.0), saved(1.0), weight])
    }),
    rows("rms_norm", |sizes, dtype| {
        let weight = Input::new(dtype, &sizes[1..], Fill::Normal);
        (
            Arc::new(RmsNorm { eps: 1e-5, residual: false }),
            vec![Input::new(dtype, sizes, Fill::Normal), weight],
        )
    }),
    rows("rms_norm_gradient", |sizes, dtype| {
        let table = || Input::new(dtype, sizes, Fill::Normal);
        let saved = Input::new(DType::F32, &sizes[..1], Fill::Even(1.0));
        let weight = Input::new(dtype, &sizes[1..], Fill::Normal);
        (Arc::new(RmsNormGradient { addend: false }), vec![table(), table(), saved, weight])
    }),
    Family {
        shapes: LOGITS,
        large: &[],
        ..rows("cross_entropy", |sizes, dtype| {
            let [logits, targets] = logits_at(sizes, dtype);
            (Arc::new(CrossEntropy::default()), vec![logits, targets])
        })
    },
    Family {
        shapes: LOGITS,
        large: &[],
        ..rows("cross_entropy_gradient", |sizes, dtype| {
            let [logits, targets] = logits_at(sizes, dtype);
            let single = |sizes: &[usize], x| Input::new(DType::F32, sizes, Fill::Even(x));
            // What normal logits give, on average.
            let lse = single(&sizes[..1], 0.5 + (sizes[1] as f32).ln());
            let op = CrossEntropyGradient { of: CrossEntropy::default(), overwrites: false };
            (Arc::new(op), vec![logits, targets, lse, single(&[], sizes[0] as f32), single(&[], 1.0)])
        })
    },
    attention("attention", |sizes, dtype| {
        let source = || Input::new(dtype, sizes, Fill::Normal);
        (Arc::new(Attention::causal()), vec![source(), source(), source()])
    }),
    attention("attention_gradient", |sizes, dtype| {
        let source = || Input::new(dtype, sizes, Fill::Normal);
        let rows = [sizes[0], sizes[2], sizes[1]];
        let lse = Input::new(DType::F32, &rows, Fill::Even(0.5 + (sizes[1] as f32).ln()));
        let inputs = vec![source(), source(), source(), source(), lse, source()];
        (Arc::new(AttentionGradient(Attention::causal())), inputs)
    }),
    line("gelu", |sizes, dtype| {
        (Arc::new(Pointwise::single("gelu", 0.0)), vec![Input::new(dtype, sizes, Fill::Normal)])
    }),
    rows("sum_of_rows", |sizes, dtype| {
        (Arc::new(Reduce { kind: reduce::Kind::Sum, axis: 1 }), vec![Input::new(dtype, sizes, Fill::Normal)])
    }),
    rows("sum_of_columns", |sizes, dtype| {
        (Arc::new(Reduce { kind: reduce::Kind::Sum, axis: 0 }), vec![Input::new(dtype, sizes, Fill::Normal)])
    }),
    Family { only: Some(DType::F32), ..line("adamw", |sizes, _| adamw_at(sizes)) },
];

const fn matmul(name: &'static str, make: Make) -> Family {
    let (rate, only) = (Rate::Flops, None);
    Family { name, axes: MATMUL_AXES, rate, only, shapes: &[], large: LARGE_CUBES, make }
}

/// Weights of codes, activations of floats.
const fn coded(name: &'static str, make: Make) -> Family {
    Family { shapes: LINEARS, ..matmul(name, make) }
}

const fn rows(name: &'static str, make: Make) -> Family {
    let (rate, only) = (Rate::Bytes, None);
    Family { name, axes: "ROWSxCOLUMNS", rate, only, shapes: ROWS, large: LARGE_ROWS, make }
}

const fn attention(name: &'static str, make: Make) -> Family {
    let (axes, rate, only) = ("BATCHxTIMExHEADSxSIZE", Rate::Flops, None);
    Family { name, axes, rate, only, shapes: HEADS, large: LARGE_HEADS, make }
}

const fn line(name: &'static str, make: Make) -> Family {
    let (rate, only) = (Rate::Bytes, None);
    Family { name, axes: "ELEMENTS", rate, only, shapes: LINES, large: LARGE_LINES, make }
}

fn matmul_at(form: Form, sizes: &[usize], dtype: DType) -> (Arc<dyn Operator>, Vec<Input>) {
    let [m, n, k] = [sizes[0], sizes[1], sizes[2]];
    let a = if form == Form::Tn { [k, m] } else { [m, k] };
    let b = if form == Form::Nt { [n, k] } else { [k, n] };
    let inputs = [a, b].map(|sizes| Input::new(dtype, &sizes, Fill::Normal));
    (Arc::new(Matmul::of(form, dtype, dtype)), inputs.into())
}

fn matmul_int8_at(sizes: &[usize]) -> (Arc<dyn Operator>, Vec<Input>) {
    let [m, n, k] = [sizes[0], sizes[1], sizes[2]];
    let codes = |rows| Input::new(DType::I8, &[rows, k], Fill::Below(256));
    let scales = |rows| Input::new(DType::F32, &[rows], Fill::Even(0.01));
    (Arc::new(MatmulInt8::default()), vec![codes(m), codes(n), scales(m), scales(n)])
}

fn coded_at(sizes: &[usize], packing: Packing, grid: Grid, group: usize) -> (Arc<dyn Operator>, Vec<Input>) {
    let [m, n, k] = [sizes[0], sizes[1], sizes[2]];
    let lowest = if packing == Packing::Bytes {
        -128
    } else if grid == Grid::Integers {
        -8
    } else {
        0
    };
    let layout = Layout { packing, grid, lowest, cols: k, group: group.min(k), has_offsets: false };
    let kinds = layout.types(n);
    let codes = Input::new(kinds[0].dtype, &kinds[0].shape, Fill::Below(1 << 32));
    let scales = Input::new(DType::F32, &kinds[1].shape, Fill::Even(0.01));
    (Arc::new(MatmulCoded::new(layout)), vec![Input::new(DType::F32, &[m, k], Fill::Normal), codes, scales])
}

fn logits_at(sizes: &[usize], dtype: DType) -> [Input; 2] {
    let targets = Input::new(DType::I32, &sizes[..1], Fill::Below(sizes[1]));
    [Input::new(dtype, sizes, Fill::Normal), targets]
}

/// All parameters in one tensor, at step 10.
fn adamw_at(sizes: &[usize]) -> (Arc<dyn Operator>, Vec<Input>) {
    let kind = optimizer::Kind::AdamW { betas: [0.9, 0.99], epsilon: 1e-8 };
    let op = Optimizer { kind, clip_value: None, rounding: None };
    let arena = |fill| Input::new(DType::F32, sizes, fill);
    let single = |count, fill| Input::new(DType::F32, &[count], fill);
    let scalars = single(SCALARS, Fill::Given(op.scalars(1e-4, 10).to_vec()));
    // The factor on the gradients, their norm, and that the update is to be made.
    let control = single(CONTROL, Fill::Given((0..CONTROL).map(|i| (i < 3) as u8 as f32).collect()));
    let segments = Input::new(DType::U32, &[sizes[0] / BLOCK], Fill::Below(1));
    let arenas = [Fill::Normal, Fill::Normal, Fill::Normal, Fill::Even(0.5)].map(arena);
    let rest = [segments, single(1, Fill::Even(0.1)), scalars, control];
    (Arc::new(op), arenas.into_iter().chain(rest).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_fits_its_operator_at_each_of_its_shapes() {
        let subjects = subjects("", &[], &[DType::F32, DType::F16], true).unwrap();
        assert!(subjects.len() > 100);
        for subject in subjects {
            let kinds: Vec<Type> = subject.inputs.iter().map(Input::kind).collect();
            let outputs = subject.op.signature(&kinds).unwrap_or_else(|e| panic!("{e}"));
            let cost = subject.op.cost(&kinds, &outputs);
            let rate = if subject.family.rate == Rate::Flops { cost.flops } else { cost.bytes };
            assert!(rate > 0.0, "{} at {}", subject.family.name, subject.shape);
        }
    }

    #[test]
    fn shapes_of_a_family_grow() {
        let work = |s: &Subject| {
            let kinds: Vec<Type> = s.inputs.iter().map(Input::kind).collect();
            let cost = s.op.cost(&kinds, &s.op.signature(&kinds).unwrap());
            if s.family.rate == Rate::Flops { cost.flops } else { cost.bytes }
        };
        let all = subjects("", &[], &[DType::F32], true).unwrap();
        for pair in all.windows(2).filter(|pair| pair[0].family.name == pair[1].family.name) {
            let name = pair[0].family.name;
            assert!(work(&pair[0]) <= work(&pair[1]), "{name}: {} {}", pair[0].shape, pair[1].shape);
        }
    }

    #[test]
    fn a_shape_that_is_none_and_one_of_another_family_are_refused() {
        let refused = |only: &str, shape: &str| {
            let error = subjects(only, &[shape.to_string()], &[DType::F32], false).err().unwrap();
            error.to_string()
        };
        for shape in ["", "x", "3x", "0x3", "axb", "-1x3", "99999999999x3", "1.5x2"] {
            assert!(refused("softmax", shape).contains("expected sizes"), "{shape}");
        }
        assert!(refused("softmax", "3x4x5").contains("ROWSxCOLUMNS"));
        assert!(refused("no such", "3x4").contains("matmul_nn"));
    }
}
