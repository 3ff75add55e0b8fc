"""Scripts that do harm, in both languages: the engine goes on, the others run, and the fault is named."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from kit import CLIENT, T0, Judged, Packet, merge, ping
from lua_kit import QUIET, hook, lua, run, scripts
from structlog.testing import capture_logs

from nedge.core.verdict import Failure
from nedge.scripts.lua.bindings import Bindings
from nedge.scripts.runner import TIMEOUT_WEIGHT
from nedge.scripts.script import Script

GOOD: dict[str, str | bytes] = {
    "good_python.py": "from nedge.scripts import status_types\n"
    "def protocolDetected(flow, now, conf): flow.setStatus(status_types.status_user_01, 1)\n",
    "good_lua.lua": hook("flow.setStatus(status_types.status_user_02, 2)"),
}
BUDGET = "budget_ms = 20\n"


def pings(count: int) -> list[Packet]:
    return merge(*(ping(CLIENT, f"203.0.113.{n}", T0 + n / 100, reply=False) for n in range(1, count + 1)))


def python(body: str) -> dict[str, str | bytes]:
    head = "import contextlib, os, sys, time\nfrom nedge.scripts import status_types\n"
    return {
        "bad.py": head
        + "def protocolDetected(flow, now, conf):\n"
        + textwrap.indent(textwrap.dedent(body), "    ")
    }


def in_lua(body: str) -> dict[str, str | bytes]:
    return {"bad.lua": hook(body)}


def harm(
    bad: dict[str, str | bytes], more: str = BUDGET, flows: int = 3, toml: str = QUIET
) -> tuple[Judged, Script]:
    """Run a bad script among good ones on some flows; the good ones have all done their work."""
    judged, ran = run(bad | GOOD, pings(flows), toml, more)
    assert len(judged.flows) == flows
    for record in judged.flows:
        assert record["nedge"]["statuses"]["59"]["script"] == "good_python"
        assert record["nedge"]["statuses"]["60"]["script"] == "good_lua"
    assert [ran[key].calls for key in ("good_python", "good_lua")] == [flows, flows]
    assert [ran[key].errors + ran[key].timeouts for key in ("good_python", "good_lua")] == [0, 0]
    return judged, ran["bad"]


# Those that do not end

ENDLESS_PYTHON = {
    "loop": "while True: pass",
    "sleep": "time.sleep(60)",
    "catches all": """
        while True:
            try:
                while True: pass
            except BaseException: pass
        """,
    "catches all, and sleeps": """
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(60)
        """,
    "catches and returns": """
        try:
            while True: pass
        except BaseException:
            return
        """,
    "goes on when it is caught": """
        def again():
            try:
                while True: pass
            except BaseException:
                again()
        again()
        """,
    "finally": """
        while True:
            try:
                while True: pass
            finally:
                continue
        """,
    "nested": """
        try:
            try:
                while True: pass
            except BaseException:
                while True: pass
        except BaseException:
            time.sleep(60)
        """,
    "asks the engine": """
        while True:
            try:
                while True: flow.getFullInfo()
            except BaseException: pass
        """,
    "changes the flow": """
        while True:
            flow.setStatus(status_types.status_user_03, 1)
            flow.clearStatus(status_types.status_user_03)
        """,
    "grows": "\nn = 1\nwhile True: n *= 3",
    "pattern": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    "finalizer": """
        class Hold:
            def __del__(self):
                while True: pass
        while True: Hold()
        """,
    "generator": """
        def forever():
            while True:
                try: yield
                except BaseException: pass
        for _ in forever(): pass
        """,
}
ENDLESS_LUA = {
    "loop": "while true do end",
    "goto": "::again:: goto again",
    "catches all": "while true do pcall(function() while true do end end) end",
    "catches with a handler": "local function f() while true do end end while true do xpcall(f, f) end",
    "catches in coroutines": """
        local function body() while true do pcall(coroutine.yield) end end
        while true do coroutine.resume(coroutine.create(body)) end
        """,
    "in a coroutine": "coroutine.wrap(function() while true do end end)()",
    "in coroutines in coroutines": """
        local function deep(n)
            coroutine.wrap(function() if n > 0 then deep(n - 1) else while true do end end end)()
        end
        while true do pcall(deep, 20) end
        """,
    "recursion without end": "local function f(n) if n > 0 then f(n - 1) f(n - 1) end end f(100)",
    "tail calls": "local function f() return f() end f()",
    "metamethod": """
        local t = setmetatable({}, {__index = function(t, k) return t[k + 1] end})
        while true do pcall(function() return t[1] end) end
        """,
    "loads code": "load(function() while true do end end)",
    "loaded code": "load('while true do end')()",
    "iterates": "for _ in function() return 1 end do end",
    "sorts": """
        local t = {}
        for n = 1, 500 do t[n] = n end
        while true do table.sort(t, function(a, b) return a < b end) end
        """,
    "replaces": "while true do ('x'):rep(5000):gsub('.', function() end) end",
    "asks the engine": "while true do pcall(function() while true do flow.getFullInfo() end end) end",
    "changes the flow": """
        local status = status_types.status_user_03
        while true do flow.setStatus(status, 1) flow.clearStatus(status) end
        """,
    "copies": "local big = ('x'):rep(5e6) while true do local copy = big .. 'y' end",
    "prints": "while true do print('x') end",
    "waits": "local t = os.time() while os.time() < t + 60 do end",
}
ENDLESS = [pytest.param(python(body), id=f"python: {name}") for name, body in ENDLESS_PYTHON.items()]
ENDLESS += [pytest.param(in_lua(body), id=f"lua: {name}") for name, body in ENDLESS_LUA.items()]


@pytest.mark.parametrize("body", ENDLESS)
def test_what_does_not_end_is_ended(body: dict[str, str | bytes]) -> None:
    with capture_logs() as logs:
        judged, script = harm(body)
    assert (script.calls, script.timeouts, script.errors) == (3, 3, 0)
    assert "took longer than 20 ms in protocolDetected" in script.last_error
    assert script.failures_in_a_row == 3 * TIMEOUT_WEIGHT
    told = [entry for entry in logs if entry["event"] == "script_timeout"]
    assert [(entry["script"], entry["hook"]) for entry in told] == [("bad", "protocolDetected")]
    assert all(record["nedge"]["score"] >= 3 for record in judged.flows)


@pytest.fixture(autouse=True)
def _quiet_finalizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a script's finalizer is interrupted with is told by Python itself."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)


def test_where_it_was_is_told() -> None:
    for files, name, line in (
        (python("\n\nwhile True: pass"), "bad.py", 6),
        (
            {"bad.lua": lua("function script.hooks.protocolDetected()\n  while true do\n  end\nend")},
            "bad.lua",
            6,
        ),
    ):
        packets = [*pings(1), *ping(CLIENT, "203.0.113.99", T0 + 100)]  # told again after a minute
        with capture_logs() as logs:
            run(files, packets, QUIET, BUDGET)
        last = [entry for entry in logs if entry["event"] == "script_timeout"][-1]
        assert any(f"{name}:{line}" in where or f"{name}:{line + 1}" in where for where in last["where"]), (
            last
        )


def test_calls_within_the_budget_are_none_of_its_business() -> None:
    files = {
        "a.py": "import time\ndef protocolDetected(flow, now, conf): time.sleep(0.05)\n",
        "b.lua": hook("local t = os.clock() while os.clock() < t + 0.05 do end"),
    }
    _, ran = run(files, pings(3), QUIET, "budget_ms = 900\n")
    assert [(script.calls, script.timeouts, script.errors) for script in ran.values()] == [(3, 0, 0)] * 2
    assert all(script.time_ns > 3 * 40_000_000 for script in ran.values())
    assert all(script.time_quantile(0.5) >= 2**25 for script in ran.values())


@pytest.mark.parametrize(
    "bad", [python("while True: pass"), in_lua("while true do end")], ids=["python", "lua"]
)
@pytest.mark.parametrize(("policy", "verdict"), [("pass", "pass"), ("drop", "drop")])
def test_the_failure_policy_of_timeouts(bad: dict[str, str | bytes], policy: str, verdict: str) -> None:
    with scripts(bad, f"[failures]\nscript_timeout = '{policy}'\nscript_error = 'pass'", BUDGET) as made:
        made.feed(pings(2))
        made.engine.finish(T0 + 5)
    records = made.judged.flows
    assert [record["nedge"]["verdict"] for record in records] == [verdict] * 2
    if policy == "drop":
        assert records[0]["nedge"]["reason"] == f"failure: {Failure.SCRIPT_TIMEOUT}"
    figures = made.engine.figures()
    assert (figures["script_timeouts"], figures["script_errors"], figures["scripts_aside"]) == (2, 0, 0)


def test_a_timeout_is_no_script_error() -> None:
    judged, _ = run(in_lua("while true do end"), pings(1), "[failures]\nscript_error = 'drop'", BUDGET)
    assert judged.verdict == "pass"


# Those that keep failing are put aside


@pytest.mark.parametrize(
    "bad", [python("raise ValueError('no')"), in_lua("error('no')")], ids=["python", "lua"]
)
@pytest.mark.parametrize(
    ("more", "flows", "calls"),
    [("max_errors = 5\n", 12, 5), ("max_errors = 1\n", 3, 1), ("max_errors = 0\n", 150, 150), ("", 150, 100)],
)
def test_errors_in_a_row(bad: dict[str, str | bytes], more: str, flows: int, calls: int) -> None:
    with capture_logs() as logs:
        _, script = harm(bad, more, flows)
    assert (script.calls, script.errors) == (calls, calls)
    assert bool(script.aside) is (calls < flows)
    told = [entry for entry in logs if entry["event"] == "script_aside"]
    if calls < flows:
        assert "no" in script.aside
        assert [(entry["script"], entry["reason"]) for entry in told] == [("bad", script.aside)]
    else:
        assert told == []
    assert len([entry for entry in logs if entry["event"] == "script_error"]) == 1  # told once a minute


@pytest.mark.parametrize(
    "bad",
    [
        python("global n\nn = globals().get('n', 0) + 1\nif n % 4: raise ValueError"),
        {
            "bad.lua": lua(
                "local n = 0\n"
                "function script.hooks.protocolDetected() n = n + 1 if n % 4 > 0 then error('x') end end"
            )
        },
    ],
    ids=["python", "lua"],
)
def test_a_success_ends_the_row(bad: dict[str, str | bytes]) -> None:
    _, script = harm(bad, "max_errors = 4\n", 40)
    assert (script.calls, script.errors, script.aside) == (40, 30, "")


@pytest.mark.parametrize(
    "bad", [python("while True: pass"), in_lua("while true do end")], ids=["python", "lua"]
)
def test_timeouts_weigh_more(bad: dict[str, str | bytes]) -> None:
    with scripts(bad | GOOD, QUIET, BUDGET) as made:
        made.feed(pings(8))
        made.engine.finish(T0 + 5)
    script = next(script for script in made.assembly.runner.scripts if script.key == "bad")
    assert (script.calls, script.timeouts) == (5, 5)  # 5 * 20 = 100
    assert "took longer" in script.aside
    assert made.engine.figures()["scripts_aside"] == 1


def test_what_only_an_aside_script_wanted_is_not_wanted_any_more() -> None:
    source = "def protocolDetected(flow, now, conf): 1 / 0\nprotocolUpdated = protocolDetected\n"
    with scripts({"a.py": source}, QUIET, "max_errors = 2\n") as made:
        runner = made.assembly.runner
        assert runner.wants("protocolUpdated", 6)  # type: ignore[arg-type]
        made.feed(pings(3))
        assert not runner.wants("protocolUpdated", 6)  # type: ignore[arg-type]
        assert not runner.wants("protocolDetected", 1)  # type: ignore[arg-type]


def test_loading_anew_gives_another_chance(tmp_path: Path) -> None:
    from nedge.config_file import load as load_config

    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "bad.lua").write_text(hook("error('x')"))
    config = tmp_path / "nedge.toml"
    config.write_text(f'[scripts]\ndirectories = ["{tmp_path}/scripts"]\nmax_errors = 2\n')
    with scripts({}, QUIET) as made:
        for _ in range(2):
            made.assembly.renew(load_config(config))
            made.feed(pings(4))
            (script,) = made.assembly.runner.scripts
            assert script.aside
            made.engine.finish(made.engine.now)


def test_teardown_of_an_aside_script_is_left_out() -> None:
    source = "def protocolDetected(flow, now, conf): 1 / 0\ndef teardown():\n    open('/dev/null/x')\n"
    with capture_logs() as logs:
        run({"a.py": source}, pings(3), QUIET, "max_errors = 2\n")
    assert "teardown" not in [entry.get("hook") for entry in logs]
    with capture_logs() as logs:
        run({"a.py": source}, pings(1), QUIET, "max_errors = 2\n")
    assert "teardown" in [entry.get("hook") for entry in logs]


# Those that want too much

BOMBS = {
    "python: one string": python("'x' * 10**14"),
    "python: recursion": python("def f(): return f()\nf()"),
    "python: recursion in the engine": python("def f():\n    flow.getFullInfo()\n    return f()\nf()"),
    "python: exit": python("sys.exit(3)"),
    "python: generator exit": python("raise GeneratorExit"),
    "python: its own": python("class Odd(BaseException): pass\nraise Odd"),
    "lua: doubling": in_lua("local s = 'x' while true do s = s .. s end"),
    "lua: many strings": in_lua("local t = {} for n = 1, 1e9 do t[n] = ('x'):rep(1e5) .. n end"),
    "lua: one string": in_lua("local s = ('x'):rep(1e12)"),
    "lua: separators": in_lua("local s = ('x'):rep(1e9, ('y'):rep(1000))"),
    "lua: recursion": in_lua("local function f() return 1 + f() end f()"),
    "lua: recursion through C": in_lua("local function f() return ('x'):gsub('.', f) end f()"),
    "lua: coroutines": in_lua("local function f() coroutine.wrap(f)() end f()"),
    "lua: unpack": in_lua("local t = {table.unpack({}, 1, 1e8)}"),
    "lua: concat": in_lua("local t = {} for n = 1, 1000 do t[n] = ('x'):rep(1e6) end"),
}


@pytest.mark.parametrize("bad", [pytest.param(body, id=name) for name, body in BOMBS.items()])
def test_what_wants_too_much_gets_an_error(bad: dict[str, str | bytes]) -> None:
    _, script = harm(bad, "budget_ms = 900\nlua_memory_mb = 16\n")
    assert script.calls == 3
    assert script.errors + script.timeouts == 3
    assert script.last_error


def test_memory_that_is_kept_is_free_when_the_script_is_put_aside() -> None:
    source = lua("""
        local kept = {}
        function script.hooks.protocolDetected()
            for n = 1, 1e9 do kept[#kept + 1] = ("x"):rep(1000) .. n end
        end
        """)
    _, script = harm({"bad.lua": source}, "budget_ms = 900\nlua_memory_mb = 8\nmax_errors = 4\n", 8)
    assert (script.calls, script.errors) == (4, 4)
    assert script.last_error == "not enough memory (scripts.lua_memory_mb = 8)"
    assert script.aside


MEMORY_FUZZ = """
local kept, n = {}, 0
math.randomseed({seed})
local calls = {
  function() flow.getFullInfo() end, function() flow.getInfo() end, function() flow.getClientKey() end,
  function() flow.getFacts() end, function() flow.getnDPIProtocolName() end,
  function() flow.getnDPIMatchPacket() end,
  function() flow.triggerStatus(status_types.status_user_03, {a = {b = {c = 1}}, 1, 2}, 1, 2, 3) end,
  function() flow.setStatus(status_types.status_user_04, {}, {}, {}) end,
  function() flow.getScore({}, {}) end, function() flow.isStatusSet("x") end, function() error({}) end,
  function() error(5) end, function() ntop.setCache("a" .. n, "b") end,
  function() ntop.getCache("a" .. n) end,
  function() print("x", n) end, function() require("nothing" .. n) end, function() i18n("x", {}) end,
  function() interface.getnDPIProtoName(5) end,
  function() coroutine.wrap(function() flow.getFacts() end)() end,
}
function script.hooks.protocolDetected()
  n = n + 1
  kept = {}
  local size = n % 2 == 0 and 1000000 or 100000
  while size >= 1000 do
    while pcall(function() kept[#kept + 1] = string.char(n % 256):rep(math.random(size)) .. #kept end) do end
    size = size // 4
  end
  for _ = 1, math.random(0, #kept) do kept[math.random(#kept + 1)] = nil end
  for _ = 1, 5 do pcall(calls[math.random(#calls)]) end
  calls[math.random(#calls)]()
end
"""


def test_room_for_values_of_python_counts_the_buffers_of_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lua does not: what a string function that failed has left is there until it is collected."""
    used: list[int] = []
    to_lua = Bindings._to_lua
    monkeypatch.setattr(
        Bindings, "_to_lua", lambda self, value: used.append(self.memory_used()) or to_lua(self, value)
    )
    source = lua("""
        local kept = {}
        for n = 1, 2300 do kept[n] = ("x"):rep(1000) .. n end
        function script.hooks.protocolDetected()
            assert(#kept == 2300 and not pcall(string.rep, "y", 1000000))
            flow.getFullInfo()
        end
        """)
    _, ran = run({"a.lua": source}, pings(3), QUIET, "lua_memory_mb = 4\n")
    assert (ran["a"].calls, ran["a"].last_error) == (3, "")
    assert 2 << 20 < max(used) < 3.1 * 2**20


@pytest.mark.parametrize("seed", range(4))
def test_with_no_memory_left_everything_still_fails_in_order(seed: int) -> None:
    """An allocation that fails where Python makes values for Lua would end the process."""
    script = lua(MEMORY_FUZZ.replace("{seed}", str(seed)))
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from lua_kit import run, QUIET
from test_script_isolation import GOOD, pings
from nedge.scripts.lua.bindings import Bindings

used = []
to_lua = Bindings._to_lua
Bindings._to_lua = lambda self, value: used.append(self.memory_used()) or to_lua(self, value)
judged, ran = run({{"bad.lua": {script!r}}} | GOOD, pings(60), QUIET,
                  "budget_ms = 900\\nlua_memory_mb = 4\\nmax_errors = 0\\n")
assert ran["bad"].calls == 60 and ran["bad"].errors > 5, (ran["bad"].calls, ran["bad"].errors)
assert ran["good_lua"].calls == 60 and not ran["good_lua"].errors
assert max(used) < 3.1 * 2**20, max(used)
print("done", len(used))
"""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert (done.returncode, done.stdout.split()[-2:-1]) == (0, ["done"]), done.stderr[-2000:]


# Those that reach for what is not theirs

REACH = {
    "os.execute": "os.execute('touch {mark}')",
    "io.popen": "io.popen('touch {mark}'):close()",
    "io.open": "io.open('{mark}', 'w'):write('x'):close()",
    "io.output": "io.output('{mark}')",
    "os.remove": "os.remove('{there}')",
    "os.rename": "os.rename('{there}', '{mark}')",
    "os.exit": "os.exit(3)",
    "debug": "debug.sethook()",
    "debug.getregistry": "debug.getregistry()",
    "required debug": "require('debug').sethook()",
    "required io": "require('io').open('{mark}', 'w')",
    "package.loadlib": "package.loadlib('/lib/x86_64-linux-gnu/libc.so.6', 'system')",
    "package.searchers": "package.searchers[1]('x')",
    "python": "python.eval('1')",
    "python.builtins": "python.builtins.open('{mark}', 'w')",
    "loadfile": "loadfile('{there}')()",
    "dofile": "dofile('{there}')",
    "bytecode": "assert(load('\\27LuaS'))()",
    "string.dump": "string.dump(print)",
    "string metatable": "getmetatable('').__index.format = nil",
    "string metatable, set": "setmetatable('', {{}})",
    "finalizer": "setmetatable({{}}, {{__gc = print}})",
    "globals of the host": "load('return _G')().debug.sethook()",
    "environment of the host": "local f = load('return python', 'x', 't', nil) f()",
    "metatable of a function": "getmetatable(flow.getScore).__index(flow.getScore, '__globals__')",
    "attribute of a function": "local x = flow.getScore.__globals__",
    "attribute of a method": "local x = flow.getFullInfo().__class__.__mro__",
    "error that is an object": "local ok, e = pcall(flow.getScore, 1) local x = e.__class__",
    "coroutine of the host": "coroutine.running().x = 1",
    "module by path": "require('../../../../../../../../etc/passwd')",
}


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in REACH.items()])
def test_lua_does_not_reach_out(body: str, tmp_path: Path) -> None:
    mark, there = tmp_path / "mark", tmp_path / "there"
    there.write_text("here")
    _, script = harm(in_lua(body.format(mark=mark, there=there)))
    assert (script.calls, script.errors) == (3, 3)
    assert not mark.exists()
    assert there.read_text() == "here"


def test_nothing_that_a_script_can_get_at_is_of_python() -> None:
    source = hook("""
        local seen, queue, found = {}, {_G}, 0
        local samples = {flow.getFullInfo(), flow.getFacts(), flow.getInfo(), flow.getnDPIMatchPacket(), conf,
                         select(2, pcall(flow.setStatus)), select(2, pcall(flow.getFullInfo, {})), package,
                         require("dkjson"), require("flow_consts"), require("alerts_api")}
        for _, sample in pairs(samples) do queue[#queue + 1] = sample end
        while #queue > 0 do
            local value = table.remove(queue)
            if type(value) == "userdata" then error("userdata: " .. tostring(value)) end
            if type(value) == "table" and not seen[value] then
                seen[value] = true
                found = found + 1
                queue[#queue + 1] = getmetatable(value)
                for key, item in next, value do queue[#queue + 1] = key queue[#queue + 1] = item end
            elseif value ~= nil and type(value) ~= "table" then
                assert(not getmetatable(value), type(value))
            end
        end
        assert(found > 50)
        """)
    _, ran = run({"a.lua": source}, ping())
    assert ran["a"].last_error == ""


# The walls hold for loading, too


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("bad.py", "while True: pass\n"),
        ("bad.py", "import time\ntime.sleep(60)\n"),
        ("bad.py", "def setup():\n    while True: pass\ndef flowEnd(flow, now, conf): pass\n"),
        (
            "bad.py",
            "try:\n    while True: pass\nexcept BaseException: pass\ndef flowEnd(flow, now, conf): pass\n",
        ),
        ("bad.lua", "while true do end"),
        ("bad.lua", lua("function script.setup() while true do end end")),
        ("bad.lua", "return setmetatable({}, {__index = function() while true do end end})"),
    ],
)
def test_a_script_that_never_ends_loading(name: str, source: str, tmp_path: Path, monkeypatch: Any) -> None:
    from nedge.scripts.budget import enforced
    from nedge.scripts.loader import load_scripts

    monkeypatch.setattr("nedge.scripts.python.LOAD_SECONDS", 0.2)
    monkeypatch.setattr("nedge.scripts.lua.runtime.LOAD_SECONDS", 0.2)
    (tmp_path / name).write_text(source)
    (tmp_path / "good.lua").write_text(hook(""))
    with enforced():
        found, (problem,) = load_scripts([tmp_path], {}, lambda name: 1)
    assert [script.key for script in found] == ["good"]
    assert (problem.path, problem.fatal) == (tmp_path / name, True)
    assert "takes longer than" in problem.message


def test_a_module_that_never_ends_loading(monkeypatch: Any) -> None:
    files: dict[str, str | bytes] = {
        "bad.lua": hook('require("endless")'),
        "modules/endless.lua": "while true do end",
    }
    _, script = harm(files)
    assert (script.calls, script.timeouts) == (3, 3)
