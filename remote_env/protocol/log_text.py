"""A simulator's log made readable, and the lines in it that a user should see. Pure; standard library only.

The messages looked for are those of CPython, the CUDA runtime and driver, PyTorch, Warp, JAX, Vulkan loaders, the C++
library, the kernel, Slurm, and Omniverse Kit: "2025-06-30 21:31:42 [1,468ms] [Error] [carb.graphics-vulkan.plugin] …".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MAX_BLOCK_LINES = 400  # of one traceback; deeper ones are cut in the middle
KINDS = ("traceback", "cuda", "vulkan", "out-of-memory", "segfault")

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # control sequences: colours, cursor moves
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles and links
    r"|\x1b[()*+][0-9A-Za-z]|\x1b[ -/]*[0-~]"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What differs between lines that say the same: Kit's "2025-06-30T21:31:42Z [1,468ms] ", "[18.358s] ", our "09:06:03 ".
_TIME = re.compile(r"(?:\d{4}-\d\d-\d\d[T ])?(?:\d\d:\d\d:\d\d\S*\s+)?(?:\[[\d,.]+\s?m?s\]\s*)?")
# Kit passes a task's standard error on line by line, each behind a head of its own.
_KIT_HEAD = re.compile(r"(?:\d{4}-\d\d-\d\d[T ]\S+ )?\[[\d,.]+\s?m?s\] \[\w+\] \[[^\]]*\] (?:\[py std\w+\]: ?)?")

_TRACEBACK = "Traceback (most recent call last):"
_FATAL = "Fatal Python error: "
_FATAL_BODY = re.compile(
    r"\s*$|\s+(?:File |<|\.\.\.)|(?:Current thread|Thread) 0x|Python runtime state|Extension modules:"
)
_KIND_PATTERNS = (
    (
        "cuda",
        re.compile(
            r"CUDA error|CUDA out of memory|cudaError|CUDA_ERROR_|CUDA driver error|cuInit|CUDNN_STATUS_|CUBLAS_STATUS_"
            r"|No CUDA GPUs are available|CUDA driver initialization failed|CUDA (?:is )?in (?:a )?bad state"
            r"|NVRM: Xid"
        ),
    ),
    (
        "vulkan",
        re.compile(
            r"VkResult[:=](?!\s*(?:SUCCESS|VK_SUCCESS|0\b))|VK_ERROR_|ERROR_DEVICE_LOST|ERROR_INCOMPATIBLE_DRIVER"
            r"|\bvk[A-Z]\w+ failed"
            r"|[Ff]ailed to create (?:a |any |the )?(?:Vulkan|GPU)|No (?:Vulkan )?device could be created"
            r"|[Ff]ound no drivers|Could not get 'vk\w+'|GPU crash"
        ),
    ),
    (
        "out-of-memory",
        re.compile(
            r"Out of memory: Killed process|Killed process \d+|oom[-_]kill|OOM Killed|\bMemoryError\b|ArrayMemoryError"
            r"|std::bad_alloc|Cannot allocate memory|out-of-memory killer"
        ),
    ),
    ("segfault", re.compile(r"Segmentation fault|SIGSEGV|segfault at ")),
)


# One of these is in every line that tells of a problem: looking for them is much quicker than the patterns are.
_HINTS = (
    *("Traceback", "Fatal", "CUDA", "cuda", "cuInit", "CUDNN", "CUBLAS", "NVRM", "Vk", "VK_", "vk", "ERROR_", "Vulkan"),
    *("GPU", "device", "drivers", "emory", "Killed", "oom", "OOM", "alloc", "egmentation", "SIGSEGV", "segfault"),
)


class Problem(NamedTuple):
    """Something in a log that a user should see.

    Attributes:
        kind: one of KINDS.
        text: the line; of a traceback all lines, from its first to the exception's.
    """

    kind: str
    text: str


def clean(text: str) -> str:
    """`text` as a terminal would leave it: no colours, only the last state of a progress bar, no control characters.

    Runs of lines that differ in their time stamps at most are one line and "… repeated N times"; blank ones are one.
    """
    shown: list[str] = []
    last, repeats = None, 0
    for line in clean_lines(text):
        said = without_time(line)
        if said == last:
            repeats += 1
            continue
        _note_repeats(shown, repeats)
        shown.append(line)
        last, repeats = said, 0
    _note_repeats(shown, repeats)
    return "\n".join(shown)


def _note_repeats(shown: list[str], repeats: int) -> None:
    if repeats and shown[-1].strip():
        shown.append(f"… repeated {repeats} time{'s' * (repeats > 1)}")


def without_time(line: str) -> str:
    """`line` without the time stamps that it begins with: what two lines that say the same have in common."""
    return _TIME.sub("", line, count=1)


def clean_lines(text: str) -> list[str]:
    """The lines of `text`, each as a terminal would leave it; repeats are kept."""
    return [_clean_line(line) for line in text.split("\n")]


def _clean_line(line: str) -> str:
    if line.isprintable():
        return line.rstrip()
    line = _ESCAPES.sub("", line)
    states = [state for state in line.split("\r") if state.strip()]
    return _CONTROLS.sub("", states[-1]).rstrip() if states else ""


def last_line(text: str) -> str:
    """The last line that says something; "" when there is none."""
    for line in reversed(text.split("\n")):
        if cleaned := _clean_line(line).strip():
            return cleaned
    return ""


def find_problems(lines: Sequence[str]) -> list[Problem]:
    """The problems in these lines of a log, in order."""
    finder = ProblemFinder()
    return [*finder.feed(lines), *finder.finish()]


class ProblemFinder:
    """Finds problems in a log that comes in parts; a traceback may be spread over several."""

    def __init__(self) -> None:
        self._block: list[str] = []  # the traceback that is being read
        self._is_fatal = False

    @property
    def is_reading_block(self) -> bool:
        """Whether a traceback has begun and not ended."""
        return bool(self._block)

    def feed(self, lines: Sequence[str]) -> list[Problem]:
        """The problems that end in these further lines."""
        found: list[Problem] = []
        for line in lines:
            if self._block or any(hint in line for hint in _HINTS):
                found += self._read(_clean_line(line))
        return found

    def finish(self) -> list[Problem]:
        """What has begun and will not go on."""
        block, self._block = self._block, []
        return [_block_problem(block)] if block else []

    def _read(self, line: str) -> Iterator[Problem]:
        said = _KIT_HEAD.sub("", line, count=1)
        if self._block:
            if self._continues(said):
                self._keep(said)
                return
            if not self._is_fatal and said:
                self._keep(said)  # the exception's own line
                yield from self.finish()
                return
            yield from self.finish()
        if (begins := max(said.find(_TRACEBACK), said.find(_FATAL))) >= 0:
            self._is_fatal = said.startswith(_FATAL, begins)
            self._block = [said[begins:]]
        elif kind := kind_of(said):
            yield Problem(kind, line.strip())

    def _continues(self, line: str) -> bool:
        if self._is_fatal:
            return _FATAL_BODY.match(line) is not None
        return line.startswith((" ", "\t"))

    def _keep(self, line: str) -> None:
        self._block.append(line)
        if len(self._block) > MAX_BLOCK_LINES:
            del self._block[MAX_BLOCK_LINES // 2]


def _block_problem(block: list[str]) -> Problem:
    while block and not block[-1].strip():
        block.pop()
    deciding = block[0] if block[0].startswith(_FATAL) else block[-1]
    return Problem(kind_of(deciding) or "traceback", "\n".join(block))


def kind_of(line: str) -> str:
    """Of which kind of problem this one line tells; "" for none, and for the lines of a traceback."""
    return next((kind for kind, pattern in _KIND_PATTERNS if pattern.search(line)), "")
