"""What user scripts cost, in Python and in Lua: `python tests/bench/script_cost.py`.

The scripts are alike in both languages, and do what real ones do: ask one to three things of the flow,
compare, and leave it be. Figures: microseconds of CPU per event, with six scripts that all hook it; and per
flow over its life, with fifty, each with one hook (protocolDetected, flowEnd; one in ten periodicUpdate). The
flow is an engine's; nDPI is not asked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from struct import pack

from nedge.core.flow import Flow
from nedge.core.hooks import Hook, HookCall
from nedge.core.hosts import Directory, HostBook
from nedge.core.lists import FingerprintSet
from nedge.core.packet import Packet, decode
from nedge.core.verdict import Action
from nedge.scripts.api import Context
from nedge.scripts.budget import enforced
from nedge.scripts.loader import load_scripts
from nedge.scripts.runner import Runner

# Condition of each script: in Python, and in Lua.
CONDITIONS = (
    ("flow.isBlacklisted()", "flow.isBlacklisted()"),
    (
        "flow.getPacketsRcvd() == 0 and flow.getPacketsSent() > 5 and flow.isServerUnicast()",
        "flow.getPacketsRcvd() == 0 and flow.getPacketsSent() > 5 and flow.isServerUnicast()",
    ),
    ("flow.getnDPICategoryName() == 'Mining'", "flow.getnDPICategoryName() == 'Mining'"),
    (
        "not flow.isLocal() and flow.getDuration() > conf['limit']",
        "not flow.isLocal() and flow.getDuration() > conf.limit",
    ),
    ("0 < flow.getTLSVersion() < 771", "flow.getTLSVersion() > 0 and flow.getTLSVersion() < 771"),
    (
        "flow.isLocalToRemote() and flow.getBytesSent() > conf['limit'] * 1000",
        "flow.isLocalToRemote() and flow.getBytesSent() > conf.limit * 1000",
    ),
)
PYTHON = """
from nedge.scripts import status_types
default_value = {{"limit": 100000}}
def {hook}(flow, now, conf):
    if {condition}:
        flow.triggerStatus(status_types.status_user_01, None, 10, 10, 10)
"""
LUA = """
local user_scripts = require("user_scripts")
local flow_consts = require("flow_consts")
local script = {{
  category = user_scripts.script_categories.other, default_value = {{limit = 100000}}, hooks = {{}},
}}
function script.hooks.{hook}(now, conf)
  if {condition} then
    flow.triggerStatus(flow_consts.status_types.status_user_01, nil, 10, 10, 10)
  end
end
return script
"""
TEMPLATES = {"py": PYTHON, "lua": LUA}


def make_scripts(directory: Path, language: str, count: int, hooks: Callable[[int], str]) -> None:
    for n in range(count):
        condition = CONDITIONS[n % len(CONDITIONS)][language == "lua"]
        text = TEMPLATES[language].format(hook=hooks(n), condition=condition)
        (directory / f"script_{n:02}.{language}").write_text(text)


def a_flow() -> Flow:
    """A flow with a packet each way."""
    hosts = HostBook(Directory(local_networks=["192.168.0.0/16"]))
    source, target = ip_address("192.168.1.2").packed, ip_address("203.0.113.1").packed
    head = pack("!BBHHHBBH", 0x45, 0, 128, 1, 0, 64, 17, 0)
    data = head + source + target + pack("!HHHH", 4000, 443, 108, 0) + bytes(100)
    packet = decode(data, 0)
    assert isinstance(packet, Packet)
    flow = Flow(1, packet.key, hosts.acquire(source, 0), hosts.acquire(target, 0), packet, time.time())
    for from_client in (True, False):
        flow.count(packet, from_client, time.time())
    return flow


def runner(language: str, count: int, hooks: Callable[[int], str]) -> Runner:
    with tempfile.TemporaryDirectory() as directory:
        make_scripts(Path(directory), language, count, hooks)
        scripts, problems = load_scripts([Path(directory)], {}, lambda _name: None)
    assert len(scripts) == count, problems
    made = Runner(scripts)
    made.context = Context(
        facts=lambda flow: flow.facts,
        directory=Directory,
        risk_names=lambda _risks: [],
        risks=lambda flow: flow.risks,
        action=lambda _flow: Action.PASS,
        fingerprints=FingerprintSet(),
    )
    return made


def per_call(made: Runner, hooks: list[Hook], rounds: int) -> float:
    """Microseconds for one round of these hooks, the best of five tries."""
    flow = a_flow()
    now = int(time.time())
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(rounds):
            for hook in hooks:
                made.run(HookCall(flow, hook, now))
        best = min(best, (time.process_time() - start) / rounds * 1e6)
    assert not any(script.errors or script.timeouts for script in made.scripts)
    return best


def measure(language: str, rounds: int) -> dict[str, float]:
    six = runner(language, 6, lambda _n: "protocolDetected")
    hooks = ("protocolDetected", "flowEnd")
    fifty = runner(language, 50, lambda n: "periodicUpdate" if n % 10 == 9 else hooks[n % 2])
    life = [Hook.PROTOCOL_DETECTED, Hook.PERIODIC_UPDATE, Hook.FLOW_END]
    return {
        "six_scripts_us_per_event": per_call(six, [Hook.PROTOCOL_DETECTED], rounds),
        "fifty_scripts_us_per_flow": per_call(fifty, life, rounds // 8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with enforced():
        results = {language: measure(language, options.rounds) for language in TEMPLATES}
    if options.json:
        print(json.dumps(results))
        return
    for language, result in results.items():
        print(f"{language}: " + ", ".join(f"{name} {value:.2f}" for name, value in result.items()))


if __name__ == "__main__":
    main()
