"""`nedge check`: everything that is wrong, in one run, with file and line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOOK = "def protocolDetected(flow, now, conf): pass\n"

BROKEN: dict[str, tuple[str | bytes, int, str]] = {
    "syntax": ("x = 1\ny = = 2\n", 2, "syntax error"),
    "outside": ("return 5\n", 1, "syntax error"),
    "binary": (b"x = 1\0\n", 0, "null bytes"),
    "latin1": (b"x = 1\ny = '\xe9'\n", 0, "syntax error"),
    "raises": ("x = 1\n\n1 / 0\n", 3, "ZeroDivisionError while loading"),
    "imports": ("import no_such_module\n", 1, "ModuleNotFoundError while loading"),
    "exits": ("import sys\nsys.exit()\n", 2, "SystemExit while loading"),
    "set_up": (f"def setup():\n    return undefined\n{HOOK}", 2, "NameError in setup()"),
    "settings": (
        f"default_value = {{'a': 1}}\ndef setup(conf):\n    return conf['b']\n{HOOK}",
        3,
        "KeyError",
    ),
    "arguments": ("def protocolDetected(flow): pass\n", 1, "must take three arguments"),
    "no_function": ("x = 1\nflowEnd = 5\n", 2, "flowEnd is not a function"),
    "l4": (f"l4_proto = 'sctp'\n{HOOK}", 1, "allowed are tcp, udp, icmp"),
    "types": (f"title = 5\nprio = 'x'\n{HOOK}", 2, "prio: found 'x'"),
    "status": (f"from nedge.scripts import *\nmine = define_status(5, 'a', 'A')\n{HOOK}", 2, "59 to 63"),
}
SKIPPED = {"no_hook": ("x = 1\n", 0), "no_protocol": (f"x = 1\nl7_proto = 'Nosuch'\n{HOOK}", 2)}


def check(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nedge", "check", "--config", str(config)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[2]
    )


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    directory = tmp_path / "scripts"
    directory.mkdir()
    (directory / "fine.py").write_text(HOOK)
    return directory


def configure(scripts: Path, text: str = "") -> Path:
    path = scripts.parent / "nedge.toml"
    path.write_text(f'[scripts]\ndirectories = ["{scripts}"]\n{text}')
    return path


def test_broken_scripts_of_every_kind_in_one_run(scripts: Path) -> None:
    for key, (source, _, _) in BROKEN.items():
        (scripts / f"{key}.py").write_bytes(source if isinstance(source, bytes) else source.encode())
    for key, (text, _) in SKIPPED.items():
        (scripts / f"{key}.py").write_text(text)
    done = check(configure(scripts, "[scripts.fine]\nnosuch = 1\n[scripts.fien]\nx = 1\n"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    for key, (_, line, said) in BROKEN.items():
        where = f"nedge: {scripts / key}.py:{line}: " if line else f"nedge: {scripts / key}.py"
        assert any(text.startswith(where) and said in text for text in lines), (key, done.stderr)
    assert f"nedge: {scripts}/types.py:1: title: found 5; allowed is a value of type str" in lines
    assert any("fine.py: [scripts.fine] nosuch: unknown key" in text for text in lines)
    assert any("[scripts.fien]" in text and "did you mean 'fine'?" in text for text in lines)
    for key, (_, line) in SKIPPED.items():
        where = f"{scripts / key}.py:{line}: " if line else f"{scripts / key}.py: "
        assert any(where in text and "skipped" in text for text in lines), (key, done.stderr)


def test_lists_and_scripts_are_told_together(scripts: Path) -> None:
    (scripts / "bad.py").write_text("1 / 0\n")
    done = check(configure(scripts, '[lists]\nmalware_hosts = ["none"]\n'))
    assert done.returncode == 2
    assert "bad.py:1" in done.stderr
    assert "none: cannot be read" in done.stderr


def test_scripts_that_do_not_run_are_told_with_the_reason(scripts: Path) -> None:
    for key, (text, _) in SKIPPED.items():
        (scripts / f"{key}.py").write_text(text)
    (scripts / "by_default.py").write_text(f"default_enabled = False\ndefault_value = {{'a': 1}}\n{HOOK}")
    (scripts / "by_setup.py").write_text(f"def setup(): return False\n{HOOK}")
    (scripts / "by_config.py").write_text("1 / 0\n")
    text = "[scripts.by_config]\nenabled = false\n[scripts.by_default]\na = 5\n"
    done = check(configure(scripts, text))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "script fine: ok (hooks: protocolDetected)" in lines
    assert "script by_default: off (by default; enabled = true in the configuration switches it on)" in lines
    assert "script by_setup: off (its setup() found nothing to do)" in lines
    assert "script by_config: off (enabled = false in the configuration)" in lines
    assert any(line.startswith("script no_hook: ") and "has no hook" in line for line in lines)
    assert any(line.startswith("script no_protocol: ") and "'Nosuch'" in line for line in lines)
    (unused,) = [line for line in lines if line.startswith("warning: [scripts.by_default]")]
    assert "a: no effect, as the script is off" in unused


def test_warnings(scripts: Path) -> None:
    source = (
        "default_value = {'limit': 5}\ndef protocolDetected(flow, now, conf):\n    return conf['limits']\n"
    )
    (scripts / "mine.py").write_text(source)
    done = check(configure(scripts))
    assert done.returncode == 0
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    assert [line.partition("/mine.py:")[2] for line in warnings] == [
        "1: default_value has 'limit', which the script never reads",
        "3: reads the setting 'limits', which default_value has not; did you mean 'limit'?",
    ]


def test_a_single_script(scripts: Path) -> None:
    (scripts / "bad.py").write_text("1 / 0\n")
    command = [sys.executable, "-m", "nedge", "check", "--policies", str(scripts / "fine.py")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[2]
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("script")] == [
        "script fine: ok (hooks: protocolDetected)"
    ]
