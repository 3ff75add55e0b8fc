"""ntopng's plugin directories: scripts with their own modules, texts, status and alert types."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import ping, tls
from lua_kit import QUIET, hook, lua, run, said, write

from nedge.scripts.loader import load_scripts
from nedge.scripts.script import Problem, Script

Files = dict[str, str | bytes]
OWN = ("status_definitions/status_odd_port.lua", "user_scripts/flow/odd_ports.lua")
"""What the plugin below defines and runs."""

PLUGIN: Files = {
    "manifest.lua": 'return {title = "Odd ports", description = "Tells", author = "us", dependencies = {}}',
    "locales/en.lua": """
        return {
          title = "Odd port",
          description = "Port %{port} of %{ server } is odd",
          status = {title = "Odd port used"},
        }
        """,
    "alert_definitions/alert_odd_port.lua": """
        local alert_keys = require "alert_keys"
        return {alert_key = alert_keys.user.alert_user_01, i18n_title = "odd_ports.title", icon = "fas"}
        """,
    "status_definitions/status_odd_port.lua": """
        local status_keys = require "flow_keys"
        local alert_consts = require("alert_consts")
        local function describe(info)
          return i18n("odd_ports.description", {port = info.port, server = info.server})
        end
        local function create(severity, port, server)
          return {alert_severity = severity, alert_type_params = {port = port, server = server}}
        end
        return {
          status_key = status_keys.user.status_user_01,
          alert_severity = alert_consts.alert_severities.error,
          alert_type = alert_consts.alert_types.alert_odd_port,
          i18n_title = "odd_ports.status.title",
          i18n_description = describe,
          create = create,
        }
        """,
    "modules/ports.lua": "return {is_odd = function(port) return port % 2 == 1 end}\n",
    "user_scripts/flow/odd_ports.lua": lua("""
        local plugins_utils = require "plugins_utils"
        script.gui = {i18n_title = "odd_ports.title", i18n_description = "odd_ports.missing"}
        function script.hooks.protocolDetected()
          local ports = plugins_utils.loadModule("odd_ports", "ports")
          local info = flow.getInfo()
          if ports.is_odd(info["srv.port"]) then
            local odd = status_types.status_odd_port
            flow.triggerStatus(odd.create(odd.alert_severity, info["srv.port"], info["srv.ip"]), 30, 20, 10)
            local description = flow_consts.getStatusDescription(59, {port = 1, server = "x"})
            print(description, flow_consts.getStatusTitle(59))
          end
        end
        """),
    "user_scripts/host/other.lua": "error('not for flows')",
}


def plugin(name: str = "odd_ports", changes: Files | None = None, *without: str) -> Files:
    files = {path: text for path, text in (PLUGIN | (changes or {})).items() if path not in without}
    return {f"{name}/{path}": text for path, text in files.items()}


def load(directory: Path, files: Files) -> tuple[list[Script], list[Problem]]:
    return load_scripts([write(directory, files)], {}, lambda name: 1)


def problem(directory: Path, files: Files) -> Problem:
    found, problems = load(directory, files)
    assert found == []
    assert len(problems) == 1
    assert problems[0].fatal
    return problems[0]


def test_a_plugin() -> None:
    judged, ran = run(plugin(), tls().packets)
    assert list(ran) == ["odd_ports"]
    script = ran["odd_ports"]
    assert (script.title, script.description, script.last_error) == ("Odd port", "", "")
    assert [
        (status.status_key, status.name, status.title, status.severity) for status in script.statuses
    ] == [(59, "status_odd_port", "Odd port used", "error")]
    (alert,) = judged.alerts
    assert alert["alert"] == {
        "action": "allowed",
        "gid": 1,
        "rev": 1,
        "signature_id": 59,
        "signature": "Odd port used",
        "category": "odd_port",
        "severity": 1,
    }
    assert alert["nedge"]["info"] == {"port": 443, "server": "203.0.113.5"}
    assert (judged.statuses, judged.scores) == (["status_odd_port"], (30, 20, 10))


def test_descriptions_and_texts() -> None:
    assert said(plugin(), tls().packets) == ["Port 1 of x is odd\tOdd port used"]


@pytest.mark.parametrize("where", ["", "alerts/security/", "a/b/c/d/"])
def test_where_plugins_may_be(tmp_path: Path, where: str) -> None:
    (script,), problems = load(tmp_path, {f"{where}{path}": text for path, text in plugin().items()})
    assert (problems, script.key) == ([], "odd_ports")


def test_a_plugin_as_the_directory_of_scripts(tmp_path: Path) -> None:
    (script,), problems = load(tmp_path, PLUGIN | {"http_lint.lua": "error('not a flow script')"})
    assert (problems, script.key) == ([], "odd_ports")


@pytest.mark.parametrize("mark", ["manifest.lua", "plugin.lua", None])
def test_what_makes_a_plugin(tmp_path: Path, mark: str | None) -> None:
    files: Files = {"p/user_scripts/flow/a.lua": hook("")} | ({f"p/{mark}": "return {}"} if mark else {})
    (script,), problems = load(tmp_path, files)
    assert (problems, script.key) == ([], "a")


@pytest.mark.parametrize("where", [".git/", "_old/", "x/.hidden/", "a/b/c/d/e/f/"])
def test_where_plugins_are_not_looked_for(tmp_path: Path, where: str) -> None:
    found, problems = load(tmp_path, {f"{where}{path}": text for path, text in plugin().items()})
    assert (found, problems) == ([], [])


def test_beside_other_scripts(tmp_path: Path) -> None:
    files: Files = plugin() | {"single.lua": hook(""), "other.py": "def flowEnd(flow, now, conf): pass\n"}
    found, problems = load(tmp_path, files)
    assert ([script.key for script in found], problems) == (["odd_ports", "other", "single"], [])


def test_the_key_is_the_scripts_not_the_plugins(tmp_path: Path) -> None:
    (script,), problems = load(tmp_path, plugin("renamed", {"user_scripts/flow/odd_ports.lua": hook("")}))
    assert (script.key, problems) == ("odd_ports", [])


# Status definitions


def definition(key: str, name: str = "status_odd_port", more: str = "") -> Files:
    return {
        f"status_definitions/{name}.lua": f"""
            local keys = require "flow_keys"
            return {{status_key = {key}, i18n_title = "x", {more}}}
            """
    }


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("keys.ntopng.status_blacklisted", "status 1 (status_blacklisted) is not the user's"),
        ("27", "status 27 (status_web_mining_detected) is not the user's"),
        ("0", "status 0 (status_normal) is not the user's"),
        ("36", "status 36 is not the user's"),
        ("58", "status 58 is not the user's"),
        ("64", "status 64 is not the user's"),
        ("-1", "status -1 is not the user's"),
        ("'59'", "status_key: found '59'"),
        ("59.5", "status_key: found 59.5"),
        ("true", "status_key: found True"),
    ],
)
def test_other_ids_are_an_error(tmp_path: Path, key: str, message: str) -> None:
    wrong = problem(tmp_path, plugin("odd_ports", definition(key)))
    assert message in wrong.message
    assert "59 to 63" in wrong.message
    assert wrong.path.name == "status_odd_port.lua"


@pytest.mark.parametrize("key", ["keys.user.status_user_05", "63", "59.0"])
def test_user_ids(tmp_path: Path, key: str) -> None:
    (script,), problems = load(tmp_path, plugin("odd_ports", definition(key)))
    assert (problems, [status.name for status in script.statuses]) == ([], ["status_odd_port"])


# Definitions of the first months of 2020 have other numbers, or none


@pytest.mark.parametrize("key", ["nil", "keys.ntopng.status_no_such"])
def test_a_status_without_a_number_gets_the_highest_that_is_free(tmp_path: Path, key: str) -> None:
    taken = plugin("a", definition("63", "status_a") | {"user_scripts/flow/a.lua": hook("")}, *OWN)
    first = plugin("b", definition(key, "status_b") | definition(key, "status_c"), OWN[0])
    found, problems = load(tmp_path, taken | first)
    assert problems == []
    assert [(s.status_key, s.name) for script in found for s in script.statuses] == [
        (63, "status_a"),
        (62, "status_b"),
        (61, "status_c"),
    ]


def test_a_status_without_a_number_works_as_any_other() -> None:
    script = hook(
        "local odd = status_types.status_odd_port flow.triggerStatus(odd.status_id, {a = 1}, 30, 20)"
    )
    judged, ran = run(plugin("odd_ports", definition("nil") | {OWN[1]: script}), ping())
    assert ran["odd_ports"].last_error == ""
    assert (judged.statuses, judged.scores) == (["status_odd_port"], (30, 20, 0))
    assert judged.alerts[0]["alert"]["signature_id"] == 63


def test_no_number_is_left(tmp_path: Path) -> None:
    definitions = [definition("nil", f"status_{letter}") for letter in "abcdef"]
    files = {path: text for each in definitions for path, text in each.items()}
    wrong = problem(tmp_path, plugin("odd_ports", files, OWN[0]))
    assert "no number for users is left" in wrong.message
    assert wrong.path.name == "status_f.lua"


@pytest.mark.parametrize(
    ("name", "old", "key"),
    [("status_odd_port", 62, 62), ("status_udp_unidirectional", 28, 26), ("status_blacklisted", "nil", 1)],
)
def test_old_numbers(name: str, old: object, key: int) -> None:
    script = hook(f"flow.setStatus(status_types.{name}.status_key, 5)")
    status = {f"status_definitions/{name}.lua": f"return {{status_id = {old}, i18n_title = 'x'}}"}
    judged, ran = run(plugin("odd_ports", status | {OWN[1]: script}, *([OWN[0]] * (key != 62))), ping())
    assert ran["odd_ports"].last_error == ""
    assert [*judged.flow["nedge"]["statuses"]] == [str(key)]


# What a type's create() gives


@pytest.mark.parametrize("name", ["create", "builder", "creator"])
@pytest.mark.parametrize("field", ["creator", "builder"])
def test_the_type_of_alert_may_say_what_create_gives(name: str, field: str) -> None:
    alert = f"""
        local function make(severity, port) return {{alert_type_params = {{odd = port}}}} end
        return {{alert_key = 1, i18n_title = "x", {field} = make}}
        """
    files = {
        "alert_definitions/alert_odd_port.lua": alert,
        **definition("59", more="alert_type = require('alert_consts').alert_types.alert_odd_port"),
        OWN[1]: hook(f"flow.triggerStatus(status_types.status_odd_port.{name}(nil, 7), 10)"),
    }
    judged, ran = run(plugin("odd_ports", files), ping())
    assert ran["odd_ports"].last_error == ""
    assert (judged.statuses, judged.alerts[0]["nedge"]["info"]) == (["status_odd_port"], {"odd": 7})


def test_text_as_what_create_gives() -> None:
    create = "create = function(severity, ip) return {alert_type_params = ip} end"
    script = hook("flow.triggerStatus(status_types.status_odd_port.create(nil, '192.0.2.1'), 10)")
    judged, _ = run(plugin("odd_ports", definition("59", more=create) | {OWN[1]: script}), ping())
    assert judged.alerts[0]["nedge"]["info"] == "192.0.2.1"


# Manifests


@pytest.mark.parametrize("name", ["manifest.lua", "plugin.lua"])
def test_a_plugin_may_be_switched_off(tmp_path: Path, name: str) -> None:
    off: Files = {name: "return {title = 'x', disabled = true}"}
    found, (note,) = load(tmp_path, plugin("odd_ports", off, *({"manifest.lua"} - {name})))
    assert found == []
    assert (note.path.name, note.fatal) == ("odd_ports", False)
    assert "disabled = true" in note.message


@pytest.mark.parametrize("manifest", ["return {disabled = false}", "return {} -- not disabled", "-- nothing"])
def test_a_plugin_is_on(tmp_path: Path, manifest: str) -> None:
    found, problems = load(tmp_path, plugin("odd_ports", {"manifest.lua": manifest}))
    assert (len(found), problems) == (1, [])


def test_a_manifest_that_does_not_run(tmp_path: Path) -> None:
    wrong = problem(tmp_path, plugin("odd_ports", {"manifest.lua": "return {disabled = no.such}"}))
    assert (wrong.path.name, wrong.line) == ("manifest.lua", 1)


def test_a_built_in_type_may_bring_its_own_definition() -> None:
    files = plugin(
        "web_mining",
        definition(
            "keys.ntopng.status_web_mining_detected",
            "status_web_mining_detected",
            "create = function(severity, n) return {alert_type_params = {times = n}} end",
        )
        | {
            "user_scripts/flow/web_mining.lua": hook(
                "flow.triggerStatus(status_types.status_web_mining_detected.create(nil, 3), 50)"
            )
        },
        "status_definitions/status_odd_port.lua",
        "user_scripts/flow/odd_ports.lua",
    )
    judged, ran = run(files, ping())
    assert (ran["web_mining"].last_error, ran["web_mining"].statuses) == ("", ())
    assert (judged.statuses, judged.alerts[0]["nedge"]["info"]) == (
        ["status_web_mining_detected"],
        {"times": 3},
    )


def test_one_plugin_cannot_define_a_status_twice(tmp_path: Path) -> None:
    wrong = problem(tmp_path, plugin("odd_ports", definition("59", "status_other")))
    assert "status 59 is defined twice" in wrong.message


def test_two_plugins_cannot_define_one_status(tmp_path: Path) -> None:
    second = {"user_scripts/flow/second.lua": hook("")}
    found, (wrong,) = load(tmp_path, plugin() | plugin("second", second, "user_scripts/flow/odd_ports.lua"))
    assert wrong.fatal
    assert "status 59 is defined by" in wrong.message
    assert len(found) == 2


def test_a_python_script_and_a_plugin_cannot_define_one_status(tmp_path: Path) -> None:
    source = "from nedge.scripts import define_status\nmine = define_status(59, 'status_x', 'X')\n"
    source += "def flowEnd(flow, now, conf): pass\n"
    _, (wrong,) = load(tmp_path, plugin() | {"a.py": source})
    assert "status 59 is defined by" in wrong.message


def test_scripts_of_one_plugin_share_its_statuses(tmp_path: Path) -> None:
    found, problems = load(tmp_path, plugin("odd_ports", {"user_scripts/flow/second.lua": hook("")}))
    assert (len(found), problems) == (2, [])
    assert found[0].statuses[0] is found[1].statuses[0]


def test_statuses_of_plugins_are_there_for_other_scripts_too() -> None:
    files = plugin() | {
        "other.lua": hook("flow.triggerStatus(status_types.status_odd_port.create({a = 1}), 5)")
    }
    judged, ran = run(files, ping())
    assert ran["other"].last_error == ""
    assert (judged.statuses, judged.alerts[0]["nedge"]["info"]) == (["status_odd_port"], {"a": 1})


@pytest.mark.parametrize(
    ("severity", "found"),
    [
        ("alert_consts.alert_severities.notice", "notice"),
        ("alert_consts.alert_severities.emergency", "error"),
        ("alert_consts.alert_severities.debug", "info"),
        ("nil", "info"),
        ("{key = 'odd'}", "info"),
    ],
)
def test_severities(tmp_path: Path, severity: str, found: str) -> None:
    changes = definition("59", more=f"alert_severity = {severity}")
    (script,), problems = load(tmp_path, plugin("odd_ports", changes))
    assert (problems, script.statuses[0].severity) == ([], found)


# What is wrong with a plugin is told with the file at fault


@pytest.mark.parametrize(
    ("path", "source", "line", "text"),
    [
        ("status_definitions/status_odd_port.lua", "\nlocal x = nil.y", 2, "syntax error"),
        ("status_definitions/status_odd_port.lua", "\n\nerror('bad')", 3, "bad"),
        ("status_definitions/status_odd_port.lua", "return nil", 0, "returns no table"),
        (
            "alert_definitions/alert_odd_port.lua",
            "\nlocal x = require 'nowhere'",
            2,
            "there is no module 'nowhere'",
        ),
        ("locales/en.lua", "return {a = b.c}", 1, "attempt to index"),
        ("locales/en.lua", "return 5", 0, "returns no table"),
        ("user_scripts/flow/odd_ports.lua", "local m = require 'ports'\nm.nothing()", 2, "attempt to call"),
        ("modules/ports.lua", "error('in the module')", 0, ""),
    ],
)
def test_problems(tmp_path: Path, path: str, source: str, line: int, text: str) -> None:
    files = plugin("odd_ports", {path: source})
    if path.startswith("modules"):
        _, problems = load(tmp_path, files)
        assert problems == []  # it is loaded when it is asked for
        judged, ran = run(files, tls().packets)
        assert "in the module" in ran["odd_ports"].last_error
        assert judged.statuses == []
        return
    wrong = problem(tmp_path, files)
    assert (wrong.path, wrong.line) == (tmp_path / "odd_ports" / path, line)
    assert text in wrong.message


@pytest.mark.parametrize("name", ["odd_ports.ports", "ports", "user_scripts", "flow_consts", "dkjson"])
def test_modules_by_their_names(name: str) -> None:
    changes: Files = {
        "user_scripts/flow/odd_ports.lua": hook(f'local m = require("{name}") assert(m == require("{name}"))')
    }
    _, ran = run(plugin("odd_ports", changes), ping())
    assert ran["odd_ports"].last_error == ""


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "odd_ports.manifest", "other.ports", "io", "debug"]
)
def test_modules_that_are_not_there(name: str) -> None:
    changes: Files = {"user_scripts/flow/odd_ports.lua": hook(f'require("{name}")')}
    _, ran = run(plugin("odd_ports", changes), ping())
    assert f"there is no module '{name}': there are " in ran["odd_ports"].last_error
    assert "odd_ports.ports" in ran["odd_ports"].last_error


def test_modules_beside_single_scripts() -> None:
    files: Files = {
        "a.lua": hook('assert(require("helper").works)'),
        "modules/helper.lua": "return {works = true}",
    }
    _, ran = run(files, ping(), QUIET)
    assert (list(ran), ran["a"].last_error) == (["a"], "")
