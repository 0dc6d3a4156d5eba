"""Serve a policy to robots, simulators and evaluations, in whatever protocol their clients speak.

    python servers/start_policy_server.py -m ckpt/act_sim_transfer_cube_scripted_zscore_example --port 5000 --device cpu
    python servers/start_policy_server.py --config configs/policy_server.yaml

Ctrl-C ends it. --help lists every flag.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C within an import is no traceback; the program sets its own

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing

from remote_env.policy.server.program import main

if __name__ == "__main__":
    sys.exit(main())
