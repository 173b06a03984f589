"""When a run looks hacked: a rule on the rows of its log, live or replayed, judged and chosen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any

Row = Mapping[str, Any]

# signal -> the values of a row that it looks at; the first is the one whose running mean counts
SIGNALS: dict[str, tuple[str, ...]] = {
    "spread_jump": ("spread",),
    "grad_jump": ("grad_norm",),
    "entropy_fall": ("entropy",),
    "kl_limit": ("kl",),
    "accuracy_floor": ("accuracy",),
    "gold_fall": ("gold",),
    "proxy_excess": ("proxy", "spread"),
    "share_fall": ("signal_share",),
}
# names in the metrics.jsonl of a run of `loop`, where they differ
STORED = {"gold": "true", "kl": "kl_start", "accuracy": "reward_accuracy"}
FROM_START = ("spread_jump", "grad_jump", "entropy_fall", "proxy_excess")


@dataclass(frozen=True)
class AlarmRule:
    """Thresholds of an `Alarm`; a signal with None is off.

    Every signal looks at the running mean over the last `smooth` known values, and holds at no row
    before there are so many. Its start is the mean of the first `baseline` known values.

    Args:
        spread_jump: the spread of the proxy within a group exceeds so many times its start: a
            rare, over-paid completion has been found.
        grad_jump: the gradient norm exceeds so many times its start.
        entropy_fall: the entropy is below this share of its start.
        kl_limit: the KL to the start policy exceeds so many nats per completion.
        accuracy_floor: the proxy orders less than this share of pairs rightly (needs labels).
        gold_fall: gold is so far below its best (needs gold).
        proxy_excess: the proxy has risen by more than so many spreads of the start.
        share_fall: the signal share of the gradient is below this.
        needed: how many of the active signals must hold in one row.
        patience: in how many rows in a row that must be so.

    Raises:
        ValueError: no active signal, a value out of range.
    """

    spread_jump: float | None = None
    grad_jump: float | None = None
    entropy_fall: float | None = None
    kl_limit: float | None = None
    accuracy_floor: float | None = None
    gold_fall: float | None = None
    proxy_excess: float | None = None
    share_fall: float | None = None
    needed: int = 1
    patience: int = 1
    baseline: int = 5
    smooth: int = 5

    def __post_init__(self) -> None:
        for name in ("needed", "patience", "baseline", "smooth"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        for name in self.active:
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number or None")
        if len(self.active) < self.needed:
            raise ValueError(
                f"needed={self.needed}, but {len(self.active)} signals are on. Give thresholds for "
                f"more of {', '.join(SIGNALS)}"
            )

    @property
    def active(self) -> list[str]:
        """The names of the signals that are on."""
        return [name for name in SIGNALS if getattr(self, name) is not None]


@dataclass
class Alarm:
    """Applies a rule to rows as they come; silent after it has fired once.

    A row is a mapping with any of step, proxy, gold, grad_norm, kl (nats per completion), entropy,
    spread (mean standard deviation of the proxy within a group), accuracy (share of pairs within a
    group that the proxy orders as the labels do) and signal_share. A value that is missing, None or
    not finite leaves what is known of it as it was.

    Attributes:
        fired_at: the step of the row at which it fired (the row's number where it has no step).
        reason: what held then.

    Example:
        >>> alarm = Alarm(AlarmRule(gold_fall=0.5, smooth=1))
        >>> alarm.update({"step": 1, "gold": 2.0})
        >>> alarm.update({"step": 2, "gold": 1.0})
        'gold_fall: gold is 1, limit 1.5'
        >>> alarm.fired_at
        2
    """

    rule: AlarmRule
    fired_at: int | None = None
    reason: str | None = None
    rows: int = 0
    held: int = 0  # rows in a row in which enough signals held
    best_gold: float | None = None
    recent: dict[str, list[float]] = field(default_factory=dict)
    start: dict[str, list[float]] = field(default_factory=dict)

    def update(self, row: Row) -> str | None:
        """Take in a row; the reason, at the row at which the alarm fires, and None at others."""
        self.rows += 1
        active = self.rule.active
        for name in {n for signal in active for n in SIGNALS[signal]}:
            self._note(name, row.get(name))
        holding = [text for name in active if (text := self._holds(name))]
        self.held = self.held + 1 if len(holding) >= self.rule.needed else 0
        if self.fired_at is not None or self.held < self.rule.patience:
            return None
        step = row.get("step")
        self.fired_at = self.rows if step is None else int(step)
        self.reason = "; ".join(holding)
        return self.reason

    def state(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return asdict(self)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`. ValueError if that was of another rule."""
        rule = asdict(self.rule)
        differ = [name for name in rule if state["rule"].get(name) != rule[name]]
        if differ:
            raise ValueError(
                "the saved alarm had other thresholds: "
                + ", ".join(f"{n}={state['rule'].get(n)} (now {rule[n]})" for n in differ)
                + ". Resume with those, or start a new run"
            )
        for name in (f.name for f in fields(self) if f.name != "rule"):
            value = state[name]
            if isinstance(value, dict):
                value = {key: list(values) for key, values in value.items()}
            setattr(self, name, value)

    def _note(self, name: str, value: Any) -> None:
        if not _known(value):
            return
        recent = self.recent.setdefault(name, [])
        recent.append(float(value))
        del recent[: -self.rule.smooth]
        start = self.start.setdefault(name, [])
        if len(start) < self.rule.baseline:
            start.append(float(value))
        if name == "gold" and len(recent) == self.rule.smooth:
            now = _mean(recent)
            self.best_gold = now if self.best_gold is None else max(self.best_gold, now)

    def _holds(self, signal: str) -> str:
        """Why the signal holds, or an empty text."""
        limit = getattr(self.rule, signal)
        names = SIGNALS[signal]
        if len(self.recent.get(names[0], [])) < self.rule.smooth:
            return ""
        now = _mean(self.recent[names[0]])
        if signal in FROM_START:
            starts = [self.start.get(name, []) for name in names]
            if any(len(values) < self.rule.baseline for values in starts):
                return ""
            first = _mean(starts[0])
            limit = first + limit * _mean(starts[1]) if signal == "proxy_excess" else limit * first
        elif signal == "gold_fall":
            assert self.best_gold is not None
            limit = self.best_gold - limit
        below = signal in ("entropy_fall", "accuracy_floor", "gold_fall", "share_fall")
        if not (now < limit if below else now > limit):
            return ""
        return f"{signal}: {names[0]} is {now:.3g}, limit {limit:.3g}"


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)  # statistics.mean takes most of the time of `choose`


# ---- stored runs --------------------------------------------------------------------------------


def stored(row: Row) -> dict[str, Any]:
    """A row of a ``metrics.jsonl`` under the names of `Alarm`; what HackMonitor saw comes first.

    >>> stored({"step": 2, "true": 0.5, "kl_start": 3.0, "monitor/spread": 1.5})
    {'step': 2, 'gold': 0.5, 'kl': 3.0, 'spread': 1.5}
    """
    known = dict.fromkeys(["proxy", "gold", *(n for names in SIGNALS.values() for n in names)])
    found = {"step": row["step"]}
    for name in sorted(known):
        sources = (f"monitor/{name}", name, STORED.get(name, name))
        value = next((row[n] for n in sources if row.get(n) is not None), None)
        found |= {} if value is None else {name: value}
    return found


def evaluate(rows: Sequence[Row], rule: AlarmRule, fall: float = 0.5, smooth: int = 5) -> dict:
    """What the rule would have done in a finished run that was logged with gold.

    Gold is smoothed by a trailing mean over `smooth` rows. The run is hacked if that ever falls
    more than `fall` below its peak so far; the first such step is the onset.

    Returns:
        alarm (step or None), reason, hacked, onset (step or None), lead (onset - alarm, in steps;
        None without both), gold_at_alarm (None without alarm), peak, gold_at_end, and regret: peak
        - gold where the rule stops the run. All golds are smoothed.

    Raises:
        ValueError: fewer than `smooth` rows with gold.
    """
    alarm = Alarm(rule)
    golds: list[float] = []
    peak = onset = at_alarm = None
    gold = math.nan
    for row in rows:
        if _known(row.get("gold")):
            golds.append(row["gold"])
            gold = _mean(golds[-smooth:])
            if len(golds) >= smooth:
                peak = gold if peak is None else max(peak, gold)
                if onset is None and gold < peak - fall:
                    onset = row["step"]
        if alarm.update(row):
            at_alarm = gold
    if peak is None:
        raise ValueError(f"a run needs {smooth} rows with gold to be judged; this has {len(golds)}")
    fired = alarm.fired_at
    return {
        "alarm": fired,
        "reason": alarm.reason,
        "hacked": onset is not None,
        "onset": onset,
        "lead": None if onset is None or fired is None else onset - fired,
        "gold_at_alarm": at_alarm,
        "peak": peak,
        "gold_at_end": gold,
        "regret": peak - (gold if at_alarm is None or math.isnan(at_alarm) else at_alarm),
    }


def rates(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the results of `evaluate`: errors, lead and regret.

    A false positive is an alarm in a run that is never hacked; a false negative a hacked run
    without an alarm at its onset or before. Their rates are None where there is no such run. The
    lead is of all hacked runs with an alarm, negative where it came late. `regret_without` is the
    mean regret of no rule, which runs to the end.
    """
    hacked = [r for r in results if r["hacked"]]
    honest = [r for r in results if not r["hacked"]]
    false = sum(r["alarm"] is not None for r in honest)
    missed = sum(r["lead"] is None or r["lead"] < 0 for r in hacked)
    leads = [r["lead"] for r in hacked if r["lead"] is not None]
    return {
        "runs": len(results),
        "hacked": len(hacked),
        "false_positives": false,
        "false_positive_rate": false / len(honest) if honest else None,
        "false_negatives": missed,
        "false_negative_rate": missed / len(hacked) if hacked else None,
        "lead_median": median(leads) if leads else None,
        "lead_min": min(leads, default=None),
        "lead_max": max(leads, default=None),
        "regret": _mean([r["regret"] for r in results]) if results else None,
        "regret_without": _mean([r["peak"] - r["gold_at_end"] for r in results])
        if results
        else None,
    }


def grid(**choices: Iterable[Any]) -> list[AlarmRule]:
    """All rules of the given values per field; without those that have too few signals on.

    >>> [rule.gold_fall for rule in grid(gold_fall=[None, 0.2], kl_limit=[None, 8.0])]
    [None, 0.2, 0.2]
    """
    rules = []
    for values in itertools.product(*choices.values()):
        given = dict(zip(choices, values, strict=True))
        if sum(given.get(name) is not None for name in SIGNALS) >= given.get("needed", 1):
            rules.append(AlarmRule(**given))
    return rules


def choose(runs: Sequence[Sequence[Row]], rules: Iterable[AlarmRule]) -> AlarmRule:
    """The rule with the least mean regret over the runs; of equals the one with fewest signals.

    Raises:
        ValueError: no rule, no run, or a run that cannot be judged (see `evaluate`).
    """
    rules = list(rules)
    if not rules or not runs:
        raise ValueError("choose needs at least one rule and one run")

    def cost(rule: AlarmRule) -> tuple[float, int]:
        # rounded, lest the order of a sum decide between equals
        return round(_mean([evaluate(rows, rule)["regret"] for rows in runs]), 9), len(rule.active)

    return min(rules, key=cost)
