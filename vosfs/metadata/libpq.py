"""One PostgreSQL connection, at the level of libpq: prepared statements, and the four types that the store uses.

``psycopg.pq`` wraps libpq call by call.  A statement costs 22 µs of CPU this way and 60 through a cursor, whose
adaptation of any type to any other is what nobody needs here: parameters are int, str, bytes or None, and so are results.
Blocks, and is called in worker threads.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import errors, pq

STATEMENTS_MAX = 200
"""Prepared statements that a connection keeps."""
_TYPES = {int: 20, str: 25, bytes: 17}
"""OIDs of int8, text and bytea."""
_OK = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)


def _integer(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


_DECODERS: dict[int, Callable[[bytes], Any]] = {
    20: _integer, 21: _integer, 23: _integer, 25: bytes.decode, 1043: bytes.decode, 17: bytes, 16: _integer,
}  # fmt: skip


class _Prepared:
    """A statement that the server knows."""

    __slots__ = ("name", "decoders")

    def __init__(self, name: bytes, decoders: list[Callable[[bytes], Any]]) -> None:
        self.name = name
        self.decoders = decoders


class Connection:
    """A connection of one thread at a time.  Raises psycopg's errors, by SQLSTATE."""

    def __init__(self, dsn: str, options: dict[str, str]) -> None:
        # psycopg makes the connection, so that its passfile, service and multi-host handling is all there.
        self._owner = psycopg.connect(dsn, autocommit=True, **options)  # type: ignore[arg-type]
        self._link = self._owner.pgconn
        self._prepared: OrderedDict[str, _Prepared] = OrderedDict()
        self._serial = 0

    @property
    def idle(self) -> bool:
        """Whether it can be used, and no transaction is open."""
        return (
            self._link.status == pq.ConnStatus.OK
            and self._link.transaction_status == pq.TransactionStatus.IDLE
        )  # fmt: skip

    def close(self) -> None:
        """Close; an open transaction is rolled back by the server."""
        self._owner.close()

    def script(self, statements: str) -> None:
        """Run statements without parameters or results, separated by semicolons, in one round trip."""
        self._check(self._link.exec_(statements.encode()))

    def execute(self, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Run one statement with ``?`` for parameters; its rows."""
        prepared = self._prepared.get(statement)
        if prepared is None:
            prepared = self._prepare(statement, parameters)
        values: list[Any] = []
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
        result = self._check(self._link.exec_prepared(prepared.name, values, formats, 1))
        count, get, decoders = result.ntuples, result.get_value, prepared.decoders
        rows = []
        for row in range(count):
            cells = []
            for column, decode in enumerate(decoders):
                cell = get(row, column)
                cells.append(None if cell is None else decode(cell))
            rows.append(tuple(cells))
        return rows

    def _prepare(self, statement: str, parameters: tuple[Any, ...]) -> _Prepared:
        pieces = statement.split("?")
        text = pieces[0] + "".join(f"${number}{piece}" for number, piece in enumerate(pieces[1:], 1))
        self._serial += 1
        name = b"s%d" % self._serial
        self._check(self._link.prepare(name, text.encode(), [_TYPES.get(type(value), 0) for value in parameters]))
        described = self._check(self._link.describe_prepared(name))
        decoders = [_DECODERS[described.ftype(column)] for column in range(described.nfields)]
        prepared = self._prepared[statement] = _Prepared(name, decoders)
        if len(self._prepared) > STATEMENTS_MAX:
            old = self._prepared.popitem(last=False)[1]
            self.script(f"DEALLOCATE {old.name.decode()}")
        return prepared

    def _check(self, result: pq.abc.PGresult) -> pq.abc.PGresult:
        if result.status in _OK:
            return result
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
        raise kind(text.strip())
