"""Tells of TLS below version 1.2, whose ciphers and hashes are broken (RFC 8996).

The client's hello says the best version that it offers, the server's answer the one that is used; each is
looked at as it comes. `minimum` is the lowest version that is fine: "1.0", "1.1", "1.2" or "1.3".

Default score: 30, an alert. Old appliances still speak it: set `score = 100` to block them.
"""

from nedge.scripts import Conf, Flow, status_types

title = "Old TLS version"
category = "security"
l4_proto = "tcp"
needs = "isTLS"
default_value = {"minimum": "1.2", "score": 30, "client_score": 10, "server_score": 10}

VERSIONS = {"1.0": 0x0301, "1.1": 0x0302, "1.2": 0x0303, "1.3": 0x0304}


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    version = flow.getTLSVersion()  # 0: one that nDPI does not know
    if 0 < version < VERSIONS[conf["minimum"]]:
        flow.triggerStatus(
            status_types.status_tls_old_protocol_version,
            {"tls_version": version},
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


protocolUpdated = protocolDetected
