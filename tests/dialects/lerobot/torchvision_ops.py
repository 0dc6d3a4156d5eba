"""Import this first: PyPI's torchvision looks for two operators that its build for the CPU alone does not have.

Only LeRobot's imports of torchvision need them; nothing here calls them.
"""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
