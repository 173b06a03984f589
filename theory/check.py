"""What a statement hands back: predictions beside measurements, and the tables behind its plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

# columns of equal length: numbers or short texts
Table = Mapping[str, Sequence[float | int | str]]
# told the name of each part as it begins
Progress = Callable[[str], None]
Relation = Literal["relative", "absolute", "factor", "at least", "at most"]


def quiet(part: str) -> None:
    """The progress of those who do not want to be told."""


@dataclass(frozen=True)
class Check:
    r"""One prediction beside its measurement.

    Args:
        name: what is measured, in a few words, unique within the statement.
        predicted, measured: numbers in the same unit.
        tolerance: stated before measuring; its meaning depends on ``relation``.
        wrong: what a false theory (a lost factor, the other sign, a rival explanation) predicts.
            A check that would also accept this could not fail; tests refuse such a check.
        relation: ``"relative"`` :math:`|m-p|\le t|p|`, ``"absolute"`` :math:`|m-p|\le t`,
            ``"factor"`` :math:`p/t\le m\le pt`, ``"at least"`` :math:`m\ge p-t`,
            ``"at most"`` :math:`m\le p+t`.

    Raises:
        ValueError: for an unknown relation, or a tolerance that could never or always be met.

    Example:
        >>> slope = Check("slope", predicted=2.0, measured=1.98, tolerance=0.05, wrong=1.0)
        >>> slope.holds, slope.refuses_wrong
        (True, True)
        >>> slope.against(1.0).holds
        False
    """

    name: str
    predicted: float
    measured: float
    tolerance: float
    wrong: float
    relation: Relation = "relative"

    def __post_init__(self) -> None:
        if self.relation not in get_args(Relation):
            raise ValueError(f"{self.name}: relation is one of {get_args(Relation)}")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"{self.name}: tolerance must be finite and >= 0")
        if self.relation == "factor" and self.tolerance < 1:
            raise ValueError(f"{self.name}: the tolerance of a factor is >= 1")
        if self.relation == "relative" and self.predicted == 0:
            raise ValueError(f"{self.name}: a prediction of 0 needs relation='absolute'")
        # numpy's and torch's numbers become Python's, so that JSON can hold them
        for name in ("predicted", "measured", "tolerance", "wrong"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def holds(self) -> bool:
        """Whether the measurement is within the tolerance of the prediction; NaN never is."""
        p, m, t = self.predicted, self.measured, self.tolerance
        if not (math.isfinite(p) and math.isfinite(m)):
            return False
        if self.relation == "at least":
            return m >= p - t
        if self.relation == "at most":
            return m <= p + t
        if self.relation == "factor":
            return min(p, m) > 0 and p / t <= m <= p * t
        return abs(m - p) <= (t * abs(p) if self.relation == "relative" else t)

    def against(self, predicted: float) -> Check:
        """The same measurement, held against another prediction."""
        return replace(self, predicted=predicted)

    @property
    def refuses_wrong(self) -> bool:
        """Whether the measurement tells the prediction from the wrong one."""
        if self.relation == "relative" and self.wrong == 0:
            return self.measured != 0
        return not self.against(self.wrong).holds

    @property
    def demand(self) -> str:
        """Relation and tolerance as a reader writes them."""
        t = f"{self.tolerance:.3g}"
        return {
            "relative": f"± {100 * self.tolerance:.3g} %",
            "absolute": f"± {t}",
            "factor": f"within × {t}",
            "at least": "≥" if self.tolerance == 0 else f"≥, less {t}",
            "at most": "≤" if self.tolerance == 0 else f"≤, plus {t}",
        }[self.relation]


@dataclass
class Outcome:
    """The checks of a statement, and the tables (by name) from which its plot is drawn."""

    checks: list[Check]
    tables: dict[str, Table] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [check.name for check in self.checks]
        if len(set(names)) != len(names):
            raise ValueError(f"two checks have one name: {sorted(names)}")
        for name, table in self.tables.items():
            if len({len(column) for column in table.values()}) != 1:
                raise ValueError(f"the columns of table {name!r} differ in length")

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)
