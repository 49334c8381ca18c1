//! Where a run happens: an adapter, or the host.

use super::Error;
#[cfg(feature = "gpu")]
use crate::gpu::tune::{Ledger, Mode, Tuner};
#[cfg(feature = "gpu")]
use crate::gpu::{Gpu, GpuEngine, Pipelines};
use crate::graph::Graph;
#[cfg(feature = "gpu")]
use crate::graph::Node;
use crate::ops::launch::Caps;
#[cfg(feature = "gpu")]
use crate::ops::launch::Variant;
use crate::plan::{Arena, Engine, HostEngine, Plan, Residents, first_variant, plan};
#[cfg(feature = "gpu")]
use crate::tensor::Type;
use std::path::Path;
#[cfg(feature = "gpu")]
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Time one start gives to measuring kernel variants; what is left over is measured by the next.
#[cfg(feature = "gpu")]
const MEASURING: Duration = Duration::from_millis(1500);

/// Time a start gives to it where all is to be measured anew.
#[cfg(feature = "gpu")]
const MEASURING_ANEW: Duration = Duration::from_secs(20);

/// An opened device on which engines are built.
pub enum Target {
    /// The host: references over threads.
    Host,
    /// An adapter reached through wgpu.
    #[cfg(feature = "gpu")]
    Gpu {
        /// The device.
        gpu: Arc<Gpu>,
        /// Its kernels, each compiled once.
        pipelines: Pipelines,
        /// What the choice of kernels has to tell.
        told: Mutex<Vec<String>>,
        /// Time to measure kernels anew, whatever is remembered.
        anew: Option<Duration>,
    },
}

impl Target {
    /// Opens `cpu`, `gpu` (the best adapter), a number from `kiln devices`, or part of an adapter's name.
    pub fn open(wanted: &str) -> Result<Target, Error> {
        if wanted.eq_ignore_ascii_case("cpu") {
            return Ok(Target::Host);
        }
        #[cfg(feature = "gpu")]
        {
            let gpu = Arc::new(Gpu::open(wanted)?);
            let pipelines = Pipelines::new(&gpu);
            Ok(Target::Gpu { gpu, pipelines, told: Mutex::default(), anew: None })
        }
        #[cfg(not(feature = "gpu"))]
        Err(Error::NoGpuFeature { wanted: wanted.to_string() })
    }

    /// Opens a device as [`Target::open`] does, except that `gpu` falls back to the host where there is no adapter at all.
    ///
    /// `say` is told then, with what to install. An adapter asked for by name or number is never replaced.
    pub fn open_or_host(wanted: &str, say: &mut dyn FnMut(&str)) -> Result<Target, Error> {
        let reason = match Target::open(wanted) {
            #[cfg(feature = "gpu")]
            Err(Error::Gpu(crate::gpu::Error::NoAdapter { hint })) if wanted == "gpu" => {
                format!("no GPU adapter found (Vulkan, Metal or DX12): {hint}")
            }
            #[cfg(not(feature = "gpu"))]
            Err(Error::NoGpuFeature { .. }) if wanted == "gpu" => "this build leaves out the gpu".to_string(),
            other => return other,
        };
        say(&format!("warning: RUNNING ON THE PROCESSOR (as with --device cpu), since {reason}"));
        Ok(Target::Host)
    }

    /// The same device opened anew, after it was lost; never another one. The host is never lost.
    pub fn open_again(&self) -> Result<Target, Error> {
        match self {
            Target::Host => Ok(Target::Host),
            #[cfg(feature = "gpu")]
            Target::Gpu { gpu, anew, .. } => {
                let gpu = Arc::new(Gpu::open_again(&gpu.listing)?);
                let pipelines = Pipelines::new(&gpu);
                Ok(Target::Gpu { gpu, pipelines, told: Mutex::default(), anew: *anew })
            }
        }
    }

    /// What operators may use. The host takes any kernel's word: it runs none.
    pub fn caps(&self) -> Caps {
        match self {
            Target::Host => Caps {
                f16: true,
                max_binding_bytes: u64::MAX,
                max_storage_buffers: u32::MAX,
                ..Caps::portable()
            },
            #[cfg(feature = "gpu")]
            Target::Gpu { gpu, .. } => gpu.caps().clone(),
        }
    }

    /// Device and driver in words.
    pub fn describe(&self) -> String {
        match self {
            Target::Host => format!("cpu (host, {} threads)", rayon::current_num_threads()),
            #[cfg(feature = "gpu")]
            Target::Gpu { gpu, .. } => gpu.listing.to_string(),
        }
    }

    /// Bytes of memory there are for a run, where the system tells.
    pub fn memory_bytes(&self) -> Option<u64> {
        match self {
            Target::Host => host_memory_bytes(),
            #[cfg(feature = "gpu")]
            Target::Gpu { gpu, .. } if gpu.caps().is_cpu => host_memory_bytes(),
            #[cfg(feature = "gpu")]
            Target::Gpu { gpu, .. } => gpu.listing.memory_bytes,
        }
    }

    /// Bytes of what lies between host and device while plans are replayed.
    #[cfg_attr(not(feature = "gpu"), expect(unused_variables))]
    pub fn transfer_bytes(&self, plans: &[Plan]) -> u64 {
        match self {
            Target::Host => 0,
            #[cfg(feature = "gpu")]
            Target::Gpu { .. } => crate::gpu::engine::transfer_bytes(plans),
        }
    }

    /// What choosing kernels had to tell since it was last asked: measurements made and left, variants not used.
    pub fn told(&self) -> Vec<String> {
        match self {
            Target::Host => vec![],
            #[cfg(feature = "gpu")]
            Target::Gpu { told, .. } => {
                std::mem::take(&mut told.lock().unwrap_or_else(PoisonError::into_inner))
            }
        }
    }

    /// Lets plans forget what is remembered of the kernels here, and measure for as long as `budget`.
    #[cfg_attr(not(feature = "gpu"), expect(unused_variables))]
    pub fn measure_anew(&mut self, budget: Duration) {
        match self {
            Target::Host => {}
            #[cfg(feature = "gpu")]
            Target::Gpu { anew, .. } => *anew = Some(budget),
        }
    }

    /// True for the host.
    pub fn is_host(&self) -> bool {
        matches!(self, Target::Host)
    }

    /// Plans graphs for this device, each operator in the variant that is fastest here.
    ///
    /// `choices` is a file with the choices of an earlier start of the same run, which are kept so that the run repeats bit
    /// for bit; it is written afterwards.
    #[cfg_attr(not(feature = "gpu"), expect(unused_variables))]
    pub fn plans(
        &self,
        graphs: &[&Graph],
        residents: &Residents,
        choices: Option<&Path>,
    ) -> Result<Vec<Plan>, Error> {
        let caps = self.caps();
        match self {
            Target::Host => {
                let planned = |graph: &&Graph| plan(graph, residents, &caps, &mut first_variant);
                Ok(graphs.iter().map(planned).collect::<Result<_, _>>()?)
            }
            #[cfg(feature = "gpu")]
            Target::Gpu { gpu, pipelines, told, anew } => {
                let ledger = Ledger::open(super::caches::kernels_file(), &gpu.listing);
                let (mode, budget) = match (anew, Mode::from_environment()?) {
                    (Some(budget), _) => (Mode::Force, *budget),
                    (None, Mode::Force) => (Mode::Force, MEASURING_ANEW),
                    (None, mode) => (mode, MEASURING),
                };
                let mut tuner = Tuner::new(gpu, pipelines, ledger, mode, budget);
                let kept = choices.and_then(|file| std::fs::read_to_string(file).ok());
                if let Some(kept) = kept.and_then(|text| serde_json::from_str(&text).ok()) {
                    tuner.fix(kept);
                }
                let mut choose =
                    |node: &Node, types: &[Type], variants: &[Variant]| tuner.choose(node, types, variants);
                let mut planned = |graph: &&Graph| plan(graph, residents, &caps, &mut choose);
                let plans = graphs.iter().map(&mut planned).collect::<Result<_, _>>()?;
                // A choice that is not remembered is measured again: slower, not wrong.
                let _ = tuner.save();
                if let Some(report) = tuner.report() {
                    told.lock().unwrap_or_else(PoisonError::into_inner).push(report);
                }
                if let Some(file) = choices {
                    let failed =
                        |source| Error::Recipe(super::recipe::Error::File { path: file.into(), source });
                    let text = serde_json::to_string_pretty(tuner.choices()).expect("names are printable");
                    std::fs::write(file, text).map_err(failed)?;
                }
                Ok(plans)
            }
        }
    }

    /// An engine that replays `plans` over `arenas`, which start as zeros.
    pub fn engine(&self, arenas: &[Arena], plans: Vec<Plan>) -> Result<Box<dyn Engine>, Error> {
        match self {
            Target::Host => Ok(Box::new(HostEngine::new(arenas, plans))),
            #[cfg(feature = "gpu")]
            Target::Gpu { gpu, pipelines, .. } => {
                Ok(Box::new(GpuEngine::new(gpu.clone(), pipelines, arenas, plans)?))
            }
        }
    }
}

/// Bytes that Linux could give to a process now.
fn host_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}
