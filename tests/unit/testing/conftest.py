from __future__ import annotations

import pytest
from kit import require_library


@pytest.fixture(params=["system", "nfstream"])
def library(request: pytest.FixtureRequest) -> str:
    """Each nDPI that users have."""
    return require_library(request.param)
