"""Who may import whom, read from the source. Every import counts: in functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "remote_env"

# Each room and the rooms that it may import; a module or package right below remote_env is a room.
PURE = {"errors", "poses", "protocol", "spaces", "state"}
BELOW_RECORD = {*PURE, "private_files", "transport", "ssh", "session", "render", "tasks"}
BELOW_ENV = BELOW_RECORD | {"record", "replay"}
BELOW_TESTING = BELOW_ENV | {
    "env",
    "vector",
    "chunks",
    "prediction",
    "server",
    "policy",
    "registration",
}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "private_files": {"errors"},
    "state": {"errors"},
    "poses": {"errors", "state"},
    "spaces": {"errors"},
    "protocol": {"errors", "state", "spaces"},
    "transport": {"errors"},
    "ssh": {"errors", "transport"},
    "render": {"errors", "state"},
    "session": {"errors", "protocol", "spaces", "state", "transport", "ssh"},
    "tasks": {"errors", "poses", "state", "render"},
    "policy": {*PURE, "private_files", "transport", "ssh", "session", "render", "tasks"},
    "record": BELOW_RECORD,
    "replay": BELOW_RECORD | {"record"},
    "env": BELOW_ENV,
    "vector": BELOW_ENV | {"env"},
    "chunks": BELOW_ENV | {"env"},
    "prediction": BELOW_ENV | {"env"},
    # Everything of the far end but the client's half.
    "server": {*PURE, "private_files", "transport", "render", "tasks", "policy"},
    "registration": BELOW_ENV | {"env", "vector"},
    "evaluate": BELOW_TESTING - {"testing"},
    "testing": BELOW_TESTING,
    "cli": BELOW_TESTING | {"evaluate", "testing"},
    "__main__": {"cli"},
    # The package's own names: their homes, and registration, which importing it runs.
    "__init__": BELOW_TESTING,
}
# Single modules beside the table: log_text is about text, not about messages.
ALSO_ALLOWED = {"ssh": {"remote_env.protocol.log_text"}}

# Modules that no file of a pure room may import: bytes and numbers in, bytes and numbers out.
IO_MODULES = {
    *("socket", "ssl", "select", "selectors", "asyncio", "socketserver", "http", "urllib", "threading", "_thread"),
    *("multiprocessing", "concurrent", "queue", "subprocess", "signal", "os", "pathlib", "io", "shutil", "tempfile"),
    *("fcntl", "mmap", "time", "datetime", "sched", "logging", "paramiko"),
}
# What the supervisor's process runs: the standard library and these.
SUPERVISOR = (
    *("launch", "supervisor", "connections", "peer", "sessions", "answers", "simulators", "process", "orphans"),
    *("endings", "stacks", "output", "board", "log", "folder", "web", "metrics", "gpu", "error_text", "relay"),
)
SUPERVISOR_MAY = {
    "remote_env.errors",
    "remote_env.private_files",
    "remote_env.protocol.frames",
    "remote_env.protocol.handshake",
    "remote_env.protocol.log_text",
    "remote_env.protocol.machine",
    "remote_env.protocol.monitoring",
    *(f"remote_env.server.{name}" for name in SUPERVISOR),
}
# launch.py is also how a simulator starts; it imports this one only in that other process.
LAUNCH_MAY = {"remote_env.server.simulator"}
POSIX_ONLY = {"fcntl", "pwd", "grp", "resource", "termios", "pty", "tty", "syslog", "posix", "crypt", "spwd", "nis"}
CLIENT_HALF = (
    *(
        "__init__",
        "errors",
        "private_files",
        "env",
        "vector",
        "session",
        "ssh",
        "transport",
        "registration",
        "spaces",
        "state",
    ),
    *("protocol", "record", "replay", "render", "evaluate", "policy", "cli"),
)


class Import:
    """One import statement's module, and where it stands."""

    def __init__(self, module: str, line: int, *, at_module_level: bool) -> None:
        self.module, self.line, self.at_module_level = module, line, at_module_level


def read_imports(path: Path, package_root: Path) -> Iterator[Import]:
    """Every module that the file names in an import, "from a import b" as a.b when that is a module of ours."""
    tree = ast.parse(path.read_text(), str(path))
    at_top = {id(node) for node in _nodes_outside_functions(tree)}
    for node in ast.walk(tree):
        for module in _modules(node, path, package_root):
            yield Import(module, node.lineno, at_module_level=id(node) in at_top)  # type: ignore[attr-defined]


def _modules(node: ast.AST, path: Path, package_root: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            relative = path.relative_to(package_root.parent).parts[: -node.level]
            base = ".".join([*relative, *filter(None, [base])])
        for alias in node.names:
            yield f"{base}.{alias.name}" if _is_module(base, alias.name, package_root) else base
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
        yield from (part.value for part in node.args[:1] if isinstance(part, ast.Constant))


def _is_module(base: str, name: str, package_root: Path) -> bool:
    folder = package_root.parent.joinpath(*base.split("."))
    return base.split(".")[0] == package_root.name and (
        (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()
    )


def _nodes_outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _nodes_outside_functions(child)


def room_of(module: str) -> str:
    """The room that a module of ours lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def files(package_root: Path, rooms: tuple[str, ...] | None = None) -> Iterator[tuple[str, Path]]:
    """Each Python file of the package with its room."""
    for path in sorted(package_root.rglob("*.py")):
        room = path.relative_to(package_root).parts[0].removesuffix(".py")
        if rooms is None or room in rooms:
            yield room, path


def check_layers(package_root: Path) -> list[str]:
    """What breaks the table; empty when all is well."""
    faults = []
    for room, path in files(package_root):
        if room not in ALLOWED:
            faults.append(f"{path}: the room {room!r} is not in the table of {Path(__file__).name}")
            continue
        for found in read_imports(path, package_root):
            if found.module.split(".")[0] != package_root.name or found.module in ALSO_ALLOWED.get(room, ()):
                continue
            target = room_of(found.module)
            if target != room and target not in ALLOWED[room] and not _is_bare_package(found, target):
                allowed = ", ".join(sorted(ALLOWED[room])) or "nothing of ours"
                faults.append(f"{path}:{found.line}: {room} imports {found.module}; it may import {allowed}")
    return faults


def _is_bare_package(found: Import, target: str) -> bool:
    # "from remote_env import __version__", in a function: a name of the package itself, which is loaded anyway.
    return target == "__init__" and not found.at_module_level


def check_modules(
    package_root: Path, rooms: tuple[str, ...], forbidden: set[str], *, only_at_module_level: bool = False
) -> list[str]:
    """Imports of `forbidden` modules in these rooms."""
    return [
        f"{path}:{found.line}: {room} imports {found.module}"
        for room, path in files(package_root, rooms)
        for found in read_imports(path, package_root)
        if found.module.split(".")[0] in forbidden and (found.at_module_level or not only_at_module_level)
    ]


def check_supervisor(package_root: Path) -> list[str]:
    """Imports of the supervisor's files that are neither the standard library nor what it may use of ours."""
    faults = []
    for name in SUPERVISOR:
        path = package_root / "server" / f"{name}.py"
        for found in read_imports(path, package_root):
            if found.module.split(".")[0] in sys.stdlib_module_names or found.module in SUPERVISOR_MAY:
                continue
            if name == "launch" and found.module in LAUNCH_MAY:
                continue
            faults.append(f"{path}:{found.line}: the supervisor imports {found.module}")
    return faults


def check_servers(package_root: Path) -> list[str]:
    """Files of servers/ and examples/ that reach for names with a leading underscore in our modules."""
    faults = []
    for folder in ("servers", "examples"):
        for path in sorted((package_root.parent / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(), str(path))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package_root.name:
                    private = [alias.name for alias in node.names if alias.name.startswith("_")]
                    faults += [f"{path}:{node.lineno}: uses the private name {name}" for name in private]
    return faults


REAL = ROOT / PACKAGE


def test_rooms_import_downwards_only():
    assert check_layers(REAL) == []


def test_pure_rooms_do_no_io():
    assert check_modules(REAL, ("poses", "protocol", "spaces", "state"), IO_MODULES) == []


def test_supervisor_needs_the_standard_library_alone():
    assert check_supervisor(REAL) == []


def test_client_half_imports_nothing_posix_only():
    assert check_modules(REAL, CLIENT_HALF, POSIX_ONLY, only_at_module_level=True) == []


def test_programs_use_public_names():
    assert check_servers(REAL) == []


# The checker itself, on a small tree with one fault.


def write_tree(folder: Path, sources: dict[str, str]) -> Path:
    root = folder / PACKAGE
    for name in ("__init__", "errors", "state", "transport", "protocol/__init__", "session/__init__", "env/__init__"):
        sources.setdefault(name, "")
    for name in SUPERVISOR:
        sources.setdefault(f"server/{name}", "import os\n")
    for name, source in sources.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    return root


def test_a_clean_tree_passes(tmp_path):
    root = write_tree(
        tmp_path,
        {
            "env/remote": "from remote_env.session import x\nfrom . import other\n",
            "protocol/frames": "import struct\nfrom remote_env.errors import E\n",
            "server/web": "from remote_env.protocol.frames import V\n",
        },
    )
    assert check_layers(root) == []
    assert check_supervisor(root) == []
    assert check_modules(root, ("protocol",), IO_MODULES) == []


@pytest.mark.parametrize(
    "source",
    [
        "from remote_env.session import Session",
        "import remote_env.session",
        "from remote_env import session",
        "from . import session",
        "from .session import Session",
        "def late():\n    from remote_env.session import Session",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from remote_env.session import Session",
        "import importlib\ndef late():\n    importlib.import_module('remote_env.session')",
        "from remote_env import RemoteEnv",
    ],
)
def test_an_upward_import_fails(tmp_path, source):
    faults = check_layers(write_tree(tmp_path, {"transport": source}))
    assert len(faults) == 1
    assert "transport imports remote_env" in faults[0]
    assert "it may import errors" in faults[0]


def test_an_upward_import_from_inside_a_package_fails(tmp_path):
    root = write_tree(tmp_path, {"protocol/frames": "from ..session import Session"})
    assert "protocol imports remote_env.session" in check_layers(root)[0]


def test_a_room_that_nobody_placed_fails(tmp_path):
    assert "'utils' is not in the table" in check_layers(write_tree(tmp_path, {"utils": ""}))[0]


@pytest.mark.parametrize("source", ["import time", "from socket import socket", "def f():\n    import threading"])
def test_io_in_a_pure_room_fails(tmp_path, source):
    root = write_tree(tmp_path, {"protocol/frames": source})
    assert len(check_modules(root, ("protocol",), IO_MODULES)) == 1


@pytest.mark.parametrize("source", ["import numpy", "from remote_env.protocol import codec", "import remote_env.state"])
def test_a_heavy_supervisor_fails(tmp_path, source):
    root = write_tree(tmp_path, {"protocol/codec": "", "server/web": source})
    assert len(check_supervisor(root)) == 1


def test_posix_only_counts_at_module_level_alone(tmp_path):
    root = write_tree(tmp_path, {"transport": "def f():\n    import fcntl\n"})
    assert check_modules(root, CLIENT_HALF, POSIX_ONLY, only_at_module_level=True) == []
    root = write_tree(tmp_path, {"transport": "if True:\n    import fcntl\n"})
    assert len(check_modules(root, CLIENT_HALF, POSIX_ONLY, only_at_module_level=True)) == 1
