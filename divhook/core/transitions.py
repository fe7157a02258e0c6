"""State machines as data: one table per machine; its drawings in the docs are made from the same table."""

from collections.abc import Mapping
from enum import Enum
from typing import Generic, TypeVar

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


class TransitionError(RuntimeError):
    """An event that the table does not know in this state: our own bug, never a peer's. The state stays as it was."""


class TransitionTable(Generic[S, E]):
    """{state: {event: next state}}; anything that is not in it is a bug."""

    def __init__(self, rows: Mapping[S, Mapping[E, S]]) -> None:
        self._rows = rows

    def next(self, state: S, event: E) -> S:
        """The state after an event. Raises TransitionError."""
        try:
            return self._rows[state][event]
        except KeyError:
            raise TransitionError(f"{event.name} in state {state.name}: no such transition") from None

    def markdown(self) -> str:
        """A Markdown table: one row per state and event."""
        lines = ["| state | event | next state |", "| --- | --- | --- |"]
        lines += [f"| {s.name} | {e.name} | {n.name} |" for s, row in self._rows.items() for e, n in row.items()]
        return "\n".join(lines) + "\n"

    def mermaid(self) -> str:
        """A Mermaid state diagram."""
        lines = ["stateDiagram-v2"]
        lines += [f"    {s.name} --> {n.name}: {e.name}" for s, row in self._rows.items() for e, n in row.items()]
        return "\n".join(lines) + "\n"
