#!/usr/bin/env bash
# Serve a checkpoint on this machine, evaluate it through its server, and stop the server again.
#
#   scripts/example_eval_remote.sh                       the repository's checkpoint, 4 episodes
#   scripts/example_eval_remote.sh --num_rollout 20      flags go to examples/eval_remote.py
#   MODEL=ckpt/mine PORT=5001 scripts/example_eval_remote.sh -e aloha-insertion
#   ADDRESS=box:5000 scripts/example_eval_remote.sh      a server that runs already; none is started
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-.venv/bin/python}
[[ -x "$python" || -n "${PYTHON:-}" ]] || python=python3
model=${MODEL:-ckpt/act_sim_transfer_cube_scripted_zscore_example}
port=${PORT:-5000}

if [[ -n "${ADDRESS:-}" ]]; then
    exec "$python" examples/eval_remote.py -m "$ADDRESS" -e aloha --num_rollout 4 "$@"
fi

answers() { "$python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)' "http://127.0.0.1:$port/healthz" 2>/dev/null; }

if answers; then
    echo "error: something answers on port $port already; evaluate it with ADDRESS=localhost:$port, or give another PORT" >&2
    exit 1
fi
"$python" servers/start_policy_server.py -m "$model" --port "$port" --device "${DEVICE:-cpu}" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
for _ in $(seq 300); do
    answers && break
    kill -0 "$server" 2>/dev/null || { echo "error: the policy server did not start; see above" >&2; exit 1; }
    sleep 0.2
done
answers || { echo "error: the policy server does not answer on port $port after a minute" >&2; exit 1; }
"$python" examples/eval_remote.py -m "localhost:$port" -e aloha --num_rollout 4 "$@"
