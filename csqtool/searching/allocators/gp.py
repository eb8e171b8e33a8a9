"""Planes along a curve over depth, by multi-task Bayesian optimisation (the CSQ paper's "Non-Linear" rows)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from csqtool.randomness import drawing_from
from csqtool.searching.allocation import Planes, SchemeAllocator, choices
from csqtool.searching.budget import Budget, uniform
from csqtool.searching.options import GpOptions, Options
from csqtool.searching.trials import Trials

SHARES = (0, 1, 2, 10)  # of --gp-steps: training of a curve, one task each; the last is the one that counts
FIRST = 2 * len(SHARES)  # curves before the first model, two for each task
EVERY = 5  # every fifth curve is tried at the last task
CANDIDATES = 256
CONFIDENCE = 2.0  # deviations that the upper bound lies above the mean
SPREAD = 7.0  # a curve that rises from 0 to 1 spans all numbers of planes
FIT_STEPS = 50  # of L-BFGS; what is found then goes on with the next curve
Points = Sequence[tuple[Tensor, int]]  # controls and task


class Gp(SchemeAllocator):
    """The curve of least loss; a Gaussian process shares what short trainings tell about longer ones.

    A curve is a Bezier curve over the layers' order, from 0 at the first to 1 at the last. It is shifted as far up as
    the budget allows.
    """

    description = "planes along a curve over depth, by multi-task Bayesian optimisation (Gaussian processes)"
    data: ClassVar[str] = "labelled"
    Options: ClassVar[type[Options]] = GpOptions
    requires: ClassVar[str] = "botorch"

    def scheme(self) -> Planes:
        """Return the scheme of least loss after the longest training that was tried."""
        options, progress = self.given.options, self.given.progress
        assert isinstance(options, GpOptions)
        trials = Trials(self, options.trial_rate)
        planes = best_curve(
            self.given.budget,
            lambda planes, share: trials.loss(planes, share * options.gp_steps),
            curves=options.gp_curves,
            controls=options.gp_controls,
            generator=self.generator,
            told=lambda number, loss: progress.step("curves", number, options.gp_curves, {"loss": loss}),
        )
        return {name: uniform(k) for name, k in planes.items()}


def best_curve(
    budget: Budget,
    loss: Callable[[Mapping[str, int], int], float],
    *,
    curves: int,
    controls: int,
    generator: Generator,
    told: Callable[[int, float], None],
) -> Mapping[str, int]:
    """Return the planes of the curve of least loss at the last task.

    Args:
        budget: the limit, the layers in their order, and their bounds.
        loss: of the planes of each layer, after training for a share of `SHARES`; it may be infinite.
        curves: how many are tried, at least one.
        controls: values that describe a curve.
        generator: draws curves.
        told: is told of how many were tried, and of the least loss.
    """
    top = len(SHARES) - 1
    points: list[tuple[Tensor, int]] = []
    losses: list[float] = []
    best, least = on_curve([0.5] * controls, budget), math.inf
    model: Any = None
    for number in range(curves):
        drawn = torch.rand((CANDIDATES, controls), generator=generator, dtype=torch.float64)
        if number < FIRST:  # the first curve is the flat one
            chosen, task = drawn[0] if number else torch.full_like(drawn[0], 0.5), top - number % len(SHARES)
        else:
            # The tasks' covariance starts at random.
            with warnings.catch_warnings(), drawing_from(number), one_thread():
                warnings.simplefilter("ignore")  # few steps of fitting, and what the libraries say of each other
                model = fitted(points, losses, model)
                chosen = most_promising(model, drawn)
                task = top if number % EVERY == EVERY - 1 else most_told(model, chosen)
        planes = on_curve(chosen.tolist(), budget)
        points.append((chosen, task))
        losses.append(loss(planes, SHARES[task]))
        if task == top and losses[-1] < least:
            best, least = planes, losses[-1]
        told(number + 1, least)
    return best


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread within the block: matrices of some 60 rows only wait for others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fitted(points: Points, losses: Sequence[float], before: Any = None) -> Any:
    """Return a Gaussian process of the gain, −loss in deviations, in float64.

    Its kernel is an RBF with a length for each control, times a full covariance of the tasks. Lengths, covariance and
    noise have the highest posterior probability, as far as `FIT_STEPS` lead there from those of `before`.
    """
    from botorch.models import MultiTaskGP
    from botorch.optim.fit import fit_gpytorch_mll_scipy
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x = torch.stack([_at(controls, task) for controls, task in points])
    worst = max((loss for loss in losses if math.isfinite(loss)), default=0.0)
    gain = -torch.tensor([loss if math.isfinite(loss) else worst for loss in losses], dtype=torch.float64)[:, None]
    gain = (gain - gain.mean()) / gain.std().clamp(min=1e-9)
    tasks = list(range(len(SHARES)))
    model = MultiTaskGP(x, gain, task_feature=-1, outcome_transform=None, all_tasks=tasks)
    if before is not None:
        model.load_state_dict(before.state_dict())
    fit_gpytorch_mll_scipy(ExactMarginalLogLikelihood(model.likelihood, model), options={"maxiter": FIT_STEPS})
    return model.eval()


@torch.no_grad()
def most_promising(model: Any, drawn: Tensor) -> Tensor:
    """Return the controls, of those drawn [n, controls], with the highest upper bound of the gain at the last task."""
    found = model.posterior(torch.stack([_at(controls, len(SHARES) - 1) for controls in drawn]))
    return drawn[int((found.mean + CONFIDENCE * found.variance.sqrt()).flatten().argmax())]


@torch.no_grad()
def most_told(model: Any, controls: Tensor) -> int:
    """Return the task that tells most about the last one for its cost: mutual information over training and one."""
    top = len(SHARES) - 1
    noise = float(model.likelihood.noise.mean())
    told = []
    for task, share in enumerate(SHARES):
        covariance = model.posterior(torch.stack([_at(controls, one) for one in (task, top)])).covariance_matrix
        shared, own, wanted = float(covariance[0, 1]), float(covariance[0, 0]) + noise, float(covariance[1, 1])
        squared = min(shared**2 / max(own * wanted, 1e-300), 1 - 1e-12)  # of the correlation
        told.append(-0.5 * math.log1p(-squared) / (1 + share))
    return max(range(len(told)), key=told.__getitem__)


def _at(controls: Tensor, task: int) -> Tensor:
    return torch.cat([controls, controls.new_tensor([float(task)])])


def on_curve(controls: Sequence[float], budget: Budget) -> dict[str, int]:
    """Return the planes of each layer on a Bezier curve that is shifted as far up as the budget allows.

    Args:
        controls: its control values at equal distances, 0 to 1.
        budget: the limit, the layers in their order, and their bounds.
    """
    names, degree = list(budget.elements), len(controls) - 1
    levels = []
    for i in range(len(names)):
        t = i / max(len(names) - 1, 1)
        shares = [math.comb(degree, j) * t**j * (1 - t) ** (degree - j) for j in range(degree + 1)]
        levels.append(SPREAD * sum(share * value for share, value in zip(shares, controls, strict=True)))

    def shifted(by: float) -> dict[str, int]:
        found = {}
        for name, level in zip(names, levels, strict=True):
            allowed = choices(budget, name)
            found[name] = min(max(math.floor(level + by + 1e-9), allowed.start), allowed.stop - 1)
        return found

    # Planes change only where a level passes a whole number.
    steps = sorted({whole - level for level in levels for whole in range(1, 9)}, reverse=True)
    for planes in map(shifted, steps):
        if sum(budget.layer_cost(name, uniform(k)) for name, k in planes.items()) <= budget.room:
            return planes
    return shifted(-2 * SPREAD)
