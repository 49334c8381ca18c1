//! Every distinct kernel as SPIR-V, MSL and HLSL, so that the systems we cannot run here stay real.

use kiln::gpu::loader::{Assembled, assemble};
use kiln::gpu::qualify::stored_type;
use kiln::gpu::roof;
use kiln::ops::families;
use kiln::ops::launch::{Caps, Cooperative, Kernel};
use kiln::tensor::{DType, Type};
use libtest_mimic::{Failed, Trial};
use naga::back::{hlsl, msl, spv};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// One trial per shader file, over all kernels made from it.
pub struct Translation {
    /// The trial.
    pub trial: Trial,
    /// Distinct kernels in it.
    pub kernels: usize,
    /// Those whose SPIR-V nothing here can validate.
    pub unjudged: usize,
}

/// What the `spirv-val` of this system can judge.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub enum Validator {
    /// There is none.
    Missing,
    /// It was made before cooperative matrices.
    Old,
    /// It knows them.
    Whole,
}

impl Validator {
    /// Asks it for its version, such as `SPIRV-Tools v2023.1`.
    pub fn found() -> Validator {
        let Ok(output) = Command::new("spirv-val").arg("--version").output() else {
            return Validator::Missing;
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let year = said.split_once(" v").and_then(|(_, rest)| rest.get(..4)?.parse::<u32>().ok());
        match year {
            Some(year) if year >= 2024 => Validator::Whole,
            _ => Validator::Old,
        }
    }

    /// Rules to judge by. Newer validators refuse for Vulkan that naga lays out workgroup arrays, which is of no consequence.
    fn rules(self) -> &'static str {
        if self == Validator::Whole { "spv1.6" } else { "vulkan1.3" }
    }

    fn judges(self, kernel: &Kernel) -> bool {
        self >= if kernel.needs_cooperative() { Validator::Whole } else { Validator::Old }
    }
}

/// Kernels that the cases launch on this adapter, on a plain GPU and on a driver on the CPU; and those that measure roofs.
pub fn trials(own: &Caps) -> Vec<Translation> {
    let rich = Caps { f16: true, subgroup: true, subgroup_size: 32, int64: true, ..Caps::portable() };
    let matrices = |side, operands| Cooperative { side, operands, sums: DType::F32 };
    let with_matrices = |max_workgroup_bytes, cooperative| Caps {
        subgroup_most: 32,
        max_workgroup_bytes,
        cooperative,
        ..rich.clone()
    };
    let adapters = [
        own.clone(),
        Caps { f16: true, ..Caps::portable() },
        Caps { is_cpu: true, subgroup_size: 8, ..rich.clone() },
        with_matrices(48 << 10, vec![matrices(16, DType::F16)]),
        with_matrices(32 << 10, vec![matrices(8, DType::F16), matrices(8, DType::F32)]),
        rich,
    ];
    let mut by_shader: BTreeMap<&str, BTreeSet<Kernel>> = BTreeMap::new();
    for (_, cases) in families() {
        for case in cases().list {
            for storage in [DType::F32, DType::F16, DType::BF16] {
                let kinds: Vec<Type> = case.inputs.iter().map(|t| stored_type(t, storage)).collect();
                let Ok(outputs) = case.op.signature(&kinds) else { continue };
                let variants = adapters.iter().flat_map(|caps| case.op.launch(&kinds, &outputs, caps));
                for launch in variants.flat_map(|v| v.launches) {
                    by_shader.entry(launch.kernel.shader).or_default().insert(launch.kernel);
                }
            }
        }
    }
    for kernel in roof::kernels() {
        by_shader.entry(kernel.shader).or_default().insert(kernel);
    }
    let validate = Validator::found();
    let trial = |(shader, kernels): (&str, BTreeSet<Kernel>)| {
        let count = kernels.len();
        let unjudged = kernels.iter().filter(|kernel| !validate.judges(kernel)).count();
        let run = move || kernels.iter().try_for_each(|kernel| translate(kernel, validate));
        Translation { trial: Trial::test(format!("translate/{shader}"), run), kernels: count, unjudged }
    };
    by_shader.into_iter().map(trial).collect()
}

fn translate(kernel: &Kernel, validator: Validator) -> Result<(), Failed> {
    let assembled = assemble(kernel)?;
    let located = |what: &str, error: String| Failed::from(format!("{what}: {error}\n{kernel:?}"));
    spirv(&assembled, kernel, validator).map_err(|e| located("SPIR-V", e))?;
    metal(&assembled).map_err(|e| located("MSL", e))?;
    // DX12 has no cooperative matrices.
    match kernel.needs_cooperative() {
        true => Ok(()),
        false => direct3d(&assembled).map_err(|e| located("HLSL", e)),
    }
}

fn spirv(assembled: &Assembled, kernel: &Kernel, validator: Validator) -> Result<(), String> {
    let lang_version = if kernel.needs_cooperative() { (1, 6) } else { (1, 4) };
    let options = spv::Options { lang_version, ..Default::default() };
    let entry =
        spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: kernel.entry.into() };
    let words = spv::write_vec(&assembled.module, &assembled.info, &options, Some(&entry))
        .map_err(|e| e.to_string())?;
    if !validator.judges(kernel) {
        return Ok(());
    }
    let file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    std::fs::write(file.path(), bytes).map_err(|e| e.to_string())?;
    let output = Command::new("spirv-val")
        .args(["--target-env", validator.rules()])
        .arg(file.path())
        .output()
        .map_err(|e| e.to_string())?;
    let said = [output.stdout, output.stderr].concat();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said).into_owned()) }
}

fn metal(assembled: &Assembled) -> Result<(), String> {
    let options = msl::Options { lang_version: (2, 4), ..Default::default() };
    let written =
        msl::write_string(&assembled.module, &assembled.info, &options, &msl::PipelineOptions::default());
    let (_, translation) = written.map_err(|e| e.to_string())?;
    translation.entry_point_names.into_iter().try_for_each(|name| name.map(|_| ()).map_err(|e| e.to_string()))
}

fn direct3d(assembled: &Assembled) -> Result<(), String> {
    let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_2, ..Default::default() };
    let pipeline = hlsl::PipelineOptions::default();
    let mut text = String::new();
    let written =
        hlsl::Writer::new(&mut text, &options, &pipeline).write(&assembled.module, &assembled.info, None);
    let names = written.map_err(|e| e.to_string())?.entry_point_names;
    names.into_iter().try_for_each(|name| name.map(|_| ()).map_err(|e| e.to_string()))
}
