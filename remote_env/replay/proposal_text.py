"""A proposal as a mapping.yaml to edit: certain matches as they are, guesses behind a `#`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from remote_env.replay.alike import MINIMUM
from remote_env.replay.propose import EntityProposal, Match, Proposal

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./ -]*[A-Za-z0-9_]|[A-Za-z_]")
_WORDS = {"null", "true", "false", "yes", "no", "on", "off"}  # which YAML takes for something else


def proposal_yaml(proposal: Proposal, *, title: str = "") -> str:
    """The text of a mapping.yaml; `Mapping.load` takes it; a replay refuses it until what is missing is there."""
    return "\n".join(_lines(proposal, title)) + "\n"


def _lines(proposal: Proposal, title: str) -> Iterator[str]:
    if title:
        yield f"# {_on_one_line([title])}"
    if proposal.guesses:
        yield "# Lines with a score are guesses: take the # away from those that are right, and correct the others."
    yield "version: 1"
    yield "entities:"
    for entity in proposal.entities:
        yield from _entity_lines(entity)
    yield from _ignored_lines(proposal)
    for where, names in (("capture", proposal.only_captured), ("model", proposal.only_local)):
        if names:
            yield f"# Not settled yet, in the {where}: {_on_one_line(names)}"


def _entity_lines(entity: EntityProposal) -> Iterator[str]:
    match = entity.entity
    if match is None:
        yield f"  # {_quoted(entity.name)}: nothing is like it: name its root body in the model, or ignore it"
        return
    mark = "" if match.is_certain else "# "
    yield f"  {mark}{_quoted(entity.name)}:" + ("" if match.is_certain else _score(match))
    yield f"  {mark}  model: {_quoted(match.local)}"
    yield from _table(mark, "joints", entity.joints)
    if entity.unlike_joints:
        free = f"; free in the model: {_on_one_line(entity.free_joints)}" if entity.free_joints else ""
        yield f"  {mark}    # joints that nothing is like: {_on_one_line(entity.unlike_joints)}{free}"
    yield from _table(mark, "links", entity.links)


def _on_one_line(names: Iterable[str]) -> str:
    """For a comment, which ends with its line: what stands behind a line break in a name would be YAML."""
    return "".join(letter if letter.isprintable() else " " for letter in ", ".join(names))


def _table(mark: str, key: str, matches: Iterable[Match]) -> Iterator[str]:
    matches = list(matches)
    if not matches:
        return
    is_guess = not any(match.is_certain for match in matches)
    yield f"  {mark or ('# ' if is_guess else '')}  {key}:"
    for match in matches:
        entry = f"    {_quoted(match.captured)}: {_quoted(match.local)}"
        if match.is_certain:
            yield f"  {mark}{entry}"
        else:
            yield f"  # {entry}{_score(match)}"


def _score(match: Match) -> str:
    return f"   # {match.score:.2f} alike" if match.score >= MINIMUM else "   # the only one left"


def _ignored_lines(proposal: Proposal) -> Iterator[str]:
    tables = {
        "entities": proposal.mapping.ignore_entities,
        "model_entities": proposal.mapping.ignore_model_entities,
        "model_joints": proposal.mapping.ignore_model_joints,
    }
    if not any(tables.values()):
        return
    yield "ignore:"
    for key, reasons in tables.items():
        if reasons:
            yield f"  {key}:"
            yield from (f"    {_quoted(name)}: {json.dumps(reason)}" for name, reason in reasons.items())


def _quoted(name: str) -> str:
    return name if _PLAIN.fullmatch(name) and name.lower() not in _WORDS else json.dumps(name)
