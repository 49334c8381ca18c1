//! Makes a shader concrete: imports, pasted text, storage types and constants go in, plain WGSL comes out.
//!
//! Directives stand on lines of their own: `#import stem` brings in another shader once, `#paste NAME` is replaced by the
//! kernel's text, `alias NAME = f32;` is retyped, `override NAME: T = default;` becomes a constant.

use super::reflect::{Reflection, reflect};
use super::{Error, Result};
use crate::ops::launch::Kernel;
use crate::tensor::DType;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

/// Every file of `shaders/` as (stem, text), sorted by stem.
pub const SHADERS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// A kernel as WGSL, parsed, validated and read.
pub struct Assembled {
    /// The text.
    pub text: String,
    /// naga's module of it.
    pub module: naga::Module,
    /// What naga's validator found out.
    pub info: naga::valid::ModuleInfo,
    /// Bindings, parameters and workgroup size.
    pub reflection: Reflection,
}

/// Text of a shader.
pub fn shader(stem: &str) -> Result<&'static str> {
    let row = SHADERS.iter().find(|(name, _)| *name == stem);
    row.map(|(_, text)| *text).ok_or_else(|| Error::NoShader { shader: stem.into() })
}

/// Assembles a kernel and reads its interface; a kernel that this process has assembled before is not parsed again.
pub fn assemble(kernel: &Kernel) -> Result<Arc<Assembled>> {
    static DONE: LazyLock<Mutex<HashMap<Kernel, Arc<Assembled>>>> = LazyLock::new(Default::default);
    let done = || DONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(known) = done().get(kernel) {
        return Ok(known.clone());
    }
    // Not under the lock: kernels are assembled on all threads.
    let assembled = Arc::new(parse(kernel)?);
    done().insert(kernel.clone(), assembled.clone());
    Ok(assembled)
}

fn parse(kernel: &Kernel) -> Result<Assembled> {
    let text = text(kernel)?;
    let invalid = |message: String| Error::Shader { shader: kernel.shader, message };
    let module = naga::front::wgsl::parse_str(&text).map_err(|e| invalid(e.emit_to_string(&text)))?;
    let mut validator =
        naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all());
    let info = validator.validate(&module).map_err(|e| invalid(e.emit_to_string(&text)))?;
    let reflection = reflect(&module, kernel)?;
    Ok(Assembled { text, module, info, reflection })
}

/// The kernel as plain WGSL.
pub fn text(kernel: &Kernel) -> Result<String> {
    let mut lines = vec![];
    include(shader(kernel.shader)?, kernel, &mut vec![kernel.shader], &mut lines)?;
    for (name, dtype) in &kernel.types {
        let start = format!("alias {name} =");
        let line = find(&mut lines, kernel, &start)?;
        *line = format!("{start} {};", wgsl_name(*dtype)?);
    }
    for (name, value) in &kernel.constants {
        let line = find(&mut lines, kernel, &format!("override {name}:"))?;
        *line = constant(kernel, line, Some(*value))?;
    }
    for line in lines.iter_mut().filter(|line| line.trim_start().starts_with("override ")) {
        *line = constant(kernel, line, None)?;
    }
    let mut text = String::new();
    if lines.iter().any(|line| uses_f16(line)) {
        text.push_str("enable f16;\n");
    }
    if kernel.needs_cooperative() {
        text.push_str("enable wgpu_cooperative_matrix;\n");
    }
    for line in &lines {
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

/// Appends the lines of a shader, following imports and filling in pasted text.
fn include(
    text: &'static str,
    kernel: &Kernel,
    seen: &mut Vec<&'static str>,
    lines: &mut Vec<String>,
) -> Result<()> {
    for line in text.lines() {
        let left_over = || Error::LeftOver { shader: kernel.shader, line: line.trim().into() };
        if let Some(stem) = line.trim().strip_prefix("#import ") {
            let (stem, text) = SHADERS
                .iter()
                .find(|(name, _)| *name == stem.trim())
                .ok_or_else(|| Error::NoShader { shader: stem.trim().into() })?;
            if !seen.contains(stem) {
                seen.push(stem);
                include(text, kernel, seen, lines)?;
            }
        } else if let Some(name) = line.trim().strip_prefix("#paste ") {
            let (_, text) = kernel.paste.iter().find(|(n, _)| *n == name.trim()).ok_or_else(left_over)?;
            lines.extend(text.lines().map(String::from));
        } else if line.trim_start().starts_with('#') {
            return Err(left_over());
        } else {
            lines.push(line.into());
        }
    }
    Ok(())
}

fn find<'a>(lines: &'a mut [String], kernel: &Kernel, start: &str) -> Result<&'a mut String> {
    lines
        .iter_mut()
        .find(|line| line.trim_start().starts_with(start))
        .ok_or_else(|| Error::NoLine { shader: kernel.shader, line: format!("{start} ..") })
}

/// `override NAME: T = default;` as `const NAME: T = value;`.
fn constant(kernel: &Kernel, line: &str, value: Option<u32>) -> Result<String> {
    let left_over = || Error::LeftOver { shader: kernel.shader, line: line.trim().into() };
    let code = line.split("//").next().unwrap_or_default().trim();
    let (name, rest) = code["override ".len()..].split_once(':').ok_or_else(left_over)?;
    let (kind, default) =
        rest.trim().strip_suffix(';').and_then(|r| r.split_once('=')).ok_or_else(left_over)?;
    let (name, kind) = (name.trim(), kind.trim());
    let value = match (value, kind) {
        (None, _) => default.trim().to_string(),
        (Some(value), "u32") => format!("{value}u"),
        (Some(value), "i32") => format!("{}i", value as i32),
        (Some(value), "bool") => (value != 0).to_string(),
        _ => return Err(left_over()),
    };
    Ok(format!("const {name}: {kind} = {value};"))
}

fn wgsl_name(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 | DType::F16 | DType::I32 | DType::U32 => Ok(dtype.name()),
        DType::F64 | DType::BF16 | DType::I8 => Err(Error::Storage { dtype }),
    }
}

/// True if a line of code, comments aside, names the type `f16`.
fn uses_f16(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "f16")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::launch::{Caps, Cooperative};
    use crate::tensor::Type;
    use std::collections::BTreeSet;

    fn imports(text: &str) -> impl Iterator<Item = &str> {
        text.lines().filter_map(|line| line.trim().strip_prefix("#import ")).map(str::trim)
    }

    /// Every kernel that any case launches, with f32 storage, and those that measure roofs.
    fn kernels() -> Vec<Kernel> {
        let mut kernels: BTreeSet<Kernel> = crate::gpu::roof::kernels().into_iter().collect();
        let matrices = Cooperative { side: 8, operands: DType::F32, sums: DType::F32 };
        let caps = Caps {
            f16: true,
            subgroup: true,
            subgroup_size: 8,
            subgroup_most: 8,
            int64: true,
            cooperative: vec![matrices],
            max_workgroup_bytes: 32 << 10,
            ..Caps::portable()
        };
        let on_cpu = Caps { is_cpu: true, ..caps.clone() };
        for (_, cases) in crate::ops::families() {
            for case in cases().list {
                let device = |t: Type| if t.dtype == DType::F64 { Type::new(DType::F32, t.shape) } else { t };
                let inputs: Vec<Type> = case.inputs.iter().map(|t| device(t.host_type())).collect();
                let outputs = case.op.signature(&inputs).expect("a case fits its operator");
                let variants = [&caps, &on_cpu].map(|caps| case.op.launch(&inputs, &outputs, caps));
                kernels.extend(variants.into_iter().flatten().flat_map(|v| v.launches).map(|l| l.kernel));
            }
        }
        kernels.into_iter().collect()
    }

    #[test]
    fn every_shader_is_launched_by_a_case_or_imported() {
        let mut used: BTreeSet<&str> = kernels().iter().map(|k| k.shader).collect();
        used.extend(SHADERS.iter().flat_map(|(_, text)| imports(text)));
        let idle: Vec<_> = SHADERS.iter().map(|(stem, _)| *stem).filter(|s| !used.contains(s)).collect();
        assert!(idle.is_empty(), "nothing launches {idle:?}");
    }

    #[test]
    fn every_file_in_shaders_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders");
        let mut stems: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "wgsl"))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        stems.sort();
        assert_eq!(stems, SHADERS.iter().map(|(stem, _)| *stem).collect::<Vec<_>>());
    }

    /// Guard words lie inside the bound range in tests, so sizes come from `Params` alone.
    #[test]
    fn no_shader_asks_for_the_length_of_its_buffers() {
        for (stem, text) in SHADERS {
            assert!(!text.contains("arrayLength"), "{stem} uses arrayLength");
        }
    }

    #[test]
    fn overrides_become_constants_and_aliases_are_retyped() {
        let kernel = Kernel::new("dropout").constant("LANES", 64).retype("Elem", DType::F16);
        let text = text(&kernel).unwrap();
        assert!(text.starts_with("enable f16;\n"));
        for line in ["const LANES: u32 = 64u;", "alias Elem = f16;"] {
            assert!(text.lines().any(|l| l == line), "no line `{line}` in\n{text}");
        }
    }

    #[test]
    fn what_a_kernel_names_must_be_in_its_shader() {
        let refused = |kernel: Kernel| text(&kernel).unwrap_err();
        assert!(matches!(refused(Kernel::new("redcue")), Error::NoShader { .. }));
        assert!(matches!(refused(Kernel::new("dropout").constant("KNID", 1)), Error::NoLine { .. }));
        assert!(matches!(refused(Kernel::new("dropout").retype("Elm", DType::F16)), Error::NoLine { .. }));
        assert!(matches!(refused(Kernel::new("pointwise")), Error::LeftOver { .. }));
        let wrong = Kernel::new("dropout").entry("backward");
        assert!(matches!(assemble(&wrong), Err(Error::NoEntry { .. })));
    }

    #[test]
    fn an_invalid_kernel_is_an_error_with_the_line() {
        let kernel =
            Kernel::new("pointwise").paste("DECLARATIONS", "alias V = f32;").paste("BODY", "let x = ;");
        let Err(Error::Shader { message, .. }) = assemble(&kernel) else { panic!("it should not parse") };
        assert!(message.contains("let x = ;"), "{message}");
    }

    #[test]
    fn sixteen_bit_floats_in_comments_are_no_use_of_them() {
        assert!(
            uses_f16("let x = f16(y);") && !uses_f16("let x = y; // f16") && !uses_f16("unpack_f16x2(y)")
        );
    }
}
