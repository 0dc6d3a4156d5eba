"""An ACT policy of LeRobot's with random weights, saved as a pretrained folder with its processors."""

from __future__ import annotations

import sys
from pathlib import Path

import torchvision_ops  # noqa: F401  isort: skip
import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors

STATE_SIZE, ACTION_SIZE, CHUNK_SIZE = 14, 14, 20
IMAGE_SHAPE = (96, 128, 3)


def save_random_act(folder: Path) -> None:
    torch.manual_seed(0)
    config = ACTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE_SIZE,)),
            "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, *IMAGE_SHAPE[:2])),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_SIZE,))},
        chunk_size=CHUNK_SIZE,
        n_action_steps=CHUNK_SIZE,
        pretrained_backbone_weights=None,
        dim_model=64,
        dim_feedforward=64,
        n_heads=2,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=8,
        device="cpu",
        push_to_hub=False,
        normalization_mapping={
            "STATE": NormalizationMode.MEAN_STD,
            "VISUAL": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        },
    )
    image = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    stats = {
        "observation.state": {"mean": torch.arange(STATE_SIZE) / 10.0, "std": torch.full((STATE_SIZE,), 2.0)},
        "observation.images.top": image,
        "action": {"mean": torch.arange(ACTION_SIZE) * 1.0, "std": torch.full((ACTION_SIZE,), 3.0)},
    }
    policy = ACTPolicy(config)
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(folder)


if __name__ == "__main__":
    save_random_act(Path(sys.argv[1]))
