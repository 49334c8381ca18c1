// bias: what Adam's moments fall short of, in updates that were made
//
// The scalars count every step. Steps that were skipped moved no moment, so where there were any the corrections are made anew
// for those that were not. The importing shader binds scalars (rate, bias1, bias2, first, step, ln beta1, ln beta2) and control.

// 1 - exp(x) for x <= 0: near zero by its series, since the difference would cancel.
fn one_less_exp(x: f32) -> f32 {
    if x < -0.25 { return 1.0 - exp(x); }
    return -x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0 * (1.0 + x / 6.0)))));
}

// Factors on the first moment and on the root of the second.
fn corrections() -> vec2<f32> {
    let skipped = control[5];
    if skipped == 0.0 { return vec2<f32>(scalars[1], scalars[2]); }
    let made = scalars[4] - skipped;
    let missing = vec2<f32>(one_less_exp(made * scalars[5]), one_less_exp(made * scalars[6]));
    return vec2<f32>(1.0 / missing.x, 1.0 / sqrt(missing.y));
}
