"""Tells of servers whose TLS certificate is not for the name that the client asked for.

A browser refuses those; other programs may not look, and then whoever sits in the middle reads along. The
certificate comes after the client's hello, so this is mostly seen by protocolUpdated. TLS 1.3 and QUIC
encrypt certificates. `ignore` has domains that are exempt, those below them too.

Default score: 20, an alert. Set `score = 100` to block such servers: the connection is cut before any data of
the application is sent.
"""

from nedge.scripts import Conf, DomainSet, Flow, status_types

title = "TLS certificate for another name"
category = "security"
l4_proto = "tcp"
three_way_handshake_ok = True
needs = "isTLS"
default_value = {"ignore": [], "score": 20, "client_score": 0, "server_score": 10}

CUT = 79  # nDPI keeps so many characters of a server's name: longer ones cannot be compared
ignored = DomainSet()


def setup(conf: Conf) -> bool:
    global ignored
    ignored = DomainSet(conf["ignore"])
    return True


def covers(entry: str, name: str) -> bool:
    """Whether a name of a certificate is the server's; a leading `*` stands for one label (RFC 6125)."""
    entry = entry.lower()
    return entry == name or (entry.startswith("*.") and entry[2:] == name.partition(".")[2])


def common_name(subject: str) -> str:
    """`O=Example Ltd, CN=www.example.com` -> `www.example.com`."""
    return subject.rpartition("CN=")[2].partition(",")[0]


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    facts = flow.getFacts()
    name = facts.tls_sni
    if not name or not (facts.cert_names or facts.cert_subject) or len(name) >= CUT:
        return  # no certificate (yet), or nothing to compare it with
    # Certificates of our time have a list of names; old ones have a common name alone.
    names = facts.cert_names or (common_name(facts.cert_subject),)
    if any(names) and not any(covers(entry, name) for entry in names) and not ignored.match(name):
        flow.triggerStatus(
            status_types.status_tls_certificate_mismatch,
            {"asked": name, "names": list(names[:5]), "issuer": facts.cert_issuer},
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


protocolUpdated = protocolDetected
