//! GGUF blocks against the PyPI package `gguf`: the bytes of every encoder it has, the floats of every decoder.
//!
//! Cases stand in `dev/quant/gguf_blocks.*` of the golden folder.

mod golden;

use kiln::tensor::quant::blocks::Block;
use libtest_mimic::{Arguments, Failed, Trial};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// Those of its encoders that give bytes: the package has none for the large blocks.
const ENCODED: &[Block] = &[Block::BF16, Block::Q8_0, Block::Q4_0, Block::Q4_1, Block::Q5_0, Block::Q5_1];
const DECODED: &[Block] = &[Block::Q2K, Block::Q3K, Block::Q4K, Block::Q5K, Block::Q6K, Block::Iq4Nl];

fn main() {
    let arguments = Arguments::from_args();
    let file = golden::folder().join("dev/quant/gguf_blocks.safetensors");
    let absent = golden::is_absent(&file);
    let mut trials = vec![];
    let mut add = |name: String, check: fn(&Path, Block) -> Result<(), Failed>, block: Block| {
        let file: PathBuf = file.clone();
        trials.push(Trial::test(name, move || check(&file, block)).with_ignored_flag(absent));
    };
    for &block in ENCODED {
        add(format!("{block}_has_the_bytes"), encodes, block);
        add(format!("{block}_has_the_floats"), decodes, block);
    }
    for &block in DECODED {
        add(format!("{block}_has_the_floats"), decodes, block);
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn encodes(file: &Path, block: Block) -> Result<(), Failed> {
    let x = golden::tensors(file, "x")?.remove("").ok_or("no `x`")?;
    let got = block.encode(x.real::<f32>(), x.shape[1])?;
    let (expected, _) = bytes(file, &format!("{block}.bytes"))?;
    match got.iter().zip(&expected).position(|(g, e)| g != e) {
        _ if got.len() != expected.len() => Err(format!("{} bytes of {}", got.len(), expected.len()).into()),
        Some(at) => Err(format!("byte {at} is {:#x}, expected {:#x}", got[at], expected[at]).into()),
        None => Ok(()),
    }
}

fn decodes(file: &Path, block: Block) -> Result<(), Failed> {
    let prefix = if ENCODED.contains(&block) { "" } else { "rand_" };
    let (bytes, row) = bytes(file, &format!("{block}.{prefix}bytes"))?;
    let expected =
        golden::tensors(file, &format!("{block}.{prefix}dequant"))?.remove("").ok_or("no floats")?;
    let columns = row / block.size_bytes() * block.elements();
    let got = block.decode(&bytes, columns)?;
    let expected: &[f32] = expected.real();
    match got.iter().zip(expected).position(|(g, e)| g.to_bits() != e.to_bits()) {
        _ if got.len() != expected.len() || got.is_empty() => Err(format!("{} floats", got.len()).into()),
        Some(at) => Err(format!("[{at}] is {:e}, expected {:e}", got[at], expected[at]).into()),
        None => Ok(()),
    }
}

/// Bytes of a tensor, and how many a row has.
fn bytes(file: &Path, name: &str) -> Result<(Vec<u8>, usize), Failed> {
    let whole = std::fs::read(file)?;
    let tensors = SafeTensors::deserialize(&whole)?;
    let view = tensors.tensor(name)?;
    Ok((view.data().to_vec(), view.shape()[1]))
}
