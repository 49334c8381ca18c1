//! The sixteen values of the 4-bit NormalFloat (QLoRA, arXiv 2305.14314): quantiles of a normal distribution within -1..=1.

/// The values in rising order; a code is a number in this table.
pub const NORMAL_FLOAT: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Code of the value nearest to `x`, the lower of two that are equally near.
pub fn nearest_normal_float(x: f32) -> i8 {
    let mut best = 0;
    for (code, value) in NORMAL_FLOAT.iter().enumerate() {
        if (x - value).abs() < (x - NORMAL_FLOAT[best]).abs() {
            best = code;
        }
    }
    best as i8
}
