"""Runs of several processes, each compared with a single process on the whole batch."""

import pytest

pytest.register_assert_rewrite("tests.distributed.checks")
