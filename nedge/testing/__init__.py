"""Testing scripts: flows made in one line, packets written down step by step, and the real engine.

    from nedge.testing import load_script, make_flow, tls

    def test_a_made_flow():
        script = load_script("policies/no_torrents.py")
        flow = script.run(make_flow("BitTorrent", client="192.168.1.5"))
        assert flow.verdict == "drop"
        assert flow.statuses == ["status_potentially_dangerous"]

    def test_packets():
        script = load_script("blocked_hostname", settings={"domains": ["bad.example"]})
        (flow,) = script.judge(tls(name="www.bad.example").packets)
        assert flow.verdict == "drop"
        assert script.actions.index("drop") == 3  # the ClientHello

    def test_a_capture():
        script = load_script("policies/no_torrents.py")
        assert {flow.verdict for flow in script.replay("office.pcap")} == {"pass"}

Plain pytest is all that is needed, with no plugin and no fixture. `bench.py` has what runs scripts,
`flows.py` the flows, `packets.py`, `conversations.py` and `tls.py` the traffic.
"""

from nedge.config import SHIPPED_POLICIES
from nedge.errors import ConfigError
from nedge.replay import CaptureError
from nedge.testing.bench import Bench, ScriptError, load_script
from nedge.testing.conversations import (
    Tcp,
    Udp,
    dns,
    dns_answer,
    dns_query,
    http_request,
    http_response,
    ssh_turns,
)
from nedge.testing.flows import Alert, MadeFlow, SeenFlow, make_flow
from nedge.testing.packets import (
    ACK,
    CLIENT,
    CLIENT6,
    FIN,
    PSH,
    RST,
    SERVER,
    SERVER6,
    SYN,
    T0,
    Packet,
    from_scapy,
    icmp,
    ip,
    merge,
    noise,
    ping,
    tcp_segment,
    udp_datagram,
    write_pcap,
)
from nedge.testing.tls import certificate, client_hello, quic_initial, tls, tls_turns

__all__ = [
    "ACK",
    "CLIENT",
    "CLIENT6",
    "FIN",
    "PSH",
    "RST",
    "SERVER",
    "SERVER6",
    "SHIPPED_POLICIES",
    "SYN",
    "T0",
    "Alert",
    "Bench",
    "CaptureError",
    "ConfigError",
    "MadeFlow",
    "Packet",
    "ScriptError",
    "SeenFlow",
    "Tcp",
    "Udp",
    "certificate",
    "client_hello",
    "dns",
    "dns_answer",
    "dns_query",
    "from_scapy",
    "http_request",
    "http_response",
    "icmp",
    "ip",
    "load_script",
    "make_flow",
    "merge",
    "noise",
    "ping",
    "quic_initial",
    "ssh_turns",
    "tcp_segment",
    "tls",
    "tls_turns",
    "udp_datagram",
    "write_pcap",
]
