"""theory/preconditioned.py."""

from tests.theory_statements import verify


def test_statement():
    """Adam cancels constant factors and keeps signs."""
    verify("preconditioned")
