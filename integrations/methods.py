"""What each method name means as settings of TRL's GRPOConfig and of flatopt.attach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PARTS = {
    "none": "the reward alone",
    "kl": "a KL term to the starting policy (beta)",
    "reset": "a KL term whose reference is reset to the policy on schedule",
    "gr": "gradient regularization by flatopt.attach",
    "matched": "control: no regularization, each step as long as the gr run's of the same seed",
    "true": "control: the true reward is trained on, the proxy is only watched",
}
# set by the method, so a value on the command line would make its name a lie
RESERVED = ("output_dir", "seed", "reward_weights", "sync_ref_model")
KL_FIELDS = ("beta", "ref_model_sync_steps", "ref_model_mixup_alpha")
# arguments of flatopt.ReferenceReset; TRL's own names for the first two are understood too
RESET_FIELDS = ("every", "mix", "source", "target", "ema_decay", "reset_optimizer")
TRL_RESET = {"ref_model_sync_steps": "every", "ref_model_mixup_alpha": "mix"}
GR_FIELDS = (
    "ratio", "strength", "radius", "eps", "difference", "samples", "exclude", "max_ratio", "every",
    "fraction", "batch", "memory",
)  # fmt: skip
COMBINED = (*GR_FIELDS, "beta")  # of gr+kl, where it is set apart from gr and kl
EITHER_OR = (("ratio", "strength"), ("radius", "eps"))


@dataclass(frozen=True)
class Method:
    """A method as settings: fields of the trainer's config, and arguments of flatopt.attach,
    flatopt.ReferenceReset and controls.Control, or None."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    gr: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None
    control: dict[str, Any] | None = None


def split(name: str) -> tuple[str, ...]:
    """The parts of a method name, in a fixed order; ValueError for a name that makes no sense.

    >>> split("kl+gr")
    ('gr', 'kl')
    """
    parts = name.split("+")
    for part in parts:
        if part not in PARTS:
            known = ", ".join(PARTS)
            raise ValueError(f"unknown method {part!r}; known: {known}, and '+' as in gr+kl")
    if len(set(parts)) < len(parts):
        raise ValueError(f"method {name!r} names a part twice")
    if "none" in parts and len(parts) > 1:
        raise ValueError(f"method {name!r}: none stands alone")
    if {"kl", "reset"} <= set(parts):
        raise ValueError(f"method {name!r}: reset already has a KL term, write it without kl")
    if {"gr", "matched"} <= set(parts):
        raise ValueError(f"method {name!r}: matched is the control of gr, not a part of it")
    return tuple(part for part in ("true", "gr", "matched", "kl", "reset", "none") if part in parts)


def _merge(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `defaults`, where giving one of two alternatives drops the other's default."""
    merged = dict(defaults)
    for pair in EITHER_OR:
        if sum(name in given for name in pair) == 2:
            raise ValueError(f"give --{pair[0]} or --{pair[1]}, not both")
        if any(name in given for name in pair):
            for name in pair:
                merged.pop(name, None)
    return merged | given


def resolve(
    name: str,
    trainer: dict[str, Any],
    recipe: dict[str, dict[str, Any]],
    given: dict[str, Any],
    given_gr: dict[str, Any],
    given_reset: dict[str, Any] | None = None,
) -> Method:
    """The settings of one method: the command line wins over the recipe's part for the method,
    which wins over the recipe's part for the trainer.

    `beta` and the reset's fields reach only methods with a KL term: `none` must stay none.
    """
    parts = split(name)
    config = dict(trainer)
    config["beta"] = 0.0
    config["reward_weights"] = [0.0, 1.0] if "true" in parts else [1.0, 0.0]
    kl = next((part for part in parts if part in ("kl", "reset")), None)
    reference = None
    # a combination may have settings of its own, over those of its parts
    own = recipe.get("+".join(parts), {}) if len(parts) > 1 else {}
    own_gr = {k: v for k, v in own.items() if k != "beta"}
    if kl:
        part = {TRL_RESET.get(k, k): v for k, v in recipe.get(kl, {}).items()}
        config["beta"] = own.get("beta", part.get("beta", 0.1))
        part.pop("beta", None)
        if kl == "reset":
            named = {new: given[old] for old, new in TRL_RESET.items() if old in given}
            reference = {"every": 50} | part | named | (given_reset or {})
    config |= {k: v for k, v in given.items() if k not in TRL_RESET and (kl or k != "beta")}
    if kl and not config["beta"] > 0:
        raise ValueError(f"method {name!r} needs beta > 0, got {config['beta']}")
    gr = _merge(_merge(recipe.get("gr", {}), own_gr), given_gr) if "gr" in parts else None
    if gr is not None and not ({"ratio", "strength"} & set(gr)):
        raise ValueError("method gr needs --ratio or --strength (or one of them in the recipe)")
    control = {"match": True} if "matched" in parts else None
    return Method("+".join(parts), config, gr, reference, control)


def check_used(
    methods: list[str],
    given: dict[str, Any],
    given_gr: dict[str, Any],
    given_reset: dict[str, Any] | None = None,
) -> None:
    """ValueError when an option was given that none of the methods uses."""
    parts = {part for name in methods for part in split(name)}
    for name in given:
        if name in RESERVED:
            raise ValueError(f"--{name} is set by the method; choose the method with --method")
        if name in KL_FIELDS and not parts & {"kl", "reset"}:
            raise ValueError(f"--{name} has no effect: no method has a KL term (kl, reset)")
        if name in TRL_RESET and "reset" not in parts:
            raise ValueError(f"--{name} has no effect, since reset is not among the methods")
    if given_reset and "reset" not in parts:
        names = ", ".join(f"--reset_{name}" for name in given_reset)
        raise ValueError(f"{names}: no effect, since reset is not among the methods")
    if given_gr and "gr" not in parts:
        names = ", ".join(f"--{name}" for name in given_gr)
        raise ValueError(f"{names}: no effect, since gr is not among the methods")
