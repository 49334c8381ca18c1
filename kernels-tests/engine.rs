//! The engine on a device against the host: same plans, same values, no memory taken inside the loop.
//!
//! `KILN_DEVICE` picks the adapter; without one the trials are ignored, or fail if `KILN_REQUIRE_GPU=1`.

#[path = "engine/matrices.rs"]
mod matrices;

use kiln::gpu::bytes::pack;
use kiln::gpu::run::Bench;
use kiln::gpu::tune::Mode;
use kiln::gpu::{Gpu, GpuEngine, Ledger, Pipelines, Tuner};
use kiln::graph::{Graph, Node, gradient};
use kiln::ops::cast::Cast;
use kiln::ops::cross_entropy::{CrossEntropy, CrossEntropyEmit};
use kiln::ops::launch::{Bind, Caps, Variant};
use kiln::ops::matmul::MatmulEmit;
use kiln::ops::matmul_int8::{Codes, MatmulInt8Emit};
use kiln::ops::pointwise::PointwiseEmit;
use kiln::ops::quantize_rows::{QuantizeRowsEmit, Rule};
use kiln::ops::reduce::ReduceEmit;
use kiln::ops::{Emit, Operator};
use kiln::passes::{self, Overwrite};
use kiln::plan::{Arena, Engine, Error, HostEngine, Plan, Residents, Span, first_variant, plan};
use kiln::tensor::random::Stream;
use kiln::tensor::{DType, Data, Tensor, Type};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::sync::Arc;
use std::time::Duration;

type Body = fn(&Arc<Gpu>) -> Result<(), Failed>;

const TRIALS: &[(&str, Body)] = &[
    ("a_replayed_plan_gives_what_the_host_gives", replay),
    ("no_device_memory_is_taken_after_the_first_run", steady_memory),
    ("runs_under_way_are_collected_in_any_order", any_order),
    ("an_arena_larger_than_the_door_comes_back_whole", large_arena),
    ("wrong_feeds_and_places_are_errors_and_the_engine_goes_on", wrong_feeds),
    ("the_variant_that_measures_fastest_is_chosen_and_remembered", tuned),
    ("a_kernel_that_computes_something_else_is_found_out_and_not_used", impostor),
    ("each_dispatch_of_a_plan_is_timed", timed),
    ("a_run_cut_into_many_submissions_gives_the_same_and_the_cut_follows_the_clock", cut),
    ("two_plans_share_slots_and_arenas", two_plans),
    ("the_gradient_of_logits_written_over_them_spares_their_memory", overwritten_logits),
    ("a_layer_of_codes_gives_on_the_device_what_it_gives_on_the_host", layer_of_codes),
    ("a_cast_to_packed_halves_gives_the_bits_the_host_gives", packed_bits),
];

fn main() {
    // SAFETY: nothing else runs yet.
    unsafe { kiln::gpu::device::skip_window_layers() };
    let arguments = Arguments::from_args();
    let wanted = std::env::var("KILN_DEVICE").unwrap_or_else(|_| "gpu".into());
    let required = std::env::var("KILN_REQUIRE_GPU").is_ok_and(|v| v == "1");
    let gpu = Gpu::open(&wanted).map(Arc::new).map_err(|e| e.to_string());
    let trial = |&(name, body): &(&'static str, Body)| {
        let gpu = gpu.clone();
        Trial::ignorable_test(name, move || match gpu {
            Ok(gpu) => body(&gpu).map(|()| Completion::Completed),
            Err(error) if required => Err(error.into()),
            Err(_) => Ok(Completion::ignored_with("no adapter")),
        })
    };
    let mut trials: Vec<Trial> = TRIALS.iter().map(trial).collect();
    let name = "kernels_by_cooperative_matrices_are_right_where_lanes_play_the_matrices";
    trials.push(Trial::ignorable_test(name, move || match gpu {
        Ok(gpu) => match matrices::missing(&gpu) {
            Some(what) => Ok(Completion::ignored_with(what)),
            None => matrices::played_by_lanes(&gpu).map(|()| Completion::Completed),
        },
        Err(error) if required => Err(error.into()),
        Err(_) => Ok(Completion::ignored_with("no adapter")),
    }));
    libtest_mimic::run(&arguments, trials).exit();
}

/// Weights of 35 codes live in an arena of bytes; activations are quantised within the run, and their 21 codes read back.
fn layer_of_codes(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let mut graph = Graph::new();
    let x = graph.input("x", Type::f32([3, 7]));
    let codes = graph.parameter("codes", Type::new(DType::I8, [5, 7]));
    let scales = graph.parameter("scales", Type::f32([5]));
    let [q, s] = graph.quantize_rows(x, Rule::Wide)?;
    let y = graph.linear_int8(Codes { codes: q, scales: s }, Codes { codes, scales }, None)?;
    [("q", q), ("y", y)].into_iter().for_each(|(name, value)| graph.output(name, value));
    let at = |arena| Span { arena, offset_bytes: 256 };
    let arena =
        |name: &str, dtype, count: usize| Arena { name: name.into(), kind: Type::new(dtype, [count]) };
    let residents = Residents {
        arenas: vec![arena("codes", DType::I8, 512), arena("scales", DType::F32, 128)],
        places: [("codes".to_string(), at(0)), ("scales".to_string(), at(1))].into(),
        ..Residents::default()
    };
    let planned = plan(&graph, &residents, gpu.caps(), &mut first_variant)?;
    let pipelines = Pipelines::new(gpu);
    let device = GpuEngine::new(gpu.clone(), &pipelines, &residents.arenas, vec![planned.clone()])?;
    let mut engines: [Box<dyn Engine>; 2] =
        [Box::new(HostEngine::new(&residents.arenas, vec![planned])), Box::new(device)];
    let mut stream = Stream::new(&[35]);
    let codes = Tensor::i8([5, 7], (0..35).map(|_| stream.below(256) as u8 as i8).collect());
    let scales = Tensor::f32([5], (0..5).map(|i| 0.01 * (i + 1) as f32).collect());
    let x = Tensor::f32([3, 7], (0..21).map(|_| stream.normal() as f32).collect());
    let mut results = vec![];
    for engine in &mut engines {
        engine.write(at(0), &codes)?;
        engine.write(at(1), &scales)?;
        results.push(engine.run(0, &[&x])?);
        if engine.read(at(0), &Type::new(DType::I8, [5, 7]))? != codes {
            return Err(format!("{}: codes come back as others", engine.describe()).into());
        }
    }
    if results[0][0] != results[1][0] || results[0][0].host_type() != Type::new(DType::I8, [3, 7]) {
        return Err(format!("{:?}, on the device {:?}", results[0][0], results[1][0]).into());
    }
    for (host, device) in results[0][1].to_f64().iter().zip(results[1][1].to_f64()) {
        if (host - device).abs() > 1e-6 * host.abs().max(1.0) {
            return Err(format!("{host}, on the device {device}").into());
        }
    }
    Ok(())
}

/// Signed values around every edge of f16 and bf16, in an odd and an even number; without 16-bit arithmetic, by request.
fn packed_bits(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let edges = [
        0x0000_0000u32,
        0x0000_0001,
        0x0080_0000,
        0x3300_0000,
        0x3300_0001,
        0x3380_0000,
        0x33c0_0000,
        0x387f_c000,
        0x387f_e000,
        0x387f_ffff,
        0x3880_0000,
        0x3f80_0000,
        0x3f80_1000,
        0x3f80_3000,
        0x3f80_8000,
        0x3f81_8000,
        0x477f_e000,
        0x477f_efff,
        0x477f_f000,
        0x7f7f_7fff,
        0x7f7f_8000,
        0x7f7f_ffff,
        0x7f80_0000,
        0x7fc0_0000,
        0x7f80_0001,
    ];
    let both: Vec<f32> = edges.iter().flat_map(|&bits| [bits, bits | 1 << 31]).map(f32::from_bits).collect();
    let caps = Caps { f16: false, ..gpu.caps().clone() };
    let pipelines = Pipelines::new(gpu);
    for dtype in [DType::F16, DType::BF16] {
        for count in [both.len() - 1, both.len() / 8 * 8] {
            let from = [Type::f32([count])];
            let to = [Type::new(dtype, [count])];
            let x = Tensor::f32([count], both[..count].to_vec());
            let variants = Cast { dtype }.launch(&from, &to, &caps);
            let given = [(x.clone(), from[0].clone())];
            let outcome = Bench::new(gpu, &pipelines, &variants[0], &given, &to, &[])?.run()?;
            let expected = pack("x", &x, &to[0])?;
            for (i, (got, expected)) in outcome.bits[0].chunks(2).zip(expected.chunks(2)).enumerate() {
                if got != expected {
                    let text = format!("{dtype}: {:?} becomes {got:?}, the host gives {expected:?}", both[i]);
                    return Err(text.into());
                }
            }
        }
    }
    Ok(())
}

/// loss = mean(gelu(x * w + b)), with the gradients of w and b written into the second arena.
fn model(storage: DType) -> (Graph, Residents) {
    let mut graph = Graph::new();
    let x = graph.input("x", Type::new(storage, [6, 24]));
    let w = graph.parameter("w", Type::f32([24]));
    let b = graph.parameter("b", Type::f32([24]));
    let build = |graph: &mut Graph| {
        let product = graph.mul(x, w)?;
        let shifted = graph.add(product, b)?;
        let bent = graph.pointwise("gelu", &[shifted], 0.0)?;
        let half = graph.constant(Tensor::f32([24], vec![0.5; 24]));
        let halved = graph.mul(bent, half)?;
        graph.mean_all(halved)
    };
    let loss = build(&mut graph).expect("shapes fit");
    let gradients = gradient(&mut graph, loss, &[w, b]).expect("all operators have gradients");
    graph.output("loss", loss);
    graph.output("dw", gradients[0].expect("the loss reads w"));
    graph.output("db", gradients[1].expect("the loss reads b"));
    let arena = |name: &str| Arena { name: name.into(), kind: Type::f32([256]) };
    let residents = Residents {
        arenas: vec![arena("parameters"), arena("gradients")],
        places: [("w".to_string(), span(0, 0)), ("b".to_string(), span(0, 256))].into(),
        results: [("dw".to_string(), span(1, 0)), ("db".to_string(), span(1, 256))].into(),
    };
    (graph, residents)
}

fn span(arena: usize, offset_bytes: u64) -> Span {
    Span { arena, offset_bytes }
}

fn planned(graph: &Graph, residents: &Residents, caps: &Caps) -> Result<Plan, Failed> {
    Ok(plan(graph, residents, caps, &mut first_variant)?)
}

fn random(stream: &mut Stream, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    Tensor::f32(shape, (0..count).map(|_| stream.normal() as f32).collect())
}

fn engine(gpu: &Arc<Gpu>) -> Result<GpuEngine, Failed> {
    let (graph, residents) = model(DType::F32);
    let plan = planned(&graph, &residents, gpu.caps())?;
    let mut engine = GpuEngine::new(gpu.clone(), &Pipelines::new(gpu), &residents.arenas, vec![plan])?;
    engine.write(span(0, 0), &random(&mut Stream::new(&[1]), &[24]))?;
    engine.write(span(0, 256), &random(&mut Stream::new(&[2]), &[24]))?;
    Ok(engine)
}

fn expect_close(got: &Tensor, expected: &Tensor) -> Result<(), Failed> {
    kiln::gpu::qualify::close(got, expected, DType::F32, 1e-5).map_err(Failed::from)
}

fn replay(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let (graph, residents) = model(DType::F32);
    let mut host = HostEngine::new(&residents.arenas, vec![planned(&graph, &residents, &Caps::portable())?]);
    let mut device = engine(gpu)?;
    let mut stream = Stream::new(&[3]);
    for _ in 0..4 {
        let (x, w) = (random(&mut stream, &[6, 24]), random(&mut stream, &[24]));
        let b = device.read(span(0, 256), &Type::f32([24]))?;
        host.write(span(0, 256), &b)?;
        host.write(span(0, 0), &w)?;
        device.write(span(0, 0), &w)?;
        expect_close(&device.run(0, &[&x])?[0], &host.run(0, &[&x])?[0])?;
        for place in [span(1, 0), span(1, 256)] {
            expect_close(&device.read(place, &Type::f32([24]))?, &host.read(place, &Type::f32([24]))?)?;
        }
    }
    Ok(())
}

fn steady_memory(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    // A device of its own: other trials allocate on the shared one meanwhile.
    let own = Arc::new(Gpu::open(&gpu.listing.index.to_string())?);
    let mut engine = engine(&own)?;
    let x = random(&mut Stream::new(&[4]), &[6, 24]);
    engine.run(0, &[&x])?;
    engine.wait()?;
    let before = engine.allocated_bytes().ok_or("the driver's allocator does not report")?;
    let held = engine.memory_bytes();
    let mut most = before;
    for _ in 0..50 {
        let ticket = engine.submit(0, &[&x])?;
        most = most.max(engine.allocated_bytes().unwrap_or(u64::MAX));
        engine.collect(ticket, false)?;
    }
    engine.wait()?;
    if most != before || engine.memory_bytes() != held {
        return Err(format!("{before} bytes after the first run, {most} later").into());
    }
    if held > before {
        return Err(format!("the engine counts {held} bytes, the allocator handed out {before}").into());
    }
    Ok(())
}

fn cut(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let mut engine = engine(gpu)?;
    let x = random(&mut Stream::new(&[6]), &[6, 24]);
    let expected = engine.run(0, &[&x])?;
    engine.limit_submissions(Duration::from_nanos(1));
    let many = engine.submissions(0);
    if many < 3 {
        return Err(format!("{many} submissions where every dispatch exceeds the limit").into());
    }
    for _ in 0..3 {
        if engine.run(0, &[&x])? != expected {
            return Err("the cut changed a result".into());
        }
    }
    let ticket = engine.submit(0, &[&x])?;
    engine.collect(ticket, true)?;
    match engine.device_seconds(ticket) {
        Some(seconds) if seconds > 0.0 && seconds < 3600.0 => {}
        None if !gpu.listing.timestamps => {}
        other => return Err(format!("the run took {other:?} s").into()),
    }
    engine.limit_submissions(Duration::from_secs(3600));
    match engine.submissions(0) {
        1 => Ok(()),
        more => Err(format!("{more} submissions within an hour").into()),
    }
}

fn any_order(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let mut engine = engine(gpu)?;
    let inputs: Vec<Tensor> = (0..10).map(|i| random(&mut Stream::new(&[5, i]), &[6, 24])).collect();
    let mut expected = vec![];
    for x in &inputs {
        expected.push(engine.run(0, &[x])?);
    }
    let mut tickets = vec![];
    for x in &inputs {
        tickets.push(engine.submit(0, &[x])?);
    }
    for (ticket, expected) in tickets.iter().zip(&expected).rev() {
        let got = engine.collect(*ticket, true)?.ok_or("a run that was waited for has no results")?;
        if got != *expected {
            return Err(format!("{ticket:?} gave {got:?}, alone it gave {expected:?}").into());
        }
    }
    if engine.collect(tickets[0], true)?.is_some() {
        return Err("a ticket was collected twice".into());
    }
    Ok(())
}

fn large_arena(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let count = (9 << 20) / 4 + 3;
    let arenas = [Arena { name: "large".into(), kind: Type::f32([count]) }];
    let mut engine = GpuEngine::new(gpu.clone(), &Pipelines::new(gpu), &arenas, vec![])?;
    let zeros = engine.read(span(0, 0), &Type::f32([count]))?;
    if zeros.real::<f32>().iter().any(|&x| x != 0.0) {
        return Err("an arena starts with something else than zeros".into());
    }
    let tensor = Tensor::f32([count - 64], (0..count - 64).map(|i| i as f32).collect());
    engine.write(span(0, 256), &tensor)?;
    if engine.read(span(0, 256), &tensor.host_type())? != tensor {
        return Err("what was written did not come back".into());
    }
    Ok(())
}

fn wrong_feeds(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let mut engine = engine(gpu)?;
    let x = random(&mut Stream::new(&[6]), &[6, 24]);
    let expected = engine.run(0, &[&x])?;
    let misshapen = random(&mut Stream::new(&[6]), &[24, 6]);
    let whole = Tensor { shape: [6, 24].into(), data: Data::U32(vec![0; 144]) };
    for feeds in [&[][..], &[&x, &x], &[&misshapen], &[&whole]] {
        if engine.run(0, feeds).is_ok() {
            return Err(format!("accepted {feeds:?}").into());
        }
    }
    let outside = engine.read(span(1, 512), &Type::f32([200]));
    if !matches!(outside, Err(Error::Feed { .. })) {
        return Err("read past the end of an arena".into());
    }
    for _ in 0..5 {
        if engine.run(0, &[&x])? != expected {
            return Err("results changed after a refused run".into());
        }
    }
    Ok(())
}

fn two_plans(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let (graph, residents) = model(DType::F32);
    let mut follow = Graph::new();
    let dw = follow.state("dw", Type::f32([24]));
    let total = follow.sum_all(dw)?;
    follow.output("total", total);
    let places = [("dw".to_string(), span(1, 0))].into();
    let second = Residents { arenas: residents.arenas.clone(), places, ..Residents::default() };
    let plans = vec![planned(&graph, &residents, gpu.caps())?, planned(&follow, &second, gpu.caps())?];
    let separate: u64 = plans.iter().map(Plan::slot_bytes).sum();
    let mut engine = GpuEngine::new(gpu.clone(), &Pipelines::new(gpu), &residents.arenas, plans.clone())?;
    engine.write(span(0, 0), &random(&mut Stream::new(&[1]), &[24]))?;
    let x = random(&mut Stream::new(&[7]), &[6, 24]);
    engine.submit(0, &[&x])?;
    let total = engine.run(1, &[])?[0].to_f64()[0];
    let sum: f64 = engine.read(span(1, 0), &Type::f32([24]))?.to_f64().iter().sum();
    if (total - sum).abs() > 1e-5 || sum == 0.0 {
        return Err(format!("the second plan sums to {total}, the arena to {sum}").into());
    }
    let alone = GpuEngine::new(gpu.clone(), &Pipelines::new(gpu), &residents.arenas, plans[..1].to_vec())?;
    if engine.memory_bytes() >= alone.memory_bytes() + separate {
        return Err("the second plan got slots of its own".into());
    }
    Ok(())
}

fn overwritten_logits(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let mut graph = Graph::new();
    let x = graph.input("x", Type::f32([64, 4]));
    let w = graph.input("w", Type::f32([4, 128]));
    let targets = graph.input("targets", Type::new(DType::I32, [64]));
    let logits = graph.matmul(x, w)?;
    let loss = graph.cross_entropy(logits, targets, CrossEntropy::default())?;
    let dx = gradient(&mut graph, loss, &[x])?[0].ok_or("x has a gradient")?;
    graph.output("loss", loss);
    graph.output("dx", dx);
    let (spared, _) = passes::run(&[&Overwrite], graph.clone())?;
    let plans = [&graph, &spared].map(|g| planned(g, &Residents::default(), gpu.caps()));
    let [plain, spared] = plans;
    let (plain, spared) = (plain?, spared?);
    let bytes = 64 * 128 * 4;
    if plain.slot_bytes() < 2 * bytes || spared.slot_bytes() >= 2 * bytes {
        return Err(format!("{} bytes before, {} after", plain.slot_bytes(), spared.slot_bytes()).into());
    }
    let mut random_values = Stream::new(&[21]);
    let (x, w) = (random(&mut random_values, &[64, 4]), random(&mut random_values, &[4, 128]));
    let targets = Tensor::i32([64], (0..64).map(|i| i * 37 % 128).collect());
    let mut results = vec![];
    for plan in [plain, spared] {
        let mut device = GpuEngine::new(gpu.clone(), &Pipelines::new(gpu), &[], vec![plan.clone()])?;
        let mut host = HostEngine::new(&[], vec![plan]);
        for engine in [&mut device as &mut dyn Engine, &mut host] {
            results.push(engine.run(0, &[&x, &w, &targets])?);
        }
    }
    for other in &results[1..] {
        results[0].iter().zip(other).try_for_each(|(a, b)| expect_close(a, b))?;
    }
    Ok(())
}

fn tuned(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let mut graph = Graph::new();
    let a = graph.input("a", Type::f32([96, 96]));
    let b = graph.input("b", Type::f32([96, 96]));
    let c = graph.matmul(a, b)?;
    graph.output("c", c);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("cache/variants.json");
    let pipelines = Pipelines::new(gpu);
    let mut names = vec![];
    for round in 0..2 {
        let ledger = Ledger::open(Some(file.clone()), &gpu.listing);
        let mut tuner = Tuner::new(gpu, &pipelines, ledger, Mode::Use, Duration::from_secs(60));
        let choose =
            &mut |node: &Node, inputs: &[Type], variants: &[Variant]| tuner.choose(node, inputs, variants);
        let plan = plan(&graph, &Residents::default(), gpu.caps(), choose)?;
        names.push(plan.dispatches[0].variant.clone());
        if tuner.measured() != 1 - round {
            return Err(format!("round {round} measured {} operators", tuner.measured()).into());
        }
        tuner.save()?;
    }
    let ledger = || Ledger::open(None, &gpu.listing);
    let mut hasty = Tuner::new(gpu, &pipelines, ledger(), Mode::Use, Duration::ZERO);
    let other = |variants: &[Variant]| variants.iter().map(|v| v.name.clone()).find(|name| *name != names[0]);
    let mut slower = None;
    let choose = &mut |node: &Node, inputs: &[Type], variants: &[Variant]| {
        slower = other(variants);
        hasty.choose(node, inputs, variants)
    };
    plan(&graph, &Residents::default(), gpu.caps(), choose)?;
    let mut choices = hasty.choices().clone();
    if hasty.measured() != 0 || choices.len() != 1 {
        return Err(format!("without a budget: {} measured, {choices:?}", hasty.measured()).into());
    }
    let slower = slower.ok_or("matmul has a single variant here")?;
    choices.values_mut().for_each(|name| *name = slower.clone());
    hasty.fix(choices);
    let choose =
        &mut |node: &Node, inputs: &[Type], variants: &[Variant]| hasty.choose(node, inputs, variants);
    let kept = plan(&graph, &Residents::default(), gpu.caps(), choose)?.dispatches[0].variant.clone();
    if kept != slower {
        return Err(format!("held to {slower}, chose {kept}").into());
    }
    if names[0] != names[1] {
        return Err(format!("{} was measured, {} remembered", names[0], names[1]).into());
    }
    let mut known = ledger();
    known.condemn(&format!("{} f32", names[0]), "a test says so");
    let mut wary = Tuner::new(gpu, &pipelines, known, Mode::Off, Duration::ZERO);
    let choose =
        &mut |node: &Node, inputs: &[Type], variants: &[Variant]| wary.choose(node, inputs, variants);
    let used = plan(&graph, &Residents::default(), gpu.caps(), choose)?.dispatches[0].variant.clone();
    if used == names[0] || wary.report().is_none_or(|text| !text.contains("a test says so")) {
        return Err(format!("{used} was used though it is condemned: {:?}", wary.report()).into());
    }
    Ok(())
}

/// Variants that compute something else, and only they, are found out and never chosen again.
fn impostor(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let mut graph = Graph::new();
    let a = graph.input("a", Type::f32([96, 96]));
    let b = graph.input("b", Type::f32([96, 96]));
    let c = graph.matmul(a, b)?;
    graph.output("c", c);
    let pipelines = Pipelines::new(gpu);
    let ledger = Ledger::open(None, &gpu.listing);
    let mut tuner = Tuner::new(gpu, &pipelines, ledger, Mode::Use, Duration::from_secs(60));
    let mut chosen = String::new();
    let mut choose = |node: &Node, inputs: &[Type], variants: &[Variant]| {
        // It reads A twice, and is the only one beside the plain kernel.
        let mut impostor = variants[0].clone();
        impostor.name = "impostor".into();
        let Bind::Input(1) = impostor.launches[0].bindings[1] else { panic!("B is bound second") };
        impostor.launches[0].bindings[1] = Bind::Input(0);
        let plain = variants.iter().find(|v| v.name.ends_with("_plain")).expect("the referee").clone();
        let both = [impostor, plain];
        let number = tuner.choose(node, inputs, &both)?;
        chosen = both[number].name.clone();
        Some(variants.iter().position(|v| v.name == chosen).unwrap_or(0))
    };
    plan(&graph, &Residents::default(), gpu.caps(), &mut choose)?;
    let report = tuner.report().unwrap_or_default();
    if !chosen.ends_with("_plain") || !report.contains("impostor f32 is not used") {
        return Err(format!("{chosen} was chosen: {report}").into());
    }
    Ok(())
}

fn timed(gpu: &Arc<Gpu>) -> Result<(), Failed> {
    let mut engine = engine(gpu)?;
    let x = random(&mut Stream::new(&[8]), &[6, 24]);
    let alone = engine.time_alone(0, 3)?;
    if alone.is_empty() || alone.iter().any(|&ms| ms <= 0.0) {
        return Err(format!("a dispatch takes no time: {alone:?}").into());
    }
    if !gpu.listing.timestamps {
        let refused = engine.profile(0, &[&x]);
        return if refused.is_err() { Ok(()) } else { Err("profiled without timestamps".into()) };
    }
    let within = engine.profile(0, &[&x])?;
    if within.len() != alone.len() || within.iter().sum::<f64>() <= 0.0 {
        return Err(format!("{} dispatches, timed {within:?}", alone.len()).into());
    }
    Ok(())
}
