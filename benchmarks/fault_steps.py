"""Faults in one optimizer step, put where they are asked for, and what they leave behind.

`try_fault` takes one step of a `Job` with a fault in it and says what is wrong afterwards. The
faults of whole runs and their files are in `fault_runs`.
"""

import copy
import dis
import gc
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import flatopt
from benchmarks.fault_job import Job, Setting, Trap, make_job

FLATOPT = str(Path(flatopt.__file__).parent)
PLACES = (
    "before the forward",
    "in the forward",
    "before the backward",
    "in the backward",
    "after the backward",
)


class Broken(Exception):
    """An ordinary error in the user's own code."""


ERRORS: dict[str, type[BaseException]] = {
    "exception": Broken,
    "Ctrl-C": KeyboardInterrupt,
    "out of memory": torch.OutOfMemoryError,
    "exit": SystemExit,
}


@dataclass(frozen=True)
class Outcome:
    """What a fault left behind. The first three are failures.

    Attributes:
        perturbed: after an error: a weight differs from what it was before the step, or lies in
            other memory. Where none was raised: they are not those of the documented step.
        not_finite: a weight or a number of the optimizer's state is NaN or infinite.
        wrong_next: the next step, without the fault, is not that of an optimizer that never had it.
        error: the type of the error that came out of the step, if one did.
        sprung: the fault took place (a random moment may lie after the end of the step).
        late: perturbed for whoever handles the error, and put back once it has been handled.
    """

    perturbed: bool
    not_finite: bool
    wrong_next: bool
    error: str | None
    sprung: bool = True
    late: bool = False

    @property
    def failed(self) -> bool:
        """Whether the fault left anything wrong behind."""
        return self.perturbed or self.not_finite or self.wrong_next


def tensors_of(state: Any) -> Iterator[Tensor]:
    """All tensors in nested dicts and lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors_of(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors_of(value)


def all_finite(job: Job) -> bool:
    """No weight and no number of the optimizer's state is NaN or infinite."""
    found = [*job.params, *tensors_of(job.optimizer.state_dict())]
    return all(bool(t.isfinite().all()) for t in found if t.is_floating_point())


def same(left: Any, right: Any) -> bool:
    """Bitwise equality of nested dicts, lists and tensors."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _values(job: Job) -> list[Tensor]:
    return [p.detach().clone() for p in job.params]


def _whole(job: Job) -> tuple[list[Tensor], Any]:
    return _values(job), copy.deepcopy(job.optimizer.state_dict())


Arm = Callable[[Job], Any]  # sets the trap; may give a context in which the step is taken
Expect = Callable[[Job, int], None]  # what the step should have done to the twin


def nothing(twin: Job, seed: int) -> None:
    """The step should have left no trace."""


def left_out(twin: Job, seed: int) -> None:
    """The batch is left out: only the count of steps goes on."""
    twin.optimizer.steps_taken += 1


def plain(twin: Job, seed: int) -> None:
    """The base optimizer steps with g1; with lean memory g1 is gone, and the batch is left out."""
    if twin.setting.lean:
        left_out(twin, seed)
    else:
        twin.plain_step(seed)


def try_fault(
    setting: Setting, arm: Arm, expect: Expect = nothing, *, seed: int = 0, warm: int = 1
) -> Outcome:
    """Take one step with the fault that ``arm`` sets, and judge what it left.

    Args:
        expect: does to an untouched copy of the job what is documented for this fault; where the
            step raises an error, that is nothing. The peer is held to the weights alone.
    """
    job = make_job(setting, seed, warm)
    twin = make_job(setting, seed, warm)  # equal bit for bit; peers cannot be copied
    places = [p.data_ptr() for p in job.params]
    error, seen = None, None
    context = arm(job)
    try:
        with context if context is not None else nullcontext():
            job.step(seed + 100)
    except BaseException as raised:
        if not isinstance(raised, (*ERRORS.values(), RuntimeError)):
            raise
        error = type(raised).__name__
        seen = _values(job)  # what a handler of the error finds, and may save
    sprung = job.trap.sprung
    job.mend()
    if error is None and not sprung:
        return Outcome(False, False, False, None, sprung=False)
    judged_by_weights_alone = setting.peer and error is None
    if error is None and not setting.peer:
        expect(twin, seed + 100)
    moved = [p.data_ptr() for p in job.params] != places
    after = [_values(job)] if seen is None else [seen, _values(job)]
    same_weights = judged_by_weights_alone or all(same(v, _values(twin)) for v in after)
    perturbed = moved or not same_weights
    late = perturbed and not moved and same(after[-1], _values(twin))
    not_finite = not all_finite(job)
    if judged_by_weights_alone:
        return Outcome(perturbed, not_finite, not_finite, error)
    for one in (job, twin):
        one.step(seed + 200)
    wrong = not same(_whole(job), _whole(twin))
    return Outcome(perturbed, not_finite, wrong, error, late=late)


# ---- the faults ---------------------------------------------------------------------------------


def raising(call: int, place: str, kind: str) -> Arm:
    """The closure raises an error at its ``call``-th call."""

    def fail(_: Job) -> None:
        raise ERRORS[kind](f"{kind} {place}")

    def arm(job: Job) -> None:
        job.trap = Trap(call, place, fail)

    return arm


def bad_loss(call: int, value: float) -> Arm:
    """The loss of this call is multiplied by NaN or infinity."""

    def spoil(job: Job) -> None:
        job.factor = value

    def arm(job: Job) -> None:
        job.trap = Trap(call, "before the forward", spoil)

    return arm


def bad_gradient(call: int, value: float, entries: int | None) -> Arm:
    """So many entries of one gradient (None: all) become NaN or infinite in this call."""

    def put(grad: Tensor) -> Tensor:
        factor = torch.ones_like(grad)
        factor.view(-1)[:entries] = value
        return grad * factor

    def arm(job: Job) -> None:
        def spoil(grad: Tensor) -> Tensor:
            if job.calls != call:
                return grad
            job.trap.sprung = True
            return put(grad)

        job.spoil = spoil

    return arm


def close(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Equal up to a few roundings."""
    return all(
        torch.allclose(a, b, rtol=16 * torch.finfo(a.dtype).eps, atol=1e-7)
        for a, b in zip(left, right, strict=True)
    )


def other_graph(setting: Setting, call: int, new: bool, *, seed: int = 0, warm: int = 1) -> Outcome:
    """From this call on the graph has lost a head, or has gained one.

    What is lost steps with g1, as in a plain step; what is new has no g1 and does not step. The
    peer must only put back what it has shifted.
    """
    job, twin = make_job(setting, seed, warm), make_job(setting, seed, warm)
    head = job.net.heads[2 if new else 1]
    before = [p.detach().clone() for p in head.parameters()]

    def swap(job: Job) -> None:
        job.heads = (0, 1, 2) if new else (0,)

    job.trap = Trap(call, "before the forward", swap)
    job.step(seed + 100)
    sprung = job.trap.sprung
    job.mend()
    expected = before
    if not setting.peer:
        twin.plain_step(seed + 100)
        expected = list(twin.net.heads[2 if new else 1].parameters())
    if setting.lean and "did not step" in (job.optimizer.stats.skipped or ""):
        expected = before  # its g1 was used up, and the whole step is left out
    after = list(head.parameters())
    # lean memory has scaled its g1 and scales it back, which rounds
    equal = close if setting.lean else same
    perturbed = not (equal(after, expected) or (setting.peer and new))
    fresh = make_job(setting, seed, 0)
    fresh.net.load_state_dict(job.net.state_dict())
    fresh.optimizer.load_state_dict(copy.deepcopy(job.optimizer.state_dict()))
    for one in (job, fresh):
        one.step(seed + 200)
    wrong = not same(_whole(job), _whole(fresh))
    return Outcome(perturbed, not all_finite(job), wrong, None, sprung)


class OutOfMemory(TorchDispatchMode):
    """The n-th operation that needs new memory (from 0) fails, whoever asks; not in the base."""

    def __init__(self, job: Job, number: int) -> None:
        super().__init__()
        self.job, self.left, self.paused = job, number, False
        base = job.optimizer.base_optimizer if job.setting.peer else job.optimizer.base
        base.register_step_pre_hook(lambda *_: setattr(self, "paused", True))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        allocates = not (func._schema.is_mutable or func.is_view or self.paused)
        if allocates and self.left == 0:
            self.left, self.job.trap.sprung = -1, True
            raise torch.OutOfMemoryError(f"out of memory in {func}")
        self.left -= allocates
        return func(*args, **(kwargs or {}))


def out_of_memory(number: int) -> Arm:
    """The allocation of this number fails, in the closure's calls or in the optimizer's own."""
    return lambda job: OutOfMemory(job, number)


@contextmanager
def interrupted_at(job: Job, number: int, module: str) -> Iterator[None]:
    """Ctrl-C (SIGINT) at the n-th moment at which Python would notice it inside these files.

    Python looks for signals at the start of a function, when a call returns and when a loop goes
    round; a signal that came during a long operation is noticed when its call returns.
    """
    left = number
    base = job.optimizer.base_optimizer if job.setting.peer else job.optimizer.base
    base.register_step_pre_hook(lambda *_: sys.settrace(None))  # the base's own step is its own

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(module):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        code, done = frame.f_code.co_code, -1

        def inside(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left, done
            if event == "opcode":
                before = dis.opname[code[done]] if done >= 0 else ""
                done = frame.f_lasti
                if before.startswith("CALL") or before in ("RESUME", "JUMP_BACKWARD"):
                    left -= 1
                    if left == -1:
                        job.trap.sprung = True
                        signal.raise_signal(signal.SIGINT)
            return inside

        return inside

    before = sys.gettrace()
    # a collection in between would run the ends of generators of earlier tries, where Python
    # swallows errors
    gc.disable()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)
        gc.enable()


def interrupt(number: int, module: str = FLATOPT) -> Arm:
    """Ctrl-C at any one moment inside the files whose path begins with ``module``."""
    return lambda job: interrupted_at(job, number, module)
