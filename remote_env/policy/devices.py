"""Where a policy computes: exactly where it was told to, or not at all."""

from __future__ import annotations

import os
import re
from typing import Any

from remote_env.errors import ConfigError

_DEVICE = re.compile(r"(cpu)|(mps)|cuda(?::(\d+))?")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}


def parse_device(device: str) -> tuple[str, int | None]:
    """The kind, "cpu", "cuda" or "mps", and a CUDA device's index where one is given; ConfigError for all else."""
    found = _DEVICE.fullmatch(device)
    if found is None:
        raise ConfigError(f"device={device!r} is none; there are cpu, cuda, cuda:N and mps")
    return found[1] or found[2] or "cuda", None if found[3] is None else int(found[3])


def check_cpu(device: str, what: str) -> None:
    """ConfigError unless `device` is "cpu", for what runs nowhere else."""
    if parse_device(device)[0] != "cpu":
        raise ConfigError(f"device={device!r}: {what} runs on the CPU alone; run it with --device cpu")


def torch_device(device: str) -> Any:
    """The torch.device that is meant, after checking that it is there.

    Raises:
        ConfigError: torch is missing, or this machine has no such device; the message says what it has.
    """
    torch = import_torch()
    kind, index = parse_device(device)
    devices = _torch_devices(torch)
    wanted = device if index is not None or kind != "cuda" else "cuda:0"
    if wanted not in devices:
        raise ConfigError(
            f"device={device!r}: {_why_not(torch, kind)}; torch {torch.__version__} can use {', '.join(devices)} here: "
            f"run it with --device {devices[-1]}, or where there is such a device"
        )
    return torch.device(wanted)


def import_torch() -> Any:
    """The module torch; ConfigError says how to install it when it is missing."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this checkpoint needs {error.name!r}, which is not installed here: pip install torch, or export the "
            "policy to ONNX, which runs without"
        ) from error
    return torch


def onnx_providers(device: str) -> list[Any]:
    """Providers of onnxruntime for exactly this device.

    Raises:
        ConfigError: onnxruntime is missing, or has no provider for the device here.
    """
    onnxruntime = import_onnxruntime()
    kind, index = parse_device(device)
    available = onnxruntime.get_available_providers()
    if _PROVIDERS[kind] not in available:
        raise ConfigError(no_provider(device, available))
    if kind == "cuda":
        return [(_PROVIDERS[kind], {"device_id": index or 0})]
    return [_PROVIDERS[kind]]


def no_provider(device: str, available: list[str]) -> str:
    """Why onnxruntime cannot use this device, and what can be done."""
    usable = [kind for kind, provider in _PROVIDERS.items() if provider in available]
    kind = parse_device(device)[0]
    advice = " or `pip install onnxruntime-gpu` beside CUDA and cuDNN" if kind == "cuda" else ""
    return (
        f"device={device!r}: onnxruntime has no working {_PROVIDERS[kind]} here; it can use {', '.join(usable)}: run "
        f"it with --device {usable[0]}{advice}"
    )


def import_onnxruntime() -> Any:
    """The module onnxruntime; ConfigError says how to install it when it is missing."""
    try:
        # It would report to its maker, and keep a database for that in the user's cache.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this checkpoint is an ONNX graph and needs {error.name!r}, which is not installed here: "
            "pip install 'remote-env[policy]'"
        ) from error
    return onnxruntime


def _torch_devices(torch: Any) -> list[str]:
    """Every device that torch can use here, the CPU first."""
    devices = ["cpu"]
    if torch.backends.mps.is_available():
        devices.append("mps")
    if torch.cuda.is_available():
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return devices


def _why_not(torch: Any, kind: str) -> str:
    if kind == "cuda" and torch.version.cuda is None:
        return "this torch is built without CUDA"
    return "this machine has no such device"
