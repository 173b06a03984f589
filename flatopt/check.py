"""gradreg_check: torch.autograd.gradcheck for GR: is the difference accurate on YOUR model?"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatopt.difference import DIFFERENCES
from flatopt.guards import exclusions, positive
from flatopt.measure import gradient, hessian_product
from flatopt.perturb import RNGState, displaced
from flatopt.precision import computed_in, default_difference, default_radius
from flatopt.rounding import Dither
from flatopt.vectors import dot, norm

GRID = (1e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class RadiusResult:
    """Accuracy of the difference at one step length.

    Attributes:
        radius: ||theta' - theta|| / ||theta||.
        cosine: of the estimate with the exact H g.
        error: ||estimate - H g|| / ||H g||.
        realised_step: length of the shift that survived rounding / the intended one.
    """

    radius: float
    cosine: float
    error: float
    realised_step: float


@dataclass(frozen=True)
class CheckResult:
    """What `gradreg_check` found.

    Attributes:
        used: the result at the radius that was asked for, or at the default for this precision.
        best: the result of least error on the grid; its radius is the recommended one.
        grid: all results, by radius.
        grad_norm: ||g||.
        product_norm: ||H g||; grad_norm / product_norm is the strength at which the penalty is as
            long as the gradient.
        difference: the one that was judged.
        precision: what the gradients were computed in.
    """

    used: RadiusResult
    best: RadiusResult
    grid: tuple[RadiusResult, ...]
    grad_norm: float
    product_norm: float
    difference: str
    precision: str | None

    @property
    def recommended_radius(self) -> float:
        """The radius of least error on this model, dtype and batch."""
        return self.best.radius

    def __str__(self) -> str:
        lines = [
            f"{self.difference} difference, gradients computed in {self.precision or 'float32'}"
        ]
        lines += ["radius    cosine     error  realised step"]
        for r in self.grid:
            mark = " <- used" if r == self.used else ""
            mark += " <- recommended" if r == self.best else ""
            lines.append(
                f"{r.radius:<8.0e}{r.cosine:>8.4f}{r.error:>10.2g}{r.realised_step:>15.3f}{mark}"
            )
        return "\n".join(lines)


def gradreg_check(
    model: nn.Module | Iterable[Tensor],
    closure: Callable[[], object],
    *,
    radius: float | None = None,
    difference: str = "auto",
    exclude: Iterable[Tensor] = (),
    min_cosine: float = 0.9,
    raise_error: bool = True,
) -> CheckResult:
    """Compare the finite difference with the exact Hessian-gradient product.

    Args:
        model: a module, or its parameters.
        closure: zero_grad, loss, backward on one batch; it is called about 12 times, with the same
            random numbers each time.
        radius: the step length to judge; default: that of `GradRegOptimizer` for this precision.
        difference: "forward", "central", or "auto" as in `GradRegOptimizer`.
        exclude: parameters (not names) left out of the perturbation.
        min_cosine: least acceptable cosine with the exact product at `radius`.
        raise_error: raise below `min_cosine`; otherwise only report.

    Returns:
        `CheckResult`; print it for the table. Parameters, ``.grad``, the state of the random number
        generators and, where a module is given, its buffers (BatchNorm's) are unchanged.

    Raises:
        ValueError: the cosine is below `min_cosine`; the message gives the radius to use. Or a
            setting lies outside its range.
        TypeError: `exclude` holds something other than parameters.
        RuntimeError: no gradient, or an operation without a second derivative.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> x = torch.randn(16, 4)
        >>> result = gradreg_check(net, lambda: (net(x) ** 2).mean().backward())
        >>> result.used.cosine > 0.99
        True
    """
    if difference not in ("auto", "forward", "central"):
        raise ValueError(f"difference must be 'auto', 'forward' or 'central', got {difference!r}")
    if radius is not None:
        radius = positive("radius", radius)
    left_out = {id(p) for p in exclusions(exclude, names=False)}
    given = list(model.parameters() if isinstance(model, nn.Module) else model)
    params = [p for p in given if p.requires_grad and id(p) not in left_out]
    if not params:
        raise ValueError("no parameter to check: all are frozen or excluded")

    rng = RNGState.capture([p.device for p in params])
    held = [p.grad for p in given]
    buffers = list(model.buffers()) if isinstance(model, nn.Module) else []
    kept = [b.clone() for b in buffers]
    try:
        for p in given:
            p.grad = None
        result = _measure(params, closure, radius, difference, rng)
    finally:
        rng.restore()
        for p, grad in zip(given, held, strict=True):
            p.grad = grad
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)
    if raise_error and not result.used.cosine >= min_cosine:
        raise ValueError(_advice(result, min_cosine))
    return result


def _measure(
    params: list[Tensor],
    closure: Callable[[], object],
    radius: float | None,
    difference: str,
    rng: RNGState,
) -> CheckResult:
    def same_gradient() -> list[Tensor]:
        rng.restore()
        return gradient(closure, params)

    g = same_gradient()
    length, theta = float(norm(g)), float(norm(params)) or 1.0
    if not math.isfinite(length) or length == 0.0:
        raise RuntimeError(
            f"the gradient's norm is {length}: nothing to check. The closure must compute the loss "
            "and call loss.backward(), on a batch with a signal"
        )
    precision = computed_in(params, g)
    if difference == "auto":
        difference = default_difference(precision)
    rng.restore()
    exact = hessian_product(closure, params, g)
    size = float(norm(exact))
    if size == 0.0:
        raise RuntimeError("H g is exactly zero on this batch: GR has nothing to do here")

    if radius is None:
        radius = default_radius(precision)
    results = {
        r: _judge(r, r * theta / length, params, g, exact, difference, same_gradient)
        for r in sorted({*GRID, radius})
    }
    finite = [r for r in results.values() if math.isfinite(r.error)]
    if not finite:
        raise RuntimeError(
            "no step length gave a finite gradient; the loss is not finite near theta"
        )
    return CheckResult(
        used=results[radius],
        best=min(finite, key=lambda r: r.error),
        grid=tuple(results.values()),
        grad_norm=length,
        product_norm=size,
        difference=difference,
        precision=precision,
    )


def _judge(
    radius: float,
    eps: float,
    params: Sequence[Tensor],
    g: list[Tensor],
    exact: list[Tensor],
    difference: str,
    same_gradient: Callable[[], list[Tensor]],
) -> RadiusResult:
    method = DIFFERENCES[difference]()
    grads, realised = [], 1.0
    for number, point in enumerate(method.points):
        # 16-bit weights are rounded at random, as the optimizer does
        with displaced(params, g, eps * point, True, dither=Dither(number)) as ratio:
            grads.append(same_gradient())
        if ratio is not None and point > 0:
            realised = float(ratio)
    d, factor = method.combine(g, grads, eps)
    estimate = [factor * t for t in d]
    size = float(norm(exact))
    cosine = float(dot(estimate, exact)) / max(float(norm(estimate)) * size, 1e-300)
    error = float(norm([a - b for a, b in zip(estimate, exact, strict=True)])) / size
    return RadiusResult(radius, cosine, error, realised)


def _advice(result: CheckResult, min_cosine: float) -> str:
    best = result.best
    text = (
        f"the finite difference is not accurate here: cosine {result.used.cosine:.3f} with the "
        f"exact product at radius {result.used.radius:g} (wanted >= {min_cosine:g}).\n{result}\n"
    )
    if best.cosine >= min_cosine:
        return text + f"Use GradRegOptimizer(..., radius={best.radius:g})."
    if result.precision == "16 bits":
        return text + (
            "No radius is accurate in 16 bits on this batch: try difference='central', compute "
            "the loss in float32, or difference='exact'."
        )
    return text + "No radius is accurate on this batch: try difference='central' or 'exact'."
