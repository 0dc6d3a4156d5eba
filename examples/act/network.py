"""The network: what ACT does (Zhao et al. 2023), for state observations, small enough for 20 minutes on two cores.

A residual perceptron reads the state and gives, for each joint, a few coefficients. Each action of the chunk has a
learned query, and the dot product of query and coefficients is that joint's target: the queries are a basis of motions
that training finds. There is no attention: a state is one vector, not a sequence, and a training step of a transformer
of this size takes ten times as long.

As in ACT, the chunk may depend on a latent style (a conditional VAE), which is zero when the policy acts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """What a network is built from.

    Attributes:
        state_size: numbers in an observation.
        action_size: numbers in an action.
        chunk_size: K, actions per inference.
        width: of the perceptron.
        blocks: of it.
        query_size: of an action's learned query.
        latent_size: of the style; 0 leaves it out.
    """

    state_size: int = 41
    action_size: int = 14
    chunk_size: int = 64
    width: int = 256
    blocks: int = 3
    query_size: int = 32
    latent_size: int = 0


class Block(nn.Module):  # type: ignore[misc]  # torch need not be installed for the type check
    """One residual step of the perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, values: Tensor) -> Tensor:
        """(B, width) to (B, width)."""
        return values + self.inner(values)


def perceptron(inputs: int, width: int, blocks: int, outputs: int) -> nn.Sequential:
    """(B, inputs) to (B, outputs)."""
    inner = (Block(width) for _ in range(blocks))
    return nn.Sequential(nn.Linear(inputs, width), *inner, nn.LayerNorm(width), nn.Linear(width, outputs))


class ChunkingPolicy(nn.Module):  # type: ignore[misc]  # as above
    """Normalised states to normalised chunks of actions.

    Args:
        sizes: see `Sizes`.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        coefficients = sizes.action_size * sizes.query_size
        self.reader = perceptron(sizes.state_size + sizes.latent_size, sizes.width, sizes.blocks, coefficients)
        self.queries = nn.Parameter(torch.randn(sizes.query_size, sizes.chunk_size) / sizes.query_size**0.5)

    def forward(self, state: Tensor, latent: Tensor | None = None) -> Tensor:
        """The chunk to apply from here on.

        Args:
            state: (B, state_size) normalised.
            latent: (B, latent_size) style of the chunk; None takes the most likely one, zero.

        Returns:
            (B, chunk_size, action_size) normalised.
        """
        sizes = self.sizes
        if sizes.latent_size:
            zero = torch.zeros_like(state[:, : sizes.latent_size])
            state = torch.cat((state, zero if latent is None else latent), dim=1)
        coefficients = self.reader(state).reshape(-1, sizes.action_size, sizes.query_size)
        return (coefficients @ self.queries).transpose(1, 2)


class StyleEncoder(nn.Module):  # type: ignore[misc]  # as above
    """What is left of a chunk when its state is known; needed in training only.

    Args:
        sizes: of the policy; `latent_size` > 0.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        inputs = sizes.state_size + sizes.chunk_size * sizes.action_size
        self.reader = perceptron(inputs, sizes.width // 2, 1, 2 * sizes.latent_size)

    def forward(self, state: Tensor, chunk: Tensor) -> tuple[Tensor, Tensor]:
        """A sample of the latent (B, latent_size), and the mean divergence from a standard normal [nats]."""
        mean, log_variance = self.reader(torch.cat((state, chunk.flatten(1)), dim=1)).chunk(2, dim=1)
        sample = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=1).mean()
        return sample, divergence
