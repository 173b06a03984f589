"""theory/diagonal_network.py."""

from tests.theory_statements import verify


def test_statement():
    """The flow of GR ends at the predicted argmin, which is not a sparser solution here."""
    verify("diagonal_network")
