"""What would make a step shorter, from what was measured of it: a model of few terms, and its words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

PARTS = ("encode", "network", "queue", "simulate", "render", "decode")
WORTH = 0.05  # of a step; what saves less is not said
LARGE = 0.5  # of a step
NEAR_S = 0.002  # a round trip in which a tunnel's own work counts
CHUNK = 16  # where none was run
MANY_IMAGES = 4  # the n of image_every=n that is reckoned with


@dataclass(frozen=True)
class CoderCost:
    """One way to code the images of one key.

    Attributes:
        key: of the observation.
        codec: its name.
        size_bytes: of a coded image.
        encode_s: for one, on this machine [s].
        decode_s: likewise.
    """

    key: str
    codec: str
    size_bytes: float
    encode_s: float
    decode_s: float

    def frame_s(self, bytes_per_s: float) -> float:
        """From the array there to the array here, over such a link [s]."""
        return self.encode_s + self.size_bytes / bytes_per_s + self.decode_s


@dataclass(frozen=True)
class Measured:
    """What a benchmark of one task at one host gave.

    Attributes:
        way: what carries the bytes, as `transport_info()["way"]`.
        round_trip_s: of the link alone [s].
        bytes_per_s: of large replies; None where there were none.
        step_s: a whole step, median [s].
        parts_s: where it goes, by the names of `PARTS` [s].
        others_s: a step's share in other ways of stepping, by their name [s].
        image_bytes: of one observation's images, raw, by key.
        coders: what coding those costs.
        draw_s: what drawing the images of an observation takes on this machine [s]; None where it cannot.
    """

    way: str
    round_trip_s: float
    bytes_per_s: float | None
    step_s: float
    parts_s: Mapping[str, float]
    others_s: Mapping[str, float] = field(default_factory=dict)
    image_bytes: Mapping[str, int] = field(default_factory=dict)
    coders: Sequence[CoderCost] = ()
    draw_s: float | None = None


@dataclass(frozen=True)
class Advice:
    """One thing to do.

    Attributes:
        what: to write.
        why: in words.
        step_s: a step's time then [s].
        is_measured: whether that was run, or is reckoned.
    """

    what: str
    why: str
    step_s: float
    is_measured: bool = False


def advise(measured: Measured) -> list[Advice]:
    """What would shorten a step by at least `WORTH` of it, best first."""
    found = [*_fewer_round_trips(measured), *_fewer_bytes(measured), *_another_tunnel(measured)]
    worth = [each for each in found if each.step_s <= (1 - WORTH) * measured.step_s]
    return sorted(worth, key=lambda each: each.step_s)


def explain_rest(measured: Measured) -> str:
    """What no advice about the wire can change, "" where that is little."""
    simulate, render = (measured.parts_s.get(name, 0.0) / measured.step_s for name in ("simulate", "render"))
    if render > simulate and render >= LARGE:
        return (
            f"{render:.0%} of a step is the drawing of images there: smaller ones, fewer cameras, or a graphics card "
            "(MUJOCO_GL=egl)"
        )
    if simulate >= LARGE:
        return (
            f"{simulate:.0%} of a step is the simulator itself: several environments at once, RemoteVectorEnv(…, "
            "num_envs=N), share a round trip and the host's cores"
        )
    return ""


def _fewer_round_trips(measured: Measured) -> Iterator[Advice]:
    chunks = {name: step_s for name, step_s in measured.others_s.items() if name.startswith("step_many")}
    why = "many actions in one round trip, where several are known ahead (a chunk of a policy, a plan)"
    if not chunks:
        saved_s = measured.round_trip_s * (CHUNK - 1) / CHUNK
        yield Advice(f"env.step_many, {CHUNK} at once", why, measured.step_s - saved_s)
    else:
        best = min(chunks, key=lambda name: chunks[name])
        yield Advice(f"env.{best}", why, chunks[best], is_measured=True)
    for name, step_s in measured.others_s.items():
        if name.startswith("step_async"):
            why = "the next actions are sent before the last results are here, where they do not depend on them"
            yield Advice(f"env.{name}", why, step_s, is_measured=True)


def _fewer_bytes(measured: Measured) -> Iterator[Advice]:
    rate = measured.bytes_per_s
    if rate is None or not measured.image_bytes:
        return
    size = sum(measured.image_bytes.values())
    sent_s = size / rate
    least_s = measured.step_s - sent_s
    yield from _codecs(measured, rate)
    keys = ", ".join(repr(key) for key in measured.image_bytes)
    what = f"{size / 1e3:.0f} kB of images ({keys}) take {sent_s * 1e3:.1f} ms of each step"
    unseen_s = least_s - measured.parts_s.get("render", 0.0)  # what nobody gets, a task need not draw
    if measured.draw_s is not None:
        why = f"{what}; this machine draws them from the scene in {measured.draw_s * 1e3:.1f} ms"
        yield Advice("RemoteEnv(…, local_pixels=True)", why, unseen_s + measured.draw_s)
    yield Advice("RemoteEnv(…, observation_keys=[…])", f"{what}; leave out what nobody looks at", unseen_s)
    seldom_s = least_s + sent_s / MANY_IMAGES
    yield Advice(
        f"RemoteEnv(…, image_every={MANY_IMAGES})", f"{what}; with every {MANY_IMAGES}th step they may do", seldom_s
    )


def _codecs(measured: Measured, rate: float) -> Iterator[Advice]:
    saved_s, chosen = 0.0, {}
    for key in measured.image_bytes:
        costs = [cost for cost in measured.coders if cost.key == key]
        raw = next((cost for cost in costs if cost.codec == "raw"), None)
        if raw is None:
            continue
        best = min(costs, key=lambda cost: cost.frame_s(rate))
        if best.codec != "raw":
            chosen[key] = best.codec
            saved_s += raw.frame_s(rate) - best.frame_s(rate)
    if chosen:
        why = f"lossless; {', '.join(f'{codec} for {key!r}' for key, codec in chosen.items())} fits this link"
        yield Advice('RemoteEnv(…, codecs="auto")', why, measured.step_s - saved_s)


def _another_tunnel(measured: Measured) -> Iterator[Advice]:
    """Reckoned with what docs/ssh.md says: the system's ssh needs about half of a channel's time."""
    if measured.way not in ("channel", "sshtunnel") or measured.round_trip_s > NEAR_S:
        return
    why = "on a near host the tunnel's own work counts, and the system's ssh does it in about half the time"
    saved_s = measured.parts_s.get("network", 0.0) / 2
    yield Advice('RemoteEnv(…, tunnel="openssh")', why, measured.step_s - saved_s)
