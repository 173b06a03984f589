"""Random orders of calls: after each one the weights, gradients and state are those of a model."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from torch.optim.lr_scheduler import StepLR

from tests.fuzz import examples
from tests.fuzz.model import ODD, SHARE, Batch
from tests.fuzz.orders import Beside

pytestmark = [
    pytest.mark.timeout(900),  # a failure is reduced to a short list of calls first
    # torch's remark on speed, which comes once, for some empty gradients of a graph
    pytest.mark.filterwarnings("ignore:grad and param do not obey"),
]

NOISE = 0.2
ERRORS = (ValueError, KeyboardInterrupt, torch.OutOfMemoryError)

WHICH = st.integers(0, 3)
SEEDS = st.integers(0, 9)
MOST = 4  # passes of a step: central differences of two halves
PASSES = st.integers(0, MOST)
CLEAR = st.sampled_from(["zero_grad", "to zero", "model"])


class Orders(Beside):
    """Each rule does the same to both and says which errors must come."""

    @property
    def ready(self) -> bool:
        """Whether a pass may come now."""
        marked = not self.model.parts or self.model.marked is not None
        # a step without passes takes one, too, and drops its gradients
        return self.phase in ("g1", "between") and (marked or not self.model.passes)

    def never_called(self) -> float:
        raise AssertionError("the closure was called")

    # ---- a step, phase by phase -----------------------------------------------------------------

    @precondition(lambda self: self.phase in ("empty", "g1"))
    @rule(which=WHICH, odd=st.booleans())
    def first_backward(self, which: int, odd: bool) -> None:
        """Once, or again for a further micro-batch."""
        batch = Batch(which, 0.0, len(self.params), odd)
        if len(self.model.batches) < 3:
            self.model.backward(batch)
            batch.loss(self.params).backward()

    @precondition(lambda self: self.model.parts and self.phase == "g1")
    @rule()
    def mark_part(self) -> None:
        """What is in .grad now is the first part; the last call counts."""
        self.optimizer.mark_part(SHARE)
        self.model.mark()

    @precondition(lambda self: self.ready)
    @rule(zero_first=st.booleans())
    def further_pass(self, zero_first: bool) -> None:
        with self.optimizer.perturbed():
            if zero_first:
                self.optimizer.zero_grad()
            self.replay()
        if self.model.passes:
            self.model.one_pass()

    @rule(which=WHICH, odd=st.booleans(), passes=PASSES, how=CLEAR)
    def begin(self, which: int, odd: bool, passes: int, how: str) -> None:
        """A new batch and some of its passes; what was begun before is dropped."""
        self.drop(how)
        self.micro_batches(Batch(which, 0.0, len(self.params), odd))
        for _ in range(min(passes, self.model.passes)):
            self.further_pass(False)

    @precondition(lambda self: self.phase == "combined" and self.model.grads is not None)
    @rule(bound=st.sampled_from([0.01, 0.5]))
    def clip(self, bound: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.params, bound)
        self.model.clip(bound)

    @rule(how=CLEAR)
    def take_step(self, how: str) -> None:
        """Whatever the phase: a step, or an error that changes nothing."""
        model = self.model
        signal = not model.live() or any(bool(g.any()) for g in (model.grads or {}).values())
        if self.phase == "between":
            self.refused(self.optimizer.step, "second gradient")
            self.failed()
            return
        if self.phase != "combined" and model.passes and signal:
            self.refused(self.optimizer.step, "second gradient")
            return
        self.optimizer.step()
        model.step()
        self.drop(how)

    @rule(how=CLEAR)
    def drop_batch(self, how: str) -> None:
        self.drop(how)

    # ---- whole steps ----------------------------------------------------------------------------

    @rule(which=WHICH, seed=SEEDS, odd=st.booleans(), how=st.sampled_from(["zero_grad", "model"]))
    def closure_step(self, which: int, seed: int, odd: bool, how: str) -> None:
        """From any phase; the closure draws random numbers."""
        if self.model.parts and self.model.passes:
            self.drop()
            self.refused(lambda: self.optimizer.step(self.never_called), "closure computes")
            self.begin(which, odd, MOST, "zero_grad")
            self.take_step("zero_grad")
            return
        self.drop("zero_grad" if self.phase == "between" else "model")
        torch.manual_seed(seed)
        noise = NOISE * float(torch.rand(()))
        after = torch.get_rng_state()
        batch = Batch(which, noise, len(self.params), odd)

        def closure() -> float:
            self.clear(how)
            drawn = Batch(which, NOISE * float(torch.rand(())), len(self.params), odd)
            loss = drawn.loss(self.params)
            loss.backward()
            return loss.item()

        torch.manual_seed(seed)
        loss = self.optimizer.step(closure)
        assert torch.equal(torch.get_rng_state(), after)
        assert loss == pytest.approx(float(batch.loss(self.model.theta())), rel=1e-6, abs=1e-6)
        self.model.backward(batch)
        for _ in range(self.model.passes):
            self.model.one_pass()
        self.model.step()
        self.drop(how)

    @precondition(lambda self: not self.model.parts)
    @rule(which=WHICH, call=st.integers(0, 2), error=st.sampled_from(ERRORS))
    def closure_raises(self, which: int, call: int, error: type[BaseException]) -> None:
        self.drop()
        batch, calls = Batch(which, 0.0, len(self.params)), 0

        def closure() -> float:
            nonlocal calls
            calls += 1
            self.optimizer.zero_grad()
            loss = batch.loss(self.params)
            if calls > call % (self.model.passes + 1):
                raise error
            loss.backward()
            return loss.item()

        with pytest.raises(error):
            self.optimizer.step(closure)
        if calls > 1:  # g1 is put back, in the lean mode lost
            self.model.backward(batch)
            self.failed()

    @precondition(lambda self: self.model.passes > 0 and not self.model.parts)
    @rule(which=WHICH, late=st.booleans(), nan=st.sampled_from([0, 0, 1, 2]))
    def uneven_step(self, which: int, late: bool, nan: int) -> None:
        """A parameter in one pass only, or a NaN in the first or in a further pass."""
        self.drop()
        factors = [math.nan if nan == i else 1.0 for i in (1, 2)]
        count = len(self.params)
        first = Batch(which, 0.0, count, not late, factors[0])
        second = Batch(which, 0.0, count, late, factors[1])
        first.loss(self.params).backward()
        for _ in range(self.optimizer.passes):
            with self.optimizer.perturbed():
                second.loss(self.params).backward()
        self.model.backward(first)
        for _ in range(self.model.passes):
            self.model.one_pass([second], [] if late else [ODD])
        self.optimizer.step()
        if any(nan for nan in (first.factor, second.factor) if nan != 1.0):
            assert "not finite" in (self.optimizer.stats.skipped or "")
        elif late or ODD not in self.model.excluded:
            assert "had no gradient at theta" in (self.optimizer.stats.skipped or "")
        self.model.step()
        self.drop()

    @rule(which=WHICH, scale=st.sampled_from([2.0**10, 2.0**-10]))
    def scaled_step(self, which: int, scale: float) -> None:
        """Under a GradScaler."""
        self.drop()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        batch = Batch(which, 0.0, len(self.params))

        for number in range(2 if self.model.parts else 1):
            if number:
                self.optimizer.mark_part(SHARE)
                self.model.mark()
            scaler.scale(batch.loss(self.params)).backward()
            self.model.backward(batch)
        for _ in range(self.optimizer.passes):
            with self.optimizer.perturbed(scaler=scaler):
                for each in self.model.replayed():
                    scaler.scale(each.loss(self.params)).backward()
            self.model.one_pass()
        scaler.step(self.optimizer)
        self.model.step()
        self.drop()

    # ---- misuse: an error, and nothing changed --------------------------------------------------

    @precondition(lambda self: self.phase == "combined" and self.model.passes > 0)
    @rule()
    def perturbed_once_more(self) -> None:
        self.refused(self.enter, "already used")

    @precondition(lambda self: not self.model.live() and self.model.passes > 0)
    @rule()
    def perturbed_without_gradient(self) -> None:
        self.refused(self.enter, "no gradient")

    @precondition(lambda self: self.ready and self.model.passes > 0)
    @rule(caught=st.booleans())
    def nested(self, caught: bool) -> None:
        if caught:
            with self.optimizer.perturbed():
                self.refused(self.enter, "inside perturbed")
                self.replay()
            self.model.one_pass()
        else:
            with pytest.raises(RuntimeError, match="inside perturbed"), self.optimizer.perturbed():
                self.enter()
            self.failed()

    @precondition(lambda self: self.ready and self.model.passes > 0)
    @rule(error=st.sampled_from(ERRORS), after=st.booleans())
    def pass_raises(self, error: type[BaseException], after: bool) -> None:
        def work() -> None:
            if after:
                self.replay()
            raise error

        with pytest.raises(error), self.optimizer.perturbed():
            work()
        self.failed()

    @precondition(lambda self: self.ready and self.model.passes > 0)
    @rule(closure=st.booleans())
    def step_inside_perturbed(self, closure: bool) -> None:
        with pytest.raises(RuntimeError), self.optimizer.perturbed():
            self.optimizer.step(self.never_called if closure else None)
        self.failed()

    @precondition(lambda self: self.model.parts and self.model.passes > 0)
    @rule(which=WHICH)
    def pass_without_mark(self, which: int) -> None:
        self.drop()
        self.first_backward(which, True)
        self.refused(self.enter, r"without mark_part\(\)")

    @precondition(lambda self: self.model.parts and self.phase in ("empty", "between"))
    @rule()
    def mark_at_the_wrong_time(self) -> None:
        if self.model.passes and not (self.phase == "empty" and self.model.live()):
            words = "no gradient" if self.phase == "empty" else "before the passes"
            self.refused(lambda: self.optimizer.mark_part(SHARE), words)

    @precondition(lambda self: self.phase == "between" and self.model.passes > 0)
    @rule(which=WHICH)
    def another_batch_between_passes(self, which: int) -> None:
        Batch(which, 0.0, len(self.params)).loss(self.params).backward()
        self.refused(self.enter, "changed between two passes")
        self.drop()

    @precondition(lambda self: self.phase == "combined" and self.model.passes > 0)
    @rule()
    def replaced_gradients(self) -> None:
        for p in self.params:
            p.grad = None if p.grad is None else p.grad.clone()
        if any(bool(g.any()) for g in (self.model.grads or {}).values()):
            self.refused(self.optimizer.step, "in place")
        self.drop()

    # ---- settings, state and copies, in any phase -----------------------------------------------

    @precondition(lambda self: len(self.params) < 8)
    @rule(size=st.integers(0, 3), rate=st.sampled_from([0.01, 0.03]))
    def add_group(self, size: int, rate: float) -> None:
        generator = torch.Generator().manual_seed(len(self.params))
        value = torch.randn(size, generator=generator, dtype=torch.float64)
        self.params.append(torch.nn.Parameter(value))
        self.pointers.append(self.params[-1].data_ptr())
        self.optimizer.add_param_group({"params": [self.params[-1]], "lr": rate})
        self.model.add(value, {"lr": rate})

    @precondition(lambda self: self.model.rules.ratio is None)
    @rule(strength=st.sampled_from([0.0, 0.0, 0.05, 0.1]))
    def change_strength(self, strength: float) -> None:
        self.optimizer.strength = self.model.rules.strength = strength

    @precondition(lambda self: self.model.rules.ratio is None)
    @rule(which=WHICH, passes=PASSES, how=CLEAR)
    def switched_off_in_flight(self, which: int, passes: int, how: str) -> None:
        """A step begun with GR and taken without it: g1, unless it was combined already."""
        before = self.model.rules.strength
        self.begin(which, True, passes, how)
        self.change_strength(0.0)
        self.take_step(how)
        self.optimizer.strength = self.model.rules.strength = before

    @rule()
    def scheduler(self) -> None:
        """A scheduler of the learning rate, on flatopt as on any optimizer."""
        schedulers = [StepLR(o, 1, gamma=0.9) for o in (self.optimizer, self.model.base)]
        self.closure_step(0, 0, True, "zero_grad")
        for each in schedulers:
            each.step()

    @rule(which=WHICH, fresh=st.booleans())
    def back_to_a_checkpoint(self, which: int, fresh: bool) -> None:
        """A step that is taken back, but for the weights, which no state holds."""
        self.save()
        self.closure_step(which, 0, True, "model")
        self.load(fresh)

    @rule()
    def save(self) -> None:
        state = copy.deepcopy(self.optimizer.state_dict())
        self.saved = state, self.model.state(), len(self.params)

    @precondition(lambda self: self.saved is not None)
    @rule(fresh=st.booleans())
    def load(self, fresh: bool) -> None:
        assert self.saved is not None
        ours, theirs, count = self.saved
        if fresh:
            self.drop()
        target = self.wrap() if fresh else self.optimizer
        if fresh:  # what was set by hand is not part of a checkpoint
            target.strength = self.optimizer.strength
        if count != len(self.params):  # of another model
            with pytest.raises(ValueError, match="parameter group"):
                target.load_state_dict(copy.deepcopy(ours))
            return
        target.load_state_dict(copy.deepcopy(ours))
        self.optimizer = target
        self.model.load(theirs)

    @rule(pickled=st.booleans())
    def go_on_with_a_copy(self, pickled: bool) -> None:
        pair = self.params, self.optimizer
        params, optimizer = pickle.loads(pickle.dumps(pair)) if pickled else copy.deepcopy(pair)
        self.params, self.optimizer = params, optimizer
        self.pointers = [p.data_ptr() for p in params]
        self.drop("model")  # gradients in flight are not copied


TestOrders = Orders.TestCase
TestOrders.settings = examples(300, calls=30)
