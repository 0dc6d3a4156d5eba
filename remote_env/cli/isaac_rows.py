"""Rows about what Isaac Sim and Isaac Lab need before a first run.

Never run on a machine with Isaac Sim: the requirements are those that NVIDIA's documentation states, and they are
tested on what the probe tells of machines without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from remote_env.cli.machine_rows import GIB
from remote_env.cli.rows import FAIL, OK, WARN, Row, Where
from remote_env.cli.show import show_bytes

PACKAGES = ("isaaclab", "isaacsim", "isaacsim-kernel", "torch")
NEEDED_DISK_BYTES = 30 * GIB
# By the major version of Isaac Sim: the oldest driver for Linux, the Python that its wheels are for.
RELEASES = {4: ((535, 129), "3.10"), 5: ((580, 65), "3.11"), 6: ((580, 65), "3.12")}
OLDEST_DRIVER = min(driver for driver, _ in RELEASES.values())
LIBRARIES = {"libGLU.so.1": "libglu1-mesa", "libvulkan.so.1": "libvulkan1", "libXt.so.6": "libxt6"}
ACCEPTING = ("y", "yes", "1", "true")


def isaac_rows(
    facts: Mapping[str, Any], versions: Mapping[str, str | None], gpus: Mapping[str, Any], where: Where
) -> Iterator[Row]:
    """Each of Isaac's needs.

    Args:
        facts: the probe's part "isaac".
        versions: of `PACKAGES`.
        gpus: the probe's part "gpu".
        where: the machine.
    """
    sim = versions.get("isaacsim") or versions.get("isaacsim-kernel")
    release = _major(sim)
    yield _isaac_lab(facts, versions, where)
    yield _isaac_sim(facts, versions, sim, release, where)
    yield _driver(gpus, release, where)
    yield _vulkan(facts, where)
    yield _libraries(facts, where)
    yield _licence(facts)
    yield from _caches(facts, where)


def _major(version: str | None) -> int | None:
    first = (version or "").partition(".")[0]
    return int(first) if first.isdecimal() else None


def _isaac_lab(facts: Mapping[str, Any], versions: Mapping[str, str | None], where: Where) -> Row:
    version, torch = versions.get("isaaclab"), versions.get("torch")
    if version is None and not facts["modules"]["isaaclab"]:
        found = f"not installed for {where.python}"
        fix = f"{where.ours('doctor', '--isaac', '--python', '~/IsaacLab/isaaclab.sh -p')}   # or where it lies there"
        return Row("Isaac Lab", FAIL, found, fix)
    if torch is None:
        return Row("Isaac Lab", FAIL, f"isaaclab {version or 'from source'} without torch", where.pip_install("torch"))
    return Row("Isaac Lab", OK, f"isaaclab {version or 'from source'}, torch {torch}")


def _isaac_sim(
    facts: Mapping[str, Any], versions: Mapping[str, str | None], sim: str | None, release: int | None, where: Where
) -> Row:
    python = RELEASES[release][1] if release in RELEASES else None
    if sim is None and not facts["modules"]["isaacsim"]:
        found = "not installed for this interpreter"
        if (_major(versions.get("isaaclab")) or 0) >= 3:
            return Row("Isaac Sim", WARN, f"{found}; Isaac Lab 3 runs its Newton tasks without it", _sim_fix(where))
        return Row("Isaac Sim", FAIL, found, _sim_fix(where))
    found = f"isaacsim {sim or 'found, of unknown version'}, not imported"
    if python is not None and python != facts["python"]:
        fix = where.ours("doctor", "--isaac", "--python", f"python{python}")
        return Row("Isaac Sim", FAIL, f"{found}; it is made for Python {python}, and this is {facts['python']}", fix)
    return Row("Isaac Sim", OK, found)


def _sim_fix(where: Where) -> str:
    extra = "--extra-index-url https://pypi.nvidia.com"
    return where.inside(f'{where.python} -m pip install "isaacsim[all,extscache]" {extra}')


def _driver(gpus: Mapping[str, Any], release: int | None, where: Where) -> Row:
    fix = where.inside("sudo apt-get install -y nvidia-driver-580-server && sudo reboot")
    if not gpus["found"]:
        return Row("Isaac driver", FAIL, f"no NVIDIA GPU: {gpus['error'] or 'nvidia-smi lists none'}", fix)
    text = gpus["found"][0]["driver_version"]
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    needed = RELEASES[release][0] if release in RELEASES else OLDEST_DRIVER
    wanted = ".".join(map(str, needed))
    if numbers < needed:
        return Row("Isaac driver", FAIL, f"{text}; {wanted} or later is needed", fix)
    newest = max(driver for driver, _ in RELEASES.values())
    if release not in RELEASES and numbers < newest:
        return Row("Isaac driver", WARN, f"{text}: enough for Isaac Sim 4, too old for 5 and later", fix)
    return Row("Isaac driver", OK, f"{text} (at least {wanted})")


def _vulkan(facts: Mapping[str, Any], where: Where) -> Row:
    if facts["missing_icds"]:
        found = f"VK_DRIVER_FILES or VK_ICD_FILENAMES names {', '.join(facts['missing_icds'])}, which is not there"
        return Row("Vulkan", FAIL, found, where.inside("ls /usr/share/vulkan/icd.d /etc/vulkan/icd.d"))
    nvidia = [path for path in facts["icds"] if "nvidia" in path]
    if not nvidia:
        found = f"no driver file of NVIDIA's ({', '.join(facts['icds']) or 'none at all'})"
        return Row("Vulkan", FAIL, found, where.install("libnvidia-gl-580-server", "libvulkan1"))
    return Row("Vulkan", OK, ", ".join(nvidia))


def _libraries(facts: Mapping[str, Any], where: Where) -> Row:
    missing = [name for name, is_there in facts["libraries"].items() if not is_there]
    if missing:
        return Row(
            "Isaac libs", FAIL, f"missing: {', '.join(missing)}", where.install(*map(LIBRARIES.__getitem__, missing))
        )
    return Row("Isaac libs", OK, ", ".join(facts["libraries"]))


def _licence(facts: Mapping[str, Any]) -> Row:
    given = {name: value for name, value in facts["environment"].items() if value}
    if (given.get("OMNI_KIT_ACCEPT_EULA") or given.get("ACCEPT_EULA") or "").lower() in ACCEPTING:
        return Row("Isaac licence", OK, ", ".join(f"{name}={value}" for name, value in given.items()))
    return Row(
        "Isaac licence",
        WARN,
        "OMNI_KIT_ACCEPT_EULA is not set there; Isaac Sim asks for it at its first start, and nobody can answer",
        'RemoteEnv(…, server_env={"OMNI_KIT_ACCEPT_EULA": "YES"})   # which says that you accept it',
    )


def _caches(facts: Mapping[str, Any], where: Where) -> Iterator[Row]:
    free = min(cache["free"] for cache in facts["caches"])
    places = sorted({cache["exists"] for cache in facts["caches"]})
    if free < NEEDED_DISK_BYTES:
        found = f"{show_bytes(free)} free; an installation with its caches takes some {show_bytes(NEEDED_DISK_BYTES)}"
        yield Row("Isaac disk", WARN, found, where.inside(f"df -h {' '.join(places)}"))
    else:
        yield Row("Isaac disk", OK, f"{show_bytes(free)} free")
    locked = [cache for cache in facts["caches"] if cache["error"]]
    if locked:
        found = "; ".join(f"{cache['path']}: {cache['error']}" for cache in locked)
        fix = where.inside(f"mkdir -p {' '.join(cache['path'] for cache in locked)}; ls -ld {' '.join(places)}")
        yield Row("shader cache", FAIL, f"cannot be written: {found}", fix)
    else:
        yield Row("shader cache", OK, ", ".join(cache["path"] for cache in facts["caches"]))
