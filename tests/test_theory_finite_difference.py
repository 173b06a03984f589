"""theory/finite_difference.py."""

from tests.theory_statements import verify


def test_statement():
    """Orders and coefficients of the differences are as predicted."""
    verify("finite_difference")
