"""What tests share."""

from __future__ import annotations

import os

import pytest


def in_ci() -> bool:
    """Whether nothing may be skipped: CI=true."""
    return os.environ.get("CI", "").lower() == "true"


def require(condition: object, reason: str) -> None:
    """Skip the test where its means are missing (root, a tool, a kernel feature); under CI=true fail it."""
    if condition:
        return
    if in_ci():
        pytest.fail(f"CI=true, but: {reason}", pytrace=False)
    pytest.skip(reason)
