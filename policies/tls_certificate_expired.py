"""Tells of servers whose TLS certificate has expired, or is not valid yet.

The certificate comes after the client's hello, so this is mostly seen by protocolUpdated. TLS 1.3 and QUIC
encrypt certificates: nobody on the way can see them.

Default score: 30, an alert. Set `score = 100` to block such servers: the connection is cut before any data
of the application is sent.
"""

from nedge.scripts import Conf, Flow, status_types

title = "Expired TLS certificate"
category = "security"
l4_proto = "tcp"
needs = "isTLS"
default_value = {"score": 30, "client_score": 0, "server_score": 10}


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    facts = flow.getFacts()
    # Dates are 0 until a certificate was seen. The last second of its validity is still valid (RFC 5280).
    if facts.cert_not_after and not facts.cert_not_before <= now <= facts.cert_not_after:
        info = {
            "not_before": facts.cert_not_before,
            "not_after": facts.cert_not_after,
            "subject": facts.cert_subject,
        }
        flow.triggerStatus(
            status_types.status_tls_certificate_expired,
            info,
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


protocolUpdated = protocolDetected
