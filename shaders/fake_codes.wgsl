// fake_codes: the exact quotient of an element by its scale, and its code less the zero point
//
// Params has the bounds `lowest` and `highest`; `zero_of` is pasted in.

struct Exact { quotient: f32, zero: f32, rounded: f32 }

fn exact(x: f32, scale: f32, line: u32) -> Exact {
    let zero = zero_of(line);
    let quotient = select(x / scale, 0.0, scale == 0.0);
    return Exact(quotient, zero, round(quotient) + zero);
}

fn is_inside(e: Exact) -> bool { return e.rounded >= params.lowest && e.rounded <= params.highest; }

fn code_of(e: Exact) -> f32 { return clamp(e.rounded, params.lowest, params.highest) - e.zero; }
