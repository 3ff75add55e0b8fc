"""Tells of remote servers whose TLS certificate is signed by nobody but themselves.

Anybody can make such a certificate for any name. Malware often does, and so do many appliances: that is why
local servers do not count, unless `local` is true. `ignore` has domains that are exempt, those below them
too. TLS 1.3 and QUIC encrypt certificates: nobody on the way can see them.

Default score: 10, an alert. Set `score = 100` to block such servers: the connection is cut before any data of
the application is sent.
"""

from nedge.scripts import Conf, DomainSet, Flow, status_types

title = "Self-signed TLS certificate"
category = "security"
l4_proto = "tcp"
three_way_handshake_ok = True
needs = "isTLS"
default_value = {"local": False, "ignore": [], "score": 10, "client_score": 0, "server_score": 10}

ignored = DomainSet()


def setup(conf: Conf) -> bool:
    global ignored
    ignored = DomainSet(conf["ignore"])
    return True


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    facts = flow.getFacts()
    if not facts.cert_subject or facts.cert_subject != facts.cert_issuer:
        return
    to_local = flow.isLocal() or flow.isRemoteToLocal()
    if (conf["local"] or not to_local) and not ignored.match(flow.getHostName()):
        flow.triggerStatus(
            status_types.status_tls_certificate_selfsigned,
            {"subject": facts.cert_subject, "sha1": facts.cert_sha1},
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


protocolUpdated = protocolDetected
