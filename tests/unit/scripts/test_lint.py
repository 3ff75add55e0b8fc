"""Warnings about scripts that load, but do not do what their author thinks."""

from __future__ import annotations

from pathlib import Path

import pytest

from nedge.config import SHIPPED_POLICIES
from nedge.scripts.lint import lint
from nedge.scripts.new import create

HOOK = "def protocolDetected(flow, now, conf):\n    "


def warnings(tmp_path: Path, source: str) -> list[tuple[int, str]]:
    path = tmp_path / "script.py"
    path.write_text(source)
    found = lint(path)
    assert {problem.fatal for problem in found} <= {False}
    assert {problem.path for problem in found} <= {path}
    return [(problem.line, problem.message) for problem in found]


@pytest.mark.parametrize(
    ("source", "line", "parts"),
    [
        (
            "x = 1\ndef protocoldetected(flow, now, conf): pass\n",
            2,
            ["protocoldetected", "protocolDetected?"],
        ),
        ("def protocol_detected(flow, now, conf): pass\n", 1, ["protocolDetected?"]),
        ("def PeriodicUpdates(flow, now, conf): pass\n", 1, ["periodicUpdate?"]),
        ("def flow_end(flow, now, conf): pass\n", 1, ["flowEnd?"]),
        ("def set_up(): return True\n", 1, ["setup?"]),
        ("L4_proto = 'tcp'\n", 1, ["l4_proto?"]),
        ("default_values = {}\n", 1, ["default_value?"]),
        ("three_way_handshake: bool = True\n", 1, ["three_way_handshake_ok?"]),
        ("x = 1\n\ncategory = 'sports'\n", 3, ["'sports'", "'other'", "security"]),
        ("periodic_update_seconds = 45\n", 1, ["45", "120", "30"]),
        ("periodic_update_seconds = 0\n", 1, ["120"]),
        (
            f"default_value = {{'limit': 5}}\n{HOOK}return conf['limt'], conf['limit']\n",
            3,
            ["'limt'", "'limit'?"],
        ),
        (f"{HOOK}return conf['limit']\n", 2, ["'limit'", "default_value has not"]),
        ("def setup(c):\n    return c['a']\n", 2, ["'a'"]),
        ("def all(f, n, mine):\n    return mine['a']\n", 2, ["'a'"]),
        (
            f"default_value = {{\n    'a': 1,\n    'b': 2,\n}}\n{HOOK}return conf['a']\n",
            3,
            ["'b'", "never reads"],
        ),
    ],
)
def test_what_is_told(source: str, line: int, parts: list[str], tmp_path: Path) -> None:
    (found,) = warnings(tmp_path, source)
    assert found[0] == line
    assert [part for part in parts if part not in found[1]] == []


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x = = 1",  # the loader's business
        "x = '\0'",
        f"default_value = {{'a': 1}}\n{HOOK}return conf['a']\n",
        f"default_value = {{'a': 1}}\n{HOOK}return conf.get('a')\n",
        f"default_value = {{'a': 1}}\n{HOOK}return [conf[name] for name in conf]\n",
        f"default_value = {{'a': 1}}\nNAMES = ['a']\n{HOOK}return helper(conf, NAMES)\n",
        f"DEFAULTS = {{'a': 1}}\ndefault_value = dict(DEFAULTS)\n{HOOK}return conf['b']\n",
        f"{HOOK}return other['b']\n",
        "category = 'security'\nperiodic_update_seconds = 300\n",
        "def protocol(flow): pass\ndef detected(): pass\nupdate = all_flows = titles_of_films = 1\n",
        "class Setups: pass\n",
    ],
)
def test_what_is_fine(source: str, tmp_path: Path) -> None:
    assert warnings(tmp_path, source) == []


def test_all_warnings_by_line(tmp_path: Path) -> None:
    source = (
        "periodic_update_seconds = 7\ncategory = 'x'\ndefault_value = {'a': 1}\ndef flowend(a, b, c): pass\n"
    )
    assert [line for line, _ in warnings(tmp_path, source)] == [1, 2, 3, 4]


@pytest.mark.parametrize("path", sorted(SHIPPED_POLICIES.glob("*.py")), ids=lambda path: path.stem)
def test_shipped_policies_are_fine(path: Path) -> None:
    assert lint(path) == []


def test_what_new_script_writes_is_fine(tmp_path: Path) -> None:
    script, _ = create("mine", tmp_path, SHIPPED_POLICIES)
    assert lint(script) == []
