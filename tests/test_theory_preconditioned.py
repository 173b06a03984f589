"""theory/preconditioned.py."""

from tests.theory_statements import verify


def test_statement():
    """Adam cancels the length of the penalty and keeps its turn."""
    verify("preconditioned")
