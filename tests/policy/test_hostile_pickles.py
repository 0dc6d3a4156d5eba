from __future__ import annotations

import contextlib
import copyreg
import pickle
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_payloads import EXTENSION, REFUSED, RUNNING, MetaObs, record

from remote_env.errors import ProtocolError
from remote_env.policy.dialects.ilstudio_messages import REQUEST_LIMITS, PeerRecord
from remote_env.policy.dialects.restricted_pickle import Record, restricted_loads

ALLOWED = {(None, "MetaObs"): Record(PeerRecord), (None, "MetaAction"): Record(PeerRecord)}
MAX_EXTRA_BYTES = 48 << 20


def load(data: bytes) -> Any:
    return restricted_loads(data, allowed=ALLOWED, object_arrays=True, limits=REQUEST_LIMITS)


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Bytes are read here, by a hundred tests; looking for processes after each would take most of the time."""


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    copyreg.add_extension("os", "system", EXTENSION)
    yield tmp_path / "mark"
    copyreg.remove_extension("os", "system", EXTENSION)


@pytest.mark.parametrize("name", RUNNING)
def test_nothing_of_a_hostile_pickle_runs(mark, name):
    payload = RUNNING[name](mark)
    with pytest.raises(ProtocolError, match="refused a pickle"):
        load(payload)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore")  # what hostile pickles do beside their work
@pytest.mark.parametrize("name", RUNNING)
def test_the_payloads_are_real(mark, name):
    with contextlib.suppress(Exception):
        pickle.loads(RUNNING[name](mark))
    assert mark.exists()


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_honest_peer_sends_is_refused_in_little_memory(name):
    payload = REFUSED[name]()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="refused a pickle"):
            load(payload)
        assert tracemalloc.get_traced_memory()[1] < MAX_EXTRA_BYTES
    finally:
        tracemalloc.stop()


def test_a_module_that_is_named_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\nclass MetaObs: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = pickle.dumps(record(MetaObs, raw_lang="hello"), 3).replace(b"chostile_payloads\n", b"cplanted\n")
    assert load(data) == PeerRecord("planted", {"raw_lang": "hello"})
    assert "planted" not in sys.modules
    assert not (tmp_path / "mark").exists()


def test_every_beginning_of_a_pickle_is_refused():
    data = pickle.dumps([record(MetaObs, state=np.zeros(3), image=np.zeros((1, 3, 2, 2), np.uint8), raw_lang="x")], 4)
    for size in range(len(data)):
        with pytest.raises(ProtocolError):
            load(data[:size])
    assert load(data)


def test_pickles_with_a_wrong_byte_are_read_or_refused():
    random = np.random.default_rng(0)
    good = [pickle.dumps(record(MetaObs, state=np.arange(3.0), raw_lang=["x"]), protocol) for protocol in range(6)]
    for _ in range(1_500):
        data = bytearray(good[random.integers(len(good))])
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data))] = random.integers(256)
        try:
            load(bytes(data))
        except ProtocolError:
            continue
