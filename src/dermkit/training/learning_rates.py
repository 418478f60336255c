"""The learning rates of a phase: warm-up, schedule, and a rate for each parameter group."""

from dataclasses import dataclass

import numpy as np
import torch

from dermkit.recipes.training_specs import OptimSpec, Phase


@dataclass(frozen=True)
class LearningRates:
    """The learning rates of a phase, by epoch and step.

    base: the recipe's rate of each parameter group, the head's first. n_steps: of an epoch. scale: factor of all rates
    after values that were not finite.
    """

    base: tuple[float, ...]
    phase: Phase
    spec: OptimSpec
    n_steps: int
    scale: float

    def set(self, optimizer: torch.optim.Optimizer, *, epoch: int, step: int) -> float:
        """Set the rates of a step (0 = the epoch's first) of an epoch (0 = the phase's first); returns the head's."""
        factor = self._schedule_factor(epoch) * self._warmup_factor(epoch * self.n_steps + step)
        rates = [base_rate * factor * self.scale for base_rate in self.base]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return rates[0]

    def _schedule_factor(self, epoch: int) -> float:
        """Return the factor of an epoch.

        The cosine is that of Loshchilov and Hutter 2017 (arXiv:1608.03983), equation 5 with a minimum of 0 and no
        restart, one rate an epoch. The closed form and not torch's scheduler, which steps recursively and gives other
        last bits.
        """
        if self.spec.schedule == "constant":
            return 1.0
        return 0.5 * (1 + float(np.cos(np.pi * epoch / self.phase.epochs)))

    def _warmup_factor(self, step: int) -> float:
        """Return the factor of a step of the phase: 1/W, 2/W, ... 1 in the W steps of the warm-up, then 1.

        The line begins at 0 one step before the first, as a step at a rate of 0 would do nothing.
        """
        n_warmup_steps = round(self.spec.warmup_epochs * self.n_steps)
        return (step + 1) / n_warmup_steps if step < n_warmup_steps else 1.0
