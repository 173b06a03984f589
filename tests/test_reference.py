"""ReferenceReset and Reference: when, from what, to what; swapped, saved, resumed."""

import copy
import io
import logging
from typing import Any

import pytest
import torch

from flatopt import GradRegOptimizer, Reference, ReferenceReset
from tests.cases import Problem, gr_step, same

DECAY = 0.9


def values(params) -> list[torch.Tensor]:
    return [p.detach().clone() for p in params]


def made(problem: Problem, *, strength: float = 0.1, **rule: Any) -> GradRegOptimizer:
    base = torch.optim.AdamW(problem.params, lr=0.01)
    return GradRegOptimizer(base, strength, reference=ReferenceReset(**rule))


def owned(optimizer: GradRegOptimizer) -> Reference:
    assert optimizer.reference is not None
    return optimizer.reference


def run(problem: Problem, optimizer: GradRegOptimizer, steps: int) -> list[list[torch.Tensor]]:
    """The parameters after each step."""
    path = []
    for _ in range(steps):
        gr_step(problem, optimizer, "closure")
        path.append(values(problem.params))
    return path


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_hard_resets_make_the_reference_the_policy_bitwise(strength: float) -> None:
    problem = Problem()
    start = values(problem.params)
    optimizer = made(problem, strength=strength, every=2)
    path = run(problem, optimizer, 1)
    assert same(owned(optimizer).snapshot, start)
    path += run(problem, optimizer, 1)
    assert same(owned(optimizer).snapshot, path[1])
    run(problem, optimizer, 1)
    assert same(owned(optimizer).snapshot, path[1])
    reference = owned(optimizer)
    assert (reference.steps, reference.resets, reference.since_reset) == (3, 1, 1)


def test_a_reference_changes_nothing_in_the_policys_path() -> None:
    plain, with_reference = Problem(), Problem()
    base = torch.optim.AdamW(plain.params, lr=0.01)
    expected = run(plain, GradRegOptimizer(base, 0.1), 4)
    path = run(with_reference, made(with_reference, every=2), 4)
    assert all(same(a, b) for a, b in zip(path, expected, strict=True))


def test_mixed_resets() -> None:
    problem = Problem()
    start = values(problem.params)
    optimizer = made(problem, every=2, mix=0.6)
    path = run(problem, optimizer, 2)
    for kept, first, last in zip(owned(optimizer).snapshot, start, path[1], strict=True):
        torch.testing.assert_close(kept, 0.4 * first + 0.6 * last)


def running_mean(start, path) -> list[torch.Tensor]:
    mean = [t.clone() for t in start]
    for params in path:
        mean = [DECAY * m + (1 - DECAY) * p for m, p in zip(mean, params, strict=True)]
    return mean


def test_reset_to_the_running_mean() -> None:
    problem = Problem()
    start = values(problem.params)
    optimizer = made(problem, every=3, source="ema", ema_decay=DECAY)
    path = run(problem, optimizer, 3)
    for kept, mean in zip(owned(optimizer).snapshot, running_mean(start, path), strict=True):
        torch.testing.assert_close(kept, mean)


def test_the_running_mean_of_16_bit_weights_moves() -> None:
    # a share of .005 of a change is less than bf16 can add to a weight
    p = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    rule = ReferenceReset(every=1000, source="ema", ema_decay=0.995)
    optimizer = GradRegOptimizer(torch.optim.SGD([p], lr=0.0), 0.0, reference=rule)
    with torch.no_grad():
        p.mul_(1.25)
    for _ in range(1000):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert owned(optimizer).snapshot[0].tolist() == pytest.approx([1.25] * 8, abs=0.01)


def test_elastic_reset_moves_the_policy_and_keeps_the_reference() -> None:
    problem = Problem()
    start = values(problem.params)
    optimizer = made(problem, every=3, source="ema", target="policy", ema_decay=DECAY)
    path = run(problem, optimizer, 2)
    assert same(owned(optimizer).snapshot, start)
    gr_step(problem, optimizer, "closure")
    # where the policy would have gone, from a twin without resets
    twin = Problem()
    path = run(twin, made(twin, every=100), 3)
    for p, mean in zip(problem.params, running_mean(start, path), strict=True):
        torch.testing.assert_close(p.detach(), mean)
    assert same(owned(optimizer).snapshot, start)
    assert same(owned(optimizer).average, start)


def test_reset_on_metrics_and_of_the_moments() -> None:
    problem = Problem()
    seen = []

    def stagnates(metrics) -> bool:
        seen.append(dict(metrics))
        return metrics.get("reward", 1.0) < 0.5

    optimizer = made(problem, when=stagnates, reset_optimizer=True)
    run(problem, optimizer, 2)
    assert optimizer.state
    owned(optimizer).metrics["reward"] = 0.4
    path = run(problem, optimizer, 1)
    assert not optimizer.state
    assert same(owned(optimizer).snapshot, path[0])
    assert [m["step"] for m in seen] == [1, 2, 3]
    assert [m["since_reset"] for m in seen] == [1, 2, 3]
    assert "reward" not in seen[1]
    owned(optimizer).metrics["reward"] = 0.9
    run(problem, optimizer, 1)
    assert seen[3]["since_reset"] == 1
    assert optimizer.state


def test_processes_agree_on_a_decision() -> None:
    problem = Problem()
    optimizer = made(problem, when=lambda metrics: True)
    owned(optimizer).decide = lambda due: False  # what the first process said
    run(problem, optimizer, 2)
    assert owned(optimizer).resets == 0


def test_a_reset_is_logged(caplog) -> None:
    problem = Problem()
    with caplog.at_level(logging.INFO, logger="flatopt"):
        run(problem, made(problem, every=2), 4)
    assert [r.message for r in caplog.records] == [
        "reset 1 of the reference policy, at step 2",
        "reset 2 of the reference policy, at step 4",
    ]


@pytest.mark.parametrize("offload", [False, True])
def test_swapped_shows_the_reference_and_gives_the_policy_back(offload: bool) -> None:
    problem = Problem()
    start, loss = values(problem.params), problem.loss().item()
    optimizer = made(problem, every=10, offload=offload)
    after = run(problem, optimizer, 2)[-1]
    pointers = [p.data_ptr() for p in problem.params]
    with owned(optimizer).swapped():
        assert same(problem.params, start)
        assert problem.loss().item() == loss
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert same(problem.params, after)
    assert same(owned(optimizer).snapshot, start)
    assert [p.data_ptr() for p in problem.params] == pointers


@pytest.mark.parametrize("reference_first", [False, True])
def test_inside_one_autocast_block_each_forward_has_its_own_weights(reference_first: bool) -> None:
    # autocast keeps 16-bit copies of weights that it has seen in its block
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
    optimizer = GradRegOptimizer(
        torch.optim.SGD(layer.parameters(), 1.0), reference=ReferenceReset()
    )
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        old = layer(x).float()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(1.0)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        new = layer(x).float()
    with torch.autocast("cpu", torch.bfloat16):
        first = None if reference_first else layer(x)
        with owned(optimizer).swapped():
            assert torch.equal(layer(x).float(), old)
        for policy in (first, layer(x)):
            assert policy is None or torch.equal(policy.float(), new)


def test_an_error_inside_gives_the_policy_back() -> None:
    problem = Problem()
    start = values(problem.params)
    optimizer = made(problem, every=10)
    after = run(problem, optimizer, 1)[-1]
    with pytest.raises(KeyError), owned(optimizer).swapped():
        raise KeyError
    assert same(problem.params, after)
    assert same(owned(optimizer).snapshot, start)
    with owned(optimizer).swapped():
        pass


def test_an_error_in_the_exchange_gives_the_policy_back(monkeypatch) -> None:
    problem = Problem()
    optimizer = made(problem, every=10)
    after = run(problem, optimizer, 1)[-1]
    exchange, calls = owned(optimizer)._exchange, []

    def fails_once(i: int) -> None:
        calls.append(i)
        if len(calls) == 2:
            raise MemoryError
        exchange(i)

    monkeypatch.setattr(owned(optimizer), "_exchange", fails_once)
    with pytest.raises(MemoryError), owned(optimizer).swapped():
        pass
    assert same(problem.params, after)


def test_a_graph_built_before_the_swap_stays_usable() -> None:
    problem, twin = Problem(), Problem()
    optimizer = made(problem, every=10)
    run(problem, optimizer, 1)
    run(twin, made(twin, every=10), 1)
    optimizer.zero_grad()
    loss = problem.loss()
    with owned(optimizer).swapped():
        problem.loss()
    loss.backward()
    for p in twin.params:
        p.grad = None
    twin.backward()
    assert same(problem.grads(), twin.grads())


def test_misuse_of_swapped() -> None:
    problem = Problem()
    optimizer = made(problem, strength=0.0, every=10)
    problem.backward()
    with owned(optimizer).swapped():
        with (
            pytest.raises(RuntimeError, match="leave the first block"),
            owned(optimizer).swapped(),
        ):
            pass
        with pytest.raises(RuntimeError, match="would step the reference"):
            optimizer.step()
    optimizer.step()


@pytest.mark.parametrize("rule", [{"every": 3}, {"every": 3, "source": "ema", "ema_decay": DECAY}])
def test_a_resumed_run_goes_on_as_the_whole_one(rule) -> None:
    whole, cut = Problem(), Problem()
    one = made(whole, **rule)
    path = run(whole, one, 5)
    two = made(cut, **rule)
    run(cut, two, 2)
    file = io.BytesIO()
    torch.save({"model": values(cut.params), "optimizer": two.state_dict()}, file)
    # a new process: the model starts from its checkpoint, and so does the new reference
    resumed = Problem()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    with torch.no_grad():
        for p, value in zip(resumed.params, saved["model"], strict=True):
            p.copy_(value)
    three = made(resumed, **rule)
    three.load_state_dict(saved["optimizer"])
    assert same(owned(three).snapshot, owned(two).snapshot)
    assert not same(owned(three).snapshot, resumed.params)
    assert all(same(a, b) for a, b in zip(run(resumed, three, 3), path[2:], strict=True))
    assert same(owned(three).snapshot, owned(one).snapshot)
    assert owned(three).resets == owned(one).resets == 1


def test_a_state_without_a_reference_says_so() -> None:
    problem = Problem()
    base = torch.optim.AdamW(problem.params, lr=0.01)
    state = GradRegOptimizer(base, 0.1).state_dict()
    with pytest.warns(UserWarning, match="holds no reference policy"):
        made(problem, every=3).load_state_dict(state)


def test_a_state_of_another_model_is_refused() -> None:
    problem = Problem()
    optimizer = made(problem, every=3)
    state = optimizer.state_dict()
    state["gradreg"]["reference"]["snapshot"].pop()
    with pytest.raises(ValueError, match="does not fit"):
        optimizer.load_state_dict(state)


def test_copies_have_a_reference_of_their_own() -> None:
    problem = Problem()
    optimizer = made(problem, every=2)
    run(problem, optimizer, 1)
    twin = copy.deepcopy(optimizer)
    run(problem, optimizer, 1)
    assert owned(optimizer).resets == 1
    assert owned(twin).resets == 0
    assert owned(twin).params()[0] is twin.param_groups[0]["params"][0]


def test_parameters_added_later_are_followed() -> None:
    problem = Problem()
    optimizer = made(problem, strength=0.0, every=2)
    late = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones_like(late)
    problem.backward()
    optimizer.step()
    with owned(optimizer).swapped():
        assert len(owned(optimizer).snapshot) == len(problem.params) + 1


def test_without_a_running_mean_one_copy_is_held() -> None:
    problem = Problem()
    assert owned(made(problem, every=2)).average == []
    base = torch.optim.SGD(problem.params, lr=0.1)
    assert GradRegOptimizer(base, 0.1).reference is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 3, "when": bool}, "not both"),
        ({"every": 0}, "whole number >= 1"),
        ({"every": 2.5}, "whole number >= 1"),
        ({"when": 3}, "callable of the metrics"),
        ({"source": "reference"}, "source is one of"),
        ({"target": "ema"}, "target is one of"),
        ({"mix": 0.0}, "0 < mix <= 1"),
        ({"mix": 1.5}, "0 < mix <= 1"),
        ({"ema_decay": 1.0, "source": "ema"}, "between 0 and 1"),
        ({"source": "ema"}, "belong together"),
        ({"ema_decay": 0.9}, "belong together"),
        ({"target": "policy"}, 'needs source="ema"'),
    ],
)
def test_senseless_settings(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        ReferenceReset(**settings)
    assert ReferenceReset().every == 200


def test_a_reference_is_a_rule() -> None:
    problem = Problem()
    base = torch.optim.SGD(problem.params, lr=0.1)
    with pytest.raises(TypeError, match="ReferenceReset"):
        GradRegOptimizer(base, 0.1, reference=200)  # type: ignore[arg-type]
