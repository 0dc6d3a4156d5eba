"""Rows about what Isaac Sim and Isaac Lab need before a first run.

Isaac Lab 3 on Newton without Isaac Sim ("kit-less") was run here, on a machine without a GPU; what Isaac Sim itself
needs is what NVIDIA's documentation states (docs.isaacsim.omniverse.nvidia.com, "Isaac Sim Requirements" and "Python
environment installation" of 4.5, 5.1 and 6.x; docs.nvidia.com/isaaclab/3.0, "Installation"; November 2026), tested on
what the probe tells of machines without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from remote_env.cli.machine_rows import GIB
from remote_env.cli.rows import FAIL, OK, WARN, Row, Where
from remote_env.cli.show import show_bytes

PACKAGES = ("isaaclab", "isaacsim", "isaacsim-kernel", "torch", "newton", "warp-lang", "mujoco-warp")
NEEDED_DISK_BYTES = 30 * GIB
KITLESS_DISK_BYTES = 12 * GIB  # 7.8 GB of packages, and compiled kernels
LIBRARIES = {"libGLU.so.1": "libglu1-mesa", "libvulkan.so.1": "libvulkan1", "libXt.so.6": "libxt6"}
ACCEPTING = ("y", "yes", "1", "true")
CUDA_13_DRIVER = (580, 65, 6)  # the oldest for CUDA 13, which Isaac Lab 3's torch and Warp are built with
ON_CPU = 'RemoteEnv(…, simulator="isaaclab", env_kwargs={"device": "cpu"})   # or take a machine with an NVIDIA GPU'


@dataclass(frozen=True)
class Release:
    """A major version of Isaac Sim.

    Attributes:
        newest: the version to install.
        driver: the oldest driver for Linux.
        python: what its wheels are for.
        glibc: the oldest that its wheels run on.
    """

    newest: str
    driver: tuple[int, ...]
    python: str
    glibc: tuple[int, int]


RELEASES = {
    4: Release("4.5.0", (535, 129, 3), "3.10", (2, 34)),
    5: Release("5.1.0", (580, 65, 6), "3.11", (2, 35)),
    6: Release("6.2.0", (580, 65, 6), "3.12", (2, 35)),
}
SIMS_OF_LAB = {2: (4, 5), 3: (6,)}  # which Isaac Sim an Isaac Lab runs on
OLDEST_DRIVER = min(release.driver for release in RELEASES.values())


@dataclass(frozen=True)
class Found:
    """What is installed for the interpreter.

    Attributes:
        lab: Isaac Lab's generation, 2 or 3; None without it.
        sim: Isaac Sim's version, "" when it is there and does not tell, None without it.
        release: Isaac Sim's major version, where known.
    """

    lab: int | None
    sim: str | None
    release: int | None

    @property
    def kitless(self) -> bool:
        """Isaac Lab 3 without Isaac Sim: its Newton tasks run."""
        return self.lab == 3 and self.sim is None


def isaac_rows(
    facts: Mapping[str, Any], versions: Mapping[str, str | None], gpus: Mapping[str, Any], where: Where
) -> Iterator[Row]:
    """Each of Isaac's needs; what a kit-less Isaac Lab does without is at most a drawback.

    Args:
        facts: the probe's part "isaac".
        versions: of `PACKAGES`.
        gpus: the probe's part "gpu".
        where: the machine.
    """
    found = _find(facts, versions)
    yield _isaac_lab(facts, versions, found, where)
    if found.lab == 3:
        yield _newton(versions, found, where)
    yield _isaac_sim(facts, found, where)
    yield _driver(gpus, found, where)
    yield _vulkan(facts, found, where)
    yield _libraries(facts, found, where)
    yield _licence(facts, found)
    yield from _caches(facts, found, where)


def _find(facts: Mapping[str, Any], versions: Mapping[str, str | None]) -> Found:
    sim = versions.get("isaacsim") or versions.get("isaacsim-kernel")
    if sim is None and facts["modules"]["isaacsim"]:
        sim = ""
    has_lab = versions.get("isaaclab") is not None or facts["modules"]["isaaclab"]
    # The version of a checkout is that of an extension (0.47 in Isaac Lab 2.3), so that the parts of 3 decide.
    is_three = (_major(versions.get("isaaclab")) or 0) >= 3 or facts["modules"]["isaaclab_newton"]
    return Found((3 if is_three else 2) if has_lab else None, sim, _major(sim))


def _major(version: str | None) -> int | None:
    first = (version or "").partition(".")[0]
    return int(first) if first.isdecimal() else None


def _isaac_lab(facts: Mapping[str, Any], versions: Mapping[str, str | None], found: Found, where: Where) -> Row:
    version, torch = versions.get("isaaclab") or "from source", versions.get("torch")
    if found.lab is None:
        fix = f"{where.ours('doctor', '--isaac', '--python', '~/IsaacLab/isaaclab.sh -p')}   # or where it lies there"
        return Row("Isaac Lab", FAIL, f"not installed for {where.python}", fix)
    if torch is None:
        return Row("Isaac Lab", FAIL, f"isaaclab {version} without torch", where.pip_install("torch"))
    text = f"isaaclab {version}, torch {torch}"
    if found.lab == 3 and facts["python"] != RELEASES[6].python:
        fix = where.ours("doctor", "--isaac", "--python", f"python{RELEASES[6].python}")
        return Row(
            "Isaac Lab", WARN, f"{text}; Isaac Lab 3 is made for Python 3.12, and this is {facts['python']}", fix
        )
    return Row("Isaac Lab", OK, text)


def _newton(versions: Mapping[str, str | None], found: Found, where: Where) -> Row:
    missing = [name for name in ("newton", "warp-lang", "mujoco-warp") if versions.get(name) is None]
    if not missing:
        told = ", ".join(f"{name} {versions[name]}" for name in ("newton", "warp-lang", "mujoco-warp"))
        return Row("Newton", OK, told)
    if found.kitless:
        text = f"{', '.join(missing)} not installed, nor Isaac Sim: nothing here can simulate"
        return Row("Newton", FAIL, text, where.pip_install("newton[sim]"))
    text = f"{', '.join(missing)} not installed; tasks on PhysX run without"
    return Row("Newton", WARN, text, where.pip_install("newton[sim]"))


def _isaac_sim(facts: Mapping[str, Any], found: Found, where: Where) -> Row:
    name = "Isaac Sim"
    if found.kitless:
        text = "not installed; Newton's tasks run without it, tasks on PhysX and with RTX cameras do not"
        return Row(name, WARN, text, f"{_sim_fix(6, where)}   # or isaaclab[ov], which brings these two alone")
    if found.sim is None:
        return Row(name, FAIL, "not installed for this interpreter", _sim_fix(_by_python(facts["python"]), where))
    text = f"isaacsim {found.sim or 'found, of unknown version'}, not imported"
    release = RELEASES.get(found.release or 0)
    allowed = SIMS_OF_LAB.get(found.lab or 0, tuple(RELEASES))
    if release and found.release not in allowed:
        wanted = " or ".join(map(str, allowed))
        return Row(
            name, FAIL, f"{text}; Isaac Lab {found.lab} runs on Isaac Sim {wanted}", _sim_fix(allowed[-1], where)
        )
    if release and release.python != facts["python"]:
        fix = where.ours("doctor", "--isaac", "--python", f"python{release.python}")
        return Row(name, FAIL, f"{text}; it is made for Python {release.python}, and this is {facts['python']}", fix)
    libc = _numbers(facts["libc"])
    if release and libc and libc < release.glibc:
        needed = ".".join(map(str, release.glibc))
        fix = "take a newer system there, or Isaac Sim's container: --launch 'docker exec -i isaac'"
        return Row(name, FAIL, f"{text}; it needs GLIBC {needed}, and this is {facts['libc']}", fix)
    return Row(name, OK, text)


def _by_python(python: str) -> int:
    return next((major for major, release in RELEASES.items() if release.python == python), max(RELEASES))


def _sim_fix(major: int, where: Where) -> str:
    extra = "--extra-index-url https://pypi.nvidia.com"
    return where.inside(f'{where.python} -m pip install "isaacsim[all,extscache]=={RELEASES[major].newest}" {extra}')


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(f"{part:02d}" if index else str(part) for index, part in enumerate(version))


def _driver(gpus: Mapping[str, Any], found: Found, where: Where) -> Row:
    name, fix = "Isaac driver", where.inside("sudo apt-get install -y nvidia-driver-580-server && sudo reboot")
    if not gpus["found"]:
        why = f"no NVIDIA GPU: {gpus['error'] or 'nvidia-smi lists none'}"
        if found.kitless:
            return Row(name, WARN, f"{why}; Newton runs on the CPU, slower", ON_CPU)
        return Row(name, FAIL, f"{why}{'; only Newton runs, on the CPU' if found.lab == 3 else ''}", fix)
    text = gpus["found"][0]["driver_version"]
    if found.kitless:
        if _numbers(text) < CUDA_13_DRIVER:
            told = f"{text}; CUDA 13 needs {_dotted(CUDA_13_DRIVER)} or later: Newton runs on the CPU alone"
            return Row(name, WARN, told, fix)
        return Row(name, OK, f"{text} (at least {_dotted(CUDA_13_DRIVER)})")
    release = RELEASES.get(found.release or 0)
    needed = release.driver if release else OLDEST_DRIVER
    if _numbers(text) < needed:
        return Row(name, FAIL, f"{text}; {_dotted(needed)} or later is needed", fix)
    if release is None and _numbers(text) < RELEASES[max(RELEASES)].driver:
        return Row(name, WARN, f"{text}: enough for Isaac Sim 4, too old for 5 and later", fix)
    return Row(name, OK, f"{text} (at least {_dotted(needed)})")


def _vulkan(facts: Mapping[str, Any], found: Found, where: Where) -> Row:
    status, without = (WARN, "; only Isaac Sim's renderer needs it") if found.kitless else (FAIL, "")
    if facts["missing_icds"]:
        text = f"VK_DRIVER_FILES or VK_ICD_FILENAMES names {', '.join(facts['missing_icds'])}, which is not there"
        return Row("Vulkan", status, text + without, where.inside("ls /usr/share/vulkan/icd.d /etc/vulkan/icd.d"))
    nvidia = [path for path in facts["icds"] if "nvidia" in path]
    if not nvidia:
        text = f"no driver file of NVIDIA's ({', '.join(facts['icds']) or 'none at all'})"
        return Row("Vulkan", status, text + without, where.install("libnvidia-gl-580-server", "libvulkan1"))
    return Row("Vulkan", OK, ", ".join(nvidia))


def _libraries(facts: Mapping[str, Any], found: Found, where: Where) -> Row:
    missing = [name for name, is_there in facts["libraries"].items() if not is_there]
    if not missing:
        return Row("Isaac libs", OK, ", ".join(facts["libraries"]))
    fix = where.install(*map(LIBRARIES.__getitem__, missing))
    if found.kitless:
        return Row("Isaac libs", WARN, f"missing: {', '.join(missing)}; only Isaac Sim needs them", fix)
    return Row("Isaac libs", FAIL, f"missing: {', '.join(missing)}", fix)


def _licence(facts: Mapping[str, Any], found: Found) -> Row:
    given = {name: value for name, value in facts["environment"].items() if value}
    if (given.get("OMNI_KIT_ACCEPT_EULA") or given.get("ACCEPT_EULA") or "").lower() in ACCEPTING:
        return Row("Isaac licence", OK, ", ".join(f"{name}={value}" for name, value in given.items()))
    if found.kitless:
        return Row("Isaac licence", OK, "not asked for without Isaac Sim")
    return Row(
        "Isaac licence",
        WARN,
        "OMNI_KIT_ACCEPT_EULA is not set there; Isaac Sim asks for it at its first start, and nobody can answer",
        'RemoteEnv(…, server_env={"OMNI_KIT_ACCEPT_EULA": "YES"})   # which says that you accept it',
    )


def _caches(facts: Mapping[str, Any], found: Found, where: Where) -> Iterator[Row]:
    # Newton's kernels are compiled by Warp, into a cache of its own.
    used = [cache for cache in facts["caches"] if cache["use"] == "warp" or not found.kitless]
    name, needed = ("kernel cache", KITLESS_DISK_BYTES) if found.kitless else ("shader cache", NEEDED_DISK_BYTES)
    free = min(cache["free"] for cache in used)
    places = sorted({cache["exists"] for cache in used})
    if free < needed:
        text = f"{show_bytes(free)} free; an installation with its caches takes some {show_bytes(needed)}"
        yield Row("Isaac disk", WARN, text, where.inside(f"df -h {' '.join(places)}"))
    else:
        yield Row("Isaac disk", OK, f"{show_bytes(free)} free")
    locked = [cache for cache in used if cache["error"]]
    if locked:
        text = "; ".join(f"{cache['path']}: {cache['error']}" for cache in locked)
        fix = where.inside(f"mkdir -p {' '.join(cache['path'] for cache in locked)}; ls -ld {' '.join(places)}")
        yield Row(name, FAIL, f"cannot be written: {text}", fix)
    else:
        yield Row(name, OK, ", ".join(cache["path"] for cache in used))
