"""Adding rows to a chain: in one transaction, in order, each row id once."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, select

from dermkit.errors import DataError
from dermkit.prediction_log.chain import row_hash
from dermkit.prediction_log.tables import HEADS

_IDS_PER_QUERY = 500


def append_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Add rows to the end of a chain within the connection's transaction; returns how many were new.

    rows: column -> value, without the columns of the chain. A row whose id is in the chain, or earlier among the rows,
    is left out. The head is locked until the transaction ends, so that several processes write one after another.
    """
    sequence, previous_hash = _lock_head(connection, table)
    known_ids = _present_ids(connection, table, [row["row_id"] for row in rows])
    new_rows: list[dict[str, Any]] = []
    for row in rows:
        if row["row_id"] in known_ids:
            continue
        known_ids.add(row["row_id"])
        sequence += 1
        chained = {"sequence": sequence, "previous_hash": previous_hash, **row}
        previous_hash = chained["row_hash"] = row_hash(previous_hash, row)
        new_rows.append(chained)
    if new_rows:
        connection.execute(table.insert(), new_rows)
        connection.execute(
            HEADS.update().where(HEADS.c.chain == table.name).values(sequence=sequence, row_hash=previous_hash)
        )
    return len(new_rows)


def touch_head(connection: Connection, table: Table) -> None:
    """Write a chain's head as it is: what shows that a commit reaches the disk, without a row."""
    sequence, _ = _lock_head(connection, table)
    connection.execute(HEADS.update().where(HEADS.c.chain == table.name).values(sequence=sequence))


def _lock_head(connection: Connection, table: Table) -> tuple[int, str]:
    """Return the sequence and hash of the last row, and keep other writers out. SQLite has locked all by now."""
    query = select(HEADS.c.sequence, HEADS.c.row_hash).where(HEADS.c.chain == table.name).with_for_update()
    head = connection.execute(query).one_or_none()
    if head is None:
        raise DataError(
            f"prediction log: the head of the chain {table.name} was removed",
            outcome="nothing was written to the database",
            remedy="`dermkit verify-log` says what is left; restore a backup, or name a new log",
        )
    return head.sequence, head.row_hash


def _present_ids(connection: Connection, table: Table, row_ids: Sequence[str]) -> set[str]:
    """Return which of these ids the chain holds."""
    present: set[str] = set()
    for start in range(0, len(row_ids), _IDS_PER_QUERY):
        some_ids = row_ids[start : start + _IDS_PER_QUERY]
        present.update(connection.scalars(select(table.c.row_id).where(table.c.row_id.in_(some_ids))))
    return present
