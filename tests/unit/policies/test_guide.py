"""The guide for authors: what it shows is true, every example runs, the reference is current."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from nedge.config import Config
from nedge.config_file import from_mapping
from nedge.core.hooks import Hook
from nedge.scripts import Flow, reference
from nedge.scripts.lint import VARIABLES, lint
from nedge.scripts.loader import read_script
from nedge.testing import (
    SERVER,
    SHIPPED_POLICIES,
    T0,
    Bench,
    ConfigError,
    Tcp,
    Udp,
    certificate,
    dns,
    dns_answer,
    dns_query,
    http_request,
    http_response,
    load_script,
    make_flow,
    merge,
    ssh_turns,
    tls,
    write_pcap,
)

GUIDE = (SHIPPED_POLICIES / "README.md").read_text()
PROJECT = Path(__file__).parents[3]


def section(title: str) -> str:
    """The text below a heading, down to the next of its level."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


RECIPES = {
    title: code
    for title, text in re.findall(r"(?ms)^### (.*?)\n(.*?)(?=^### |\Z)", section("Recipes"))
    for code in blocks(text, "python")
}

Load = Callable[..., Bench]


@pytest.fixture
def recipe(tmp_path: Path, library: str) -> Load:
    """Loads a recipe by its heading, for each nDPI."""

    def load(title: str, *others: str, **how: object) -> Bench:
        path = tmp_path / "recipe.py"
        path.write_text(RECIPES[title])
        assert lint(path) == []
        return load_script(path, *others, library=library, **how)  # type: ignore[arg-type]

    return load


# Recipes: one test each


def test_block_a_protocol(recipe: Load) -> None:
    script = recipe("Block a protocol")
    assert script.run(make_flow("BitTorrent")).verdict == "drop"
    assert script.run(make_flow("TLS")).verdict == "pass"


def test_ssh_only_to_one_host(recipe: Load) -> None:
    for server, verdict in ((SERVER, "drop"), ("192.168.1.22", "pass")):
        session = Tcp(server_ip=server, dport=22).handshake().turns(ssh_turns())
        (flow,) = recipe("SSH only to one host").judge(session.packets)
        assert flow.verdict == verdict
    assert recipe("SSH only to one host").run(make_flow("TLS")).verdict == "pass"


@pytest.mark.parametrize(("hour", "verdict"), [(21, "pass"), (22, "drop"), (3, "drop"), (6, "pass")])
def test_only_at_certain_hours(
    recipe: Load, hour: int, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    script = recipe("Only at certain hours")
    midnight = T0 // 86400 * 86400
    script.engine.advance(midnight + hour * 3600.0)
    assert script.run(make_flow("TLS.YouTube")).verdict == verdict
    assert script.run(make_flow("TLS")).verdict == "pass"


def test_a_device_that_may_talk_to_its_maker_only(recipe: Load) -> None:
    script = recipe("A device that may talk to its maker only")
    camera = "192.168.1.50"
    assert script.run(make_flow("TLS", client=camera, hostname="eu.maker.example")).verdict == "pass"
    assert script.run(make_flow("TLS", client=camera, hostname="other.example")).verdict == "drop"
    assert script.run(make_flow(client=camera)).verdict == "drop"
    assert script.run(make_flow("TLS", client=camera, server="192.168.1.5")).verdict == "pass"
    assert script.run(make_flow("TLS", hostname="other.example")).verdict == "pass"
    queries = dns("maker.example", "other.example", client=camera).packets[::2]
    assert script.feed(queries) == ["pass", "drop"]


def test_cut_long_uploads(recipe: Load) -> None:
    script = recipe("Cut long uploads", settings={"limit": 5000})
    flow = script.run(make_flow("TLS", bytes_sent=5000))
    script.advance(35)
    assert flow.verdict == "pass"
    flow.update(bytes_sent=5001)
    script.advance(35)
    assert flow.verdict == "drop"


def test_count_across_flows(recipe: Load) -> None:
    script = recipe("Count across flows", settings={"names": 3})
    talks = [
        Udp(sport=5000 + n, start=T0 + n)
        .client(dns_query(f"x{n}.example"))
        .server(dns_answer(f"x{n}.example", code=3 if n < 5 else 0))
        .packets
        for n in range(9)
    ]
    flows = script.judge(merge(*talks), until=T0 + 200)
    assert [bool(flow.statuses) for flow in flows] == [False] * 3 + [True] * 2 + [False] * 4


def test_two_small_problems_make_a_big_one(recipe: Load) -> None:
    others = ("tls_old_version", "tls_certificate_expired")
    expired = certificate(not_before=T0 - 100_000, not_after=T0 - 50_000)
    for packets, verdict in (
        (tls("1.0").packets, "pass"),
        (tls("1.2", cert=expired).packets, "pass"),
        (tls("1.0", cert=expired).packets, "drop"),
    ):
        (flow,) = recipe("Two small problems make a big one", *others).judge(packets)
        assert flow.verdict == verdict


def test_a_status_of_your_own(recipe: Load) -> None:
    script = recipe("A status of your own")
    for protocol in script.scripts[0].conf["protocols"]:
        assert script.run(make_flow(protocol)).statuses == ["status_clear_login"]
    assert script.run(make_flow("SSH")).statuses == []


def test_a_list_in_a_file(recipe: Load, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# these\n198.51.100.0/24 # a network\n\n2001:db8::7\n")
    script = recipe("A list in a file", settings={"file": f"{tmp_path}/list"})
    assert script.run(make_flow(server="198.51.100.7")).verdict == "drop"
    assert script.run(make_flow(client="fd00::1", server="2001:db8::7")).verdict == "drop"
    assert script.run(make_flow()).verdict == "pass"
    with pytest.raises(ConfigError, match=r"recipe\.py:\d+: FileNotFoundError in setup"):
        recipe("A list in a file", settings={"file": f"{tmp_path}/none"})
    (tmp_path / "list").write_text("nonsense\n")
    with pytest.raises(ConfigError, match=r"ValueError in setup.*nonsense"):
        recipe("A list in a file", settings={"file": f"{tmp_path}/list"})


def test_logins_from_abroad(recipe: Load) -> None:
    countries = {"203.0.113.0/24": "DE", "198.51.100.0/24": "KP"}
    script = recipe("Logins from abroad", countries=countries)
    for client, port, verdict in (
        ("203.0.113.7", 22, "pass"),
        ("198.51.100.7", 22, "drop"),
        ("192.0.2.1", 3389, "drop"),  # who knows
        ("198.51.100.7", 443, "pass"),
        ("192.168.1.7", 22, "pass"),
    ):
        flow = make_flow("SSH", client=client, server="192.168.1.44", server_port=port)
        assert script.run(flow).verdict == verdict


def test_look_at_each_http_request(recipe: Load) -> None:
    session = Tcp(dport=80).handshake()
    for path, method in (("/", "GET"), ("/login", "GET"), ("/login", "POST")):
        session.client(http_request("example.com", path, method, b"a=b" if method == "POST" else b""))
        session.server(http_response())
    script = recipe("Look at each HTTP request")
    assert script.feed(session.packets) == ["pass"] * 7 + ["drop"] * 2


def test_every_recipe_has_a_test() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert len(RECIPES) >= 10
    assert {re.sub(r"\W+", "_", title.lower()) for title in RECIPES} <= tests


def test_configurations_load() -> None:
    for text in [*blocks(section("Settings"), "toml"), *blocks(section("Recipes"), "toml")]:
        config = from_mapping(tomllib.loads(text), "guide", Path())
        assert config != Config()
        for key, settings in config.scripts.settings.items():
            load_script(key, settings={**settings, "enabled": True})


# The tutorial


def test_the_tutorial_from_its_first_command_to_its_last(tmp_path: Path, library: str) -> None:
    text = section("Your first script")
    shells = "".join(blocks(text, "sh"))
    commands = [line.partition("#")[0].split() for line in shells.splitlines() if line.strip()]
    script, test = blocks(text, "python")
    directory = tmp_path / "my-scripts"
    write_pcap(tmp_path / "capture.pcap", tls(client="192.168.1.70").packets)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    outputs = []
    for words in commands:
        done = subprocess.run(
            words if words[0] == "mkdir" else [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        outputs.append(done.stdout)
        if words[1] == "new-script":
            assert (directory / "no_games.py").exists()
            (directory / "no_games.py").write_text(script)
            (directory / "test_no_games.py").write_text(test)
    assert [words[1] for words in commands] == ["my-scripts", "new-script", "my-scripts", "check", "replay"]
    assert "3 passed" in outputs[2]
    assert "script no_games: ok (hooks: protocolDetected)" in outputs[3]
    assert "1 flows: 1 pass" in outputs[4]
    loaded = load_script(directory / "no_games.py", library=library)
    assert loaded.run(make_flow("Steam", client="192.168.1.70")).statuses == ["status_user_01"]


def test_the_examples_of_testing_are_tests_that_pass(tmp_path: Path) -> None:
    (source,) = blocks(section("Testing"), "python")
    (tmp_path / "test_examples.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_the_example_in_lua(tmp_path: Path, library: str) -> None:
    (source,) = blocks(section("Lua"), "lua")
    (tmp_path / "mine.lua").write_text(source)
    script = load_script(tmp_path / "mine.lua", settings={"items": ["a.example"]}, library=library)
    assert script.run(make_flow("TLS", hostname="a.example")).verdict == "drop"
    assert script.run(make_flow("TLS", hostname="blocked.example")).verdict == "pass"
    assert script.run(make_flow("HTTP", hostname="a.example")).verdict == "pass"


# Tables


def test_the_reference_is_current() -> None:
    made = GUIDE.partition(reference.BEGIN)[2].partition(reference.END)[0].strip()
    assert made == reference.reference(), "run: python -m nedge.scripts.reference policies/README.md"


def test_the_reference_is_written_between_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "guide.md"
    path.write_text(f"before\n{reference.BEGIN}\nold\n{reference.END}\nafter\n")
    reference.write(path)
    text = path.read_text()
    assert text.startswith(f"before\n{reference.BEGIN}\n\n### Functions")
    assert text.endswith(f"{reference.END}\nafter\n")
    assert "old\n<!--" not in text
    path.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        reference.write(path)


@pytest.mark.parametrize("name", [name for name in dir(Flow) if not name.startswith("_")])
def test_the_reference_has_every_function(name: str) -> None:
    assert f"* `{name}(" in GUIDE
    assert getattr(Flow, name).__doc__


def test_the_guide_has_every_hook_and_variable() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", section("Hooks"), re.MULTILINE)) == set(Hook)
    variables = section("Filters and other variables")
    for name in set(VARIABLES) - {"nedge_only", "nedge_exclude"}:
        assert f"`{name}`" in variables


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", GUIDE, re.MULTILINE)
    }
    links = set(re.findall(r"\]\(#([^)]+)\)", GUIDE))
    assert links
    assert links - headings == set()


def test_the_overview_says_what_is_on() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (on|off|once listed) \| (\d+)", GUIDE, re.MULTILINE)
    shown = {key: (state, int(score)) for key, state, score in rows}
    on = {script.key for script in load_script(SHIPPED_POLICIES).scripts}
    for path in SHIPPED_POLICIES.glob("*.py"):
        script = read_script(path, {}, lambda name: 1)
        state, score = shown.pop(script.key)
        assert score == script.conf["score"]
        assert (state == "off") is not script.default_enabled
        assert (state == "on") <= (script.key in on)
        assert json.dumps(script.conf)  # settings are plain values
    assert shown == {}
