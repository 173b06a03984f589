"""flatopt beside the model of what it must do: how both start, and what always holds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant
from torch import Tensor

from flatopt import GradRegOptimizer, LinearStrength
from tests.fuzz import MODES, PATHS, take_path
from tests.fuzz.model import BASES, ODD, SHARE, Batch, Model, start_values
from tests.fuzz.oracle import Rules

LIMIT = 1e3  # the weights stay below: the comparison is of sensible numbers


@st.composite
def rules(draw: st.DrawFn, lean: bool) -> Rules:
    """Settings that may stand together."""
    kinds = ["forward", "central", "auto"] if lean else ["forward", "central", "exact", "auto"]
    found = Rules(
        difference=draw(st.sampled_from(kinds)),
        max_ratio=None if lean else draw(st.sampled_from([None, 0.5])),
        warmup=draw(st.sampled_from([0, 0, 2])),
        every=draw(st.sampled_from([1, 1, 2])),
        memory="lean" if lean else "fast",
    )
    parts = draw(st.sampled_from(["none", "none", "fraction", "fraction" if lean else "halves"]))
    if parts == "fraction":
        found.fraction = 0.25
    elif parts == "halves":
        found.batch = "halves"
    if draw(st.booleans()):
        found.ratio = draw(st.sampled_from([0.5, 2.0]))
    else:
        found.strength = draw(st.sampled_from([0.02, 0.1, LinearStrength(0.0, 0.1, steps=3)]))
    if draw(st.booleans()):
        found.eps = draw(st.sampled_from([1e-4, 1e-2]))
    else:
        found.radius = draw(st.sampled_from([1e-4, 1e-2]))
    return found


@st.composite
def modes(draw: st.DrawFn) -> tuple[Rules, dict[str, Any]]:
    """Settings, and the options that change nothing by more than rounding."""
    mode = draw(st.sampled_from(MODES))
    return draw(rules(mode.get("memory") == "lean")), mode


class Beside(RuleBasedStateMachine):
    """flatopt beside `Model`, on the same weights."""

    @initialize(
        settings=modes(),
        kind=st.sampled_from(sorted(BASES)),
        excluded=st.sampled_from([[], [0], [1, ODD]]),
        path=st.sampled_from(PATHS),
    )
    def start(
        self, settings: tuple[Rules, dict[str, Any]], kind: str, excluded: list[int], path: str
    ) -> None:
        self.monkeypatch = pytest.MonkeyPatch()
        take_path(self.monkeypatch, path)
        rules, self.mode = settings
        self.model = Model(rules, kind, excluded)
        # a Parameter alone in its memory is shifted in other memory
        self.params = [
            torch.nn.Parameter(v.detach()) if i in (0, ODD) else v
            for i, v in enumerate(start_values())
        ]
        self.optimizer = self.wrap()
        self.saved: tuple[Any, Any, int] | None = None
        self.pointers = [p.data_ptr() for p in self.params]

    def teardown(self) -> None:
        self.monkeypatch.undo()

    def wrap(self) -> GradRegOptimizer:
        """A fresh optimizer on the weights as they are."""
        groups: list[dict[str, Any]] = [{"params": self.params[:5]}]
        groups += [{"params": [p]} for p in self.params[5:]]
        exclude = [self.params[i] for i in self.model.excluded]
        base = BASES[self.model.kind](groups)
        options = vars(self.model.rules) | self.mode
        return GradRegOptimizer(base, **options, exclude=exclude)

    # ---- what rules are made of -----------------------------------------------------------------

    @property
    def phase(self) -> str:
        return self.model.phase

    def replay(self) -> None:
        """The batches of the next pass on flatopt's side."""
        for batch in self.model.replayed():
            batch.loss(self.params).backward()

    def micro_batches(self, batch: Batch) -> None:
        """One batch, or two of which the first is marked as a part."""
        for number in range(2 if self.model.parts else 1):
            if number:
                self.optimizer.mark_part(SHARE)
                self.model.mark()
            self.model.backward(batch)
            batch.loss(self.params).backward()

    def failed(self) -> None:
        """A pass raised: g1 is back, or in the lean mode gone and the batch to be taken again."""
        self.model.again()
        if self.model.grads is None:
            moved = [i for i in range(len(self.params)) if i not in self.model.excluded]
            assert all(self.params[i].grad is None for i in moved)
            self.drop()

    def clear(self, how: str) -> None:
        if how == "model":
            for p in self.params:
                p.grad = None
        else:
            self.optimizer.zero_grad(set_to_none=how != "to zero")

    def drop(self, how: str = "zero_grad") -> None:
        self.clear(how)
        self.model.drop(to_none=how != "to zero")

    def refused(self, call: Callable[[], object], words: str) -> None:
        with pytest.raises(RuntimeError, match=words):
            call()

    def enter(self) -> None:
        with self.optimizer.perturbed():
            raise AssertionError("entered")

    # ---- what holds after each call -------------------------------------------------------------

    @invariant()
    def same_weights(self) -> None:
        for i, (ours, theirs) in enumerate(zip(self.params, self.model.values, strict=True)):
            assert ours.isfinite().all()
            assert float(ours.detach().abs().sum()) < LIMIT
            assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-8), i
        assert [p.data_ptr() for p in self.params] == self.pointers

    @invariant()
    def same_gradients(self) -> None:
        if self.phase == "between":  # .grad is flatopt's own until the last pass
            return
        assert self.model.grads is not None
        for i, p in enumerate(self.params):
            expected: Tensor | None = self.model.grads.get(i)
            assert (p.grad is None) == (expected is None), i
            if expected is not None and p.grad is not None:
                assert torch.allclose(p.grad, expected, rtol=1e-7, atol=1e-7), i

    @invariant()
    def same_state(self) -> None:
        own = self.optimizer.state_dict()["gradreg"]
        assert own["steps_taken"] == self.optimizer.steps_taken == self.model.plain.steps
        means = own["grad_norm"], own["product_norm"]
        assert means == pytest.approx(self.model.plain.means, rel=1e-6)
        assert self.optimizer.passes == self.model.passes
        rates = [g["lr"] for g in self.optimizer.param_groups]
        assert rates == pytest.approx([g["lr"] for g in self.model.base.param_groups])
