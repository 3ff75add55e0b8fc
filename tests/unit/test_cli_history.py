"""`nedge history`."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from kit import Tcp, dns, http_request, http_response, judge, merge
from test_cli import Done, here, run

from nedge.export.cli import moment
from nedge.export.eve import to_json
from nedge.export.history import History
from nedge.export.questions import QUESTIONS


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose history has two flows of this hour."""
    web = Tcp(dport=80, start=time.time() - 60).handshake().client(http_request("www.good.example"))
    block = '[scripts.blocked_hostname]\ndomains = ["bad.example"]'
    packets = merge(
        web.server(http_response()).packets, dns("[b]bad.example", start=time.time() - 50).packets
    )
    judged = judge([*packets, *dns("bad.example", sport=7, start=time.time() - 40).packets], block)
    history = History(tmp_path / "history.db", max_days=30, max_bytes=1 << 30)
    history.add(b"".join(to_json(event) for event in judged.events))
    history.close()
    path = tmp_path / "nedge.toml"
    path.write_text('[history]\npath = "history.db"\n')
    return path


def ask(monkeypatch, capfd, config: Path, *arguments: str) -> Done:  # type: ignore[no-untyped-def]
    return here(monkeypatch, capfd, "history", *arguments, "--config", config)


def test_flows_for_people(config: Path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    done = ask(monkeypatch, capfd, config)
    done.check(0)
    lines = done.out.splitlines()
    assert re.search(
        r"At +Client +Server +Proto +App +Host +Sent +Received +Verdict +Reason +Score", lines[1]
    )
    assert len([line for line in lines if "192.168.1.10" in line]) == 3
    assert "[b]bad.example" in done.out, "names are text"
    assert re.search(r"bad\.example .* drop +flow_score: 100 >= 100|bad\.example .* drop +status", done.out)


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question(config: Path, monkeypatch, capfd, question: str) -> None:  # type: ignore[no-untyped-def]
    done = ask(monkeypatch, capfd, config, question, "--json")
    done.check(0)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert bool(rows) == (question not in ("countries", "scores"))
    done = ask(monkeypatch, capfd, config, question)
    done.check(0)
    assert (done.out == "nothing\n") == (not rows)


def test_options(config: Path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    def names(*options: str) -> list[str]:
        done = ask(monkeypatch, capfd, config, "flows", "--json", *options)
        done.check(0)
        return [json.loads(line)["host"] for line in done.out.splitlines()]

    assert names() == ["bad.example", "[b]bad.example", "www.good.example"]
    assert names("--domain", "good.example") == ["www.good.example"]
    assert names("--verdict", "drop") == names("--script", "blocked_hostname") == ["bad.example"]
    assert names("--host", "192.168.1.10", "--limit", "1") == ["bad.example"]
    assert names("--host", "192.168.1.99") == []
    assert names("--until", "1h") == []
    assert len(names("--since", "1m")) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], ["none: no such question; allowed are flows, hosts"]),
        (["--since", "soon"], ["--since: found 'soon'; allowed is", "2025-12-31"]),
        (["--until", "24x"], ["--until: found '24x'"]),
        (["--host", "example.com"], ["--host: found 'example.com'; allowed is an IPv4 or IPv6 address"]),
        (["--verdict", "maybe"], ["--verdict: found 'maybe'; allowed is pass, drop or reject"]),
        (["--limit", "0"], ["--limit"]),
    ],
)
def test_wrong_usage(config: Path, monkeypatch, capfd, arguments, words) -> None:  # type: ignore[no-untyped-def]
    ask(monkeypatch, capfd, config, *arguments).check(2, *words)


def test_no_history(tmp_path: Path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "nedge.toml").write_text("")
    here(monkeypatch, capfd, "history", "--config", tmp_path / "nedge.toml").check(
        2, "history.path: is not set"
    )
    here(monkeypatch, capfd, "history").check(2, "history.path: is not set")
    here(monkeypatch, capfd, "history", "--file", tmp_path / "x.db").check(1, "x.db: there is no history yet")


def test_as_a_command(config: Path) -> None:
    done = run("history", "hosts", "--file", config.with_name("history.db"), "--json")
    done.check(0)
    (row,) = [json.loads(line) for line in done.out.splitlines()]
    assert (row["host"], row["flows"], row["blocked"]) == ("192.168.1.10", 3, 1)


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2025-06-15", 1_749_945_600),
        ("2025-06-15T15:06:40", 1_750_000_000),
        ("2025-06-15T15:06", 1_749_999_960),
        ("2025-06-15T17:06:40+02:00", 1_750_000_000),
    ],
)
def test_dates(text: str, when: float) -> None:
    assert moment(text, "--since") == when


@pytest.mark.parametrize(
    ("text", "ago"), [("30m", 1800), ("24h", 86400), ("7d", 7 * 86400), ("2w", 14 * 86400)]
)
def test_times_that_have_passed(text: str, ago: float) -> None:
    assert abs(moment(text, "--since") - (time.time() - ago)) < 60
