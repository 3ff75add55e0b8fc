from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from nedge.dpi import DpiError, Library, NdpiClassifier, load_library


@pytest.fixture(scope="session", params=["system", "nfstream"])
def choice(request: pytest.FixtureRequest) -> str:
    """Each library that users have; in CI all must be there."""
    try:
        load_library(request.param)
    except DpiError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return request.param


@pytest.fixture(scope="session")
def library(choice: str) -> Library:
    return load_library(choice)


@pytest.fixture(scope="session")
def ndpi5(library: Library) -> bool:
    return library.abi.release >= (5, 0)


@pytest.fixture
def classifier(library: Library) -> Iterator[NdpiClassifier]:
    classifier = NdpiClassifier(library)
    yield classifier
    classifier.close()
