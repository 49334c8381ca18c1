//! Properties of the blocks; the bytes themselves are held against the reference in `kernels-tests`.

use super::*;
use crate::tensor::quant::{Coded, Origin};
use crate::tensor::random::Stream;

fn normal(count: usize) -> Vec<f32> {
    let mut stream = Stream::new(&[17]);
    (0..count).map(|_| stream.normal() as f32).collect()
}

fn relative_error(block: Block, x: &[f32]) -> f64 {
    let back = block.decode(&block.encode(x, x.len()).unwrap(), x.len()).unwrap();
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = x.iter().zip(&back).map(|(a, b)| square(a - b)).sum();
    (error / x.iter().map(|&v| square(v)).sum::<f64>()).sqrt()
}

#[test]
fn normal_numbers_lose_no_more_than_each_format_is_known_for() {
    let x = normal(1 << 16);
    // Measured with ggml's reference: .00538 and .0865; the marks of the searched formats are .075 and .025.
    for (block, most) in [
        (Block::Q8_0, 0.0055),
        (Block::Q4_0, 0.088),
        (Block::Q4_1, 0.08),
        (Block::Q5_0, 0.044),
        (Block::Q5_1, 0.04),
        (Block::Q4K, 0.075),
        (Block::Q6K, 0.025),
    ] {
        let error = relative_error(block, &x);
        assert!(error < most && error > most / 4.0, "{block}: {error}");
    }
}

#[test]
fn the_searched_formats_are_as_good_at_any_scale_and_on_one_side_of_zero() {
    for factor in [1e-2f32, 1e3] {
        let x: Vec<f32> = normal(4096).iter().map(|v| v * factor).collect();
        assert!(relative_error(Block::Q4K, &x) < 0.075 && relative_error(Block::Q6K, &x) < 0.025, "{factor}");
    }
    for sign in [1.0f32, -1.0] {
        let x: Vec<f32> = normal(4096).iter().map(|v| v.abs() * sign).collect();
        assert!(relative_error(Block::Q4K, &x) < 0.06 && relative_error(Block::Q6K, &x) < 0.025, "{sign}");
    }
}

#[test]
fn zeros_stay_zeros_and_a_constant_stays_near() {
    for block in Block::ALL.into_iter().filter(|block| block.can_encode()) {
        for value in [0.0f32, 3.0, -3.0] {
            let x = vec![value; 512];
            let back = block.decode(&block.encode(&x, 256).unwrap(), 256).unwrap();
            let off = back.iter().map(|b| (b - value).abs()).fold(0.0, f32::max);
            assert!(off <= value.abs() / 100.0, "{block} of {value}: off by {off}");
        }
    }
}

#[test]
fn tiny_huge_and_spiked_blocks_encode_without_panic_and_decode_finite_where_the_scale_is() {
    let spike =
        |at: usize, value: f32| (0..256).map(|i| if i == at { value } else { 1e-3 }).collect::<Vec<_>>();
    for block in Block::ALL.into_iter().filter(|block| block.can_encode()) {
        for x in [vec![1e-45; 256], vec![-1e-40; 256], spike(7, 6e4), spike(200, -6e4)] {
            let bytes = block.encode(&x, 256).unwrap();
            assert!(block.decode(&bytes, 256).unwrap().iter().all(|v| v.is_finite()), "{block} {}", x[0]);
        }
        for x in [spike(3, f32::MAX), vec![f32::MIN; 256]] {
            block.encode(&x, 256).unwrap();
        }
    }
}

#[test]
fn every_block_of_random_bytes_is_written_back_as_it_was_read() {
    let mut noise = Stream::new(&[3]);
    let bytes: Vec<u8> = (0..210 * 64).map(|_| noise.next_u64() as u8).collect();
    for (block, write) in [
        (Block::Q4K, large::write_q4 as fn(&_, &mut [u8])),
        (Block::Q6K, large::write_q6 as fn(&_, &mut [u8])),
    ] {
        for given in bytes.chunks_exact(block.size_bytes()) {
            let parts = if block == Block::Q4K { large::read_q4(given) } else { large::read_q6(given) };
            let mut written = vec![0xaa; given.len()];
            write(&parts, &mut written);
            assert_eq!(written, given, "{block}");
        }
    }
    for block in [Block::Q8_0, Block::Q4_0, Block::Q4_1, Block::Q5_0, Block::Q5_1] {
        let format = small::Format::of(block).unwrap();
        for given in bytes.chunks_exact(block.size_bytes()) {
            let mut written = vec![0xaa; given.len()];
            format.write(&format.read(given), &mut written);
            assert_eq!(written, given, "{block}");
        }
    }
}

#[test]
fn what_cannot_be_encoded_is_named() {
    let (x, mut spoiled) = (vec![1.0; 64], vec![1.0; 64]);
    spoiled[40] = f32::NAN;
    assert_eq!(Block::Q4_0.encode(&x, 16), Err(Error::Columns { block: "Q4_0", elements: 32, columns: 16 }));
    assert_eq!(Block::Q2K.encode(&[0.0; 256], 256), Err(Error::DecodeOnly { block: "Q2_K" }));
    assert!(matches!(Block::Q8_0.encode(&spoiled, 32), Err(Error::NotFinite { at: 40, .. })));
    spoiled[40] = f32::NEG_INFINITY;
    assert!(matches!(Block::F16.encode(&spoiled, 32), Err(Error::NotFinite { at: 40, .. })));
    assert!(matches!(Block::Q8_0.encode(&x[..33], 32), Err(Error::Size { got: 33, .. })));
    assert!(matches!(Block::Q8_0.decode(&[0; 35], 32), Err(Error::Size { got: 35, .. })));
    assert!(matches!(Block::Q8_0.decode(&[0; 34], 0), Err(Error::Size { got: 34, .. })));
    assert_eq!(Block::Q8_0.encode(&[], 0), Ok(vec![]));
}

#[test]
fn names_and_sizes_are_those_of_the_format() {
    // From GGML_QUANT_SIZES of the gguf package.
    let sizes = [4.0, 2.0, 2.0, 34.0, 18.0, 20.0, 22.0, 24.0, 84.0, 110.0, 144.0, 176.0, 210.0, 18.0];
    for (block, bytes) in Block::ALL.into_iter().zip(sizes) {
        assert_eq!(block.bits_per_weight(), bytes * 8.0 / block.elements() as f64, "{block}");
        assert_eq!(Block::named(&block.name().to_lowercase()), Some(block));
    }
    assert_eq!(Block::named("Q9_9"), None);
}

#[test]
fn blocks_become_codes_of_the_same_values_and_blocks_again() {
    let x: Vec<f32> = normal(4 * 512).iter().enumerate().map(|(i, v)| v * (1.0 + (i / 300) as f32)).collect();
    for block in Block::ALL.into_iter().filter(|block| block.can_encode() && !block.is_float()) {
        let bytes = block.encode(&x, 512).unwrap();
        let coded = block.unpack(&bytes, 512).unwrap();
        assert!(coded.is_sound(), "{block}");
        assert_eq!((coded.rows, coded.cols, Some(coded.group)), (4, 512, block.group()));
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(coded.decode()), bits(block.decode(&bytes, 512).unwrap()), "{block}");
        assert_eq!(block.pack(&coded).unwrap(), bytes, "{block}");
    }
}

#[test]
fn large_blocks_of_any_bytes_keep_their_values_as_codes_and_back() {
    let mut noise = Stream::new(&[5]);
    for block in [Block::Q4K, Block::Q6K] {
        let mut bytes: Vec<u8> = (0..64 * block.size_bytes()).map(|_| noise.next_u64() as u8).collect();
        for each in bytes.chunks_exact_mut(block.size_bytes()) {
            // Random halves would be infinite now and then.
            let halves = if block == Block::Q4K { 0..2 } else { 104..105 };
            halves.for_each(|h| each[2 * h..2 * h + 2].copy_from_slice(&f16::from_f32(0.37).to_le_bytes()));
        }
        let packed = block.pack(&block.unpack(&bytes, 256).unwrap()).unwrap();
        assert_eq!(block.decode(&packed, 256), block.decode(&bytes, 256), "{block}");
    }
}

#[test]
fn formats_that_are_only_decoded_become_codes_too() {
    let mut noise = Stream::new(&[6]);
    for block in [Block::Q2K, Block::Q3K, Block::Q5K, Block::Iq4Nl] {
        // The highest exponent bit of every possible half is cleared, so that none is infinite.
        let bytes: Vec<u8> = (0..32 * block.size_bytes()).map(|_| noise.next_u64() as u8 & 0xbf).collect();
        let coded = block.unpack(&bytes, block.elements()).unwrap();
        assert!(coded.is_sound(), "{block}");
        assert_eq!(coded.decode(), block.decode(&bytes, block.elements()).unwrap(), "{block}");
        assert!(matches!(block.pack(&coded), Err(Error::DecodeOnly { .. })));
    }
}

#[test]
fn codes_that_do_not_fit_a_format_are_refused() {
    let bytes = Block::Q4_0.encode(&normal(128), 64).unwrap();
    let coded = Block::Q4_0.unpack(&bytes, 64).unwrap();
    assert!(Block::Q8_0.pack(&coded).is_ok() && Block::Q5_0.pack(&coded).is_ok());
    let unfit = |block: Block, coded: &Coded| matches!(block.pack(coded), Err(Error::Unfit { .. }));
    assert!(unfit(Block::Q4_1, &coded) && unfit(Block::F16, &coded));
    let mut scaled = coded.clone();
    scaled.scales[1] = 0.1;
    assert!(unfit(Block::Q4_0, &scaled));
    let zeros = Coded { origin: Origin::Zeros(vec![0; 4]), ..coded.clone() };
    assert!(unfit(Block::Q4_0, &zeros));
    let rows = Coded { group: 64, scales: vec![0.5, 0.25], ..coded.clone() };
    assert_eq!(Block::Q4_0.decode(&Block::Q4_0.pack(&rows).unwrap(), 64).unwrap(), rows.decode());
    assert!(matches!(Block::Q8_0.unpack(&[0; 34], 33), Err(Error::Columns { .. })));
    let infinite = Block::Q8_0.encode(&[1e30; 32], 32).unwrap();
    assert!(matches!(Block::Q8_0.unpack(&infinite, 32), Err(Error::Scale { group: 0, .. })));
}

#[test]
fn rows_too_short_for_a_format_take_the_nearest_that_fits() {
    // `tensor_type_fallback` of llama.cpp.
    for (block, columns, expected) in [
        (Block::Q4K, 512, Block::Q4K),
        (Block::Q4K, 96, Block::Q5_0),
        (Block::Q6K, 96, Block::Q8_0),
        (Block::Q6K, 40, Block::F16),
        (Block::Q4_0, 40, Block::F16),
        (Block::F32, 7, Block::F32),
    ] {
        assert_eq!(block.fitting(columns), expected, "{block} {columns}");
    }
}

#[test]
fn blocks_of_zeros_of_either_sign_have_the_bytes_of_the_gguf_package() {
    // Made with gguf 0.19.0: weights that were pruned by a product with zero are such.
    let (mut first, mut last) = ([0.0f32; 32], [0.0f32; 32]);
    (first[0], last[31]) = (-0.0, -0.0);
    let head = |block: Block, x: &[f32]| block.encode(x, 32).unwrap()[..4].to_vec();
    assert_eq!(head(Block::Q4_0, &first), [0x00, 0x00, 0x88, 0x88]);
    assert_eq!(head(Block::Q4_0, &last), [0x00, 0x80, 0x88, 0x88]);
    assert_eq!(head(Block::Q4_1, &first), [0x00, 0x00, 0x00, 0x00]);
    assert_eq!(head(Block::Q4_1, &last), [0x00, 0x00, 0x00, 0x80]);
}
