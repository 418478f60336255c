"""Deleting what is too old: whole stretches at the begin of a chain, with a record from which the chain goes on."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Table, delete, func, select

from dermkit.errors import UsageError
from dermkit.prediction_log.append import append_rows
from dermkit.prediction_log.database import log_errors, open_engine, open_reader, parse_address
from dermkit.prediction_log.rows import check_text, new_row_id, time_text
from dermkit.prediction_log.schema import check_schema
from dermkit.prediction_log.tables import DELETIONS, OUTCOMES, PREDICTIONS
from dermkit.prediction_log.verify import verify_log

_DELETE_SECONDS = 600.0
LEAST_DAYS = 184
"""Six months, the longest six. Articles 19 and 26 of the EU AI Act (2024/1689) ask that the logs of a high-risk system
be kept for at least six months."""


@dataclass(frozen=True)
class DeletedStretch:
    """The begin of a chain that was deleted. chain: its name. n_rows: how many rows; sequence: of the last of them."""

    chain: str
    n_rows: int
    sequence: int


def delete_old(
    log: str, keep_days: float, *, reason: str, under_six_months: bool = False, now: datetime | None = None
) -> list[DeletedStretch]:
    """Delete rows that are older than `keep_days` days, and return the stretches; the log is verified first.

    A chain loses its begin up to the first row that is young enough, so a row that came late through the outbox may
    keep older ones. reason: who deletes and why, for the record. under_six_months: the explicit word without which
    nothing younger than `LEAST_DAYS` is deleted. Raises `UsageError`, and `ChainBroken` where the log does not hold.
    """
    if not keep_days >= 0 or keep_days > 36_500:
        raise UsageError(f"--keep-days {keep_days:g}: is no number of days", outcome="nothing was deleted")
    if keep_days < LEAST_DAYS and not under_six_months:
        raise UsageError(
            f"--keep-days {keep_days:g}: is under six months ({LEAST_DAYS} days)",
            outcome="nothing was deleted",
            remedy="the EU AI Act asks for the logs of high-risk systems for at least six months; where you may "
            "delete earlier, say so with --under-six-months",
        )
    check_text("reason", reason)
    if not reason.strip():
        raise UsageError("--reason: is empty", outcome="nothing was deleted", remedy="say who deletes, and why")
    verify_log(log)
    address = parse_address(log)
    with open_reader(address) as connection:
        check_schema(connection, address)
    cutoff = time_text((now or datetime.now(UTC)) - timedelta(days=keep_days))
    engine = open_engine(address, writes=True, timeout=_DELETE_SECONDS)
    try:
        with log_errors(address), engine.begin() as connection:
            stretches = [_delete(connection, table, cutoff, reason) for table in (PREDICTIONS, OUTCOMES)]
    finally:
        engine.dispose()
    return [stretch for stretch in stretches if stretch is not None]


def _delete(connection: Connection, table: Table, cutoff: str, reason: str) -> DeletedStretch | None:
    """Delete the begin of a chain in the connection's transaction and write its record; None where all are young."""
    first_young = connection.scalar(select(func.min(table.c.sequence)).where(table.c.time >= cutoff))
    is_old = table.c.sequence < first_young if first_young is not None else table.c.time < cutoff
    last = connection.execute(
        select(table.c.sequence, table.c.row_hash).where(is_old).order_by(table.c.sequence.desc()).limit(1)
    ).one_or_none()
    if last is None:
        return None
    first = connection.scalar(select(func.min(table.c.sequence)))
    record = {
        "row_id": new_row_id(), "time": time_text(datetime.now(UTC)), "chain": table.name, "first_sequence": first,
        "last_sequence": last.sequence, "last_row_hash": last.row_hash, "cutoff": cutoff, "reason": reason,
    }  # fmt: skip
    append_rows(connection, DELETIONS, [record])
    n_rows = connection.execute(delete(table).where(table.c.sequence <= last.sequence)).rowcount
    return DeletedStretch(table.name, n_rows, last.sequence)
