"""Walking the chains of a log from their begin: the first row that was changed, removed, inserted or moved is named.

What this can show: any change that does not compute the hashes of every later row anew. Who may write to the database
can do that; heads that were noted elsewhere (`verify_log(heads=...)`) show it too, as far back as they were noted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, func, select

from dermkit.errors import DataError, UsageError
from dermkit.files import read_regular, write_text
from dermkit.prediction_log.chain import GENESIS, row_hash
from dermkit.prediction_log.database import open_reader, parse_address
from dermkit.prediction_log.schema import check_schema
from dermkit.prediction_log.tables import CHAINS, DELETIONS, HEADS, columns_of

ROWS_PER_QUERY = 1000


@dataclass(frozen=True)
class ChainHead:
    """The end of a chain: its name, and the sequence and hash of its last row (0 and zeros while it is empty)."""

    chain: str
    sequence: int
    row_hash: str

    def __str__(self) -> str:
        return f"{self.chain} {self.sequence} {self.row_hash}"


class ChainBroken(DataError):
    """A chain does not hold. chain: its name. sequence: of the first row that is wrong. kind: what is wrong with it."""

    code = "chain_broken"

    def __init__(self, chain: str, sequence: int, kind: str, detail: str) -> None:
        super().__init__(
            f"{chain}: row {sequence}: {kind}: {detail}",
            outcome="the log as it is; the rows before this one are as they were written",
            remedy="keep a copy of the database as evidence, and compare it with a backup",
        )
        self.chain, self.sequence, self.kind = chain, sequence, kind


@dataclass(frozen=True)
class VerifiedLog:
    """A log whose chains hold. heads: of each chain. n_rows: rows that were walked. n_deleted: rows that retention
    deleted, as its records say. n_heads, n_heads_deleted: noted heads that lie in the log, and those in what was
    deleted, which nothing can be said of.
    """

    heads: tuple[ChainHead, ...]
    n_rows: int
    n_deleted: int
    n_heads: int = 0
    n_heads_deleted: int = 0


def verify_log(log: str, *, heads: Path | None = None) -> VerifiedLog:
    """Walk every chain of a log, in bounded memory; raises `ChainBroken` for the first fault.

    heads: a file of heads that earlier checks noted, best kept on another machine: each must still lie in its chain.
    The heads of today are added to it; it is created where it is absent. Raises `DataError` for no log, `UsageError`
    for a newer schema, `LogUnavailable` where the database is away.
    """
    address = parse_address(log)
    noted = _read_heads(heads) if heads is not None else []
    with open_reader(address) as connection:
        check_schema(connection, address)
        walks = {name: _walk_chain(connection, table) for name, table in reversed(CHAINS.items())}
        n_in_log, n_deleted = _check_noted(connection, noted, walks)
    walk_heads = tuple(walk.head for walk in walks.values())
    if heads is not None:
        lines = dict.fromkeys([*map(str, noted), *map(str, walk_heads)])
        write_text(heads, "".join(f"{line}\n" for line in lines))
    return VerifiedLog(
        walk_heads, sum(walk.n_rows for walk in walks.values()), sum(walk.begin.sequence for walk in walks.values()),
        n_in_log, n_deleted,
    )  # fmt: skip


# One chain ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ChainWalk:
    """A chain that holds: where it begins after what was deleted, its head, and its number of rows."""

    begin: ChainHead
    head: ChainHead
    n_rows: int


def _walk_chain(connection: Connection, table: Table) -> _ChainWalk:
    begin = _begin_of(connection, table)
    sequence, previous_hash = begin.sequence, begin.row_hash
    for row in iterate_rows(connection, table):
        if row["sequence"] != sequence + 1:
            raise _gap(table.name, sequence, row["sequence"])
        problem = _content_problem(row)
        if problem:
            raise ChainBroken(table.name, sequence + 1, "changed", problem)
        if row["previous_hash"] != previous_hash:
            raise _misplaced(connection, table, row, previous_hash)
        sequence, previous_hash = row["sequence"], row["row_hash"]
    head = ChainHead(table.name, sequence, previous_hash)
    _check_end(connection, table, begin, head)
    return _ChainWalk(begin, head, sequence - begin.sequence)


def _begin_of(connection: Connection, table: Table) -> ChainHead:
    """Return the last row that retention deleted, which the first one left must follow. DELETIONS was walked before."""
    query = (
        select(DELETIONS.c.last_sequence, DELETIONS.c.last_row_hash)
        .where(DELETIONS.c.chain == table.name)
        .order_by(DELETIONS.c.sequence.desc())
        .limit(1)
    )
    last = connection.execute(query).one_or_none() if table is not DELETIONS else None
    return ChainHead(table.name, 0, GENESIS) if last is None else ChainHead(table.name, *last)


def iterate_rows(connection: Connection, table: Table) -> Iterator[RowMapping]:
    """Yield the rows of a chain by their sequence, some at a time."""
    query = select(table).order_by(table.c.sequence).limit(ROWS_PER_QUERY)
    rows: Sequence[RowMapping] = connection.execute(query).mappings().all()
    while rows:
        yield from rows
        rows = connection.execute(query.where(table.c.sequence > rows[-1]["sequence"])).mappings().all()


def _content_problem(row: RowMapping) -> str:
    """Return why a row is not what its hash was computed of, "" where it is."""
    try:
        computed = row_hash(row["previous_hash"], columns_of(row))
    except (TypeError, ValueError) as error:
        return f"a value is none that was ever written: {error}"
    return "" if computed == row["row_hash"] else "its content is not what its hash was computed of"


def _gap(chain: str, sequence: int, next_sequence: Any) -> ChainBroken:
    if not isinstance(next_sequence, int) or next_sequence <= sequence:
        return ChainBroken(chain, sequence + 1, "inserted", f"a row numbered {next_sequence} lies before it")
    last_text = f" to {next_sequence - 1}" if next_sequence > sequence + 2 else ""
    return ChainBroken(chain, sequence + 1, "removed", f"row {sequence + 1}{last_text} is missing")


def _misplaced(connection: Connection, table: Table, row: RowMapping, previous_hash: str) -> ChainBroken:
    """Return what happened where a row is sound and does not follow the one before it."""
    sequence = row["sequence"]
    predecessor = _sequence_where(connection, table, "row_hash", row["previous_hash"])
    if predecessor is not None and predecessor < sequence:
        detail = f"it stands between rows {predecessor} and {sequence}, which followed each other"
        return ChainBroken(table.name, predecessor + 1, "inserted", detail)
    if predecessor is not None:
        return ChainBroken(table.name, sequence, "moved", f"it followed the row that is now number {predecessor}")
    if _sequence_where(connection, table, "previous_hash", previous_hash) is not None:
        return ChainBroken(table.name, sequence, "inserted", "it follows no row of this log")
    return ChainBroken(
        table.name, sequence, "removed", "a row before it was removed or replaced, and the numbers were closed up"
    )


def _sequence_where(connection: Connection, table: Table, column: str, value: str) -> int | None:
    return connection.scalar(select(table.c.sequence).where(table.c[column] == value).limit(1))


def _check_end(connection: Connection, table: Table, begin: ChainHead, end: ChainHead) -> None:
    """Compare the last row with the head that is kept in a table of its own: a cut-off end leaves no gap."""
    noted = connection.execute(select(HEADS.c.sequence, HEADS.c.row_hash).where(HEADS.c.chain == table.name))
    row = noted.one_or_none()
    if row is None:
        raise ChainBroken(table.name, end.sequence, "head removed", "the table of heads does not hold this chain")
    if row.sequence > end.sequence:
        detail = f"the log ends at row {end.sequence} and had {row.sequence}: its end was cut off"
        raise ChainBroken(table.name, end.sequence + 1, "removed", detail)
    if (row.sequence, row.row_hash) != (end.sequence, end.row_hash):
        detail = f"the head says that row {row.sequence} is the last, of hash {str(row.row_hash)[:12]}"
        raise ChainBroken(table.name, end.sequence, "head changed", detail)
    n_rows = connection.scalar(select(func.count()).select_from(table))
    if n_rows != end.sequence - begin.sequence:
        detail = f"{n_rows} rows have {end.sequence - begin.sequence} numbers"
        raise ChainBroken(table.name, end.sequence, "inserted", detail)


# Noted heads --------------------------------------------------------------------------------------------------------


def _read_heads(path: Path) -> list[ChainHead]:
    """Return the heads of a file, [] where it is absent; raises `UsageError` for another file."""
    if not path.exists():
        return []
    try:
        lines = read_regular(path).decode("utf-8").splitlines()
        heads = [ChainHead(chain, int(sequence), one) for chain, sequence, one in map(str.split, lines)]
        if any(head.chain not in CHAINS or len(head.row_hash) != len(GENESIS) for head in heads):
            raise ValueError
    except (OSError, ValueError):
        raise UsageError(
            f"{path}: is no file of heads: each line must be a chain, a number and a hash",
            outcome="the file as it is",
            remedy="name the file that an earlier `dermkit verify-log --heads` wrote, or a new one",
        ) from None
    return heads


def _check_noted(
    connection: Connection, noted: Sequence[ChainHead], walks: dict[str, _ChainWalk]
) -> tuple[int, int]:
    """Return how many noted heads lie in the log, and how many in what was deleted; raises `ChainBroken`."""
    n_in_log = n_deleted = 0
    for head in noted:
        begin = walks[head.chain].begin
        if head.sequence < begin.sequence:
            n_deleted += 1
            continue
        table = CHAINS[head.chain]
        here = (
            begin.row_hash
            if head.sequence == begin.sequence
            else connection.scalar(select(table.c.row_hash).where(table.c.sequence == head.sequence))
        )
        if here is None:
            raise ChainBroken(
                head.chain, head.sequence, "removed", "an earlier check saw it, and the log ends before"
            )
        if here != head.row_hash:
            raise ChainBroken(
                head.chain,
                head.sequence,
                "changed",
                "an earlier check saw another hash: the chain was computed anew",
            )
        n_in_log += 1
    return n_in_log, n_deleted
