"""Finding, loading and checking scripts: every problem names the file, and the line if there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nedge.core.hooks import Hook
from nedge.scripts.loader import load_scripts
from nedge.scripts.script import Problem, Script

HOOK = "def protocolDetected(flow, now, conf): pass\n"


def load(
    directory: Path, sources: dict[str, str | bytes], **settings: dict[str, Any]
) -> tuple[list[Script], list[Problem]]:
    for key, source in sources.items():
        path = directory / f"{key}.py"
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return load_scripts([directory], settings, {"tls": 91, "dns": 5}.get)


def no_protocol(name: str) -> int | None:
    return None


def problem(directory: Path, source: str | bytes, **settings: Any) -> Problem:
    """The one problem with a script named `script`, which does not load."""
    scripts, problems = load(directory, {"script": source}, **({"script": settings} if settings else {}))
    assert scripts == []
    assert len(problems) == 1
    return problems[0]


def one(directory: Path, source: str, **settings: Any) -> Script:
    scripts, problems = load(directory, {"script": source}, script=settings)
    assert problems == []
    return scripts[0]


# What a script is


def test_the_key_is_the_file_name(tmp_path: Path) -> None:
    script = one(tmp_path, HOOK)
    assert (script.key, script.title, script.category) == ("script", "script", "other")
    assert list(script.hooks) == [Hook.PROTOCOL_DETECTED]
    assert script.conf == {}


def test_title_and_description(tmp_path: Path) -> None:
    assert one(tmp_path, f"title = 'My script'\ndescription = 'What it does'\n{HOOK}").title == "My script"
    assert one(tmp_path, f"description = 'What it does'\n{HOOK}").description == "What it does"
    assert one(tmp_path, f'"""Its docstring."""\n{HOOK}').description == "Its docstring."


@pytest.mark.parametrize(
    ("line", "category"),
    [
        ("", "other"),
        *((f"category = {name!r}", name) for name in ("other", "security", "internals", "network", "system")),
        ("category = 'sports'", "other"),
        ("category = ''", "other"),
    ],
)
def test_category(tmp_path: Path, line: str, category: str) -> None:
    assert one(tmp_path, f"{line}\n{HOOK}").category == category


def test_files_that_are_no_scripts(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("text")
    (tmp_path / "data.csv").write_text("a,b")
    scripts, problems = load(tmp_path, {"_helper": "1 / 0", "test_x": "1 / 0", "good": HOOK})
    assert [script.key for script in scripts] == ["good"]
    assert problems == []


def test_scripts_come_in_order_of_prio_then_key(tmp_path: Path) -> None:
    scripts, _ = load(tmp_path, {"b": HOOK, "c": f"prio = 1\n{HOOK}", "a": HOOK})
    assert [script.key for script in scripts] == ["c", "a", "b"]


# Settings


@pytest.mark.parametrize(
    ("settings", "conf"),
    [
        ({}, {"limit": 5, "names": ["a"], "ratio": 0.5, "on": True, "text": "x"}),
        ({"limit": 9}, {"limit": 9, "names": ["a"], "ratio": 0.5, "on": True, "text": "x"}),
        ({"names": []}, {"limit": 5, "names": [], "ratio": 0.5, "on": True, "text": "x"}),
        ({"ratio": 1}, {"limit": 5, "names": ["a"], "ratio": 1, "on": True, "text": "x"}),
        (
            {"enabled": True, "on": False},
            {"limit": 5, "names": ["a"], "ratio": 0.5, "on": False, "text": "x"},
        ),
    ],
)
def test_settings_go_over_the_defaults(
    tmp_path: Path, settings: dict[str, Any], conf: dict[str, Any]
) -> None:
    defaults = "default_value = {'limit': 5, 'names': ['a'], 'ratio': 0.5, 'on': True, 'text': 'x'}\n"
    assert one(tmp_path, defaults + HOOK, **settings).conf == conf


@pytest.mark.parametrize(
    ("settings", "found", "allowed"),
    [
        ({"limits": 9}, "limits", "enabled, limit, on"),
        ({"limit": "9"}, "'9'", "int"),
        ({"limit": 9.5}, "9.5", "int"),
        ({"limit": True}, "True", "int"),
        ({"on": 1}, "1", "bool"),
        ({"enabled": "yes"}, "'yes'", "true or false"),
        ({"enabled": 1}, "1", "true or false"),
    ],
)
def test_a_wrong_setting_is_an_error(
    tmp_path: Path, settings: dict[str, Any], found: str, allowed: str
) -> None:
    wrong = problem(tmp_path, f"default_value = {{'limit': 5, 'on': True}}\n{HOOK}", **settings)
    assert wrong.fatal
    for text in ("script.py", "[scripts.script]", next(iter(settings)), found, allowed):
        assert text in str(wrong)


def test_settings_do_not_change_the_defaults(tmp_path: Path) -> None:
    source = f"default_value = {{'limit': 5}}\n{HOOK}"
    assert one(tmp_path, source, limit=6).conf == {"limit": 6}
    assert one(tmp_path, source).conf == {"limit": 5}


def test_settings_for_no_script(tmp_path: Path) -> None:
    scripts, problems = load(tmp_path, {"a": HOOK, "b": HOOK}, c={"limit": 1})
    assert [script.key for script in scripts] == ["a", "b"]
    assert [wrong.fatal for wrong in problems] == [True]
    assert "scripts.c" in str(problems[0])
    assert "a, b" in str(problems[0])


# Problems


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = 1\ny = = 2\n" + HOOK, 2),
        ("def protocolDetected(flow, now, conf)\n    pass\n", 1),
        ("\n\nif True:\nx = 1\n", 4),
        ("x = 1\nreturn x\n", 2),
    ],
)
def test_a_syntax_error_names_file_and_line(tmp_path: Path, source: str, line: int) -> None:
    wrong = problem(tmp_path, source)
    assert wrong.fatal
    assert (wrong.path, wrong.line) == (tmp_path / "script.py", line)
    assert str(wrong).startswith(f"{tmp_path / 'script.py'}:{line}: syntax error")


@pytest.mark.parametrize("source", [b"x = 1\0\n", b"x = '\xff\xfe'\n"])
def test_what_is_not_python_at_all(tmp_path: Path, source: bytes) -> None:
    wrong = problem(tmp_path, source)
    assert wrong.fatal
    assert "script.py" in str(wrong)


@pytest.mark.parametrize(
    ("source", "line", "text"),
    [
        (f"x = 1\n1 / 0\n{HOOK}", 2, "ZeroDivisionError"),
        ("import no_such_module\n", 1, "no_such_module"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit"),
        (f"def setup():\n    raise ValueError('bad')\n{HOOK}", 2, "ValueError in setup(): bad"),
        ("def f():\n    return g()\n\ndef g():\n    return x\n\nf()\n", 5, "NameError"),
    ],
)
def test_an_error_while_loading_names_the_scripts_own_line(
    tmp_path: Path, source: str, line: int, text: str
) -> None:
    wrong = problem(tmp_path, source)
    assert wrong.fatal
    assert wrong.line == line
    assert text in wrong.message


@pytest.mark.parametrize(
    "source",
    [
        "def protocolDetected(flow): pass\n",
        "def protocolDetected(flow, now): pass\n",
        "def protocolDetected(flow, now, conf, more): pass\n",
        "def protocolDetected(): pass\n",
        "protocolDetected = 5\n",
        "x = 1\ndef flowEnd(*, flow, now, conf): pass\n",
        "def all(flow): pass\n",
    ],
)
def test_a_hook_takes_three_arguments(tmp_path: Path, source: str) -> None:
    wrong = problem(tmp_path, source)
    assert wrong.fatal
    assert any(name in wrong.message for name in ("protocolDetected", "flowEnd", "all"))


@pytest.mark.parametrize(
    "source",
    [
        HOOK,
        "def protocolDetected(a, b, c): pass\n",
        "def protocolDetected(flow, now, conf, more=1): pass\n",
        "def protocolDetected(*arguments): pass\n",
        "protocolDetected = lambda flow, now, conf: None\n",
    ],
)
def test_hooks_that_are_fine(tmp_path: Path, source: str) -> None:
    assert list(one(tmp_path, source).hooks) == [Hook.PROTOCOL_DETECTED]


def test_all_overrides_ntopngs_four(tmp_path: Path) -> None:
    source = "".join(
        f"def {name}(flow, now, conf): return {number}\n"
        for number, name in enumerate(("all", "flowEnd", "protocolUpdated"), 1)
    )
    hooks = one(tmp_path, source).hooks
    assert {hook: function(None, 0, {}) for hook, function in hooks.items()} == {
        Hook.PROTOCOL_DETECTED: 1,
        Hook.PERIODIC_UPDATE: 1,
        Hook.STATUS_CHANGED: 1,
        Hook.FLOW_END: 1,
        Hook.PROTOCOL_UPDATED: 3,
    }


@pytest.mark.parametrize("source", ["x = 1\n", "", "def other(flow, now, conf): pass\n"])
def test_a_script_without_hooks_is_skipped_with_a_warning(tmp_path: Path, source: str) -> None:
    wrong = problem(tmp_path, source)
    assert not wrong.fatal
    assert "hook" in wrong.message


def test_an_unknown_l7_protocol_is_skipped_with_a_warning(tmp_path: Path) -> None:
    wrong = problem(tmp_path, f"l7_proto = 'nosuch'\n{HOOK}")
    assert not wrong.fatal
    assert "nosuch" in wrong.message


@pytest.mark.parametrize("l4", ["'sctp'", "'TCP'", "6", "''"])
def test_l4_protocols(tmp_path: Path, l4: str) -> None:
    source = f"l4_proto = {l4}\n{HOOK}"
    if l4 == "''":
        assert one(tmp_path, source).l4 == ()
        return
    wrong = problem(tmp_path, source)
    assert wrong.fatal
    assert "l4_proto" in wrong.message


@pytest.mark.parametrize(
    "line", ["prio = 'high'", "prio = True", "title = 5", "default_value = []", "three_way_handshake_ok = 1"]
)
def test_a_setting_of_the_wrong_type_is_an_error(tmp_path: Path, line: str) -> None:
    wrong = problem(tmp_path, f"{line}\n{HOOK}")
    assert wrong.fatal
    assert line.split(" ")[0] in wrong.message


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        ("isTls", "did you mean 'isTLS'?"),
        ("getScore", "but not getScore, getStatus, isPassVerdict"),  # changes while scripts run
        ("setStatus", "take no arguments"),
        ("_flow", "take no arguments"),
    ],
)
def test_a_need_that_is_no_function_of_the_flow_is_an_error(tmp_path: Path, needs: str, says: str) -> None:
    wrong = problem(tmp_path, f"needs = {needs!r}\n{HOOK}")
    assert wrong.fatal
    assert wrong.line == 1
    assert says in wrong.message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    scripts, problems = load(tmp_path, {"a": "x = = 1", "b": "1 / 0", "c": HOOK, "d": "x = 1"})
    assert [script.key for script in scripts] == ["c"]
    assert [wrong.path.stem for wrong in problems] == ["a", "b", "d"]
    assert [wrong.fatal for wrong in problems] == [True, True, False]


def test_no_such_directory(tmp_path: Path) -> None:
    scripts, problems = load_scripts([tmp_path / "none"], {}, no_protocol)
    assert scripts == []
    assert problems[0].fatal
    assert "none" in str(problems[0])


def test_one_key_in_two_directories(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "script.py").write_text(HOOK)
    scripts, problems = load_scripts([tmp_path / "one", tmp_path / "two"], {}, no_protocol)
    assert [script.path.parent.name for script in scripts] == ["one"]
    assert [wrong.fatal for wrong in problems] == [True]
    assert str(tmp_path / "two" / "script.py") in str(problems[0])


# User statuses

DEFINE = (
    "from nedge.scripts import define_status, StatusType\nmine = define_status({0}, 'status_{1}', 'Mine')\n"
    + HOOK
)


@pytest.mark.parametrize("key", [59, 60, 61, 62, 63])
def test_user_statuses(tmp_path: Path, key: int) -> None:
    (status,) = one(tmp_path, DEFINE.format(key, "mine")).statuses
    assert (status.status_key, status.name, status.title) == (key, "status_mine", "Mine")


@pytest.mark.parametrize("key", [-1, 0, 1, 27, 35, 36, 58, 64, 1000])
def test_other_ids_are_an_error(tmp_path: Path, key: int) -> None:
    wrong = problem(tmp_path, DEFINE.format(key, "mine"))
    assert wrong.fatal
    assert wrong.line == 2
    assert f"{key}" in wrong.message
    assert "59 to 63" in wrong.message


def test_two_scripts_cannot_define_one_status(tmp_path: Path) -> None:
    sources: dict[str, str | bytes] = {
        "a": DEFINE.format(59, "a"),
        "b": DEFINE.format(59, "b"),
        "c": DEFINE.format(60, "c"),
    }
    _, problems = load(tmp_path, sources)
    assert [(wrong.path.stem, wrong.fatal) for wrong in problems] == [("b", True)]
    assert "59" in problems[0].message
    assert "a.py" in problems[0].message


def test_one_script_cannot_define_a_status_twice(tmp_path: Path) -> None:
    source = DEFINE.format(59, "a") + "other = define_status(59, 'status_b', 'Other')\n"
    _, problems = load(tmp_path, {"script": source})
    assert [wrong.fatal for wrong in problems] == [True]
    assert "59" in problems[0].message


def test_two_names_for_one_status_are_fine(tmp_path: Path) -> None:
    script = one(tmp_path, DEFINE.format(59, "a") + "again = mine\n")
    assert [status.status_key for status in script.statuses] == [59]


@pytest.mark.parametrize("key", [1, 27, 36, 58, 64])
def test_a_built_in_status_cannot_be_defined_anew(tmp_path: Path, key: int) -> None:
    source = f"from nedge.scripts import StatusType\nmine = StatusType({key}, 'status_mine', 'Mine')\n{HOOK}"
    _, problems = load(tmp_path, {"script": source})
    assert [wrong.fatal for wrong in problems] == [True]
    assert str(key) in problems[0].message


def test_using_the_ready_made_user_statuses_is_no_conflict(tmp_path: Path) -> None:
    source = f"from nedge.scripts import status_types\nmine = status_types.status_user_01\n{HOOK}"
    scripts, problems = load(tmp_path, {"a": source, "b": source})
    assert problems == []
    assert [script.statuses for script in scripts] == [(), ()]


# All problems of one script, single scripts, scripts that are off


def test_all_problems_of_a_script_are_told_with_their_lines(tmp_path: Path) -> None:
    source = (
        "title = 5\n"
        "prio = 'high'\n"
        "l4_proto = 'sctp'\n"
        "l7_proto = 'nosuch'\n"
        "default_value = {'limit': 5}\n"
        "def protocolDetected(flow): pass\n"
        "flowEnd = 5\n"
        "category: int = 7\n"
    )
    scripts, problems = load(tmp_path, {"script": source}, script={"limit": "x", "limits": 1, "enabled": 1})
    assert scripts == []
    found = [(wrong.line, wrong.message.partition(":")[0].partition(" ")[0]) for wrong in problems]
    assert found == [
        (0, "[scripts.script]"),
        (0, "[scripts.script]"),
        (0, "[scripts.script]"),
        (1, "title"),
        (2, "prio"),
        (3, "l4_proto"),
        (4, "l7_proto"),
        (6, "protocolDetected"),
        (7, "flowEnd"),
        (8, "category"),
    ]
    assert [wrong.line for wrong in problems if not wrong.fatal] == [4]


def test_a_near_miss_gets_a_hint(tmp_path: Path) -> None:
    wrong = problem(tmp_path, f"default_value = {{'limit': 5}}\n{HOOK}", limits=5)
    assert wrong.message.endswith("did you mean 'limit'?")
    _, problems = load(tmp_path, {"script": HOOK}, scirpt={})
    assert [str(wrong) for wrong in problems] == [
        "[scripts.scirpt]: settings for a script that does not exist; did you mean 'script'?"
    ]


def test_a_single_script(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = = 1\n")
    path = tmp_path / "test_mine.py"  # its name does not matter if it is named itself
    path.write_text(HOOK)
    scripts, problems = load_scripts([path], {}, no_protocol)
    assert [script.key for script in scripts] == ["test_mine"]
    assert problems == []


@pytest.mark.parametrize(
    ("source", "settings", "why"),
    [
        (HOOK, {"enabled": False}, "enabled = false in the configuration"),
        ("x = = 1\n", {"enabled": False}, "enabled = false in the configuration"),
        (f"default_enabled = False\n{HOOK}", {}, "by default"),
        (f"def setup(): return False\n{HOOK}", {}, "its setup() found nothing to do"),
        (f"def setup(): pass\n{HOOK}", {}, "its setup() found nothing to do"),
        (f"def setup(conf): return conf['a']\ndefault_value = {{'a': 0}}\n{HOOK}", {}, "its setup()"),
        (f"nedge_exclude = True\n{HOOK}", {}, "it excludes nedge"),
    ],
)
def test_scripts_that_are_off(tmp_path: Path, source: str, settings: dict[str, Any], why: str) -> None:
    (tmp_path / "script.py").write_text(source)
    off: dict[str, str] = {}
    scripts, problems = load_scripts([tmp_path], {"script": settings}, no_protocol, off)
    assert (scripts, problems) == ([], [])
    assert list(off) == ["script"]
    assert off["script"].startswith(why)


def test_setup_may_take_the_settings(tmp_path: Path) -> None:
    source = f"default_value = {{'a': 0}}\ndef setup(conf):\n    return 1 / conf['a']\n{HOOK}"
    assert one(tmp_path, source, a=5).conf == {"a": 5}
    wrong = problem(tmp_path, source)
    assert (wrong.fatal, wrong.line) == (True, 3)
    assert "ZeroDivisionError in setup()" in wrong.message
