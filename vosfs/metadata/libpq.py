"""One PostgreSQL connection in the event loop, at the level of libpq: batches of prepared statements.

``psycopg.pq`` wraps libpq call by call: a statement costs a third of what it does through a cursor, which adapts any
type to any other.  Parameters are int, str, bytes or None; rows are made by psycopg's own loaders.  A batch goes out in
one piece (libpq's pipeline mode), and its answers come back together.
"""

import itertools
import re
import select
from collections.abc import Sequence
from typing import Any

import psycopg
import trio
from psycopg import errors, pq
from psycopg.adapt import Transformer

STATEMENTS_MAX = 200
"""Prepared statements that a connection keeps."""
_TYPES = {int: 20, str: 25, bytes: 17}
"""OIDs of int8, text and bytea."""
_OK = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
_PARAMETER = re.compile(r"\?(\d*)")

Command = tuple[str, tuple[Any, ...]]
"""A statement with ``?``, or ``?1`` and so on, and its parameters."""


class Connection:
    """A connection of one task at a time.  Raises psycopg's errors, by SQLSTATE."""

    def __init__(self, owner: "psycopg.Connection[Any]") -> None:
        # Dependencies
        self._owner = owner
        """Made by psycopg, so that its passfile, service and multi-host handling is all there."""
        self._link = owner.pgconn
        self._loaders = Transformer(owner)
        self._heard = select.poll()
        self._heard.register(owner.fileno(), select.POLLIN)
        # Mutable state
        self._names: dict[str, bytes] = {}
        """Of the statements that the server knows, oldest first."""
        self._serial = 0
        self._outstanding = False
        """Whether answers are still to come."""
        self.refused = 0
        """Which command of the last batch the server refused, if it did."""
        self._link.nonblocking = 1
        self._link.enter_pipeline_mode()

    @property
    def idle(self) -> bool:
        """Whether it can be used, and no transaction is open."""
        return self._usable and self._link.transaction_status == pq.TransactionStatus.IDLE

    @property
    def open(self) -> bool:
        """Whether it can be used, and a transaction is open."""
        return self._usable and self._link.transaction_status != pq.TransactionStatus.IDLE

    @property
    def _usable(self) -> bool:
        return not self._outstanding and self._link.status == pq.ConnStatus.OK

    def lost(self) -> bool:
        """Whether the server said anything since the last batch: to an idle connection it only says goodbye."""
        return bool(self._heard.poll(0))

    def close(self) -> None:
        """Close; an open transaction is rolled back by the server."""
        self._owner.close()

    async def run(self, batch: Sequence[Command]) -> list[tuple[Any, ...]]:
        """Run commands in one round trip; the rows of the last.

        Once one is refused the server skips the rest: its error is raised, and ``refused`` says which it was.  Whoever
        is cancelled here must close the connection.  A batch must be short: the server is not heard before all of it
        is sent.
        """
        self._outstanding = True
        sent: list[tuple[int, str | None]] = []
        for at, (statement, parameters) in enumerate(batch):
            if statement not in self._names:
                self._prepare(statement, parameters, at, sent)
            self._link.send_query_prepared(self._names[statement], *_encoded(parameters), 1)
            sent.append((at, None))
        self._link.pipeline_sync()
        while self._link.flush():
            await trio.lowlevel.wait_writable(self._link.socket)
        return await self._answers(sent)

    def _prepare(
        self, statement: str, parameters: tuple[Any, ...], at: int, sent: list[tuple[int, str | None]]
    ) -> None:
        self._serial += 1
        name = self._names[statement] = b"s%d" % self._serial
        self._link.send_prepare(
            name, numbered_parameters(statement).encode(), [_TYPES.get(type(value), 0) for value in parameters]
        )
        sent.append((at, statement))
        if len(self._names) > STATEMENTS_MAX:
            old = self._names.pop(next(iter(self._names)))
            self._link.send_query_params(b"DEALLOCATE " + old, None)
            sent.append((at, None))

    async def _answers(self, sent: list[tuple[int, str | None]]) -> list[tuple[Any, ...]]:
        """The answers to what was sent: for which command of the batch, and which statement it was to make known."""
        link = self._link
        answered = 0
        last = error = None
        while True:
            while link.is_busy():
                await trio.lowlevel.wait_readable(link.socket)
                link.consume_input()
            result = link.get_result()
            if result is None:
                answered += 1
                if answered > len(sent):
                    raise psycopg.OperationalError("the connection was lost")
            elif result.status == pq.ExecStatus.PIPELINE_SYNC:
                break
            elif result.status in _OK:
                last = result
            else:
                at, statement = sent[answered]
                if statement is not None:
                    del self._names[statement]
                if error is None:
                    self.refused, error = at, self._error(result)
        self._outstanding = False
        if error is not None:
            raise error
        if last is None or last.status != pq.ExecStatus.TUPLES_OK:
            return []
        self._loaders.set_pgresult(last)
        rows = self._loaders.load_rows(0, last.ntuples, tuple)
        self._loaders.set_pgresult(None)
        return rows

    def _error(self, result: pq.abc.PGresult) -> psycopg.Error:
        state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
        text = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or self._link.error_message).decode(
            "utf-8", "replace"
        )
        try:
            kind: type[psycopg.Error] = errors.lookup(state.decode())
        except KeyError:
            kind = psycopg.DatabaseError
        if self._link.status != pq.ConnStatus.OK:
            kind = psycopg.OperationalError
        return kind(text.strip())


def numbered_parameters(statement: str) -> str:
    """The statement with ``$1`` and so on for its parameters."""
    numbers = itertools.count(1)
    return _PARAMETER.sub(lambda found: f"${found[1] or next(numbers)}", statement)


def _encoded(parameters: tuple[Any, ...]) -> tuple[list[bytes | None], list[int]]:
    """Values and formats of parameters."""
    values: list[bytes | None] = []
    formats: list[int] = []
    for value in parameters:
        if value is None or type(value) is bytes:
            values.append(value)
            formats.append(1)
        elif type(value) is str:
            # In binary a NUL arrives, and is refused, where in text it would be the end.
            values.append(value.encode("utf-8", "surrogatepass"))
            formats.append(1)
        else:
            values.append(b"%d" % value)
            formats.append(0)
    return values, formats
