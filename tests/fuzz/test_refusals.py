"""What cannot be shifted is refused; what is used twice moves once."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from flatopt import GradRegOptimizer
from tests.fuzz import examples
from tests.fuzz.oracle import gradient, hessian_times, length
from tests.fuzz.problems import DTYPES, Case, Loss, cases, storage
from tests.fuzz.steps import STRENGTHS, make

# torch's remark on speed, which comes once, for some empty gradients of a graph
pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey")


@examples(60)
@given(
    data=st.data(),
    case=cases(),
    kind=st.sampled_from(["complex", "sparse", "expanded"]),
    strength=STRENGTHS,
)
def test_what_cannot_be_shifted_is_refused_before_anything_moves(
    data: st.DataObject, case: Case, kind: str, strength: float
) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    others = list(case.params)
    table = nn.Embedding(4, 2, sparse=True, dtype=dtype)
    odd = {
        "complex": torch.ones(2, dtype=torch.complex64, requires_grad=True),
        "sparse": table.weight,
        "expanded": torch.ones(3, dtype=dtype).expand(2, 3).detach().requires_grad_(),
    }[kind]
    params = list(case.params)
    params.insert(data.draw(st.integers(0, len(others))), odd)
    optimizer = GradRegOptimizer(torch.optim.SGD(params, lr=0.1), strength=strength)

    def backward() -> None:
        case.backward()
        term = table(torch.tensor([1, 1])) if kind == "sparse" else odd.abs()
        term.double().sum().backward()

    before = [storage(p).tolist() for p in params]
    backward()
    g1 = [None if p.grad is None else p.grad.clone() for p in others]
    words = {"complex": "view_as_real", "sparse": "sparse=False", "expanded": r"clone\(\)"}[kind]
    with pytest.raises(ValueError, match=words), optimizer.perturbed():
        raise AssertionError("refused before the pass")
    assert [storage(p).tolist() for p in params] == before
    for p, g in zip(others, g1, strict=True):
        assert (p.grad is None) == (g is None)
        assert g is None or (p.grad is not None and torch.equal(p.grad, g))


@examples(60)
@given(
    case=cases(dtypes=(torch.float64,)),
    strength=STRENGTHS,
    difference=st.sampled_from(["forward", "central", "exact"]),
)
def test_a_parameter_used_twice_moves_once(case: Case, strength: float, difference: str) -> None:
    # the same Parameter in two modules, as tied embeddings have it: one entry in parameters()
    live = case.live()[0]
    tied = case.params[live]

    def value(values: Sequence[Tensor]) -> Tensor:
        again = values[live] * torch.linspace(0.5, 1.0, max(tied.numel(), 1))[: tied.numel()].view(
            tied.shape
        )
        return case.loss([*(v for v, u in zip(values, case.used, strict=True) if u), again])

    optimizer = make(case, [], strength, 1e-5, difference)
    value(case.params).backward()
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            value(case.params).backward()
    theta = [p.detach() for p in case.params]
    g = gradient(value, theta, case.live())
    h = hessian_times(value, theta, case.live(), g, case.live())
    expected = [a + strength * b for a, b in zip(g, h, strict=True)]
    grads = [t for p in case.params if (t := p.grad) is not None]
    error = length([a - b for a, b in zip(grads, expected, strict=True)])
    assert error <= 1e-3 * strength * (length(h) + length(g)) + 1e-12


@examples(60)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
    strength=STRENGTHS,
    difference=st.sampled_from(["forward", "central", "exact"]),
)
def test_two_parameters_on_one_storage_are_refused_or_right(
    seed: int, size: int, dtype: torch.dtype, strength: float, difference: str
) -> None:
    # weights tied by sharing memory, where autograd sees two parameters
    first = torch.randn(size, dtype=dtype).requires_grad_()
    params = [first, nn.Parameter(first.detach())]
    case = Case(params, [True, True], Loss(seed))
    before, theta = storage(first).tolist(), first.detach().double()
    optimizer = GradRegOptimizer(
        torch.optim.SGD(params, lr=0.1), strength=strength, eps=1e-3, difference=difference
    )
    case.backward()
    try:
        for _ in range(optimizer.passes):
            with optimizer.perturbed():
                case.backward()
    except ValueError as error:
        if "memory" not in str(error):
            raise
        assert storage(first).tolist() == before
        return
    assert storage(first).tolist() == before
    if dtype != torch.float64:  # restored, which is all that rounding leaves to compare
        return

    def tied(values: Sequence[Tensor]) -> Tensor:
        return case.value([values[0], values[0]])

    (g,) = gradient(tied, [theta], [0])
    (h,) = hessian_times(tied, [theta], [0], [g], [0])
    found = sum(p.grad for p in params if p.grad is not None)
    assert isinstance(found, Tensor)
    assert length([found - g - strength * h]) <= 0.02 * strength * length([h]) + 1e-9
