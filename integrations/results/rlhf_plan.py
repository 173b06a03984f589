"""What is run for docs/results/rlhf.md: six candidates of each method, and the reported settings.

The horizon is 100 steps, by which the proxy of world A has been over-optimised without
regularization; every run goes on to twice the horizon, where settings are chosen and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import methods
from ..arm import Arm
from ..worlds.calibrate_preferences import TRAINER
from ..worlds.preference_task import PreferenceWorld
from ..worlds.preferences import world

STEPS = 200
KINDS = ("A", "B")
TUNING = (50,)  # world seed and run seed of the runs that settings are chosen on
FIVE = ((0, 0), (1, 1), (0, 2), (1, 3), (0, 4))
FURTHER = ((2, 0), (3, 1), (4, 2), (5, 3), (6, 4))  # five more worlds, one run in each
FRESH = ((7, 0), (8, 1), (9, 2), (10, 3), (11, 4))  # for what the further worlds chose
REWARD_WAYS = (("grm", 0.1), ("gr", 0.3))  # besides Bradley-Terry
BEST_IN_A = 0.05  # the beta with the most gold in A alone on the tuning seed
BETAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


@dataclass(frozen=True)
class Setting:
    """One row of a comparison: a method and what it changes."""

    label: str
    method: str
    config: dict[str, Any] = field(default_factory=dict)  # fields of GRPOConfig
    gr: dict[str, Any] = field(default_factory=dict)  # arguments of flatopt.attach
    reset: dict[str, Any] = field(default_factory=dict)  # arguments of ReferenceReset
    control: dict[str, Any] = field(default_factory=dict)  # arguments of controls.Control
    reward: dict[str, Any] = field(default_factory=dict)  # of RewardSettings
    scale: float = 1.0  # factor on the reward
    trainer: str | None = None
    probe: bool = False  # measure gradient norm and sharpness on fresh samples


def make_arm(setting: Setting, kind: str, world_seed: int, seed: int) -> Arm:
    """The run of a setting, as `python -m integrations rlhf` would make it."""
    trainer = TRAINER | {"max_steps": STEPS, "logging_steps": 4}
    recipe = {"gr": {"ratio": 1.0, "samples": "importance"}}
    method = methods.resolve(
        setting.method, trainer, recipe, setting.config, setting.gr, setting.reset
    )
    weights = [setting.scale * w for w in method.config["reward_weights"]]
    return Arm(
        method.name,
        seed,
        None,
        None,
        method.config | {"reward_weights": weights},
        method.gr,
        world=PreferenceWorld(kind, world(world_seed, **setting.reward)),
        trainer=setting.trainer,
        reference=method.reference,
        control=setting.control or None,
        watch={"every": 20} if setting.probe else None,
    )


def candidates() -> dict[str, list[Setting]]:
    """Six settings of each tuned method, the main ones first.

    The three combinations with a KL term had their best value at the lower end of a first grid of
    betas (.1 to .4, .2 to .4), resets and beta / i at the upper end of theirs (.2 to .8); these are
    the second grids.
    """
    ratios = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    resets = [(0.4, 50), (0.8, 25), (0.8, 50), (1.6, 25), (1.6, 50), (1.6, 100)]
    return {
        "kl": [Setting(f"kl {b}", "kl", {"beta": b}) for b in BETAS],
        "gr": [Setting(f"gr {r}", "gr", gr={"ratio": r}) for r in ratios],
        "gr+kl": [
            Setting(f"gr {r} + kl {b}", "gr+kl", {"beta": b}, {"ratio": r})
            for r in (1.0, 2.0)
            for b in (0.05, 0.1, 0.2)
        ],
        "squash+kl": [
            Setting(f"squash {x} + kl {b}", "kl", {"beta": b}, control={"squash": x})
            for x in (1.0, 2.0)
            for b in (0.025, 0.05, 0.1)
        ],
        "advantage clip+kl": [
            Setting(
                f"advantage clip {x} + kl {b}", "kl", {"beta": b}, control={"advantage_clip": x}
            )
            for x in (0.5, 1.0)
            for b in (0.05, 0.1, 0.2)
        ],
        "reset": [
            Setting(f"reset {b} every {k}", "reset", {"beta": b}, reset={"every": k})
            for b, k in resets
        ],
        "decay": [
            Setting(f"kl {b} / i every {k}", "kl", {"beta": b}, control={"decay_every": k})
            for b, k in resets
        ],
        "small lr": [
            Setting(f"lr {x:g}", "none", {"learning_rate": x})
            for x in (1e-5, 2e-5, 4e-5, 8e-5, 1.2e-4, 1.6e-4)
        ],
        "gradient clip": [
            Setting(f"gradient clip {x}", "none", {"max_grad_norm": x})
            for x in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
        ],
        "advantage clip": [
            Setting(f"advantage clip {x}", "none", control={"advantage_clip": x})
            for x in (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
        ],
        "squash": [
            Setting(f"squash {x}", "none", control={"squash": x})
            for x in (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
        ],
        "entropy": [
            Setting(f"entropy {x}", "none", {"entropy_coef": x})
            for x in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
        ],
        "gr strength": [
            Setting(f"gr strength {x}", "gr", gr={"strength": x})
            for x in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
        ],
        "cross-batch gr": [
            Setting(f"cross-batch gr {r}", "none", control={"cross_batch": {"ratio": r}})
            for r in ratios
        ],
    }


MAIN = ("kl", "gr", "gr+kl", "squash+kl", "advantage clip+kl", "reset")
FIRST = (*MAIN, "decay")  # tuned first; the rest are controls that stand alone
Plan = list[tuple[Setting, Sequence[str], Sequence[tuple[int, int]]]]  # kinds, seeds


def central(chosen: dict[str, Setting]) -> list[Setting]:
    """The arms that the page is about."""
    return [Setting("none", "none"), *(chosen[name] for name in MAIN)]


def main_plan(chosen: dict[str, Setting]) -> Plan:
    """The comparison itself, every beta and beta / i: five runs in each world."""
    others = [s for s in candidates()["kl"] if s != chosen["kl"]]
    return [(s, KINDS, FIVE) for s in (*central(chosen), *others, chosen["decay"])]


def more_plan(chosen: dict[str, Setting]) -> Plan:
    """The central arms in five further worlds: another language, gold and reward model each.

    In A also the beta that is best there on the tuning seed, though it does not survive B.
    """
    plan: Plan = [(s, KINDS, FURTHER) for s in central(chosen)]
    best_in_a = next(s for s in candidates()["kl"] if s.config["beta"] == BEST_IN_A)
    if best_in_a != chosen["kl"]:
        plan.append((best_in_a, ("A",), FURTHER))
    return plan


RETUNED = {  # the candidates that are tried again where one tuning world proved too few
    "gr+kl": ("gr 1.0 + kl 0.1", "gr 1.0 + kl 0.2", "gr 2.0 + kl 0.05", "gr 2.0 + kl 0.2"),
    "squash+kl": (
        "squash 1.0 + kl 0.025", "squash 1.0 + kl 0.05", "squash 2.0 + kl 0.05",
        "squash 2.0 + kl 0.1",
    ),
}  # fmt: skip


def retune_plan(chosen: dict[str, Setting]) -> Plan:
    """Four candidates of GR + KL and of its best rival in the five further worlds.

    Together with `more_plan`, which has the chosen ones.
    """
    settings = [s for f, labels in RETUNED.items() for s in candidates()[f] if s.label in labels]
    return [(s, KINDS, FURTHER) for s in settings if s not in chosen.values()]


def confirm_plan(again: dict[str, Setting]) -> Plan:
    """The settings that the further worlds chose, in five worlds that nothing was chosen on.

    `again`: the chosen settings, those of `RETUNED` chosen anew; they also go to the first worlds.
    """
    best_in_a = next(s for s in candidates()["kl"] if s.config["beta"] == BEST_IN_A)
    arms = [Setting("none", "none"), again["kl"], again["gr+kl"], again["squash+kl"]]
    plan: Plan = [(s, KINDS, FRESH) for s in arms]
    if best_in_a not in arms:
        plan.append((best_in_a, ("A",), FRESH))
    return [*plan, (again["gr+kl"], KINDS, FIVE)]


def control_plan(chosen: dict[str, Setting]) -> Plan:
    """Other controls, the gold reward as the reward, RLOO: one or two runs in each world."""
    plan: Plan = [(Setting("true", "true"), ("A",), FIVE[:2])]
    plan += [(chosen[name], KINDS, FIVE[:2]) for name in chosen if name not in FIRST]
    for s in (Setting("none", "none"), *(chosen[name] for name in ("kl", "gr", "gr+kl"))):
        changed = Setting(f"{s.label}, RLOO", s.method, s.config, s.gr, trainer="rloo")
        plan.append((changed, KINDS, FIVE[:1]))
    return plan


def probe_plan(chosen: dict[str, Setting]) -> Plan:
    """The main arms once more, with gradient norm and sharpness on fresh samples (claim C1)."""
    arms = [Setting("none", "none"), *(chosen[n] for n in ("reset", "gr", "gr+kl"))]
    return [
        (
            Setting(f"{s.label}, probed", s.method, s.config, s.gr, s.reset, probe=True),
            KINDS,
            FIVE,
        )
        for s in arms
    ]


def scale_plan(chosen: dict[str, Setting]) -> Plan:
    """One ratio over a decade of learning rates and two decades of reward scales.

    Fewer or more steps in proportion, within bounds, so that the policies go about as far.
    """
    plan: Plan = []
    regularized = [chosen[n] for n in ("gr", "gr+kl", "gr strength") if n in chosen]
    arms = [Setting("none", "none"), *regularized]
    for rate, steps in ((1.5e-4, 400), (6e-4, 200), (1.5e-3, 200)):
        for s in arms:
            config = s.config | {"learning_rate": rate, "max_steps": steps}
            changed = Setting(f"{s.label}, lr {rate:g}", s.method, config, s.gr)
            plan.append((changed, KINDS, FIVE[:1]))
    for scale in (0.1, 10.0):
        for s in arms[1:]:
            config = dict(s.config)
            if "beta" in config:
                config["beta"] *= scale  # in units of the reward
            label = f"{s.label}, reward x {scale:g}"
            plan.append((Setting(label, s.method, config, s.gr, scale=scale), KINDS, FIVE[:1]))
    return plan


def reward_plan(chosen: dict[str, Setting]) -> Plan:
    """Reward models trained on fewer and more pairs (C4), and in other ways (GRM, GR)."""
    plan: Plan = []
    best_in_a = next(s for s in candidates()["kl"] if s.config["beta"] == BEST_IN_A)
    arms = [Setting("none", "none"), best_in_a, chosen["gr"], chosen["gr+kl"]]
    for pairs in (300, 3000):
        for s in arms:
            label = f"{s.label}, {pairs} pairs"
            changed = Setting(label, s.method, s.config, s.gr, reward={"pairs": pairs})
            plan.append((changed, ("A",), FIVE[:3]))
    for method, amount in REWARD_WAYS:
        for s in arms[:2]:
            label = f"{s.label}, reward model {method} {amount:g}"
            reward = {"method": method, "amount": amount}
            changed = Setting(label, s.method, s.config, s.gr, reward=reward)
            plan.append((changed, ("A",), FIVE[:3]))
    return plan
