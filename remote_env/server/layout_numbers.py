"""Numbers of scene layouts on one connection (docs/protocol.md, "Fixed layouts")."""

from __future__ import annotations

from remote_env.state import SceneLayout


class LayoutNumbers:
    """Under which number each scene layout goes, and which the client is known to have.

    Attributes:
        carriers: replies that announced a layout which the client is not known to have, and its number.
    """

    def __init__(self) -> None:
        self._layouts: list[SceneLayout] = []
        self._known: set[int] = set()
        self.carriers: dict[int, int] = {}

    def number(self, scene: SceneLayout) -> int:
        """The layout's number; a new one gets the next."""
        for number, known in enumerate(self._layouts):
            if known is scene or known == scene:
                return number
        self._layouts.append(scene)
        return len(self._layouts) - 1

    def must_announce(self, number: int, sequence: int) -> bool:
        """Whether the reply `sequence` is to carry the layout: the replies so far may never have been read."""
        if number in self._known:
            return False
        self.carriers[sequence] = number
        return True

    def withdraw(self, sequence: int) -> None:
        """Note that another reply went out under that number."""
        self.carriers.pop(sequence, None)

    def withdraw_after(self, sequence: int) -> None:
        """Note that the client will not read the replies behind that one, though it may acknowledge them."""
        self.carriers = {carrier: number for carrier, number in self.carriers.items() if carrier <= sequence}

    def acknowledge(self, sequence: int) -> None:
        """Note that the client has read that reply."""
        if sequence in self.carriers:
            self._known.add(self.carriers[sequence])
            self.carriers = {carrier: other for carrier, other in self.carriers.items() if other not in self._known}
