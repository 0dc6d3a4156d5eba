"""A session as a finite model: the real ledgers and the real tables, joined by connections that may be cut anywhere.

Time, bytes and processes are left out; what is kept is every order in which things may happen. A state is a tuple of
values, so that it can be remembered; each event makes the ledgers from it and puts what they hold then into the next.

What the network may do: cut any connection at any moment, where a suffix of what is under way in each direction is lost
and half a frame may arrive; cut the control connection alone; deliver the opening of a connection that its client gave
up long ago, after a younger one's; keep a dead connection's requests and deliver them late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from remote_env.errors import ProtocolError
from remote_env.protocol import machine
from remote_env.protocol.ledger import Message, ReplyLedger, RequestLedger

STEP, RESET, RESULT = 34, 33, 64
READY, RESUMED, HALF, FAREWELL = "ready", "resumed", "half", "farewell"
Wire = tuple[object, ...]


class Scope(NamedTuple):
    """How much may happen.

    Attributes:
        requests: how many the client makes, its reset included.
        window: how many of them may be under way at once.
        cuts: of data connections, by whomever.
        halves: a cut may leave half a frame.
        resets: times that the client abandons what is under way.
        ends: the request that ends the episode; 0: none.
        control_cuts: of control connections, be it by the network or by a lease that runs out.
        keeps: the session is to outlive its control connection.
        expires: the supervisor may give a session up that is cut off.
        dies: the simulator may end at any moment.
        closes: the client may close at any moment, even while another thread waits, and again.
        breaks: the simulator may break the protocol at any moment.
        evicts: another client may give the session up (LEAVE names it).
        late: openings of connections may overtake each other.
        limit: of replies without acknowledgement, beyond which the simulator takes no request.
    """

    requests: int
    window: int
    cuts: int
    halves: bool = False
    resets: int = 0
    ends: int = 0
    control_cuts: int = 0
    keeps: bool = True
    expires: bool = False
    dies: bool = False
    closes: bool = False
    breaks: bool = False
    evicts: bool = False
    late: bool = False
    limit: int = 1 << 20


class Connection(NamedTuple):
    """A data connection, as long as either end has something to read on it.

    Attributes:
        resume: what its HELLO said.
        at: "way" (the supervisor has yet to hand it over), "queue", "served", or "done" with at the simulator.
        up: what the simulator has yet to read.
        down: what the client has yet to read.
        mine: the client still reads it.
        whole: it still carries what is sent; else its end comes behind what is under way.
    """

    resume: int | None
    at: str
    up: Wire
    down: Wire
    mine: bool
    whole: bool


class World(NamedTuple):
    """One state of everything."""

    # the client
    link: str = machine.APART
    opened: bool = False
    received: int = 0
    pending: Wire = ()
    abandoned: int = 0  # results up to this one are nobody's
    results: tuple[int, ...] = ()
    # between
    connections: tuple[Connection, ...] = ()
    control: bool = True  # as the client sees it
    # the supervisor
    session: str = machine.HELD
    is_told: bool = True  # it has noticed the end of the last control connection
    # the simulator
    state: str = machine.IDLE
    alive: bool = True
    taken: int = 0
    acknowledged: int = 0
    stated: int = 0
    replies: Wire = ()
    ran: tuple[bytes, ...] = ()
    # what may still happen
    cuts: int = 0
    control_cuts: int = 0
    resets: int = 0


def request_body(sequence: int, acknowledged: int, kind: int) -> bytes:
    """A request's bytes; what is sent again must be the same ones."""
    return b"%d:%d:%d" % (sequence, acknowledged, kind)


def reply_body(request: bytes, *, is_run: bool) -> bytes:
    """The bytes of the reply to that request."""
    return (b"result of " if is_run else b"not run: ") + request


def is_to_run(request: bytes, ends: int) -> bool:
    """Whether its sender could know what there was to know: nothing runs that was sent ahead of the episode's end."""
    sequence, acknowledged, kind = map(int, request.split(b":"))
    return kind != STEP or sequence <= ends or acknowledged >= ends


class Model:
    """All that can follow from a state; `events` of the tables that were met are in `met`."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.met: set[tuple[str, str, str]] = set()

    def start(self) -> World:
        """The state in which a session begins."""
        scope = self.scope
        return World(cuts=scope.cuts, control_cuts=scope.control_cuts, resets=scope.resets)

    def following(self, world: World) -> Iterator[tuple[str, World]]:
        """Each event that may come now, and what it leads to."""
        yield from self._client(world)
        yield from self._network(world)
        yield from self._supervisor(world)
        if world.alive:
            yield from self._simulator(world)

    # The tables

    def _link(self, world: World, event: str) -> str:
        after = machine.advance(machine.CLIENT, world.link, event)
        self.met.add(("CLIENT", world.link, event))
        return after

    def _session(self, world: World, event: str) -> str:
        after = machine.advance(machine.SESSION, world.session, event)
        self.met.add(("SESSION", world.session, event))
        return after

    def _state(self, world: World, event: str) -> str:
        after = machine.advance(machine.SIMULATOR, world.state, event)
        self.met.add(("SIMULATOR", world.state, event))
        return after

    # The client

    def _client(self, world: World) -> Iterator[tuple[str, World]]:
        mine = _find(world, mine=True)
        if world.link in (machine.APART, machine.JOINED):
            yield from self._make_requests(world, mine)
            if mine is not None:
                yield from self._read(world, mine)
            elif world.link == machine.APART:
                yield self._dial(world)
        if self.scope.breaks and world.link == machine.JOINED and mine is not None:
            ended = world.connections[mine]._replace(down=(), mine=False, whole=False)
            yield (
                "the simulator breaks the protocol",
                _put(world._replace(link=self._link(world, "ended")), mine, ended),
            )
        if self.scope.closes:
            yield from self._close(world, mine)
            if world.link in (machine.LOST, machine.CLOSED):
                # Ctrl-C falls between two lines; or a call that waited when another thread closed sees the end.
                yield "a call ends", world._replace(link=self._link(world, "cut"))

    def _make_requests(self, world: World, mine: int | None) -> Iterator[tuple[str, World]]:
        ledger = _requests(world)
        if not world.opened or ledger.last >= self.scope.requests:
            return
        if len(world.pending) < self.scope.window:
            yield "step", self._ask(world, mine, STEP)
        if world.pending and world.resets:
            abandoning = world._replace(resets=world.resets - 1, abandoned=ledger.last)
            yield "reset", self._ask(abandoning, mine, RESET)

    def _ask(self, world: World, mine: int | None, kind: int) -> World:
        ledger = _requests(world)
        body = request_body(ledger.last + 1, ledger.received, kind)
        ledger.keep(kind, (body,))
        world = _with_requests(world, ledger)
        if world.link == machine.JOINED:
            assert mine is not None
            world = _send_up(world._replace(link=self._link(world, "request")), mine, body)
        return world

    def _read(self, world: World, mine: int) -> Iterator[tuple[str, World]]:
        connection = world.connections[mine]
        if connection.down:
            got, *rest = connection.down
            popped = _put(world, mine, connection._replace(down=tuple(rest)))
            yield f"the client reads {got}", self._read_one(popped, mine, got)
        elif not connection.whole:
            yield from self._leave(world, mine, "the client sees the end")
        if world.cuts:
            yield from self._leave(world._replace(cuts=world.cuts - 1), mine, "the client gives the connection up")

    def _read_one(self, world: World, mine: int, got: object) -> World:
        if got == HALF:
            return next(after for _, after in self._leave(world, mine, ""))
        if got == READY:
            return world._replace(link=self._link(world, "welcomed"), opened=True)
        ledger = _requests(world)
        if isinstance(got, tuple):
            for message in ledger.missed(got[1]):
                world = _send_up(world, mine, *message.buffers)
            return world._replace(link=self._link(world, "welcomed"))
        assert isinstance(got, bytes)
        assert ledger.pending, f"{got!r} answers nothing"
        first = ledger.pending[0]
        assert first.sequence == ledger.received + 1
        body = bytes(first.buffers[0])
        assert got == reply_body(body, is_run=is_to_run(body, self.scope.ends)), f"{got!r} for {first}"
        ledger.settle(first.sequence)
        results = world.results if first.sequence <= world.abandoned else (*world.results, first.sequence)
        return _with_requests(world._replace(link=self._link(world, "reply"), results=results), ledger)

    def _leave(self, world: World, mine: int, why: str) -> Iterator[tuple[str, World]]:
        """The client closes its end; what it had sent may still arrive, or some of it."""
        link, connection = self._link(world, "cut"), world.connections[mine]
        for up in self._losses(connection.up):
            left = connection._replace(up=up, down=(), mine=False, whole=False)
            yield why, _put(world._replace(link=link), mine, left)

    def _dial(self, world: World) -> tuple[str, World]:
        """First a control connection, if need be, then a data connection."""
        if not world.control:
            if world.session == machine.ENDED:
                return "the session is no more", world._replace(link=self._link(world, "ended"))
            session = self._session(world, "taken back")
            world = world._replace(session=session, control=True, is_told=True)
        if world.session == machine.ENDED or not world.alive:
            return "the simulator is no more", world._replace(link=self._link(world, "ended"))
        resume = world.received if world.opened else None
        made = Connection(resume, "way", (), (), mine=True, whole=True)
        return "the client dials", world._replace(connections=(*world.connections, made))

    def _close(self, world: World, mine: int | None) -> Iterator[tuple[str, World]]:
        farewell = world.link == machine.JOINED and not world.pending
        closed = world._replace(link=self._link(world, "closed"))
        if mine is not None and farewell:
            closed = _send_up(closed, mine, FAREWELL)
        if mine is not None:
            connection = closed.connections[mine]
            closed = _put(closed, mine, connection._replace(down=(), mine=False, whole=False))
        if world.control and world.session != machine.ENDED:
            closed = self._end_session(closed, "left")
        yield "the client closes", closed._replace(control=False, is_told=True)

    # The network

    def _losses(self, under_way: Wire) -> Iterator[Wire]:
        """What may be left of it by a cut: every prefix, and half of the frame behind it."""
        for kept in range(len(under_way) + 1):
            yield under_way[:kept]
            if self.scope.halves and kept < len(under_way) and under_way[kept] != HALF:
                yield (*under_way[:kept], HALF)

    def _network(self, world: World) -> Iterator[tuple[str, World]]:
        if world.control and world.control_cuts:
            cut = world._replace(control=False, is_told=False, control_cuts=world.control_cuts - 1)
            yield "the control connection is cut", cut
        if not world.cuts:
            return
        fewer = world._replace(cuts=world.cuts - 1)
        for index, connection in enumerate(world.connections):
            if connection.whole:
                for up in self._losses(connection.up):
                    for down in self._losses(connection.down):
                        cut = connection._replace(up=up, down=down, whole=False)
                        yield f"cut: {len(up)} frames arrive up, {len(down)} down", _put(fewer, index, cut)

    # The supervisor

    def _supervisor(self, world: World) -> Iterator[tuple[str, World]]:
        if not world.control and not world.is_told and world.session != machine.ENDED:
            told = world._replace(is_told=True)
            if self.scope.keeps:
                yield "the supervisor notices", told._replace(session=self._session(world, "cut"))
            else:
                yield "the supervisor notices", self._end_session(told, "left")
        if world.session == machine.HELD and world.control_cuts:
            yield "the lease runs out", self._end_lease(world._replace(control_cuts=world.control_cuts - 1))
        if self.scope.evicts and world.session != machine.ENDED:
            yield "the session is given up", self._end_session(world, "left")
        if self.scope.expires and world.session == machine.CUT_OFF:
            yield "the session expires", self._end_session(world, "expired")
        for index, connection in enumerate(world.connections):
            if connection.at == "way":
                yield "handed over", self._hand_over(world, index)
                if not self.scope.late:
                    break

    def _end_session(self, world: World, event: str) -> World:
        return _hang_up(world._replace(session=self._session(world, event)))

    def _end_lease(self, world: World) -> World:
        ended = world._replace(control=False, is_told=True)
        if not self.scope.keeps:
            return self._end_session(ended, "left")
        return _hang_up(ended._replace(session=self._session(world, "cut")))

    def _hand_over(self, world: World, index: int) -> World:
        connection = world.connections[index]
        if world.session == machine.ENDED or not world.alive:
            return _put(world, index, connection._replace(at="done", whole=False))
        world = _hang_up(_put(world, index, connection._replace(at="held")))
        # Those that wait are served in the order in which they were handed over.
        index = next(place for place, each in enumerate(world.connections) if each.at == "held")
        others = (*world.connections[:index], *world.connections[index + 1 :])
        return world._replace(connections=(*others, connection._replace(at="queue")))

    # The simulator

    def _simulator(self, world: World) -> Iterator[tuple[str, World]]:
        if self.scope.dies:
            yield "the simulator dies", _hang_up(world._replace(alive=False), everything=True)
        served = _find(world, at="served")
        if served is None:
            waiting = _find(world, at="queue")
            if waiting is not None:
                yield "joined", self._join(world, waiting)
            return
        connection = world.connections[served]
        if connection.up:
            got, *rest = connection.up
            popped = _put(world, served, connection._replace(up=tuple(rest)))
            yield f"the simulator reads {got}", self._take(popped, served, got)
        elif not connection.whole:
            yield "the simulator sees the end", self._sever(world, served, "cut")

    def _join(self, world: World, index: int) -> World:
        connection, ledger = world.connections[index], _replies(world, self.scope.limit)
        world = _put(world, index, connection._replace(at="served"))
        if connection.resume is None:
            if ledger.taken:
                assert not connection.mine, "the session's client is refused"
                return self._sever(world, index, "cut")
            return _send_down(world._replace(state=self._state(world, "begun")), index, READY)
        try:
            missed = ledger.resume(connection.resume)
            state = self._state(world, "resumed")
        except ProtocolError:  # an old connection, overtaken by one that knew more, or by the session's end
            assert not connection.mine, "the session's client is refused"
            return self._sever(world, index, "cut")
        world = _with_replies(world._replace(state=state), ledger)
        assert [message.sequence for message in missed] == [*range(connection.resume + 1, ledger.taken + 1)]
        answers = [message.buffers[0] for message in missed]
        return _send_down(world, index, (RESUMED, ledger.taken), *answers)

    def _take(self, world: World, index: int, got: object) -> World:
        if got == HALF:
            return self._sever(world, index, "cut")
        if got == FAREWELL:
            return self._sever(world, index, "left")
        assert isinstance(got, bytes)
        sequence, acknowledged, kind = map(int, got.split(b":"))
        ledger = _replies(world, self.scope.limit)
        try:
            ledger.take(sequence, acknowledged)
        except ProtocolError as error:
            if "wait for being acknowledged" not in str(error):
                raise
            return self._sever(_with_replies(world, ledger), index, "cut")
        world = world._replace(state=self._state(world, "request"), ran=(*world.ran, got))
        is_run = kind != STEP or sequence <= self.scope.ends or ledger.stated >= self.scope.ends
        reply = reply_body(got, is_run=is_run)
        ledger.keep(RESULT, (reply,))
        return _send_down(_with_replies(world, ledger), index, reply)

    def _sever(self, world: World, index: int, event: str) -> World:
        """The simulator is done with this connection; what it has sent on it may still arrive."""
        connection = world.connections[index]
        done = connection._replace(at="done", up=(), whole=False)
        return _put(world._replace(state=self._state(world, event)), index, done)


def _find(world: World, **wanted: object) -> int | None:
    for index, connection in enumerate(world.connections):
        if all(getattr(connection, name) == value for name, value in wanted.items()):
            return index
    return None


def _put(world: World, index: int, connection: Connection) -> World:
    """With this connection changed, and without it when nobody reads it any more."""
    is_over = connection.at == "done" and not connection.mine
    kept = () if is_over else (connection,)
    return world._replace(connections=(*world.connections[:index], *kept, *world.connections[index + 1 :]))


def _hang_up(world: World, *, everything: bool = False) -> World:
    """What the supervisor has handed over is shut down; what is under way on it still arrives."""
    ended = [
        connection._replace(
            whole=False, at="done" if everything else connection.at, up=() if everything else connection.up
        )
        if everything or connection.at in ("queue", "served")
        else connection
        for connection in world.connections
    ]
    return world._replace(
        connections=tuple(connection for connection in ended if connection.at != "done" or connection.mine)
    )


def _send_up(world: World, index: int, *frames: object) -> World:
    connection = world.connections[index]
    if not connection.whole:
        return world
    return _put(world, index, connection._replace(up=(*connection.up, *frames)))


def _send_down(world: World, index: int, *frames: object) -> World:
    connection = world.connections[index]
    if not (connection.whole and connection.mine):
        return world
    return _put(world, index, connection._replace(down=(*connection.down, *frames)))


def _requests(world: World) -> RequestLedger:
    ledger = RequestLedger()
    ledger.received, ledger.queue = world.received, deque(world.pending)  # type: ignore[arg-type]
    return ledger


def _with_requests(world: World, ledger: RequestLedger) -> World:
    return world._replace(received=ledger.received, pending=_frozen(ledger.pending))


def _replies(world: World, limit: int) -> ReplyLedger:
    ledger = ReplyLedger(limit)
    ledger.taken, ledger.acknowledged, ledger.stated = world.taken, world.acknowledged, world.stated
    ledger.queue = deque(world.replies)  # type: ignore[arg-type]
    return ledger


def _with_replies(world: World, ledger: ReplyLedger) -> World:
    assert [message.sequence for message in ledger.replies] == [*range(ledger.acknowledged + 1, ledger.taken + 1)]
    return world._replace(
        taken=ledger.taken,
        acknowledged=ledger.acknowledged,
        stated=ledger.stated,
        replies=_frozen(ledger.replies),
    )


def _frozen(messages: deque[Message]) -> tuple[Message, ...]:
    return tuple(message._replace(buffers=tuple(message.buffers)) for message in messages)
