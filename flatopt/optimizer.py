"""GradRegOptimizer: gradient regularization around any torch.optim optimizer."""

import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatopt.guards import (
    CLOSURE_UNDER_SCALER,
    PARTS,
    REPLACED,
    SCALER_NOT_TOLD,
    TWO_PASSES,
    calling_scaler,
    check_base,
    check_modes,
    excluded_ids,
    exclusions,
    has_signal,
    number,
    positive,
    sets_up_state,
    whole_number,
)
from flatopt.passes import Passes
from flatopt.perturb import RNGState
from flatopt.reference import Reference
from flatopt.schedule import RatioStrength, ReferenceReset, Strength
from flatopt.stats import Stats
from flatopt.wrapper import OWN


class GradRegOptimizer(Passes):
    r"""Any optimizer, stepping on the gradient of ``L + strength/2 * ||grad L||^2``.

    .. math:: g_1 + \gamma \hat H g_1, \qquad
              \hat H g_1 = \frac{\nabla L(\theta + \epsilon g_1) - g_1}{\epsilon}

    with :math:`\epsilon` such that ``||theta' - theta|| = radius * ||theta||``. The gradient is
    put together in float32 or wider, left in ``.grad``, and handed to the base optimizer.

    Args:
        base: a torch optimizer that steps from ``.grad``. LBFGS and SparseAdam are refused.
        strength: gamma >= 0, or a callable of the step number (from 0); units of 1 / curvature,
            that is loss * (parameter / gradient)^2. 0 is bitwise the base optimizer.
        ratio: in place of strength: the strength follows ``ratio * EMA(||g1||) / EMA(||H g1||)``,
            so the penalty is ``ratio`` times as long as the gradient whatever the scale of loss,
            reward and model. With neither given, ratio = 1.
        radius: step length relative to the norm of the perturbed parameters. Default by precision:
            see `flatopt.precision.DEFAULT_RADIUS`.
        eps: in place of radius: the step as an absolute multiple of g1 (the paper: 1e-3).
        difference: "forward" (one extra pass), "central" (two) or "exact" (double backward).
            "auto": forward, but central where gradients have 16 bits (bf16 weights, autocast).
        max_ratio: bound on ||penalty gradient|| / ||g1||, also where `ratio` jumps because the
            curvature of one batch is much above the average; g1 and g2 are never clipped.
        exclude: parameters, or names, that are not perturbed and step with g1. A name is whole
            dotted parts found anywhere: "lm_head", "layers.0", "mlp.up_proj.weight". Names need a
            base built from ``model.named_parameters()``.
        warmup: number of steps over which the strength rises linearly from 0.
        every: apply GR in each `every`-th step only; the others are plain steps of the base.
        reference: a `ReferenceReset`; ``reference`` is then a `Reference` policy, reset and saved.
        memory: "fast" needs two buffers of the parameters' size, "lean" one: g2 is added onto g1,
            so `ratio` follows the averages up to the last step (docs/how-to-choose.md).
        offload: keep the weights on the CPU during a pass, where they are on another device.
        fraction: take the penalty on a part of the batch, along the whole gradient; see
            `mark_part`. Costs that share of a pass.
        batch: "halves" takes it from two halves, the gradient of one and the curvature of the
            other: the unbiased estimate of ``strength/2 * ||E grad||^2``; see `mark_part`.

    Raises:
        ValueError: settings that contradict each other or lie outside their range; unknown names.
        TypeError: a base that is not an optimizer.

    Source: Ackermann et al. 2026 (arXiv 2602.18037); Karakida et al. 2023 (arXiv 2210.02720).
    ``strength == eps`` is un-normalised SAM.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> optimizer = GradRegOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), strength=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = ((model(x) - y) ** 2).mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> float(optimizer.stats.curvature) > 0
        True
    """

    _not_copied = frozenset({"_window", "_mark", "_part", "_pool", "stats"})

    def __init__(
        self,
        base: Optimizer,
        strength: Strength | None = None,
        *,
        ratio: float | None = None,
        radius: float | None = None,
        eps: float | None = None,
        difference: str = "auto",
        max_ratio: float | None = None,
        exclude: Iterable[str | Tensor] = (),
        warmup: int = 0,
        every: int = 1,
        reference: ReferenceReset | None = None,
        memory: str = "fast",
        offload: bool = False,
        fraction: float = 1.0,
        batch: str = "whole",
    ) -> None:
        check_base(base)
        check_modes(memory, batch, fraction, difference, max_ratio)
        if strength is not None and ratio is not None:
            raise ValueError("give strength or ratio, not both: ratio sets the strength each step")
        if strength is None and ratio is None:
            ratio = 1.0
        if radius is not None and eps is not None:
            raise ValueError("give radius or eps, not both: both set the length of the shift")
        if isinstance(strength, Real):
            strength = number("strength", strength)
        elif strength is not None and not callable(strength):
            raise TypeError(f"strength must be a number or a callable of step, got {strength!r}")

        super().__init__(base)
        self.strength = strength
        self.ratio_rule = None if ratio is None else RatioStrength(number("ratio", ratio))
        self.radius = None if radius is None else positive("radius", radius)
        self.eps = None if eps is None else positive("eps", eps)
        self.difference = difference
        self.max_ratio = None if max_ratio is None else positive("max_ratio", max_ratio)
        self.warmup = whole_number("warmup", warmup, minimum=0)
        self.every = whole_number("every", every, minimum=1)
        self.exclude = exclusions(exclude)
        self.memory, self.offload = memory, offload
        self.fraction, self.batch = fraction, batch
        self.stats = Stats()
        self.steps_taken = 0
        self.precision: str | None = None  # unknown until the first gradient
        self._warned: set[str] = set()
        self._pool: dict[int, Tensor] = {}
        self._reset_window()
        excluded_ids(self.exclude, self.param_groups)  # unknown names fail here, before any work
        self.reference = None if reference is None else Reference(self._params, reference)

    # ---- the step -------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Combine the gradients and step the base optimizer.

        Clipping inside the closure would destroy the penalty, which is the difference of two
        gradients. Clip the combined gradient, in a hook of the base:
        ``def clip(*_): torch.nn.utils.clip_grad_norm_(params, 1.0)`` and
        ``optimizer.base.register_step_pre_hook(clip)``.

        Args:
            closure: clears the gradients, computes the loss, calls backward and returns the loss,
                as in torch.optim. Called once more per pass, with the same random numbers. Without
                it, `perturbed()` must have been used for this step.

        Returns:
            The closure's first loss (at theta), or None.

        Raises:
            RuntimeError: GR is due and no second gradient was given; a closure under GradScaler.
        """
        if self._window is not None and self._window.active:
            raise RuntimeError(
                f"step() inside perturbed(); it comes after the block:\n{TWO_PASSES}"
            )
        if self.reference:
            self.reference.check_out()
        scaler = calling_scaler()
        replaced = self._drop_stale()
        loss = None
        if closure is not None:
            if scaler is not None:
                raise RuntimeError(CLOSURE_UNDER_SCALER)
            loss = self._run_closure(closure)
        elif self._half_done() or (
            self._strength_factor() and not self._combined and has_signal(self.param_groups)
        ):
            raise RuntimeError(
                "GradRegOptimizer.step() needs a second gradient: pass a closure, "
                f"`optimizer.step(closure)`, or write\n{TWO_PASSES}{REPLACED if replaced else ''}"
            )
        elif (scaler is not None and self._combined and not self._scaler_given) and (
            self.eps is not None or self.ratio_rule is None  # what depends on the scale
        ):
            raise RuntimeError(SCALER_NOT_TOLD)
        setting_up = closure is None and not self._combined and sets_up_state(self.param_groups)
        try:
            if not self._combined:
                due = self._strength_factor()
                why = "the gradient is zero" if due else self._why_plain()
                self.stats = Stats(strength=0.0, skipped=why)
            if not self._skip_base:
                self.base.step()
            if self._norms is not None and self.ratio_rule is not None:
                self.ratio_rule.update(*self._norms)  # not before: a step that fails does not count
        finally:
            self._reset_window()
        if not setting_up:
            self.steps_taken += 1
            if self.reference is not None:
                self.reference.after_step(self.base)
        if setting_up or OWN in self.param_groups[0]:
            self._publish(self._own_numbers())
        return loss

    def _half_done(self) -> bool:
        """After one pass of two: g1 is back in ``.grad``, and the pass forgotten."""
        if self._window is None:
            return False
        self._window.abandon()
        self._reset_window()
        return True

    def _run_closure(self, closure: Callable[[], float]) -> float:
        due = bool(self._strength_factor())
        if due and (self.fraction < 1.0 or self.batch == "halves"):
            kind = "halves" if self.batch == "halves" else "fraction"
            raise RuntimeError(
                "a closure computes the whole batch. For parts of it write the passes yourself:\n"
                + PARTS[kind]
            )
        rng = RNGState.capture(self._devices()) if due else None
        self._half_done()
        before = self._mark.again() if self._mark is not None else None
        with torch.enable_grad():
            loss = closure()
        if before is not None and before.changed:  # the closure computed a gradient of its own
            self._reset_window()
        if not due or self._combined:
            return loss
        assert rng is not None
        after = RNGState.capture(self._devices())
        try:
            for _ in range(self.passes):
                rng.restore()
                with self.perturbed(), torch.enable_grad():
                    closure()
        finally:
            after.restore()
        return loss

    # ---- strength and precision -----------------------------------------------------------------

    def _strength_factor(self) -> float:
        """This step's fixed strength, or for `ratio` the share of it; 0 for a plain step."""
        step = self.steps_taken
        if step % self.every:
            return 0.0
        if self.ratio_rule is not None:
            value = 1.0 if self.ratio_rule.ratio else 0.0
        else:
            value = float(self.strength(step)) if callable(self.strength) else float(self.strength)  # type: ignore[arg-type]
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"strength({step}) returned {value}; it must be finite and >= 0")
        return value * (min(step / self.warmup, 1.0) if self.warmup else 1.0)

    def _why_plain(self) -> str:
        left_out = self.steps_taken % self.every
        return f"every={self.every}: a plain step" if left_out else "the strength is 0"

    # ---- parameters and gradients ---------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as in torch.optim; outside a pass, also forget earlier ones."""
        if self._window is not None and self._window.active:
            self._window.clear(lambda: super(GradRegOptimizer, self).zero_grad(set_to_none))
            return
        super().zero_grad(set_to_none)
        self._reset_window()

    # ---- saved and copied -----------------------------------------------------------------------

    def _own_numbers(self) -> dict[str, Any]:
        """The step number and the averages of `ratio`."""
        rule = self.ratio_rule
        norms = (rule.grad_norm, rule.product_norm) if rule else (0.0, 0.0)
        return {"steps_taken": self.steps_taken, "grad_norm": norms[0], "product_norm": norms[1]}

    def _own_state(self) -> dict[str, Any]:
        """These numbers, and the reference policy if there is one."""
        reference = {"reference": self.reference.state_dict()} if self.reference else {}
        return self._own_numbers() | reference

    def _load_own_state(self, own: dict[str, Any]) -> None:
        names = ("steps_taken", "grad_norm", "product_norm")
        values = [own.get(n, 0.0) for n in names] if isinstance(own, dict) else [None]
        if not all(isinstance(v, (int, float)) and math.isfinite(v) and v >= 0 for v in values):
            raise ValueError(f"'gradreg' in the saved state is damaged: {own!r}")
        self.steps_taken = int(values[0])  # type: ignore[arg-type]
        if self.ratio_rule is not None:
            self.ratio_rule.grad_norm, self.ratio_rule.product_norm = values[1:]  # type: ignore[misc]
        if self.reference is not None:
            self.reference.load_state_dict(own.get("reference"))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset_window()
        self._pool = {}
        self.stats = Stats()

    def __repr__(self) -> str:
        rule = f"ratio={self.ratio_rule.ratio}" if self.ratio_rule else f"strength={self.strength}"
        return f"GradRegOptimizer({rule}, difference={self.difference}, {self.base!r})"
