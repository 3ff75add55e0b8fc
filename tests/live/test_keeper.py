"""What the running gateway keeps in the kernel: its rules, whoever flushes them; hosts in quarantine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from test_offload import curl, https, kept, until

from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.host import LabError
from nedge.lab.servers import ServerSet
from nedge.lab.topology import CLIENT, SERVER, Lab

BLOCKED = '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
# One blocked name costs the client 100 of host score, and that is too much.
QUARANTINE = (
    PORTS
    + EVENTS
    + "[verdict]\nhost_drop_score = 100\nquarantine_seconds = 4\n"
    + BLOCKED
    + "client_score = 100\n"
)


def rules(lab: Lab) -> str:
    """Without the comments, which tell the time."""
    saves = (lab.gateway.run([f"{command}-save"], check=True) for command in ("iptables", "ip6tables"))
    lines = "".join(save.stdout for save in saves).splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def ours(lab: Lab) -> list[str]:
    return [line for line in rules(lab).splitlines() if "NEDGE" in line and not line.startswith(":")]


def sets(lab: Lab) -> dict[str, list[str]]:
    lines = lab.gateway.run(["ipset", "save"], check=True).stdout.splitlines()
    found: dict[str, list[str]] = {line.split()[1]: [] for line in lines if line.startswith("create ")}
    for line in lines:
        if line.startswith("add "):
            found[line.split()[1]].append(line.split()[2])
    return found


def ping(lab: Lab, address: str) -> bool:
    return lab.client.run(["ping", "-c", "1", "-W", "1", address]).returncode == 0


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(["iptables", "-t", "mangle", "-F"], id="flush"),
        pytest.param(["iptables", "-t", "mangle", "-D", "FORWARD", "1"], id="jump"),
        pytest.param(["ip6tables", "-t", "mangle", "-F", "NEDGE-nedge0"], id="chain"),
        pytest.param(["iptables", "-t", "mangle", "-D", "NEDGE-nedge0", "5"], id="one-rule"),
        pytest.param(["nft", "flush", "ruleset"], id="ruleset"),
    ],
)
def test_rules_come_back(lab: Lab, servers: ServerSet, harm: list[str]) -> None:
    with Gateway(lab, PORTS + EVENTS + BLOCKED) as gateway, kept(lab, "www.example") as connection:
        before = ours(lab)
        assert connection.ask() == "answered"
        lab.gateway.run(harm, check=True)
        until(lambda: gateway.logged("rules_restored"))
        assert ours(lab) == before
        assert not https(lab, "blocked.example")
        assert connection.ask() == "answered"
        assert gateway.stop() == 0
        (totals,) = gateway.logged("gateway_totals")
        assert totals["rules_restored"] == 1
        assert totals["restore_failures"] == 0
    assert ours(lab) == []


def test_settings_and_ports_come_back(lab: Lab, servers: ServerSet) -> None:
    harms = [
        ["ip", "link", "set", "nedge0", "type", "bridge", "nf_call_iptables", "0"],
        ["sysctl", "-qw", "net.netfilter.nf_conntrack_acct=0"],
        ["ip", "link", "set", "wan0", "nomaster"],
    ]
    with Gateway(lab, PORTS + EVENTS + BLOCKED) as gateway:
        for number, harm in enumerate(harms, 1):
            lab.gateway.run(harm, check=True)
            until(lambda number=number: len(gateway.logged("bridge_restored")) == number)
        until(lambda: ping(lab, SERVER.v4))
        assert https(lab, "www.example")
        assert not https(lab, "blocked.example")
        lab.gateway.run(["ip", "link", "del", "nedge0"], check=True)
        until(lambda: len(gateway.logged("bridge_restored")) == len(harms) + 1)
        until(lambda: ping(lab, SERVER.v4))
        assert https(lab, "www.example")
        assert not https(lab, "blocked.example")
        assert gateway.stop() == 0
    links = lab.gateway.run(["ip", "-br", "link"], check=True).stdout
    assert "nedge0" not in links


@pytest.mark.parametrize("workers", [1, 2])
def test_a_host_is_cut_off_and_comes_back(lab: Lab, servers: ServerSet, workers: int) -> None:
    config = QUARANTINE.replace("[gateway]", f"[gateway]\nworkers = {workers}")
    with Gateway(lab, config) as gateway, kept(lab, "www.example") as connection:
        assert connection.ask() == "answered"
        assert not https(lab, "blocked.example")
        until(lambda: gateway.logged("host_quarantined"))
        assert sets(lab)["nedge-nedge0-q4"] == [CLIENT.v4]
        assert connection.ask() == "silence"  # though the kernel passed it by itself
        assert not ping(lab, SERVER.v4)
        assert ping(lab, SERVER.v6)  # its other address is another host
        until(lambda: ping(lab, SERVER.v4), 15)
        assert https(lab, "www.example")
        assert gateway.stop() == 0
        assert [event["src_ip"] for event in gateway.events("quarantine")] == [CLIENT.v4]
    assert sets(lab) == {}


def test_who_is_allowed_is_not_cut_off(lab: Lab, servers: ServerSet, tmp_path: Path) -> None:
    (tmp_path / "allowed").write_text(f"{SERVER.v4}\n")
    config = QUARANTINE + f'[lists]\nallow_hosts = ["{tmp_path}/allowed"]\n'
    with Gateway(lab, config) as gateway:
        assert https(lab, "blocked.example")  # allowed is allowed
        assert not curl(lab, "https://blocked.example/", "--resolve", "blocked.example:443:[fd99::1]")
        until(lambda: gateway.logged("host_quarantined"))
        assert sets(lab)["nedge-nedge0-q6"] == [CLIENT.v6]
        assert not ping(lab, SERVER.v6)
        assert ping(lab, SERVER.v4)


def test_quarantine_by_reload(lab: Lab, servers: ServerSet) -> None:
    """It is switched on and off with the configuration, without a trace."""
    with Gateway(lab, PORTS + EVENTS + BLOCKED) as gateway:
        path = gateway.directory / "nedge.toml"
        for text, names in ((QUARANTINE, ["a4", "a6", "q4", "q6"]), (PORTS + EVENTS + BLOCKED, [])):
            done = len(gateway.logged("reloaded"))
            path.write_text(text)
            os.kill(gateway.pid, signal.SIGHUP)
            until(lambda done=done: len(gateway.logged("reloaded")) > done)
            assert sorted(sets(lab)) == [f"nedge-nedge0-{name}" for name in names]
            assert ("match-set" in rules(lab)) == bool(names)


def test_a_crash_leaves_hosts_cut_off(lab: Lab, servers: ServerSet) -> None:
    config = QUARANTINE.replace("quarantine_seconds = 4", "quarantine_seconds = 600")
    with Gateway(lab, config) as gateway:
        assert not https(lab, "blocked.example")
        until(lambda: gateway.logged("host_quarantined"))
        os.kill(gateway.pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{gateway.pid}/exe").exists())
        assert not ping(lab, SERVER.v4)
    with Gateway(lab, config) as gateway:
        assert not ping(lab, SERVER.v4)
        os.kill(gateway.pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{gateway.pid}/exe").exists())
    with Gateway(lab, PORTS + EVENTS):  # no quarantine any more
        assert ping(lab, SERVER.v4)
        assert sets(lab) == {}


def test_marks_of_others_are_respected(lab: Lab) -> None:
    """Whoever uses our bits is found before anything is changed; other bits are free for all."""
    rule = ["PREROUTING", "-t", "mangle", "-j", "CONNMARK", "--restore-mark"]
    lab.gateway.run(["iptables", "-A", *rule, "--mask", "0xff"], check=True)
    with Gateway(lab, PORTS + EVENTS):
        pass
    lab.gateway.run(["ip6tables", "-A", *rule], check=True)
    before = rules(lab)
    with pytest.raises(LabError, match=r"firewall changes the mark bits 0xf0000000 .* set gateway.mark_mask"):
        Gateway(lab, PORTS + EVENTS).__enter__()
    assert rules(lab) == before
    with Gateway(lab, PORTS + "offload = false\n" + EVENTS):
        pass


@pytest.mark.parametrize("swapped", [False, True])
def test_lan_and_wan_swapped(lab: Lab, servers: ServerSet, swapped: bool) -> None:
    ports = PORTS.replace("lan0", "x").replace("wan0", "lan0").replace("x", "wan0") if swapped else PORTS
    local = f'[network]\nlocal = ["{CLIENT.v4}/32", "fe80::/10"]\n'
    with Gateway(lab, ports + EVENTS + local) as gateway:
        for number in range(60):
            assert https(lab, f"www{number}.example")
        assert gateway.stop() == 0
    assert len(gateway.logged("lan_wan_swapped")) == swapped
