"""The reference of the configuration: it is current, and tells of every key what the model says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from nedge import config_reference
from nedge.config import Config

PAGE = Path(__file__).parents[2] / "deploy" / "CONFIG.md"
MODELS: dict[str, type[BaseModel]] = {name: type(getattr(Config(), name)) for name in Config.model_fields}


def row(section: str, key: str) -> list[str]:
    """The cells of a key's row."""
    found = re.search(rf"^## \[{section}\]\n.*?^\| `{key}` \| (.*?) \|$", PAGE.read_text(), re.M | re.S)
    assert found, f"{section}.{key}"
    return found[1].split(" | ")


def test_it_is_current(tmp_path: Path) -> None:
    """If not: python -m nedge.config_reference deploy/CONFIG.md"""
    config_reference.write(tmp_path / "made.md")
    assert (tmp_path / "made.md").read_text() == PAGE.read_text()


@pytest.mark.parametrize("section", MODELS)
def test_every_section_and_key_is_explained(section: str) -> None:
    model = MODELS[section]
    assert model.__doc__
    assert model.__doc__ != BaseModel.__doc__
    assert list(config_reference.explained(model)) == list(model.model_fields)
    for key in model.model_fields:
        assert len(row(section, key)) == 3, key


def test_no_default_is_a_place_on_the_machine_that_made_it() -> None:
    assert str(Path(__file__).parents[2]) not in PAGE.read_text()


@pytest.mark.parametrize(
    ("section", "key", "values", "default"),
    [
        ("gateway", "mode", '`"inline"`, `"monitor"`', '`"inline"`'),
        ("gateway", "lan", "list: text", "`[]`"),
        ("gateway", "queue", "whole number, 0 to 65,000", "`71`"),
        ("gateway", "offload", "`true`, `false`", "`true`"),
        ("gateway", "vlan_mask", "whole number", "`0x0fff0000`"),
        ("verdict", "quarantine_seconds", "number, more than 0, up to 31,622,400", "`300`"),
        ("limits", "max_flows", "whole number, 1 or more", "`1000000`"),
        ("lists", "allow_hosts", "list: path or URL", "`[]`"),
        ("lists", "cache_directory", "path", '`"/var/cache/nedge"`'),
        ("network", "own_addresses", "list: address", "`[]`"),
        ("metrics", "listen", "address:port", "none"),
        ("scripts", "lua_allow", 'list: `"io"`, `"os"`', "`[]`"),
        ("scripts", "directories", "list: path", "the scripts that come with nedge"),
    ],
)
def test_values_and_defaults(section: str, key: str, values: str, default: str) -> None:
    assert row(section, key)[:2] == [values, default]
