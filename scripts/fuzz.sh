#!/usr/bin/env bash
# Fuzz everything that reads a peer's bytes, each target for a while; fail when one finds something.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]
#
# SECONDS are for each target (60). Targets: codec, codec-pure (msgpack in Python), frames, link, layouts, values, inference,
# codings, deliveries, pickles, and supervisor: a real server that is sent garbage. All when none is named.
# Makes .venv-fuzz, with atheris, of PYTHON= or a Python for which atheris has a wheel. What is found is kept under outputs/fuzz.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly ATHERIS='atheris==3.0.0' # has wheels for Python 3.11 to 3.13 on Linux
readonly REQUIREMENTS=("$ATHERIS" zstandard numcodecs simplejpeg hypothesis pytest -e .)

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} "$HOME"/.pyenv/versions/3.1[123].*/bin/python3 python3.11 python3.12 python3.13 python3; do
        if "$name" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo 'error: atheris needs Python 3.11, 3.12 or 3.13; name one: PYTHON=/path/to/python3' >&2
    return 1
}

prepare() {
    local wanted
    wanted="$(cksum <pyproject.toml) ${REQUIREMENTS[*]}"
    grep -qxF -- "$wanted" .venv-fuzz/.prepared 2>/dev/null && .venv-fuzz/bin/python -c '' 2>/dev/null && return
    "$(find_python)" -m venv --clear .venv-fuzz
    .venv-fuzz/bin/python -m pip install -q --disable-pip-version-check "${REQUIREMENTS[@]}"
    echo "$wanted" >.venv-fuzz/.prepared
}

# fuzz TARGET: its executions and findings in $executions and $found.
fuzz() {
    local name=$1 target=${1%-pure} folder=outputs/fuzz/$1 pure=()
    [[ $name == *-pure ]] && pure=(MSGPACK_PUREPYTHON=1)
    mkdir -p "$folder/inputs"
    rm -f "$folder"/{crash,oom,timeout,leak}-*
    if [[ $name == supervisor ]]; then
        .venv-fuzz/bin/python -m fuzz.supervisor --seconds "$seconds" --findings "$folder" >"$folder/log" 2>&1 || true
    else
        # The first folder collects what is new; memory and time of one input are bounded as well.
        env "${pure[@]}" .venv-fuzz/bin/python -m fuzz.run_target "$target" "$folder/inputs" "fuzz/corpus/$target" \
            -max_total_time="$seconds" -max_len=2048 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
            -artifact_prefix="$folder/" >"$folder/log" 2>&1 || true
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$folder/log" | tail -n 1)
    found=$(find "$folder" -maxdepth 1 \( -name 'crash-*' -o -name 'oom-*' -o -name 'timeout-*' -o -name 'leak-*' \) | wc -l)
}

seconds=60
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    seconds=$1
    shift
fi
targets=("$@")
((${#targets[@]})) || targets=(frames codec codec-pure link layouts values inference codings deliveries pickles supervisor)
prepare
failed=0
printf '%-12s %12s %9s\n' target executions findings
for target in "${targets[@]}"; do
    fuzz "$target"
    printf '%-12s %12s %9s\n' "$target" "${executions:-none}" "$found"
    if ((found)) || [[ -z $executions ]]; then
        failed=1
        echo "  see outputs/fuzz/$target/log; an input is read again by: python -m fuzz.run_target $target FILE"
    fi
done
exit "$failed"
