"""Tells of data that leaves inside DNS queries, as tunnels (iodine, dnscat2) and some malware do it.

A query is suspicious if its name is longer than `max_length` characters, has more than `max_labels` labels,
or has a part below the domain, of `min_random` characters or more, that looks random: more than `max_entropy`
bits a character. A client is suspicious if it asks for more than `max_volume` characters of different names
below one domain within a minute. Domains in `ignore` are exempt; reverse lookups (`arpa`) are among them.

Default scores: flow 50, client 50, an alert. Set `score = 100` to block such queries.
"""

from collections import Counter
from functools import lru_cache
from math import log2

from nedge.core.lists import DomainSet
from nedge.scripts import Conf, Flow, status_types

title = "DNS data exfiltration"
category = "security"
l7_proto = "DNS"
default_value = {
    "max_length": 120,
    "max_labels": 10,
    "min_random": 40,
    "max_entropy": 4.0,
    "max_volume": 4000,
    "ignore": ["arpa"],
    "score": 50,
    "client_score": 50,
    "server_score": 0,
}

WINDOW = 60  # seconds that the volume is counted over
MAX_SEEN = 100_000  # names kept; more within a window start a new one
seen: set[tuple[str, str, str]] = set()  # client, domain, and what it asked for below it, in this window
totals: Counter[tuple[str, str]] = Counter()  # client and domain -> characters
window = 0
exempt = lru_cache(maxsize=1)(DomainSet)


def split(name: str) -> tuple[str, str]:
    """`a.b.example.co.uk` -> `a.b`, `example.co.uk`. Good enough without a list of all public suffixes."""
    labels = name.split(".")
    second = labels[-2] if len(labels) > 1 else ""
    size = 3 if len(labels[-1]) == 2 and len(second) <= 3 else 2
    return ".".join(labels[:-size]), ".".join(labels[-size:])


def entropy(text: str) -> float:
    """Bits a character: 3 to 4 in words and hexadecimal, above 4 in base32 and base64."""
    return sum(-count / len(text) * log2(count / len(text)) for count in Counter(text).values())


def volume(client: str, domain: str, text: str, now: int) -> int:
    """Characters of different names that the client asked for below the domain in this minute."""
    global window
    if now // WINDOW != window or len(seen) >= MAX_SEEN:
        window = now // WINDOW
        seen.clear()
        totals.clear()
    if (client, domain, text) not in seen:
        seen.add((client, domain, text))
        totals[client, domain] += len(text)
    return totals[client, domain]


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    query = flow.getDnsQuery().rstrip(".")
    if not query or exempt(tuple(conf["ignore"])).match(query):
        return
    text, domain = split(query)
    measured: dict[str, tuple[float, float]] = {
        "length": (len(query), conf["max_length"]),
        "labels": (query.count(".") + 1, conf["max_labels"]),
        "volume": (volume(flow.getClientKey(), domain, text, now), conf["max_volume"]),
    }
    if len(text) >= conf["min_random"]:
        measured["entropy"] = (round(entropy(text.replace(".", "")), 2), conf["max_entropy"])
    found = {what: value for what, (value, limit) in measured.items() if value > limit}
    if found:
        flow.triggerStatus(
            status_types.status_dns_data_exfiltration,
            {"query": query, **found},
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


protocolUpdated = protocolDetected
