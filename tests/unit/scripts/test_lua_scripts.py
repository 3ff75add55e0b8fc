"""Lua scripts in ntopng's manner: what they declare, what they find, how they are told what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kit import CLIENT, T0, Packet, Tcp, dns, http_request, ping, tls
from lua_kit import HEAD_LINES, QUIET, hook, lua, run, said, scripts, write

from nedge.core.hooks import Hook
from nedge.scripts.loader import find_scripts, load_scripts, read_script
from nedge.scripts.lua.host import Host
from nedge.scripts.script import Problem, Script, ScriptErrors


def load(
    directory: Path, files: dict[str, str | bytes], **settings: Any
) -> tuple[list[Script], list[Problem]]:
    write(directory, files)
    return load_scripts([directory], settings, lambda name: {"tls": 91, "dns": 5}.get(name.lower()))


def one(directory: Path, source: str, **settings: Any) -> Script:
    (script,), problems = load(
        directory, {"script.lua": source}, **({"script": settings} if settings else {})
    )
    assert problems == []
    return script


def problem(directory: Path, source: str | bytes, **settings: Any) -> Problem:
    found, problems = load(directory, {"script.lua": source}, **({"script": settings} if settings else {}))
    assert found == []
    assert len(problems) == 1
    return problems[0]


EMPTY_HOOK = "function script.hooks.protocolDetected() end\n"

# Scripts in the manner of ntopng's, written for this test.

NEW_DOMAIN = """
--
-- Tells of names that were never asked for before.
--
local dirs = ntop.getDirs()
package.path = dirs.installdir .. "/scripts/lua/modules/?.lua;" .. package.path

local user_scripts = require("user_scripts")
local flow_consts = require("flow_consts")
local alert_consts = require "alert_consts"
local json = require("dkjson")

local known

local script = {
   category = user_scripts.script_categories.security,
   prio = 10,
   l7_proto = "dns",
   default_enabled = true,
   packet_interface_only = true,
   nedge_only = true,
   windows_exclude = false,
   is_alert = true,
   default_value = {
      items = {"example.org"},
      severity = alert_consts.alert_severities.warning,
      min_labels = 2,
   },
   hooks = {},
   gui = {
      i18n_title = "New domain",
      i18n_description = i18n(ternary(ntop.isnEdge(), "new_domain.inline", "new_domain.tap"), {url = "x"}),
      input_builder = "items_list",
      input_title = i18n("new_domain.title"),
      i18n_field_unit = user_scripts.field_units.seconds,
   },
}

function script.setup()
   known = {}
   return true
end

local function check(now, conf)
   for _, name in pairs(conf.items) do known[name] = true end
   local name = flow.getDnsQuery()
   local labels = name:split("%.") or {}
   if isEmptyString(name) or table.len(labels) < conf.min_labels or known[name] then
      goto done
   end
   known[name] = true
   if not flow.isStatusSet(flow_consts.status_types.status_dns_invalid_query.status_key) then
      flow.triggerStatus(flow_consts.status_types.status_dns_invalid_query,
                         {query = name, first = json.encode({at = now > 0, labels = #labels})}, 40, 30, 0)
   end
   ::done::
end

script.hooks.protocolDetected = check
script.hooks.flowEnd = check

return script
"""

LOGGER = """
local f = nil
local script = {
  category = user_scripts.script_categories.system,
  default_value = {log_mode = "console", log_file = "/tmp/no-such-log"},
  hooks = {},
}
function script.teardown()
  if f then f:close() end
  print("teardown")
end
function script.hooks.all(now, conf)
  local line = string.format("%s %s\\n", os.date("%d/%b/%Y", now), shortFlowLabel(flow.getInfo()))
  if conf.log_mode == "file" then
    local err
    f, err = io.open(conf.log_file, "a")
    if f == nil then traceError(TRACE_ERROR, TRACE_CONSOLE, err) end
  else
    io.write(line)
  end
end
return script
"""


def test_a_script_of_ntopngs_making() -> None:
    packets = dns("www.example.com", "example.org").packets[:2]
    judged, ran = run({"new_domain.lua": NEW_DOMAIN}, packets)
    script = ran["new_domain"]
    assert (script.last_error, script.title, script.category, script.prio) == (
        "",
        "New domain",
        "security",
        10,
    )
    assert script.calls == 2
    assert judged.scores == (40, 30, 0)
    info = judged.alerts[0]["nedge"]["info"]
    assert info["query"] == "www.example.com"
    assert json.loads(info["first"]) == {"at": True, "labels": 3}
    other, ran = run({"new_domain.lua": NEW_DOMAIN}, ping())
    assert (other.statuses, ran["new_domain"].calls) == ([], 0)  # the l7 filter


def test_its_settings_come_from_the_configuration() -> None:
    more = '[scripts.new_domain]\nitems = ["www.example.com"]\nmin_labels = 3'
    for name, found in (
        ("www.example.com", []),
        ("example.net", []),
        ("a.example.net", ["status_dns_invalid_query"]),
    ):
        judged, ran = run({"new_domain.lua": NEW_DOMAIN}, dns(name).packets, more=more)
        assert (ran["new_domain"].last_error, judged.statuses) == ("", found)
    _, ran = run({"new_domain.lua": NEW_DOMAIN}, [], more="[scripts.new_domain]\nenabled = false")
    assert ran == {}


def test_a_logger() -> None:
    line = "15/Jun/2025 [DNS] 192.168.1.10:40000 -> 203.0.113.5:53 [example.com]"
    assert said({"logger.lua": LOGGER}, dns("example.com").packets) == [line, line, "teardown"]


def test_files_are_not_there_unless_allowed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    more = f'[scripts.logger]\nlog_mode = "file"\nlog_file = "{log}"'
    (first, *_) = said({"logger.lua": LOGGER}, dns("example.com").packets, more=more)
    assert "files are not allowed to scripts unless scripts.lua_allow has" in first
    assert not log.exists()
    more = 'lua_allow = ["io"]\n' + more
    source = hook(f'local f = io.open("{log}", "a") f:write("written\\n") f:close()')
    _, ran = run({"a.lua": source}, ping(), more='lua_allow = ["io"]')
    assert (ran["a"].last_error, log.read_text()) == ("", "written\n")


@pytest.mark.parametrize(
    ("statement", "by_default", "allowed"),
    [
        ('os.getenv("PATH")', "nil", None),
        ('pcall(os.execute, "true")', "false", "true"),
        ('pcall(os.remove, "/no/such/file")', "false", "true"),
        ("pcall(os.tmpname)", "false", "true"),
        ("pcall(os.exit)", "false", "false"),
        ("type(os.time())", "number", "number"),
        ("type(os.clock())", "number", "number"),
        ("os.difftime(5, 3)", "2.0", "2.0"),
        ('os.date("!%Y", 0)', "1970", "1970"),
        ('io.popen == nil or pcall(io.popen, "true")', "false", "false"),
    ],
)
def test_os_gives_what_is_safe(statement: str, by_default: str, allowed: str | None) -> None:
    source = hook(f"print(({statement}))")
    assert said({"a.lua": source}, ping()) == [by_default]
    found = said({"a.lua": source}, ping(), more='lua_allow = ["os"]')
    assert found != ["nil"] if allowed is None else found == [allowed]


# What a script declares


def test_what_it_declares(tmp_path: Path) -> None:
    script = one(
        tmp_path,
        lua("""
        script.l4_proto, script.l7_proto, script.prio = "tcp", "TLS", -20
        script.three_way_handshake_ok, script.periodic_update_seconds = true, 60
        script.needs = "isTLS"
        script.default_value = {limit = 5, ratio = 0.5, on = true, text = "x", names = {"a"}, by = {k = 1}}
        script.default_value.none = {}
        script.gui = {i18n_title = "some.key", i18n_description = "Words that are no key."}
        function script.hooks.periodicUpdate() end
        function script.hooks.protocolUpdated() end
        """),
    )
    assert (script.key, script.title, script.description) == ("script", "script", "Words that are no key.")
    assert (script.l4, script.l7, script.prio, script.three_way_handshake_ok) == ((6,), 91, -20, True)
    assert (script.periodic_ticks, script.needs) == (2, "isTLS")
    assert list(script.hooks) == [Hook.PROTOCOL_UPDATED, Hook.PERIODIC_UPDATE]
    assert script.conf == {
        "limit": 5, "ratio": 0.5, "on": True, "text": "x", "names": ["a"], "by": {"k": 1}, "none": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("category", "name"),
    [
        *(
            (f"user_scripts.script_categories.{name}", name)
            for name in ("other", "security", "internals", "network", "system")
        ),
        ("user_scripts.script_categories.sports", "other"),
        ("'network'", "network"),
        ("nil", "other"),
        ("{}", "other"),
        ("{id = 77}", "other"),
    ],
)
def test_category(tmp_path: Path, category: str, name: str) -> None:
    assert one(tmp_path, lua(f"script.category = {category}\n{EMPTY_HOOK}")).category == name


def test_a_protocol_by_its_number(tmp_path: Path) -> None:
    assert one(tmp_path, lua(f"script.l7_proto_id = 18\n{EMPTY_HOOK}")).l7 == 18


@pytest.mark.parametrize(
    ("more", "runs"),
    [
        ("", True),
        ("function script.setup() return true end", True),
        ("function script.setup() return 0 end", True),
        ("function script.setup() return false end", False),
        ("function script.setup() end", False),
        ("script.default_enabled = false", False),
        ("script.nedge_exclude = true", False),
        ("script.nedge_only = true", True),
        ("script.packet_interface_only = true", True),
    ],
)
def test_which_scripts_run(more: str, runs: bool) -> None:
    _, ran = run({"script.lua": lua(f"{more}\n{EMPTY_HOOK}")}, ping())
    assert bool(ran) is runs
    if runs:
        assert ran["script"].calls == 1


def test_hooks_may_be_put_in_place_by_setup(tmp_path: Path) -> None:
    source = lua("function script.setup() script.hooks = {flowEnd = function() end} return true end")
    assert list(one(tmp_path, source).hooks) == [Hook.FLOW_END]


def test_all_stands_for_ntopngs_four_and_overrides_them() -> None:
    source = lua("""
        script.periodic_update_seconds = 30
        function script.hooks.all() print("all") flow.setStatus(status_types.status_user_01) end
        function script.hooks.flowEnd() print("overridden") end
        """)
    with scripts({"a.lua": source}, QUIET) as made:
        (script,) = made.assembly.runner.scripts
        made.feed(ping())
        made.engine.finish(T0 + 100)
    assert script.calls == 4  # detected, statusChanged, one tick, the end
    assert Hook.PROTOCOL_UPDATED not in script.hooks


@pytest.mark.parametrize(
    ("settings", "conf"),
    [
        ({}, "5\tfalse\ttext\t1\ttrue\tnil"),
        ({"limit": 7, "on": True, "text": "é", "items": ["a", "b"]}, "7\ttrue\té\t2\ttrue\tnil"),
        ({"limit": 7.5, "items": []}, "7.5\tfalse\ttext\t0\ttrue\tnil"),
        ({"ports": {"443": True}}, "5\tfalse\ttext\t1\tnil\ttrue"),
        ({"items": {"x": "y"}}, "5\tfalse\ttext\t1\ttrue\tnil"),
    ],
)
def test_settings_reach_the_hook(tmp_path: Path, settings: dict[str, Any], conf: str) -> None:
    source = lua("""
        script.default_value = {limit = 5, on = false, text = "text", items = {"one"}, ports = {[80] = true}}
        function script.hooks.protocolDetected(now, conf)
            print(conf.limit, conf.on, conf.text, table.len(conf.items), conf.ports[80], conf.ports[443])
        end
        """)
    lines = "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())
    assert said({"script.lua": source}, ping(), more=f"[scripts.script]\n{lines}") == [conf]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {_toml(item)}' for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize(
    ("settings", "found", "allowed"),
    [
        ({"limits": 9}, "limits", "enabled, items, limit"),
        ({"limit": "9"}, "'9'", "int"),
        ({"limit": True}, "True", "int"),
        ({"items": "x"}, "'x'", "list"),
        ({"enabled": 1}, "1", "true or false"),
    ],
)
def test_a_wrong_setting_is_an_error(
    tmp_path: Path, settings: dict[str, Any], found: str, allowed: str
) -> None:
    wrong = problem(
        tmp_path, lua(f"script.default_value = {{limit = 5, items = {{}}}}\n{EMPTY_HOOK}"), **settings
    )
    assert wrong.fatal
    for text in ("script.lua", "[scripts.script]", found, allowed):
        assert text in str(wrong)


def test_settings_are_a_table_also_without_a_default() -> None:
    source = hook("print(type(conf), next(conf), type(now), math.type(now))")
    assert said({"a.lua": source}, ping()) == ["table\tnil\tnumber\tinteger"]


def test_variables_live_on_between_calls_and_flows() -> None:
    source = lua("local n = 0 function script.hooks.protocolDetected() n = n + 1 print(n) end")
    packets = [*ping(), *ping(CLIENT, "203.0.113.9", T0 + 1)]
    assert said({"a.lua": source}, packets) == ["1", "2"]


# What is wrong is told with file and line


@pytest.mark.parametrize(
    ("source", "line", "text"),
    [
        ("local x = = 1", 1, "syntax error"),
        ("local x = 1\nlocal y = 'open", 2, "syntax error"),
        ("\n\nerror('broken')", 3, "broken"),
        ("local t = nil\nlocal x = t.field", 2, "attempt to index a nil value"),
        ("local function f()\n  error('inner')\nend\n\nf()", 2, "inner"),
        ("local x\nlocal m = require('no_such_module')", 2, "no_such_module"),
        ("local m = require\n'host_pools'", 1, "there is no module 'host_pools'"),
        ("error({})", 1, "the error is a table, not a message"),
        (
            "local s = {hooks = {all = print}}\nfunction s.setup()\n  return nothing.here\nend\nreturn s",
            3,
            "in setup()",
        ),
        ("return setmetatable({}, {__index = function()\n error('trap') end})", 2, "trap"),
        ("while true do pcall(error) end", 0, "longer than"),
    ],
)
def test_an_error_while_loading(
    tmp_path: Path, source: str, line: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nedge.scripts.lua.runtime.LOAD_SECONDS", 0.2)
    wrong = problem(tmp_path, source)
    assert wrong.fatal
    assert (wrong.path, wrong.line) == (tmp_path / "script.lua", line)
    assert text in wrong.message
    assert not wrong.message.startswith("script.lua")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (lua("script.l4_proto = 'sctp'\n" + EMPTY_HOOK), "l4_proto"),
        (lua("script.prio = 'high'\n" + EMPTY_HOOK), "prio"),
        (lua("script.three_way_handshake_ok = 1\n" + EMPTY_HOOK), "three_way_handshake_ok"),
        (lua("script.default_value = {1, 2}\n" + EMPTY_HOOK), "default_value"),
        (lua("script.default_value = 'x'\n" + EMPTY_HOOK), "default_value"),
        (lua("script.default_value = {f = print}\n" + EMPTY_HOOK), "default_value: a function"),
        (lua("local t = {} t.t = t script.default_value = t\n" + EMPTY_HOOK), "default_value: tables"),
        (lua("script.hooks = 5"), "hooks is not a table"),
        (lua("script.hooks.flowEnd = 5"), "hooks.flowEnd is not a function"),
    ],
)
def test_a_wrong_declaration(tmp_path: Path, source: str, text: str) -> None:
    wrong = problem(tmp_path, source)
    assert wrong.fatal
    assert text in wrong.message


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (lua(""), "has no hook"),
        (lua("script.hooks = nil"), "has no hook"),
        ("local x = 1", "returns no table"),
        ("return nil", "returns no table"),
        ("return 5", "returns no table"),
        ("", "returns no table"),
        (lua("script.l7_proto = 'NoSuch'\n" + EMPTY_HOOK), "NoSuch"),
    ],
)
def test_what_is_skipped_with_a_warning(tmp_path: Path, source: str, text: str) -> None:
    wrong = problem(tmp_path, source)
    assert not wrong.fatal
    assert text in wrong.message


@pytest.mark.parametrize("source", [b"\x1bLua", b"\x1bLuaS\0\x19\x93\r\n\x1a\n", b"\xff\xfe\0"])
def test_bytecode_and_other_bytes_are_refused(tmp_path: Path, source: bytes) -> None:
    assert "syntax error" in problem(tmp_path, source).message


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"#!/usr/bin/lua\n", b"\xef\xbb\xbf# comment\n"])
def test_marks_at_the_start_are_no_error(tmp_path: Path, before: bytes) -> None:
    (script,), problems = load(tmp_path, {"script.lua": before + lua(EMPTY_HOOK).encode()})
    assert (problems, script.key) == ([], "script")


def test_one_key_in_two_languages(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "script.py": "def flowEnd(flow, now, conf): pass\n",
        "script.lua": lua(EMPTY_HOOK),
    }
    (script,), (wrong,) = load(tmp_path, files)
    assert script.path.name == "script.lua"
    assert wrong.fatal
    assert "script.py" in str(wrong)


def test_files_that_are_no_scripts(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "_draft.lua": "error()",
        "test_x.lua": "error()",
        "good.lua": lua(EMPTY_HOOK),
        "x.lua.bak": "",
    }
    found, problems = load(tmp_path, files)
    assert ([script.key for script in found], problems) == (["good"], [])


@pytest.mark.parametrize(
    ("statements", "line", "text"),
    [
        ("\nerror('broken')", 2, "broken"),
        ("\n\nlocal x = nil + 1", 3, "attempt to perform arithmetic on a nil value"),
        ("flow.noSuchFunction()", 1, "noSuchFunction"),
        ("local host = ntop\nhost.getHostPools()", 2, "getHostPools"),
        ("error()", 1, "the error is a nil, not a message"),
        ("error(5)", 1, "5"),
    ],
)
def test_an_error_in_a_hook_is_told_with_its_line(
    statements: str, line: int, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    packets = [*ping(), *ping(CLIENT, "203.0.113.9", T0 + 100)]  # the second is logged again
    _, ran = run({"bad.lua": hook(statements)}, packets)
    assert ran["bad"].errors == 2
    assert text in ran["bad"].last_error
    lines = [line for line in "".join(capfd.readouterr()).splitlines() if "script_error" in line]
    assert len(lines) == 2
    assert f"bad.lua:{HEAD_LINES + 1 + line} " in lines[1]


def test_lines_of_helpers_are_told_from_the_outside_in(capfd: pytest.CaptureFixture[str]) -> None:
    files: dict[str, str | bytes] = {
        "mine/user_scripts/flow/a.lua": hook('local helper = require "helper"\nhelper.work()'),
        "mine/modules/helper.lua": "local h = {}\nfunction h.work()\n  error('deep')\nend\nreturn h",
    }
    run(files, [*ping(), *ping(CLIENT, "203.0.113.9", T0 + 100)])
    line = next(line for line in reversed("".join(capfd.readouterr()).splitlines()) if "script_error" in line)
    assert line.index("a.lua:") < line.index("helper.lua:3 error('deep')")


# What scripts find


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("table.len({a = 1, b = 2})", "2"),
        ("table.len({})", "0"),
        ("table.concat(('a,b,c'):split(','), '|')", "a|b|c"),
        ("('abc'):split(',')", "nil"),
        ("#('a,'):split(',')", "1"),
        ("#split('abc', ',')", "1"),
        ("#split('a.b.c', '%.')", "3"),
        ("isEmptyString(nil), isEmptyString(''), isEmptyString('x')", "true\ttrue\tfalse"),
        ("ternary(true, 1, 2), ternary(nil, 1, 2)", "1\t2"),
        ("ntop.isnEdge(), ntop.isPro(), ntop.isEnterpriseM()", "true\tfalse\tfalse"),
        ("ntop.bitmapIsSet(5, 0), ntop.bitmapIsSet(5, 1), ntop.bitmapIsSet(5, 2)", "true\tfalse\ttrue"),
        ("ntop.bitmapSet(1, 2), ntop.bitmapClear(5, 2)", "5\t1"),
        ("type(ntop.getDirs().installdir)", "string"),
        ("ntop.getCache('nothing') == ''", "true"),
        ("interface.getId()", "0"),
        ("interface.getnDPIProtoId('TLS') == interface.getnDPIProtoId('tls')", "true"),
        ("interface.getnDPIProtoName(interface.getnDPIProtoId('DNS'))", "DNS"),
        ("interface.getnDPIProtoId('NoSuch')", "nil"),
        ("i18n('no.such.key')", "no.such.key"),
        ("getDeviceProtocolPoliciesUrl()", ""),
        ("user_scripts == require('user_scripts')", "true"),
        ("user_scripts.script_categories.security.id", "1"),
        ("require('flow_consts').max_score", "1000"),
        ("require('alert_consts').alert_severities.error.severity_id", "5"),
        ("require('alert_consts').alertSeverityById(5) == require('alert_severities').error", "true"),
        ("require('alert_consts').alert_types.alert_anything.i18n_title", "alert_anything"),
        ("require('alert_keys').user.alert_user_01", "59"),
        (
            "type(require('lua_utils')), type(require('flow_utils')), type(require 'alert_utils')",
            "table\ttable\ttable",
        ),
        ("require('flow_risk_utils').risk_id_2_i18n(1) ~= ''", "true"),
        ("require('flow_risk_utils').risks.ndpi_binary_application_transfer", "4"),
        ("require('flow_risk_utils').risks.ndpi_tls_missing_sni", "24"),
        ("require('flow_risk_utils').risks_by_id[16]", "ndpi_suspicious_dga_domain"),
        (
            "require('mud_utils').isMUDRecordingEnabled(0), require('mud_utils').handleFlow(1, {}, 60)",
            "false",
        ),
        ("require('discover_utils').devtype2id('printer')", "0"),
        ("require('ids_utils').computeScore({severity = 1})", "100\t100\t100"),
        ("require('flow_keys').ntopng.status_unexpected_dns_server", "33"),
        ("require('alert_creators').createAnything(nil, {a = 5}).alert_type_params.a", "5"),
        (
            "require('format_utils').bytesToSize(2048), require('format_utils').round(2.345, 1)",
            "2.00 KB\t2.3",
        ),
        ("bytesToSize(5), bytesToSize(1536), secondsToTime(3661)", "5 Bytes\t1.50 KB\t1 h 1 min 1 s"),
        ("('abc'):starts('ab'), ends('abc', 'bc'), starts('abc', 'b')", "true\ttrue\tfalse"),
        ("hostinfo2hostkey({ip = '::1', vlan = 5}), hostinfo2hostkey({ip = '::1'})", "::1@5\t::1"),
        ("math.type(1), 7 // 2, 1 << 62, _VERSION", "integer\t3\t4611686018427387904\tLua 5.3"),
        ("load('return 1 + 1')()", "2"),
        ("load('return x')()", "nil"),
        ("(select(2, load('return +')))", "[string \"return +\"]:1: unexpected symbol near '+'"),
        ("coroutine.wrap(function(a) local b = coroutine.yield(a + 1) return b * 2 end)(1)", "2"),
        ("pcall(error, 'x', 0)", "false\tx"),
        ("xpcall(error, function(m) return m .. '!' end, 'x', 0)", "false\tx!"),
        ("select(2, pcall(error, {code = 5})).code", "5"),
        ("_G == _ENV, _G.flow == flow", "true\ttrue"),
    ],
)
def test_helpers(expression: str, value: str) -> None:
    source = hook(f"local function f() return {expression} end print(f())")
    assert said({"a.lua": source}, ping()) == [value]


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -5, 1.5, "", "text", "\"quoted\\ \n\t\x01é😀", [], {}, [1, [2, {"a": None}]],
     {"a": {"b": [True, False]}, "é": "x"}, {"long": "x" * 5000}, 2**62, [[[[]]]]],
)  # fmt: skip
def test_json_is_that_of_others(value: Any) -> None:
    text = json.dumps(value)
    long_string = f"[==[{text}]==]"
    source = hook(f"""
        local json = require "dkjson"
        local value, after, why = json.decode({long_string}, 1, json.null)
        assert(why == nil and after == {len(text.encode()) + 1}, why)
        local written = json.encode(value)
        local function hexadecimal(part)
            return (part:gsub(".", function(c) return ("%02x"):format(c:byte()) end))
        end
        for at = 1, #written, 4000 do print(hexadecimal(written:sub(at, at + 3999))) end
        """)
    assert json.loads(bytes.fromhex("".join(said({"a.lua": source}, ping())))) == value


@pytest.mark.parametrize(
    "text", ["", "{", "[1,", '{"a" 1}', "{a: 1}", '"open', "tru", "[1 2]", '"\\x"', "[" * 300]
)
def test_json_that_is_none(text: str) -> None:
    source = hook(f'local v, at, why = require("dkjson").decode({text!r}) print(v, type(at), type(why))')
    assert said({"a.lua": source}, ping()) == ["nil\tnumber\tstring"]


def test_json_of_what_has_none() -> None:
    source = hook("""
        local json = require "dkjson"
        print(pcall(json.encode, print))
        local endless = {}
        endless.itself = endless
        print(pcall(json.encode, endless))
        print(json.encode({1/0, 0/0, 2^53}), json.encode({[1] = "a", [2] = "b"}), json.encode({[5] = "x"}))
        """)
    assert said({"a.lua": source}, ping()) == [
        "false\ta function has no JSON",
        "false\ttoo deep, or a table within itself",
        '[null,null,9.007199254741e+15]\t["a","b"]\t{"5":"x"}',
    ]


def test_the_cache_is_shared_and_forgets_in_time() -> None:
    files: dict[str, str | bytes] = {
        "a.lua": hook(
            'ntop.setCache("key", "value\\0\\255") ntop.setCache("short", 5, 10) ntop.setPref("p", true)'
        ),
        "b.lua": lua("""
            script.periodic_update_seconds = 30
            function script.hooks.protocolDetected()
                print(ntop.getCache("key") == "value\\0\\255", ntop.getCache("short"), ntop.getPref("p"))
            end
            function script.hooks.periodicUpdate()
                print(ntop.getCache("key") == "value\\0\\255", ntop.getCache("short"))
                ntop.delCache("key")
                print(ntop.getCache("key"))
            end
            """),
    }
    with scripts(files, QUIET) as made:
        from structlog.testing import capture_logs

        with capture_logs() as logs:
            made.feed(ping())
            made.engine.advance(T0 + 50)
    assert [entry["text"] for entry in logs] == ["true\t5\ttrue", "true\t", ""]


def test_printing_too_much_is_cut(capfd: pytest.CaptureFixture[str]) -> None:
    source = hook('for n = 1, 500 do print("line", n) end io.stderr:write("last\\n")')
    lines = said({"a.lua": source}, ping())
    assert 10 <= len(lines) <= 50
    run({"a.lua": source}, ping())
    assert "script_says_too_much" in "".join(capfd.readouterr())


# Isolation of globals


def test_scripts_do_not_see_each_other() -> None:
    files: dict[str, str | bytes] = {
        "a.lua": lua("""
            shared, string.format, table.insert, flow.getScore = 1, nil, nil, nil
            flow_consts.max_score, user_scripts.script_categories.other = 5, nil
            print = nil
            getmetatable("x")
            function script.hooks.protocolDetected() shared = shared + 1 end
            """),
        "b.lua": hook("""
            print(shared, type(string.format), type(table.insert), flow.getScore(), flow_consts.max_score)
            assert(user_scripts.script_categories.other)
            """),
    }
    judged, ran = run(files, ping())
    assert {key: script.errors for key, script in ran.items()} == {"a": 0, "b": 0}
    assert said(files, ping()) == ["nil\tfunction\tfunction\t0\t1000"]
    assert judged.statuses == []


def test_one_key_of_the_configuration_for_all(tmp_path: Path) -> None:
    write(tmp_path, {"a.lua": lua(EMPTY_HOOK)})
    (script,), _ = load_scripts([tmp_path], {}, lambda name: 1, Host(memory_mb=8))
    assert script.release is not None
    script.release()


TRAFFIC: list[list[Packet]] = [ping(), dns("example.com").packets, tls().packets]


@pytest.mark.parametrize("packets", TRAFFIC)
def test_a_script_that_names_more_reads_than_are_sent_along(packets: list[Packet]) -> None:
    names = [
        "getPackets",
        "getBytes",
        "getKey",
        "isLocal",
        "isUnicast",
        "getPacketsSent",
        "getPacketsRcvd",
        "getBytesSent",
        "getBytesRcvd",
        "getnDPIAppProtoId",
        "getnDPIMasterProtoId",
        "isBidirectional",
    ]
    calls = ", ".join(f"tostring(flow.{name}())" for name in names)
    others = ", ".join(f'tostring(flow["{name}"]())' for name in names)
    source = hook(f"assert(table.concat({{{calls}}}, ' ') == table.concat({{{others}}}, ' '))")
    _, ran = run({"a.lua": source}, packets)
    assert ran["a"].last_error == ""
    assert ran["a"].calls > 0


def test_http_requests_one_by_one() -> None:
    source = lua("""
        local function check()
            print(flow.getHTTPInfo()["protos.http.last_url"], flow.getnDPIProtocolName())
        end
        script.hooks.protocolDetected, script.hooks.protocolUpdated = check, check
        """)
    packets = (
        Tcp(dport=80).handshake().client(http_request("a.example")).client(http_request("b.example")).packets
    )
    assert list(dict.fromkeys(said({"a.lua": source}, packets))) == ["a.example/\tHTTP", "b.example/\tHTTP"]


# What holds for scripts in Python, too


def test_all_problems_of_a_script_are_told_at_once(tmp_path: Path) -> None:
    source = lua("""
        script.l4_proto, script.l7_proto, script.prio = "sctp", "NoSuch", "high"
        script.default_value = {limit = 5}
        script.periodic_update_seconds = function() end
        """)
    write(tmp_path, {"script.lua": source})
    scripts, problems = load_scripts([tmp_path], {"script": {"limits": 1}}, lambda name: None)
    assert scripts == []
    found = {(wrong.message.partition(":")[0], wrong.fatal) for wrong in problems}
    assert found == {
        ("[scripts.script] limits", True),
        ("l4_proto", True),
        ("l7_proto", False),
        ("periodic_update_seconds", True),
        ("prio", True),
    }
    assert any(wrong.message.endswith("did you mean 'limit'?") for wrong in problems)


def test_all_wrong_hooks_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"script.lua": lua("script.hooks = {flowEnd = 5, periodicUpdate = 'x'}")})
    _, problems = load_scripts([tmp_path], {}, lambda name: None)
    assert [wrong.message for wrong in problems] == [
        "hooks.flowEnd is not a function",
        "hooks.periodicUpdate is not a function",
    ]


@pytest.mark.parametrize(
    ("source", "settings", "why"),
    [
        (EMPTY_HOOK, {"enabled": False}, "enabled = false in the configuration"),
        ("error('broken')", {"enabled": False}, "enabled = false in the configuration"),
        ("script.default_enabled = false\n" + EMPTY_HOOK, {}, "by default"),
        ("function script.setup() return false end\n" + EMPTY_HOOK, {}, "its setup() found nothing to do"),
        ("script.nedge_exclude = true\n" + EMPTY_HOOK, {}, "it excludes nedge"),
    ],
)
def test_scripts_that_are_off(tmp_path: Path, source: str, settings: dict[str, Any], why: str) -> None:
    write(tmp_path, {"script.lua": lua(source)})
    off: dict[str, str] = {}
    found, problems = load_scripts([tmp_path], {"script": settings}, lambda name: None, off)
    assert (found, problems) == ([], [])
    assert off["script"].startswith(why)


def test_a_single_script(tmp_path: Path) -> None:
    module = "return {word = 'found'}"
    files: dict[str, str | bytes] = {
        "broken.lua": "x = = 1",
        "test_mine.lua": lua("script.gui.i18n_title = require('words').word\n" + EMPTY_HOOK),
        "modules/words.lua": module,
        "plugin/manifest.lua": "return {}",
        "plugin/user_scripts/flow/other.lua": lua(
            "script.gui.i18n_title = require('words').word\n" + EMPTY_HOOK
        ),
        "plugin/user_scripts/flow/broken.lua": "x = = 1",
        "plugin/modules/words.lua": module,
    }
    write(tmp_path, files)
    paths = [tmp_path / "test_mine.lua", tmp_path / "plugin" / "user_scripts" / "flow" / "other.lua"]
    found, problems = load_scripts(paths, {}, lambda name: None)
    assert problems == []
    assert [(script.key, script.title) for script in found] == [("other", "found"), ("test_mine", "found")]


def test_scripts_are_found_in_both_languages(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "a.lua": "", "b.py": "", "_c.lua": "", "test_d.py": "", "p/plugin.lua": "",
        "p/user_scripts/flow/e.lua": "", "p/user_scripts/host/f.lua": "", "q/g.lua": "", "alone/h.lua": "",
    }  # fmt: skip
    write(tmp_path, files)
    found = find_scripts([tmp_path, tmp_path / "alone" / "h.lua", tmp_path / "none"])
    assert [path.name for path in found] == ["a.lua", "b.py", "e.lua", "h.lua"]


def test_a_script_that_is_read_only(tmp_path: Path) -> None:
    source = lua("""
        script.default_value = {limit = 5}
        function script.setup() error("not called") end
        function script.hooks.flowEnd() end
        """)
    write(tmp_path, {"script.lua": source, "bad.lua": "x = = 1"})
    script = read_script(tmp_path / "script.lua", {"limit": 6}, lambda name: None)
    assert (script.conf, list(script.hooks)) == ({"limit": 6}, [Hook.FLOW_END])
    assert script.release is not None
    script.release()
    with pytest.raises(ScriptErrors, match="syntax error") as raised:
        read_script(tmp_path / "bad.lua", {}, lambda name: None)
    assert [error.line for error in raised.value.found] == [1]


def test_an_error_says_where_it_was() -> None:
    files: dict[str, str | bytes] = {"a.lua": hook("\nerror('broken')")}
    _judged, ran = run(files, ping())
    assert ran["a"].last_error_at.endswith(f"/a.lua:{HEAD_LINES + 3}")
