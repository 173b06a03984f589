"""Bandits with log-linear policies, and cycles of resets or GR on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize, root
from torch import Tensor
from torch.func import grad

from flatopt import gradreg_gradient

K = 8  # steps of a cycle


@dataclass
class Bandit:
    """Rewards (..., actions), and a policy whose logits are ``theta @ features``."""

    r: Tensor
    features: Tensor

    def policy(self, theta: Tensor) -> Tensor:
        """Probabilities of the actions, softmax(theta features)."""
        return (theta @ self.features).softmax(-1)

    def value(self, theta: Tensor, ref: Tensor, beta: float = 0.0) -> Tensor:
        """L + beta KL, summed over the bandits."""
        p = self.policy(theta)
        return (p * (beta * (p / self.policy(ref)).log() - self.r)).sum()

    def parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """g, H and F from the scores, in closed form."""
        p = self.policy(theta)
        scores, a = self.features - (self.features @ p)[:, None], self.r - p @ self.r
        return -scores @ (p * a), -(scores * p * a) @ scores.T, (scores * p) @ scores.T

    def path(self, theta: Tensor, eta: float, n: int, beta=0.0, gamma=0.0, k=K) -> Tensor:
        """Parameters after 0 to n steps of plain descent, of resets (beta) or of GR (gamma)."""
        points = [theta]
        for step in range(n):
            param, ref = points[-1].clone().requires_grad_(), points[step // k * k]
            loss = partial(self.value, param, ref, beta)
            points.append(points[-1] - eta * gradreg_gradient(loss, [param], gamma, 1e-6)[0])
        return torch.stack(points)

    def exact(self, theta: Tensor, beta: float, cycles: int = 1) -> Tensor:
        """Parameters after cycles that each end at the optimum, found numerically."""
        both = (self.value, grad(self.value))
        value, slope = (lambda t, *a, f=f: f(torch.tensor(t), *a).numpy() / beta for f in both)
        for _ in range(cycles):
            near = minimize(value, theta, (theta, beta), "BFGS", slope).x
            theta = torch.tensor(root(slope, near, (theta, beta), "lm", tol=1e-15).x)
        return theta

    def added(self, theta: Tensor, eta: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
        """What one cycle of resets, and of GR, adds along g, per length of step and strength."""
        plain, *ends = (self.path(theta, eta, K, *x)[-1] for x in ((0, 0), (1, 0), (0, 0.01)))
        step = plain - theta
        resets, gr = (((end - plain) * step).sum(-1) / step.square().sum(-1) for end in ends)
        return (resets / (eta * (K - 1) / 2)).numpy(), (gr / 0.01).numpy()
