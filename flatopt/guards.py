"""What a user may hand over: bases, gradients, numbers, exclusions, loss scalers; refusals."""

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer, SparseAdam

from flatopt.difference import DIFFERENCES
from flatopt.precision import DEFAULT_RADIUS
from flatopt.wrapper import OptimizerWrapper

TWO_PASSES = """\
    loss_fn(model, batch).backward()
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            loss_fn(model, batch).backward()
    optimizer.step()"""
REPLACED = (
    "\nThe gradients of the last passes were replaced since. To clip or scale a combined gradient, "
    "change it in place, as clip_grad_norm_ does."
)
CLOSURE_UNDER_SCALER = """\
a closure cannot be used with GradScaler: its gradients would reach the optimizer multiplied by \
the loss scale. Write the two passes instead:
    scaler.scale(loss_fn(model, batch)).backward()
    with optimizer.perturbed(scaler=scaler):
        scaler.scale(loss_fn(model, batch)).backward()
    scaler.step(optimizer); scaler.update()"""
SCALER_NOT_TOLD = """\
the losses were scaled by a GradScaler that perturbed() was not told of: the penalty would be too \
strong by the loss scale. Write
    with optimizer.perturbed(scaler=scaler):
        scaler.scale(loss_fn(model, batch)).backward()"""


def check_base(base: Any) -> None:
    """Refuse what cannot be a base, with what to write instead."""
    if isinstance(base, OptimizerWrapper):
        raise TypeError("the base is already a GradRegOptimizer; wrap the plain optimizer once")
    if type(base).__module__.startswith("deepspeed."):
        raise TypeError(
            f"{type(base).__name__} is DeepSpeed's own: it keeps gradients and weights to itself. "
            "With ZeRO stage 1 or 2 write GradRegOptimizer(flatopt.zero.ZeroEngine(engine)), else "
            "use DDP or FSDP2"
        )
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


def no_gradient(params: Iterable[Tensor]) -> str:
    """What to say where no parameter has a ``.grad``."""
    if any(getattr(p, "main_grad", None) is not None for p in params):
        return (
            "perturbed() found gradients in .main_grad only, as Megatron and apex keep them; GR "
            "reads .grad. Turn the fusion of gradient accumulation off, or copy them to .grad in "
            "both passes"
        )
    return (
        f"perturbed() found no gradient: call backward() on the loss before it. Write\n{TWO_PASSES}"
    )


def check_gradients(params: Iterable[Tensor]) -> None:
    """Refuse gradients that GR cannot combine, and parameters that cannot be shifted."""
    places: set[int] = set()
    for p in params:
        if any(step == 0 and size > 1 for step, size in zip(p.stride(), p.shape, strict=True)):
            raise ValueError(
                "a parameter is an expanded tensor, whose elements share memory, so it cannot be "
                "changed in place: make it with .clone()"
            )
        if type(p) in (Tensor, torch.nn.Parameter) and p.numel() and p.device.type != "meta":
            if p.data_ptr() in places:
                raise ValueError(
                    "two parameters share memory; it would be shifted twice. Use one Parameter in "
                    "both modules: module.parameters() then lists it once"
                )
            places.add(p.data_ptr())
        if p.grad is not None and p.grad.is_sparse:
            raise ValueError(
                "GR needs dense gradients: build the layer with sparse=False, as in "
                "torch.nn.Embedding(..., sparse=False)"
            )
        if p.is_complex():
            raise ValueError(
                "GR needs real parameters: keep the complex ones as real pairs, "
                "torch.view_as_real(p), or leave them to a second optimizer"
            )


def sets_up_state(groups: Sequence[dict[str, Any]]) -> bool:
    """True for the step that torch.distributed.checkpoint makes to set up a state: it is no step.

    All learning rates and gradients are zero in it.
    """
    for group in groups:
        lr = group.get("lr")
        if lr is None or (isinstance(lr, Tensor) and lr.device.type != "cpu") or float(lr) != 0.0:
            return False
    return not has_signal(groups)


def check_modes(memory: str, batch: str, fraction: float, difference: str, max_ratio: Any) -> None:
    """Refuse unknown or contradicting ways to take the passes."""
    for name, value, known in (
        ("memory", memory, ("fast", "lean")),
        ("batch", batch, ("whole", "halves")),
        ("difference", difference, ("auto", *DIFFERENCES)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction!r}")
    if fraction < 1.0 and batch == "halves":
        raise ValueError(
            "give fraction or batch='halves', not both: halves are two parts of a half"
        )
    if memory == "lean":
        why = {
            f"difference={difference!r}": difference not in ("auto", "forward", "central"),
            "batch='halves'": batch == "halves",
            "max_ratio": max_ratio is not None,
        }
        for what, there in why.items():
            if there:
                raise ValueError(
                    f"memory='lean' cannot be had with {what}: it adds the second gradient onto "
                    "the first, which is then gone. Use memory='fast'"
                )


def has_signal(groups: Iterable[dict[str, Any]]) -> bool:
    """False where all gradients are zero: so torch.distributed.checkpoint sets up a state."""
    grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return not grads or any(g.is_sparse or bool(g.any()) for g in grads)


def warn_of_one_pass(stacklevel: int) -> None:
    """A single perturbed() block where the default difference has two."""
    warnings.warn(
        "the gradients have 16 bits here (bf16 weights or autocast), where one pass gives a poor "
        "difference. Take the passes that it needs:\n"
        f"{TWO_PASSES}\nor say difference='forward' to have one pass without this warning",
        stacklevel=stacklevel,
    )


PARTS = {
    "halves": """\
    loss_fn(model, first_half).backward()       # each loss with its share of the batch's weight
    optimizer.mark_part(0.5)
    loss_fn(model, second_half).backward()
    for number in range(optimizer.passes):      # the second half first
        with optimizer.perturbed():
            half = second_half if number < optimizer.passes // 2 else first_half
            loss_fn(model, half).backward()
    optimizer.step()""",
    "fraction": """\
    loss_fn(model, part).backward()             # each loss with its share of the batch's weight
    optimizer.mark_part(0.25)                   # the part's share
    loss_fn(model, rest).backward()
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            loss_fn(model, part).backward()     # the part alone
    optimizer.step()""",
}


def warn_of_eps(eps: float, stacklevel: int) -> None:
    """An absolute step in low precision."""
    warnings.warn(
        f"eps={eps:g} with 16-bit weights, autocast or TF32: the shifted weights round back to "
        "what they were, and the difference is mostly rounding noise (measured cosine with the "
        "true direction: .06 at eps=1e-3). Leave eps out: the default radius "
        f"{DEFAULT_RADIUS[torch.bfloat16]:g} is a step the weights can hold.",
        stacklevel=stacklevel,
    )


def number(name: str, value: Any) -> float:
    """``value`` as a finite float >= 0; numpy's numbers are numbers too."""
    return _real(value, f"{name} must be a finite number >= 0, got {value!r}", lambda x: x >= 0.0)


def positive(name: str, value: Any) -> float:
    """``value`` as a finite float > 0."""
    return _real(value, f"{name} must be a finite number > 0, got {value!r}", lambda x: x > 0.0)


def _real(value: Any, message: str, accepted: Callable[[float], bool]) -> float:
    if not isinstance(value, Real):
        raise TypeError(message)
    found = float(value)
    if not (math.isfinite(found) and accepted(found)):
        raise ValueError(message)
    return found


def whole_number(name: str, value: Any, *, minimum: int) -> int:
    """``value`` as an int >= minimum."""
    message = f"{name} must be a whole number >= {minimum}, got {value!r}"
    return int(_real(value, message, lambda x: x.is_integer() and x >= minimum))


# ---- excluded parameters ------------------------------------------------------------------------


def name_matches(name: str, item: str) -> bool:
    """Whether the parts of ``item`` stand in ``name``, whole and in a row, anywhere.

    So a name is found inside the wrappers of torch.compile, DDP and PEFT, and never a substring.

    Example:
        >>> name_matches("_orig_mod.model.embed_tokens.weight", "embed_tokens")
        True
        >>> name_matches("model.layers.11.weight", "layers.1")
        False
    """
    return f".{item}." in f".{name}."


def exclusions(items: Any, *, tensors: bool = True, names: bool = True) -> tuple[Any, ...]:
    """The argument ``exclude`` as a tuple of parameters and names; refuses anything else."""
    kinds = [kind for kind, taken in (("parameters", tensors), ("names", names)) if taken]
    takes = f"exclude takes {' and '.join(kinds)}"
    if isinstance(items, (str, Tensor)):
        items = (items,)
    elif isinstance(items, torch.nn.Module) or not isinstance(items, Iterable):
        raise TypeError(_not_excludable(takes, items, tensors))
    found = tuple(items)
    for item in found:
        if not (isinstance(item, Tensor) and tensors) and not (isinstance(item, str) and names):
            raise TypeError(_not_excludable(takes, item, tensors))
    return found


def _not_excludable(takes: str, item: Any, tensors: bool) -> str:
    text = f"{takes}, got {type(item).__name__}"
    if isinstance(item, torch.nn.Module):
        advice = "exclude=module.parameters()" if tensors else 'its name, such as "lm_head"'
        return f"{text}; for a module write {advice}"
    return text


def excluded_ids(items: Iterable[str | Tensor], groups: Sequence[dict[str, Any]]) -> set[int]:
    """Ids of the excluded parameters among those of an optimizer's parameter groups.

    Raises:
        ValueError: a tensor that is none of them, a name that none of them has.
    """
    names: list[tuple[str, Tensor]] = []
    known: set[int] = set()
    for group in groups:
        known.update(id(p) for p in group["params"])
        names.extend(zip(group.get("param_names", ()), group["params"], strict=False))
    excluded: set[int] = set()
    for item in items:
        if isinstance(item, Tensor):
            if id(item) not in known:
                raise ValueError(
                    "exclude holds a tensor that the base optimizer does not step; "
                    "give parameters of this optimizer, or their names"
                )
            excluded.add(id(item))
            continue
        found = [p for name, p in names if name_matches(name, item)]
        if not found:
            hint = (
                f"known names begin with {sorted(name for name, _ in names)[:3]}"
                if names
                else "the base has no names: build it from model.named_parameters()"
            )
            raise ValueError(f"exclude: no parameter is named {item!r}; {hint}")
        excluded.update(id(p) for p in found)
    return excluded


# ---- loss scalers -------------------------------------------------------------------------------


def scale_of(scaler: Any, optimizer: Optimizer) -> float:
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


def calling_scaler(depth: int = 8) -> Any:
    """The enabled GradScaler in whose step() the caller runs, or None.

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
