"""theory/preconditioned_noise.py."""

from tests.theory_statements import verify


def test_statement():
    """Rates by orientation, the threshold of a saddle, and the gain after a jump."""
    verify("preconditioned_noise")
