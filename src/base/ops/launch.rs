//! What an operator asks of a device, as plain data: kernels, bindings, parameters, workgroups.

use crate::tensor::DType;

/// Largest number of workgroups along one axis that every adapter takes.
pub const MAX_GROUPS: u64 = 65_535;

/// What the adapter can do, as far as operators choose by it.
#[derive(Clone, Debug, PartialEq)]
pub struct Caps {
    /// True for a driver that runs on the CPU, such as lavapipe: registers win over workgroup memory there.
    pub is_cpu: bool,
    /// f16 storage and arithmetic (SHADER_F16).
    pub f16: bool,
    /// Subgroup operations.
    pub subgroup: bool,
    /// Invocations per subgroup where the adapter has one fixed size (its least and greatest are equal), else 0.
    pub subgroup_size: u32,
    /// Invocations a subgroup may have at most; 0 where it is not known.
    pub subgroup_most: u32,
    /// Cooperative matrices it multiplies (EXPERIMENTAL_COOPERATIVE_MATRIX).
    pub cooperative: Vec<Cooperative>,
    /// 64-bit integers (SHADER_INT64): one load then moves eight floats.
    pub int64: bool,
    /// Invocations per workgroup.
    pub max_invocations: u32,
    /// Bytes of workgroup memory.
    pub max_workgroup_bytes: u32,
    /// Bytes of the largest storage binding.
    pub max_binding_bytes: u64,
    /// Storage buffers one shader may bind.
    pub max_storage_buffers: u32,
}

/// Square matrices that a subgroup multiplies and adds together: C = A B + C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cooperative {
    /// Rows and columns of all three.
    pub side: u32,
    /// Elements of A and B.
    pub operands: DType,
    /// Elements of C.
    pub sums: DType,
}

impl Caps {
    /// The limits every WebGPU adapter grants.
    pub fn portable() -> Self {
        Caps {
            is_cpu: false,
            f16: false,
            subgroup: false,
            subgroup_size: 0,
            subgroup_most: 0,
            cooperative: vec![],
            int64: false,
            max_invocations: 256,
            max_workgroup_bytes: 16 << 10,
            max_binding_bytes: 128 << 20,
            max_storage_buffers: 8,
        }
    }
}

/// A shader made concrete: which file, with which storage types, constants and pasted text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kernel {
    /// Stem of a file in `shaders/`.
    pub shader: &'static str,
    /// Entry point.
    pub entry: &'static str,
    /// `alias NAME = ..` lines to retype.
    pub types: Vec<(&'static str, DType)>,
    /// `override NAME` lines to turn into constants.
    pub constants: Vec<(&'static str, u32)>,
    /// Text for each `#paste NAME` line.
    pub paste: Vec<(&'static str, String)>,
}

impl Kernel {
    /// Entry `forward` of a shader.
    pub fn new(shader: &'static str) -> Self {
        Kernel { shader, entry: "forward", types: vec![], constants: vec![], paste: vec![] }
    }

    /// Another entry point.
    pub fn entry(mut self, entry: &'static str) -> Self {
        self.entry = entry;
        self
    }

    /// Retypes an alias.
    pub fn retype(mut self, alias: &'static str, dtype: DType) -> Self {
        self.types.push((alias, dtype));
        self
    }

    /// Fixes an override.
    pub fn constant(mut self, name: &'static str, value: u32) -> Self {
        self.constants.push((name, value));
        self
    }

    /// True if it has elements of f16, which not every adapter computes with.
    pub fn needs_f16(&self) -> bool {
        self.types.iter().any(|(_, dtype)| *dtype == DType::F16)
    }

    /// True if it computes with cooperative matrices.
    pub fn needs_cooperative(&self) -> bool {
        self.paste.iter().any(|(_, text)| text.contains("coop_mat"))
    }

    /// Fills a paste line.
    pub fn paste(mut self, name: &'static str, text: impl Into<String>) -> Self {
        self.paste.push((name, text.into()));
        self
    }
}

/// A scalar in a shader's `Params`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// u32.
    U32(u32),
    /// i32.
    I32(i32),
    /// f32.
    F32(f32),
}

impl From<u32> for Scalar {
    fn from(x: u32) -> Self {
        Scalar::U32(x)
    }
}
impl From<usize> for Scalar {
    fn from(x: usize) -> Self {
        Scalar::U32(
            u32::try_from(x).expect("sizes in shaders are 32-bit: checked by the planner's binding limit"),
        )
    }
}
impl From<i32> for Scalar {
    fn from(x: i32) -> Self {
        Scalar::I32(x)
    }
}
impl From<f32> for Scalar {
    fn from(x: f32) -> Self {
        Scalar::F32(x)
    }
}

/// What stands behind one binding of group 0, in the order of the shader's binding numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bind {
    /// Input of the operator.
    Input(usize),
    /// Output of the operator; for an in-place output this is also where the input lives.
    Output(usize),
    /// Scratch of the variant.
    Scratch(usize),
}

/// One dispatch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel.
    pub kernel: Kernel,
    /// Buffers at group 0, binding 0, 1, 2 ...
    pub bindings: Vec<Bind>,
    /// Fields of `Params` (group 1, binding 0, uniform) by name; all of them must be given.
    pub params: Vec<(String, Scalar)>,
    /// Workgroups along x, y, z.
    pub groups: [u32; 3],
}

impl Launch {
    /// A dispatch of `groups` workgroups, folded over x and y so that no axis passes [`MAX_GROUPS`].
    ///
    /// The shader finds its number as `group.y * groups.x + group.x` and must guard the tail.
    pub fn new(kernel: Kernel, bindings: impl Into<Vec<Bind>>, groups: usize) -> Self {
        Launch { kernel, bindings: bindings.into(), params: vec![], groups: fold(groups as u64) }
    }

    /// Gives one parameter.
    pub fn param(mut self, name: impl Into<String>, value: impl Into<Scalar>) -> Self {
        self.params.push((name.into(), value.into()));
        self
    }
}

/// Spreads a count of workgroups over two axes.
pub fn fold(groups: u64) -> [u32; 3] {
    let groups = groups.max(1);
    let y = groups.div_ceil(MAX_GROUPS);
    let x = groups.div_ceil(y);
    [x as u32, y as u32, 1]
}

/// Workgroups for a kernel of 128 lanes whose invocations walk `count` elements with the stride of the whole grid: beyond
/// some thousands they loop instead, since a workgroup has a price on every driver.
pub fn spread(count: usize) -> usize {
    count.div_ceil(128).clamp(1, 4096)
}

/// One way to compute an operator: dispatches in order, with scratch that lives only between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Name, such as `matmul_register`; `kiln doctor` and the tuner speak of it.
    pub name: String,
    /// Dispatches in order.
    pub launches: Vec<Launch>,
    /// Bytes of each scratch buffer.
    pub scratch: Vec<u64>,
}

impl Variant {
    /// True if any of its kernels has elements of f16.
    pub fn needs_f16(&self) -> bool {
        self.launches.iter().any(|launch| launch.kernel.needs_f16())
    }

    /// A variant of a single dispatch.
    pub fn single(name: impl Into<String>, launch: Launch) -> Self {
        Variant { name: name.into(), launches: vec![launch], scratch: vec![] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_covers_every_group_within_the_axis_limit() {
        for groups in [0, 1, 65_535, 65_536, 70_001, 5_000_000] {
            let [x, y, z] = fold(groups);
            assert!(x as u64 * y as u64 * z as u64 >= groups.max(1));
            assert!(x as u64 <= MAX_GROUPS && y as u64 <= MAX_GROUPS);
        }
    }
}
