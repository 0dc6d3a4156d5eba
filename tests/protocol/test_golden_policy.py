"""The frames of a policy's connection that docs/protocol.md shows, byte for byte."""

from __future__ import annotations

import json
import struct
import zlib

import pytest
from golden_conversation import NONCES, ROOT, TOKEN
from golden_policy import GOLDEN_POLICY, record_policy_conversation

from remote_env.protocol import frames
from remote_env.protocol.handshake import proof

GOLDEN = json.loads(GOLDEN_POLICY.read_text())


def test_a_policys_conversation_is_byte_for_byte_as_recorded() -> None:
    assert record_policy_conversation() == GOLDEN


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden['from']}-{golden['message']}")
def test_a_policys_headers_are_as_documented(golden: dict[str, str]) -> None:
    data = bytes.fromhex(golden["hex"])
    magic, version, kind, flags, epoch, crc, sequence, acknowledged, body, payload = struct.unpack_from(
        "<4sBBHIIQQII", data
    )
    assert (magic, version, frames.NAMES[kind], epoch) == (b"RENV", 2, golden["message"], 0)
    assert len(data) == 40 + body + payload
    assert crc == zlib.crc32(data[:12] + bytes(4) + data[16 : 40 + body])
    if kind < 32:
        assert (flags, sequence, acknowledged) == (0, 0, 0)
        json.loads(data[40:])


def test_the_documents_proofs_of_a_policy() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    for side in ("server", "client"):
        assert proof(TOKEN, side, "policy", NONCES["c1"], NONCES["s1"]) in text
