"""Tells of what nDPI finds risky in a flow: attacks on web servers, fingerprints of malware, …

`scores` says which risks count, and how much each adds to the flow's score; `client_score` and
`server_score` are added for each. The names are those of `nedge.scripts.RISKS`; an unknown one is answered
with the list of all. Some risks have a script of their own (certificates, ciphers, ports, …): leave those to
it. Those that lie in answers of plain HTTP (`binary_transfer`, …) are seen with `dpi.http_answers = true` in
the configuration. `score` is for those that `scores` has with 0. What is found depends on the release: nDPI
5.0 knows SQL injection and XSS far better than 4.2.

Default score: 30; more for what nDPI is sure of. Only several together block. Set a risk to 100 to block it.
"""

from nedge.scripts import RISKS, Conf, Flow, LastUsed, status_types

title = "nDPI flow risk"
category = "security"
needs = "hasRisk"
default_value = {
    "scores": {
        "xss": 0,
        "sql_injection": 0,
        "rce_injection": 0,
        "suspicious_user_agent": 0,
        "malicious_fingerprint": 50,
        "malicious_certificate": 50,
        "malware_host": 50,
        "exploit": 50,
    },
    "score": 30,
    "client_score": 10,
    "server_score": 10,
}

told: LastUsed[int, set[str]] = LastUsed(set)  # flow -> risks that it was told of for
watched: dict[int, str] = {}
mask = 0  # of their numbers: most flows are done with after one look at it


def setup(conf: Conf) -> bool:
    global mask
    for name in conf["scores"]:
        if name not in RISKS:
            raise ValueError(f"scores: found {name!r}; allowed are {', '.join(RISKS)}")
        watched[RISKS[name]] = name
        mask |= 1 << RISKS[name]
    return mask != 0


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    risks = flow.getRisks() & mask
    if not risks:
        return
    found = {name for number, name in watched.items() if risks >> number & 1}
    known = told[flow.getKey()]
    new = found - known
    if new:
        known |= new
        status = status_types.status_flow_risk
        flow.clearStatus(status)  # what is set cannot be set again; its scores stay
        flow.triggerStatus(
            status,
            {"risks": sorted(known)},
            sum(conf["scores"][name] or conf["score"] for name in new),
            conf["client_score"] * len(new),
            conf["server_score"] * len(new),
        )


protocolUpdated = protocolDetected
