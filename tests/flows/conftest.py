"""Models that persistent pipelines of this process keep loaded."""

from collections.abc import Iterator

import pytest

from flows import pools


@pytest.fixture
def clean_pools() -> Iterator[None]:
    """They go when the test ends."""
    yield
    pools.close_shared_pools()
