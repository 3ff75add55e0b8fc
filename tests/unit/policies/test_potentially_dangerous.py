from __future__ import annotations

import pytest

from nedge.testing import (
    Bench,
    Packet,
    Tcp,
    Udp,
    dns,
    http_request,
    load_script,
    noise,
    ping,
    quic_initial,
    ssh_turns,
    tls,
)

GNUTELLA = b"GNUTELLA CONNECT/0.6\r\nUser-Agent: LimeWire/4.18\r\nX-Ultrapeer: False\r\n\r\n"
SMB1 = b"\x00\x00\x00\x2f\xffSMB\x73" + bytes(42)  # session setup
FTP = [
    ("s", b"220 FTP server ready.\r\n"),
    ("c", b"USER anonymous\r\n"),
    ("s", b"331 Password required.\r\n"),
    ("c", b"PASS x@example.com\r\n"),
    ("s", b"230 Logged in.\r\n"),
]


def run(packets: list[Packet], toml: str = "", library: str = "auto") -> Bench:
    script = load_script("potentially_dangerous", config=toml, library=library)
    script.judge(packets)
    return script


@pytest.mark.parametrize(
    ("packets", "protocol", "breed"),
    [
        (Tcp(dport=6346).handshake().client(GNUTELLA).packets, "Gnutella", "Potentially Dangerous"),
        (tls(name="pastebin.com").packets, "TLS.Pastebin", "Potentially Dangerous"),
        (Tcp(dport=445).handshake().client(SMB1).packets, "SMBv1", "Dangerous"),
    ],
)
def test_dangerous_protocols(packets: list[Packet], protocol: str, breed: str, library: str) -> None:
    judged = run(packets, "", library)
    assert judged.flow.statuses == ["status_potentially_dangerous"]
    assert judged.flow.scores == (30, 30, 10)
    assert judged.flow.verdict == "pass"
    (info,) = [alert.info for alert in judged.alerts]
    assert info["breed"] == breed
    assert info["protocol"].endswith(protocol)


@pytest.mark.parametrize(
    "packets",
    [
        tls(name="example.com").packets,
        tls(name="www.google.com").packets,
        dns("example.com").packets,
        Tcp(dport=80).handshake().client(http_request("example.com")).packets,
        Tcp(dport=22).handshake().turns(ssh_turns()).packets,
        Tcp(dport=21).handshake().turns(FTP).packets,  # unsafe, which is not dangerous
        quic_initial("example.com"),
        Udp(dport=47123).client(noise(50)).packets,  # unknown
        ping(),
    ],
)
def test_others_are_left_alone(packets: list[Packet], library: str) -> None:
    assert (run(packets, "", library).flow.statuses, run(packets, "", library).flow.scores) == ([], (0, 0, 0))


@pytest.mark.parametrize(
    ("breeds", "fires"),
    [
        ('["Unsafe"]', {"ftp"}),
        ('["Potentially Dangerous"]', {"pastebin"}),
        ('["Dangerous"]', {"smb"}),
        ('["Unsafe", "Potentially Dangerous", "Dangerous"]', {"ftp", "pastebin", "smb"}),
        ("[]", set()),
    ],
)
def test_breeds_are_configured(breeds: str, fires: set[str], library: str) -> None:
    flows = {
        "ftp": Tcp(dport=21).handshake().turns(FTP).packets,
        "pastebin": tls(name="pastebin.com").packets,
        "smb": Tcp(dport=445).handshake().client(SMB1).packets,
    }
    toml = f"[scripts.potentially_dangerous]\nbreeds = {breeds}"
    assert {name for name, packets in flows.items() if run(packets, toml, library).flow.statuses} == fires


def test_it_blocks_if_so_configured(library: str) -> None:
    toml = "[scripts.potentially_dangerous]\nscore = 100"
    assert run(tls(name="pastebin.com").packets, toml, library).flow.verdict == "drop"
