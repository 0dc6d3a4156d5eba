"""Logs made readable, and the problems in them; the messages are those of the real programs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from remote_env.protocol.log_text import KINDS, Problem, ProblemFinder, clean, find_problems, last_line


def run_python(source: str) -> str:
    """What a real interpreter prints."""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=20)
    return done.stdout + done.stderr


def test_colours_titles_and_controls_go():
    assert clean("\x1b[1;31mred\x1b[0m \x1b]0;title\x07x\x1b(B\x07\x00 é…") == "red x é…"


def test_a_progress_bar_shows_its_last_state():
    bar = "loading:   0%|  | 0/3\rloading:  33%|# | 1/3\rloading: 100%|##| 3/3\ndone\r\n"
    assert clean(bar) == "loading: 100%|##| 3/3\ndone\n"
    assert clean("erased at the end\r   \r") == "erased at the end"


def test_repeats_collapse_whatever_their_time_stamps():
    text = "\n".join(f"2025-06-30T21:31:42Z [{number},468ms] [Warning] [omni.x] the same" for number in range(5))
    assert (
        clean(text + "\nother")
        == "2025-06-30T21:31:42Z [0,468ms] [Warning] [omni.x] the same\n… repeated 4 times\nother"
    )
    assert clean("a\na") == "a\n… repeated 1 time"
    assert clean("a\n\n\n\nb") == "a\n\nb"
    assert clean("[18.358s] [ext: a] startup\n[18.364s] [ext: b] startup").count("startup") == 2


def test_lines_of_text_are_left_alone():
    text = "2025-06-30 21:31:42 [1,468ms] [Info] [omni.kit] ready\n\tindented: 10 %\n09:06:03 é"
    assert clean(text) == text
    assert clean("") == ""


def test_the_last_line_that_says_something():
    assert last_line("one\ntwo\r10%\r20%\n\x1b[0m\n  \n") == "20%"
    assert last_line("\n") == ""


def test_a_traceback_is_whole():
    said = run_python("print('before')\ndef f():\n    raise ValueError('wrong')\nf()") + "after\n"
    (problem,) = find_problems(said.split("\n"))
    assert problem.kind == "traceback"
    assert problem.text.startswith("Traceback (most recent call last):\n  File ")
    assert problem.text.endswith("\nValueError: wrong")


def test_each_part_of_a_chain_is_found():
    said = run_python("try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('x') from error")
    assert [problem.text.split("\n")[-1] for problem in find_problems(said.split("\n"))] == [
        "ZeroDivisionError: division by zero",
        "KeyError: 'x'",
    ]


def test_a_traceback_behind_heads_of_kit():
    head = "2025-12-11T08:37:21Z [18,349ms] [Error] [__main__] [py stderr]: "
    lines = [
        head + line for line in ("Traceback (most recent call last):", '  File "a.py", line 1, in <module>', "E: no")
    ]
    text = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nE: no'
    assert find_problems(lines) == [Problem("traceback", text)]


def test_a_fatal_error_of_the_interpreter():
    said = run_python("import faulthandler, os; faulthandler.enable(); os.kill(os.getpid(), 11)") + "next line\n"
    (problem,) = find_problems(said.split("\n"))
    assert problem.kind == "segfault"
    assert problem.text.startswith("Fatal Python error: Segmentation fault\n\nCurrent thread 0x")
    assert 'File "<string>", line 1 in <module>' in problem.text
    assert "next line" not in problem.text
    (aborted,) = find_problems(run_python("import faulthandler, os; faulthandler.enable(); os.abort()").split("\n"))
    assert aborted.kind == "traceback"


def test_what_a_traceback_says_last_names_its_kind():
    said = run_python("raise MemoryError('Unable to allocate 9 TiB')")
    assert find_problems(said.split("\n"))[0].kind == "out-of-memory"
    said = run_python("raise RuntimeError('CUDA error: device-side assert triggered')")
    assert find_problems(said.split("\n"))[0].kind == "cuda"


def test_a_dump_that_was_asked_for_is_no_problem():
    said = run_python("import faulthandler; faulthandler.dump_traceback()")
    assert "most recent call first" in said
    assert find_problems(said.split("\n")) == []


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("cuda", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        ("cuda", "Warp CUDA error 2: out of memory (in function alloc_device, /builds/warp/native/warp.cu:1)"),
        ("cuda", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        ("cuda", "CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected"),
        ("cuda", "cuInit failed: unknown error"),
        ("cuda", "cudaErrorMemoryAllocation: out of memory"),
        (
            "vulkan",
            "2025-06-30 21:31:42 [1,468ms] [Error] [carb.graphics-vulkan.plugin] VkResult: ERROR_INCOMPATIBLE_DRIVER",
        ),
        ("vulkan", "[Error] [carb.graphics-vulkan.plugin] vkCreateInstance failed. Vulkan 1.1 is not supported"),
        ("vulkan", "[Error] [carb.graphics-vulkan.plugin] vkAllocateMemory failed for flags: 0."),
        ("vulkan", "VulkanRHI::vkQueueSubmit(Queue, 1, &SubmitInfo, Fence->GetHandle()) failed, VkResult=-4"),
        ("vulkan", " with error VK_ERROR_DEVICE_LOST"),
        (
            "vulkan",
            "[Error] [omni.gpu_foundation_factory.plugin] Failed to create any GPU devices, including an attempt",
        ),
        ("vulkan", "Failed to create Vulkan instance"),
        ("out-of-memory", "[12345.6] Out of memory: Killed process 4242 (python3) total-vm:94371840kB"),
        ("out-of-memory", "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0"),
        ("out-of-memory", "terminate called after throwing an instance of 'std::bad_alloc'"),
        ("out-of-memory", "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 EiB"),
        ("segfault", "./run.sh: line 5: 98932 Segmentation fault      (core dumped) python task.py"),
        ("segfault", "[Fatal] [carb.crashreporter-breakpad.plugin] SIGSEGV"),
    ],
)
def test_lines_that_tell_of_a_problem(kind, line):
    assert kind in KINDS
    assert find_problems(["before", line, "after"]) == [Problem(kind, line.strip())]


@pytest.mark.parametrize(
    "line",
    [
        "[Info] [omni.x] CUDA 12.8 found, driver 575.64.03",
        "[Info] [carb.graphics-vulkan.plugin] VkResult: SUCCESS",
        "VkResult=0",
        "[18.358s] [ext: omni.kit.window.collection-0.3.1] startup",
        "memory: 3 GiB free",
        "cuda:0 is used",
    ],
)
def test_lines_that_tell_of_none(line):
    assert find_problems([line]) == []


def test_a_log_in_parts_gives_the_same_problems():
    said = (
        "x\nTraceback (most recent call last):\n  File 'a'\nE: 1\nSegmentation fault\nFatal Python error: Aborted\n\nx"
    )
    lines = said.split("\n")
    finder = ProblemFinder()
    found = [problem for line in lines for problem in finder.feed([line])]
    assert [*found, *finder.finish()] == find_problems(lines)
    assert [problem.kind for problem in found] == ["traceback", "segfault", "traceback"]


def test_an_unfinished_traceback_is_told_at_the_end_and_cut_in_its_middle():
    lines = ["Traceback (most recent call last):", *(f"  File {number}" for number in range(5000))]
    finder = ProblemFinder()
    assert finder.feed(lines) == []
    assert finder.is_reading_block
    (problem,) = finder.finish()
    assert problem.text.split("\n")[-1] == "  File 4999"
    assert problem.text.count("\n") <= 400
    assert not finder.is_reading_block
