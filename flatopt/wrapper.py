"""The contract of torch.optim.Optimizer around another optimizer: live state, hooks, copies."""

from collections import OrderedDict
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

OWN = "gradreg"  # the key of the wrapper's own numbers in a state_dict and a parameter group
# names that torch's optimizers give to state of the parameter's own shape
ELEMENTWISE = frozenset({"exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum"})


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
        """The base's state_dict plus ``"gradreg"``, the wrapper's own state.

        The plain numbers among it are in the first parameter group too, under the same key,
        because torch.distributed.checkpoint saves nothing but "state" and "param_groups".
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        own = self._own_state()
        self._publish(own)
        state = self.base.state_dict()
        state[OWN] = own
        for hook in self._optimizer_state_dict_post_hooks.values():
            state = hook(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of this class, or of the bare base (the wrapper then starts afresh).

        Raises:
            ValueError: not the state of an optimizer, or that of another kind or another model.
                This one is then as it was before.
        """
        if not (isinstance(state_dict, dict) and {"state", "param_groups"} <= state_dict.keys()):
            raise ValueError(
                "this is not the state of an optimizer ('state' and 'param_groups' are missing): "
                "give what optimizer.state_dict() returned"
            )
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        own = state_dict.pop(OWN, None)
        if own is None:
            own = next((g[OWN] for g in state_dict["param_groups"] if OWN in g), {})
        # torch puts new objects in their place and leaves these as they are
        held = self.base.state, self.base.param_groups
        try:
            self._load_base(state_dict)
            self._load_own_state(own)
        except BaseException:
            self.base.state, self.base.param_groups = held
            raise
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _load_base(self, state_dict: dict[str, Any]) -> None:
        """Load the base's state; ValueError where it is of another kind or of another model.

        torch compares only how many parameters there are.
        """
        kind = type(self.base).__name__
        other = f"the saved state is of another optimizer than {kind}"
        names = self.base.param_groups[0].keys() - {OWN, "param_names", "initial_lr"}
        try:
            self.base.load_state_dict(state_dict)
        except KeyError as error:
            raise ValueError(f"{other}: it has no {error}") from error
        for name in names:  # what a newer torch has added, the load has filled in
            if any(name not in group for group in self.base.param_groups):
                raise ValueError(f"{other}: its parameter groups have no {name!r}")
        for number, p in enumerate(self._params()):
            state = self.base.state.get(p, {})
            for name in ELEMENTWISE & state.keys():
                if isinstance(state[name], Tensor) and state[name].shape != p.shape:
                    raise ValueError(
                        f"the saved state is of another model: {name} of parameter {number} has "
                        f"the shape {tuple(state[name].shape)}, the parameter {tuple(p.shape)}"
                    )

    def _publish(self, own: dict[str, Any]) -> None:
        """Write the plain numbers among ``own`` into the first parameter group.

        A subclass does so after each step: of its flattened form, torch.distributed.checkpoint
        restores those keys only that the groups already have.
        """
        for group in self.base.param_groups[:1]:
            # a new dict each time: a checkpoint may hold the one before
            group[OWN] = {name: v for name, v in own.items() if isinstance(v, (int, float))}

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
