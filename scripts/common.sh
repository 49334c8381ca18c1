# Shared by scripts/test and scripts/demo, which read it with `.`: finds what kiln stands on, or installs it, or says how.
#
# Needed: cargo, a C compiler (rustc links with it), and a Vulkan adapter. Where there is no GPU, Mesa's lavapipe is one,
# on the processor. macOS (Metal) and Windows (DX12) bring their own.

VULKAN_PACKAGES="mesa-vulkan-drivers libvulkan1"

# Mesa's layer that asks the desktop which GPU it prefers complains where there is no desktop; kiln orders them itself.
[ -n "${XDG_RUNTIME_DIR:-}" ] || export NODEVICE_SELECT=1

say() { echo "kiln: $*" >&2; }

# stop LINE...: the last words, one line each.
stop() {
    for line in "$@"; do say "$line"; done
    exit 1
}

# linux-debian, linux-other, macos or windows.
system() {
    case $(uname -s) in
        Darwin) echo macos ;;
        MINGW* | MSYS* | CYGWIN*) echo windows ;;
        *) if command -v apt-get >/dev/null; then echo linux-debian; else echo linux-other; fi ;;
    esac
}

# root_line COMMAND: how whoever reads it gets COMMAND run with root's rights.
root_line() {
    if [ "$(id -u)" -eq 0 ]; then echo "$1"
    elif command -v sudo >/dev/null; then echo "sudo sh -c '$1'"
    else echo "su - -c '$1'"; fi
}

# apt_line PACKAGE...
apt_line() { root_line "apt-get update && apt-get install -y $*"; }

# True if root's rights can be had without asking anyone who is not there.
can_become_root() {
    [ "$(id -u)" -eq 0 ] && return 0
    command -v sudo >/dev/null || return 1
    [ -t 0 ] || sudo -n true 2>/dev/null
}

# apt_install PACKAGE...: says so and installs, or prints the command for somebody who may.
apt_install() {
    can_become_root || stop "installing $* needs root, and there is no sudo to ask: run" "  $(apt_line "$@")"
    say "installing $* with apt-get"
    if [ "$(id -u)" -eq 0 ]; then as_root=""; else as_root=sudo; fi
    # Why the log: apt's hundred lines matter only where it fails.
    log=$(mktemp)
    if ! $as_root sh -c "export DEBIAN_FRONTEND=noninteractive; apt-get update && apt-get install -y $*" \
        >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        stop "apt-get failed, for the reason above: once it is mended, run" "  $(apt_line "$@")"
    fi
    rm -f "$log"
}

cargo_install_line() {
    official="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
    case $(system) in
        windows) echo "get rustup-init.exe from https://rustup.rs and run it" ;;
        linux-debian)
            if apt-cache show rustup 2>/dev/null | grep -q '^Package'; then echo "$(apt_line rustup) && rustup default stable"
            elif command -v curl >/dev/null; then echo "$official"
            else echo "$(apt_line curl ca-certificates) && $official"; fi ;;
        *) echo "$official" ;;
    esac
}

# cargo in the PATH, working, and of the version that Cargo.toml asks for.
need_cargo() {
    # rustup writes this folder into the profile, which a shell that is already open has not read.
    if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
        export PATH
    fi
    if ! command -v cargo >/dev/null; then
        stop "cargo not found: install Rust with" "  $(cargo_install_line)" "then run this script again"
    fi
    if ! have=$(rustc --version 2>/dev/null); then
        stop "cargo is there, but no toolchain behind it: install one with" "  rustup default stable"
    fi
    wanted=$(sed -n 's/^rust-version = "1\.\([0-9]*\).*/\1/p' Cargo.toml)
    if [ "$(echo "$have" | cut -d. -f2)" -lt "$wanted" ]; then
        if command -v rustup >/dev/null; then update="rustup update stable"; else update=$(cargo_install_line); fi
        stop "$have is too old, 1.$wanted is needed: update Rust with" "  $update"
    fi
}

compiler_install_line() {
    case $(system) in
        linux-debian) apt_line build-essential ;;
        macos) echo "xcode-select --install" ;;
        windows) echo "install Visual Studio Build Tools with the workload 'Desktop development with C++'" ;;
        *)
            if command -v dnf >/dev/null; then root_line "dnf install gcc"
            elif command -v pacman >/dev/null; then root_line "pacman -S base-devel"
            else echo "install gcc or clang with your system's package manager"; fi ;;
    esac
}

# A C compiler that can link: a compiler without the C library's files is a common half.
need_compiler() {
    # On Windows rustc looks for the linker itself, outside the PATH.
    [ "$(system)" != windows ] || return 0
    folder=$(mktemp -d)
    echo '#include <stdlib.h>
int main(void) { return EXIT_SUCCESS; }' >"$folder/probe.c"
    if "${CC:-cc}" "$folder/probe.c" -o "$folder/probe" 2>/dev/null; then linked=yes; else linked=no; fi
    rm -rf "$folder"
    if [ "$linked" = no ]; then
        stop "no C compiler that links (${CC:-cc}): install one with" "  $(compiler_install_line)" \
            "then run this script again"
    fi
}

# True if Vulkan's loader and the manifest of a driver lie where the loader looks.
vulkan_is_installed() {
    PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1' || return 1
    [ -z "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] || return 0
    for manifest in /usr/share/vulkan/icd.d/*.json /usr/local/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json \
        "${XDG_DATA_HOME:-$HOME/.local/share}"/vulkan/icd.d/*.json; do
        [ -e "$manifest" ] && return 0
    done
    return 1
}

install_lavapipe() {
    if [ "$(system)" = linux-debian ]; then
        say "no Vulkan adapter here: Mesa's lavapipe will be one, on the processor"
        # shellcheck disable=SC2086
        apt_install $VULKAN_PACKAGES
    elif command -v dnf >/dev/null; then
        stop "no Vulkan adapter: install Mesa's with" "  $(root_line "dnf install mesa-vulkan-drivers vulkan-loader")"
    elif command -v pacman >/dev/null; then
        stop "no Vulkan adapter: install Mesa's with" "  $(root_line "pacman -S vulkan-swrast vulkan-icd-loader")"
    else
        stop "no Vulkan adapter: install your GPU's Vulkan driver, or Mesa's lavapipe, and Vulkan's loader"
    fi
}

# Before the build: the half that can be seen without kiln, so that nobody waits for a build to learn of it.
need_driver() {
    case $(system) in
        linux-*) vulkan_is_installed || install_lavapipe ;;
        *) ;;
    esac
}

# has_adapter KILN: asks the program itself, which alone knows what wgpu reaches.
has_adapter() { "$1" devices --json 2>/dev/null | grep -qiE '"(vulkan|metal|dx12)"'; }

# need_adapter KILN: after the build. A driver may be there and find no device, as in a container without the GPU.
need_adapter() {
    if has_adapter "$1"; then return 0; fi
    case $(system) in
        linux-*) ls /usr/share/vulkan/icd.d/lvp_icd*.json >/dev/null 2>&1 || install_lavapipe ;;
        *) stop "wgpu finds no adapter on this machine; kiln still trains with --device cpu" ;;
    esac
    has_adapter "$1" || stop "lavapipe is installed, but wgpu finds no adapter: see '$1 devices'"
}

# Where cargo builds, as an absolute path.
target_folder() {
    case ${CARGO_TARGET_DIR:-target} in
        /*) echo "${CARGO_TARGET_DIR}" ;;
        *) echo "$PWD/${CARGO_TARGET_DIR:-target}" ;;
    esac
}
