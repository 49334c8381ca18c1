//! The only floor that knows wgpu: devices, shaders made concrete, pipelines, and the engine that replays a plan.

pub mod bytes;
mod clock;
pub mod device;
pub mod dot;
pub mod engine;
mod evaluate;
pub mod ledger;
pub mod loader;
mod pace;
pub mod pipeline;
pub mod qualify;
mod quiet;
mod ready;
pub mod reflect;
pub mod roof;
pub mod run;
mod timing;
mod transfer;
pub mod tune;

pub use device::{Gpu, Listing};
pub use engine::GpuEngine;
pub use evaluate::evaluate;
pub use ledger::Ledger;
pub use pipeline::Pipelines;
pub use tune::Tuner;

use crate::tensor::DType;

/// What can go wrong between a plan and the device.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
pub enum Error {
    /// No adapter on this machine.
    #[error("no GPU adapter found (Vulkan, Metal or DX12)\n  hint: {hint}, or run with --device cpu")]
    NoAdapter {
        /// What to install here.
        hint: &'static str,
    },
    /// `KILN_TUNE` says something unknown.
    #[error("KILN_TUNE is `{got}`\n  hint: off, use or force")]
    Tune {
        /// What it says.
        got: String,
    },
    /// No adapter of that name or number.
    #[error("no adapter matches `{wanted}`; this machine has: {existing}")]
    NotFound {
        /// What was asked for.
        wanted: String,
        /// What there is.
        existing: String,
    },
    /// The driver would not open the device.
    #[error("{adapter}: the driver refused to open the device: {reason}")]
    Open {
        /// Name of the adapter.
        adapter: String,
        /// The driver's words.
        reason: String,
    },
    /// The device is gone: reset by a watchdog, unplugged or crashed.
    #[error(
        "{adapter}: the device was lost: {reason}\n  hint: try again; if it repeats, with a smaller batch"
    )]
    Lost {
        /// Name of the adapter.
        adapter: String,
        /// The driver's words.
        reason: String,
    },
    /// The device ran out of memory.
    #[error(
        "{adapter}: out of memory\n  hint: lower train.batch or train.context, or close other programs that use the GPU"
    )]
    OutOfMemory {
        /// Name of the adapter.
        adapter: String,
    },
    /// The driver or wgpu's validation refused something.
    #[error("{adapter}: {reason}")]
    Refused {
        /// Name of the adapter.
        adapter: String,
        /// The validation's words.
        reason: String,
    },
    /// A kernel needs what the adapter lacks.
    #[error("kernel `{shader}` needs {need}, {adapter} has {have}")]
    Unsupported {
        /// Stem of the shader.
        shader: &'static str,
        /// What it needs.
        need: String,
        /// Name of the adapter.
        adapter: String,
        /// What there is.
        have: String,
    },
    /// A shader, or something it imports, does not exist.
    #[error("no shader `{shader}` in shaders/")]
    NoShader {
        /// Stem that was asked for.
        shader: String,
    },
    /// A kernel names a line that its shader lacks.
    #[error("kernel `{shader}`: there is no line `{line}`")]
    NoLine {
        /// Stem of the shader.
        shader: &'static str,
        /// The line as it should stand in the shader.
        line: String,
    },
    /// A `#paste` line was left without text, or a directive is misspelt.
    #[error("kernel `{shader}`: the line `{line}` was left over")]
    LeftOver {
        /// Stem of the shader.
        shader: &'static str,
        /// The line.
        line: String,
    },
    /// The assembled text is not valid WGSL.
    #[error("kernel `{shader}`: {message}")]
    Shader {
        /// Stem of the shader.
        shader: &'static str,
        /// naga's report, with the line.
        message: String,
    },
    /// The shader has no such entry point.
    #[error("kernel `{shader}`: no compute entry point `{entry}`")]
    NoEntry {
        /// Stem of the shader.
        shader: &'static str,
        /// Name of the entry point.
        entry: &'static str,
    },
    /// The shader declares something in a shape the loader does not read.
    #[error("kernel `{shader}`: {got}, expected {expected}")]
    Layout {
        /// Stem of the shader.
        shader: &'static str,
        /// What it should have been.
        expected: &'static str,
        /// What it is.
        got: String,
    },
    /// A launch binds a different number of buffers than the shader declares.
    #[error("kernel `{shader}`: binds {expected} buffers, got {got}")]
    Bindings {
        /// Stem of the shader.
        shader: &'static str,
        /// Buffers the shader declares.
        expected: usize,
        /// Buffers given.
        got: usize,
    },
    /// A launch gives the wrong parameters.
    #[error("kernel `{shader}`: parameter `{name}` {problem}")]
    Parameter {
        /// Stem of the shader.
        shader: &'static str,
        /// Name of the field.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A kernel was to be made for a storage type that WGSL lacks.
    #[error("shaders have no {dtype} elements")]
    Storage {
        /// The type.
        dtype: DType,
    },
    /// A value given from the host does not fit its place.
    #[error("`{name}`: expected {expected}, got {got}")]
    Value {
        /// Name of the value.
        name: String,
        /// Type of the place.
        expected: String,
        /// Type given.
        got: String,
    },
}

impl From<Error> for crate::plan::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Lost { adapter, reason } => crate::plan::Error::Lost { device: adapter, reason },
            other => crate::plan::Error::Device { reason: other.to_string() },
        }
    }
}

/// Result of talking to a device.
pub type Result<T, E = Error> = std::result::Result<T, E>;
