"""The contract of torch.optim.Optimizer around another optimizer: live state, hooks, copies."""

from collections import OrderedDict
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer


class OptimizerWrapper(Optimizer):
    """An optimizer around `base`, whose parameter groups, state and defaults it shows live.

    A subclass gives ``step``. It may add numbers of its own to the saved state (`_own_state`,
    `_load_own_state`) and name attributes that copies must not have (`_not_copied`).
    """

    # GradScaler must unscale .grad itself: the scale may not reach the base optimizer.
    _step_supports_amp_scaling = False
    _not_copied: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, base: Optimizer) -> None:
        self.base = base
        self._add_hook_tables()
        self._patch_step_function()

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base's parameter groups, live."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:  # type: ignore[override]
        self.base.param_groups = value

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base's state, live."""
        return self.base.state

    @state.setter
    def state(self, value: Any) -> None:  # type: ignore[override]
        self.base.state = value

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base's defaults, live."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.base.defaults = value

    def __getattr__(self, name: str) -> Any:
        # What the base offers beyond torch.optim's contract, e.g. schedulefree's train() and eval()
        if name.startswith("__") or "base" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.base, name)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as in torch.optim."""
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the base optimizer."""
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base's state_dict plus ``"gradreg"``, the wrapper's own numbers."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state = self.base.state_dict()
        state["gradreg"] = self._own_state()
        for hook in self._optimizer_state_dict_post_hooks.values():
            state = hook(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of this class, or of the bare base (the wrapper then starts afresh)."""
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        own = state_dict.pop("gradreg", {})
        self.base.load_state_dict(state_dict)
        self._load_own_state(own)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _devices(self) -> list[torch.device]:
        return [p.device for p in self._params()]

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own_state(self, own: dict[str, Any]) -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        # For pickle and deepcopy: everything but hooks, the gradients in flight, and a `step` that
        # a learning-rate scheduler bound to this very object.
        left_out = self._not_copied | {"step"}
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in left_out and "_hooks" not in name
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._add_hook_tables()
        self._patch_step_function()

    def _add_hook_tables(self) -> None:
        for kind in ("step_pre", "step_post"):
            setattr(self, f"_optimizer_{kind}_hooks", OrderedDict())
        for kind in ("state_dict", "load_state_dict"):
            for when in ("pre", "post"):
                setattr(self, f"_optimizer_{kind}_{when}_hooks", OrderedDict())
