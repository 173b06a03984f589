"""The passes of a GR step: how many, in which precision, on what part of the batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from flatopt.backup import Keeper
from flatopt.difference import DIFFERENCES, Difference
from flatopt.guards import (
    PARTS,
    TWO_PASSES,
    check_gradients,
    excluded_ids,
    no_gradient,
    scale_of,
    warn_of_eps,
    warn_of_one_pass,
)
from flatopt.lean import lean_window
from flatopt.mark import Mark, kept_gradients
from flatopt.part import Part
from flatopt.precision import computed_in, default_difference, default_radius
from flatopt.schedule import RatioStrength, Strength
from flatopt.stats import Stats
from flatopt.window import Rule, Settings, Window
from flatopt.wrapper import OptimizerWrapper


class Passes(OptimizerWrapper):
    """An optimizer whose gradient is put together in `perturbed()` passes before its step.

    `GradRegOptimizer` adds the settings (the attributes below) and the step.
    """

    strength: Strength | None
    ratio_rule: RatioStrength | None
    radius: float | None
    eps: float | None
    difference: str
    max_ratio: float | None
    exclude: tuple[str | Tensor, ...]
    memory: str
    offload: bool
    fraction: float
    batch: str
    steps_taken: int
    stats: Stats
    precision: str | None
    _strength_factor: Callable[[], float]
    _warned: set[str]
    _pool: dict[int, Tensor]

    @property
    def passes(self) -> int:
        """How many `perturbed()` passes this step needs: 0 where it is a plain step of the base.

        Ask after the first backward pass: its gradients tell in which precision they are computed.
        """
        if not self._strength_factor():
            return 0
        self._asked = True
        if self._window is not None:
            return len(self._window.passes)
        return len(self._kind().points) * (2 if self.batch == "halves" else 1)

    def _kind(self) -> Difference:
        """The difference of this step."""
        name = self.difference
        if name == "auto":
            # who writes one perturbed() block without asking for `passes` means one pass
            name = default_difference(self._precision()) if self._asked else "forward"
        return DIFFERENCES[name]()

    def mark_part(self, share: float) -> None:
        """Say that ``.grad`` now holds the gradient of the first part of the batch.

        For ``fraction`` and ``batch="halves"``, between the backward passes of the first part and
        those of the rest. All losses carry their share of the batch's weight, as under gradient
        accumulation. With ``fraction`` the part alone is run again inside `perturbed()`; with
        halves, the second half in the first pass (in the first ``passes // 2``), then the first.
        Costs a copy of the gradients, and nothing where the step is a plain one. From here to the
        passes add to ``.grad`` only: do not scale it, nor empty it in place.

        Args:
            share: the part's weight in the batch, between 0 and 1.

        Raises:
            RuntimeError: neither setting was given; no gradient yet; inside perturbed().
            ValueError: a share outside its range.

        Example:
            >>> import torch
            >>> from flatopt import GradRegOptimizer
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = GradRegOptimizer(torch.optim.SGD(model.parameters()), fraction=0.25)
            >>> x = torch.randn(8, 2)
            >>> (model(x[:2]) ** 2).sum().div(8).backward()
            >>> optimizer.mark_part(share=2 / 8)
            >>> (model(x[2:]) ** 2).sum().div(8).backward()
            >>> for _ in range(optimizer.passes):
            ...     with optimizer.perturbed():
            ...         (model(x[:2]) ** 2).sum().div(8).backward()
            >>> optimizer.step()
        """
        if self.fraction == 1.0 and self.batch == "whole":
            raise RuntimeError(
                "mark_part() is for fraction=... or batch='halves'; neither was given"
            )
        if not 0.0 < share <= 1.0 or (share == 1.0 and self.batch == "halves"):
            raise ValueError(f"share must be between 0 and 1, got {share!r}")
        self._drop_stale()
        if self._window is not None:
            raise RuntimeError(
                "mark_part() comes before the passes, after the first part's backward"
            )
        if not self._strength_factor():
            return
        params = [p for p in self._params() if p.grad is not None]
        if not params:
            raise RuntimeError(
                "mark_part() found no gradient: it comes after the part's backward()"
            )
        check_gradients(params)
        self._part = Part(params, share)

    @contextmanager
    def perturbed(self, scaler: Any = None) -> Iterator[None]:
        """Theta' inside, theta again outside, bit for bit, also when an error is raised.

        On entry ``.grad`` must hold g1; inside, run the same forward and backward again; on exit
        ``.grad`` holds the combined gradient, ready for clipping and `step()`. "central" needs two
        such passes: use ``for _ in range(optimizer.passes)``, which also leaves out passes that a
        step does not need. A single block without asking for `passes` is a forward difference.
        Where a step needs none, g1 is kept unchanged. A batch that is dropped with `zero_grad()`
        leaves nothing behind (nor with ``model.zero_grad()``, unless ``set_to_none=False``). Until
        `step()`, change ``.grad`` in place only.

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
        if not self._strength_factor():
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
                "(all its passes); call optimizer.step() first, or "
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
            if window.complete:
                self._combine(window)
            self._mark = Mark((*window.moved, *window.kept))
        except BaseException as error:
            window.abandon()
            self._reset_window()
            self.stats = Stats(skipped=f"the second pass raised {type(error).__name__}")
            raise

    def _open_window(self, scale: float) -> Window:
        excluded = excluded_ids(self.exclude, self.param_groups)
        every = self._params()
        params = [p for p in every if p.grad is not None]
        if not params:
            raise RuntimeError(no_gradient(every))
        check_gradients(params)
        if self._part is not None and self._part.mark.replaced:  # of a batch that was dropped
            self._part = None
        if (self.fraction < 1.0 or self.batch == "halves") and self._part is None:
            kind = "halves" if self.batch == "halves" else "fraction"
            raise RuntimeError(f"perturbed() without mark_part(). Write\n{PARTS[kind]}")
        moved = [p for p in params if id(p) not in excluded]
        kind = self._kind()
        unasked = not self._asked and self.difference == "auto" and "passes" not in self._warned
        if unasked and default_difference(self._precision()) != kind.name:
            self._warned.add("passes")
            warn_of_one_pass(stacklevel=5)
        keeper = Keeper(self.offload, counts=self.memory == "lean", pool=self._pool)
        keeper.forget_all_but(moved)
        settings = Settings(
            kind,
            radius=self._radius(),
            eps=self.eps,
            scale=scale,
            part=self._part,
            halves=self.batch == "halves",
            keeper=keeper,
            seed=self.steps_taken,
            rule=self._rule(),
        )
        make = lean_window if self.memory == "lean" else Window
        unused = [p for p in every if p.grad is None]
        window = make(moved, [p for p in params if id(p) in excluded], unused, settings)
        self._part = None  # the window has it, and lets it go after the last pass
        return window

    def _rule(self) -> Rule:
        factor, rule = self._strength_factor(), self.ratio_rule
        if rule is None:
            return Rule(fixed=factor)
        return Rule(
            preview=lambda grad_norm, product_norm: factor * rule.preview(grad_norm, product_norm),
            note=self._note,
            last=factor * rule.last,
        )

    def _note(self, grad_norm: float, product_norm: float) -> None:
        self._norms = grad_norm, product_norm

    def _combine(self, window: Window) -> None:
        self.stats = window.combine(self.max_ratio)
        self.stats.difference, self.stats.precision = window.difference.name, self.precision
        self._window, self._combined = None, True
        # A gradient that is not finite would ruin the weights and the base's moments. Under a
        # scaler it must stay visible: the scaler skips the step and lowers its scale.
        self._skip_base = window.skip_base

    def _precision(self) -> str | None:
        """What gradients are computed in; found once, from the first gradients that tell."""
        if self.precision is None:
            excluded = excluded_ids(self.exclude, self.param_groups)
            params = [p for p in self._params() if p.grad is not None and id(p) not in excluded]
            self.precision = computed_in(params, [p.grad for p in params]) if params else None
        return self.precision

    def _radius(self) -> float | None:
        """The relative length of the shift; None where `eps` sets it."""
        precision = self._precision()
        if self.eps is None:
            return self.radius or default_radius(precision)
        if precision in ("16 bits", "tf32") and "eps" not in self._warned:
            self._warned.add("eps")
            warn_of_eps(self.eps, stacklevel=6)
        return None

    def _reset_window(self) -> None:
        self._window: Window | None = None
        self._part: Part | None = None
        self._norms: tuple[float, float] | None = None  # for `ratio`, until the step is taken
        self._asked = False  # whether `passes` was asked for in this step
        self._combined = False
        self._skip_base = False
        self._scaler_given = False
        self._mark: Mark | None = None

    def _drop_stale(self) -> bool:
        """Forget passes whose gradients were replaced or cleared and whose step never came."""
        stale = self._mark is not None and self._mark.replaced
        if stale:
            asked = self._asked  # about this batch
            self._reset_window()
            self._asked = asked
        return stale
