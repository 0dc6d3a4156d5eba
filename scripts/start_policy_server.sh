#!/usr/bin/env bash
# Serve a policy: servers/start_policy_server.py with this checkout's own Python, if it has one.
#
#   scripts/start_policy_server.sh --model_path CHECKPOINT [any flag of servers/start_policy_server.py]
#
# --model_path is another name for -m. PYTHON=<interpreter> chooses the Python.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

arguments=()
for word in "$@"; do
    case "$word" in
        --model_path | --model-path) arguments+=(-m) ;;
        --model_path=* | --model-path=*) arguments+=("--model_name_or_path=${word#*=}") ;;
        *) arguments+=("$word") ;;
    esac
done

python="${PYTHON:-$root/.venv/bin/python}"
command -v "$python" >/dev/null || python=python3
exec "$python" "$root/servers/start_policy_server.py" ${arguments[@]+"${arguments[@]}"}
