// math: functions WGSL lacks, over V = f32 or vec4<f32> (the importing shader declares V)

// Error function, Abramowitz and Stegun 7.1.26 refined: below 1 the Maclaurin series (7.1.5), above it the rational
// form, so that the absolute error stays under 2e-7 and the relative error near zero stays small.
fn erf(x: V) -> V {
    let a = min(abs(x), V(4.0));
    let q = a * a;
    let series = x * (V(1.128379167) + q * (V(-0.376126389) + q * (V(0.112837917) + q * (V(-0.026866171)
        + q * (V(0.005223978) + q * (V(-0.000854833) + q * (V(0.000120553) + q * V(-0.000014926))))))));
    // 1 - t-polynomial * exp(-a^2), W. J. Cody's shape with coefficients of 7.1.28: (1 + a1 x + .. + a6 x^6)^-16.
    let p = V(1.0) + a * (V(0.0705230784) + a * (V(0.0422820123) + a * (V(0.0092705272)
        + a * (V(0.0001520143) + a * (V(0.0002765672) + a * V(0.0000430638))))));
    let p2 = p * p;
    let p4 = p2 * p2;
    let p8 = p4 * p4;
    let rational = sign(x) * (V(1.0) - V(1.0) / (p8 * p8));
    return select(rational, series, a < V(0.9));
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
