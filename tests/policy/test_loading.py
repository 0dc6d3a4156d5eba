"""What a path or a name stands for, with real graphs; torch's half is in test_loading_torch.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_graphs import write_graph, write_linear

from remote_env.errors import ConfigError, InputError, PolicyError
from remote_env.policy import Policy, load_policy

pytest.importorskip("onnxruntime")

NORMALIZE = {
    "first": {
        "kind": "zscore",
        "state": {"mean": [1, 2, 3], "std": [2, 2, 2]},
        "action": {"mean": [10, 20], "std": [1, 2]},
    },
    "second": {
        "kind": "minmax",
        "state": {"min": [0, 0, 0], "max": [2, 2, 2]},
        "action": {"min": [-1, -1], "max": [1, 1]},
    },
}
STATE = {"kind": "state", "shape": [3], "dtype": "float32", "names": ["a", "b", "c"]}
POLICY = {"observation": {"state": STATE}, "action_names": ["x", "y"], "chunk_size": 4, "control_rate_hz": 50}
CKPT = Path(__file__).parents[2] / "ckpt" / "act_sim_transfer_cube_scripted_zscore_example"


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint: (state - mean) / std, its first two numbers plus 0, 1, 2, 3, back in the actions' units."""
    folder = tmp_path / "run" / "linear"
    folder.mkdir(parents=True)
    write_linear(folder / "policy.onnx")
    write_json(folder / "policy.json", POLICY)
    write_json(folder / "normalize.json", NORMALIZE)
    return folder


def states(*rows: Any) -> dict[str, Any]:
    return {"state": np.array(rows, np.float32)}


def names(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def test_a_graph_with_its_numbers(folder: Path) -> None:
    with load_policy(folder) as policy:
        chunk = policy.infer(states([3, 6, 9]), episode_ids=[""])
        assert policy.metadata.name == "linear"
        assert policy.metadata.normalizer == "zscore:first"
        assert policy.metadata.dataset_ids == ("first", "second")
        assert policy.metadata.observation["state"].names == ("a", "b", "c")
    assert chunk.tolist() == [[[11, 24], [12, 26], [13, 28], [14, 30]]]
    assert (chunk.dtype, chunk.flags.c_contiguous, chunk.flags.writeable) == (np.float32, True, True)


def test_another_dataset(folder: Path) -> None:
    policy = load_policy(folder, dataset_id="second")
    assert policy.infer(states([2, 0, 1]), episode_ids=[""])[0, 0].tolist() == [1, -1]
    with pytest.raises(ConfigError, match="no dataset 'third'; it has first, second"):
        load_policy(folder, dataset_id="third")


def test_rows_of_a_batch_are_each_rows_own(folder: Path) -> None:
    policy = load_policy(folder)
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    together = policy.infer({"state": rows}, episode_ids=names(5))
    for row, chunk in zip(rows, together, strict=True):
        np.testing.assert_array_equal(policy.infer(states(row), episode_ids=[""])[0], chunk)


def test_chunk_size_shortens_and_never_lengthens(folder: Path) -> None:
    short = load_policy(folder, chunk_size=2)
    assert short.metadata.chunk_size == 2
    assert short.infer(states([0, 0, 0]), episode_ids=[""]).shape == (1, 2, 2)
    assert load_policy(folder, chunk_size=64).metadata.chunk_size == 4


def test_by_its_file_and_with_numbers_beside_it(folder: Path) -> None:
    (folder / "normalize.json").rename(folder.parent / "normalize.json")
    assert load_policy(folder / "policy.onnx").metadata.normalizer == "zscore:first"


def test_a_missing_normalize_json_names_where_it_was_looked_for(folder: Path) -> None:
    (folder / "normalize.json").unlink()
    with pytest.raises(ConfigError, match=r"no normalize\.json") as raised:
        load_policy(folder)
    assert str(folder / "normalize.json") in str(raised.value)
    assert str(folder.parent / "normalize.json") in str(raised.value)
    write_json(folder / "policy.json", {**POLICY, "normalizer": "none"})
    policy = load_policy(folder)
    assert policy.metadata.normalizer == "none"
    assert policy.infer(states([5, 6, 7]), episode_ids=[""])[0, 1].tolist() == [6, 7]
    with pytest.raises(ConfigError, match="does not normalise"):
        load_policy(folder, dataset_id="first")


def test_without_policy_json_the_graph_tells(folder: Path) -> None:
    (folder / "policy.json").unlink()
    metadata = load_policy(folder).metadata
    assert (metadata.name, metadata.action_names, metadata.chunk_size) == ("linear", ("action_0", "action_1"), 4)
    assert metadata.observation["state"].shape == (3,)


def test_a_graph_for_one_row_is_run_row_by_row(folder: Path) -> None:
    write_linear(folder / "policy.onnx", batch=1)
    policy = load_policy(folder)
    assert not policy.metadata.batches
    assert policy.infer(states([1, 2, 3], [3, 6, 9]), episode_ids=names(2))[:, 0].tolist() == [[10, 20], [11, 24]]


def test_images_and_texts_reach_the_graph(folder: Path) -> None:
    write_graph(
        folder / "policy.onnx",
        [("camera", "float32", ("B", 1, 1, 3)), ("task", "string", ("B",))],
        ("actions", "float32", ("B", 1, 3)),
        [("Reshape", ("camera", "shape"), "actions")],  # the text is taken and not used
        shape=np.array([-1, 1, 3], np.int64),
    )
    features = {
        "camera": {"kind": "image", "shape": [1, 1, 3], "dtype": "uint8", "layout": "HWC"},
        "task": {"kind": "text", "dtype": ""},
    }
    described = {**POLICY, "observation": features, "action_names": ["r", "g", "b"], "chunk_size": 1}
    write_json(folder / "policy.json", {**described, "normalizer": "none"})
    pixel = np.array([[[[0, 51, 255]]]], np.uint8)
    chunk = load_policy(folder).infer({"camera": pixel, "task": ["go"]}, episode_ids=[""])
    np.testing.assert_array_equal(chunk, (pixel.astype(np.float32) / 255)[:, 0])


@pytest.mark.parametrize(
    ("graph", "policy", "message"),
    [
        ({"name": "qpos"}, {}, r"takes qpos \(B, 3\) tensor\(float\); policy.json says that .* state \(3,\) float32"),
        ({"state": 5}, {}, r"state \(B, 5\) tensor\(float\) does not fit policy.json, which makes it \(any, 3\)"),
        ({"actions": 3}, {}, r"actions \(B, 4, 3\)"),
        ({"steps": 7}, {}, "gives 7 actions at once; policy.json says chunk_size 4"),
        ({}, {"frequency": 50}, "unknown keys frequency; there are name, observation"),
        ({}, {"action_names": []}, "needs action_names"),
        (
            {},
            {"observation": {"state": {"kind": "vector", "shape": [3]}}},
            "kind 'vector'; there are state, image, text",
        ),
        ({}, {"observation": {"state": {"kind": "state", "shape": [3, 1]}}}, r"has shape \(3, 1\)"),
        ({}, {"observation": {"state": {"shape": [3]}}}, "lacks 'kind'"),
        ({}, {"observation": 5}, "is not as"),
        ({}, {"chunk_size": "many"}, "is not as"),
        ({}, {"factory_kwargs": 5}, "factory_kwargs is an object"),
    ],
)
def test_what_does_not_fit_is_said(folder: Path, graph: dict[str, Any], policy: dict[str, Any], message: str) -> None:
    write_linear(folder / "policy.onnx", **graph)
    write_json(folder / "policy.json", {**POLICY, **policy})
    with pytest.raises(ConfigError, match=message):
        load_policy(folder)


def test_damaged_files_are_said_to_be(folder: Path) -> None:
    (folder / "policy.onnx").write_bytes(b"\x08\x08rubbish")
    with pytest.raises(ConfigError, match=r"onnxruntime .* cannot load .*policy.onnx"):
        load_policy(folder)
    (folder / "policy.json").write_text("{")
    with pytest.raises(ConfigError, match=r"policy.json cannot be read"):
        load_policy(folder)
    (folder / "policy.json").write_text("[]")
    with pytest.raises(ConfigError, match="it is an object"):
        load_policy(folder)


def test_a_graph_without_actions_lists_its_outputs(folder: Path) -> None:
    nodes = [("Identity", ("state",), "chunk")]
    write_graph(folder / "policy.onnx", [("state", "float32", ("B", 3))], ("chunk", "float32", ("B", 3)), nodes)
    with pytest.raises(ConfigError, match=r"no output 'actions' of shape \(B, K, D\); it has chunk"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "no working CUDAExecutionProvider here; it can use cpu.*: run it with --device cpu or `pip install"),
        ("cuda:1", "no working CUDAExecutionProvider"),
        ("mps", "no working CoreMLExecutionProvider"),
        ("gpu", "device='gpu' is none; there are cpu, cuda, cuda:N and mps"),
        ("cuda:", "is none"),
    ],
)
def test_no_other_device_than_asked(folder: Path, device: str, message: str) -> None:
    import onnxruntime

    if not {"CUDAExecutionProvider", "CoreMLExecutionProvider"}.isdisjoint(onnxruntime.get_available_providers()):
        pytest.skip("this machine has such a device")
    with pytest.raises(ConfigError, match=message):
        load_policy(folder, device=device)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_load_is_no_silent_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    # As of onnxruntime-gpu where CUDA's libraries are missing: it lists the provider and goes on without.
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(ConfigError, match="no working CUDAExecutionProvider here; it can use cpu"):
        load_policy(folder, device="cuda:0")


def test_wrong_calls_and_wrong_results(folder: Path) -> None:
    policy = load_policy(folder)
    with pytest.raises(InputError, match="lacks 'state'"):
        policy.infer({}, episode_ids=[])
    with pytest.raises(InputError, match="2 observations came with 1 episode ids"):
        policy.infer(states([0, 0, 0], [0, 0, 0]), episode_ids=[""])
    policy.close()
    policy.close()
    with pytest.raises(PolicyError, match="'linear' is closed"):
        policy.infer(states([0, 0, 0]), episode_ids=[""])


def test_actions_that_are_no_numbers_are_refused(folder: Path) -> None:
    content = json.loads((folder / "normalize.json").read_text())
    content["first"]["action"]["std"] = [100, 100]
    write_json(folder / "normalize.json", content)
    with pytest.raises(PolicyError, match="gave inf for x at step 0 of the chunk of observation 1"):
        load_policy(folder).infer(states([0, 0, 0], [3e38, 0, 0]), episode_ids=names(2))


def test_what_the_graph_raises_comes_with_its_traceback(folder: Path) -> None:
    write_graph(
        folder / "policy.onnx",
        [("state", "float32", ("B", 3))],
        ("actions", "float32", ("B", "K", 3)),
        [("Reshape", ("state", "shape"), "actions")],
        shape=np.array([1, 2, 3], np.int64),
    )
    write_json(
        folder / "policy.json", {**POLICY, "action_names": ["x", "y", "z"], "chunk_size": 2, "normalizer": "none"}
    )
    with pytest.raises(PolicyError, match="'linear' raised ") as raised:
        load_policy(folder).infer(states([0, 0, 0]), episode_ids=[""])
    assert "onnx_policy.py" in raised.value.remote_traceback
    with pytest.raises(PolicyError, match=r"shape \(1, 2, 3\); \(B, K, D\) is \(2, K, 3\)"):
        load_policy(folder).infer(states([0, 0, 0], [0, 0, 0]), episode_ids=names(2))


def test_what_is_no_policy_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no policy 'ckpt/none': there is no /.*ckpt/none; a policy is one of"
    ) as raised:
        load_policy("ckpt/none")
    for form in ("policy.onnx", "module:function", "scripted:aloha-insertion", "host:port", "LeRobot"):
        assert form in str(raised.value)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"is no checkpoint, it holds notes\.txt"):
        load_policy(tmp_path)
    with pytest.raises(ConfigError, match="is no checkpoint's file"):
        load_policy(tmp_path / "notes.txt")
    for name in ("a.onnx", "b.onnx"):
        write_linear(tmp_path / name)
    with pytest.raises(ConfigError, match=r"holds a\.onnx, b\.onnx; name the one that is meant"):
        load_policy(tmp_path)


# Factories

FACTORY = """
import numpy as np
from remote_env.policy import Feature, Policy, PolicyMetadata

class Still(Policy):
    def __init__(self, device="cpu", size=2):
        self.metadata = PolicyMetadata("still", {"state": Feature("state", (3,))}, ("x",) * size)
        self.device = device

    def infer(self, observation, *, episode_ids):
        return np.zeros((len(episode_ids), 1, self.metadata.action_size), np.float32)

def make_policy(size=2):
    return Still(size=size)

def make_on_device(device, dataset_id, chunk_size):
    return Still(device)

def make_nothing():
    return 5

def make_trouble(**options):
    raise RuntimeError(f"no weights for {options['device']}")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "still_policies.py"
    path.write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    for name in [name for name in sys.modules if name.endswith("still_policies")]:
        del sys.modules[name]


@pytest.mark.parametrize("place", ["still_policies", "./still_policies.py", "{}"])
def test_a_policy_of_ones_own(module: Path, place: str) -> None:
    policy = load_policy(f"{place.format(module)}:make_policy")
    assert isinstance(policy, Policy)
    assert policy.metadata.name == "still"


def test_a_factory_gets_what_it_takes(module: Path) -> None:
    assert load_policy("still_policies:make_on_device", device="cuda:1").device == "cuda:1"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="takes no device, but device='cuda' was given"):
        load_policy("still_policies:make_policy", device="cuda")


def test_a_factory_that_knows_no_chunk_size_gives_chunks_as_short_as_asked() -> None:
    name = f"{Path(__file__).parent / 'policies_for_tests.py'}:make_echo"
    assert load_policy(name).metadata.chunk_size == 4
    assert load_policy(name, chunk_size=64).metadata.chunk_size == 4
    with load_policy(name, chunk_size=3) as policy:
        assert policy.metadata.chunk_size == 3
        chunk = policy.infer({"state": np.ones((2, 14), np.float32)}, episode_ids=["a", "b"])
        assert chunk.shape == (2, 3, 14)
        assert chunk.flags.c_contiguous


def test_a_folder_that_names_a_factory(module: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    module.rename(folder / "still_policies.py")
    write_json(folder / "policy.json", {"factory": "still_policies.py:make_policy", "factory_kwargs": {"size": 5}})
    assert load_policy(folder).metadata.action_size == 5
    write_json(folder / "policy.json", {"factory": "still_policies.py:make_policy", "factory_kwargs": {"width": 5}})
    with pytest.raises(ConfigError, match="takes no 'width'; it takes size"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such_module:make", r"no module 'no_such_module' can be imported here.*./no_such_module.py:function"),
        ("./none.py:make", "no file .*none.py"),
        ("still_policies:make", "has no function 'make'; it has .*make_policy"),
        ("still_policies:make_nothing", "made a int; it must return a remote_env.policy.Policy"),
        ("still_policies:make_trouble", "make_trouble raised RuntimeError: no weights for cpu"),
    ],
)
def test_faults_of_factories(module: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_policy(text)


@pytest.mark.parametrize("place", ["broken_policies", "./broken_policies.py"])
def test_a_module_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "broken_policies.py").write_text("import no_such_package_of_mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"importing .*broken_policies.* raised ModuleNotFoundError.*of_mine"):
        load_policy(f"{place}:make")
    assert not [name for name in sys.modules if name.endswith("broken_policies")]


# The checkpoint that comes with the repository


def test_the_checkpoint_of_the_repository() -> None:
    with load_policy(CKPT) as policy:
        assert policy.metadata.observation["state"].shape == (41,)
        chunk = policy.infer({"state": np.zeros((2, 41), np.float32)}, episode_ids=names(2))
    assert chunk.shape == (2, 64, 14)
    np.testing.assert_array_equal(chunk[0], chunk[1])
