"""Reading a log in bounded memory: typed rows or data frames, each with the outcome that is known by now."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, RowMapping, Select, func, or_, select

from dermkit.prediction_log.database import open_reader, parse_address
from dermkit.prediction_log.rows import OUTCOME, OVERRIDE, OutcomeRow, PredictionRow, time_text
from dermkit.prediction_log.schema import check_schema
from dermkit.prediction_log.tables import OUTCOMES, PREDICTIONS, columns_of

if TYPE_CHECKING:
    import pandas as pd

CHUNK_ROWS = 500


@dataclass(frozen=True)
class LoggedPrediction:
    """A row of the log, with the outcome and the reviewer's override that hold today, None where there is none."""

    row: PredictionRow
    outcome: OutcomeRow | None = None
    override: OutcomeRow | None = None


def read_log(
    log: str, since: datetime | None = None, until: datetime | None = None, *,
    model_key: str | None = None, route: str | None = None,
) -> Iterator[LoggedPrediction]:  # fmt: skip
    """Yield the rows of a log in the order of their writing, as one state of it; closes the log at the end.

    since, until: times of scoring, from `since` on and before `until`. model_key: of one model alone. route: "predict"
    leaves out the images of heat maps, which are often those of a prediction before. An outcome that names the pixels
    holds for every prediction of the image; of several the one observed last holds. Raises `DataError` for no log,
    `UsageError` for another schema, `LogUnavailable` where the database is away.
    """
    address = parse_address(log)
    with open_reader(address) as connection:
        check_schema(connection, address)
        last_sequence = 0
        query = _filtered(since, until, model_key, route)
        while rows := connection.execute(query.where(PREDICTIONS.c.sequence > last_sequence)).mappings().all():
            outcomes = _latest_outcomes(connection, rows)
            for row in rows:
                rows_of_kind = {kind: _latest_of(outcomes, kind, row) for kind in (OUTCOME, OVERRIDE)}
                yield LoggedPrediction(
                    PredictionRow.from_columns(columns_of(row)), rows_of_kind[OUTCOME], rows_of_kind[OVERRIDE]
                )
            last_sequence = rows[-1]["sequence"]


def read_frames(
    log: str, since: datetime | None = None, until: datetime | None = None, *,
    model_key: str | None = None, route: str | None = None,
) -> "Iterator[pd.DataFrame]":  # fmt: skip
    """Yield the same as data frames of at most `CHUNK_ROWS` rows, with the columns of `flat_columns`."""
    import pandas as pd

    chunk: list[dict[str, Any]] = []
    for prediction in read_log(log, since, until, model_key=model_key, route=route):
        chunk.append(flat_columns(prediction))
        if len(chunk) == CHUNK_ROWS:
            yield pd.DataFrame(chunk)
            chunk = []
    if chunk:
        yield pd.DataFrame(chunk)


def flat_columns(prediction: LoggedPrediction) -> dict[str, Any]:
    """Return a row as column -> value: the table's columns without the hashes, `aspect`, and `outcome`, `override`
    with their sources and times. Probabilities and sets stay JSON texts, because models differ in their classes.
    """
    columns = {"sequence": prediction.row.sequence, **prediction.row.columns()}
    columns["aspect"] = None if prediction.row.statistics is None else prediction.row.statistics.aspect
    for name, outcome in ((OUTCOME, prediction.outcome), (OVERRIDE, prediction.override)):
        columns[name] = None if outcome is None else outcome.diagnosis
        columns[f"{name}_source"] = None if outcome is None else outcome.source
        columns[f"{name}_observed"] = None if outcome is None else time_text(outcome.observed)
    return columns


def count_models(
    log: str, since: datetime | None = None, until: datetime | None = None, *, route: str | None = None
) -> dict[str, int]:
    """Return model key -> number of rows, chosen as `read_log` does; raises as it does."""
    address = parse_address(log)
    with open_reader(address) as connection:
        check_schema(connection, address)
        selected = _filtered(since, until, None, route).order_by(None).limit(None).subquery()
        query = select(selected.c.model_key, func.count()).group_by(selected.c.model_key)
        return {str(key): int(n) for key, n in connection.execute(query.order_by(selected.c.model_key))}


def _filtered(
    since: datetime | None, until: datetime | None, model_key: str | None, route: str | None
) -> Select[Any]:
    query = select(PREDICTIONS).order_by(PREDICTIONS.c.sequence).limit(CHUNK_ROWS)
    if since is not None:
        query = query.where(PREDICTIONS.c.time >= time_text(since))
    if until is not None:
        query = query.where(PREDICTIONS.c.time < time_text(until))
    if route is not None:
        query = query.where(PREDICTIONS.c.route == route)
    return query if model_key is None else query.where(PREDICTIONS.c.model_key == model_key)


def _latest_outcomes(connection: Connection, rows: Sequence[RowMapping]) -> dict[tuple[str, str], OutcomeRow]:
    """Return (kind, prediction id or pixels) -> the outcome observed last, of these predictions."""
    ids = [row["row_id"] for row in rows]
    pixels = {row["pixel_sha256"] for row in rows} - {None}
    query = select(OUTCOMES).where(or_(OUTCOMES.c.prediction_id.in_(ids), OUTCOMES.c.pixel_sha256.in_(pixels)))
    latest: dict[tuple[str, str], OutcomeRow] = {}
    for columns in connection.execute(query.order_by(OUTCOMES.c.observed, OUTCOMES.c.sequence)).mappings():
        outcome = OutcomeRow.from_columns(columns_of(columns))
        latest[outcome.kind, outcome.prediction_id or outcome.pixel_sha256] = outcome
    return latest


def _latest_of(outcomes: dict[tuple[str, str], OutcomeRow], kind: str, row: RowMapping) -> OutcomeRow | None:
    candidates = [outcomes.get((kind, name)) for name in (row["row_id"], row["pixel_sha256"])]
    rows_of_kind = [outcome for outcome in candidates if outcome is not None]
    return max(rows_of_kind, key=lambda outcome: (outcome.observed, outcome.sequence), default=None)
