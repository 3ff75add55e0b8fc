"""All shipped policies together, with the default configuration, on the traffic of an ordinary network."""

from __future__ import annotations

from pathlib import Path

import pytest

from nedge.core.hooks import Hook
from nedge.scripts.loader import read_script
from nedge.testing import (
    ACK,
    CLIENT,
    CLIENT6,
    RST,
    SERVER,
    SERVER6,
    SHIPPED_POLICIES,
    SYN,
    T0,
    Bench,
    Packet,
    Tcp,
    Udp,
    certificate,
    dns,
    dns_query,
    http_request,
    http_response,
    load_script,
    merge,
    noise,
    ping,
    quic_initial,
    ssh_turns,
    tls,
)

POLICIES = sorted(path.stem for path in SHIPPED_POLICIES.glob("*.py"))
SCRIPTS = {key: read_script(SHIPPED_POLICIES / f"{key}.py", {}, lambda name: 1) for key in POLICIES}
NEEDED: dict[str, dict[str, str]] = {
    "blocked_hostname": {"domains": '["blocked.example"]'},
    "country_check": {"countries": '["KP"]'},
    "unexpected_dhcp": {"servers": '["192.168.1.1"]'},
    "unexpected_dns": {"servers": '["192.168.1.1"]'},
    "unexpected_ntp": {"servers": '["192.168.1.1"]'},
    "unexpected_smtp": {"servers": '["192.168.1.1"]'},
}
"""Settings without which a policy is off."""
EXPIRED = certificate(("old.example.org",), T0 - 100_000, T0 - 50_000)

ORDINARY: dict[str, list[Packet]] = {
    "dns": dns("www.example.com", "example.org").packets,
    "dns, reverse": dns("5.113.0.203.in-addr.arpa").packets,
    "dns, no answer": Udp().client(dns_query("example.com")).packets,
    "tls 1.3": tls("1.3").fin().packets,
    "tls 1.2": tls("1.2").fin().packets,
    "http": Tcp(dport=80)
    .handshake()
    .client(http_request("example.com"))
    .server(http_response())
    .fin()
    .packets,
    "quic": quic_initial("example.com"),
    "ssh": Tcp(dport=22).handshake().turns(ssh_turns()).packets,
    "ping": ping(),
    "ping, v6": ping(CLIENT6, SERVER6),
    "ping, no answer": ping(reply=False),
    "port scan": Tcp().segment("c", SYN).packets,
    "mdns": Udp(CLIENT, "224.0.0.251", 5353, 5353).client(dns_query("example.local")).packets,
    "dhcp": Udp("0.0.0.0", "255.255.255.255", 68, 67).client(noise(300)).packets,
    "ssdp": Udp(CLIENT, "239.255.255.250", dport=1900).client(b"M-SEARCH * HTTP/1.1\r\n\r\n").packets,
    "unknown tcp": Tcp(dport=47123).handshake().client(noise(200)).server(noise(200, 1)).packets,
    "unknown udp": Udp(dport=47123).client(noise(200)).server(noise(200, 1)).packets,
    "browsing": merge(
        *(
            tls("1.3", f"www{n}.example.com", server=f"203.0.113.{n}", sport=41000 + n, start=T0 + n).packets
            for n in range(30)
        )
    ),
    "ntp": Udp(dport=123).client(b"\x23" + bytes(47)).server(b"\x24" + bytes(47)).packets,
    "mail": Tcp(dport=25).handshake().turns([("s", b"220 a ESMTP\r\n"), ("c", b"EHLO b\r\n")]).packets,
    "a page from a port of its own": Tcp(dport=8080).handshake().client(http_request("example.com")).packets,
    "five refused connections": merge(
        *(
            Tcp(dport=n + 1, sport=5000 + n).segment("c", SYN).segment("s", RST | ACK).packets
            for n in range(5)
        )
    ),
    "mid-stream": Tcp().client(noise(500)).server(noise(500)).packets,
}

OLD, EXPIRED_STATUS = "status_tls_old_protocol_version", "status_tls_certificate_expired"
OTHER_NAME, SELF_SIGNED = "status_tls_certificate_mismatch", "status_tls_certificate_selfsigned"
APPLIANCE = certificate(("appliance.example",), T0 - 100_000, T0 - 50_000, issuer="")

# Traffic with a flaw that is told of, but does not block.
FLAWED: dict[str, tuple[list[Packet], list[str]]] = {
    "old tls": (tls("1.0").packets, [OLD]),
    "expired": (tls("1.2", "old.example.org", cert=EXPIRED).packets, [EXPIRED_STATUS]),
    "old and expired": (tls("1.0", "old.example.org", cert=EXPIRED).packets, [EXPIRED_STATUS, OLD]),
    "another name": (tls(name="www.example.com").packets, [OTHER_NAME]),
    "self-signed": (tls(cert=certificate(issuer="")).packets, [SELF_SIGNED]),
    "an old appliance": (
        tls("1.0", "www.example.com", cert=APPLIANCE).packets,
        [EXPIRED_STATUS, OTHER_NAME, OLD, SELF_SIGNED],
    ),
    "dangerous, old and of another name": (
        tls("1.0", "pastebin.com").packets,
        ["status_potentially_dangerous", OTHER_NAME, OLD],
    ),
    "a program over http": (
        Tcp(dport=80).handshake().client(http_request("example.com", "/setup.exe")).packets,
        ["status_suspicious_file_transfer"],
    ),
    "a big ping": (ping(payload=noise(1400)), ["status_data_exfiltration"]),
    "transit": (ping(SERVER, "198.51.100.1"), ["status_remote_to_remote"]),
    "nobody there": (Udp(dport=47123).client(noise(50)).packets, ["status_udp_unidirectional"]),
}


@pytest.mark.parametrize("packets", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_traffic_passes(packets: list[Packet], library: str) -> None:
    script = load_script(SHIPPED_POLICIES, library=library)
    flows = script.judge(packets, until=T0 + 300)
    assert set(script.actions) == {"pass"}
    assert {flow.verdict for flow in flows} == {"pass"}
    statuses = {name for flow in flows for name in flow.statuses}
    assert statuses <= {"status_udp_unidirectional"}


@pytest.mark.parametrize(("packets", "statuses"), FLAWED.values(), ids=FLAWED)
def test_flawed_traffic_alerts_and_passes(packets: list[Packet], statuses: list[str], library: str) -> None:
    script = load_script(SHIPPED_POLICIES, library=library)
    (flow,) = script.judge(packets, until=T0 + 300)
    assert flow.statuses == statuses
    assert flow.alerts
    assert flow.verdict == "pass"
    assert set(script.actions) == {"pass"}


def all_on(library: str = "auto") -> Bench:
    """Every policy, also those that are off by default, or while nothing is configured."""
    config = "".join(
        f"[scripts.{policy}]\n" + "".join(f"{name} = {value}\n" for name, value in NEEDED[policy].items())
        for policy in NEEDED
    )
    return load_script(*POLICIES, config=config, library=library)


def test_no_script_fails(library: str) -> None:
    flawed = [packets for packets, _ in FLAWED.values()]
    flows = [
        [packet._replace(time=packet.time + n * 100) for packet in packets]
        for n, packets in enumerate([*ORDINARY.values(), *flawed])
    ]
    script = all_on(library)
    script.judge(merge(*flows), until=T0 + 10_000)  # raises if a script does
    assert script.engine.counters.script_errors == 0
    assert sorted(each.key for each in script.scripts) == POLICIES


def test_what_is_off_by_default() -> None:
    off = load_script(SHIPPED_POLICIES).assembly.runner.off
    by_default = {key for key, why in off.items() if why.startswith("by default")}
    assert by_default == {"beaconing", "encrypted_dns", "known_proto_on_nonstandard_port", "syn_probing"}
    assert off.keys() - by_default == NEEDED.keys()


def test_what_policies_are_called_for() -> None:
    """L4 protocols, nDPI's protocol, the handshake, seconds between ticks: what keeps the cost down."""
    found = {}
    for script in all_on().scripts:
        ticks = script.periodic_ticks * 30 if Hook.PERIODIC_UPDATE in script.hooks else 0
        found[script.key] = (script.l4, bool(script.l7), script.three_way_handshake_ok, ticks)
    tcp, udp, everything = (6,), (17,), ()
    assert found == {
        "beaconing": (everything, False, False, 0),
        "blacklisted": (everything, False, False, 0),
        "blocked_hostname": (everything, False, False, 0),
        "country_check": (everything, False, False, 0),
        "data_exfiltration": ((1, 58), False, False, 30),
        "dns_exfiltration": (everything, True, False, 0),
        "elephant_flow": (everything, False, False, 30),
        "encrypted_dns": (everything, False, False, 0),
        "flow_risk": (everything, False, False, 0),
        "known_proto_on_nonstandard_port": (everything, False, False, 0),
        "lateral_movement": (tcp, False, True, 0),
        "longlived": (everything, False, False, 30),
        "malicious_signature": (everything, False, False, 0),
        "potentially_dangerous": (everything, False, False, 0),
        "remote_to_remote": (everything, False, False, 0),
        "suspicious_file_transfer": (tcp, True, False, 0),
        "syn_probing": (tcp, False, False, 0),
        "tcp_probing": (tcp, False, True, 0),
        "tls_certificate_expired": (tcp, False, False, 0),
        "tls_certificate_mismatch": (tcp, False, True, 0),
        "tls_certificate_selfsigned": (tcp, False, True, 0),
        "tls_old_version": (tcp, False, False, 0),
        "tls_unsafe_ciphers": (tcp, False, True, 0),
        "udp_unidirectional": (udp, False, False, 30),
        "unexpected_dhcp": (udp, True, False, 0),
        "unexpected_dns": (everything, True, False, 0),
        "unexpected_ntp": (udp, True, False, 0),
        "unexpected_smtp": (tcp, False, False, 0),
        "web_mining": (everything, False, False, 0),
    }


def test_nothing_is_unknown_to_either_ndpi(library: str) -> None:
    assert all_on(library).assembly.runner.skipped == []


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_is_a_tutorial(policy: str) -> None:
    script = SCRIPTS[policy]
    assert script.title not in ("", policy)
    assert script.category in ("security", "network")
    paragraphs = script.description.split("\n\n")
    assert any("efault" in text and str(script.conf["score"]) in text for text in paragraphs)
    settings = set(script.conf) - {"score", "client_score", "server_score"}
    assert {name for name in settings if f"`{name}`" not in script.description} == set()
    assert len((SHIPPED_POLICIES / f"{policy}.py").read_text().splitlines()) <= 90
    told_off = "Off by default" in script.description
    assert told_off is not script.default_enabled


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_has_tests(policy: str) -> None:
    assert (Path(__file__).parent / f"test_{policy}.py").is_file()
