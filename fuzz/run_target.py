"""Fuzz one target under atheris: `python -m fuzz.run_target codec fuzz/corpus/codec -max_total_time=60`.

What comes after the target's name is libFuzzer's: folders of inputs, and flags.
"""

from __future__ import annotations

import importlib
import sys

import atheris

# What is instrumented guides the search: our own readers, and msgpack's where it is the one in Python.
INSTRUMENTED = ["remote_env", "msgpack", "fuzz.targets"]


def main(name: str, arguments: list[str]) -> None:
    """Fuzz until libFuzzer's flags say enough; the process ends here."""
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = importlib.import_module(f"fuzz.targets.{name}")
    atheris.Setup([sys.argv[0], *arguments], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
