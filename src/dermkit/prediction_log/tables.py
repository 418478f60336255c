"""The tables of the prediction log. Three of them are chains: predictions, outcomes, and what retention deleted.

Every type is one that SQLite and PostgreSQL give back exactly as it was written; what is yes or no is a text, because
SQLite would take 2 for yes too.
"""

from typing import Any

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, RowMapping, Table, Text

METADATA = MetaData()


def _chain_columns() -> tuple[Column[int], Column[str], Column[str], Column[str], Column[str]]:
    """Return the columns that every chain has."""
    return (
        # INTEGER is the row's own number in SQLite; BIGINT would be another column beside it.
        Column("sequence", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=False),
        Column("row_id", Text, nullable=False, unique=True),
        Column("previous_hash", Text, nullable=False),
        Column("row_hash", Text, nullable=False),
        Column("time", Text, nullable=False),
    )


PREDICTIONS = Table(
    "predictions",
    METADATA,
    *_chain_columns(),
    Column("request_id", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("route", Text, nullable=False),
    Column("dermkit_version", Text, nullable=False),
    Column("model_key", Text, nullable=False),
    Column("preprocessing_sha256", Text),
    Column("pixel_sha256", Text),
    Column("probabilities", Text),
    Column("calibrated_probabilities", Text),
    Column("predicted", Text),
    Column("operating_point", Text),
    Column("threshold", Double),
    Column("malignant_probability", Double),
    Column("positive", Text),
    Column("referral", Text),
    Column("prediction_set", Text),
    Column("distance", Double),
    Column("p_value", Double),
    Column("outside_training_distribution", Text),
    Column("width", Integer),
    Column("height", Integer),
    Column("mean_red", Double),
    Column("mean_green", Double),
    Column("mean_blue", Double),
    Column("sd_red", Double),
    Column("sd_green", Double),
    Column("sd_blue", Double),
    Column("sharpness", Double),
    Column("site", Text),
    Column("device", Text),
    Column("age_group", Text),
    Column("refusal_reason", Text),
    Index("predictions_time", "time"),
    Index("predictions_pixels", "pixel_sha256"),
)

OUTCOMES = Table(
    "outcomes",
    METADATA,
    *_chain_columns(),
    Column("kind", Text, nullable=False),
    Column("prediction_id", Text),
    Column("pixel_sha256", Text),
    Column("diagnosis", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("observed", Text, nullable=False),
    Index("outcomes_time", "time"),
    Index("outcomes_prediction", "prediction_id"),
    Index("outcomes_pixels", "pixel_sha256"),
)

DELETIONS = Table(
    "deletions",
    METADATA,
    *_chain_columns(),
    Column("chain", Text, nullable=False),
    Column("first_sequence", BigInteger, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("last_row_hash", Text, nullable=False),
    Column("cutoff", Text, nullable=False),
    Column("reason", Text, nullable=False),
)

HEADS = Table(
    "chain_heads",
    METADATA,
    Column("chain", Text, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("row_hash", Text, nullable=False),
)

CHAINS = {table.name: table for table in (PREDICTIONS, OUTCOMES, DELETIONS)}


def columns_of(row: RowMapping) -> dict[str, Any]:
    """Return a row of a query as column -> value."""
    return {str(name): row[name] for name in row}
