"""theory/finite_difference.py."""

from tests.theory_statements import verify


def test_statement():
    """Orders, coefficients and best steps are as predicted, in both precisions."""
    verify("finite_difference")
