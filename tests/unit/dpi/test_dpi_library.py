from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nedge.dpi import DpiError, Library, load_library, selftest
from nedge.dpi import library as library_module
from nedge.dpi.library import require_abi

ROOT = Path(__file__).parents[3]


def test_library_tells_where_and_what_it_is(library: Library) -> None:
    assert Path(library.path).is_file()
    assert library.version.startswith(".".join(map(str, library.abi.release)))


def test_library_by_path(library: Library) -> None:
    assert load_library(library.path).version == library.version


def test_nfstream_is_not_imported(choice: str) -> None:
    load = f"from nedge.dpi import load_library; load_library({choice!r})"
    code = f"import sys; {load}; print('nfstream' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert told.stdout == "False\n"


@pytest.mark.parametrize(
    "version", ["3.4.0", "4.1.0", "4.3.0-1-9c8a3f2", "5.2.0", "6.0.0-5000-abc", "", "nonsense"]
)
def test_unknown_release_is_refused(version: str) -> None:
    with pytest.raises(
        DpiError, match=r"^nDPI .* at /x/libndpi\.so is not supported, only 4\.2.*apt install.*\.$"
    ) as caught:
        require_abi(version, "/x/libndpi.so")
    assert version in str(caught.value)


@pytest.mark.parametrize("version", ["4.2.0", "4.4.0", "4.8.0-4500-abc", "4.10.0", "4.14", "5.0.0-1-375f99e"])
def test_known_release_is_taken(version: str) -> None:
    assert require_abi(version, "/x").release


@pytest.mark.parametrize("wanted", ["auto", "system", "nfstream"])
def test_missing_library_says_what_to_install(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "_SYSTEM_NAMES", ("libndpi-missing.so",))
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(library_module, "_nfstream_objects", lambda: iter(()))
    with pytest.raises(DpiError, match=r"not found.*apt install libndpi4\.2.*pip install nedge\[ndpi5\]"):
        load_library(wanted)


def test_auto_falls_back_to_the_wheel(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    monkeypatch.setattr(library_module, "_SYSTEM_NAMES", ())
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(library_module, "_nfstream_objects", lambda: iter([library.path]))
    assert load_library("auto").version == library.version


def test_a_library_that_is_not_ndpi() -> None:
    libc = ctypes.util.find_library("c")
    assert libc
    with pytest.raises(DpiError, match="is not nDPI"):
        load_library(libc)


def test_selftest(choice: str, library: Library) -> None:
    passed = selftest.check(choice)
    assert (passed.version, passed.path) == (library.version, library.path)
    assert passed.risk_offset > 0
    assert passed.certificate_dates


def test_selftest_of_no_file() -> None:
    with pytest.raises(DpiError, match=r"cannot be loaded from /no/such/libndpi\.so"):
        selftest.check("/no/such/libndpi.so")


def test_selftest_of_a_file_that_is_no_library(tmp_path: Path) -> None:
    bogus = tmp_path / "libndpi.so"
    bogus.write_bytes(b"not a shared object")
    with pytest.raises(DpiError, match="cannot be loaded from"):
        selftest.check(str(bogus))


@pytest.mark.parametrize(("status", "words"), [(-11, "crashed with SIGSEGV"), (3, "ended with status 3")])
def test_selftest_that_dies(status: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = json.dumps({"library": "nDPI 9.9 at /x", "step": "TLS"}) + "\n"
    died = subprocess.CompletedProcess([], status, said, "")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: died)
    with pytest.raises(DpiError, match=rf"^nDPI 9\.9 at /x {words} in its self-test \(TLS\)\.$"):
        selftest.check("auto")


def test_selftest_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*arguments: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("x", 10, output=b'{"library": "nDPI 9.9 at /x", "step": "DNS"}\n')

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DpiError, match=r"did not answer within 10 s in its self-test \(DNS\)"):
        selftest.check("auto")


def test_selftest_notices_a_wrong_answer(
    choice: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selftest.samples, "DNS_NAME", "other.example")
    monkeypatch.setattr(selftest.samples, "dns_query", selftest.samples.http_request)
    assert selftest._main(choice) == 1
    assert "failed its self-test (DNS): the protocol is 'HTTP' instead of 'DNS'" in capfd.readouterr().out


def test_random_packets_do_not_crash(choice: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("dpi_fuzz.py")), choice],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
