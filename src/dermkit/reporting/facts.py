"""The contents of a report as texts and rows: what is known of the data, the training log.

Nothing is computed again: metrics come from metrics.json.
"""

import re

import pandas as pd

from dermkit.runs.folder import Json, RunFolder
from dermkit.runs.layout import EXCLUDED_FILE

MAX_CONFUSIONS = 10
MAX_LOG_ROWS = 400
"""Most epochs printed; of more every second, third, ... row is, and the page says so."""


# --- facts ---


def exclusion_counts(run: RunFolder) -> list[tuple[str, int]]:
    """Return the number of excluded images per reason, without the image names in reasons."""
    frame = run.table(EXCLUDED_FILE)
    if frame is None or not len(frame):
        return []
    reasons = frame["reason"].map(lambda reason: re.sub(r"\bimage .+$", "image", str(reason)))
    return [(str(reason), int(n)) for reason, n in reasons.value_counts().items()]


def recorded_train_counts(run: RunFolder) -> dict[str, int]:
    """Return training images per class, {} if run.json does not have them."""
    counts = run.run_json.get("split", {}).get("train_counts") or {}
    return {str(name): int(n) for name, n in counts.items()}


def top_confusions(run: RunFolder, split: str) -> list[Json]:
    """Return the commonest confusions: label, predicted, n, total, mean_confidence, missed (a malignant class lost)."""
    frame = run.figures_table(f"confusions_{split}.csv")
    per_class, positive = run.metrics["splits"][split]["per_class"], set(run.metrics.get("positive", []))
    rows = []
    for row in [] if frame is None else frame.to_dict("records"):
        confusion: Json = {
            "label": row["label"], "predicted": row["predicted"], "n": int(row["n"]),
            "mean_confidence": float(row["mean_confidence"]),
            "total": per_class.get(row["label"], {}).get("n", 0),
            "missed": row["label"] in positive and row["predicted"] not in positive,
        }  # fmt: skip
        rows.append(confusion)
    return sorted((row for row in rows if row["n"]), key=lambda row: -int(row["n"]))[:MAX_CONFUSIONS]


def log_rows(log: pd.DataFrame | None) -> Json:
    """Return the log's columns and at most `MAX_LOG_ROWS` rows as short text, and the step between rows."""
    if log is None or not len(log):
        return {"columns": [], "rows": [], "step": 1}
    stride = -(-len(log) // MAX_LOG_ROWS)
    rows = [[_short_number(text) for text in row] for row in log.iloc[::stride].to_numpy().tolist()]
    return {"columns": list(log.columns), "rows": rows, "step": stride}


def _short_number(text: str) -> str:
    return f"{float(text):.4g}" if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", text) else text
