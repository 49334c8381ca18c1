//! `kiln devices`: what `--device` can name on this machine.

use clap::Args;
use serde_json::json;
use std::io::Write;

/// List the adapters of this machine, best first: what --device can name.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln devices\n  kiln devices --json\n  kiln train --device 1\n  kiln train --device radeon"
)]
pub struct Devices {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Devices {
    /// Prints the list; the host is always in it.
    pub fn run(self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        #[cfg(feature = "gpu")]
        let list = crate::gpu::device::list();
        if self.json {
            #[cfg(feature = "gpu")]
            let adapters: Vec<_> = list.iter().map(json_of).collect();
            #[cfg(not(feature = "gpu"))]
            let adapters: Vec<serde_json::Value> = vec![];
            let all = json!({ "adapters": adapters, "host": { "threads": threads } });
            writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
            return Ok(());
        }
        #[cfg(feature = "gpu")]
        {
            for l in &list {
                let yes = |b: bool| if b { "yes" } else { "no" };
                writeln!(out, "{l}")?;
                writeln!(
                    out,
                    "     f16 {}, subgroups {}, largest buffer {} MiB, largest binding {} MiB",
                    yes(l.caps.f16),
                    yes(l.caps.subgroup),
                    l.max_buffer_bytes >> 20,
                    l.caps.max_binding_bytes >> 20
                )?;
            }
            if list.is_empty() {
                writeln!(
                    out,
                    "no adapter found: install a Vulkan driver (on Debian or Ubuntu without a GPU: apt-get install mesa-vulkan-drivers)"
                )?;
            }
        }
        writeln!(out, "cpu: the host, {threads} threads")?;
        Ok(())
    }
}

/// An adapter with what matters of its limits.
#[cfg(feature = "gpu")]
pub fn json_of(l: &crate::gpu::Listing) -> serde_json::Value {
    json!({
        "index": l.index, "name": l.name, "backend": l.backend, "driver": l.driver, "kind": l.kind,
        "f16": l.caps.f16, "subgroup": l.caps.subgroup, "subgroup_sizes": l.subgroup_sizes,
        "max_buffer_bytes": l.max_buffer_bytes, "max_binding_bytes": l.caps.max_binding_bytes,
        "workgroup_bytes": l.caps.max_workgroup_bytes, "invocations": l.caps.max_invocations,
        "timestamps": l.timestamps, "packed_dot": l.packed_dot.name(),
    })
}
