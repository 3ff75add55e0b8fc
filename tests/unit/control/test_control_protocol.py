"""Requests: what is understood, what is refused and how that is said; and what goes into JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nedge.control import requests
from nedge.control.protocol import ControlError, Kind, encode, plain
from nedge.control.requests import COMMANDS, Flows, Give, parse_request


def request(**fields: Any) -> requests.Request:
    return parse_request(json.dumps(fields).encode())


def refusal(line: bytes | str) -> str:
    with pytest.raises(ControlError) as error:
        parse_request(line.encode() if isinstance(line, str) else line)
    assert error.value.kind is Kind.USAGE
    return str(error.value)


def test_requests() -> None:
    assert request(command="status") == requests.Status(command="status")
    flows = request(version=1, command="flows", sort="bytes", limit=5, verdict="blocked", min_score=7)
    assert isinstance(flows, Flows)
    assert (flows.sort, flows.limit, flows.verdict, flows.min_score, flows.host) == (
        "bytes",
        5,
        "blocked",
        7,
        None,
    )
    give = request(command="unblock", target="10.0.0.1", seconds=60, reason="x")
    assert isinstance(give, Give)
    assert (give.command, give.seconds) == ("unblock", 60.0)


def test_every_command_has_a_request() -> None:
    assert set(COMMANDS) == {
        "status", "flows", "hosts", "explain", "block", "unblock", "orders", "forget", "release", "reload",
        "scripts",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "is a line of JSON"),
        ("status", "is a line of JSON"),
        (b"\xff\xfe", "is a line of JSON"),
        ('{"command": "status"', "is a line of JSON"),
        ("[" * 5000, "is a line of JSON"),
        ('"status"', "is a JSON object; found 'status'"),
        ("[1, 2]", "is a JSON object; found [1, 2]"),
        ("null", "is a JSON object; found None"),
        ("{}", "command: found None; allowed are status, flows"),
        ('{"command": "stop"}', "command: found 'stop'; allowed are status, flows"),
        ('{"command": ["status"]}', "command: found ['status']"),
        ('{"command": {"a": 1}}', "command: found {'a': 1}"),
        ('{"version": 2, "command": "status"}', "version: found 2; this gateway speaks 1"),
        ('{"version": "1", "command": "status"}', "version: found '1'"),
        ('{"command": "status", "x": 1}', "x: unknown key"),
        ('{"command": "flows", "limit": -1}', "limit: found -1; allowed is greater than or equal to 0"),
        ('{"command": "flows", "limit": "5"}', "limit: found '5'; allowed is a valid integer"),
        ('{"command": "flows", "limit": 100001}', "limit: found 100001"),
        ('{"command": "flows", "sort": "size"}', "sort: found 'size'; allowed is 'start', 'last'"),
        ('{"command": "flows", "verdict": "maybe"}', "verdict: found 'maybe'; allowed is 'pass', 'drop'"),
        ('{"command": "flows", "host": 7}', "host: found 7"),
        ('{"command": "explain"}', "flow: missing"),
        ('{"command": "block"}', "target: missing"),
        ('{"command": "block", "target": "a", "seconds": 0}', "seconds: found 0"),
        ('{"command": "block", "target": "a", "seconds": 1e300}', "seconds: found 1e+300"),
        ('{"command": "block", "target": "a", "reason": "' + "x" * 201 + '"}', "reason: found"),
    ],
)
def test_refused(line: str | bytes, said: str) -> None:
    sentence = refusal(line)
    assert said in sentence
    assert "pydantic" not in sentence
    assert len(sentence) < 400  # whatever was sent


def test_all_problems_are_told() -> None:
    sentence = refusal('{"command": "flows", "limit": "x", "sort": 5}')
    assert len(sentence.splitlines()) == 2


# Anything as JSON


def test_a_message_is_a_line() -> None:
    assert encode({"a": "x\ny"}) == b'{"a":"x\\ny"}\n'
    assert encode({"a": "\udc80"}) == b'{"a":"?"}\n'


class Sulky:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (1 << 62, 1 << 62),
        (1 << 64, str(1 << 64)),
        ("\ud800x", "?x"),
        (b"\0", "b'\\x00'"),
        ({1: (2, 3), "b": {4}}, {"1": [2, 3], "b": [4]}),
        ("x" * 1001, "x" * 999 + "…"),
        (Sulky(), "(Sulky that cannot be printed: RuntimeError)"),
    ],
)
def test_plain(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    encode({"value": plain(value)})


def test_plain_has_bounds() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert len(encode({"a": plain(loop)})) < 2000
    assert len(plain(list(range(10_000)))) == 200
    assert len(plain(dict.fromkeys(range(10_000)))) == 200
