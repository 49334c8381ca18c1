//! What pruning removes and makes of a matrix, against torch.nn.utils.prune, Wanda and SparseGPT of their authors.
//!
//! Cases stand in `dev/prune` of the golden folder. Masks must be equal bit by bit: the smallest relative distance of two scores
//! that a threshold parts is 2.7e-4. Weights that SparseGPT moved may be off by 1e-4 of the largest.

mod golden;

use kiln::compress::Gram;
use kiln::compress::prune::{SparseGpt, sparsegpt, torch, wanda};
use kiln::tensor::mask::Mask;
use kiln::tensor::sparse::{Scope, Sparsity, magnitude};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::Path;

/// Relative to the largest weight.
const WEIGHTS: f32 = 1e-4;
/// Columns for which the golden case chose together, and its damping.
const SETTINGS: SparseGpt = SparseGpt { damping: 0.01, block: 32, inclusive: false };

type Check = fn(&Case) -> Result<(), Failed>;

const CHECKS: &[(&str, Check)] = &[
    ("magnitude_of_a_layer", |case| case.same("magnitude_50", &case.magnitude("0.5")?)),
    ("magnitude_in_groups", |case| case.same("magnitude_2_4", &case.magnitude("2:4")?)),
    ("l1_unstructured_of_torch", |case| {
        case.same("torch_l1_30", &torch::l1_unstructured(&case.weight, case.cols, 0.3)?)
    }),
    ("ln_structured_of_torch", |case| {
        let mask = torch::ln_structured(&case.weight, case.cols, 0.25, 2.0, torch::Slices::Rows)?;
        case.same("torch_l2_rows_25", &mask)
    }),
    ("wanda_half", |case| case.same("wanda_50", &case.wanda("0.5")?)),
    ("wanda_a_third", |case| case.same("wanda_30", &case.wanda("0.3")?)),
    ("wanda_two_of_four", |case| case.same("wanda_2_4", &case.wanda("2:4")?)),
    ("wanda_four_of_eight", |case| case.same("wanda_4_8", &case.wanda("4:8")?)),
    ("sparsegpt_half", |case| case.sparsegpt("sparsegpt_50_exact_k", "0.5", SETTINGS)),
    ("sparsegpt_half_as_the_authors_count", |case| {
        case.sparsegpt("sparsegpt_50", "0.5", SparseGpt { inclusive: true, ..SETTINGS })
    }),
    ("sparsegpt_two_of_four", |case| case.sparsegpt("sparsegpt_2_4", "2:4", SETTINGS)),
];

struct Case {
    tensors: golden::Tensors,
    weight: Vec<f32>,
    gram: Gram,
    cols: usize,
}

fn main() {
    let arguments = Arguments::from_args();
    let file = golden::folder().join("dev/prune/prune.safetensors");
    let absent = golden::is_absent(&file);
    let trial = |&(name, check): &(&str, Check)| {
        let file = file.clone();
        Trial::test(name, move || check(&Case::open(&file)?)).with_ignored_flag(absent)
    };
    let trials = CHECKS.iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit();
}

fn sparsity(text: &str) -> Result<Sparsity, Failed> {
    match text.parse::<f64>() {
        Ok(share) => Ok(Sparsity::Share(share)),
        Err(_) => Ok(Sparsity::Pattern(text.parse()?)),
    }
}

impl Case {
    fn open(file: &Path) -> Result<Case, Failed> {
        let tensors = golden::tensors(file, "")?;
        let (weight, inputs) = (&tensors["W"], &tensors["X"]);
        let cols = weight.shape[1];
        let gram = Gram::of(inputs.real::<f32>(), cols);
        Ok(Case { weight: weight.real::<f32>().to_vec(), gram, cols, tensors })
    }

    fn magnitude(&self, text: &str) -> Result<Mask, Failed> {
        Ok(magnitude(&self.weight, self.cols, sparsity(text)?, Scope::Layer)?)
    }

    fn wanda(&self, text: &str) -> Result<Mask, Failed> {
        Ok(wanda(&self.weight, &self.gram, sparsity(text)?)?)
    }

    fn sparsegpt(&self, name: &str, text: &str, settings: SparseGpt) -> Result<(), Failed> {
        let made = sparsegpt(&self.weight, &self.gram, sparsity(text)?, &settings, None)?;
        self.same(name, &made.mask)?;
        let expected = self.tensors[&format!("{name}.W")].real::<f32>();
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let off = made.matrix.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        println!("{name}: off by {:e} of {largest}", off);
        match off <= WEIGHTS * largest {
            true => Ok(()),
            false => Err(format!("a weight is off by {off:e}, the largest is {largest}").into()),
        }
    }

    /// Compares with `name.mask_pruned`, or with what `name.mask_kept` leaves.
    fn same(&self, name: &str, mask: &Mask) -> Result<(), Failed> {
        let (bits, set) = match self.tensors.get(&format!("{name}.mask_pruned")) {
            Some(bits) => (bits, 1),
            None => (&self.tensors[&format!("{name}.mask_kept")], 0),
        };
        let bits = bits.as_i32();
        if bits.len() != mask.rows() * mask.cols() {
            return Err(format!("{} bits, expected {}", mask.rows() * mask.cols(), bits.len()).into());
        }
        match (0..bits.len()).find(|&at| mask.is_removed(at) != (bits[at] == set)) {
            None => Ok(()),
            Some(at) => Err(format!("row {}, column {} differs", at / self.cols, at % self.cols).into()),
        }
    }
}
