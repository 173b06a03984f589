"""flatopt: gradient regularization for any PyTorch optimizer and any Hugging Face trainer."""

from flatopt.check import CheckResult, gradreg_check
from flatopt.measure import curvature_along_gradient, gradient, hessian_product
from flatopt.optimizer import GradRegOptimizer
from flatopt.reference import Reference
from flatopt.schedule import CosineStrength, LinearStrength, ReferenceReset
from flatopt.simple import gradreg_gradient
from flatopt.stats import Stats
from flatopt.trainer import TrainerPlug, attach

__all__ = [
    "CheckResult",
    "CosineStrength",
    "GradRegOptimizer",
    "LinearStrength",
    "Reference",
    "ReferenceReset",
    "Stats",
    "TrainerPlug",
    "attach",
    "curvature_along_gradient",
    "gradient",
    "gradreg_check",
    "gradreg_gradient",
    "hessian_product",
]
__version__ = "0.1.0"
