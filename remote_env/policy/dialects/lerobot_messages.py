"""LeRobot's async inference on the wire: gRPC's method names, its four messages, and bytes cut into streams of them.

The messages are declared here in a pool of their own, so that a process may also hold LeRobot's, which registers the
same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from remote_env.errors import MessageTooBig, ProtocolError

PACKAGE = "transport"
SERVICE = f"{PACKAGE}.AsyncInference"
EXTENSION = "remote_env.PolicyServer"  # what our own ends say to each other beside it: Describe, Leave
CHUNK_BYTES = 2 << 20  # how much of a payload one message of a stream carries
MAX_GRPC_MESSAGE_BYTES = 4 << 20  # what LeRobot's channels take
BEGIN, MIDDLE, END = 1, 2, 3
_STATES = ("TRANSFER_UNKNOWN", "TRANSFER_BEGIN", "TRANSFER_MIDDLE", "TRANSFER_END")


def _declare() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="remote_env/lerobot.proto", package=PACKAGE, syntax="proto3")
    states = file.enum_type.add(name="TransferState")
    for number, name in enumerate(_STATES):
        states.value.add(name=name, number=number)
    file.message_type.add(name="Empty")
    for name in ("Actions", "PolicySetup"):
        _add_data(file.message_type.add(name=name), 1)
    observation = file.message_type.add(name="Observation")
    kind = descriptor_pb2.FieldDescriptorProto
    observation.field.add(
        name="transfer_state",
        number=1,
        label=kind.LABEL_OPTIONAL,
        type=kind.TYPE_ENUM,
        type_name=f".{PACKAGE}.TransferState",
    )
    _add_data(observation, 2)
    return file


def _add_data(message: descriptor_pb2.DescriptorProto, number: int) -> None:
    kind = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="data", number=number, label=kind.LABEL_OPTIONAL, type=kind.TYPE_BYTES)


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_declare())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


Empty, Actions, PolicySetup, Observation = map(_message, ("Empty", "Actions", "PolicySetup", "Observation"))


def cut(payload: bytes) -> Iterator[Any]:
    """The `Observation` messages that carry a payload; one that fits one message is an END alone."""
    last = max(0, (len(payload) - 1) // CHUNK_BYTES)
    for index in range(last + 1):
        state = END if index == last else BEGIN if index == 0 else MIDDLE
        yield Observation(transfer_state=state, data=payload[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])


def join(messages: Iterable[Any], max_bytes: int) -> bytes:
    """The payload that a stream carries, up to its END.

    Raises:
        MessageTooBig: it is longer than `max_bytes`; the rest was not read.
        ProtocolError: the stream ended without END, or its states are in no order.
    """
    parts: list[bytes] = []
    size = 0
    for message in messages:
        state = message.transfer_state
        if state not in (BEGIN, MIDDLE, END) or (state == BEGIN and parts) or (state == MIDDLE and not parts):
            raise ProtocolError(f"a part of an observation in transfer state {state} after {len(parts)} parts")
        size += len(message.data)
        if size > max_bytes:
            raise MessageTooBig(f"an observation of more than {max_bytes} bytes; send smaller or fewer images")
        parts.append(message.data)
        if state == END:
            return b"".join(parts)
    raise ProtocolError(f"an observation ended after {size} bytes without its last part")
