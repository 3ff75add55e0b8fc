"""Reads nDPI's JSON about a flow into `Facts`. Passwords are in that text: it is not logged nor kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from nedge.core.facts import Facts

# As ndpi_ssl_version2str writes them. The number is the one on the wire.
_TLS_VERSIONS = {"SSLv3": 0x0300, "TLSv1": 0x0301, "TLSv1.0": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303}
_TLS_VERSIONS |= {"TLSv1.3": 0x0304}
_NO_CIPHER = "TLS_NULL_WITH_NULL_NULL"  # cipher suite 0: nDPI has seen no ServerHello


CERTIFICATE = b'"fingerprint":'
"""Is in the JSON of a flow whose certificate was seen."""


def read_facts(text: bytes, hostname: str, dates: tuple[int, ...] = (0, 0)) -> tuple[Facts, bool]:
    """Facts in nDPI's JSON, and whether that was well-formed; if not, the host name is all there is.

    Up to 4.4 a protocol's block is at the top and repeats the host name, from 4.5 on it is inside "ndpi" and
    does not. Only the `dates` of certificates are missing from the JSON.
    """
    try:
        root = _parse(text)
    except ValueError:
        return Facts(hostname=hostname), False
    root = root if isinstance(root, dict) else {}
    inner = _block(root, "ndpi")
    facts = Facts(hostname=hostname)
    for name, read in _READERS.items():
        if name in inner:
            read(facts, _block(inner, name))
        elif name in root:
            read(facts, _block(root, name))
    if facts.cert_sha1:
        facts.cert_not_before, facts.cert_not_after = dates
    return facts, True


def _parse(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        # Bytes from the wire: not always UTF-8, and control characters come unescaped.
        return json.loads(text.decode(errors="replace"), strict=False)


def _block(parent: Any, name: str) -> Mapping[str, Any]:
    value = parent.get(name) if isinstance(parent, dict) else None
    return value if isinstance(value, dict) else {}


def _text(block: Mapping[str, Any], *names: str) -> str:
    """The first of these that is there; names change between releases."""
    for name in names:
        value = block.get(name)
        if value and isinstance(value, str):
            return value
    return ""


def _number(block: Mapping[str, Any], name: str) -> int:
    value = block.get(name)
    return value if isinstance(value, int) else 0


def _tls(facts: Facts, block: Mapping[str, Any]) -> None:
    facts.tls_version = _TLS_VERSIONS.get(_text(block, "version"), 0)
    facts.tls_sni = _text(block, "client_requested_server_name").lower() or facts.hostname
    facts.tls_alpn = _text(block, "advertised_alpns", "alpn")
    facts.ja3 = _text(block, "ja3")
    facts.ja3s = _text(block, "ja3s")
    facts.ja4 = _text(block, "ja4")
    cipher = _text(block, "cipher")
    facts.tls_cipher = "" if cipher == _NO_CIPHER else cipher
    facts.cert_issuer = _text(block, "issuerDN")
    facts.cert_subject = _text(block, "subjectDN")
    names = _text(block, "server_names")
    facts.cert_names = tuple(names.split(",")) if names else ()
    facts.cert_sha1 = _text(block, "fingerprint").replace(":", "").lower()


def _quic(facts: Facts, block: Mapping[str, Any]) -> None:
    _tls(facts, _block(block, "tls") or block)


def _http(facts: Facts, block: Mapping[str, Any]) -> None:
    facts.http_url = _text(block, "url")
    facts.http_method = _text(block, "method")
    facts.http_code = _number(block, "code")
    facts.http_user_agent = _text(block, "user_agent")
    facts.http_content_type = _text(block, "content_type")


def _dns(facts: Facts, block: Mapping[str, Any]) -> None:
    facts.dns_query = _text(block, "query").lower() or facts.hostname
    facts.dns_query_type = _number(block, "query_type")
    facts.dns_reply_code = _number(block, "reply_code")


def _ssh(facts: Facts, block: Mapping[str, Any]) -> None:
    facts.ssh_client = _text(block, "client_signature")
    facts.ssh_server = _text(block, "server_signature")
    facts.hassh_client = _text(block, "hassh_client").lower()
    facts.hassh_server = _text(block, "hassh_server").lower()


_READERS = {"tls": _tls, "quic": _quic, "http": _http, "dns": _dns, "ssh": _ssh}
