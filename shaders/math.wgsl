// math: functions WGSL lacks, over V = f32 or vec4<f32> (the importing shader declares V)

// Error function below 1: x + x p(x^2). Coefficients here and below as in src/ops/fast/math.rs, within 2 units in the last place.
fn erf_near(x: V) -> V {
    let q = x * x;
    let p = V(0.12837917) + q * (V(-0.37612626) + q * (V(0.112835974) + q * (V(-0.026854329)
        + q * (V(0.0051893122) + q * (V(-0.0008018855) + q * V(0.00007882497))))));
    return x + x * p;
}

// 1 - erf(a) from 1 on: e^(-a^2) times a polynomial in 1 / (1 + a / 2). Nothing is taken from one, so that small results are exact.
fn erfc_far(a: V) -> V {
    let t = V(1.0) / (V(1.0) + 0.5 * a);
    let p = V(0.00053875055) + t * (V(0.27445543) + t * (V(0.32657173) + t * (V(0.11274845)
        + t * (V(0.38665774) + t * (V(-0.043767177) + t * V(-0.057963364))))));
    return p * exp(-a * a);
}

// Beyond 10 both are what they are at 10.
fn erf(x: V) -> V {
    let a = min(abs(x), V(10.0));
    return select(sign(x) * (V(1.0) - erfc_far(a)), erf_near(x), a < V(1.0));
}

// Share of the normal distribution below x: (1 + erf(x / sqrt 2)) / 2.
fn normal_below(x: V) -> V {
    let z = x * 0.70710678;
    let a = min(abs(z), V(10.0));
    let tail = 0.5 * erfc_far(a);
    return select(select(tail, V(1.0) - tail, z > V(0.0)), V(0.5) + 0.5 * erf_near(z), a < V(1.0));
}

// up * d/dx of x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
fn gelu_tanh_gradient(x: V, up: V) -> V {
    let s = V(1.0) / (V(1.0) + exp(-1.5957691 * (x + 0.044715 * x * x * x)));
    return up * s * (V(1.0) + x * (V(1.0) - s) * 1.5957691 * (V(1.0) + 0.134145 * x * x));
}

// up * d/dx of x * sigmoid(x)
fn silu_gradient(x: V, up: V) -> V {
    let s = V(1.0) / (V(1.0) + exp(-x));
    return up * s * (V(1.0) + x * (V(1.0) - s));
}
