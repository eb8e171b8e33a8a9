"""The loss's second derivative with respect to weights: traces and largest eigenvalues, without the matrix itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Yields the loss of each batch with its share of the whole.
Losses = Callable[[], Iterable[tuple[Tensor, float]]]


def hutchinson(parameters: Sequence[Tensor], losses: Losses, generator: torch.Generator) -> list[float]:
    """Return one estimate of the trace of each parameter's diagonal block of the Hessian: vᵀHv, v of ±1.

    Its mean over many v is the trace (Hutchinson, 1989).

    Args:
        parameters: of the blocks.
        losses: yields the loss of each batch with its share of the whole.
        generator: of the signs.
    """
    signs = [_signs(p, generator) for p in parameters]
    found = torch.zeros(len(parameters), dtype=torch.float64)
    for loss, share in losses():
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        used = [i for i, one in enumerate(gradients) if one is not None and one.requires_grad]
        for i in used:  # each block alone: vectors of other layers would add the blocks off the diagonal
            product = torch.autograd.grad(gradients[i], parameters[i], signs[i], retain_graph=True, allow_unused=True)
            if product[0] is not None:
                found[i] += share * float((product[0] * signs[i]).sum())
    return [float(one) for one in found]


@dataclass(frozen=True)
class Traces:
    """Estimates of the traces of some parameters' diagonal blocks.

    Attributes:
        values: an estimate for each parameter.
        errors: its standard error.
        draws: how many random vectors they are the mean of.
    """

    values: tuple[float, ...]
    errors: tuple[float, ...]
    draws: int


def traces(
    parameters: Sequence[Tensor],
    losses: Losses,
    generator: torch.Generator,
    *,
    draws: int,
    tolerance: float,
    told: Callable[[int, float], None] = lambda number, total: None,
) -> Traces:
    """Return the traces by Hutchinson's method, as HAWQ-V2 uses it (Dong et al. 2020): one product with H a draw.

    The random vector has signs for all parameters at once, so that a draw takes one backward pass more instead of one
    for each. The blocks off the diagonal add to a draw's error, and nothing to its mean.

    Args:
        parameters: of the blocks.
        losses: yields the loss of each batch with its share of the whole.
        generator: of the signs.
        draws: at most so many, at least two.
        tolerance: it ends earlier once a draw moves the mean of the sum of all traces by less than this share.
        told: is told the number of each draw, and the mean of that sum.
    """
    found: list[Tensor] = []
    before = None
    for number in range(1, draws + 1):
        signs = [_signs(p, generator) for p in parameters]
        products = [torch.zeros_like(p) for p in parameters]
        for loss, share in losses():
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
            used = [i for i, one in enumerate(gradients) if one.requires_grad]  # the others are zero, or constant
            if not used:
                continue
            parts = torch.autograd.grad([gradients[i] for i in used], parameters, [signs[i] for i in used],
                                        materialize_grads=True)  # fmt: skip
            products = [product + share * part for product, part in zip(products, parts, strict=True)]
        found.append(torch.stack([(p * s).sum() for p, s in zip(products, signs, strict=True)]).double().cpu())
        mean = float(torch.stack(found).mean(0).sum())
        told(number, mean)
        if before is not None and abs(mean - before) <= tolerance * abs(before):
            break
        before = mean
    values = torch.stack(found)  # (draws, parameters)
    errors = values.std(0) / len(found) ** 0.5
    return Traces(tuple(values.mean(0).tolist()), tuple(errors.tolist()), len(found))


def top_eigenvalues(
    parameters: Sequence[Tensor], losses: Losses, generator: torch.Generator, *, steps: int, tolerance: float
) -> Iterator[float]:
    """Yield the eigenvalue of largest magnitude of each parameter's diagonal block, by power iteration (HAWQ, 2019).

    v ← Hv/‖Hv‖ from a random v, and λ = vᵀHv. The graph of the gradients on all batches is kept for all parameters.

    Args:
        parameters: of the blocks.
        losses: yields the loss of each batch with its share of the whole.
        generator: of the first vectors.
        steps: at most so many for each parameter.
        tolerance: it ends earlier once a step changes λ by at most this share.
    """
    loss = torch.stack([share * loss for loss, share in losses()]).sum()
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if not gradient.requires_grad:  # zero, or constant
            yield 0.0
            continue
        vector = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        eigenvalue = 0.0
        for _ in range(steps):
            vector = vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)
            (product,) = torch.autograd.grad(gradient, parameter, vector, retain_graph=True, materialize_grads=True)
            before, eigenvalue = eigenvalue, float((product * vector).sum())
            if abs(eigenvalue - before) <= tolerance * abs(eigenvalue):
                break
            vector = product
        yield eigenvalue


def _signs(parameter: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, parameter.shape, generator=generator) * 2.0 - 1).to(parameter.device)
