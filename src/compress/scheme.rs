//! Schemes by the names that users of such tools know.

use super::{Error, Result};
use crate::ops::coded::{Activations, FixedScale};
use crate::ops::quantize_rows::Rule;
use crate::tensor::DType;
use crate::tensor::quant::blocks::Block;
use crate::tensor::quant::{Scheme, Share};

/// How a weight is stored under a scheme.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// As f32.
    Single,
    /// In f16 or bf16.
    Halves(DType),
    /// As codes.
    Codes {
        /// Which codes.
        scheme: Scheme,
        /// What meets them in a product.
        activations: Activations,
    },
    /// In blocks of GGUF.
    Blocks(Block),
}

/// A scheme with its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Named {
    /// As it is written.
    pub name: &'static str,
    /// One line on what it is.
    pub about: &'static str,
    /// How weights are stored.
    pub form: Form,
}

impl Named {
    /// Whether scales of activations are to be measured.
    pub fn measures(&self) -> bool {
        matches!(self.form, Form::Codes { activations: Activations::Fixed(..), .. })
    }

    /// This scheme, or for rows that are no whole blocks of it the one llama.cpp takes instead.
    pub fn fitting(self, cols: usize) -> Named {
        let Form::Blocks(block) = self.form else { return self };
        let name = match block.fitting(cols) {
            Block::F16 => "f16",
            fitting => fitting.name(),
        };
        named(name).unwrap_or(self)
    }

    /// Bits that one weight takes in a row of `cols`, scales and zeros in.
    pub fn bits_per_weight(&self, rows: usize, cols: usize) -> f64 {
        match self.form {
            Form::Single => 32.0,
            Form::Halves(_) => 16.0,
            Form::Codes { scheme, .. } => scheme.bits_per_weight(rows, cols),
            Form::Blocks(block) => match self.fitting(cols).form {
                Form::Halves(_) => 16.0,
                Form::Blocks(fitting) => fitting.bits_per_weight(),
                _ => block.bits_per_weight(),
            },
        }
    }
}

const fn codes(name: &'static str, about: &'static str, scheme: Scheme) -> Named {
    Named { name, about, form: Form::Codes { scheme, activations: Activations::Numbers } }
}

const fn blocks(name: &'static str, about: &'static str, block: Block) -> Named {
    Named { name, about, form: Form::Blocks(block) }
}

const ALL: &[Named] = &[
    Named { name: "f32", about: "32-bit floats: nothing changes", form: Form::Single },
    Named { name: "f16", about: "16-bit floats", form: Form::Halves(DType::F16) },
    Named { name: "bf16", about: "16-bit floats with the range of f32", form: Form::Halves(DType::BF16) },
    codes("int8", "8 bits, a scale for each output", Scheme::symmetric(8, Share::Row)),
    codes(
        "int8-asym",
        "8 bits from the least to the greatest weight of each output",
        Scheme::asymmetric(8, Share::Row),
    ),
    Named {
        name: "W8A8",
        about: "weights and activations in 8 bits, scales by output and by token",
        form: Form::Codes {
            scheme: Scheme { lowest: -127, ..Scheme::symmetric(8, Share::Row) },
            activations: Activations::Rows(Rule::Narrow),
        },
    },
    Named {
        name: "W8A8-static",
        about: "the same with scales of activations that a text was measured for",
        form: Form::Codes {
            scheme: Scheme { lowest: -127, ..Scheme::symmetric(8, Share::Row) },
            activations: Activations::Fixed(Rule::Narrow, FixedScale::UNKNOWN),
        },
    },
    codes("int4-g32", "4 bits, a scale for each 32 weights", Scheme::wide(4, Share::Group(32))),
    codes("int4-g64", "4 bits, a scale for each 64 weights", Scheme::wide(4, Share::Group(64))),
    codes("int4-g128", "4 bits, a scale for each 128 weights", Scheme::wide(4, Share::Group(128))),
    codes(
        "int4-g32-asym",
        "4 bits, scale and zero for each 32 weights",
        Scheme::asymmetric(4, Share::Group(32)),
    ),
    codes(
        "int4-g128-asym",
        "4 bits, scale and zero for each 128 weights",
        Scheme::asymmetric(4, Share::Group(128)),
    ),
    codes("int4-row", "4 bits, scale and zero for each output", Scheme::asymmetric(4, Share::Row)),
    codes("int3", "3 bits, scale and zero for each output", Scheme::asymmetric(3, Share::Row)),
    codes("int3-g32", "3 bits, scale and zero for each 32 weights", Scheme::asymmetric(3, Share::Group(32))),
    codes("nf4", "4-bit NormalFloat, scales of 64 weights in 8 bits (QLoRA)", Scheme::normal_float(64, true)),
    blocks("Q8_0", "GGUF blocks of 32, 8 bits", Block::Q8_0),
    blocks("Q4_0", "GGUF blocks of 32, 4 bits", Block::Q4_0),
    blocks("Q4_1", "GGUF blocks of 32, 4 bits with a minimum", Block::Q4_1),
    blocks("Q5_0", "GGUF blocks of 32, 5 bits", Block::Q5_0),
    blocks("Q5_1", "GGUF blocks of 32, 5 bits with a minimum", Block::Q5_1),
    blocks("Q4_K", "GGUF blocks of 256, 4 bits", Block::Q4K),
    blocks("Q6_K", "GGUF blocks of 256, 6 bits", Block::Q6K),
];

/// Other names that are in use.
const ALIASES: &[(&str, &str)] = &[
    ("int4", "int4-g32"),
    ("fp16", "f16"),
    ("fp32", "f32"),
    ("W8A16", "int8"),
    ("W4A16", "int4-g128"),
    ("W4A16_ASYM", "int4-g128-asym"),
];

/// Names of all schemes.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|scheme| scheme.name).collect()
}

/// The scheme of that name; case does not matter.
pub fn named(name: &str) -> Result<Named> {
    let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
    let wanted = alias.map_or(name, |(_, meant)| meant);
    let found = ALL.iter().find(|scheme| scheme.name.eq_ignore_ascii_case(wanted)).copied();
    found.ok_or_else(|| Error::Scheme { name: name.to_string(), known: names().join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_whatever_their_case_and_unknown_ones_told_with_the_nearest() {
        assert_eq!(named("w8a8").unwrap().name, "W8A8");
        assert_eq!(named("INT4").unwrap().name, "int4-g32");
        assert!(ALIASES.iter().all(|(alias, _)| named(alias).is_ok()));
        let error = named("Q8_O").unwrap_err().to_string();
        assert!(error.contains("did you mean `Q8_0`"), "{error}");
        assert!(named("xyzzy").unwrap_err().to_string().contains("nf4"));
    }

    #[test]
    fn every_scheme_of_codes_is_sound() {
        for scheme in ALL {
            if let Form::Codes { scheme: codes, .. } = scheme.form {
                codes.check().unwrap();
            }
            assert!(scheme.bits_per_weight(512, 512) <= 32.0);
        }
    }
}
