//! The 8-bit dynamic map by arithmetic: its codes are found without a search, so kernels need no table.
//!
//! A code is the number of an entry of [`dynamic_map`] less 128, so codes rise with what they stand for. In decade d of seven
//! there are `2^e` entries, e = d for the map of both signs and d + 1 for the other: `10^(d - 6) (0.1 + 0.9 (j + 1/2) / 2^e)`.

use crate::tensor::Real;
use crate::tensor::quant::dynamic_map;
use std::fmt::Write;
use std::sync::LazyLock;

/// Decades of the map.
const DECADES: usize = 7;

/// Values by code plus 128: of the map of both signs, then of the other.
pub(super) static TABLES: LazyLock<[[f32; 256]; 2]> =
    LazyLock::new(|| [dynamic_map(true), dynamic_map(false)]);

/// Ends of the decades: halfway from zero to the first entry, from the last entry of each to the first of the next, and from the
/// last of all to one.
pub(super) static ENDS: LazyLock<[[f64; DECADES + 1]; 2]> = LazyLock::new(|| [ends(0), ends(1)]);

/// `10^(6 - d) / 0.9`
pub(super) const FACTORS: [f64; DECADES] =
    [1e6 / 0.9, 1e5 / 0.9, 1e4 / 0.9, 1e3 / 0.9, 1e2 / 0.9, 1e1 / 0.9, 1.0 / 0.9];

fn ends(more: u32) -> [f64; DECADES + 1] {
    let entry =
        |decade: usize, at: f64, count: f64| 10f64.powi(decade as i32 - 6) * (0.1 + 0.9 * (at + 0.5) / count);
    let count = |decade: usize| f64::from(1u32 << (decade as u32 + more));
    let first = |decade| if decade == DECADES { 1.0 } else { entry(decade, 0.0, count(decade)) };
    let last = |decade: usize| entry(decade, count(decade) - 1.0, count(decade));
    std::array::from_fn(|d| if d == 0 { first(0) / 2.0 } else { (last(d - 1) + first(d)) / 2.0 })
}

/// Number of a magnitude among those of the map, zero for zero; the signed map has no -1.
#[inline(always)]
fn number<R: Real>(t: R, more: u32, ends: &[R; DECADES + 1], factors: &[R; DECADES]) -> u32 {
    if t.wide() <= ends[0].wide() {
        return 0;
    }
    let decade = ends[1..DECADES].iter().map(|end| u32::from(t > *end)).sum::<u32>();
    let count = 1u32 << (decade + more);
    let place = (t * factors[decade as usize] - R::of(1.0 / 9.0)) * R::of(count.into());
    let at = (place.wide() as i64).clamp(0, i64::from(count) - 1);
    count + at as u32 + u32::from(t > ends[DECADES])
}

/// The code nearest to x, in -1..=1, or in 0..=1 for the unsigned map.
#[inline(always)]
pub(super) fn code<R: Real>(x: R, is_signed: bool, ends: &[R; DECADES + 1], factors: &[R; DECADES]) -> i8 {
    match is_signed {
        true => {
            let is_negative = x < R::default();
            let number = number(if is_negative { -x } else { x }, 0, ends, factors) as i32;
            (if is_negative { -1 - number.min(127) } else { number - 1 }) as i8
        }
        false => (number(x, 1, ends, factors).max(1) as i32 - 129) as i8,
    }
}

/// Ends and factors in a precision, of the map of both signs and of the other.
pub(super) fn constants<R: Real>() -> ([[R; DECADES + 1]; 2], [R; DECADES]) {
    (ENDS.map(|ends| ends.map(R::of)), FACTORS.map(R::of))
}

/// The same in a shader: `code_of(x, map)` and `value_of(code, map)` with map 0 for both signs, 1 for the other.
pub(super) fn text() -> String {
    let mut text = String::from("fn power(decade: u32) -> f32 {\n    var p = 1e-6;\n");
    for decade in 1..DECADES {
        let _ = writeln!(text, "    p = select(p, 1e{}, decade >= {decade}u);", decade as i32 - 6);
    }
    text.push_str("    return p;\n}\nfn factor(decade: u32) -> f32 {\n");
    let _ = writeln!(text, "    var f = {:e};", FACTORS[0] as f32);
    for (decade, factor) in FACTORS.iter().enumerate().skip(1) {
        let _ = writeln!(text, "    f = select(f, {:e}, decade >= {decade}u);", *factor as f32);
    }
    text.push_str("    return f;\n}\n");
    for (name, ends) in ["both", "above"].into_iter().zip(ENDS.iter()) {
        let _ = writeln!(text, "fn decade_{name}(t: f32) -> u32 {{\n    var d = 0u;");
        for end in &ends[1..DECADES] {
            let _ = writeln!(text, "    d += u32(t > {:e});", *end as f32);
        }
        text.push_str("    return d;\n}\n");
    }
    let [both, above] = ENDS.map(|ends| [ends[0], ends[DECADES]].map(|end| end as f32));
    let _ = writeln!(
        text,
        "fn ends(above: bool) -> vec2<f32> {{ return select(vec2<f32>({:e}, {:e}), vec2<f32>({:e}, {:e}), above); }}",
        both[0], both[1], above[0], above[1]
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random::Stream;

    #[test]
    fn the_code_found_by_arithmetic_stands_for_the_nearest_value() {
        let (ends, factors) = constants::<f32>();
        let mut random = Stream::new(&[8]);
        for (map, table) in TABLES.iter().enumerate() {
            let spread = |x: f64| (10f64.powf(-8.0 * x)) as f32;
            let mut inputs: Vec<f32> = (0..4000).map(|_| spread(random.uniform())).collect();
            inputs.extend(table.iter().chain(&[0.0, 1.0, 1e-30]));
            if map == 0 {
                inputs.extend(inputs.clone().iter().map(|x| -x));
            }
            for x in inputs {
                let got = table[(i32::from(code(x, map == 0, &ends[map], &factors)) + 128) as usize];
                let best = table.iter().map(|value| (x - value).abs()).fold(f32::INFINITY, f32::min);
                let off = (x - got).abs() - best;
                assert!(off <= 1e-6 * x.abs(), "map {map}: {x} became {got}, {off} from the nearest");
            }
        }
    }
}
