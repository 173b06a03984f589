"""GradRegOptimizer: gradient regularization around any torch.optim optimizer."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatopt.difference import DIFFERENCES
from flatopt.guards import (
    CLOSURE_UNDER_SCALER,
    REPLACED,
    SCALER_NOT_TOLD,
    TWO_PASSES,
    calling_scaler,
    check_base,
    check_gradients,
    excluded_ids,
    exclusions,
    has_signal,
    number,
    positive,
    scale_of,
    warn_of_eps,
    whole_number,
)
from flatopt.perturb import RNGState, default_radius, low_precision
from flatopt.reference import Reference
from flatopt.schedule import RatioStrength, ReferenceReset, Strength
from flatopt.stats import Stats
from flatopt.window import Mark, Window, kept_gradients
from flatopt.wrapper import OptimizerWrapper


class GradRegOptimizer(OptimizerWrapper):
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
            1e-7 (float64), 1e-5 (float32), 3e-4 (bf16 or fp16 weights, or autocast).
        eps: in place of radius: the step as an absolute multiple of g1 (the paper: 1e-3).
        difference: "forward" (one extra pass), "central" (two) or "exact" (double backward).
        max_ratio: bound on ||penalty gradient|| / ||g1||, also where `ratio` jumps because the
            curvature of one batch is much above the average; g1 and g2 are never clipped.
        exclude: parameters, or names, that are not perturbed and step with g1. A name is whole
            dotted parts found anywhere: "lm_head", "layers.0", "mlp.up_proj.weight". Names need a
            base built from ``model.named_parameters()``.
        warmup: number of steps over which the strength rises linearly from 0.
        every: apply GR in each `every`-th step only; the others are plain steps of the base.
        reference: a `ReferenceReset`; ``reference`` is then a `Reference` policy, reset and saved.

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

    _not_copied = frozenset({"_window", "_mark", "stats"})

    def __init__(
        self,
        base: Optimizer,
        strength: Strength | None = None,
        *,
        ratio: float | None = None,
        radius: float | None = None,
        eps: float | None = None,
        difference: str = "forward",
        max_ratio: float | None = None,
        exclude: Iterable[str | Tensor] = (),
        warmup: int = 0,
        every: int = 1,
        reference: ReferenceReset | None = None,
    ) -> None:
        check_base(base)
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
        if difference not in DIFFERENCES:
            raise ValueError(f"difference must be one of {sorted(DIFFERENCES)}, got {difference!r}")

        super().__init__(base)
        self.strength = strength
        self.ratio_rule = None if ratio is None else RatioStrength(number("ratio", ratio))
        self.radius = None if radius is None else positive("radius", radius)
        self.eps = None if eps is None else positive("eps", eps)
        self.difference = DIFFERENCES[difference]()
        self.max_ratio = None if max_ratio is None else positive("max_ratio", max_ratio)
        self.warmup = whole_number("warmup", warmup, minimum=0)
        self.every = whole_number("every", every, minimum=1)
        self.exclude = exclusions(exclude)
        self.stats = Stats()
        self.steps_taken = 0
        self._low_precision: bool | None = None  # unknown until the first gradient
        self._warned_eps = False
        self._reset_window()
        excluded_ids(self.exclude, self.param_groups)  # unknown names fail here, before any work
        self.reference = None if reference is None else Reference(self._params, reference)

    # ---- the step -------------------------------------------------------------------------------

    @property
    def passes(self) -> int:
        """How many `perturbed()` passes this step needs: 0 where it is a plain step of the base."""
        return len(self.difference.points) if self._strength_factor() else 0

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
        if self.reference:
            self.reference.check_out()
        scaler = calling_scaler()
        replaced = self._drop_stale()
        loss = None
        if closure is not None:
            if scaler is not None:
                raise RuntimeError(CLOSURE_UNDER_SCALER)
            loss = self._run_closure(closure)
        elif self.passes and not self._combined and has_signal(self.param_groups):
            if self._window is not None:  # "central" after one pass of two
                self._window.abandon()
                self._reset_window()
            raise RuntimeError(
                "GradRegOptimizer.step() needs a second gradient: pass a closure, "
                f"`optimizer.step(closure)`, or write\n{TWO_PASSES}{REPLACED if replaced else ''}"
            )
        elif (scaler is not None and self._combined and not self._scaler_given) and (
            self.eps is not None or self.ratio_rule is None  # what depends on the scale
        ):
            raise RuntimeError(SCALER_NOT_TOLD)
        try:
            if not self._combined:
                why = "the gradient is zero" if self.passes else self._why_plain()
                self.stats = Stats(strength=0.0, skipped=why)
            if not self._skip_base:
                self.base.step()
        finally:
            self._reset_window()
        self.steps_taken += 1
        if self.reference is not None:
            self.reference.after_step(self.base)
        return loss

    def _run_closure(self, closure: Callable[[], float]) -> float:
        passes = self.passes
        rng = RNGState.capture(self._devices()) if passes else None
        if not self._combined:  # "central" after one pass of two
            self._reset_window()
        before = self._mark.again() if self._mark is not None else None
        with torch.enable_grad():
            loss = closure()
        if before is not None and before.changed:  # the closure computed a gradient of its own
            self._reset_window()
        if not passes or self._combined:
            return loss
        assert rng is not None
        after = RNGState.capture(self._devices())
        try:
            for _ in range(passes):
                rng.restore()
                with self.perturbed(), torch.enable_grad():
                    closure()
        finally:
            after.restore()
        return loss

    @contextmanager
    def perturbed(self, scaler: Any = None) -> Iterator[None]:
        """Theta' inside, theta again outside, bit for bit, also when an error is raised.

        On entry ``.grad`` must hold g1; inside, run the same forward and backward again; on exit
        ``.grad`` holds the combined gradient, ready for clipping and `step()`. "central" needs two
        such passes: use ``for _ in range(optimizer.passes)``, which also leaves out passes that a
        step does not need. Where a step needs none, g1 is kept unchanged. A batch that is dropped
        with `zero_grad()` leaves nothing behind (nor with ``model.zero_grad()``, unless
        ``set_to_none=False``). Until `step()`, change ``.grad`` in place only.

        Two optimizers on one model, such as Muon and AdamW: wrap both and write
        ``with a.perturbed(), b.perturbed():``. Parameters of an optimizer that is not wrapped would
        get g1 + g2. With ``strength=0`` the second keeps its g1, and its parameters do not move.

        After ``accelerator.prepare(optimizer)`` keep the `GradRegOptimizer` for this method, which
        accelerate's own wrapper does not have.

        Args:
            scaler: the torch GradScaler that scaled the losses of both passes, if there is one;
                call it before ``scaler.unscale_``.

        Raises:
            RuntimeError: no gradient yet, all passes of this step already done, or inside one.
            ValueError: sparse or complex gradients.
        """
        if not self.passes:
            with kept_gradients(self._params()):
                yield
            return
        if self._window is not None and self._window.active:
            raise RuntimeError(
                "perturbed() was entered inside perturbed(); one pass must end before the next:\n"
                f"{TWO_PASSES}"
            )
        self._drop_stale()
        if self._combined:
            raise RuntimeError(
                "perturbed() was already used for this step "
                f"({len(self.difference.points)} pass(es)); call optimizer.step() first, or "
                f"optimizer.zero_grad() to drop it:\n{TWO_PASSES}"
            )
        if self._mark is not None and self._mark.changed:
            self._reset_window()
            raise RuntimeError(
                "the gradients changed between two passes of one step. Call optimizer.zero_grad() "
                f"before another batch:\n{TWO_PASSES}"
            )
        if self._window is None:
            self._scaler_given = scaler is not None
            self._window = self._open_window(scale_of(scaler, self))
        self._mark = None
        window = self._window
        try:
            with window.next_pass():
                yield
        except BaseException as error:
            window.abandon()
            self._reset_window()
            self.stats = Stats(skipped=f"the second pass raised {type(error).__name__}")
            raise
        if window.complete:
            self._combine(window)
        self._mark = Mark((*window.moved, *window.kept))

    def _open_window(self, scale: float) -> Window:
        excluded = excluded_ids(self.exclude, self.param_groups)
        every = self._params()
        params = [p for p in every if p.grad is not None]
        if not params:
            raise RuntimeError(
                "perturbed() found no gradient: call backward() on the loss before it. Write\n"
                f"{TWO_PASSES}"
            )
        check_gradients(params)
        moved = [p for p in params if id(p) not in excluded]
        return Window(
            moved,
            [p for p in params if id(p) in excluded],
            [p for p in every if p.grad is None],
            self.difference,
            radius=self._radius_for(moved),
            eps=self.eps,
            scale=scale,
            measure=True,
        )

    def _combine(self, window: Window) -> None:
        factor = self._strength_factor()
        self.stats = window.combine(
            lambda grad_norm, product_norm: (
                factor * self.ratio_rule.update(grad_norm, product_norm)
                if self.ratio_rule is not None
                else factor
            ),
            self.max_ratio,
        )
        self._window, self._combined = None, True
        # A gradient that is not finite would ruin the weights and the base's moments. Under a
        # scaler it must stay visible: the scaler skips the step and lowers its scale.
        self._skip_base = window.bad_gradient

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

    def _radius_for(self, params: list[Tensor]) -> float | None:
        """The relative length of the shift; None where `eps` sets it."""
        if self._low_precision is None:
            self._low_precision = low_precision(params, [p.grad for p in params])
        if self.eps is None:
            return self.radius or default_radius(params, bool(self._low_precision))
        if self._low_precision and not self._warned_eps:
            self._warned_eps = True
            warn_of_eps(self.eps, stacklevel=6)
        return None

    # ---- parameters and gradients ---------------------------------------------------------------

    def _reset_window(self) -> None:
        self._window: Window | None = None
        self._combined = False
        self._skip_base = False
        self._scaler_given = False
        self._mark: Mark | None = None

    def _drop_stale(self) -> bool:
        """Forget passes whose gradients were replaced or cleared and whose step never came."""
        stale = self._mark is not None and self._mark.replaced
        if stale:
            self._reset_window()
        return stale

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as in torch.optim; outside a pass, also forget earlier ones."""
        super().zero_grad(set_to_none)
        if self._window is None or not self._window.active:
            self._reset_window()

    # ---- saved and copied -----------------------------------------------------------------------

    def _own_state(self) -> dict[str, Any]:
        """The step number, the averages of `ratio`, and the reference policy if there is one."""
        rule = self.ratio_rule
        norms = (rule.grad_norm, rule.product_norm) if rule else (0.0, 0.0)
        own = {"steps_taken": self.steps_taken, "grad_norm": norms[0], "product_norm": norms[1]}
        return own | ({"reference": self.reference.state_dict()} if self.reference else {})

    def _load_own_state(self, own: dict[str, Any]) -> None:
        self.steps_taken = int(own.get("steps_taken", 0))
        if self.ratio_rule is not None:
            self.ratio_rule.grad_norm = float(own.get("grad_norm", 0.0))
            self.ratio_rule.product_norm = float(own.get("product_norm", 0.0))
        if self.reference is not None:
            self.reference.load_state_dict(own.get("reference"))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset_window()
        self.stats = Stats()

    def __repr__(self) -> str:
        rule = f"ratio={self.ratio_rule.ratio}" if self.ratio_rule else f"strength={self.strength}"
        kind = type(self.difference).__name__
        return f"GradRegOptimizer({rule}, difference={kind}, {self.base!r})"
