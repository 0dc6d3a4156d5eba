"""How renv lays out the features of a policy; both of its sides must do the same."""

from __future__ import annotations

from remote_env.policy.policy import PolicyMetadata
from remote_env.protocol.inference import InferCodec


def infer_codec(metadata: PolicyMetadata, max_message_bytes: int) -> InferCodec:
    """The codec of a policy's INFERs and their RESULTs."""
    arrays = {
        name: (feature.dtype, feature.shape) for name, feature in metadata.observation.items() if feature.kind != "text"
    }
    has_others = len(arrays) < len(metadata.observation)
    return InferCodec(arrays, metadata.action_size, max_message_bytes, has_others=has_others)
