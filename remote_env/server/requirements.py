"""Whether this interpreter has what a task needs, before anything of the task is imported."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any


class MissingRequirements(Exception):
    """This interpreter lacks packages; the message names each, and the command that installs them."""


def check_requirements(requirements: Sequence[str]) -> None:
    """Compare with what is installed: names, versions and markers; of a URL the name alone, extras not at all.

    Args:
        requirements: as in requirements.txt (PEP 508); comments and blank lines say nothing, options are refused.

    Raises:
        MissingRequirements: one is missing or of another version.
        ConfigError: one is not a requirement.
    """
    faults = list(_faults(requirements))
    if not faults:
        return
    named = "; ".join(f"{requirement} ({why})" for requirement, why in faults)
    command = shlex.join([sys.executable, "-m", "pip", "install", *(requirement for requirement, _ in faults)])
    raise MissingRequirements(f"{sys.executable} lacks what the task requires: {named}. Install it there: {command}")


def _faults(requirements: Sequence[str]) -> Iterator[tuple[str, str]]:
    for line in requirements:
        text = re.sub(r"(^|\s)#.*", "", str(line)).strip()
        if not text:
            continue
        requirement = _parse(text)
        if not _applies(text, requirement.marker):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield text, "not installed"
            continue
        if not requirement.url and not requirement.specifier.contains(version, prereleases=True):
            yield text, f"{version} is installed"


def _parse(text: str) -> Any:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise _no_requirement(text, error) from error


def _applies(text: str, marker: Any) -> bool:
    """Whether it is for a system like this one."""
    from packaging.markers import UndefinedComparison

    try:
        return marker is None or bool(marker.evaluate({"extra": ""}))
    except UndefinedComparison as error:
        raise _no_requirement(text, error) from error


def _no_requirement(text: str, error: Exception) -> Exception:
    from remote_env.errors import ConfigError

    advice = "write them as in requirements.txt: 'torch>=2.4'"
    return ConfigError(f"requirements= has {text!r}, which is no requirement ({error}); {advice}")
