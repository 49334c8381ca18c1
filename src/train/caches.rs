//! Where this user's caches lie.

use std::path::PathBuf;

/// The folder for what can be made anew: `KILN_CACHE`, or `kiln` in the system's folder for caches.
pub fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = |below: &str| folder("HOME").map(|home| home.join(below));
    folder("KILN_CACHE").or_else(|| {
        let system = if cfg!(windows) {
            folder("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            home("Library/Caches")
        } else {
            folder("XDG_CACHE_HOME").or_else(|| home(".cache"))
        };
        system.map(|folder| folder.join("kiln"))
    })
}

/// What is known of the kernels on this user's adapters.
pub fn kernels_file() -> Option<PathBuf> {
    cache_folder().map(|folder| folder.join("kernels.json"))
}
