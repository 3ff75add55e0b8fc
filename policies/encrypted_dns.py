"""Tells of encrypted DNS past your resolvers: over HTTPS (DoH), TLS (DoT) and QUIC (DoQ).

It hides from the network which names are asked for, and so gets round every script that looks at them. It is
known by its port (853), by nDPI, and by the name of the server: `hosts` has those of well-known ones, and
covers what is below them. `servers` has the addresses or networks of the resolvers to use, which may
themselves ask any other; `allowed` has names of servers that are fine.

Off by default, as many browsers do this by themselves. Scores: flow 50, client 10, an alert. Set
`score = 100` to block it: browsers then ask the ordinary resolver.
"""

from nedge.scripts import Conf, DomainSet, Flow, NetworkSet, status_types

title = "Encrypted DNS"
category = "security"
default_enabled = False
default_value = {
    "servers": [],
    "allowed": [],
    "hosts": [
        "dns.google",
        "cloudflare-dns.com",
        "one.one.one.one",
        "quad9.net",
        "doh.opendns.com",
        "nextdns.io",
        "adguard-dns.com",
        "dns.adguard.com",
        "cleanbrowsing.org",
        "dns.mullvad.net",
        "controld.com",
        "dns0.eu",
        "doh.dns.sb",
        "dns.alidns.com",
    ],
    "score": 50,
    "client_score": 10,
    "server_score": 0,
}

PORT = 853  # of DoT and DoQ (RFC 7858, RFC 9250)
expected, allowed, hosts = NetworkSet(), DomainSet(), DomainSet()


def setup(conf: Conf) -> bool:
    global expected, allowed, hosts
    expected = NetworkSet(conf["servers"])
    allowed, hosts = DomainSet(conf["allowed"]), DomainSet(conf["hosts"])
    return True


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    protocol, name = flow.getnDPIProtocolName(), flow.getHostName()
    names = protocol.split(".")
    if "DNS" in names:  # in the clear: for unexpected_dns
        return
    if flow.getServerPort() != PORT and "DoH_DoT" not in names and not hosts.match(name):
        return
    if flow.getServerIP() in expected or flow.getClientIP() in expected or allowed.match(name):
        return
    flow.triggerStatus(
        status_types.status_unexpected_dns,
        {"server": flow.getServerIP(), "host": name, "protocol": protocol},
        conf["score"],
        conf["client_score"],
        conf["server_score"],
    )


protocolUpdated = protocolDetected
