//! Every operator x case x storage type x variant, from the operators' own tables.
//!
//! `reference` trials need no device: signature, f32 reference, expansion, gradient. Nor do `host` trials: what the host engine
//! runs. `f32`, `f16` and `bf16` trials run a kernel.
//! `translate` trials turn every kernel into SPIR-V, MSL and HLSL. `KILN_DEVICE` picks the adapter; without one the
//! kernel trials are ignored and counted, or fail if `KILN_REQUIRE_GPU=1`.

#[path = "conformance/fast.rs"]
mod fast;
#[path = "conformance/host.rs"]
mod host;
#[path = "conformance/translate.rs"]
mod translate;

use kiln::gpu::{Gpu, Pipelines, qualify};
use kiln::ops::launch::{Caps, Variant};
use kiln::ops::{Case, families};
use kiln::tensor::DType;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// What a kernel trial runs on.
struct Device {
    gpu: Gpu,
    pipelines: Pipelines,
}

/// Devices for trials beside each other. A driver that computes on the processor compiles kernels one after the other on each device,
/// which is most of what the trials take: there each thread has one of its own.
struct Devices {
    listing: String,
    caps: Caps,
    free: Mutex<Vec<Arc<Device>>>,
    returned: Condvar,
}

impl Devices {
    fn open(wanted: &str, threads: usize) -> kiln::gpu::Result<Devices> {
        let device = || {
            let gpu = Gpu::open(wanted)?;
            Ok(Arc::new(Device { pipelines: Pipelines::new(&gpu), gpu }))
        };
        let mut free = vec![device()?];
        let (listing, caps) = (free[0].gpu.listing.to_string(), free[0].gpu.caps().clone());
        while free.len() < threads {
            free.push(if caps.is_cpu { device()? } else { free[0].clone() });
        }
        Ok(Devices { listing, caps, free: Mutex::new(free), returned: Condvar::new() })
    }

    /// Does `work` on a device that is free.
    fn lend<T>(&self, work: impl FnOnce(&Device) -> T) -> T {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let device = loop {
            match free.pop() {
                Some(device) => break device,
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(free);
        let lent = Lent { device, devices: self };
        work(&lent.device)
    }
}

/// A device that goes back, even if the trial panics.
struct Lent<'a> {
    device: Arc<Device>,
    devices: &'a Devices,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let free = self.devices.free.lock();
        free.unwrap_or_else(PoisonError::into_inner).push(self.device.clone());
        self.devices.returned.notify_one();
    }
}

fn main() {
    // SAFETY: nothing else runs yet.
    unsafe { kiln::gpu::device::skip_window_layers() };
    let arguments = Arguments::from_args();
    let wanted = std::env::var("KILN_DEVICE").unwrap_or_else(|_| "gpu".into());
    let required = std::env::var("KILN_REQUIRE_GPU").is_ok_and(|v| v == "1");
    let processors = || std::thread::available_parallelism().map_or(1, |count| count.get());
    let threads = arguments.test_threads.unwrap_or_else(processors);
    let devices = Devices::open(&wanted, threads).map(Arc::new).map_err(|error| error.to_string());
    let caps = match &devices {
        Ok(devices) => devices.caps.clone(),
        Err(_) => Caps { f16: true, ..Caps::portable() },
    };

    let mut trials = vec![];
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut count = |what: &str| *counts.entry(what.into()).or_default() += 1;
    for (family, cases) in families() {
        for case in cases().list {
            let case = Arc::new(case);
            let name = format!("{family}/{} {}", case.op.name(), case.label);
            count("cases");
            let own = case.clone();
            let check = move || host::check(&own).map_err(Failed::from);
            trials.push(Trial::test(format!("{name}/reference"), check));
            for storage in [DType::F32, DType::F16, DType::BF16] {
                let Some(trial) = ready(&case, storage) else {
                    count(&format!("cases that hold no {storage}"));
                    continue;
                };
                count(&format!("cases x {storage}"));
                let (own, ready) = (case.clone(), trial.clone());
                let check = move || fast::check(&own, &ready).map_err(Failed::from);
                trials.push(Trial::test(format!("{name}/host {storage}"), check));
                for (number, variant) in variants(&case, &trial, &caps).into_iter().enumerate() {
                    count(&format!("kernel variants x {storage}"));
                    let name = format!("{name}/{storage}/{number} {variant}");
                    let (case, trial, devices) = (case.clone(), trial.clone(), devices.clone());
                    let run = move || run(&case, &trial, number, &devices, required);
                    trials.push(Trial::ignorable_test(name, run));
                }
            }
        }
    }
    let translations = translate::trials(&caps);
    count_kernels(&mut counts, &translations);
    trials.extend(translations.into_iter().map(|t| t.trial));

    let filtered = arguments.filter.is_some() || arguments.list;
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !filtered {
        match &devices {
            Ok(devices) => println!("on {}", devices.listing),
            Err(error) => println!("kernels did not run: {error}"),
        }
        host::without_gradient().iter().for_each(|what| println!("       no gradient: {what}"));
        counts.iter().for_each(|(what, count)| println!("{count:6} {what}"));
    }
    conclusion.exit();
}

fn count_kernels(counts: &mut BTreeMap<String, usize>, translations: &[translate::Translation]) {
    counts.insert("kernels translated".into(), translations.iter().map(|t| t.kernels).sum());
    let unjudged = translations.iter().map(|t| t.unjudged).sum::<usize>();
    if unjudged > 0 {
        counts.insert("kernels not validated: no spirv-val, or one too old for them".into(), unjudged);
    }
}

/// The case in a storage type; `None` if it has no float to store so. That f32 fits is checked by the host trial.
fn ready(case: &Case, storage: DType) -> Option<Arc<qualify::Trial>> {
    let follows = case.inputs.iter().any(|t| t.data.dtype() == DType::F64);
    if storage.is_half() && !follows {
        return None;
    }
    qualify::Trial::new(case, storage).ok().map(Arc::new)
}

/// Names of the variants; a missing kernel shows as a variant that fails.
fn variants(case: &Case, trial: &qualify::Trial, caps: &Caps) -> Vec<String> {
    if case.op.is_view() {
        return vec![];
    }
    let variants = launches(case, trial, caps);
    if variants.is_empty() { vec!["missing".into()] } else { variants.into_iter().map(|v| v.name).collect() }
}

/// What this adapter is offered, and what it would be offered if it were no driver on the CPU.
fn launches(case: &Case, trial: &qualify::Trial, caps: &Caps) -> Vec<Variant> {
    let offered = |caps: &Caps| case.op.launch(&trial.kinds(), &trial.outputs, caps);
    let mut variants = offered(caps);
    let as_on_gpus = offered(&Caps { is_cpu: false, ..caps.clone() });
    variants.extend(as_on_gpus.into_iter().filter(|v| !variants.contains(v)).collect::<Vec<_>>());
    variants
}

fn run(
    case: &Case,
    trial: &qualify::Trial,
    number: usize,
    devices: &Result<Arc<Devices>, String>,
    required: bool,
) -> Result<Completion, Failed> {
    let devices = match devices {
        Ok(devices) => devices,
        Err(error) if required => return Err(error.as_str().into()),
        Err(_) => return Ok(Completion::ignored_with("no adapter")),
    };
    let variants = launches(case, trial, &devices.caps);
    let variant = variants.get(number).ok_or("no kernel for these types")?;
    if variant.needs_f16() && !devices.caps.f16 {
        return Ok(Completion::ignored_with("the adapter has no 16-bit floats"));
    }
    devices.lend(|device| trial.check(&device.gpu, &device.pipelines, case, variant))?;
    Ok(Completion::Completed)
}
