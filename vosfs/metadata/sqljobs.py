"""Jobs in SQL: transactions as in ``sql.py``."""

from typing import Any

import msgspec

from vosfs.metadata.job import Chosen, Job
from vosfs.metadata.sql import Frame, Transaction

_COLUMNS = ", ".join(Job.__struct_fields__)
_INSERT = f"INSERT INTO job (space, {_COLUMNS}) VALUES ({', '.join('?' * (len(Job.__struct_fields__) + 1))})"


def add_job(f: Frame, job: Job) -> Transaction[None]:
    yield _INSERT, (f.space, *msgspec.structs.astuple(job))


def job(f: Frame, id: str) -> Transaction[Job | None]:
    rows = yield f"SELECT {_COLUMNS} FROM job WHERE space = ? AND id = ?", (f.space, id)
    return Job(*rows[0]) if rows else None


def change_job(f: Frame, job: Job, phases: tuple[str, ...]) -> Transaction[bool]:
    rows = yield "SELECT phase FROM job WHERE space = ? AND id = ?{update}", (f.space, job.id)
    if not rows or rows[0][0] not in phases:
        return False
    yield (
        "UPDATE job SET phase = ?, destruction_ns = ?, document = ? WHERE space = ? AND id = ?",
        (job.phase, job.destruction_ns, job.document, f.space, job.id),
    )
    return True


def jobs(f: Frame, chosen: Chosen) -> Transaction[list[Job]]:
    where = ["space = ?", "created_ns > ?"]
    values: list[Any] = [f.space, chosen.after_ns]
    equal: list[tuple[str, Any]] = [("kind", chosen.kind or None), ("owner", chosen.owner)]
    for column, value in equal:
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    if chosen.phases:
        where.append(f"phase IN ({', '.join('?' * len(chosen.phases))})")
        values += chosen.phases
    if chosen.due_ns:
        where.append("destruction_ns < ?")
        values.append(chosen.due_ns)
    order = "DESC" if chosen.newest else "ASC"
    rows = yield (
        f"SELECT {_COLUMNS} FROM job WHERE {' AND '.join(where)} ORDER BY created_ns {order}, id {order} LIMIT ?",
        (*values, chosen.limit),
    )
    return [Job(*row) for row in rows]


def remove_job(f: Frame, id: str) -> Transaction[None]:
    yield "DELETE FROM job WHERE space = ? AND id = ?", (f.space, id)


READS = frozenset((job, jobs))
