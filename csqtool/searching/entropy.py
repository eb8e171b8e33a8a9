"""Entropy: weights trained for a size of the packed file, in which a layer takes its entropy, not its planes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from csqtool import csq
from csqtool.nn.coded import CodedWeight, bisected_step, code_lengths
from csqtool.nn.levels import Levels
from csqtool.nn.weights import Weight
from csqtool.searching.method import BaseMethod, MethodContext, groups_with_steps
from csqtool.searching.options import EntropyOptions
from csqtool.searching.packed_size import SLACK

# Training aims this much above the integers' bytes that the target leaves; rounding at the end takes them back, so
# that the file ends just below the target. The error of a slightly larger file is smaller than that of a smaller one.
AIM = 1.003
GAIN = 0.02  # by which the price of a bit, in squared steps, rises in a training step for the relative excess of bits
FINER = 0.2  # by which steps shrink in a training step for the relative lack of bits
TOO_MUCH = 0.05  # relative excess of bits from which step sizes do not shrink
HIGHEST_PRICE = 1.0  # in training
LAST_PRICE = 1e8  # in rounding at the end; by then all integers are zero
HALVINGS = 12
TAILS = 2  # planes that the largest weights need beyond the bits of all
MOST_PLANES = 7  # integers of eight bits
FINE_BITS = 3.0  # a weight, from which steps may be made finer after training
FINEST = 0.25  # by this factor at most
LEAST_BITS = 0.01  # a weight; a course ends no lower


class Entropy(BaseMethod[CodedWeight]):
    """Trains latent weights and step sizes with the task's loss and λ·(bits of the entropy-coded integers).

    The bits follow a course: from those at the start, along a line within the first share of the training, to those
    that the target size leaves for integers. The price of a bit in rounding is steered so that they stay on it, and λ
    is proportional to it: high at first, and low when step sizes and weights have adapted.
    """

    description = "learned step size, trained for the bytes of the entropy-coded integers"
    counts_bytes = True
    Options = EntropyOptions
    options: EntropyOptions

    def __init__(self, context: MethodContext) -> None:
        budget, options = context.budget, context.options
        assert isinstance(options, EntropyOptions)
        self._share = 0.0
        self._elements = sum(weight.elements for weight in context.weights)
        room = 8 * (budget.limit - budget.fixed_bytes + SLACK * len(context.weights)) / self._elements
        self._step: Tensor | None = None
        self._planes = options.rate_planes
        if len({len(exponents) for exponents in context.scheme.values()}) == 1:
            bits = options.rate_start * room
            self._planes = min(max(options.rate_planes, math.ceil(bits) + TAILS), MOST_PLANES)
            weights = [weight.parameter for weight in context.weights]
            self._step = bisected_step(weights, bits, 2**self._planes - 1)
        super().__init__(context)
        stored = sum(8 * csq.integer_bytes(source.integers().q) for source in self.sources.values()) / self._elements
        entropy = self.entropy()
        course = [entropy, max(AIM * room - (stored - entropy), LEAST_BITS)]
        self._first.course.copy_(torch.tensor(course))

    @property
    def _first(self) -> CodedWeight:
        """The source that has the state of all: checkpoints hold what is in the network."""
        return next(iter(self.sources.values()))

    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> CodedWeight:
        """Return a latent weight; its step is the global one, or the one that fits the given planes best."""
        planes = max(self._planes, exponents[-1] - exponents[0] + 1)
        levels = Levels([b - exponents[0] for b in exponents])
        if self._step is None:
            step = levels.fit_scale(weight.parameter)
        else:  # no layer may begin with zeros only
            step = torch.minimum(self._step, weight.parameter.detach().abs().max().clamp(min=1e-8))
        planes = min(planes, self.budget.max_planes[weight.name])
        return CodedWeight(weight.parameter, step, planes, n_planes=self.config.planes)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups for the latent weights and the step sizes, with the rates of LSQ."""
        return groups_with_steps(self.sources.values(), self.config)

    def at_step(self, share: float) -> None:
        """Remember how much of the training is done, on which the course depends."""
        self._share = share

    def wanted_bits(self) -> float:
        """Return the bits a weight that the course has now."""
        start, end = self._first.course.tolist()
        done = min(1.0, self._share / self.options.rate_press)
        return float(start + (end - start) * done)

    @property
    def price(self) -> float:
        """The price of a bit in rounding, in squared steps."""
        return float(self._first.price)

    @property
    def pressure(self) -> float:
        """λ, the part of the task's loss that a bit a weight counts as."""
        return self.options.rate_strength * self.price

    def regularization(self) -> Tensor:
        """Return λ·(bits a weight)."""
        return self.pressure * torch.stack([source.rate() for source in self.sources.values()]).sum() / self._elements

    def after_step(self) -> None:
        """Limit the change of the step sizes, count the integers, and steer the price of a bit by them."""
        # Finer steps need a higher price for the same bits, with which still finer steps have less loss, and so on
        # until no price holds the bits. So steps do not shrink while there are too many bits.
        excess = self._excess
        shrinking = min(max(1 - excess / TOO_MUCH, 0.0), 1.0)
        # No price is below zero: where even that leaves too few bits, steps are made finer.
        finer = 1.0 if self.price > 0 else 1 + FINER * min(excess, 0.0)
        for source in self.sources.values():
            source.after_step(shrinking, finer)
        change = GAIN * self._excess
        for source in self.sources.values():
            source.price.add_(change).clamp_(0.0, HIGHEST_PRICE)

    @property
    def _excess(self) -> float:
        return self.entropy() / self.wanted_bits() - 1

    def entropy(self) -> float:
        """Return the entropy of the integers in bits a weight, by each layer's running frequencies."""
        found = [(source.counts * code_lengths(source.counts)).sum() for source in self.sources.values()]
        return float(torch.stack(found).sum()) / self._elements

    def status(self) -> dict[str, float]:
        """Return the entropy in bits a weight, λ, and the price of a bit in rounding."""
        return {"entropy": self.entropy(), "lambda": self.pressure, "price": self.price}

    @torch.no_grad()
    def tighten(self, too_large: Callable[[], bool]) -> bool:
        """Round with the lowest price of a bit at which the file is not too large.

        Where no bit needs a price and there are many of them, steps are made finer until they take up the target: an
        integer more is worth little to the loss then, but it is nearer to the trained weight.
        """
        prices = [source.price for source in self.sources.values()]

        def fits(price: float) -> bool:
            for one in prices:
                one.fill_(price)
            return not too_large()

        if fits(0.0):
            if self.entropy() >= FINE_BITS:
                self._refine(too_large)
            return True
        low, high = 0.0, 0.01
        while not fits(high) and high < LAST_PRICE:
            low, high = high, 2 * high
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return fits(high)

    def _refine(self, too_large: Callable[[], bool]) -> None:
        """Make all steps finer by one factor, up to the target size, and none so fine that a weight is clipped."""
        sources = self.sources.values()
        steps = [source.scale.detach().clone() for source in sources]
        finest = [torch.minimum(s.scale, s.latent.abs().max() / s.largest).detach().clone() for s in sources]

        def fits(factor: float) -> bool:
            for source, step, least in zip(sources, steps, finest, strict=True):
                source.scale.copy_(torch.maximum(step * factor, least))
            return not too_large()

        low, high = FINEST, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        fits(high)
