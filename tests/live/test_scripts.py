"""`nedge run` with scripts that never come back: the traffic goes on, and so do the workers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import traffic

from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

ALLOWED, BLOCKED = "www.example", "blocked.example"
CURL_TIMEOUT = 28
CONNECTIONS = 12

ENDLESS = """\
local user_scripts = require("user_scripts")
local script = {
   category = user_scripts.script_categories.other,
   hooks = {},
   gui = { i18n_title = "Endless", i18n_description = "Never comes back" },
}
function script.hooks.protocolDetected(now, conf)
   while true do end
end
return script
"""
SLEEPY = """\
import time

title = "Sleepy"


def protocolDetected(flow, now, conf):
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            pass
"""
BLOCKER = f"""\
local user_scripts = require("user_scripts")
local status_types = require("flow_consts").status_types
local script = {{
   category = user_scripts.script_categories.security,
   hooks = {{}},
   gui = {{ i18n_title = "Blocker", i18n_description = "Blocks one name" }},
}}
function script.hooks.protocolDetected(now, conf)
   if flow.getFullInfo()["host_server_name"] == "{BLOCKED}" then
      flow.triggerStatus(status_types.status_suspicious_tcp_probing.create(), 60, 0, 60)
      flow.setStatus(status_types.status_web_mining_detected, 60, 0, 60)
   end
end
return script
"""


CRITIC = """\
from nedge.scripts import status_types

http_answers = {answers}


def protocolUpdated(flow, now, conf):
    if flow.getFacts().http_code == 200:
        flow.triggerStatus(status_types.status_blacklisted, "it answers", 100)
"""


def entries(gateway: Gateway, event: str) -> list[dict[str, Any]]:
    """What nedge has logged of one kind."""
    lines = [json.loads(line) for line in gateway.log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def test_scripts_that_never_come_back_stop_nothing(lab: Lab, servers: ServerSet, tmp_path: Path) -> None:
    (tmp_path / "endless.lua").write_text(ENDLESS)
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    (tmp_path / "watchful.lua").write_text(BLOCKER)
    scripts = f'\n[scripts]\ndirectories = ["{tmp_path}"]\nbudget_ms = 20\n'

    def curl(host: str, seconds: float) -> int:
        address = servers.address.v4
        target = ["--resolve", f"{host}:80:{address}", f"http://{host}/"]
        command = ["curl", "-sS", "-o", "/dev/null", "--max-time", str(seconds), *target]
        process = lab.client.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return process.wait(timeout=3 * traffic.PATIENCE)

    with Gateway(lab, PORTS + EVENTS + scripts) as gateway:
        answered = [curl(ALLOWED, traffic.PATIENCE) for _ in range(CONNECTIONS)]
        blocked = curl(BLOCKED, traffic.SHORT)
    assert answered == [0] * CONNECTIONS
    assert blocked == CURL_TIMEOUT  # the script beside them still works
    assert gateway.status == 0, gateway.log
    for event in ("worker_hung", "worker_restarted", "worker_failed"):
        assert not entries(gateway, event), gateway.log
    assert {entry["script"] for entry in entries(gateway, "script_timeout")} == {"endless", "sleepy"}
    assert {entry["script"] for entry in entries(gateway, "script_aside")} == {"endless", "sleepy"}
    (totals,) = entries(gateway, "engine_totals")
    assert totals["script_timeouts"] >= 10


@pytest.mark.parametrize(("answers", "expected"), [(True, CURL_TIMEOUT), (False, 0)])
def test_an_answer_waits_for_a_script_that_wants_to_look_at_it(
    lab: Lab, servers: ServerSet, tmp_path: Path, answers: bool, expected: int
) -> None:
    (tmp_path / "critic.py").write_text(CRITIC.format(answers=answers))
    target = ["--resolve", f"{ALLOWED}:80:{servers.address.v4}", f"http://{ALLOWED}/"]
    with Gateway(lab, PORTS + f'\n[scripts]\ndirectories = ["{tmp_path}"]\n'):
        done = lab.client.run(["curl", "-sS", "--max-time", "5", *target])
    assert done.returncode == expected
    assert bool(done.stdout) is not answers  # not a byte of it
