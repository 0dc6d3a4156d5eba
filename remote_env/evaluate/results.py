"""What an evaluation found: results.json and episodes.csv."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote_env.errors import CaptureError
from remote_env.evaluate.episodes import EpisodeResult
from remote_env.evaluate.statistics import describe_numbers, wilson_interval

JSON_NAME, CSV_NAME = "results.json", "episodes.csv"
COLUMNS = (
    *("env", "episode", "seed", "success", "return", "length", "max_reward", "end", "inferences"),
    *("latency_p50_ms", "latency_p99_ms", "wall_s", "attempts", "actions_digest"),
)


@dataclass(frozen=True)
class Results:
    """An evaluation's results, also those of one that was interrupted.

    Attributes:
        config: its settings, plain.
        model: the policy: where it is and its metadata, plain.
        episodes: those that were run, by environment and index.
        planned: how many there were to be.
        load_s: until the policy was loaded, or its server had answered [s].
        wall_s: for the episodes run this time, the start of workers included [s].
        run_now: how many of the episodes were run this time; the others were in the ledger.
        parent_peak_bytes: the largest memory of the evaluating process; it holds a local checkpoint.
        facts: versions and the machine.
        videos: of episodes, by path.
        plots: by path.
        notes: what a reader should know: what was left out, and why.
    """

    config: Mapping[str, Any]
    model: Mapping[str, Any]
    episodes: tuple[EpisodeResult, ...]
    planned: int
    load_s: float = 0.0
    wall_s: float = 0.0
    run_now: int = 0
    parent_peak_bytes: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    videos: tuple[Path, ...] = ()
    plots: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every episode was run."""
        return len(self.episodes) == self.planned

    @property
    def client_peak_bytes(self) -> int:
        """The largest memory of a worker: a client of the policy with its environment."""
        return max((episode.worker_peak_bytes for episode in self.episodes), default=0)

    @property
    def latencies_ms(self) -> list[float]:
        """Of every inference [ms]."""
        return [value for episode in self.episodes for value in episode.latencies_ms]

    def by_environment(self) -> dict[str, list[EpisodeResult]]:
        """The episodes of each environment, in the order of the evaluation."""
        found: dict[str, list[EpisodeResult]] = {}
        for episode in self.episodes:
            found.setdefault(episode.env, []).append(episode)
        return found

    def to_plain(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {
            "format": 1,
            "complete": self.complete,
            "planned": self.planned,
            "model": dict(self.model),
            "config": dict(self.config),
            "environments": {name: summarize(episodes) for name, episodes in self.by_environment().items()},
            "total": summarize(self.episodes),
            "load_s": self.load_s,
            "wall_s": self.wall_s,
            "run_now": self.run_now,
            "client_peak_bytes": self.client_peak_bytes,
            "parent_peak_bytes": self.parent_peak_bytes,
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "videos": [str(path) for path in self.videos],
            "plots": [str(path) for path in self.plots],
            "episodes": [episode.to_plain() for episode in self.episodes],
        }

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write results.json and episodes.csv into `folder`, each whole or not at all.

        Raises:
            CaptureError: the disk does not take them.
        """
        paths = folder / JSON_NAME, folder / CSV_NAME
        write_whole(paths[0], json.dumps(self.to_plain(), indent=2) + "\n")
        write_whole(paths[1], episode_table(self.episodes))
        return paths


def summarize(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Success rate with Wilson's 95 % interval, returns, lengths and latencies of some episodes."""
    known = [episode.success for episode in episodes if episode.success is not None]
    successes = sum(known)
    return {
        "episodes": len(episodes),
        "judged": len(known),
        "successes": successes,
        "success_rate": successes / len(known) if known else None,
        "success_interval_95": list(wilson_interval(successes, len(known))) if known else None,
        "return": describe_numbers([episode.episode_return for episode in episodes]),
        "max_reward": describe_numbers([episode.max_reward for episode in episodes]),
        "length": describe_numbers([episode.length for episode in episodes]),
        "latency_ms": describe_numbers([value for episode in episodes for value in episode.latencies_ms]),
        "episode_wall_s": describe_numbers([episode.wall_s for episode in episodes]),
    }


def episode_table(episodes: Sequence[EpisodeResult]) -> str:
    """The episodes as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_row(episode) for episode in episodes)
    return text.getvalue()


def _row(episode: EpisodeResult) -> list[Any]:
    latency = describe_numbers(episode.latencies_ms)
    success = "" if episode.success is None else int(episode.success)
    return [
        *(episode.env, episode.index, episode.seed, success, repr(episode.episode_return), episode.length),
        *(repr(episode.max_reward), episode.end, episode.inferences),
        *(f"{latency[name]:.3f}" if name in latency else "" for name in ("p50", "p99")),
        *(f"{episode.wall_s:.3f}", episode.attempts, episode.actions_digest),
    ]


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        CaptureError: the disk does not take it; what was there before is there still.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under; renamed when all went well, removed otherwise."""
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        why = error.strerror or error
        raise CaptureError(f"{path} cannot be written: {why}; make room, and run the same again") from error
    finally:
        temporary.unlink(missing_ok=True)
