"""Short names of risks against what nDPI itself says of their numbers."""

from __future__ import annotations

import re

import pytest
from kit import require_library

from nedge.core.risks import RISKS
from nedge.dpi import NdpiClassifier, load_library

SAMPLES = {  # words in nDPI's own name, in any release
    "xss": "xss",
    "sql_injection": "sql",
    "binary_transfer": "binary app",
    "nonstandard_port": "on non",
    "selfsigned_certificate": "self-signed",
    "weak_cipher": "weak tls cipher",
    "certificate_mismatch": "mismatch",
    "suspicious_user_agent": "user-agent",
    "numeric_host": "numeric",
    "missing_sni": "missing sni",
    "malicious_certificate": "sha1",
    "uncommon_alpn": "alpn",
    "cleartext_credentials": "clear-text",
    "exploit": "exploit",
    "expiring_certificate": "about to expire",
}
NEWER = {"idn_domain": "idn", "periodic": "periodic", "malware_host": "malware", "obfuscated": "obfuscated"}


@pytest.mark.parametrize("library", ["system", "nfstream"])
def test_numbers_mean_what_their_names_say(library: str) -> None:
    classifier = NdpiClassifier(load_library(require_library(library)))
    new = NEWER if classifier.version.startswith("5") else {}
    for name, words in (SAMPLES | new).items():
        (said,) = classifier.risk_names(1 << RISKS[name])
        assert words in said.lower(), name
    for name, number in RISKS.items():
        (said,) = classifier.risk_names(1 << number)
        assert (not said.isdigit()) or number >= 42, name
    classifier.close()


def test_names_and_numbers_are_used_once() -> None:
    assert len(set(RISKS.values())) == len(RISKS)
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in RISKS)
    assert set(range(1, 57)) - set(RISKS.values()) == {21}


@pytest.mark.parametrize("library", ["system", "nfstream"])
def test_categories_of_protocols(library: str) -> None:
    classifier = NdpiClassifier(load_library(require_library(library)))
    number = classifier.protocol_id
    for names, category in ((("TLS",), "Web"), (("SSH",), "RemoteAccess"), (("TLS", "YouTube"), "Media")):
        app, master = number(names[-1]) or 0, number(names[0]) or 0
        found = classifier.category_of(master if len(names) > 1 else 0, app)
        assert found == classifier.category_id(category), names
    classifier.close()
