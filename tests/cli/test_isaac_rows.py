"""What the doctor says of Isaac Sim and Isaac Lab; the kit-less case is that of a machine that was here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from remote_env.cli.isaac_rows import PACKAGES, RELEASES, isaac_rows
from remote_env.cli.rows import FAIL, OK, WARN, Row, Where
from remote_env.server import probe

WHERE = Where("box", "ssh box", "python3")
NO_GPU = {"found": [], "error": "there is no nvidia-smi"}
SIM = {"isaaclab": "2.3.0", "isaacsim": "5.1.0", "torch": "2.7.0"}
# What pip says of isaaclab==3.0.0 on Python 3.12, and what the probe told of a machine without GPU or Vulkan.
KITLESS = {"isaaclab": "3.0.0", "torch": "2.11.0", "newton": "1.6.1", "warp-lang": "1.17.0", "mujoco-warp": "3.12.0"}
BARE_MACHINE = {
    "modules": {"isaaclab": True, "isaaclab_newton": True, "isaacsim": False, "omni": False},
    "python": "3.12",
    "icds": [],
    "libraries": {"libGLU.so.1": True, "libvulkan.so.1": False, "libXt.so.6": True},
    "environment": {"OMNI_KIT_ACCEPT_EULA": None, "ACCEPT_EULA": None, "PRIVACY_CONSENT": None},
}


def cache(use: str, free: int = 2**40, error: str = "") -> dict[str, Any]:
    return {"use": use, "path": f"/home/a/.cache/{use}", "exists": "/home/a/.cache", "free": free, "error": error}


def facts(**changes: Any) -> dict[str, Any]:
    told = {
        "modules": {"isaaclab": True, "isaaclab_newton": False, "isaacsim": True, "omni": True},
        "icds": ["/usr/share/vulkan/icd.d/nvidia_icd.json"],
        "missing_icds": [],
        "libraries": {"libGLU.so.1": True, "libvulkan.so.1": True, "libXt.so.6": True},
        "environment": {"OMNI_KIT_ACCEPT_EULA": "YES", "ACCEPT_EULA": None, "PRIVACY_CONSENT": None},
        "caches": [cache("sim"), cache("warp")],
        "python": "3.11",
        "libc": "2.36",
    }
    return {**told, **changes}


def judge(
    told: dict[str, Any], versions: dict[str, str] | None = None, driver: str | None = "580.65.06", **changes: str
) -> dict[str, Row]:
    """Rows by name, with every advice checked to be there."""
    gpus = NO_GPU if driver is None else {"found": [{"driver_version": driver}], "error": ""}
    installed = dict.fromkeys(PACKAGES) | (SIM if versions is None else versions) | changes
    rows = list(isaac_rows(told, installed, gpus, WHERE))
    assert all(row.fix for row in rows if row.status != OK)
    return {row.name: row for row in rows}


def statuses(rows: dict[str, Row]) -> set[str]:
    return {row.status for row in rows.values()}


def test_a_machine_with_all_of_it_is_well() -> None:
    assert statuses(judge(facts())) == {OK}
    six = facts(python="3.12", modules={"isaaclab": True, "isaaclab_newton": True, "isaacsim": True, "omni": True})
    assert statuses(judge(six, KITLESS, isaacsim="6.2.0")) == {OK}
    assert statuses(judge(facts(python="3.10"), isaacsim="4.5.0", driver="535.129.03")) == {OK}


@pytest.mark.parametrize(
    ("row", "status", "told", "versions", "driver"),
    [
        ("Isaac driver", FAIL, {}, {}, "535.129.03"),
        ("Isaac driver", FAIL, {}, {}, "580.65.05"),
        ("Isaac driver", FAIL, {"python": "3.10"}, {"isaacsim": "4.5.0"}, "535.104.05"),
        ("Isaac driver", FAIL, {}, {}, None),
        ("Isaac Sim", FAIL, {"python": "3.12"}, {}, "580.65.06"),
        ("Isaac Sim", FAIL, {"libc": "2.31"}, {}, "580.65.06"),
        ("Isaac Sim", FAIL, {"python": "3.12"}, {"isaaclab": "2.3.0", "isaacsim": "6.2.0"}, "580.65.06"),
        ("Vulkan", FAIL, {"icds": []}, {}, "580.65.06"),
        ("Vulkan", FAIL, {"missing_icds": ["/nowhere.json"]}, {}, "580.65.06"),
        ("Isaac libs", FAIL, {"libraries": {"libGLU.so.1": False}}, {}, "580.65.06"),
        ("Isaac licence", WARN, {"environment": {}}, {}, "580.65.06"),
        ("Isaac disk", WARN, {"caches": [cache("sim", free=2**30)]}, {}, "580.65.06"),
        ("shader cache", FAIL, {"caches": [cache("sim", error="Read-only file system")]}, {}, "580.65.06"),
        ("Isaac Lab", FAIL, {}, {"torch": None}, "580.65.06"),
    ],
)
def test_what_isaac_sim_needs_and_lacks(
    row: str, status: str, told: dict[str, Any], versions: dict[str, Any], driver: str | None
) -> None:
    rows = judge(facts(**told), driver=driver, **versions)
    assert rows[row].status == status
    assert {name for name, other in rows.items() if other.status != OK} == {row}


def test_a_kitless_machine_without_a_gpu_lacks_nothing_that_it_needs() -> None:
    rows = judge(facts(**BARE_MACHINE), KITLESS, driver=None)
    assert FAIL not in statuses(rows)
    assert rows["Isaac Lab"].found == "isaaclab 3.0.0, torch 2.11.0"
    assert rows["Newton"].found == "newton 1.6.1, warp-lang 1.17.0, mujoco-warp 3.12.0"
    assert "Newton's tasks run without it" in rows["Isaac Sim"].found
    assert "isaacsim[all,extscache]==6.2.0" in rows["Isaac Sim"].fix
    assert rows["Isaac driver"].found.endswith("there is no nvidia-smi; Newton runs on the CPU, slower")
    assert 'env_kwargs={"device": "cpu"}' in rows["Isaac driver"].fix
    assert "only Isaac Sim's renderer needs it" in rows["Vulkan"].found
    assert "only Isaac Sim needs them" in rows["Isaac libs"].found
    assert rows["Isaac licence"] == Row("Isaac licence", OK, "not asked for without Isaac Sim")
    assert rows["kernel cache"].found == "/home/a/.cache/warp"
    assert "shader cache" not in rows


def test_a_kitless_machine_s_own_needs() -> None:
    bare = facts(**BARE_MACHINE)
    assert "nothing here can simulate" in judge(bare, {"isaaclab": "3.0.0", "torch": "2.11.0"})["Newton"].found
    assert judge(bare, {"isaaclab": "3.0.0", "torch": "2.11.0"})["Newton"].status == FAIL
    old = judge(bare, KITLESS, driver="570.86.10")["Isaac driver"]
    assert (old.status, "CUDA 13 needs 580.65.06" in old.found) == (WARN, True)
    assert judge(bare, KITLESS)["Isaac driver"].status == OK
    assert judge({**bare, "python": "3.11"}, KITLESS)["Isaac Lab"].status == WARN  # it ran so here, by --no-deps
    locked = {**bare, "caches": [cache("sim", error="Permission denied"), cache("warp")]}
    assert judge(locked, KITLESS)["kernel cache"].status == OK  # Isaac Sim's folders do not matter
    locked["caches"] = [cache("warp", free=2**30, error="Permission denied")]
    assert judge(locked, KITLESS)["kernel cache"].status == FAIL
    assert judge(locked, KITLESS)["Isaac disk"].status == WARN


def test_isaac_lab_3_wants_isaac_sim_6_or_none() -> None:
    both = facts(modules={"isaaclab": True, "isaaclab_newton": True, "isaacsim": True, "omni": True})
    row = judge(both, KITLESS, isaacsim="5.1.0")["Isaac Sim"]
    assert (row.status, "Isaac Lab 3 runs on Isaac Sim 6" in row.found) == (FAIL, True)
    assert "isaacsim[all,extscache]==6.2.0" in row.fix
    without = judge({**both, "python": "3.12"}, KITLESS, isaacsim="6.2.0", driver=None)["Isaac driver"]
    assert (without.status, "only Newton runs, on the CPU" in without.found) == (FAIL, True)


def test_a_checkout_s_generation_is_told_by_its_parts() -> None:
    """Isaac Lab from source has its extension's version: 0.47 is of 2.3."""
    two = facts(modules={"isaaclab": True, "isaaclab_newton": False, "isaacsim": False, "omni": False})
    rows = judge(two, {"isaaclab": "0.47.2", "torch": "2.7.0"})
    assert rows["Isaac Sim"].status == FAIL
    assert "isaacsim[all,extscache]==5.1.0" in rows["Isaac Sim"].fix  # what Python 3.11 takes
    assert "Newton" not in rows
    three = {**two, "modules": {**two["modules"], "isaaclab_newton": True}, "python": "3.12"}
    assert judge(three, {**KITLESS, "isaaclab": "0.54.3"})["Isaac Sim"].status == WARN


def test_without_isaac_lab_the_interpreter_is_asked_for() -> None:
    nothing = facts(modules=dict.fromkeys(("isaaclab", "isaaclab_newton", "isaacsim", "omni"), False))
    rows = judge(nothing, {})
    assert rows["Isaac Lab"].status == rows["Isaac Sim"].status == FAIL
    assert rows["Isaac Lab"].fix.startswith('remote-env doctor box --isaac --python "~/IsaacLab/isaaclab.sh -p"')


def test_the_probe_tells_all_that_is_judged() -> None:
    told = json.loads(json.dumps(probe.isaac()))
    versions = probe.packages(list(PACKAGES))["versions"]
    rows = list(isaac_rows(told, versions, probe.gpus(), WHERE))
    assert {"Isaac Lab", "Isaac Sim", "Isaac driver", "Vulkan", "Isaac licence", "shader cache"} <= {
        r.name for r in rows
    }
    assert {one["use"] for one in told["caches"]} == {"sim", "warp"}


def test_releases_are_in_order() -> None:
    drivers = [RELEASES[major].driver for major in sorted(RELEASES)]
    assert drivers == sorted(drivers)
