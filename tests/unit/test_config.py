"""The configuration: what is read, what is refused and how that is said, and the commented example."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from nedge.assemble import (
    Databases,
    make_directory,
    make_limits,
    make_name_lists,
    make_policy,
    open_databases,
)
from nedge.config import LOCAL_NETWORKS, SHIPPED_POLICIES, Config
from nedge.config_file import load
from nedge.core.status import STATUS_TYPES
from nedge.core.verdict import Action, Failure
from nedge.errors import ConfigError
from nedge.lists.loading import ListSets, read_lists
from nedge.scripts.loader import load_scripts, read_script

EXAMPLE = Path(__file__).parents[2] / "deploy" / "nedge.toml"


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(text: str | bytes) -> Path:
        path = tmp_path / "nedge.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load(path)
    return str(error.value)


# What is read


def test_an_empty_file_is_the_defaults(write) -> None:  # type: ignore[no-untyped-def]
    assert load(write("")) == Config()


def test_defaults_are_those_of_the_specification() -> None:
    config = Config()
    assert (config.verdict.drop_score, config.verdict.block_statuses) == (100, ["status_blacklisted"])
    assert (config.limits.detection_packets, config.limits.detection_seconds) == (12, 5)
    assert (config.limits.idle_seconds, config.limits.closed_seconds) == (60, 15)
    assert [str(network) for network in config.network.local] == list(LOCAL_NETWORKS)
    assert config.dpi.watch_http
    assert SHIPPED_POLICIES.joinpath("blacklisted.py").is_file()


def test_every_value_arrives(write) -> None:  # type: ignore[no-untyped-def]
    config = load(
        write("""
        [gateway]
        mode = "monitor"
        bridge = "br-lan"
        lan = ["a", "b"]
        wan = ["c"]
        fail = "closed"
        queue = 0
        queue_length = 1
        [network]
        local = ["192.0.2.0/24", "2001:db8::/32"]
        own_addresses = ["192.0.2.1"]
        [verdict]
        drop_score = 0
        host_drop_score = 65535
        quarantine_seconds = 0.5
        block_statuses = []
        [failures]
        unclassified = "drop"
        [limits]
        max_flows = 1
        detection_packets = 32
        [dpi]
        library = "/opt/libndpi.so"
        watch_http = false
        [log]
        level = "debug"
        format = "json"
        [scripts]
        directories = ["mine"]
        budget_ms = 50
        max_errors = 0
        lua_memory_mb = 8
        lua_allow = ["io"]
        [scripts.web_mining]
        enabled = false
        """)
    )
    assert (config.gateway.mode, config.gateway.bridge, config.gateway.fail) == (
        "monitor",
        "br-lan",
        "closed",
    )
    assert (config.gateway.lan, config.gateway.wan, config.gateway.queue) == (["a", "b"], ["c"], 0)
    assert [str(network) for network in config.network.local] == ["192.0.2.0/24", "2001:db8::/32"]
    assert (config.verdict.drop_score, config.verdict.host_drop_score) == (0, 65535)
    assert config.limits.detection_packets == 32
    assert config.scripts.settings == {"web_mining": {"enabled": False}}
    assert (config.scripts.budget_ms, config.scripts.max_errors) == (50, 0)
    assert (config.scripts.lua_memory_mb, config.scripts.lua_allow) == (8, ["io"])
    assert (config.dpi.library, config.dpi.watch_http) == ("/opt/libndpi.so", False)


def test_the_file_means_the_same_from_wherever_it_is_read(write, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A list that one process packed is found by another: they know it by its source's path."""
    whole = load(write('lists.malware_hosts = ["a.txt"]\ncontrol.state = "s"\n'))
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for path in ("nedge.toml", "./nedge.toml", "link/nedge.toml", f"../{tmp_path.name}/nedge.toml"):
        assert load(Path(path)) == whole, path


def test_relative_paths_are_relative_to_the_file(write, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    path = write("""
        lists.malware_hosts = ["a.txt", "/b.txt", "https://lists.example//c.txt"]
        lists.cache_directory = "cache"
        geoip.country_database = "c.mmdb"
        geoip.asn_database = "/d.mmdb"
        eve.path = "~/eve.json"
        eve.keep = 7
        history.path = "h.db"
        history.max_days = 3
        control.socket = "s.sock"
        control.state = "s"
        scripts.directories = ["d", "../e"]
        """)
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/x")
    config = load(path)
    assert config.lists.malware_hosts == [tmp_path / "a.txt", Path("/b.txt"), "https://lists.example//c.txt"]
    assert config.lists.cache_directory == tmp_path / "cache"
    assert config.geoip.country_database == tmp_path / "c.mmdb"
    assert config.geoip.asn_database == Path("/d.mmdb")
    assert (config.eve.path, config.eve.keep) == (Path("/home/x/eve.json"), 7)
    assert (config.history.path, config.history.max_days) == (tmp_path / "h.db", 3)
    assert (config.control.socket, config.control.state) == (tmp_path / "s.sock", tmp_path / "s")
    assert config.scripts.directories == [tmp_path / "d", tmp_path / "../e"]


# What is refused. The sentence has the file, the key, what was found, and what is allowed.


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("colour = 1", ["colour: unknown key", "gateway", "scripts"]),
        ("[gatway]\nmode = 'inline'", ["gatway: unknown key", "did you mean 'gateway'?"]),
        ("[gateway]\nmod = 'inline'", ["gateway.mod: unknown key", "mode", "did you mean 'mode'?"]),
        ("[lists]\nmalware = []", ["lists.malware: unknown key", "malware_hosts"]),
        ("[gateway]\nmode = 'off'", ["gateway.mode", "'off'", "'inline' or 'monitor'"]),
        ("[gateway]\nmode = 1", ["gateway.mode", "1", "'inline' or 'monitor'"]),
        ("[gateway]\nfail = 'Open'", ["gateway.fail", "'Open'", "'open' or 'closed'"]),
        ("[gateway]\nbridge = ''", ["gateway.bridge", "''", "1 to 15"]),
        ("[gateway]\nbridge = 'sixteen-letters-'", ["gateway.bridge", "sixteen-letters-", "1 to 15"]),
        ("[gateway]\nbridge = 'a b'", ["gateway.bridge", "'a b'", "without spaces"]),
        ("[gateway]\nbridge = 'a/b'", ["gateway.bridge", "'a/b'"]),
        ("[gateway]\nlan = 'eth0'", ["gateway.lan", "'eth0'", "list"]),
        ("[gateway]\nlan = ['eth0', 7]", ["gateway.lan.1", "7", "string"]),
        ("[gateway]\nqueue = -1", ["gateway.queue", "-1", "greater than or equal to 0"]),
        ("[gateway]\nqueue = 65536", ["gateway.queue", "65536", "less than or equal to"]),
        ("[gateway]\nqueue = 1.5", ["gateway.queue", "1.5", "integer"]),
        ("[gateway]\nqueue_length = 0", ["gateway.queue_length", "0", "1"]),
        ("gateway = 'x'", ["gateway", "'x'"]),
        ("[network]\nlocal = ['192.0.2.1/24']", ["network.local.0: found '192.0.2.1/24'", "host bits"]),
        ("[network]\nlocal = ['home']", ["network.local.0: found 'home'", "network"]),
        ("[verdict]\ndrop_score = 65536", ["verdict.drop_score", "65536", "65535"]),
        ("[verdict]\ndrop_score = -1", ["verdict.drop_score", "-1", "0"]),
        ("[verdict]\ndrop_score = 'high'", ["verdict.drop_score", "'high'", "integer"]),
        ("[verdict]\nquarantine_seconds = 0", ["verdict.quarantine_seconds", "0", "greater than 0"]),
        ("[verdict]\nblock_statuses = ['status_x']", ["verdict.block_statuses", "'status_x'", "blacklisted"]),
        ("[verdict]\nblock_statuses = ['status_normal']", ["verdict.block_statuses", "'status_normal'"]),
        ("[failures]\nmalformed = 'open'", ["failures.malformed", "'open'", "'pass', 'drop' or 'reject'"]),
        ("[verdict]\naction = 'pass'", ["verdict.action", "'pass'", "'drop' or 'reject'"]),
        ("[verdict]\nrejects_per_second = 0", ["verdict.rejects_per_second", "0", "1"]),
        ("[limits]\nmax_flows = 0", ["limits.max_flows", "0", "1"]),
        ("[limits]\ndetection_packets = 33", ["limits.detection_packets", "33", "32"]),
        ("[limits]\nidle_seconds = nan", ["limits.idle_seconds", "nan"]),
        ("[limits]\nidle_seconds = 'long'", ["limits.idle_seconds", "'long'", "number"]),
        ("[lists]\nmalware_hosts = 'x'", ["lists.malware_hosts", "'x'", "list"]),
        ("[lists]\nmalware_hosts = ['ftp://lists.example/x']", ["lists.malware_hosts.0", "https://"]),
        ("[lists]\nmalware_hosts = ['https:///x']", ["lists.malware_hosts.0", "https://"]),
        ("[lists]\nmalware_hosts = ['http://lists.example/a b']", ["lists.malware_hosts.0", "https://"]),
        ("[lists]\nmalware_hosts = ['']", ["lists.malware_hosts.0", "path of a file"]),
        ("[lists]\nmalware_hosts = [5]", ["lists.malware_hosts.0", "path of a file"]),
        ("[lists]\nmin_fraction = 1.5", ["lists.min_fraction", "1.5"]),
        ("[lists]\nrefresh_hours = -1", ["lists.refresh_hours", "-1"]),
        ("[geoip]\ncountry_database = 5", ["geoip.country_database", "5", "path"]),
        ("[dpi]\nwatch_http = 'maybe'", ["dpi.watch_http", "'maybe'", "boolean"]),
        ("[control]\ngroup = 'no-such'", ["control.group", "'no-such'", "group of this machine"]),
        ("[control]\nsocket = 5", ["control.socket", "5", "path"]),
        ("[eve]\nkeep = 0", ["eve.keep", "0"]),
        ("[eve]\nstats_seconds = -1", ["eve.stats_seconds", "-1"]),
        ("[history]\nmax_days = 0", ["history.max_days", "0"]),
        ("[history]\nmax_megabytes = 0", ["history.max_megabytes", "0"]),
        ("[metrics]\nlisten = 'localhost:9750'", ["metrics.listen", "'localhost:9750'", "127.0.0.1:9750"]),
        ("[metrics]\nlisten = '127.0.0.1'", ["metrics.listen", "127.0.0.1:9750"]),
        ("[metrics]\nlisten = '127.0.0.1:0'", ["metrics.listen", "127.0.0.1:9750"]),
        ("[metrics]\nlisten = '127.0.0.1:x'", ["metrics.listen", "127.0.0.1:9750"]),
        ("[metrics]\nlisten = '::1:9750'", ["metrics.listen", "[::1]:9750"]),
        ("[metrics]\nlisten = '[127.0.0.1]:9750'", ["metrics.listen", "[::1]:9750"]),
        ("[log]\nlevel = 'loud'", ["log.level", "'loud'", "'debug', 'info', 'warning' or 'error'"]),
        ("[scripts]\ndirectories = 'x'", ["scripts.directories", "'x'", "list"]),
        ("[scripts]\nbudget_ms = 5", ["scripts.budget_ms", "5", "10"]),
        ("[scripts]\nbudget_ms = 1000", ["scripts.budget_ms", "1000", "900"]),
        ("[scripts]\nmax_errors = -1", ["scripts.max_errors", "-1", "0"]),
        ("[scripts]\nlua_memory_mb = 3", ["scripts.lua_memory_mb", "3", "4"]),
        ("[scripts]\nlua_allow = ['debug']", ["scripts.lua_allow", "'debug'", "'io' or 'os'"]),
        ("[scripts]\nmax_error = 5", ["scripts.max_error", "5", "a table: [scripts.max_error]"]),
        ("[gateway\n", ["not valid TOML", "line 1"]),
        ("[gateway]\nqueue = 1\nqueue = 2", ["not valid TOML", "Cannot overwrite a value"]),
        (b"x = '\xff'", ["not valid TOML"]),
    ],
)  # fmt: skip
def test_refused(write, text: str | bytes, parts: list[str]) -> None:  # type: ignore[no-untyped-def]
    path = write(text)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    for part in parts:
        assert part in message
    assert not re.search(r"pydantic|validator|function", message)
    assert len(message.splitlines()) == 1


def test_all_problems_are_told_each_on_its_line(write) -> None:  # type: ignore[no-untyped-def]
    path = write("x = 1\n[gateway]\nmode = 2\nlan = [1, 2]\n[limits]\nmax_flows = 0\n")
    lines = refusal(path).splitlines()
    assert len(lines) == 5
    assert all(line.startswith(f"{path}: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[verdict]\ndrop_score = true", "verdict.drop_score"),
        ("[verdict]\ndrop_score = '50'", "verdict.drop_score"),
        ("[gateway]\nqueue = '71'", "gateway.queue"),
        ("[limits]\nidle_seconds = '60'", "limits.idle_seconds"),
        ("[limits]\nidle_seconds = true", "limits.idle_seconds"),
        ("[dpi]\nwatch_http = 1", "dpi.watch_http"),
        ("[dpi]\nwatch_http = 'no'", "dpi.watch_http"),
        ("[network]\nlocal = [5]", "network.local"),
    ],
)
def test_wrong_types_are_refused(write, text: str, key: str) -> None:  # type: ignore[no-untyped-def]
    assert key in refusal(write(text))


@pytest.mark.parametrize(
    "key",
    [
        "verdict.quarantine_seconds",
        "limits.detection_seconds",
        "limits.idle_seconds",
        "limits.closed_seconds",
    ],
)
@pytest.mark.parametrize("value", ["inf", "1e300"])
def test_infinite_times_are_refused(write, key: str, value: str) -> None:  # type: ignore[no-untyped-def]
    assert key in refusal(write(f"{key} = {value}"))


@pytest.mark.parametrize("address", ["192.0.2.300", "example.com", "192.0.2.0/24", ""])
def test_own_addresses_are_addresses(write, address: str) -> None:  # type: ignore[no-untyped-def]
    assert "network.own_addresses" in refusal(write(f"[network]\nown_addresses = ['{address}']"))


@pytest.mark.parametrize("address", ["2001:DB8::1", "2001:db8:0:0:0:0:0:1"])
def test_own_addresses_in_any_form(write, address: str) -> None:  # type: ignore[no-untyped-def]
    config = load(write(f"[network]\nown_addresses = ['{address}']"))
    assert make_directory(config, ListSets(), Databases()).is_local("2001:db8::1")


def test_settings_of_a_script_are_a_table(write) -> None:  # type: ignore[no-untyped-def]
    assert "scripts.blacklisted" in refusal(write("[scripts]\nblacklisted = false"))


def test_unreadable_files(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert refusal(missing) == f"{missing}: cannot be read: No such file or directory"
    assert refusal(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


# What is made of it


def test_policy(write) -> None:  # type: ignore[no-untyped-def]
    config = load(
        write("""
        [verdict]
        drop_score = 7
        host_drop_score = 8
        block_statuses = ["status_blacklisted", "status_user_05"]
        [failures]
        unclassified = "drop"
        dpi_error = "reject"
        """)
    )
    policy = make_policy(config)
    assert (policy.drop_score, policy.host_drop_score) == (7, 8)
    assert policy.block_statuses == 1 << 1 | 1 << 63
    harmless = dict.fromkeys(Failure, Action.PASS)
    assert policy.failures == harmless | {
        Failure.UNCLASSIFIED: Action.DROP,
        Failure.DPI_ERROR: Action.REJECT,
    }
    assert make_policy(Config()).failures == harmless


@pytest.mark.parametrize("action", [Action.DROP, Action.REJECT])
def test_what_blocking_means(write, action: Action) -> None:  # type: ignore[no-untyped-def]
    assert make_policy(load(write(f'verdict.action = "{action.label}"'))).block_action is action
    assert make_policy(Config()).block_action is Action.DROP


@pytest.mark.parametrize("failure", ["table_full", "malformed", "fragment"])
def test_limits(write, failure: str) -> None:  # type: ignore[no-untyped-def]
    config = load(write(f"failures.{failure} = 'drop'\nverdict.quarantine_seconds = 9\nlimits.max_flows = 5"))
    limits = make_limits(config)
    assert (limits.max_flows, limits.quarantine_seconds) == (5, 9)
    for name in ("table_full", "malformed", "fragment"):
        assert getattr(limits, name) is (Action.DROP if name == failure else Action.PASS)


def test_every_failure_has_a_policy() -> None:
    assert {failure.value for failure in Failure} | {"table_full", "malformed", "fragment"} == set(
        Config().failures.model_fields_set | type(Config().failures).model_fields.keys()
    )


def test_lists(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "hosts").write_text("# comment\n\n192.0.2.1  # one\n198.51.100.0/24\n2001:db8::/32\r\n")
    (tmp_path / "names").write_text("Bad.Example\n*.worse.example # x\n")
    lists = read_lists(
        load(write("lists.malware_hosts = ['hosts']\nlists.malware_domains = ['names']")).lists
    )
    assert len(lists.malware_hosts) == 3
    names = make_name_lists(lists)
    assert names.category("www.bad.example") == (100, "Malware")
    assert names.category("a.worse.example") == (100, "Malware")
    assert names.category("good.example") is None


@pytest.mark.parametrize("wrong", ["example.com", "192.0.2.0/33", "1.2.3.4 5.6.7.8"])
def test_wrong_entry_of_a_list(write, tmp_path: Path, wrong: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "hosts").write_text(f"# x\n192.0.2.1\n{wrong}\n")
    config = load(write("lists.malware_hosts = ['hosts']"))
    with pytest.raises(ConfigError, match=rf"hosts:3: found '{re.escape(wrong)}'; allowed is"):
        read_lists(config.lists)


@pytest.mark.parametrize("key", ["malware_hosts", "allow_domains"])
def test_missing_list(write, key: str) -> None:  # type: ignore[no-untyped-def]
    config = load(write(f"lists.{key} = ['none']"))
    with pytest.raises(ConfigError, match="none: cannot be read: No such file"):
        read_lists(config.lists)


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 100])
def test_unusable_country_database(write, tmp_path: Path, content: bytes | None) -> None:  # type: ignore[no-untyped-def]
    if content is not None:
        (tmp_path / "x.mmdb").write_bytes(content)
    config = load(write("geoip.country_database = 'x.mmdb'"))
    with pytest.raises(ConfigError, match=r"geoip.country_database: .*x\.mmdb cannot be used"):
        open_databases(config)


# deploy/nedge.toml


def uncommented() -> dict[str, Any]:
    """The example with every commented key and table in force."""
    text = re.sub(r"^#(?=[a-z_0-9]+ = |\[|  \"|\])", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    return tomllib.loads(text)


def test_example_has_every_key() -> None:
    """Nothing of the model is missing, in the model's order; lines behind # have only what has no default."""
    example = uncommented()
    models: dict[str, type[BaseModel]] = {name: type(getattr(Config(), name)) for name in Config.model_fields}
    assert list(example) == list(models)
    for name, model in models.items():
        keys = [
            key for key, value in example[name].items() if not (name == "scripts" and isinstance(value, dict))
        ]
        assert keys == list(model.model_fields), name
    in_force = tomllib.loads(EXAMPLE.read_text())
    commented = {
        f"{name}.{key}"
        for name, model in models.items()
        for key in model.model_fields
        if key not in in_force[name]
    }
    assert commented == {
        "geoip.country_database",
        "geoip.asn_database",
        "eve.path",
        "history.path",
        "metrics.listen",
        "control.socket",
        "control.group",
        "scripts.directories",
    }


def test_example_is_the_defaults() -> None:
    config = load(EXAMPLE)
    assert (config.gateway.lan, config.gateway.wan) == (["eth0"], ["eth1"])
    gateway = config.gateway.model_copy(update={"lan": [], "wan": []})
    assert config.model_copy(update={"gateway": gateway}) == Config()


def test_example_has_the_settings_of_every_shipped_script() -> None:
    tables = {key: value for key, value in uncommented()["scripts"].items() if isinstance(value, dict)}
    scripts = [read_script(path, {}, lambda name: 1) for path in sorted(SHIPPED_POLICIES.glob("*.py"))]
    off = {"enabled": False}
    assert {key: tables[key] for key in sorted(tables)} == {
        script.key: ({} if script.default_enabled else off) | script.conf for script in scripts
    }


def test_example_loads_with_everything_in_force(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=[a-z_0-9]+ = |\[|  \"|\])", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    path = tmp_path / "nedge.toml"
    path.write_text(text)
    config = load(path)
    assert config.geoip.country_database
    assert config.geoip.asn_database
    assert config.eve.path
    assert config.history.path
    assert config.metrics.listen
    _, problems = load_scripts([SHIPPED_POLICIES], config.scripts.settings, lambda name: 1)
    assert problems == []


def test_example_explains_every_key() -> None:
    """A comment stands before each group of keys."""
    lines = EXAMPLE.read_text().splitlines()
    assert max(map(len, lines)) <= 110
    before = ""
    for line in lines:
        if re.match(r"[a-z_]+ = ", line):
            assert before.startswith("#") or re.match(r"[a-z_]+ = ", before), line
        before = line
    assert STATUS_TYPES["status_blacklisted"]
