"""The viewer's state machine: keys and clock readings in, what is shown out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_env.errors import InputError
from remote_env.replay.playback import FASTEST, HELP, SLOWEST, Key, Playback

TIMES_S = 10.0 + 0.02 * np.arange(101)  # 2 s at 50 Hz, of an origin of its own


def begun(**how) -> Playback:
    playback = Playback(3, **how)
    playback.begin(TIMES_S)
    playback.advance(100.0)
    return playback


def press(playback: Playback, *keys: Key) -> Playback:
    for key in keys:
        assert playback.press(key)
    return playback


def test_it_follows_the_clock():
    playback = begun()
    assert (playback.index, playback.states, playback.length_s) == (0, 101, pytest.approx(2.0))
    playback.advance(100.5)
    assert (playback.index, playback.at_s) == (25, pytest.approx(0.5))
    playback.advance(100.519)
    assert playback.index == 25  # the next one's time has not come
    playback.advance(100.52)
    assert playback.index == 26


def test_it_pauses_at_the_end_and_space_begins_again():
    playback = begun()
    playback.advance(200.0)
    assert (playback.index, playback.paused) == (100, True)
    press(playback, Key.SPACE).advance(200.1)
    assert (playback.index, playback.paused) == (5, False)


def test_time_that_passed_while_paused_is_not_caught_up():
    playback = begun(paused=True)
    playback.advance(150.0)
    assert playback.index == 0
    press(playback, Key.SPACE).advance(150.1)
    assert playback.index == 5


def test_a_clock_that_goes_back_changes_nothing():
    playback = begun()
    playback.advance(101.0)
    playback.advance(99.0)
    assert playback.index == 50


def test_single_steps_pause_and_stay_within():
    playback = press(begun(), Key.LEFT)
    assert (playback.index, playback.paused) == (0, True)
    assert press(playback, Key.RIGHT, Key.RIGHT, Key.RIGHT, Key.LEFT).index == 2
    assert press(playback, Key.END, Key.RIGHT).index == 100


def test_jumps_keep_playing_or_pausing():
    playback = press(begun(), Key.UP)
    assert (playback.index, playback.paused) == (50, False)
    assert press(playback, Key.DOWN).index == 0
    assert press(playback, Key.UP, Key.UP, Key.UP).index == 100
    assert press(playback, Key.HOME).index == 0


def test_speed_doubles_and_halves_within_bounds():
    playback = press(begun(), Key.PERIOD)
    playback.advance(100.5)
    assert (playback.speed, playback.index) == (2.0, 50)
    assert press(playback, Key.COMMA, Key.COMMA).speed == 0.5
    assert press(playback, *[Key.PERIOD] * 20).speed == FASTEST
    assert press(playback, *[Key.COMMA] * 20).speed == SLOWEST


def test_episodes_go_round_and_begin_at_their_first_state():
    playback = press(begun(), Key.UP, Key.PAGE_UP)
    assert playback.episode == 2
    playback.begin(np.array([0.0, 0.1]))
    assert (playback.index, playback.states) == (0, 2)
    assert press(playback, Key.PAGE_DOWN).episode == 0


def test_its_status_is_in_words():
    playback = press(begun(speed=0.25, paused=True), Key.RIGHT)
    assert playback.status == (
        ("episode", "1 / 3"),
        ("state", "1 / 100"),
        ("time", "0.02 / 2.00 s"),
        ("speed", "1/4 x, paused"),
    )


def test_help_can_be_hidden_and_other_keys_mean_nothing():
    playback = press(begun(), Key.SLASH)
    assert not playback.shows_help
    assert not playback.press(ord("A"))
    assert len(HELP) == 8


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"episode": 3}, "no episode 3; there are 3"),
        ({"episode": -1}, "no episode -1"),
        ({"speed": 0.0}, "speed=0.0"),
        ({"speed": float("nan")}, "speed=nan"),
    ],
)
def test_what_cannot_be_played_is_refused(how, message):
    with pytest.raises(InputError, match=message):
        Playback(3, **how)


@pytest.mark.parametrize("times_s", [[], [0.0, 0.0], [1.0, 0.5]])
def test_times_must_ascend(times_s):
    with pytest.raises(InputError, match="do not ascend"):
        begun().begin(np.array(times_s))


@given(
    times_s=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=30).map(np.cumsum),
    acts=st.lists(st.one_of(st.sampled_from(Key), st.floats(0.0, 3.0)), max_size=60),
)
def test_whatever_is_pressed_a_state_of_the_episode_is_shown(times_s, acts):
    playback, clock_s = Playback(4), 0.0
    playback.begin(times_s)
    for act in acts:
        if isinstance(act, Key):
            playback.press(act)
        else:
            clock_s += act
            playback.advance(clock_s)
        assert 0 <= playback.index < playback.states
        assert 0.0 <= playback.at_s <= playback.length_s
        assert 0 <= playback.episode < 4
