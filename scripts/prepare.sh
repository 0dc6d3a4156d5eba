#!/usr/bin/env bash
# Get this checkout ready for one job, and do nothing when it is ready already.
#
#   scripts/prepare.sh demo|test|check|bench|docs|ecosystem|dialects|rivals|interpreters|isaac
#
# Creates .venv (test: .venv-far and .venv-openpi too; docs: .venv-docs; ecosystem: .venv-ecosystem; dialects: .venv-lerobot;
# rivals: .venv-rival-ray and so on; interpreters: .venv-far-3.10 and so on; isaac: .venv-isaac) and installs what the job needs.
# Missing Debian packages are installed when we are root; otherwise the command to install them is printed, and that is all.
# PYTHON=<interpreter> chooses the Python (3.10 or later) that the environments are made with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '== %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

# The interpreter that PYTHON names, or the first that is recent enough.
find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10; do
        if is_recent "$name"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# An interpreter of just that version that can create environments: pyenv's or on the PATH.
find_version() {
    local candidate
    for candidate in "$HOME"/.pyenv/versions/"$1"*/bin/python3 "$(command -v "python$1" || true)"; do
        if [[ -x "$candidate" ]] && is_recent "$candidate" && "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# For the tests' far end: another interpreter than ours if there is one, else ours in an environment of its own.
find_other_python() { find_version 3.12 || find_version 3.10 || find_version 3.13 || find_python; }

is_installed() { [[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]; }

# install_debian PACKAGE...: those that are missing; nothing on other systems.
install_debian() {
    command -v apt-get >/dev/null || return 0
    local package missing=() install
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)); then
        printf 'These Debian packages are missing; install them, then run this again:\n\n' >&2
        printf '    sudo apt-get install --no-install-recommends %s\n\n' "${missing[*]}" >&2
        exit 1
    fi
    say "installing Debian packages: ${missing[*]}"
    install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
    export DEBIAN_FRONTEND=noninteractive
    "${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}" >/dev/null; }
}

# make_environment FOLDER PYTHON REQUIREMENT...: created, or made anew when its interpreter no longer runs, and filled;
# done already when neither pyproject.toml nor the list has changed since.
make_environment() {
    local folder=$1 python=$2 stamp wanted
    shift 2
    stamp="$folder/.prepared"
    wanted="$(cksum <pyproject.toml) $*"
    if "$folder/bin/python" -c '' 2>/dev/null; then
        grep -qxF -- "$wanted" "$stamp" 2>/dev/null && return
    else
        say "creating $folder with $("$python" --version)"
        rm -rf "$folder"
        "$python" -m venv "$folder"
    fi
    say "installing into $folder: $*"
    "$folder/bin/python" -m pip install -q --disable-pip-version-check "$@"
    echo "$wanted" >>"$stamp"
}

# The interpreter to make environments with, in $python; what Debian calls it goes to the missing packages.
choose_python() {
    if ! python="$(find_python)"; then
        command -v apt-get >/dev/null || fail "no Python 3.10 or later on the PATH; install one, or name it: PYTHON=/path/to/python3"
        packages+=(python3 python3-venv)
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        packages+=(python3-venv)
    fi
}

# install_all: what was collected in $packages, at once; then the interpreter must be whole.
install_all() {
    install_debian "${packages[@]}"
    python="$(find_python)" || fail "no Python 3.10 or later on the PATH; name one: PYTHON=/path/to/python3"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot create environments: its venv or ensurepip is missing"
}

readonly EGL=(libegl1 libopengl0 libgl1-mesa-dri)
[[ -z "${PYTHON:-}" ]] || is_recent "$PYTHON" || fail "PYTHON=$PYTHON is no Python 3.10 or later"
packages=()
job="${1:-}"
choose_python
case "$job" in
    demo)
        is_installed libosmesa6 || packages+=("${EGL[@]}") # one of the two software renderers is enough
        install_all
        make_environment .venv "$python" -e '.[all]'
        ;;
    check)
        install_all
        make_environment .venv "$python" -e '.[dev]'
        ;;
    test | bench)
        packages+=("${EGL[@]}" libosmesa6 openssh-server openssh-client)
        packages+=(xvfb xdotool libgl1) # a display for MuJoCo's viewer, and keys for it
        command -v node >/dev/null || packages+=(nodejs) # runs examples/minimal_client.mjs
        install_all
        make_environment .venv "$python" -e '.[dev]'
        make_environment .venv-far "$(find_other_python)" numpy gymnasium 'mujoco<3.9'
        # openpi's own client, unmodified; it does not name typing_extensions, and wants numpy 1, which is not for 3.13.
        openpi="$(find_version 3.11 || find_version 3.12 || find_version 3.10 || find_python)"
        make_environment .venv-openpi "$openpi" 'openpi-client==0.1.2' typing_extensions
        ;;
    docs)
        install_all
        make_environment .venv-docs "$python" -e '.[docs]'
        ;;
    ecosystem)
        install_all
        # torch is pinned: any other version drags in gigabytes of GPU libraries.
        make_environment .venv-ecosystem "$python" 'torch==2.13.0' 'stable-baselines3>=2.4' 'matplotlib>=3.8' \
            'onnx==1.23.2' 'onnxscript==0.7.2' 'onnxruntime==1.31.1' safetensors pytest pytest-timeout -e '.[aloha]'
        ;;
    dialects) # LeRobot without the dependencies that our tests do not touch; torch is pinned: the CPU build (2 GB in all)
        "${BASH_SOURCE[0]}" test
        lerobot="$(find_version 3.11)" || fail "LeRobot's tests need Python 3.11, and there is none here"
        make_environment .venv-lerobot "$lerobot" 'torch==2.13.0'
        make_environment .venv-lerobot "$lerobot" --no-deps 'lerobot==0.4.4' 'torchvision==0.28.0'
        make_environment .venv-lerobot "$lerobot" 'grpcio==1.73.1' 'protobuf==6.31.1' 'draccus==0.10.0' 'datasets==4.8.5' \
            'diffusers==0.35.2' 'accelerate==1.15.0' 'huggingface_hub==0.35.3' 'einops==0.8.2' 'deepdiff==8.6.2' \
            'opencv-python-headless==4.12.0.88' 'pyserial==3.5' 'av==15.1.0' pytest pytest-timeout -e '.[aloha,lerobot]'
        ;;
    rivals) # other ways to a remote environment, for bench_peers and bench_memory (1.3 GB in all)
        "${BASH_SOURCE[0]}" bench
        rival="$(find_version 3.11 || find_version 3.12)" || fail "the rivals need Python 3.11 or 3.12, and there is none here"
        make_environment .venv-rival-dm-env-rpc "$rival" 'dm-env-rpc==1.1.7' 'grpcio==1.85.1' 'protobuf==7.36.2' numpy
        make_environment .venv-rival-openenv "$rival" 'openenv==0.10.0' 'websockets==17.4' 'uvicorn==0.54.0' numpy
        # hud's bridge imports openpi-client, which only its developers' extra names.
        make_environment .venv-rival-hud "$rival" 'hud==0.6.21' 'openpi-client==0.1.2' 'websockets==17.4' typing_extensions
        make_environment .venv-rival-ray "$rival" 'ray==2.60.0' numpy
        ;;
    interpreters) # far ends of every corner that we promise, as far as these interpreters are here
        "${BASH_SOURCE[0]}" test
        for version in 3.10 3.11 3.12 3.13; do
            if ! other="$(find_version "$version")"; then
                say "there is no Python $version here; its corner is left out"
            elif [[ "$version" == 3.10 ]]; then
                make_environment .venv-far-3.10 "$other" 'numpy<2' 'gymnasium==0.29.1' 'mujoco<3.9' # Isaac Sim 4's corner
            else
                make_environment ".venv-far-$version" "$other" numpy gymnasium 'mujoco<3.9'
            fi
        done
        ;;
    isaac) # Isaac Lab 3 without Isaac Sim: its Newton physics runs on the CPU (8 GB with torch)
        "${BASH_SOURCE[0]}" test
        isaac="$(find_version 3.12)" || fail "Isaac Lab 3 needs Python 3.12, and there is none here"
        make_environment .venv-isaac "$isaac" 'isaaclab==3.0.0' msgpack # msgpack travels over SSH, not to a local interpreter
        ;;
    *) fail "usage: scripts/prepare.sh demo|test|check|bench|docs|ecosystem|dialects|rivals|interpreters|isaac" ;;
esac
