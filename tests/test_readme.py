"""What README and docs tell a reader to type exists."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def every_block(language: str) -> list:
    return [
        pytest.param(block, id=f"{page.name}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, language))
    ]


@pytest.mark.parametrize("block", every_block("python"))
def test_python_blocks_compile_and_import_what_exists(block):
    for node in ast.walk(ast.parse(block.replace("…", "..."))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("remote_env"):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("block", every_block("sh"))
def test_shell_blocks_name_targets_files_and_options_that_exist(block):
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in MAKE_TARGETS
        elif words[:1] == ["python"] and words[1].endswith(".py"):
            shown = subprocess.run(
                [sys.executable, str(ROOT / words[1]), "--help"], capture_output=True, text=True, check=True, timeout=60
            ).stdout
            options = [word for word in words if word.startswith("--")]
            assert [option for option in options if option not in shown] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mentioned_targets_and_links_exist(page):
    text = page.read_text()
    assert [name for name in re.findall(r"`make ([a-z-]+)", text) if name not in MAKE_TARGETS] == []
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
