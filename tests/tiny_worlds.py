"""A preference world so small that it is built in seconds, in a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integrations.loop import quiet
from integrations.worlds import topics as language
from integrations.worlds.preferences import PolicySettings, RewardSettings

SMALL = PolicySettings(language.Language(7), seed=7, texts=400, steps=12, batch=32, width=16)
SMALL_REWARD = RewardSettings(SMALL, seed=7, pairs=60, epochs=1)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The models of these tests are built once, and not in the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        quiet()
        yield folder
