"""The server's log: offsets that outlast a cut, a bound, and disks that take no more."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from full_disk import file_size_limit
from leak_check import wait_until
from server_process import BareClient, ServerProcess, serving

from remote_env.protocol import frames
from remote_env.protocol.log_text import Problem
from remote_env.server import log as log_module
from remote_env.server.log import Log, Problems
from remote_env.session import Session
from remote_env.transport import connect_tcp

TASK = "tasks_for_tests.slow:Slow"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "log").write_bytes(b"")
    return tmp_path / "log"


def appended(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def may_cut(log: Log) -> Log:
    """As if our own output went there."""
    log._may_cut = True
    return log


def read_all(log: Log, offset: int = 0, max_bytes: int = 1 << 10) -> tuple[str, int]:
    text = ""
    while offset < log.size:
        part, offset = log.since(offset, max_bytes)
        assert part
        text += part
    return text, offset


def test_a_log_is_read_on_from_where_it_was_left(path: Path) -> None:
    log = Log(path)
    assert log.since(0, 100) == ("", 0)
    appended(path, "one\ntwo")
    text, following = log.since(0, 100)
    assert (text, following) == ("one\ntwo", 7)
    appended(path, " and a half\n")
    assert log.since(following, 100) == (" and a half\n", log.size)


def test_parts_end_with_lines_and_never_within_a_character(path: Path) -> None:
    log = Log(path)
    lines = [f"{number} {'é…🤖' * 20}\n" for number in range(100)]
    appended(path, "".join(lines))
    part, _ = log.since(0, 1 << 10)
    assert part.endswith("\n")
    assert read_all(log)[0] == "".join(lines)
    appended(path, "🤖" * 1000)  # one line longer than a part
    assert read_all(log)[0] == "".join(lines) + "🤖" * 1000
    with path.open("ab") as file:
        file.write("🤖".encode()[:2])  # its other half is to come
    text, following = log.since(log.size - 6, 1 << 10)
    assert text == "🤖"
    assert following == log.size - 2


def test_bytes_that_are_no_text_are_shown_as_such(path: Path) -> None:
    path.write_bytes(b"\xff\xfe ok\n\x80\x80\x80\x80\x80")
    log = Log(path)
    text, following = log.since(0, 1 << 10)
    assert text.startswith("\ufffd\ufffd ok\n")
    assert following == log.size


def test_offsets_beyond_what_there_is(path: Path) -> None:
    appended(path, "text\n")
    log = Log(path)
    assert log.since(10**9, 100) == ("", 5)
    assert log.since(-5, 100) == ("text\n", 5)


def test_a_cut_keeps_the_last_lines_and_the_offsets(path: Path) -> None:
    log = may_cut(Log(path, limit_bytes=4000))
    lines = [f"line {number:04}\n" for number in range(1000)]
    following = 0
    for line in lines:
        appended(path, line)
        log.bound()
        text, following = log.since(following, 1 << 10)
        assert text == line  # nothing is lost for one who follows
    assert log.size == following == sum(map(len, lines))
    assert path.stat().st_size <= 4000
    text, _ = read_all(log)
    assert text == "".join(lines)[-len(text) :]
    assert text.startswith("line ")
    assert len(text) >= 900
    assert log.tail(2) == ("line 0998\nline 0999", log.size)


def test_what_others_write_is_not_cut(path: Path) -> None:
    log = Log(path, limit_bytes=10)
    appended(path, "x" * 100)
    assert not log.bound()
    assert path.stat().st_size == 100


def test_a_log_that_somebody_else_empties_or_replaces_goes_on(path: Path) -> None:
    log = Log(path)
    appended(path, "one\ntwo\n")
    log.scan()
    assert log.since(0, 100) == ("one\ntwo\n", 8)
    path.write_text("")
    assert log.since(8, 100) == ("", 8)
    appended(path, "MemoryError\n")
    assert log.since(8, 100) == ("MemoryError\n", 20)
    assert log.since(0, 100) == ("MemoryError\n", 20)
    log.scan()
    assert log.problems.count == 1
    path.unlink()
    assert log.since(20, 100) == ("", 20)
    appended(path, "three\n")
    assert log.since(-5, 100) == ("three\n", 26)
    assert log.since(1 << 80, 100) == ("", 26)


def test_the_readable_tail_has_its_lines_however_much_repeats(path: Path) -> None:
    log = Log(path)
    lines = [f"line {number}" for number in range(60)]
    appended(path, "\n".join(lines) + "\n" + "the same again and again\n" * 1200)
    shown = log.clean_tail(40).split("\n")
    assert shown[:2] == ["line 22", "line 23"]
    assert shown[-2:] == ["the same again and again", "… repeated 1199 times"]


def test_problems_are_found_across_parts_and_cuts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "SCAN_BYTES", 64)
    log = may_cut(Log(path, limit_bytes=3000))
    for number in range(50):
        appended(path, f"some line\nTraceback (most recent call last):\n  File 'a'\nE: {number}\nother\n")
        log.scan()
        log.bound()
    assert log.problems.count == 50
    assert log.problems.after(49)[0]["text"].endswith("\nE: 49")


def test_a_traceback_without_an_end_is_told_when_nothing_follows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "QUIET_S", 0.01)
    log = Log(path)
    appended(path, "Traceback (most recent call last):\n  File 'a'\n")
    log.scan()
    assert log.is_behind
    wait_until(lambda: (log.scan(), log.problems.count)[1] == 1, "it is told")
    assert not log.is_behind


def test_the_last_words_need_no_newline(path: Path) -> None:
    log = Log(path)
    appended(path, "Segmentation fault")
    log.scan()
    assert log.problems.count == 0
    log.scan_to_end()
    assert log.problems.count == 1


def test_a_log_that_grows_faster_than_it_is_searched_is_searched_at_its_end(path: Path) -> None:
    log = Log(path)
    with path.open("wb") as file:
        file.write(b"Segmentation fault\n" + b"nothing\n" * (3 << 20) + b"MemoryError\n")
    before, turns = time.monotonic(), 0
    while log.is_behind:
        log.scan()
        turns += 1
    assert turns < 100
    assert time.monotonic() - before < 10
    assert [problem["kind"] for problem in log.problems.after(0)] == ["out-of-memory"]


def test_only_the_latest_problems_are_kept_and_long_ones_shortened() -> None:
    problems = Problems()
    for number in range(500):
        problems.add(Problem("cuda", f"CUDA error {number}" + "x" * 20_000))
    assert problems.count == 500
    kept = problems.after(0)
    assert kept[0]["number"] == 301
    assert sum(len(problem["text"]) for problem in kept) <= 80_000
    assert problems.after(kept[-1]["number"])[0]["number"] == kept[-1]["number"] + 1
    problems.add(Problem("cuda", "09:06:03 the same"))
    problems.add(Problem("cuda", "09:06:04 the same"))
    assert problems.count == 501
    assert problems.by_kind["cuda"] == 502


def test_without_a_log_everything_is_empty(tmp_path: Path) -> None:
    log = Log(tmp_path / "none")
    assert (log.size, log.tail(5), log.last_line(), log.since(0, 100)) == (0, ("", 0), "", ("", 0))
    log.scan()
    assert not log.is_behind
    assert not log.bound()


# The whole server


def perform(server: ServerProcess, plan: str) -> None:
    """Have the server's simulator do `plan`, in a session of its own."""
    session = Session(
        lambda until: connect_tcp("127.0.0.1", server.port, until), server.token, time.monotonic() + 20, client="a test"
    )
    with contextlib.closing(session):
        session.reset(None, {"plan": plan}, 20.0)


def test_a_server_bounds_its_log_and_a_follower_loses_nothing() -> None:
    with serving(TASK, log_limit_bytes=60_000) as server, BareClient(server) as client:
        client.shake_hands()
        text, following = "", 0
        for number in range(8):
            perform(server, f"talk:250;say:end of part {number}")
            while True:
                reply = client.ask(frames.LOGS, since=following, max_bytes=1 << 16)
                text, following = text + reply["text"], reply["next"]
                if following == reply["size"] and f"end of part {number}" in text:
                    break
        wait_until(lambda: (server.folder / "log").stat().st_size < 60_000, "the log is cut")
        assert following > 100_000
        assert [f"end of part {number}" in text for number in range(8)] == [True] * 8
        assert "its first part is gone" in client.ask(frames.LOGS, lines=1000)["text"]
        # Its writers append: no hole where the first part was.
        assert b"\0" not in (server.folder / "log").read_bytes()


def test_the_log_is_asked_for_in_parts_that_make_a_message() -> None:
    with serving(TASK, {"build": "talk:20000"}) as server, BareClient(server) as client:
        client.shake_hands()
        reply = client.ask(frames.LOGS, since=0, max_bytes=1 << 30)
        assert 100_000 < len(reply["text"]) <= 128 << 10
        assert len(client.ask(frames.LOGS, lines=10_000)["text"]) <= 160 << 10
        with pytest.raises(AssertionError, match="LOGS with a wrong field"):
            client.ask(frames.LOGS, since="the start")


def test_a_full_disk_ends_neither_server_nor_task() -> None:
    with file_size_limit(20_000), serving(TASK) as server:
        perform(server, "talk:2000")  # far more than the disk takes
        assert (server.folder / "log").stat().st_size <= 20_000
        with BareClient(server) as client:
            client.shake_hands()
            pid = client.ask(frames.STATUS)["pid"]
            wait_until(lambda: client.ask(frames.STATUS)["state"] == "ready", "it has let go of the session")
            client.ask(frames.KEEP, kept=True)
            client.ask(frames.KILL)
            wait_until(lambda: client.ask(frames.STATUS)["state"] == "dead", "the simulator ends")
        perform(server, "talk:10")  # a new one is started
        assert server.process.poll() is None
        with BareClient(server) as client:
            client.shake_hands()
            assert client.ask(frames.STATUS)["pid"] != pid
    assert not server.folder.exists()
