"""Rows about a machine, from what the probe told: pure judgements."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from packaging.requirements import Requirement

from remote_env.cli.probing import Python
from remote_env.cli.rows import FAIL, OK, SKIP, WARN, Row, Where
from remote_env.cli.show import one_line, show_bytes

GIB = 2**30
LITTLE_DISK_BYTES = 200 * 2**20  # our own files are a few MB; logs and captures are the rest
LITTLE_MEMORY_BYTES = GIB
NEEDED = ("numpy>=1.26", "gymnasium>=0.29")
GL_PACKAGES = {"egl": ("libegl1", "libopengl0", "libgl1-mesa-dri"), "osmesa": ("libosmesa6",)}
GL_NAMES = {"egl": "EGL", "osmesa": "OSMesa"}


def interpreter_row(facts: Mapping[str, Any], where: Where, started_s: float, others: Sequence[Python]) -> Row:
    """Whether the interpreter is new enough.

    Args:
        facts: of the probe.
        where: the machine.
        started_s: how long it took to answer [s].
        others: Pythons that were seen there.
    """
    found = f"Python {facts['version']}, {facts['executable']}, {started_s:.1f} s to start"
    if facts["is_new_enough"]:
        return Row("interpreter", OK, found)
    return Row("interpreter", FAIL, f"{found}; 3.10 or later is needed", other_interpreter(where, others))


def other_interpreter(where: Where, others: Sequence[Python]) -> str:
    """How to name another interpreter, or to get one."""
    if others:
        best = max(others, key=lambda one: (len(one.packages), one.version))
        seen = "; ".join(str(one) for one in others)
        return f"{where.ours('doctor', '--python', best.path)}   # there: {seen}"
    get_one = "curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv --seed -p 3.12 ~/sim"
    return f"{where.inside(get_one)} && {where.ours('doctor', '--python', '~/sim/bin/python')}"


def package_rows(
    facts: Mapping[str, Any], markers: Mapping[str, str], required: Sequence[Requirement], where: Where
) -> Iterator[Row]:
    """What a far end needs, and what the caller requires, each with the pip command when it is missing."""
    yield _needed_row(facts, where)
    for requirement in required:
        yield _required_row(requirement, facts["versions"], markers, where)


def _needed_row(facts: Mapping[str, Any], where: Where) -> Row:
    versions = facts["versions"]
    needed = [Requirement(text) for text in NEEDED]
    missing = [one for one in needed if _lacks(one, versions)]
    shown = ", ".join(f"{one.name} {versions[one.name] or 'is not installed'}" for one in needed)
    broken = [f"{name} cannot be imported: {one_line(why)}" for name, why in facts["broken"].items()]
    if missing or broken:
        wanted = [str(one) for one in missing] or list(facts["broken"])
        found = "; ".join([f"{shown} (needed: {', '.join(NEEDED)})" if missing else shown, *broken])
        return Row(
            "packages", FAIL, found, _pip(facts, where, *(wanted if missing else ["--force-reinstall", *wanted]))
        )
    return Row("packages", OK, f"{shown}; msgpack and packaging travel with the far end")


def _pip(facts: Mapping[str, Any], where: Where, *words: str) -> str:
    command = where.pip_install(*words)
    if facts["has_pip"]:
        return command
    return f"{where.inside(f'{where.python} -m ensurepip')} && {command}"


def _lacks(requirement: Requirement, versions: Mapping[str, str | None]) -> bool:
    version = versions.get(requirement.name)
    if version is None:
        return True
    return not requirement.url and not requirement.specifier.contains(version, prereleases=True)


def _required_row(
    requirement: Requirement, versions: Mapping[str, str | None], markers: Mapping[str, str], where: Where
) -> Row:
    name = f"require {requirement.name}"
    if requirement.marker is not None and not requirement.marker.evaluate({**markers, "extra": ""}):
        return Row(name, OK, f"not needed there: {requirement.marker}")
    version = versions.get(requirement.name)
    if not _lacks(requirement, versions):
        return Row(name, OK, f"{requirement.name} {version}")
    found = f"{requirement.name} is not installed" if version is None else f"{requirement.name} {version} is installed"
    return Row(name, FAIL, f"{found}; required: {requirement}", where.pip_install(str(requirement)))


def machine_rows(facts: Mapping[str, Any], where: Where) -> Iterator[Row]:
    """Processors and memory."""
    processors, load = facts["processors"], facts["load"]
    found = f"{processors} × {facts['machine']}, load {load:.1f}, {facts['kernel']}, node {facts['node']}"
    busy = load > 1.5 * processors
    fix = f"{where.command('ps -eo pcpu,pid,user,args --sort=-pcpu | head')}   # who keeps it busy"
    yield Row("processors", WARN if busy else OK, found, fix if busy else "")
    free, total = facts["memory_free"], facts["memory_total"]
    found = f"{show_bytes(free)} free of {show_bytes(total)}"
    fix = f"{where.command('ps -eo rss,pid,user,args --sort=-rss | head')}   # who holds it"
    little = free < LITTLE_MEMORY_BYTES
    yield Row("memory", WARN if little else OK, found, fix if little else "")


def folder_rows(facts: Sequence[Mapping[str, Any]], where: Where) -> Iterator[Row]:
    """Whether the folders that a server needs take files."""
    for folder in facts:
        yield _folder_row(folder, where)


def _folder_row(folder: Mapping[str, Any], where: Where) -> Row:
    use, path, error, free = folder["use"], folder["path"], folder["error"], folder["free"]
    found = f"{path}: {show_bytes(free)} free"
    name = f"{use} folder"
    if error:
        # A server writes into the cache folder alone; the others are the tasks' and tools'.
        status = FAIL if use == "cache" else WARN
        return Row(name, status, f"{found}; a file cannot be written: {error}", _folder_fix(folder, where))
    if free < LITTLE_DISK_BYTES:
        return Row(name, WARN, found, where.inside(f"du -xh -d1 {shlex.quote(folder['exists'])} | sort -h | tail"))
    return Row(name, OK, found)


def _folder_fix(folder: Mapping[str, Any], where: Where) -> str:
    place = shlex.quote(folder["exists"])
    look = where.inside(f"df -h {place}; df -i {place}; ls -ld {place}; du -xh -d1 {place} | sort -h | tail")
    if folder["use"] != "cache":
        return look
    return f"{look}   # free space, make it writable, or have ~/.bashrc there set XDG_CACHE_HOME"


def gpu_row(facts: Mapping[str, Any], where: Where) -> Row:
    """The graphics processors; none is a row that is well, since many tasks need none."""
    if not facts["found"]:
        if facts["error"] in ("", "there is no nvidia-smi"):
            return Row("GPU", OK, "none found" + (f" ({facts['error']})" if facts["error"] else ""))
        fix = where.inside("lsmod | grep nvidia; sudo dmesg | grep -iE 'nvrm|nvidia' | tail; sudo nvidia-smi")
        return Row("GPU", FAIL, f"nvidia-smi fails: {one_line(facts['error'])[:300]}", fix)
    return Row("GPU", OK, "; ".join(_describe_gpu(gpu) for gpu in facts["found"]))


def _describe_gpu(gpu: Mapping[str, str]) -> str:
    total, free = (_gib(gpu[name]) for name in ("memory.total", "memory.free"))
    return f"{gpu['name']}, {free} free of {total}, {gpu['utilization.gpu']} % busy, driver {gpu['driver_version']}"


def _gib(mebibytes: str) -> str:
    return show_bytes(float(mebibytes) * 2**20) if mebibytes.replace(".", "", 1).isdigit() else mebibytes


def rendering_row(facts: Mapping[str, Any], where: Where) -> Row:
    """Which off-screen OpenGL works; none is a drawback only, since many tasks render nothing."""
    ways = facts["ways"]
    by = "by MuJoCo" if facts["by_mujoco"] else "a bare context"
    shown = [
        f"{GL_NAMES[way]} ({told['renderer']})" if told["renderer"] else f"no {GL_NAMES[way]} ({told['error']})"
        for way, told in ways.items()
    ]
    works = [way for way, told in ways.items() if told["renderer"]]
    found = one_line(f"{'; '.join(shown)}; {by}")
    if works:
        return Row("rendering", OK, found)
    packages = (*GL_PACKAGES["egl"], *GL_PACKAGES["osmesa"])
    return Row("rendering", WARN, f"{found}; tasks that render fail there", where.install(*packages))


def skipped(names: Sequence[str], why: str) -> Iterator[Row]:
    """Rows for what was not tested."""
    for name in names:
        yield Row(name, SKIP, f"not tested: {why}")
