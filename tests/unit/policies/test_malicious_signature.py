from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from nedge.testing import (
    Bench,
    Packet,
    ScriptError,
    SeenFlow,
    Tcp,
    client_hello,
    dns,
    http_request,
    load_script,
    ping,
    tls,
)

GREASE = {n << 8 | n for n in range(0x0A, 0x100, 0x10)}
SNI, GROUPS, POINT_FORMATS, SIGNATURES, ALPN, VERSIONS = 0, 10, 11, 13, 16, 43


class Hello:
    """What fingerprints are made of, read from a ClientHello record."""

    def __init__(self, record: bytes) -> None:
        data = record[9:]  # record and handshake headers
        self.version = int.from_bytes(data[:2])
        at = 34 + 1 + data[34]
        self.ciphers = self._numbers(data[at + 2 : at + 2 + int.from_bytes(data[at : at + 2])])
        at += 2 + int.from_bytes(data[at : at + 2])
        at += 1 + data[at] + 2
        self.extensions: dict[int, bytes] = {}
        while at < len(data):
            kind, size = int.from_bytes(data[at : at + 2]), int.from_bytes(data[at + 2 : at + 4])
            self.extensions[kind] = data[at + 4 : at + 4 + size]
            at += 4 + size

    @staticmethod
    def _numbers(data: bytes) -> list[int]:
        numbers = [int.from_bytes(data[n : n + 2]) for n in range(0, len(data), 2)]
        return [number for number in numbers if number not in GREASE]

    def list16(self, kind: int) -> list[int]:
        return self._numbers(self.extensions.get(kind, b"\0\0")[2:])

    def ja3(self) -> str:
        kinds = [kind for kind in self.extensions if kind not in GREASE]
        formats = list(self.extensions.get(POINT_FORMATS, b"\0")[1:])
        fields = (self.ciphers, kinds, self.list16(GROUPS), formats)
        text = ",".join([str(self.version), *("-".join(map(str, field)) for field in fields)])
        return hashlib.md5(text.encode()).hexdigest()

    def ja4(self) -> str:
        kinds = [kind for kind in self.extensions if kind not in GREASE]
        versions = (
            self._numbers(self.extensions[VERSIONS][1:]) if VERSIONS in self.extensions else [self.version]
        )
        version = {0x0304: "13", 0x0303: "12"}[max(versions)]
        alpn = self.extensions[ALPN][3 : 3 + self.extensions[ALPN][2]].decode()
        first = f"t{version}d{len(self.ciphers):02}{len(kinds):02}{alpn[0]}{alpn[-1]}"
        ciphers = ",".join(sorted(f"{cipher:04x}" for cipher in self.ciphers))
        others = ",".join(sorted(f"{kind:04x}" for kind in kinds if kind not in (SNI, ALPN)))
        signatures = ",".join(f"{number:04x}" for number in self.list16(SIGNATURES))
        parts = (ciphers, f"{others}_{signatures}")
        return "_".join([first, *(hashlib.sha256(part.encode()).hexdigest()[:12] for part in parts)])


HELLO = client_hello("example.com")


@pytest.fixture
def listed(library: str) -> str:
    """The fingerprint of HELLO, of the kind that the library has."""
    return Hello(HELLO).ja3() if library == "system" else Hello(HELLO).ja4()


def run(toml: str, library: str, packets: list[Packet] | None = None) -> Bench:
    packets = packets or Tcp().handshake().client(HELLO).packets
    script = load_script(
        "malicious_signature", config=f"[scripts.malicious_signature]\n{toml}", library=library
    )
    script.judge(packets)
    return script


def test_a_listed_signature_is_blocked(listed: str, library: str) -> None:
    judged = run(f'signatures = ["0123456789abcdef0123456789abcdef", "{listed}"]', library)
    assert judged.flow.statuses == ["status_malicious_signature"]
    assert judged.flow.scores == (100, 100, 5)
    assert judged.actions == ["pass"] * 3 + ["drop"]
    assert [list(alert.info.values()) for alert in judged.alerts] == [[listed]]


def test_in_any_case(listed: str, library: str) -> None:
    assert run(f'signatures = ["{listed.upper()}"]', library).flow.statuses == ["status_malicious_signature"]


CSV = [
    "{0}",
    "{0},2017-07-14 18:08:15,2019-07-27 20:42:54,Adware\n",
    "# ja3_md5,Firstseen,Lastseen,Listingreason\n0123456789abcdef0123456789abcdef,,,X\n{0},,,Y\n",
    'ja3_md5,Listingreason\r\n"{0}","Tofsee"\r\n',
    "  {0}  # a comment\n\n\n",
]


@pytest.mark.parametrize("text", CSV)
def test_files(text: str, listed: str, library: str, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text.format(listed))
    assert run(f'files = ["{path}"]', library).flow.statuses == ["status_malicious_signature"]


def test_files_in_any_case(listed: str, library: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{listed.upper()}\n")
    assert run(f'files = ["{tmp_path}/list"]', library).flow.statuses == ["status_malicious_signature"]


def test_the_lists_of_the_configuration(listed: str, library: str, tmp_path: Path) -> None:
    (tmp_path / "ja").write_text(f"{listed},2020-01-01,why\n")
    lists = f'[lists]\nmalware_fingerprints = ["{tmp_path}/ja"]\n'
    packets = Tcp().handshake().client(HELLO).packets

    def judged(packets: list[Packet], **settings: Any) -> SeenFlow:
        (flow,) = load_script("malicious_signature", settings=settings, config=lists, library=library).judge(
            packets
        )
        return flow

    flow = judged(packets)
    assert flow.statuses == ["status_malicious_signature"]
    assert flow.scores == (100, 100, 5)
    assert [list(alert.info.values()) for alert in flow.alerts] == [[listed]]
    assert judged(tls("1.0").packets).statuses == []
    assert judged(packets, signatures=[listed]).scores == (100, 100, 5)


def test_several_files_and_signatures(listed: str, library: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("aaaa\n")
    (tmp_path / "b").write_text(f"{listed}\n")
    toml = f'signatures = ["cccc"]\nfiles = ["{tmp_path}/a", "{tmp_path}/b"]'
    assert run(toml, library).flow.statuses == ["status_malicious_signature"]


def test_others_are_left_alone(listed: str, library: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"# {listed}\n0123456789abcdef0123456789abcdef,{listed}\n")
    for toml in ("", "signatures = []", 'signatures = ["abcd", ""]', f'files = ["{tmp_path}/list"]'):
        judged = run(toml, library)
        assert (judged.flow.statuses, judged.flow.scores, judged.flow.verdict) == ([], (0, 0, 0), "pass")


def test_what_has_no_fingerprint_matches_nothing(library: str) -> None:
    for packets in (
        ping(),
        dns("example.com").packets,
        Tcp(dport=80).handshake().client(http_request("a.example")).packets,
    ):
        assert run('signatures = ["", "x"]', library, packets).flow.statuses == []


def test_another_client_has_another_fingerprint(listed: str, library: str) -> None:
    assert run(f'signatures = ["{listed}"]', library, tls("1.0").packets).flow.statuses == []


def test_a_low_score_only_alerts(listed: str, library: str) -> None:
    judged = run(f'signatures = ["{listed}"]\nscore = 99', library)
    assert (len(judged.alerts), judged.flow.verdict) == (1, "pass")


def test_a_missing_file_is_a_counted_error(tmp_path: Path) -> None:
    script = load_script("malicious_signature", settings={"files": [f"{tmp_path}/none"]})
    with pytest.raises(ScriptError, match=r"malicious_signature\.py:\d+: FileNotFoundError: .*/none"):
        script.feed(Tcp().handshake().client(HELLO).packets)
    assert script.engine.counters.script_errors == 1
    assert script.flow.verdict == "pass"
