"""GradRegOptimizer: gradient regularization around any torch.optim optimizer."""

import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer, SparseAdam

from flatopt.difference import DIFFERENCES
from flatopt.perturb import DEFAULT_RADIUS, LOW_PRECISION, RNGState, looks_low_precision
from flatopt.schedule import RatioStrength, Strength
from flatopt.stats import Stats
from flatopt.window import Window

_TWO_PASSES = """\
    loss_fn(model, batch).backward()
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            loss_fn(model, batch).backward()
    optimizer.step()"""


class GradRegOptimizer(Optimizer):
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
        max_ratio: bound on ||penalty gradient|| / ||g1||; g1 and g2 themselves are never clipped.
        exclude: parameters, or names (exact, or of a module that holds them), that are not
            perturbed and step with g1. Names need a base built from ``model.named_parameters()``.
        warmup: number of steps over which the strength rises linearly from 0.
        every: apply GR in each `every`-th step only; the others are plain steps of the base.

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

    # GradScaler must unscale .grad itself: the scale may not reach the base optimizer.
    _step_supports_amp_scaling = False

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
    ) -> None:
        _check_base(base)
        if strength is not None and ratio is not None:
            raise ValueError("give strength or ratio, not both: ratio sets the strength each step")
        if strength is None and ratio is None:
            ratio = 1.0
        if radius is not None and eps is not None:
            raise ValueError("give radius or eps, not both: both set the length of the shift")
        if isinstance(strength, (int, float)):
            _check_range("strength", strength, minimum=0.0)
        elif strength is not None and not callable(strength):
            raise TypeError(f"strength must be a number or a callable of step, got {strength!r}")
        for name, value in (("ratio", ratio), ("radius", radius), ("eps", eps)):
            if value is not None:
                _check_range(name, value, minimum=0.0, strict=name != "ratio")
        if max_ratio is not None:
            _check_range("max_ratio", max_ratio, minimum=0.0, strict=True)
        if difference not in DIFFERENCES:
            raise ValueError(f"difference must be one of {sorted(DIFFERENCES)}, got {difference!r}")
        if int(every) != every or every < 1:
            raise ValueError(f"every must be a whole number >= 1, got {every!r}")
        if int(warmup) != warmup or warmup < 0:
            raise ValueError(f"warmup must be a whole number >= 0, got {warmup!r}")

        self.base = base
        self.strength = strength
        self.ratio_rule = None if ratio is None else RatioStrength(float(ratio))
        self.radius, self.eps = radius, eps
        self.difference = DIFFERENCES[difference]()
        self.max_ratio = max_ratio
        self.exclude = (exclude,) if isinstance(exclude, (str, Tensor)) else tuple(exclude)
        self.warmup, self.every = int(warmup), int(every)
        self.stats = Stats()
        self.steps_taken = 0
        self._low_precision: bool | None = None  # unknown until the first gradient
        self._warned_eps = False
        self._reset_window()
        self._add_hook_tables()
        self._patch_step_function()
        self._excluded_ids()  # unknown names fail here, before any work

    # ---- the step -------------------------------------------------------------------------------

    @property
    def passes(self) -> int:
        """How many `perturbed()` passes this step needs: 0 where it is a plain step of the base."""
        return len(self.difference.points) if self._strength_factor() else 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Combine the gradients and step the base optimizer.

        Args:
            closure: clears the gradients, computes the loss, calls backward and returns the loss,
                as in torch.optim. Called once more per pass, with the same random numbers. Without
                it, `perturbed()` must have been used for this step.

        Returns:
            The closure's first loss (at theta), or None.

        Raises:
            RuntimeError: GR is due and no second gradient was given; a closure under GradScaler.
        """
        scaler = _calling_scaler()
        loss = None
        if closure is not None:
            if scaler is not None:
                raise RuntimeError(
                    "a closure cannot be used with GradScaler: its gradients would reach the "
                    "optimizer multiplied by the loss scale. Write the two passes instead:\n"
                    "    scaler.scale(loss_fn(model, batch)).backward()\n"
                    "    with optimizer.perturbed(scaler=scaler):\n"
                    "        scaler.scale(loss_fn(model, batch)).backward()\n"
                    "    scaler.step(optimizer); scaler.update()"
                )
            loss = self._run_closure(closure)
        elif self.passes and not self._combined and self._has_signal():
            if self._window is not None:  # "central" after one pass of two
                self._window.abandon()
                self._reset_window()
            raise RuntimeError(
                "GradRegOptimizer.step() needs a second gradient: pass a closure, "
                f"`optimizer.step(closure)`, or write\n{_TWO_PASSES}"
            )
        elif scaler is not None and self._combined and not self._scaler_given:
            self._check_unscaled_rule()
        try:
            if not self._combined:
                why = "the gradient is zero" if self.passes else self._why_plain()
                self.stats = Stats(strength=0.0, skipped=why)
            if not self._skip_base:
                self.base.step()
        finally:
            self._reset_window()
        self.steps_taken += 1
        return loss

    def _run_closure(self, closure: Callable[[], float]) -> float:
        passes = self.passes
        rng = RNGState.capture(self._devices()) if passes else None
        before = self._combined
        with torch.enable_grad():
            loss = closure()
        if before and self._stale():  # left over from a step that never came
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
        step does not need. Where a step needs none, g1 is kept unchanged.

        Args:
            scaler: the torch GradScaler that scaled the losses of both passes, if there is one;
                call it before ``scaler.unscale_``.

        Raises:
            RuntimeError: no gradient yet, all passes of this step already done, or inside one.
            ValueError: sparse or complex gradients.
        """
        if not self.passes:
            with self._kept_gradients():
                yield
            return
        if self._window is not None and self._window.active:
            raise RuntimeError(
                "perturbed() was entered inside perturbed(); one pass must end before the next:\n"
                f"{_TWO_PASSES}"
            )
        if self._combined and not self._stale():
            raise RuntimeError(
                "perturbed() was already used for this step "
                f"({len(self.difference.points)} pass(es)); call optimizer.step() first:\n"
                f"{_TWO_PASSES}"
            )
        if self._window is None:
            self._combined, self._skip_base = False, False
            self._scaler_given = scaler is not None
            self._window = self._open_window(_scale_of(scaler, self))
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

    def _open_window(self, scale: float) -> Window:
        excluded = self._excluded_ids()
        every = [p for group in self.param_groups for p in group["params"]]
        params = [p for p in every if p.grad is not None]
        if not params:
            raise RuntimeError(
                "perturbed() found no gradient: call backward() on the loss before it. Write\n"
                f"{_TWO_PASSES}"
            )
        if any(p.grad.is_sparse for p in params):
            raise ValueError(
                "GR needs dense gradients: build the layer with sparse=False, as in "
                "torch.nn.Embedding(..., sparse=False)"
            )
        if any(p.is_complex() for p in params):
            raise ValueError(
                "GR needs real parameters: keep the complex ones as real pairs, "
                "torch.view_as_real(p), or leave them to a second optimizer"
            )
        moved = [p for p in params if id(p) not in excluded]
        kept = [p for p in params if id(p) in excluded]
        low = self._is_low_precision(moved)
        return Window(
            moved,
            kept,
            [p for p in every if p.grad is None],
            self.difference,
            radius=None if self.eps is not None else self._radius_for(moved, low),
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
        self._window = None
        self._combined = True
        # A gradient that is not finite would ruin the weights and the base's moments. Under a
        # scaler it must stay visible: the scaler skips the step and lowers its scale.
        self._skip_base = window.bad_gradient
        first = (window.moved or window.kept)[0]
        self._mark = [(first, first.grad, first.grad._version)] if first.grad is not None else []

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

    def _has_signal(self) -> bool:
        """False where all gradients are zero: so torch.distributed.checkpoint sets up a state."""
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        present = [g for g in grads if g is not None]
        return not present or any(g.is_sparse or bool(g.any()) for g in present)

    def _why_plain(self) -> str:
        if self.steps_taken % self.every:
            return f"every={self.every}: a plain step"
        return "the strength is 0"

    def _is_low_precision(self, params: list[Tensor]) -> bool:
        if self._low_precision is None:
            grads = [p.grad for p in params if p.grad is not None]
            low: bool | None = any(p.dtype in LOW_PRECISION for p in params) or any(
                torch.is_autocast_enabled(d.type) for d in {p.device for p in params}
            )
            self._low_precision = low or looks_low_precision(grads)
            if self._low_precision and self.eps is not None and not self._warned_eps:
                self._warned_eps = True
                warnings.warn(
                    f"eps={self.eps:g} with 16-bit weights or autocast: the shifted weights round "
                    "back to what they were, and the difference is mostly rounding noise (measured "
                    "cosine with the true direction: .06 at eps=1e-3). Leave eps out: the default "
                    f"radius {DEFAULT_RADIUS[torch.bfloat16]:g} is a step the weights can hold.",
                    stacklevel=5,
                )
        return bool(self._low_precision)

    def _radius_for(self, params: list[Tensor], low: bool) -> float:
        if self.radius is not None:
            return self.radius
        if low:
            return DEFAULT_RADIUS[torch.bfloat16]
        double = all(p.dtype == torch.float64 for p in params)
        return DEFAULT_RADIUS[torch.float64 if double else torch.float32]

    # ---- parameters -----------------------------------------------------------------------------

    def _excluded_ids(self) -> set[int]:
        """Ids of the excluded parameters, looked up anew each step: FSDP2 replaces parameters."""
        if not self.exclude:
            return set()
        names: dict[str, Tensor] = {}
        known: set[int] = set()
        for group in self.param_groups:
            known.update(id(p) for p in group["params"])
            names.update(zip(group.get("param_names", ()), group["params"], strict=False))
        excluded: set[int] = set()
        for item in self.exclude:
            if isinstance(item, Tensor):
                if id(item) not in known:
                    raise ValueError(
                        "exclude holds a tensor that the base optimizer does not step; "
                        "give parameters of this optimizer, or their names"
                    )
                excluded.add(id(item))
                continue
            if not isinstance(item, str):
                raise TypeError(
                    f"exclude takes parameters and names, got {type(item).__name__}; for a module "
                    "write exclude=module.parameters()"
                )
            found = [p for n, p in names.items() if n == item or n.startswith(item + ".")]
            if not found:
                hint = (
                    f"known names begin with {sorted(names)[:3]}"
                    if names
                    else "the base has no names: build it from model.named_parameters()"
                )
                raise ValueError(f"exclude: no parameter is named {item!r}; {hint}")
            excluded.update(id(p) for p in found)
        return excluded

    def _devices(self) -> list[torch.device]:
        return [p.device for group in self.param_groups for p in group["params"]]

    @contextmanager
    def _kept_gradients(self) -> Iterator[None]:
        """A pass that this step does not need: its gradients are dropped, g1 stays in .grad."""
        held = [(p, p.grad) for group in self.param_groups for p in group["params"]]
        for p, _ in held:
            p.grad = None
        try:
            yield
        finally:
            for p, grad in held:
                p.grad = grad

    def _reset_window(self) -> None:
        self._window: Window | None = None
        self._combined = False
        self._skip_base = False
        self._scaler_given = False
        self._mark: list[tuple[Tensor, Tensor, int]] = []

    def _stale(self) -> bool:
        """True where the combined gradient was replaced or cleared and no step came between."""
        return any(p.grad is not g or g._version != version for p, g, version in self._mark)

    def _check_unscaled_rule(self) -> None:
        if self.eps is not None or (self.ratio_rule is None and self.strength):
            raise RuntimeError(
                "the losses were scaled by a GradScaler that perturbed() was not told of: the "
                "penalty would be too strong by the loss scale. Write\n"
                "    with optimizer.perturbed(scaler=scaler):\n"
                "        scaler.scale(loss_fn(model, batch)).backward()"
            )

    # ---- a torch.optim.Optimizer around another -------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base's parameter groups, live."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:  # type: ignore[override]
        self.base.param_groups = value

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base's state, live."""
        return self.base.state

    @state.setter
    def state(self, value: Any) -> None:  # type: ignore[override]
        self.base.state = value

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base's defaults, live."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.base.defaults = value

    def __getattr__(self, name: str) -> Any:
        # What the base offers beyond torch.optim's contract, e.g. schedulefree's train() and eval()
        if name.startswith("__") or "base" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.base, name)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as in torch.optim."""
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the base optimizer."""
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base's state_dict plus ``"gradreg"``: the step number and the averages of `ratio`."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state = self.base.state_dict()
        rule = self.ratio_rule
        state["gradreg"] = {
            "steps_taken": self.steps_taken,
            "grad_norm": rule.grad_norm if rule else 0.0,
            "product_norm": rule.product_norm if rule else 0.0,
        }
        for hook in self._optimizer_state_dict_post_hooks.values():
            state = hook(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of this class, or of the bare base (GR then starts afresh)."""
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        own = state_dict.pop("gradreg", {})
        self.base.load_state_dict(state_dict)
        self.steps_taken = int(own.get("steps_taken", 0))
        if self.ratio_rule is not None:
            self.ratio_rule.grad_norm = float(own.get("grad_norm", 0.0))
            self.ratio_rule.product_norm = float(own.get("product_norm", 0.0))
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        # For pickle and deepcopy: everything but hooks, the gradients in flight, and a `step` that
        # a learning-rate scheduler bound to this very object.
        left_out = {"step", "_window", "_mark", "stats"}
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in left_out and "_hooks" not in name
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset_window()
        self.stats = Stats()
        self._add_hook_tables()
        self._patch_step_function()

    def __repr__(self) -> str:
        rule = f"ratio={self.ratio_rule.ratio}" if self.ratio_rule else f"strength={self.strength}"
        kind = type(self.difference).__name__
        return f"GradRegOptimizer({rule}, difference={kind}, {self.base!r})"

    def _add_hook_tables(self) -> None:
        for kind in ("step_pre", "step_post"):
            setattr(self, f"_optimizer_{kind}_hooks", OrderedDict())
        for kind in ("state_dict", "load_state_dict"):
            for when in ("pre", "post"):
                setattr(self, f"_optimizer_{kind}_{when}_hooks", OrderedDict())


# ---- checks -------------------------------------------------------------------------------------


def _check_base(base: Optimizer) -> None:
    if isinstance(base, GradRegOptimizer):
        raise TypeError("the base is already a GradRegOptimizer; wrap the plain optimizer once")
    if not isinstance(base, Optimizer):
        raise TypeError(
            f"base must be a torch optimizer, got {type(base).__name__}; write "
            "GradRegOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-5))"
        )
    if isinstance(base, LBFGS):
        raise ValueError(
            "LBFGS evaluates its closure many times per step and builds curvature from gradient "
            "differences, which GR would corrupt; use a first-order optimizer such as AdamW"
        )
    if isinstance(base, SparseAdam):
        raise ValueError(
            "SparseAdam takes sparse gradients only, and GR produces dense ones; use torch.optim."
            "Adam with torch.nn.Embedding(..., sparse=False)"
        )


def _check_range(name: str, value: float, *, minimum: float, strict: bool = False) -> None:
    ok = value > minimum if strict else value >= minimum
    if not ok or value != value or value == float("inf"):
        sign = ">" if strict else ">="
        raise ValueError(f"{name} must be a finite number {sign} {minimum:g}, got {value!r}")


def _scale_of(scaler: Any, optimizer: Optimizer) -> float:
    """The loss scale of a GradScaler (1 without one); refuses gradients already unscaled."""
    if scaler is None or not scaler.is_enabled():
        return 1.0
    stage = getattr(scaler, "_per_optimizer_states", {}).get(id(optimizer), {}).get("stage")
    if getattr(stage, "name", "READY") != "READY":
        raise RuntimeError(
            "perturbed(scaler=scaler) came after scaler.unscale_(optimizer): g1 is unscaled and g2 "
            "will not be. Call unscale_ (and clip) after the perturbed() block"
        )
    return float(scaler.get_scale())


def _calling_scaler(depth: int = 8) -> Any:
    """The enabled GradScaler in whose step() this call runs, or None.

    A GradScaler does not say that it is there; a closure under it would silently hand the base
    gradients multiplied by the loss scale.
    """
    frame = sys._getframe(2)
    for _ in range(depth):
        if frame is None:
            return None
        caller = frame.f_locals.get("self")
        if isinstance(caller, torch.amp.GradScaler):
            return caller if caller.is_enabled() else None
        frame = frame.f_back
    return None
