#!/usr/bin/env bash
# Builds .venv with everything in it: `scripts/setup.sh engine` for vLLM on GPUs, `engine-cpu` for
# its community CPU build. `make setup` runs it. PYTHON names the interpreter to build from; pip's
# configuration and environment variables work as always.
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${1:?engine or engine-cpu}

say() { printf '%s\n' "$*" >&2; }

# The first Python that is new enough.
find_python() {
    local name
    for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
}

# What Debian splits off and vLLM's CPU build takes for granted.
missing_packages() {
    local python=$1
    if [ -z "$python" ]; then
        echo python3 python3-venv
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        case $python in
            */python3) echo python3-venv ;;
            *) echo "$(basename "$python")-venv" ;;
        esac
    fi
    if [ "$engine" = engine-cpu ] && [ -n "$python" ] &&
        ! "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then
        echo libnuma1
    fi
}

# Root on Debian gets what is missing; anyone else is told what to install.
install_packages() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "earwitness needs system packages that are not there. On Debian or Ubuntu:"
        say "    sudo apt-get install $*"
        exit 1
    fi
    say "+ apt-get install $*"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >&2
}

# twice: only a Python that is there can be asked about libnuma
for _ in 1 2; do
    python=$(find_python)
    mapfile -t packages < <(missing_packages "$python" | tr ' ' '\n')
    if [ ${#packages[@]} -gt 0 ]; then install_packages "${packages[@]}"; fi
done
python=$(find_python)
if [ -z "$python" ]; then
    say "earwitness needs Python 3.11 or newer, and found none (PYTHON=… names one)"
    exit 1
fi

# an environment without pip is what a failed attempt leaves behind
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "+ $python -m venv .venv"
    "$python" -m venv --clear .venv
fi
.venv/bin/python -m pip --disable-pip-version-check install --quiet --upgrade 'pip>=25'
say "+ installing earwitness and $engine (some minutes and gigabytes)"
.venv/bin/python scripts/install.py "$engine"
say "+ .venv is ready: $(.venv/bin/python --version), $engine"
