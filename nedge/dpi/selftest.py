"""Try a library in a child process before using it: with a wrong calling convention it crashes, or lies.

    python -m nedge.dpi.selftest auto

prints one JSON object a line: which library it is, each step before it is taken, and the outcome.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from nedge import interpreter
from nedge.core.facts import Facts
from nedge.dpi import samples
from nedge.dpi.classifier import NdpiClassifier
from nedge.dpi.library import DpiError, load_library

_TIMEOUT = 10.0  # seconds; it takes a fifth of one
# Bits of ndpi_risk_enum, the same in all releases (ndpi_typedefs.h).
_RISK_NON_STANDARD_PORT, _RISK_NUMERIC_HOST = 5, 12


@dataclass(frozen=True, slots=True)
class SelfTest:
    """A library that works."""

    version: str
    path: str
    risk_offset: int
    """Where a flow's risk bitmap was found."""
    certificate_dates: bool
    """Whether dates of certificates can be read."""


def check(choice: str) -> SelfTest:
    """Test the library that `load_library(choice)` gives; `DpiError` says in one sentence what is wrong."""
    try:
        child = subprocess.run(
            interpreter.module("nedge.dpi.selftest", choice),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            env=interpreter.environment(),
            check=False,
        )
        output, status = child.stdout, child.returncode
    except subprocess.TimeoutExpired as expired:
        output, status = (expired.stdout or b"").decode(errors="replace"), None
    said: dict[str, Any] = {}
    for line in output.splitlines():
        said.update(json.loads(line))
    if "error" in said:
        raise DpiError(said["error"])
    if status == 0 and "passed" in said:
        return SelfTest(**said["passed"])
    library = said.get("library", f"nDPI ({choice})")
    raise DpiError(f"{library} {_ending(status)} in its self-test ({said.get('step', 'loading')}).")


def _ending(status: int | None) -> str:
    if status is None:
        return f"did not answer within {_TIMEOUT:.0f} s"
    if status < 0:
        return f"crashed with {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _main(choice: str) -> int:
    try:
        library = load_library(choice)
        _say(library=str(library), step="starting")
        classifier = NdpiClassifier(library)
        for step, problems in _steps(classifier):
            _say(step=step)
            if problem := next(problems(), None):
                raise DpiError(f"{library} failed its self-test ({step}): {problem}.")
        _say(step="closing")
        dates = classifier.has_certificate_dates
        passed = SelfTest(library.version, library.path, classifier.risk_offset, dates)
        classifier.close()
    except DpiError as error:
        _say(error=str(error))
        return 1
    _say(passed=asdict(passed))
    return 0


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _steps(classifier: NdpiClassifier) -> Iterator[tuple[str, Callable[[], Iterator[str]]]]:
    yield "HTTP", lambda: _http(classifier)
    yield "DNS", lambda: _dns(classifier)
    yield "TLS", lambda: _tls(classifier)
    yield "giving up", lambda: _guess(classifier)


def _http(classifier: NdpiClassifier) -> Iterator[str]:
    protocol, facts, risks = _inspect(classifier, samples.http_request(8080))
    yield from _differs("protocol", protocol, "HTTP")
    yield from _differs("host name", facts.hostname, samples.HTTP_HOST)
    yield from _differs("user agent", facts.http_user_agent, samples.HTTP_USER_AGENT)
    for bit in (_RISK_NON_STANDARD_PORT, _RISK_NUMERIC_HOST):
        yield from _differs(f"risk {bit}", risks >> bit & 1, 1)


def _dns(classifier: NdpiClassifier) -> Iterator[str]:
    protocol, facts, _ = _inspect(classifier, samples.dns_query())
    yield from _differs("protocol", protocol, "DNS")
    yield from _differs("query", facts.dns_query, samples.DNS_NAME)
    yield from _differs("query type", facts.dns_query_type, samples.DNS_TYPE_AAAA)


def _tls(classifier: NdpiClassifier) -> Iterator[str]:
    protocol, facts, _ = _inspect(classifier, samples.tls_certificate())
    yield from _differs("protocol", protocol, "TLS")
    yield from _differs("server name", facts.tls_sni, samples.TLS_NAME)
    yield from _differs("ALPN", facts.tls_alpn, "h2,http/1.1")
    yield from _differs("certificate names", facts.cert_names, (samples.TLS_NAME,))


def _guess(classifier: NdpiClassifier) -> Iterator[str]:
    flow = classifier.open()
    for packet in samples.tcp_request(22, b"\x99"):
        flow.feed(packet, 1)
    yield from _differs("guess by port", classifier.describe(flow.give_up()).protocol, "SSH")
    flow.close()


def _inspect(classifier: NdpiClassifier, packets: list[bytes]) -> tuple[str, Facts, int]:
    """Protocol, facts and risks of a conversation."""
    flow = classifier.open()
    word = 0
    for packet in packets:
        word = flow.feed(packet, 1)
    found = classifier.describe(word).protocol, flow.facts(), flow.risks()
    flow.close()
    return found


def _differs(what: str, found: object, expected: object) -> Iterator[str]:
    if found != expected:
        yield f"the {what} is {found!r} instead of {expected!r}"


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1] if len(sys.argv) > 1 else "auto"))
