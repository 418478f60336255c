"""Evidence that values are no longer drawn as before: a test martingale, whose false-alarm rate holds for ever.

A gambler with a capital of 1 bets on each new rank. If nothing changed, no strategy makes money on average, and by
Ville's inequality the chance that the capital ever reaches 1 / alpha is at most alpha, however long and however often
somebody looks. The strategy is a mixture: each bet (a shift up or down, of some size, or another spread) may begin at
any row, with prior weights over the rows that fall slowly, so that drift in the third year is found as well.

Shapes: N values, in the order of the log; K bets.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, ndtr

from dermkit.metrics.stats.arrays import Bools, Floats, Ints

SHIFTS = (-2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0)
"""Shifts of a number that are bet on, in standard deviations of the reference."""
SPREADS = (0.6, 1.6, 2.5)
"""Standard deviations that are bet on, in those of the reference."""
ODDS_RATIOS = (0.25, 0.5, 0.7, 1.4, 2.0, 4.0)
"""Changes of the odds of an event that are bet on."""
HIGHER_ODDS_RATIOS = (1.4, 2.0, 4.0)
"""The same, where the reference says only how frequent the event is at most."""
RANK_SHARES = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99)
"""Shares of the highest ranks that are bet to come more or less often. Fixed: ranks are uniform given earlier ranks,
but not given how many of the earlier values were events."""

LOG_ODDS_SHIFTS = (-1.4, -0.7, -0.35, 0.35, 0.7, 1.4)
"""Errors of the log odds of P(malignant) that are bet on, true less stated."""


def number_bets(scores: Floats) -> Floats:
    """Return the log of what each bet pays on (N,) standard normal scores, (N, K): ratios of normal densities."""
    shifts, spreads = np.array(SHIFTS), np.array(SPREADS)
    of_shifts = scores[:, None] * shifts - shifts**2 / 2
    of_spreads = -np.log(spreads) + scores[:, None] ** 2 / 2 * (1 - 1 / spreads**2)
    return np.concatenate([of_shifts, of_spreads], axis=1)


def event_bets(scores: Floats, odds_ratios: tuple[float, ...]) -> Floats:
    """Return the log of what each bet pays on the ranks of events, (N, K times the number of `RANK_SHARES`).

    scores: (N,) standard normal scores of 0 and 1. A rank is bet to be among the highest of each share, where those of
    events are, with other odds.
    """
    is_among = np.asarray(ndtr(-scores)[:, None] <= np.array(RANK_SHARES), dtype=bool)
    return np.concatenate(
        [
            event_gains(is_among[:, number], np.full(len(scores), share), odds_ratios)
            for number, share in enumerate(RANK_SHARES)
        ],
        axis=1,
    )


def event_gains(is_event: Bools, shares: Floats, odds_ratios: tuple[float, ...]) -> Floats:
    """Return the log of how much likelier each bet makes (N,) events, (N, K): without the chance that ranks have.

    It tells since when events are more or less frequent; evidence rests on `event_bets` alone.
    """
    odds = (shares / (1 - shares))[:, None] * np.array(odds_ratios)
    bet_shares = odds / (1 + odds)
    log_gains, log_losses = np.log(bet_shares / shares[:, None]), np.log((1 - bet_shares) / (1 - shares[:, None]))
    return np.asarray(np.where(is_event[:, None], log_gains, log_losses), dtype=np.float64)


def outcome_bets(residuals: Floats) -> Floats:
    """Return the log of what each bet pays on outcomes given their own P(malignant), (N, K): fair if it is right.

    residuals: (N,) observed (0 or 1) less P(malignant), p. A bet pays q / p for a malignant image and (1 - q) / (1 - p)
    for another, where the log odds of q are those of p with an error of `LOG_ODDS_SHIFTS` added. A residual of 0 is
    an outcome that p was sure of, and pays 1.
    """
    is_malignant = residuals[:, None] > 0
    probabilities = np.where(is_malignant, 1 - residuals[:, None], -residuals[:, None])
    shifts = np.array(LOG_ODDS_SHIFTS)
    return np.asarray(is_malignant * shifts - np.log1p(probabilities * np.expm1(shifts)), dtype=np.float64)


def cash_after(n_rows: Ints) -> Floats:
    """Return the share of the capital that no bet holds after so many rows: from 1 down to 0, ever more slowly."""
    return np.asarray(1 / np.log(np.e + n_rows), dtype=np.float64)


@dataclass(frozen=True)
class Standing:
    """The evidence of a statistic after one value.

    log_capital: natural log. bet: number of the gain that grew most. start: time of its begin, in seconds.
    """

    log_capital: float = 0.0
    bet: int = 0
    start: float = math.nan


@dataclass(frozen=True, eq=False)
class EvidencePath:
    """What the capital was after each of N values.

    log_capital: (N,) natural log. bets: (N,) number of the gain that grew most since its best start. starts: (N,) the
    time of the value with which that gain began.
    """

    log_capital: Floats
    bets: Ints
    starts: Floats

    def standing(self, index: int) -> Standing:
        """Return the evidence after the value of this index."""
        return Standing(float(self.log_capital[index]), int(self.bets[index]), float(self.starts[index]))


class Evidence:
    """The capital of one statistic."""

    def __init__(self, n_bets: int, n_gains: int | None = None) -> None:
        """n_gains: number of gains by which the begin of a change is found; None = `n_bets`."""
        self.n = 0
        self._log_capitals = np.full(n_bets, -np.inf)
        n_gains = n_bets if n_gains is None else n_gains
        self._totals = np.zeros(n_gains)
        self._lowest = np.zeros(n_gains)
        self._starts = np.full(n_gains, np.nan)

    def update(self, log_payments: Floats, times: Floats, gains: Floats | None = None) -> EvidencePath:
        """Take what the bets pay on the next values, (N, K), and the times of these, (N,) in seconds.

        gains: (N, number of gains) by which the begin of a change is found; None = the payments.
        """
        n, n_bets = log_payments.shape
        if not n:
            return EvidencePath(np.empty(0), np.empty(0, np.int64), np.empty(0))
        if not self.n:
            self._starts[:] = times[0]
        row_numbers = self.n + np.arange(1, n + 1)
        new_bets = np.log(cash_after(row_numbers - 1) - cash_after(row_numbers)) - np.log(n_bets)
        sums = np.cumsum(log_payments, axis=0)
        entries = np.concatenate([self._log_capitals[None], new_bets[:, None] - (sums - log_payments)])
        log_capitals = sums + np.logaddexp.accumulate(entries, axis=0)[1:]
        path = self._path(log_payments if gains is None else gains, log_capitals, times)
        self._log_capitals, self.n = log_capitals[-1], self.n + n
        return path

    def _path(self, gains: Floats, log_capitals: Floats, times: Floats) -> EvidencePath:
        """Return the path, and remember since when the sum of each bet's gains rises (Page's CUSUM)."""
        sums = np.cumsum(gains, axis=0)
        before = self._totals + sums - gains
        lowest = np.minimum.accumulate(np.concatenate([self._lowest[None], before]), axis=0)
        is_new = lowest[1:] < lowest[:-1]
        latest_new = np.maximum.accumulate(np.where(is_new, np.arange(1, len(times) + 1)[:, None], 0), axis=0)
        starts = np.where(latest_new > 0, times[latest_new - 1], self._starts)
        bets = (self._totals + sums - lowest[1:]).argmax(axis=1)
        self._totals, self._lowest, self._starts = self._totals + sums[-1], lowest[-1], starts[-1]
        cash = np.log(cash_after(self.n + np.arange(1, len(times) + 1)))
        log_capital = np.logaddexp(cash, logsumexp(log_capitals, axis=1))
        return EvidencePath(log_capital, bets, starts[np.arange(len(bets)), bets])


def mean_capital(paths: list[tuple[Bools, EvidencePath]], latest: Floats) -> Floats:
    """Return the log of the mean capital of C statistics after each of N rows, (N,).

    paths: of each statistic, which of the N rows it had a value in, and its path over these. latest: (C,) log capital
    of each before these rows; brought up to date. A mean of martingales is one, so a check of several statistics
    needs no correction.
    """
    columns = []
    for number, (mask, path) in enumerate(paths):
        values = np.concatenate([[latest[number]], path.log_capital])
        column = values[np.cumsum(mask)]
        columns.append(column)
        latest[number] = values[-1]
    return np.asarray(logsumexp(np.stack(columns, axis=1), axis=1) - np.log(len(paths)), dtype=np.float64)
