"""Images that some runs have right and others wrong, the most divided first."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

TIE_SEED = 0
"""Of the order of images on which equally many runs are wrong: the page shows the first ones alone."""


def disagreement_table(rows_by_entry: Mapping[str, Sequence[pd.DataFrame]]) -> pd.DataFrame | None:
    """Return images that some runs have right and others wrong, most divided first; None without shared images.

    rows_by_entry: entry -> predictions of each of its runs, by image id. Images on which equally many runs are wrong
    are in random order (`TIE_SEED`): in that of their names a sheet of the first would show one class or one source.
    """
    all_rows = [rows for runs in rows_by_entry.values() for rows in runs]
    image_ids = sorted(set.intersection(*(set(rows.index) for rows in all_rows)))
    if not image_ids or any(rows.index.has_duplicates for rows in all_rows):
        return None
    table = all_rows[0].loc[image_ids, ["path", "label"]].reset_index()
    n_wrong = np.zeros(len(image_ids), dtype=np.int64)
    for name, runs in rows_by_entry.items():
        answers = np.stack([rows.loc[image_ids, "predicted"].to_numpy(dtype=object) for rows in runs])
        table[name] = [_majority_answer(column) for column in answers.T.tolist()]
        n_wrong += (answers != table["label"].to_numpy(dtype=object)).sum(axis=0)
    table.insert(3, "n_wrong", n_wrong)
    imbalance = np.abs(n_wrong - len(all_rows) / 2)
    order = np.lexsort((np.random.default_rng(TIE_SEED).permutation(len(image_ids)), imbalance))
    is_divided = (n_wrong > 0) & (n_wrong < len(all_rows))
    return table.iloc[order[is_divided[order]]].reset_index(drop=True)


def _majority_answer(answers: Sequence[str]) -> str:
    """Return a run's prediction, or that of most runs with its count; two with equally many are both named."""
    if len(answers) == 1:
        return answers[0]
    counts = Counter(answers)
    n_votes = max(counts.values())
    leaders = sorted(answer for answer, count in counts.items() if count == n_votes)
    return f"{' or '.join(leaders)} ({n_votes} of {len(answers)}{' each' * (len(leaders) > 1)})"
