"""The first schema: three chains and their heads. It stands alone, so that later changes of the tables leave it."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    text, integer, big = sa.Text(), sa.Integer(), sa.BigInteger()
    double: sa.Double[float] = sa.Double()
    op.create_table(
        "predictions",
        *_chain_columns(),
        *_required("request_id", text),
        *_required("position", integer),
        *_required("route dermkit_version model_key", text),
        *_optional("preprocessing_sha256 pixel_sha256 probabilities calibrated_probabilities predicted", text),
        *_optional("operating_point", text),
        *_optional("threshold malignant_probability", double),
        *_optional("positive referral prediction_set", text),
        *_optional("distance p_value", double),
        *_optional("outside_training_distribution", text),
        *_optional("width height", integer),
        *_optional("mean_red mean_green mean_blue sd_red sd_green sd_blue sharpness", double),
        *_optional("site device age_group refusal_reason", text),
    )
    op.create_table(
        "outcomes",
        *_chain_columns(),
        *_required("kind", text),
        *_optional("prediction_id pixel_sha256", text),
        *_required("diagnosis source observed", text),
    )
    op.create_table(
        "deletions",
        *_chain_columns(),
        *_required("chain", text),
        *_required("first_sequence last_sequence", big),
        *_required("last_row_hash cutoff reason", text),
    )
    op.create_table(
        "chain_heads",
        sa.Column("chain", text, primary_key=True),
        *_required("sequence", big),
        *_required("row_hash", text),
    )
    _create_indexes()


def _create_indexes() -> None:
    op.create_index("predictions_time", "predictions", ["time"])
    op.create_index("predictions_pixels", "predictions", ["pixel_sha256"])
    op.create_index("outcomes_time", "outcomes", ["time"])
    op.create_index("outcomes_prediction", "outcomes", ["prediction_id"])
    op.create_index("outcomes_pixels", "outcomes", ["pixel_sha256"])


def _chain_columns() -> list[sa.Column[Any]]:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return [
        sa.Column("sequence", number, primary_key=True, autoincrement=False),
        sa.Column("row_id", sa.Text(), nullable=False, unique=True),
        *_required("previous_hash row_hash time", sa.Text()),
    ]


def _required(names: str, kind: sa.types.TypeEngine[Any]) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=False) for name in names.split()]


def _optional(names: str, kind: sa.types.TypeEngine[Any]) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind) for name in names.split()]
