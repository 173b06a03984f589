"""Random settings of GradRegOptimizer: several steps equal those of the plain oracle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import Optimizer

from flatopt import CosineStrength, GradRegOptimizer, LinearStrength
from tests.fuzz import MODES, PATHS, examples, on_path
from tests.fuzz.oracle import LossFn, PlainGR, Rules, Split, length
from tests.fuzz.problems import Case, Loss, cases

# torch's remark on speed, which comes once, for some empty gradients of a graph
pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey")

DOUBLE = (torch.float64,)
SCHEDULES: tuple[Callable[[int], float], ...] = (
    LinearStrength(0.0, 0.2, steps=3),
    CosineStrength(0.3, 0.0, steps=2),
    lambda step: 0.1 * (step % 2),
)
BASES: dict[str, Callable[[list[dict[str, Any]]], Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
    # a large eps, because Adam multiplies the rounding of the smallest gradients
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.05, eps=1e-2),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.05, eps=1e-2, weight_decay=0.1),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.05, eps=1e-2),
}


@st.composite
def rules(draw: st.DrawFn, lean: bool) -> Rules:
    """Settings that may stand together."""
    kinds = ["forward", "central", "auto"] if lean else ["forward", "central", "exact", "auto"]
    found = Rules(
        difference=draw(st.sampled_from(kinds)),
        max_ratio=None if lean else draw(st.sampled_from([None, None, 0.05, 1.0])),
        warmup=draw(st.integers(0, 3)),
        every=draw(st.integers(1, 3)),
        memory="lean" if lean else "fast",
    )
    parts = draw(st.sampled_from(["none", "none", "fraction", "fraction" if lean else "halves"]))
    if parts == "fraction":
        found.fraction = draw(st.sampled_from([0.25, 0.5]))
    elif parts == "halves":
        found.batch = "halves"
    kind = draw(st.sampled_from(["strength", "schedule", "ratio", "neither"]))
    if kind == "strength":
        found.strength = draw(st.sampled_from([0.0, 0.02, 0.3]))
    elif kind == "schedule":
        found.strength = draw(st.sampled_from(SCHEDULES))
    elif kind == "ratio":
        found.ratio = draw(st.sampled_from([0.0, 0.5, 4.0]))
    step = draw(st.sampled_from(["radius", "eps", "neither"]))
    if step == "radius":
        found.radius = draw(st.sampled_from([1e-6, 1e-4, 1e-2, 0.5]))
    elif step == "eps":
        found.eps = draw(st.sampled_from([1e-5, 1e-3, 0.1]))
    return found


@dataclass
class Pair:
    """The same parameters under flatopt and under the oracle, each with its base."""

    case: Case
    optimizer: GradRegOptimizer
    plain: PlainGR
    values: list[Tensor]
    base: Optimizer
    excluded: list[int]

    def check(self) -> None:
        """Same weights, and the numbers of the last step."""
        for ours, theirs in zip(self.case.params, self.values, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)
        assert self.optimizer.steps_taken == self.plain.steps
        stats = self.optimizer.stats
        assert stats.strength is not None
        assert float(stats.strength) == pytest.approx(self.plain.strength, rel=1e-4)
        if self.plain.strength:
            penalty = self.plain.strength * self.plain.product
            assert float(stats.penalty_norm or 0.0) == pytest.approx(penalty, rel=1e-4)
        own = self.optimizer.state_dict()["gradreg"]
        means = own["grad_norm"], own["product_norm"]
        assert means == pytest.approx(self.plain.means, rel=1e-4)

    def value(self, losses: Sequence[Loss]) -> LossFn:
        """The sum of these losses as a function of all parameters."""

        def total(values: Sequence[Tensor]) -> Tensor:
            chosen = [v for v, used in zip(values, self.case.used, strict=True) if used]
            found = sum(loss(chosen) for loss in losses)
            assert isinstance(found, Tensor)
            return found

        return total

    def backward(self, losses: Sequence[Loss]) -> float:
        """flatopt's side: the gradients of these losses are added to ``.grad``."""
        values = [self.value([loss])(self.case.params) for loss in losses]
        for each in values:
            each.backward()
        return sum(each.item() for each in values)

    def two_phases(self, losses: Sequence[Loss], share: float) -> None:
        """A step written out; the first loss is the first part of the batch."""
        optimizer, rules = self.optimizer, self.plain.rules
        parts = rules.fraction < 1.0 or rules.batch == "halves"
        optimizer.zero_grad()
        if parts:
            self.backward(losses[:1])
            optimizer.mark_part(share)
            self.backward(losses[1:])
        else:
            self.backward(losses)
        assert optimizer.passes == (rules.points if self.plain.share() else 0)
        for number in range(optimizer.passes):
            second = rules.batch == "halves" and number < optimizer.passes // 2
            replayed = losses[1:] if second else losses[:1]
            with optimizer.perturbed():
                self.backward(replayed if parts else losses)
        optimizer.step()

    def follow(self, losses: Sequence[Loss], share: float) -> None:
        """The oracle's step."""
        split = Split(self.value(losses[:1]), self.value(losses[1:]), share)
        live = self.case.live()
        theta = [v.detach() for v in self.values]
        found = self.value(losses)
        grads = self.plain.combined(found, theta, live, self.excluded, split=split)
        if grads is not None:
            for v in self.values:
                v.grad = None
            for i, g in zip(live, grads, strict=True):
                self.values[i].grad = g
            self.base.step()
        self.plain.taken()


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """Random parameters in two groups, a random base, random settings and exclusions."""
    mode = draw(st.sampled_from(MODES))
    case, found = draw(cases(dtypes=DOUBLE)), draw(rules(mode.get("memory") == "lean"))
    values = [p.detach().clone().requires_grad_(p.requires_grad) for p in case.params]
    cut = draw(st.integers(1, len(values)))
    base = BASES[draw(st.sampled_from(sorted(BASES)))]

    def build(params: Sequence[Tensor]) -> Optimizer:
        named = [(f"part{i}.weight", p) for i, p in enumerate(params)]
        groups: list[dict[str, Any]] = [{"params": named[:cut]}]
        if named[cut:]:
            groups.append({"params": named[cut:], "lr": 0.02})
        return base(groups)

    picked = [i for i in range(len(values)) if draw(st.integers(0, 3)) == 0]
    excluded = [i for i in picked if i != case.live()[0]]
    by_name = draw(st.booleans())
    exclude = [f"part{i}" if by_name else case.params[i] for i in excluded]
    optimizer = GradRegOptimizer(build(case.params), **(vars(found) | mode), exclude=exclude)
    if found.strength is None and found.ratio is None:
        found.ratio = 1.0
    return Pair(case, optimizer, PlainGR(found), values, build(values), excluded)


@examples(400)
@given(
    pair=pairs(),
    micro=st.integers(1, 2),
    share=st.sampled_from([0.25, 0.5, 0.7]),
    ways=st.lists(st.sampled_from(["closure", "perturbed"]), min_size=1, max_size=5),
    path=st.sampled_from(PATHS),
)
def test_steps_equal_the_oracle(
    pair: Pair, micro: int, share: float, ways: list[str], path: str
) -> None:
    rules = pair.plain.rules
    parts = rules.fraction < 1.0 or rules.batch == "halves"
    with on_path(path):
        for step, way in enumerate(ways):
            losses = [Loss(100 * step + m) for m in range(max(micro, 2 if parts else 1))]

            def closure(losses: Sequence[Loss] = losses) -> float:
                pair.optimizer.zero_grad()
                return pair.backward(losses)

            if way == "closure" and parts and pair.plain.share():
                with pytest.raises(RuntimeError, match="closure computes the whole batch"):
                    pair.optimizer.step(closure)
                way = "perturbed"
            if way == "closure":
                pair.optimizer.step(closure)
            else:
                pair.two_phases(losses, share)
            pair.follow(losses, share)
            pair.check()
    assert length(pair.values) < 1e3  # the comparison was of sensible numbers


@pytest.mark.parametrize(
    "options", [{"difference": "exact"}, {"batch": "halves"}, {"max_ratio": 1.0}], ids=str
)
def test_lean_refuses_what_needs_both_gradients(options: dict[str, Any]) -> None:
    base = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match="memory='lean' cannot be had with"):
        GradRegOptimizer(base, memory="lean", **options)


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("together", [False, True], ids=["apart", "views of one gradient"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_lean_step_where_a_parameter_is_in_the_first_gradient_only(
    difference: str, together: bool, fraction: float
) -> None:
    # as an expert that the tokens of the part do not reach; its gradient may be a piece of another
    a, b = (torch.linspace(0.5, 1.0, 3).double().requires_grad_() for _ in range(2))
    optimizer = GradRegOptimizer(
        torch.optim.SGD([a, b], lr=0.1),
        strength=0.1,
        radius=1e-4,
        difference=difference,
        memory="lean",
        fraction=fraction,
    )
    if fraction < 1.0:
        (a**3).sum().backward()
        optimizer.mark_part(fraction)
    wave = torch.cat([a, b]).sin().sum() if together else a.sin().sum() + b.sin().sum()
    wave.backward()
    assert a.grad is not None
    assert b.grad is not None
    first, own = b.grad.clone(), a.grad.clone()
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            (a**3).sum().backward()
            if fraction == 1.0:
                a.sin().sum().backward()
    assert torch.allclose(b.grad, first, rtol=1e-9)
    optimizer.step()
    assert torch.allclose(b, torch.linspace(0.5, 1.0, 3).double() - 0.1 * first)
    if fraction < 1.0:  # where the penalty is known
        theta = torch.linspace(0.5, 1.0, 3).double()
        expected = own + 0.1 * 6 * theta * own / fraction
        assert torch.allclose(a.grad, expected, rtol=1e-2)


@pytest.mark.parametrize("together", [False, True], ids=["apart", "views of one gradient"])
@pytest.mark.parametrize("scale", [1.0, 2.0**12])
def test_lean_pass_that_begins_with_empty_gradients(together: bool, scale: float) -> None:
    # as with model.zero_grad(); and the first step of `ratio` has both gradients in equal parts
    a, b = (torch.linspace(0.5, 1.0, 3).double().requires_grad_() for _ in range(2))
    optimizer = GradRegOptimizer(
        torch.optim.SGD([a, b], lr=0.1), ratio=1.0, radius=0.1, memory="lean"
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    def backward() -> Tensor:
        loss = (torch.cat([a, b]) ** 3).sum() if together else (a**3).sum() + (b**3).sum()
        scaler.scale(loss).backward()
        assert a.grad is not None
        return a.grad.clone()

    first = backward()
    with optimizer.perturbed(scaler=scaler):
        a.grad = b.grad = None
        second = backward()
    assert a.grad is not None
    assert torch.allclose(a.grad, 0.5 * (first + second), rtol=1e-9)
