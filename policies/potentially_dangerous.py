"""Tells of protocols that nDPI judges dangerous: Tor, Gnutella, SMBv1, VPNs that hide who talks, …

`breeds` has nDPI's words for what counts: "Potentially Dangerous" and "Dangerous" unless changed; "Unsafe"
would add what sends passwords in the clear (FTP, Telnet, POP3, IMAP).

Default scores: flow 30, client 30, an alert. Set `score = 100` to block them.
"""

from nedge.scripts import Conf, Flow, status_types

title = "Potentially dangerous protocol"
category = "security"
default_value = {
    "breeds": ["Potentially Dangerous", "Dangerous"],
    "score": 30,
    "client_score": 30,
    "server_score": 10,
}


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    breed = flow.getBreed().replace("_", " ")  # nDPI 5.0 writes Potentially_Dangerous
    if breed in conf["breeds"]:
        info = {"protocol": flow.getnDPIProtocolName(), "breed": breed}
        flow.triggerStatus(
            status_types.status_potentially_dangerous,
            info,
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


protocolUpdated = protocolDetected
