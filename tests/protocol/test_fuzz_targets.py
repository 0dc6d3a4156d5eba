"""The targets of fuzz/ hold for their corpus, for what was ever found, and for spoiled inputs that Hypothesis makes."""

from __future__ import annotations

import importlib
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote_env.errors import ProtocolError
from remote_env.protocol import codec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the targets are no part of the package
TARGETS = ("codec", "codings", "deliveries", "frames", "inference", "layouts", "link", "pickles", "values")
BODIES = [path.read_bytes()[2:] for path in sorted((ROOT / "fuzz/corpus/codec").iterdir())]
QUICK = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def target(name: str) -> Callable[[bytes], None]:
    run: Callable[[bytes], None] = importlib.import_module(f"fuzz.targets.{name}").run
    return run


def inputs(name: str) -> list[bytes]:
    folders = (ROOT / "fuzz/corpus" / name, ROOT / "fuzz/regressions" / name)
    return [path.read_bytes() for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]


def test_every_target_is_here() -> None:
    written = {path.stem for path in (ROOT / "fuzz/targets").glob("*.py")} - {"__init__"}
    script = (ROOT / "scripts/fuzz.sh").read_text()
    assert written == set(TARGETS)
    listed = re.search(r"targets=\((frames [^)]*)\)", script)
    assert listed
    assert set(TARGETS) <= set(listed[1].split())


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_what_was_found(name: str) -> None:
    run, known = target(name), inputs(name)
    assert len(known) >= 5
    for data in (b"", *known):
        run(data)


# A place, how many bytes go, and what comes instead.
changes = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 6),
        st.binary(max_size=4)
        | st.sampled_from([b"\xff", b"\xdd\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x05", b"NaN"]),
    ),
    min_size=1,
    max_size=4,
)


def spoil(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    made = bytearray(data)
    for where, gone, put in edits:
        at = int(where * len(made))
        made[at : at + gone] = put
    return bytes(made)


@pytest.mark.parametrize("name", TARGETS)
def test_spoiled_inputs(name: str) -> None:
    run, known = target(name), inputs(name)

    @QUICK
    @given(st.sampled_from(known), changes)
    def check(data: bytes, edits: list[tuple[float, int, bytes]]) -> None:
        run(spoil(data, edits))

    check()


@QUICK
@given(st.sampled_from(BODIES), changes)
def test_a_spoiled_body_takes_no_more_memory_than_its_limits_say(
    data: bytes, edits: list[tuple[float, int, bytes]]
) -> None:
    body = spoil(data, edits)
    limits = codec.Limits(max_payload_bytes=1 << 20, max_array_bytes=1 << 20)
    tracemalloc.start()
    try:
        codec.decode(body, 0, limits)
    except ProtocolError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < (1 << 18) + 1000 * len(body)
