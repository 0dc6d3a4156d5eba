"""LeRobot's own code against ours. Run by the interpreter that has LeRobot: make test-dialects."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

collect_ignore_glob: list[str] = []
if importlib.util.find_spec("lerobot") is None:
    collect_ignore_glob.append("test_*.py")


@pytest.fixture(scope="session")
def act_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot pretrained folder: ACT of random weights."""
    from random_act import save_random_act

    folder = tmp_path_factory.mktemp("checkpoints") / "act_random"
    save_random_act(folder)
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Starts programs in a folder of their own; ends those that still run."""
    with Programs(tmp_path) as started:
        yield started


from lerobot_programs import Programs  # noqa: E402  needs the path above
