"""Estimators of H g that `benchmarks.precision` compares, on lists of tensors."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.precision_models import Batch
from flatopt import GradRegOptimizer, Stats
from flatopt.measure import gradient, hessian_product

MODES = ("float32", "autocast", "bfloat16")
Tensors = list[Tensor]
Closure = Callable[[], object]


def rounded(value: Tensor, generator: torch.Generator | None) -> Tensor:
    """A float32 tensor as bfloat16: to nearest, or stochastically where a generator is given.

    Stochastic: up with the probability that makes the mean exact. bfloat16 is the upper half of a
    float32, so random bits are added below it and cut off.
    """
    if generator is None:
        return value.bfloat16()
    bits = value.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, generator=generator)
    return ((bits + noise) & -65536).view(torch.float32).bfloat16()


@dataclass
class Problem:
    """One model, batch and precision, with the exact product to compare with.

    Attributes:
        params: the perturbed weights, in the precision of the mode.
        closure: zero_grad, forward, backward in that precision. halves: on half of the rows each.
        unrounded: the same loss (and old log-probs) without autocast.
        g: the gradient in that precision, kept as float32.
        theta, length: norms of the weights and of g.
        wide_params, wide_closure: the same weights as float32, and the closure on them in float32.
        exact_g, exact: g and H g of these.
    """

    params: Sequence[Tensor]
    closure: Closure
    halves: list[Closure]
    unrounded: Closure
    g: Tensors
    theta: float
    length: float
    wide_params: Sequence[Tensor]
    wide_closure: Closure
    exact_g: Tensors
    exact: Tensors

    def eps(self, radius: float) -> float:
        """The multiple of g that is `radius` of the weights' norm long."""
        return radius * self.theta / self.length


def make_problem(model: nn.Module, batch: Batch, mode: str, blocks: bool = False) -> Problem:
    """The batch's problem in one of `MODES`. `model` is in float32 and left as it is.

    Args:
        blocks: only the transformer blocks are perturbed; embedding and head are held fixed.
    """
    net = copy.deepcopy(model)
    if mode == "bfloat16":
        net.bfloat16()
    # The reference has the very weights of the mode: what is measured is arithmetic alone.
    wide = copy.deepcopy(net).float()
    params, wide_params = _perturbed(net, blocks), _perturbed(wide, blocks)

    autocast = mode == "autocast"

    def bound(part: Batch) -> Callable[[], Tensor]:
        with _precision(autocast):
            return part.bind(net)

    loss = bound(batch)
    closure = _closure(loss, params, autocast)
    wide_closure = _closure(batch.bind(wide), wide_params, autocast=False)
    g = gradient(closure, params)
    exact_g = gradient(wide_closure, wide_params)
    return Problem(
        params=params,
        closure=closure,
        halves=[_closure(bound(part), params, autocast) for part in batch.halves()],
        unrounded=_closure(loss, params, autocast=False),
        g=g,
        theta=float(norm(params)),
        length=float(norm(g)),
        wide_params=wide_params,
        wide_closure=wide_closure,
        exact_g=exact_g,
        exact=hessian_product(wide_closure, wide_params, exact_g),
    )


def _perturbed(model: nn.Module, blocks: bool) -> list[nn.Parameter]:
    for name, p in model.named_parameters():
        p.requires_grad_(not blocks or ".layers." in name)
    return [p for p in model.parameters() if p.requires_grad]


def _precision(autocast: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=autocast)


def _closure(loss: Callable[[], Tensor], params: Sequence[Tensor], autocast: bool) -> Closure:
    def closure() -> Tensor:
        for p in params:
            p.grad = None
        with _precision(autocast):
            value = loss()
        value.backward()
        return value

    return closure


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Norm of a list of tensors as one vector."""
    return torch.stack([t.detach().double().norm() for t in tensors]).norm()


@contextmanager
def placed(params: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """`values` in the place of the parameters' inside, the old ones outside."""
    backup = [p.detach().clone() for p in params]
    try:
        with torch.no_grad():
            for p, value in zip(params, values, strict=True):
                p.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(params, backup, strict=True):
                p.copy_(value)


def points(
    params: Sequence[Tensor],
    g: Sequence[Tensor],
    alphas: Sequence[float],
    rounding: str = "nearest",
    seed: int = 0,
) -> list[Tensors]:
    """theta + alpha * g for each alpha, as numbers that 16-bit weights can hold where they are so.

    Args:
        rounding: "nearest"; "stochastic": independent for each alpha; "mirrored" (two alphas, +a
            and -a): stochastic, and the second shift is the first one's negative.
    """
    generator = None if rounding == "nearest" else torch.Generator().manual_seed(seed)
    result: list[Tensors] = []
    for number, alpha in enumerate(alphas):
        if rounding == "mirrored" and number == 1:
            result.append(
                [2 * p.detach().float() - a.float() for p, a in zip(params, result[0], strict=True)]
            )
            continue
        moved = [
            torch.add(p.detach().float(), d, alpha=alpha) for p, d in zip(params, g, strict=True)
        ]
        half = params[0].dtype == torch.bfloat16
        result.append([rounded(v, generator) for v in moved] if half else moved)
    return result


def gradients_at(
    params: Sequence[Tensor], values: Sequence[Tensors], closure: Callable[[], object]
) -> list[Tensors]:
    """The gradients with the parameters at each of `values`."""
    found = []
    for value in values:
        with placed(params, value):
            found.append(gradient(closure, params))
    return found


def forward(problem: Problem, eps: float, rounding: str = "nearest", seed: int = 0) -> Tensors:
    """(grad(theta + eps g) - g) / eps."""
    at = points(problem.params, problem.g, [eps], rounding, seed)
    (g2,) = gradients_at(problem.params, at, problem.closure)
    return [(b - a) / eps for a, b in zip(problem.g, g2, strict=True)]


def both_sides(
    problem: Problem, eps: float, rounding: str = "nearest", seed: int = 0
) -> tuple[Tensors, Tensors]:
    """The gradients at theta + eps g and at theta - eps g."""
    at = points(problem.params, problem.g, [eps, -eps], rounding, seed)
    ahead, behind = gradients_at(problem.params, at, problem.closure)
    return ahead, behind


def slope(ahead: Tensors, behind: Tensors, eps: float) -> Tensors:
    """The central difference, (grad(theta + eps g) - grad(theta - eps g)) / 2 eps."""
    return [(a - b) / (2 * eps) for a, b in zip(ahead, behind, strict=True)]


def even_to_odd(problem: Problem, ahead: Tensors, behind: Tensors) -> float:
    """||(g+ + g-)/2 - g|| / ||(g+ - g-)/2||: curvature of the gradient, or rounding; not slope.

    0 where the gradient is linear in the step and nothing is rounded.
    """
    even = [(a + b) / 2 - g for a, b, g in zip(ahead, behind, problem.g, strict=True)]
    odd = [(a - b) / 2 for a, b in zip(ahead, behind, strict=True)]
    return float(norm(even) / norm(odd))


def alternating(problem: Problem, eps: float) -> Tensors:
    """Half of the rows at theta + eps g, the others at theta - eps g: one further pass in all.

    ``((g_a(+) - g_a) - (g_b(-) - g_b)) / eps`` with g = (g_a + g_b) / 2: exact to first order; the
    second-order errors of the halves have opposite signs.
    """
    total = [torch.zeros_like(d) for d in problem.g]
    at = points(problem.params, problem.g, [eps, -eps])
    for closure, value, sign in zip(problem.halves, at, (1.0, -1.0), strict=True):
        here = gradient(closure, problem.params)
        (there,) = gradients_at(problem.params, [value], closure)
        for t, a, b in zip(total, here, there, strict=True):
            t.add_(b - a, alpha=sign / (2 * eps))
    return total


def exact(problem: Problem) -> Tensors:
    """Double backward in the precision of the mode."""
    return hessian_product(problem.closure, problem.params, problem.g)


def wide_passes(problem: Problem, eps: float) -> Tensors:
    """The direction from the mode's g; both gradients of the difference in float32."""
    at = points(problem.wide_params, problem.g, [eps, -eps])
    ahead, behind = gradients_at(problem.wide_params, at, problem.wide_closure)
    return slope(ahead, behind, eps)


def wide_second(problem: Problem, eps: float) -> Tensors:
    """g2 in float32 and g1 in the mode's precision: what must not be mixed."""
    at = points(problem.wide_params, problem.g, [eps])
    (g2,) = gradients_at(problem.wide_params, at, problem.wide_closure)
    return [(b - a) / eps for a, b in zip(problem.g, g2, strict=True)]


def flatopt(problem: Problem, wide: bool = False, **options: Any) -> tuple[Tensors, Stats]:
    """What GradRegOptimizer adds to ``.grad``, divided by the strength; and its stats.

    Args:
        wide: run the perturbed passes without autocast.
        options: of GradRegOptimizer.
    """
    # a penalty much longer than g1, lest rounding of the sum in 16-bit gradients count as error
    strength = 16.0 * problem.length / float(norm(problem.exact))
    base = torch.optim.SGD(list(problem.params), lr=0.0)
    optimizer = GradRegOptimizer(base, strength=strength, **options)
    problem.closure()
    g1 = [grad_of(p) for p in problem.params]
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            (problem.unrounded if wide else problem.closure)()
    combined = [grad_of(p) for p in problem.params]
    optimizer.zero_grad()
    if optimizer.stats.skipped:
        raise RuntimeError(f"flatopt left GR out: {optimizer.stats.skipped}")
    penalty = [(c - g) / strength for c, g in zip(combined, g1, strict=True)]
    return penalty, optimizer.stats


def grad_of(p: Tensor) -> Tensor:
    """A float32 copy of the parameter's gradient."""
    assert p.grad is not None
    return p.grad.detach().float().clone()


def compare(estimate: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, float]:
    """Cosine, and length of the error relative to the exact value; sums in float64."""
    a = torch.cat([t.flatten() for t in estimate]).double()
    b = torch.cat([t.flatten() for t in exact]).double()
    cosine = torch.dot(a, b) / (a.norm() * b.norm())
    return cosine.item(), ((a - b).norm() / b.norm()).item()
