"""The frames that docs/protocol.md shows, byte for byte."""

from __future__ import annotations

import json
import re
import struct
import zlib

import pytest
from golden_batch import GOLDEN_BATCH, record_batch
from golden_chunks import GOLDEN_CHUNKS, record_chunks
from golden_conversation import GOLDEN, ROOT, record_conversation
from golden_policy import GOLDEN_POLICY
from golden_resuming import GOLDEN_RESUMING, record_resuming

from remote_env.protocol import frames

GOLDEN_FRAMES = json.loads(GOLDEN.read_text())
GOLDEN_BATCH_FRAMES = json.loads(GOLDEN_BATCH.read_text())
GOLDEN_CHUNK_FRAMES = json.loads(GOLDEN_CHUNKS.read_text())
GOLDEN_RESUMING_FRAMES = json.loads(GOLDEN_RESUMING.read_text())


def test_a_conversation_is_byte_for_byte_as_recorded():
    def by_link(conversation):
        return {link: [frame for frame in conversation if frame["link"] == link] for link in ("control", "data")}

    # Each link has an order; between the two there is none.
    assert by_link(record_conversation()) == by_link(GOLDEN_FRAMES)


def test_a_conversation_with_a_batch_is_too():
    assert record_batch() == GOLDEN_BATCH_FRAMES


def test_a_conversation_of_chunks_and_of_less_is_too():
    assert record_chunks() == GOLDEN_CHUNK_FRAMES


def test_a_conversation_that_is_cut_and_resumed_is_too():
    def by_sender(conversation):
        return {side: [frame for frame in conversation if frame["from"] == side] for side in ("client", "server")}

    # What is sent again crosses what comes again.
    assert by_sender(record_resuming()) == by_sender(GOLDEN_RESUMING_FRAMES)


def test_what_comes_again_does_so_byte_for_byte():
    resent = [frame["hex"] for frame in GOLDEN_RESUMING_FRAMES if frame["message"] == "STEP"]
    assert len(set(resent)) == 3  # two crossed once, and the third with the second connection alone
    header = frames.parse_header(
        bytes.fromhex(next(frame["hex"] for frame in GOLDEN_RESUMING_FRAMES if frame["message"] == "RESUMED"))
    )
    assert (header.sequence, header.acknowledged, header.body_size) == (3, 1, 0)


@pytest.mark.parametrize(
    "golden",
    [*GOLDEN_FRAMES, *GOLDEN_BATCH_FRAMES, *GOLDEN_RESUMING_FRAMES, *GOLDEN_CHUNK_FRAMES],
    ids=lambda golden: f"{golden['from']}-{golden['message']}",
)
def test_headers_are_as_documented(golden):
    data = bytes.fromhex(golden["hex"])
    magic, version, kind, flags, epoch, crc, sequence, acknowledged, body, payload = struct.unpack_from(
        "<4sBBHIIQQII", data
    )
    assert (magic, version, frames.NAMES[kind]) == (b"RENV", 2, golden["message"])
    assert len(data) == 40 + body + payload
    assert crc == zlib.crc32(data[:12] + bytes(4) + data[16 : 40 + body])
    if golden["link"] == "control" or kind < 32:
        assert (flags, epoch, acknowledged, payload) == (0, 0, 0, 0)
        json.loads(data[40:])
    else:
        assert epoch == 1
        assert acknowledged <= sequence


def test_the_documents_frames_are_among_them():
    text = (ROOT / "docs" / "protocol.md").read_text()
    blocks = re.findall(r"```hex\n(.*?)```", text, re.DOTALL)
    shown = ["".join(re.sub(r"#.*", "", block).split()) for block in blocks]
    assert shown
    recorded = (
        *GOLDEN_FRAMES,
        *GOLDEN_BATCH_FRAMES,
        *GOLDEN_RESUMING_FRAMES,
        *json.loads(GOLDEN_POLICY.read_text()),
    )
    assert set(shown) <= {golden["hex"] for golden in recorded}


def test_the_document_lists_every_message():
    text = (ROOT / "docs" / "protocol.md").read_text()
    listed = {name: int(number) for number, name in re.findall(r"^\| (\d+) \| `([A-Z_]+)`", text, re.MULTILINE)}
    kinds = {name: value for value, name in frames.NAMES.items() if not name.startswith("MAX_")}
    for other in ("FIXED", "STATE", "TAIL", "WANT_STATE"):
        kinds.pop(other, None)
    assert listed == kinds
