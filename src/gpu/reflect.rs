//! What a shader says of itself: its buffers, the layout of `Params` and its workgroup.

use super::{Error, Result};
use crate::ops::launch::{Kernel, Scalar};
use naga::{AddressSpace, ScalarKind, StorageAccess, TypeInner};

/// The interface of one entry point.
#[derive(Clone, Debug, PartialEq)]
pub struct Reflection {
    /// For each binding of group 0: is it written?
    pub written: Vec<bool>,
    /// Fields of `Params`, empty without one.
    pub fields: Vec<Field>,
    /// Bytes of `Params`, zero without one.
    pub params_bytes: usize,
    /// Invocations along x, y, z.
    pub workgroup: [u32; 3],
}

/// One scalar in `Params`.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Bytes from the start.
    pub offset: usize,
    /// u32, i32 or f32.
    pub kind: ScalarKind,
}

/// Reads the interface of the kernel's entry point.
pub fn reflect(module: &naga::Module, kernel: &Kernel) -> Result<Reflection> {
    let shader = kernel.shader;
    let entry = module
        .entry_points
        .iter()
        .find(|e| e.name == kernel.entry && e.stage == naga::ShaderStage::Compute)
        .ok_or(Error::NoEntry { shader, entry: kernel.entry })?;
    let mut written: Vec<(u32, bool)> = vec![];
    let (mut fields, mut params_bytes) = (vec![], 0);
    for (_, global) in module.global_variables.iter() {
        let Some(binding) = global.binding else { continue };
        match (binding.group, global.space) {
            (0, AddressSpace::Storage { access }) => {
                written.push((binding.binding, access.contains(StorageAccess::STORE)));
            }
            (1, AddressSpace::Uniform) if binding.binding == 0 => {
                let TypeInner::Struct { members, span } = &module.types[global.ty].inner else {
                    let got = "group 1, binding 0 is no struct".into();
                    return Err(Error::Layout { shader, expected: "struct Params", got });
                };
                params_bytes = *span as usize;
                fields = members.iter().map(|m| field(module, kernel, m)).collect::<Result<_>>()?;
            }
            (group, _) => {
                let got = format!("a binding at group {group}, binding {}", binding.binding);
                let expected = "storage buffers in group 0 and a uniform at group 1, binding 0";
                return Err(Error::Layout { shader, expected, got });
            }
        }
    }
    written.sort();
    if written.iter().enumerate().any(|(i, (number, _))| i as u32 != *number) {
        let got = format!("bindings {:?}", written.iter().map(|w| w.0).collect::<Vec<_>>());
        return Err(Error::Layout { shader, expected: "bindings numbered 0, 1, 2 ..", got });
    }
    let written = written.into_iter().map(|w| w.1).collect();
    Ok(Reflection { written, fields, params_bytes, workgroup: entry.workgroup_size })
}

fn field(module: &naga::Module, kernel: &Kernel, member: &naga::StructMember) -> Result<Field> {
    let name = member.name.clone().unwrap_or_default();
    match module.types[member.ty].inner {
        TypeInner::Scalar(naga::Scalar { kind, width: 4 }) => {
            Ok(Field { name, offset: member.offset as usize, kind })
        }
        _ => Err(Error::Layout {
            shader: kernel.shader,
            expected: "u32, i32 or f32",
            got: format!("parameter `{name}` has another type"),
        }),
    }
}

impl Reflection {
    /// The bytes of `Params` from values by name; each field must be given once, and nothing else.
    pub fn pack(&self, shader: &'static str, params: &[(String, Scalar)]) -> Result<Vec<u8>> {
        let wrong = |name: &str, problem: String| Error::Parameter { shader, name: name.into(), problem };
        let mut bytes = vec![0; self.params_bytes];
        for (at, (name, value)) in params.iter().enumerate() {
            let field = self.fields.iter().find(|f| f.name == *name);
            let field = field.ok_or_else(|| wrong(name, "is not in the shader".into()))?;
            if params[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(wrong(name, "is given twice".into()));
            }
            let word = match (*value, field.kind) {
                (Scalar::U32(x), ScalarKind::Uint) => x.to_le_bytes(),
                (Scalar::I32(x), ScalarKind::Sint) => x.to_le_bytes(),
                (Scalar::F32(x), ScalarKind::Float) => x.to_le_bytes(),
                (value, kind) => {
                    return Err(wrong(name, format!("is {kind:?} in the shader, got {value:?}")));
                }
            };
            bytes[field.offset..field.offset + 4].copy_from_slice(&word);
        }
        match self.fields.iter().find(|f| !params.iter().any(|(name, _)| *name == f.name)) {
            Some(missing) => Err(wrong(&missing.name, "is not given".into())),
            None => Ok(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::loader::assemble;
    use super::*;

    fn param(name: &str, value: impl Into<Scalar>) -> (String, Scalar) {
        (name.into(), value.into())
    }

    #[test]
    fn the_interface_is_read_from_the_shader() {
        let reflection = assemble(&Kernel::new("dropout").constant("LANES", 32)).unwrap().reflection.clone();
        assert_eq!(reflection.written, [false, false, true]);
        assert_eq!(reflection.workgroup, [32, 1, 1]);
        let names: Vec<_> = reflection.fields.iter().map(|f| (f.name.as_str(), f.offset)).collect();
        assert_eq!(names, [("count", 0), ("salt", 4), ("threshold", 8), ("scale", 12)]);
    }

    #[test]
    fn parameters_are_packed_by_name_in_any_order() {
        let reflection = assemble(&Kernel::new("dropout")).unwrap().reflection.clone();
        let given =
            [param("threshold", 3u32), param("count", 1u32), param("scale", 0.5f32), param("salt", 2u32)];
        let bytes = reflection.pack("dropout", &given).unwrap();
        assert_eq!(bytes[..16], [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0x3f]);
    }

    #[test]
    fn a_missing_unknown_doubled_or_mistyped_parameter_is_named() {
        let reflection = assemble(&Kernel::new("dropout")).unwrap().reflection.clone();
        let all =
            [param("count", 1u32), param("salt", 2u32), param("threshold", 3u32), param("scale", 0.5f32)];
        let mut extra = all.to_vec();
        extra.push(param("width", 1u32));
        let mut twice = all.to_vec();
        twice.push(all[0].clone());
        let mut float = all.to_vec();
        float[1] = param("salt", 1.0f32);
        for (given, culprit) in
            [(all[..3].to_vec(), "scale"), (extra, "width"), (twice, "count"), (float, "salt")]
        {
            let Err(Error::Parameter { name, .. }) = reflection.pack("dropout", &given) else {
                panic!("{given:?} should be refused")
            };
            assert_eq!(name, culprit);
        }
    }
}
