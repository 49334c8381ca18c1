//! The `kiln` command.

fn main() -> std::process::ExitCode {
    #[cfg(feature = "gpu")]
    // SAFETY: nothing has started a thread yet.
    unsafe {
        kiln::gpu::device::skip_window_layers()
    };
    kiln::cli::main()
}
