"""The limits that docs/protocol.md states are those that the code keeps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from remote_env import spaces
from remote_env.protocol import codec, coding, frames, handshake, inference
from remote_env.server import connections, peer

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
VALUES = codec.DEFAULT_LIMITS
STRANGER = (peer.MAX_STRANGER_BODY_SIZE, frames.MAX_LINK_BODY_SIZE)
ROWS: dict[str, tuple[float, ...]] = {
    "body of a session message": (frames.MAX_BODY_SIZE,),
    "payload": (frames.MAX_PAYLOAD_SIZE,),
    "body of a link message to a client; to a server": (frames.MAX_LINK_BODY_SIZE, peer.MAX_REQUEST_BODY_SIZE),
    "body of a link message before": STRANGER,
    "connections at once that have not": (connections.MAX_STRANGERS,),
    "the rest of a link message": (peer.MESSAGE_TIMEOUT_S,),
    "depth of a link message": (handshake.MAX_LINK_DEPTH, 64),
    "request line": (peer.MAX_HTTP_SIZE,),
    "time for a handshake": (peer.HANDSHAKE_TIMEOUT_S,),
    "body |": (VALUES.max_body_bytes,),
    "payload; one array": (VALUES.max_payload_bytes, VALUES.max_array_bytes),
    "values in a body": (VALUES.max_items,),
    "depth: `array`s": (VALUES.max_depth,),
    "dimensions of an array": (codec.MAX_DIMENSIONS,),
    "bytes of a big integer": (codec.MAX_INTEGER_BYTES,),
    "keys of one dict": (codec.MAX_SAME_HASHES,),
}
SENTENCES = {
    r"Spaces nest up to (\d+) deep": spaces.MAX_DEPTH,
    r"has \*B\* rows \(at most ([\d,]+)\)": inference.MAX_ROWS,
    r"a JPEG of more than (\d+) scans": coding.MAX_SCANS,
    r"array below (\d+) bytes \| extension 5": codec.INLINE_BELOW_BYTES,
    r"signed, 1 to (\d+) bytes": codec.MAX_INTEGER_BYTES,
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_tables_of_limits(row: str) -> None:
    stated = [line.split("|")[2] for line in PAGE.splitlines() if line.startswith(f"| {row}")]
    assert stated, f"no row {row!r}"
    numbers = re.findall(r"(\d[\d,]*)(?: (KiB|MiB|GiB))?", stated[0])
    found = [int(number.replace(",", "")) * UNITS.get(unit, 1) for number, unit in numbers]
    assert found[: len(ROWS[row])] == list(ROWS[row])


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_limit_within_a_sentence(sentence: str) -> None:
    found = re.search(sentence, PAGE)
    assert found, sentence
    assert int(found[1].replace(",", "")) == SENTENCES[sentence]


def test_both_halves_of_the_code_keep_the_same() -> None:
    assert (VALUES.max_body_bytes, VALUES.max_payload_bytes) == (frames.MAX_BODY_SIZE, frames.MAX_PAYLOAD_SIZE)
    assert spaces.MAX_BOX_BYTES == 1 << 30  # "at most 1 GiB once spread out"
    assert VALUES.max_depth > 2 * spaces.MAX_DEPTH
