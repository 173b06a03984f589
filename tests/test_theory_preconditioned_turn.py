"""theory/preconditioned_turn.py."""

from tests.theory_statements import verify


def test_statement():
    """The angle, and the share of reversed signs, saturate with the ratio."""
    verify("preconditioned_turn")
