"""The alarm rule row by row, on stored runs, and chosen from a grid."""

import json
import math
import random
from dataclasses import asdict
from typing import Any

import pytest

from integrations.watch.alarm import SIGNALS, Alarm, AlarmRule, choose, evaluate, grid, rates

ONE: dict[str, Any] = {"smooth": 1, "baseline": 1}


def fired(rule: AlarmRule, rows: list[dict[str, Any]]) -> int | None:
    alarm = Alarm(rule)
    reasons = [alarm.update(row) for row in rows]
    said = [i for i, reason in enumerate(reasons, start=1) if reason]
    assert len(said) <= 1  # once
    assert alarm.fired_at == (said[0] if said else None)
    assert alarm.reason == (reasons[said[0] - 1] if said else None)
    return alarm.fired_at


def series(name: str, values: list[Any]) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


CASES = [
    ("spread_jump", 2.0, "spread", [1.0, 2.0, 2.1], [1.0, 2.0]),
    ("grad_jump", 3.0, "grad_norm", [0.5, 1.5, 1.6], [0.5, 1.5, 1.4]),
    ("entropy_fall", 0.5, "entropy", [2.0, 1.0, 0.9], [2.0, 1.0]),
    ("kl_limit", 8.0, "kl", [0.0, 8.0, 8.1], [0.0, 8.0]),
    ("accuracy_floor", 0.6, "accuracy", [0.7, 0.6, 0.59], [0.7, 0.6]),
    ("gold_fall", 0.5, "gold", [-2.0, -2.5, -2.6], [-2.0, -2.5, -1.0, -1.5]),
    ("share_fall", 0.2, "signal_share", [0.5, 0.2, -0.1], [0.5, 0.2]),
]


@pytest.mark.parametrize(("signal", "limit", "name", "fires", "silent"), CASES)
def test_each_signal_has_its_limit(
    signal: str, limit: float, name: str, fires: list[float], silent: list[float]
) -> None:
    rule = AlarmRule(**{signal: limit}, **ONE)
    assert fired(rule, series(name, fires)) == 3
    assert fired(rule, series(name, silent)) is None
    assert fired(rule, series("another", fires)) is None
    alarm = Alarm(rule)
    reason = [alarm.update(row) for row in series(name, fires)][-1]
    assert reason is not None
    assert reason.startswith(f"{signal}: {name} is ")


def test_the_proxy_is_measured_in_spreads_of_the_start() -> None:
    rows = [{"proxy": 1.0, "spread": 0.2}, {"proxy": 1.9, "spread": 9}, {"proxy": 2.1, "spread": 9}]
    assert fired(AlarmRule(proxy_excess=5.0, **ONE), rows) == 3
    assert fired(AlarmRule(proxy_excess=5.6, **ONE), rows) is None


def test_every_signal_is_tested() -> None:
    assert {case[0] for case in CASES} | {"proxy_excess"} == set(SIGNALS)


def test_the_best_gold_is_kept_through_zero() -> None:
    assert fired(AlarmRule(gold_fall=0.5, **ONE), series("gold", [0.0, -0.4, -0.6])) == 3


def test_running_means_and_the_start_need_their_rows() -> None:
    rule = AlarmRule(kl_limit=1.0, smooth=3)
    assert fired(rule, series("kl", [9, 9])) is None
    assert fired(rule, series("kl", [9, 9, 9])) == 3
    assert fired(rule, series("kl", [0, 0, 3.1])) == 3  # mean 1.03
    assert fired(rule, series("kl", [0, 0, 2.9])) is None
    rule = AlarmRule(spread_jump=2.0, smooth=1, baseline=3)
    assert fired(rule, series("spread", [1, 9, 2, 7.9])) is None  # the start is 4
    assert fired(rule, series("spread", [1, 9, 2, 8.1])) == 4


def test_values_that_are_missing_change_nothing() -> None:
    rule = AlarmRule(share_fall=0.2, smooth=2)
    values = [0.1, None, math.nan, math.inf, 0.2]
    assert fired(rule, [*series("signal_share", values), {}]) == 5
    rule = AlarmRule(share_fall=0.2, smooth=2, patience=3)
    assert fired(rule, [*series("signal_share", values), {}, {"step": 7}]) == 7


def test_patience_and_needed() -> None:
    rule = AlarmRule(kl_limit=1.0, patience=3, **ONE)
    assert fired(rule, series("kl", [2, 2, 0, 2, 2, 2])) == 6
    rule = AlarmRule(kl_limit=1.0, entropy_fall=0.5, needed=2, **ONE)
    rows = [{"kl": 2, "entropy": 1}, {"kl": 0, "entropy": 0.1}, {"kl": 2, "entropy": 0.1}]
    assert fired(rule, rows) == 3
    assert fired(AlarmRule(kl_limit=1.0, entropy_fall=0.5, **ONE), rows) == 1


def test_the_step_is_that_of_the_row() -> None:
    alarm = Alarm(AlarmRule(kl_limit=1.0, **ONE))
    alarm.update({"step": 20, "kl": 0.0})
    assert alarm.update({"step": 40, "kl": 2.0}) == "kl_limit: kl is 2, limit 1"
    assert alarm.fired_at == 40


def test_rules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="0 signals are on"):
        AlarmRule()
    with pytest.raises(ValueError, match="needed=2, but 1 signals"):
        AlarmRule(kl_limit=1.0, needed=2)
    with pytest.raises(ValueError, match="patience must be"):
        AlarmRule(kl_limit=1.0, patience=0)
    with pytest.raises(ValueError, match="kl_limit must be a finite"):
        AlarmRule(kl_limit=math.inf)


def noisy_run(seed: int, hack_at: int | None, steps: int = 60) -> list[dict[str, Any]]:
    """Gold rises by .05 a row, and falls by .2 a row from `hack_at` on, when the spread doubles."""
    draw, gold, rows = random.Random(seed), 0.0, []
    for i in range(steps):
        after = hack_at is not None and i >= hack_at
        gold += -0.2 if after else 0.05
        spread = (2.5 if after else 1.0) + draw.gauss(0, 0.05)
        kl = 0.2 * i + draw.gauss(0, 0.05)
        rows.append({"step": 2 * i, "gold": gold + draw.gauss(0, 0.01), "spread": spread, "kl": kl})
    return rows


@pytest.mark.parametrize("broken", [3, 17, 31, 59])
def test_a_saved_alarm_goes_on_as_if_never_saved(broken: int) -> None:
    rule = AlarmRule(spread_jump=1.5, gold_fall=0.5, needed=2, patience=3)
    rows = noisy_run(0, 25)
    whole = Alarm(rule)
    whole_said = [whole.update(row) for row in rows]
    first, second = Alarm(rule), Alarm(rule)
    said = [first.update(row) for row in rows[:broken]]
    state = json.dumps(first.state(), allow_nan=False)
    second.load(json.loads(state))
    said += [second.update(row) for row in rows[broken:]]
    assert said == whole_said
    assert second.state() == whole.state()
    assert json.dumps(first.state()) == state  # not shared
    assert whole.fired_at is not None


def test_a_state_of_another_rule_is_refused() -> None:
    alarm = Alarm(AlarmRule(kl_limit=1.0))
    with pytest.raises(ValueError, match=r"kl_limit=1.0 \(now 2.0\)"):
        Alarm(AlarmRule(kl_limit=2.0)).load(alarm.state())


def test_a_stored_run_is_judged() -> None:
    # gold without noise: 0, 1, ..., 9, then down by one a row
    golds = [*range(10), *range(8, -1, -1)]
    rows = [{"step": 10 * i, "gold": float(g), "kl": float(i)} for i, g in enumerate(golds)]
    smooth = [
        sum(golds[max(0, i - 4) : i + 1]) / len(golds[max(0, i - 4) : i + 1]) for i in range(19)
    ]
    peak = max(smooth[4:])
    result = evaluate(rows, AlarmRule(kl_limit=9.5, smooth=1))
    onset = 10 * next(i for i in range(19) if i >= 11 and smooth[i] < peak - 0.5)
    assert result == {
        "alarm": 100,
        "reason": "kl_limit: kl is 10, limit 9.5",
        "hacked": True,
        "onset": onset,
        "lead": onset - 100,
        "gold_at_alarm": smooth[10],
        "peak": peak,
        "gold_at_end": smooth[-1],
        "regret": peak - smooth[10],
    }
    late = evaluate(rows, AlarmRule(kl_limit=17.5, smooth=1))
    assert late["lead"] == onset - 180
    never = evaluate(rows, AlarmRule(kl_limit=99.0, smooth=1))
    assert never["alarm"] is never["lead"] is never["gold_at_alarm"] is None
    assert never["regret"] == peak - smooth[-1]
    honest = evaluate(rows[:10], AlarmRule(kl_limit=99.0, smooth=1))
    assert not honest["hacked"]
    assert honest["regret"] == 0.0
    assert evaluate(rows, AlarmRule(kl_limit=99.0), fall=8.5)["hacked"] is False
    with pytest.raises(ValueError, match="5 rows with gold"):
        evaluate(rows[:4], AlarmRule(kl_limit=1.0))


def test_rates_over_runs() -> None:
    def result(alarm: int | None, onset: int | None, regret: float) -> dict[str, Any]:
        lead = None if alarm is None or onset is None else onset - alarm
        both = {"hacked": onset is not None, "lead": lead, "regret": regret}
        return both | {"alarm": alarm, "onset": onset, "peak": 2.0, "gold_at_end": 1.0}

    results = [
        result(10, 50, 0.1),
        result(50, 50, 0.2),
        result(60, 50, 0.3),
        result(None, 50, 1.0),
        result(10, None, 0.4),
        result(None, None, 0.0),
    ]
    assert rates(results) == {
        "runs": 6,
        "hacked": 4,
        "false_positives": 1,
        "false_positive_rate": 0.5,
        "false_negatives": 2,
        "false_negative_rate": 0.5,
        "lead_median": 0,
        "lead_min": -10,
        "lead_max": 40,
        "regret": pytest.approx(2.0 / 6),
        "regret_without": 1.0,
    }
    assert rates(results[:1])["false_positive_rate"] is None
    assert rates([])["regret"] is None


def test_the_rule_with_the_least_regret_is_chosen() -> None:
    runs = [noisy_run(seed, hack_at) for seed, hack_at in enumerate((20, 30, 40, None))]
    rules = grid(spread_jump=[None, 1.01, 1.5, 4.0], kl_limit=[None, 2.0], gold_fall=[None, 0.4])
    assert len(rules) == 4 * 2 * 2 - 1
    best = choose(runs, rules)
    assert asdict(best) == asdict(AlarmRule(spread_jump=1.5))  # alone: gold falls later
    costs = [sum(evaluate(rows, rule)["regret"] for rows in runs) for rule in rules]
    assert sum(evaluate(rows, best)["regret"] for rows in runs) == min(costs)
    found = rates([evaluate(rows, best) for rows in runs])
    assert found["false_positives"] == found["false_negatives"] == 0
    assert found["lead_min"] > 0
    with pytest.raises(ValueError, match="at least one rule"):
        choose(runs, [])
