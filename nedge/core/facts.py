"""What deep packet inspection tells the core: classification and facts of a flow, and how it is asked.

The core knows the inspector only by the two protocols below; `nedge.dpi` implements them with nDPI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

DETECTED: Final = 0xFFFF << 16
"""The bits of a classification word that hold the application id: any of them is set once it is detected."""


class Classification(NamedTuple):
    """Names and ids for one classification word. Ids and names are nDPI's, of the loaded version."""

    master_id: int
    """Master protocol (TLS of TLS.Google); 0 where there is only one level."""
    app_id: int
    """Application protocol; 0 while undetected."""
    protocol: str
    """`Master.App`, or the one name there is; `Unknown` while undetected."""
    master: str
    """Name of the master protocol, empty where there is only one level."""
    app: str
    """Name of the application protocol; `Unknown` while undetected."""
    category_id: int
    category: str
    breed: str


UNKNOWN: Final = Classification(0, 0, "Unknown", "", "Unknown", 0, "Unspecified", "Unrated")


@dataclass(slots=True, init=False)
class Facts:
    """What was read in a flow's payload, beyond its protocol. Empty string, 0 or () where absent.

    Flows may share one: read only. No passwords: see `nedge.core.secrets`.
    """

    hostname: str = ""
    """The server's name as the client gave it: TLS or QUIC SNI, HTTP Host, DNS query. Lower case."""
    dns_query: str = ""
    """The latest name asked for."""
    dns_query_type: int = 0
    """Its type: 1 A, 28 AAAA, 65 HTTPS, …"""
    dns_reply_code: int = 0
    """Of the latest answer, over UDP: 0 fine, 3 no such name, …"""
    http_url: str = ""
    """Of the latest request: host and path."""
    http_method: str = ""
    http_code: int = 0
    """Of the answer: 200, 404, …; only if answers are looked at (`http_answers`)."""
    http_user_agent: str = ""
    http_content_type: str = ""
    """Of the answer; only if answers are looked at, and not told by nDPI 4.2."""
    tls_version: int = 0
    """As on the wire: 0x0301 (TLS 1.0) … 0x0304 (TLS 1.3)."""
    tls_sni: str = ""
    """SNI of TLS, or of QUIC."""
    tls_alpn: str = ""
    """Comma-separated, in the client's order."""
    tls_cipher: str = ""
    """What the server chose, by its IANA name: TLS_AES_128_GCM_SHA256."""
    ja3: str = ""
    """Fingerprint of the client: JA3 up to nDPI 4.14, JA4 from 4.10 on."""
    ja3s: str = ""
    """Fingerprint of the server."""
    ja4: str = ""
    cert_not_before: int = 0
    """Epoch seconds, UTC; 0 if no certificate was seen."""
    cert_not_after: int = 0
    cert_issuer: str = ""
    """As `O=Example Ltd, CN=Example CA`."""
    cert_subject: str = ""
    cert_names: tuple[str, ...] = ()
    """Names that the certificate is valid for."""
    cert_sha1: str = ""
    """Its fingerprint, 40 hexadecimal digits."""
    ssh_client: str = ""
    """What it says of itself: SSH-2.0-OpenSSH_9.2."""
    ssh_server: str = ""
    hassh_client: str = ""
    """Fingerprint of what the client offers (HASSH)."""
    hassh_server: str = ""

    # Written out, as a request on its way waits for it: a dataclass's own takes ten times as long.
    def __init__(
        self,
        *,
        hostname: str = "",
        dns_query: str = "",
        dns_query_type: int = 0,
        dns_reply_code: int = 0,
        http_url: str = "",
        http_method: str = "",
        http_code: int = 0,
        http_user_agent: str = "",
        http_content_type: str = "",
        tls_version: int = 0,
        tls_sni: str = "",
        tls_alpn: str = "",
        tls_cipher: str = "",
        ja3: str = "",
        ja3s: str = "",
        ja4: str = "",
        cert_not_before: int = 0,
        cert_not_after: int = 0,
        cert_issuer: str = "",
        cert_subject: str = "",
        cert_names: tuple[str, ...] = (),
        cert_sha1: str = "",
        ssh_client: str = "",
        ssh_server: str = "",
        hassh_client: str = "",
        hassh_server: str = "",
    ) -> None:
        self.hostname = hostname
        self.dns_query = dns_query
        self.dns_query_type = dns_query_type
        self.dns_reply_code = dns_reply_code
        self.http_url = http_url
        self.http_method = http_method
        self.http_code = http_code
        self.http_user_agent = http_user_agent
        self.http_content_type = http_content_type
        self.tls_version = tls_version
        self.tls_sni = tls_sni
        self.tls_alpn = tls_alpn
        self.tls_cipher = tls_cipher
        self.ja3 = ja3
        self.ja3s = ja3s
        self.ja4 = ja4
        self.cert_not_before = cert_not_before
        self.cert_not_after = cert_not_after
        self.cert_issuer = cert_issuer
        self.cert_subject = cert_subject
        self.cert_names = cert_names
        self.cert_sha1 = cert_sha1
        self.ssh_client = ssh_client
        self.ssh_server = ssh_server
        self.hassh_client = hassh_client
        self.hassh_server = hassh_server


class DpiFlow(Protocol):
    """Inspection state of one flow. `close()` it exactly once, as soon as nothing more is asked."""

    def feed(self, packet: bytes, time_ms: int) -> int:
        """Inspect one packet, from its IP header on, and give the classification word so far.

        Word: master id | application id << 16 | category id << 32. The application id is 0 until
        detection. All packets of one flow must share the L4 protocol. Time never goes back.
        """

    def more_possible(self) -> bool:
        """Whether further packets can still add facts or refine the protocol (extra dissection)."""

    def give_up(self) -> int:
        """End detection, guessing where possible (by port, by address); gives the final word."""

    def hostname(self) -> str:
        """The server name seen so far, lower case (nDPI keeps the last 79 characters), or ""."""

    def risks(self) -> int:
        """nDPI's 64-bit flow risk bitmap."""

    def facts(self) -> Facts:
        """All facts seen so far. Costs microseconds: ask once, when they are complete."""

    def http_answer(self) -> tuple[int, str] | None:
        """Status code (0: none yet) and content type of the latest HTTP response.

        Cheaper than `facts`. None: ask that instead.
        """

    def close(self) -> None:
        """Free the state."""


class Classifier(Protocol):
    """One inspection module, with its own memory. Never shared between threads."""

    version: str

    def open(self) -> DpiFlow:
        """Fresh inspection state for a flow."""

    def describe(self, word: int) -> Classification:
        """Names for a word. Cheap: answers are kept."""

    def protocol_id(self, name: str) -> int | None:
        """The id of a protocol by its name, in any case; None if this version has none of that name."""

    def risk_names(self, risks: int) -> list[str]:
        """Names of the bits set in a risk bitmap."""
