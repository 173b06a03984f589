"""Policies whose samples are enumerated, and the products that GR makes of a policy gradient.

`derived` has the products by formula, from the scores; `found` has them from flatopt, from the
losses that trainers use. The two share nothing but the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, jacfwd, jvp, vmap

from flatopt import GradRegOptimizer

KINDS = ("sequence", "token", "length", "one")
# log-probs (sequences, tokens) of features and parameters; elsewhere seeds are the first dimension,
# and `weight` (seeds, sequences) is probability times advantage
LogProbs = Callable[[Tensor, Tensor], Tensor]


def linear(vocabulary: int, length: int) -> LogProbs:
    """Of all sequences; logits linear in parameters (P,), features (prefixes, tokens, P)."""
    n = vocabulary**length
    nodes = [torch.arange(n) + (n - 1) // (vocabulary - 1)]  # of the tree, level by level
    while len(nodes) < length:
        nodes.append((nodes[-1] - 1) // vocabulary)
    index = torch.stack(nodes[::-1], 1) - 1
    return lambda features, theta: (features @ theta).log_softmax(-1).flatten()[index]


def log_ratio(kind: str, moved: Tensor) -> Tensor:
    """The logarithm of c as a trainer has it: from the change of the log-probs (..., T)."""
    whole = moved.sum(-1, keepdim=True).expand_as(moved)
    known = {"sequence": whole, "token": moved, "length": whole / moved.shape[-1]}
    return known.get(kind, torch.zeros_like(moved))


def found(kind: str, logp: LogProbs, features: Tensor, theta: Tensor, weight: Tensor,
          eps: float | None = 1e-5, limit: float = 9.0) -> tuple[Tensor, list]:  # fmt: skip
    """flatopt's product (eps None: double backward); of its passes: gradient, clipped ratios."""
    param, passes = theta.clone().requires_grad_(), []
    old, weight = vmap(logp)(features, theta), weight[..., None]
    base, difference = torch.optim.SGD([param], lr=0.0), "central" if eps else "exact"
    optimizer = GradRegOptimizer(base, 1.0, eps=eps, difference=difference)

    def closure() -> float:
        optimizer.zero_grad()
        now = vmap(logp)(features, param)
        # as trainers write it: the value of c, and the gradient of the token's own log-prob
        c = torch.exp(now - now.detach() + log_ratio(kind, now - old).detach())
        c.retain_grad()
        loss = -torch.minimum(weight * c, weight * c.clamp(1 - limit, 1 + limit)).sum()
        loss.backward()
        passes.append((torch.as_tensor(param.grad).detach().clone(), c.grad == 0))
        return loss.item()

    optimizer.step(closure)
    return torch.as_tensor(param.grad) - passes[0][0], passes


def derived(logp: LogProbs, features: Tensor, theta: Tensor, reward: Tensor) -> list[Tensor]:
    """p times A for the mean baseline, g, H g, and the products of the statement, in its order."""

    def one(features: Tensor, theta: Tensor, reward: Tensor) -> tuple[Tensor, ...]:
        logs = partial(logp, features)
        slope = grad(lambda at: -(logs(at).sum(-1).exp() @ reward))
        g, p = slope(theta), logs(theta).sum(-1).exp()
        weight, hg = p * (reward - p @ reward), jvp(slope, (theta,), (g,))[1]
        curved = jvp(grad(lambda at: weight @ logs(at).sum(-1)), (theta,), (g,))[1]
        tokens = jacfwd(logs)(theta)  # the scores s_t: (sequences, T, parameters)
        whole, length = tokens.sum(1), tokens.shape[1]
        # E[A s s'] g and E[A sum over t of s_t s_t'] g
        all_pairs = torch.einsum("n,np,nq,q->p", weight, whole, whole, g)
        own_pairs = torch.einsum("n,ntp,ntq,q->p", weight, tokens, tokens, g)
        outer = (all_pairs, own_pairs, all_pairs / length, 0 * g)
        return weight, g, hg, *(-curved - product for product in outer)

    return list(vmap(one)(features, theta, reward))
