//! Kernels by cooperative matrices on an adapter that has none: every lane of a subgroup plays the whole matrix.
//!
//! A matrix becomes an array that each lane holds alone, and the operations loops over it. What this proves is all that kiln
//! writes around them: staging, places, tails, sums, stores. That a driver multiplies matrices rightly it does not prove.

use kiln::gpu::qualify::Trial;
use kiln::gpu::{Gpu, Pipelines};
use kiln::ops::launch::{Caps, Cooperative, Variant};
use kiln::ops::matmul;
use kiln::tensor::DType;
use libtest_mimic::Failed;
use std::sync::Arc;

/// Why it cannot run here, if so.
pub fn missing(gpu: &Gpu) -> Option<&'static str> {
    let one_size = gpu.caps().subgroup && gpu.caps().subgroup_size > 0;
    (!one_size).then_some("the adapter has no subgroups of one size")
}

/// Several tiles with tails, in each form, in 8 x 8 matrices of f32 with one staging buffer. `KILN_ALL_MATRICES` adds two
/// buffers, 16 x 16 matrices of f16 and the larger tiles, which take the driver half a minute each to compile.
pub fn played_by_lanes(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let pipelines = Pipelines::new(gpu);
    let all = std::env::var_os("KILN_ALL_MATRICES").is_some();
    let mut ran = std::collections::BTreeMap::<String, usize>::new();
    let settings = [(8, DType::F32, 16 << 10), (8, DType::F32, 48 << 10), (16, DType::F16, 48 << 10)];
    for (side, operands, max_workgroup_bytes) in settings.into_iter().take(if all { 3 } else { 1 }) {
        let caps = Caps {
            is_cpu: false,
            subgroup_most: gpu.caps().subgroup_size,
            max_workgroup_bytes,
            cooperative: vec![Cooperative { side, operands, sums: DType::F32 }],
            ..gpu.caps().clone()
        };
        for case in matmul::cases().list.into_iter().filter(|c| c.label.contains("m264 n136 k72")) {
            let Ok(trial) = Trial::new(&case, operands) else { continue };
            for variant in case.op.launch(&trial.kinds(), &trial.outputs, &caps) {
                let large = variant.name.ends_with("large");
                if !variant.launches[0].kernel.needs_cooperative() || (large && !all) {
                    continue;
                }
                let played = played(variant, side);
                let buffers = if text(&played, "TURN").contains("Barrier") { 1 } else { 2 };
                let name = format!("{} {side} {operands}, {buffers} buffers", played.name);
                trial
                    .check(gpu, &pipelines, &case, &played)
                    .map_err(|problem| format!("{name}, {}: {problem}", case.label))?;
                *ran.entry(name).or_default() += 1;
            }
        }
    }
    if ran.len() < if all { 5 } else { 1 } || ran.values().any(|&count| count != 3) {
        return Err(format!("too few kernels ran: {ran:?}").into());
    }
    Ok(())
}

fn text<'a>(variant: &'a Variant, name: &str) -> &'a str {
    let found = variant.launches[0].kernel.paste.iter().find(|(n, _)| *n == name);
    found.map(|(_, text)| text.as_str()).unwrap_or_default()
}

/// The variant with loops in the place of matrices.
fn played(mut variant: Variant, side: u32) -> Variant {
    let vectors = text(&variant, "STAGING").contains("vec4<Operand>");
    for (name, text) in &mut variant.launches[0].kernel.paste {
        *text = text.lines().map(|line| line_of(line, side) + "\n").collect();
        if *name == "STAGING" {
            *text += &operations(side, vectors);
        }
    }
    variant
}

/// One line of the kernel: matrices become arrays, and each operation a call that takes them by reference.
fn line_of(line: &str, side: u32) -> String {
    let array = format!("array<f32, {}>", side * side);
    if let Some((target, call)) = line.split_once(" = coopMultiplyAdd(") {
        let (a, rest) = call.split_once(", ").expect("three operands");
        let (b, _) = rest.split_once(", ").expect("three operands");
        return format!("multiply_add(&{a}, &{b}, &{target});");
    }
    if let Some((target, call)) = line.split_once(" = coopLoad") {
        let name = target.trim_start_matches("let ");
        let rows = if call.starts_with('T') { "rows" } else { "columns" };
        let (tile, place) =
            call.split_once("(&").and_then(|(_, rest)| rest.split_once("_tile[")).expect("a tile");
        let (place, pitch) = place.rsplit_once("], ").expect("a place and a pitch");
        return format!("var {name}: {array};\nload_{rows}_{tile}(&{name}, {place}, {pitch}");
    }
    if let Some((name, _)) = line.split_once(&format!(" = coop_mat{side}x{side}<f32, C>()")) {
        return format!("{name}: {array};");
    }
    match line.strip_prefix("coopStoreT(") {
        Some(rest) => format!("store_sums(&{}", rest.replace("&sums[own * AREA]", "own * AREA")),
        None => line.to_string(),
    }
}

/// The operations on arrays, row by row; a load by columns exchanges the axes. Their loops have bounds that no compiler knows,
/// so that none unrolls them, and few turns: lavapipe ends an invocation's loops after 65,535 of them in all.
fn operations(side: u32, vectors: bool) -> String {
    let area = side * side;
    let all = format!("{area}u * min(params.tiles, 1u)");
    let matrix = format!("ptr<function, array<f32, {area}>>");
    let terms: String = (0..side)
        .map(|k| format!(" + (*a)[e / {side}u * {side}u + {k}u] * (*b)[{k}u * {side}u + e % {side}u]"))
        .collect();
    let mut text = format!(
        "fn multiply_add(a: {matrix}, b: {matrix}, c: {matrix}) {{
    for (var e = 0u; e < {all}; e += 1u) {{
        let sum = (*c)[e]{terms};
        (*c)[e] = sum;
    }}
}}
fn store_sums(matrix: {matrix}, place: u32, pitch: u32) {{
    for (var e = 0u; e < {all}; e += 1u) {{ sums[place + e / {side}u * pitch + e % {side}u] = (*matrix)[e]; }}
}}
"
    );
    for tile in ["a", "b"] {
        for (name, line, along) in [("rows", "e / SIDE", "e % SIDE"), ("columns", "e % SIDE", "e / SIDE")] {
            let element = match vectors {
                true => format!("{tile}_tile[place + {line} * pitch + {along} / 4u][{along} % 4u]"),
                false => format!("{tile}_tile[place + {line} * pitch + {along}]"),
            };
            text += &format!(
                "fn load_{name}_{tile}(matrix: {matrix}, place: u32, pitch: u32) {{
    for (var e = 0u; e < {all}; e += 1u) {{ (*matrix)[e] = f32({element}); }}
}}\n"
            );
        }
    }
    text
}
