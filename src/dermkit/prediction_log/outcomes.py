"""What becomes known later: diagnoses and reviewers' decisions, each a row of its own; nothing is overwritten."""

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, select

from dermkit.errors import DataError, DermkitError, UsageError
from dermkit.prediction_log.append import append_rows
from dermkit.prediction_log.database import LogAddress, log_errors, open_engine, open_reader, parse_address
from dermkit.prediction_log.rows import OUTCOME, OUTCOME_KINDS, OutcomeRow, parse_time
from dermkit.prediction_log.schema import check_schema
from dermkit.prediction_log.tables import OUTCOMES, PREDICTIONS

OUTCOME_COLUMNS = ("prediction_id", "pixel_sha256", "diagnosis", "source", "time", "kind")
"""Columns of a table of outcomes; `kind` may be absent, and one of the first two."""
_ROWS_PER_COMMIT = 400


@dataclass(frozen=True)
class RejectedOutcome:
    """An outcome that was not written. name: the id that it gives, or its line. reason: why, in words."""

    name: str
    reason: str


@dataclass(frozen=True)
class OutcomesAdded:
    """How many outcomes were new, how many the log had, and those that were not written."""

    n_new: int
    n_known: int
    rejected: tuple[RejectedOutcome, ...]


def add_outcome(
    log: str,
    *,
    diagnosis: str,
    source: str,
    prediction_id: str = "",
    pixel_sha256: str = "",
    time: datetime | None = None,
    kind: str = OUTCOME,
) -> bool:
    """Add one outcome to a log; returns whether it was new. Raises `DataError` for an id that the log does not have.

    prediction_id: of the answer, as the server gave it; or pixel_sha256: of the image. time: when it became known
    (default: now). kind: "override" for what a reviewer decided.
    """
    row = OutcomeRow(
        kind=kind, prediction_id=prediction_id, pixel_sha256=pixel_sha256, diagnosis=diagnosis, source=source,
        observed=time or datetime.now(UTC),
    )  # fmt: skip
    added = add_outcomes(log, [row])
    for rejected in added.rejected:
        raise DataError(
            f"{rejected.name}: {rejected.reason}", outcome="the log as it was", remedy="check the id and the log"
        )
    return bool(added.n_new)


def add_outcomes(log: str | LogAddress, rows: Iterable[OutcomeRow]) -> OutcomesAdded:
    """Add outcomes to a log, some in one commit; the same outcome given again is written once.

    Those whose id the log does not have are returned. Raises `LogUnavailable` where the database is away; then what
    was written before stays, and the same call may be repeated.
    """
    address = parse_address(log)
    with open_reader(address) as connection:
        check_schema(connection, address)
    engine = open_engine(address, writes=True)
    n_new = n_known = 0
    rejected: list[RejectedOutcome] = []
    iterator = iter(rows)
    try:
        while batch := list(itertools.islice(iterator, _ROWS_PER_COMMIT)):
            with log_errors(address), engine.begin() as connection:
                matches, unknown = _separate(connection, batch)
                n_batch = append_rows(connection, OUTCOMES, [row.columns() for row in matches])
            rejected += unknown
            n_new, n_known = n_new + n_batch, n_known + len(matches) - n_batch
    finally:
        engine.dispose()
    return OutcomesAdded(n_new, n_known, tuple(rejected))


def _separate(
    connection: Connection, rows: Sequence[OutcomeRow]
) -> tuple[list[OutcomeRow], list[RejectedOutcome]]:
    """Return the outcomes whose prediction or image is in the log, and the others."""
    ids, pixels = {row.prediction_id for row in rows} - {""}, {row.pixel_sha256 for row in rows} - {""}
    ids_query = select(PREDICTIONS.c.row_id, PREDICTIONS.c.pixel_sha256).where(PREDICTIONS.c.row_id.in_(ids))
    pixels_query = select(PREDICTIONS.c.pixel_sha256).where(PREDICTIONS.c.pixel_sha256.in_(pixels)).distinct()
    pixels_of_id: dict[str, str] = {
        row_id: pixel_sha256 or "" for row_id, pixel_sha256 in connection.execute(ids_query)
    }
    present_pixels = set(connection.scalars(pixels_query))
    matched, rejected = [], []
    for row in rows:
        name = row.prediction_id or row.pixel_sha256
        if row.prediction_id and row.prediction_id not in pixels_of_id:
            rejected.append(RejectedOutcome(name, "the log has no prediction of this id"))
        elif row.pixel_sha256 and row.pixel_sha256 not in present_pixels:
            rejected.append(RejectedOutcome(row.pixel_sha256, "the log has no image of these pixels"))
        elif row.prediction_id and row.pixel_sha256 and pixels_of_id[row.prediction_id] != row.pixel_sha256:
            rejected.append(RejectedOutcome(name, "the prediction is of other pixels than those given"))
        else:
            matched.append(row)
    return matched, rejected


# A table of outcomes ------------------------------------------------------------------------------------------------


def import_outcomes(log: str, table: Path) -> OutcomesAdded:
    """Add the outcomes of a CSV file to a log; lines that cannot be used are returned, the others are written.

    Columns: `OUTCOME_COLUMNS`. Raises `UsageError` for a file without these columns, `LogUnavailable` as
    `add_outcomes` does.
    """
    unusable: list[RejectedOutcome] = []
    added = add_outcomes(log, _read_rows(table, unusable))
    return OutcomesAdded(added.n_new, added.n_known, (*unusable, *added.rejected))


def _read_rows(table: Path, unusable: list[RejectedOutcome]) -> Iterator[OutcomeRow]:
    """Yield the outcomes of a CSV file, line by line; those that cannot be read are added to `unusable`."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_columns(table, reader.fieldnames or ())
            for cells in reader:
                try:
                    yield _parse_row(cells)
                except DermkitError as error:
                    unusable.append(RejectedOutcome(f"line {reader.line_num}", error.message))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{table}: cannot be read: {error}",
            outcome="outcomes of the lines before, which may be given again",
            remedy="check the path, and save the table as CSV in UTF-8",
        ) from error


def _check_columns(table: Path, names: Sequence[str]) -> None:
    missing = {"diagnosis", "source", "time"} - set(names)
    if not {"prediction_id", "pixel_sha256"} & set(names):
        missing.add("prediction_id or pixel_sha256")
    unknown = set(names) - set(OUTCOME_COLUMNS)
    if missing or unknown:
        problem = f"lacks {', '.join(sorted(missing))}" if missing else f"has {', '.join(sorted(unknown))}"
        raise UsageError(
            f"{table}: {problem}",
            outcome="nothing was written",
            remedy=f"the columns are {', '.join(OUTCOME_COLUMNS)} (docs/prediction-log.md)",
        )


def _parse_row(cells: dict[str, str | None]) -> OutcomeRow:
    if None in cells:
        raise UsageError("more cells than columns")
    values = {name: (value or "").strip() for name, value in cells.items()}
    kind = values.get("kind") or OUTCOME
    if kind not in OUTCOME_KINDS:
        raise UsageError(f"kind {kind!r} is unknown: one of {', '.join(OUTCOME_KINDS)}")
    return OutcomeRow(
        kind=kind, prediction_id=values.get("prediction_id", ""), pixel_sha256=values.get("pixel_sha256", ""),
        diagnosis=values["diagnosis"], source=values["source"], observed=parse_time(values["time"]),
    )  # fmt: skip
