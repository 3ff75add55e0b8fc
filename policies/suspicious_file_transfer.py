"""Tells of programs that are fetched over plain HTTP, where anybody on the way can change them.

Three signs: the URL's path ends with one of `extensions`, the answer's content type is one of `types` (which
nDPI 4.2 does not tell), or nDPI sees that the answer is a program. Every request is looked at, before it
leaves; answers, for the last two signs, with `dpi.http_answers = true` in the configuration, and of a
connection the first. `ignore` has domains that are exempt, those below them too: updates of Windows come over
HTTP, and are signed.

Default scores: flow 30, client 30, an alert. Set `score = 100` to block such transfers.
"""

from nedge.scripts import RISKS, Conf, DomainSet, Flow, status_types

title = "Suspicious file transfer"
category = "security"
l4_proto = "tcp"
l7_proto = "HTTP"
default_value = {
    "extensions": ["exe", "dll", "scr", "msi", "bat", "cmd", "ps1", "vbs", "hta", "jar", "apk"],
    "types": ["application/x-msdownload", "application/x-dosexec", "application/x-executable"],
    "ignore": ["windowsupdate.com", "update.microsoft.com", "mp.microsoft.com"],
    "score": 30,
    "client_score": 30,
    "server_score": 10,
}

ignored = DomainSet()


def setup(conf: Conf) -> bool:
    global ignored
    ignored = DomainSet(conf["ignore"])
    return True


def extension(url: str) -> str:
    """`host/a/setup.EXE?id=5` -> `exe`."""
    path = url.partition("?")[0].partition("#")[0].partition("/")[2]
    return path.rpartition("/")[2].rpartition(".")[2].lower() if "." in path else ""


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    facts = flow.getFacts()
    found = {}
    if (ending := extension(facts.http_url)) in conf["extensions"]:
        found["extension"] = ending
    if facts.http_content_type in conf["types"]:
        found["type"] = facts.http_content_type
    if flow.hasRisk(RISKS["binary_transfer"]):
        found["content"] = "a program"
    if found and not ignored.match(flow.getHostName()):
        flow.triggerStatus(
            status_types.status_suspicious_file_transfer,
            {"url": facts.http_url, **found},
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


protocolUpdated = protocolDetected
