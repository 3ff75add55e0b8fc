"""The `nedge` command as users run it: what it prints where, and its exit status.

0 done; 1 the thing failed; 2 wrong usage or configuration. Results go to standard output, all else
to standard error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from kit import CLIENT6, SERVER6, Tcp, Udp, client_hello, dns, dns_query, http_request, merge, write_pcap
from support import require
from test_eve import check_contract

from nedge.cli import main

NEDGE = [sys.executable, "-m", "nedge"]
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
"""As any user: root without a capability. (Another user may be unable to read this very Python.)"""


@dataclass
class Done:
    status: int
    out: str
    err: str

    def check(self, status: int, *parts: str) -> None:
        """The status is this, what is said has these parts, and there is no traceback."""
        assert "Traceback" not in self.err, self.err
        assert (self.status, [part for part in parts if part not in self.err]) == (status, []), self.err


def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> Done:
    """The same within this process, which is quicker: for what fails before anything is done."""
    monkeypatch.setattr(sys, "argv", ["nedge", *map(str, arguments)])
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        structlog.reset_defaults()  # logging is bound to this test's standard error
    out, err = capfd.readouterr()
    assert isinstance(end.value.code, int)
    return Done(end.value.code, out, err)


def run(*arguments: str | Path, prefix: tuple[str, ...] = (), cwd: Path | None = None) -> Done:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [*prefix, *NEDGE, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env=environment,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def shell(command: str, **variables: str | Path) -> Done:
    """A command line, with {nedge} and others in it."""
    words = {"nedge": " ".join(NEDGE)} | {name: str(value) for name, value in variables.items()}
    done = subprocess.run(
        ["bash", "-c", command.format(**words)], capture_output=True, text=True, timeout=120, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four flows: HTTP, TLS over IPv6, two times DNS."""
    packets = merge(
        Tcp(dport=80).handshake().client(http_request("www.example.com")).fin().packets,
        Tcp(CLIENT6, SERVER6, sport=41000).handshake().client(client_hello("secure.example.com")).packets,
        dns("bad.example", sport=42000).packets,
        dns("good.example", sport=43000).packets,
    )
    return write_pcap(tmp_path_factory.mktemp("captures") / "four.pcap", packets)


@pytest.fixture
def config(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "nedge.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def policies(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Writes a script into a directory of its own; gives the directory."""

    def write(text: str, name: str = "mine.py") -> Path:
        directory = tmp_path / "policies"
        directory.mkdir(exist_ok=True)
        (directory / name).write_text(text)
        return directory

    return write


BLOCK_BAD = """
from nedge.scripts import *

def protocolDetected(flow, now, conf):
    if flow.getHostName() == "bad.example":
        flow.triggerStatus(status_types.status_web_mining_detected, None, 100, 0, 0)
"""

# Replay


def test_replay_for_people(capture: Path, policies) -> None:  # type: ignore[no-untyped-def]
    done = run("replay", capture, "--policies", policies(BLOCK_BAD))
    done.check(0)
    for part in (
        "www.example.com", "secure.example.com", "bad.example", "good.example", "TLS", "HTTP", "DNS",
        "192.168.1.10:40000", "[2001:db8::5]:443", "web_mining_detected", "flow_score: 100 >= 100",
        "4 flows: 3 pass, 1 drop", "15 frames: 15 IP packets (2 dropped), 0 not IP",
    ):  # fmt: skip
        assert part in done.out, done.out
    (row,) = [line for line in done.out.splitlines() if "bad.example" in line]
    assert "drop" in row
    assert done.err == ""
    assert "\x1b" not in done.out  # no colours into a pipe


def test_replay_json(capture: Path, policies) -> None:  # type: ignore[no-untyped-def]
    done = run("replay", capture, "--policies", policies(BLOCK_BAD), "--json")
    done.check(0)
    assert done.err == ""
    events = [json.loads(line) for line in done.out.splitlines()]
    assert len(events) == 4
    for event in events:
        check_contract(event)
    by_name = {event["ndpi"]["hostname"]: event for event in events}
    assert by_name["bad.example"]["nedge"]["verdict"] == "drop"
    assert by_name["bad.example"]["nedge"]["dropped_packets"] == 2
    assert by_name["secure.example.com"]["src_ip"] == CLIENT6
    assert by_name["secure.example.com"]["ndpi"]["tls_version"]
    assert {event["nedge"]["verdict"] for event in events} == {"pass", "drop"}


def test_replay_by_configuration(capture: Path, config) -> None:  # type: ignore[no-untyped-def]
    path = config('lists.malware_domains = ["names"]\n')
    (path.parent / "names").write_text("bad.example\n")
    done = run("replay", capture, "--config", path, "--json")
    done.check(0)
    events = {(event := json.loads(line))["ndpi"]["hostname"]: event for line in done.out.splitlines()}
    assert events["bad.example"]["nedge"]["status"] == ["status_blacklisted", "status_blocked"]
    assert events["good.example"]["nedge"]["verdict"] == "pass"


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_broken_capture(capture: Path, tmp_path: Path, option: list[str]) -> None:
    """The flows before the break are printed; then it is said."""
    path = tmp_path / "cut.pcap"
    path.write_bytes(capture.read_bytes()[:-7])
    done = run("replay", path, *option)
    done.check(1, f"nedge: {path}: broken after frame 14: the file ends inside a frame")
    assert len(done.err.splitlines()) == 1
    assert "bad.example" in done.out
    assert len(done.out.splitlines()) == 4 if option else "4 flows: 4 pass" in done.out


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 1, "is empty, not a pcap or pcapng capture"),
        (b"just a text\n", 1, "is not a pcap or pcapng capture"),
        (None, 2, "no such file"),
    ],
)
def test_no_capture(tmp_path: Path, content: bytes | None, status: int, said: str) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    done = run("replay", path)
    done.check(status, f"nedge: {path}: {said}")
    assert len(done.err.splitlines()) == 1


def test_directory_as_capture(tmp_path: Path) -> None:
    run("replay", tmp_path).check(2, f"nedge: {tmp_path}: is a directory")


def test_capture_through_a_pipe(capture: Path) -> None:
    done = shell("{nedge} replay --json <(cat {capture})", capture=capture)
    done.check(0)
    assert len(done.out.splitlines()) == 4


def test_unreadable_capture(capture: Path, tmp_path: Path) -> None:
    require(os.geteuid() == 0 and shutil.which("setpriv"), "root and setpriv")
    path = tmp_path / "secret.pcap"
    shutil.copy(capture, path)
    path.chmod(0)
    run("replay", path, prefix=POWERLESS).check(2, str(path), "is not readable")


@pytest.mark.parametrize("option", ["", "--json"])
def test_reader_that_has_had_enough(capture: Path, option: str) -> None:
    done = shell(
        "set -o pipefail; {nedge} replay {option} {capture} | head -1", capture=capture, option=option
    )
    assert done.err == ""
    assert len(done.out.splitlines()) == 1


def test_reader_that_is_gone(capture: Path) -> None:
    done = shell("{nedge} replay --json {capture} | sleep 0", capture=capture)
    assert done.err == ""


@pytest.mark.parametrize("option", ["", "--json"])
def test_full_disk(capture: Path, option: str) -> None:
    done = shell("{nedge} replay {option} {capture} > /dev/full", capture=capture, option=option)
    done.check(1, "No space left on device")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("option", ["", "--json"])
def test_closed_output(capture: Path, option: str) -> None:
    """Either the thing failed, or there was nobody to print for: in any case no traceback."""
    done = shell("{nedge} replay {option} {capture} >&-", capture=capture, option=option)
    assert "Traceback" not in done.err, done.err
    assert done.status in (0, 1)


# Configuration


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "[gateway]\nmod = 'x'",
            ["gateway.mod: unknown key; allowed here are mode,", "did you mean 'mode'?"],
        ),
        ("[gateway]\nmode = 'x'", ["gateway.mode: found 'x'; allowed is 'inline' or 'monitor'"]),
        ("[verdict]\ndrop_score = []", ["verdict.drop_score: found []; allowed is a valid integer"]),
        ("[gateway", ["not valid TOML: "]),
        ("[lists]\nmalware_hosts = ['none']", ["list ", "none: cannot be read: No such file"]),
        ("[geoip]\ncountry_database = 'none'", ["geoip.country_database: ", "cannot be used"]),
        ("[scripts]\ndirectories = ['none']", ["none: no such directory of scripts"]),
        (
            "[scripts.nothing]\nx = 1",
            ["[scripts.nothing]: settings for a script that does not exist; found: "],
        ),
        (
            "[scripts.longlived]\nenabled = 3",
            ["[scripts.longlived] enabled: found 3; allowed is true or false"],
        ),
        ("[scripts]\nlonglived = false", ["scripts.longlived", "False", "table"]),
    ],
)
def test_wrong_configuration(capture: Path, config, monkeypatch, capfd, text: str, parts: list[str]) -> None:  # type: ignore[no-untyped-def]
    done = here(monkeypatch, capfd, "replay", capture, "--config", config(text))
    done.check(2, *parts)
    assert done.out == ""
    assert all(line.startswith("nedge: ") for line in done.err.splitlines()), done.err


def test_missing_configuration(capture: Path, tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    done = run("replay", capture, "--config", path)
    done.check(2, f"nedge: {path}: cannot be read: No such file or directory")


@pytest.mark.parametrize("arguments", [["replay"], ["nonsense"], ["replay", "x", "--nonsense"]])
def test_wrong_usage(arguments: list[str], monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    here(monkeypatch, capfd, *arguments).check(2)


def test_missing_library(capture: Path, config) -> None:  # type: ignore[no-untyped-def]
    path = config('[dpi]\nlibrary = "/nonexistent.so"')
    for command in (["replay", capture], ["check"]):
        done = run(*command, "--config", path)
        done.check(1, "/nonexistent.so")
        assert len(done.err.splitlines()) == 1
        assert done.out == ""


def test_library_that_is_no_ndpi(capture: Path, config) -> None:  # type: ignore[no-untyped-def]
    import _ctypes

    path = config(f'[dpi]\nlibrary = "{_ctypes.__file__}"')
    run("replay", capture, "--config", path).check(1, "is not nDPI")


# Scripts


def test_script_with_a_syntax_error(capture: Path, policies) -> None:  # type: ignore[no-untyped-def]
    directory = policies("x = 1\ndef protocolDetected(flow, now, conf)\n    pass\n")
    for command in (["replay", capture], ["check"]):
        done = run(*command, "--policies", directory)
        done.check(2, f"nedge: {directory}/mine.py:2: ")
        assert done.out == ""


def test_script_that_raises_while_loading(capture: Path, policies) -> None:  # type: ignore[no-untyped-def]
    directory = policies("import os\n\nnothing.there()\n")
    run("replay", capture, "--policies", directory).check(2, f"{directory}/mine.py:3: ", "NameError")


def test_script_that_raises_in_a_hook(capture: Path, policies) -> None:  # type: ignore[no-untyped-def]
    """The replay goes on; the error is counted, and said with the place."""
    directory = policies("def protocolDetected(flow, now, conf):\n    1 / 0\n")
    policies(BLOCK_BAD, "other.py")
    done = run("replay", capture, "--policies", directory)
    done.check(0, "ZeroDivisionError", "mine.py:2", "mine")
    assert "4 script errors" in done.out
    assert "4 flows: 3 pass, 1 drop" in done.out
    entry = json.loads(done.err.splitlines()[0])
    assert (entry["level"], entry["script"], entry["hook"]) == ("error", "mine", "protocolDetected")


def test_what_scripts_print_is_no_result(capture: Path, policies) -> None:  # type: ignore[no-untyped-def]
    """Logs go to standard error only. (A print of a script is its author's own doing: not tested.)"""
    directory = policies("def nothing(): pass\n")  # no hook: skipped with a warning
    done = run("replay", capture, "--policies", directory, "--json")
    done.check(0, "script_skipped", "mine")
    assert all(json.loads(line)["event_type"] == "flow" for line in done.out.splitlines())


# Check


def test_check(config) -> None:  # type: ignore[no-untyped-def]
    path = config("[verdict]\ndrop_score = 5\n")
    done = run("check", "--config", path)
    done.check(0)
    assert f"configuration: ok ({path})" in done.out
    assert "nDPI: ok (" in done.out
    assert "script blacklisted: ok (hooks: " in done.out


def test_check_of_the_example() -> None:
    example = Path(__file__).parents[2] / "deploy" / "nedge.toml"
    run("check", "--config", example).check(0)


def test_check_tells_all_problems(config) -> None:  # type: ignore[no-untyped-def]
    done = run("check", "--config", config("a = 1\n[gateway]\nqueue = -1\nmode = 3\n"))
    done.check(2, "a: unknown key", "gateway.queue", "gateway.mode")
    assert len(done.err.splitlines()) == 3


def test_help() -> None:
    done = run("--help")
    done.check(0)
    for command in ("replay", "run", "check", "lab"):
        assert command in done.out
    assert run().status in (0, 2)  # no command: its help


# Run, where it cannot


def test_run_without_root(config) -> None:  # type: ignore[no-untyped-def]
    require(os.geteuid() == 0 and shutil.which("setpriv"), "root and setpriv")
    done = run("run", prefix=POWERLESS, cwd=Path("/"))
    done.check(1, "nedge run needs root", "sudo")
    assert done.out == ""


def test_run_without_such_an_interface(config) -> None:  # type: ignore[no-untyped-def]
    require(os.geteuid() == 0, "root")
    path = config('[gateway]\nbridge = "nedgetest0"\nlan = ["nosuchif0"]\nwan = ["nosuchif1"]\n')
    # In a network namespace of its own: nothing of the machine can be touched.
    require(
        subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode == 0,
        "unshare",
    )
    done = run("run", "--config", path, prefix=("unshare", "--net"))
    done.check(1, "nosuchif0")


def test_run_without_interfaces(config) -> None:  # type: ignore[no-untyped-def]
    require(os.geteuid() == 0, "root")
    done = run("run", "--config", config('[gateway]\nbridge = "nedgetest0"\n'), prefix=("unshare", "--net"))
    done.check(1, "gateway.lan", "gateway.wan")


def test_run_with_wrong_configuration(config) -> None:  # type: ignore[no-untyped-def]
    run("run", "--config", config("[gateway]\nmode = 'x'")).check(2, "gateway.mode: found 'x'")


def test_run_with_an_event_file_that_cannot_be_written(config) -> None:  # type: ignore[no-untyped-def]
    require(os.geteuid() == 0, "root")
    path = config(
        '[eve]\npath = "none/eve.json"\n[gateway]\nbridge = "nedgetest0"\nlan = ["na0"]\nwan = ["nb0"]\n'
    )
    links = 'ip link add na0 type veth peer name nb0 && exec "$@"'
    done = run("run", "--config", path, prefix=("unshare", "--net", "sh", "-c", links, "sh"))
    done.check(2, "eve.path: ", "none/eve.json: cannot be written: No such file or directory")


def test_replay_of_odd_names(tmp_path: Path) -> None:
    """Names off the wire are text, wherever they are printed."""
    evil = Udp().client(dns_query([b"\x1b[2J[bold]", b"\xff\xfe", b"a\nb"])).packets
    path = write_pcap(tmp_path / "x.pcap", evil)
    done = run("replay", path)
    done.check(0)
    assert "\x1b" not in done.out
    (event,) = [json.loads(line) for line in run("replay", path, "--json").out.splitlines()]
    assert event["ndpi"]["hostname"] == "?[2j[bold].??.a?b"


def test_commands_that_look_load_little(tmp_path: Path) -> None:
    """They start many times a day, beside a gateway that has work to do."""
    ask = (
        "import sys\nfrom nedge.cli import main\ntry:\n    main()\nfinally:\n    print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask, "flows", "--socket", tmp_path / "none"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "no gateway is running" in done.stderr
    loaded = set(done.stdout.split())
    assert "nedge.control.client" in loaded
    assert not loaded & {"structlog", "urllib3", "asyncio", "nedge.config", "nedge.dpi"}
