"""Blocks TLS clients by their fingerprint: JA3 hashes that malware is known by.

Listed are the fingerprints of `lists.malware_fingerprints` in the configuration, which may be URLs, those in
`signatures`, and those in `files`: absolute paths of CSV files with a hash in the first column, such as
abuse.ch's `ja3_fingerprints.csv`; `#` starts a comment. While all are empty, nothing happens. nDPI 5.0 has
JA4 where older releases have JA3: a list may hold both kinds.

Default scores: flow 100, client 100: what you list is blocked. Programs share fingerprints, so try a list
with a lower score first: then it only alerts.
"""

from functools import lru_cache
from pathlib import Path

from nedge.scripts import Conf, Flow, status_types

title = "Malicious TLS fingerprint"
category = "security"
needs = "isTLS"
default_value = {"signatures": [], "files": [], "score": 100, "client_score": 100, "server_score": 5}


@lru_cache(maxsize=1)
def signatures(inline: tuple[str, ...], files: tuple[str, ...]) -> frozenset[str]:
    lines = [line for file in files for line in Path(file).read_text(errors="replace").splitlines()]
    rows = (line.partition("#")[0].partition(",")[0].strip(' \t"').lower() for line in lines)
    return frozenset(row for row in (*rows, *map(str.lower, inline)) if row)


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    listed = signatures(tuple(conf["signatures"]), tuple(conf["files"]))
    found = flow.getListedFingerprints()
    if listed:
        facts = flow.getFacts()
        found |= {kind: text for kind, text in (("ja3", facts.ja3), ("ja4", facts.ja4)) if text in listed}
    if found:
        flow.triggerStatus(
            status_types.status_malicious_signature,
            found,
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


protocolUpdated = protocolDetected
