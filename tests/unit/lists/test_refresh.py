"""From sources to packed lists: what is taken, what is refused, and that the last good list stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from list_server import ListServer
from structlog.testing import capture_logs

from nedge.config import Config, Lists
from nedge.lists import cache as cache_module
from nedge.lists import job
from nedge.lists.cache import Cache
from nedge.lists.fetch import Fetched
from nedge.lists.loading import load_lists, read_lists
from nedge.lists.refresh import (
    FIRST_RETRY,
    CacheError,
    ListError,
    is_prepared,
    next_refresh,
    prepare,
    refresh,
)
from nedge.live import rehearse

Settings = Callable[..., Lists]
DOMAINS = "bad.example\nworse.example\n"


def matches(settings: Lists, name: str) -> str | None:
    """The entry of malware_domains that covers a name, by the packed list."""
    return load_lists(settings).malware_domains.match(name)


def test_files(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "names").write_text(DOMAINS)
    (tmp_path / "more").write_text("0.0.0.0 ads.example bad.example\n")
    (tmp_path / "hosts").write_text("192.0.2.0/24\n2001:db8::/32\n192.0.2.7\n")
    (tmp_path / "ja3").write_text("0" * 32 + ",why\n")
    made = settings(
        malware_domains=[tmp_path / "names", tmp_path / "more"],
        malware_hosts=[tmp_path / "hosts"],
        malware_fingerprints=[tmp_path / "ja3"],
        allow_domains=[tmp_path / "more"],
    )
    assert not is_prepared(made)
    prepare(made)
    assert is_prepared(made)
    for lists in (load_lists(made), read_lists(made)):
        assert len(lists.malware_domains) == 3
        assert lists.malware_domains.match("www.ads.example") == "ads.example"
        assert lists.malware_domains.match("good.example") is None
        assert len(lists.malware_hosts) == 3
        assert ("192.0.2.200" in lists.malware_hosts, "2001:db8::9" in lists.malware_hosts) == (True, True)
        assert ("192.0.3.1" in lists.malware_hosts, "2001:db9::1" in lists.malware_hosts) == (False, False)
        assert "0" * 32 in lists.malware_fingerprints
        assert "1" * 32 not in lists.malware_fingerprints
        assert lists.allow_domains.match("ads.example")
        assert len(lists.allow_hosts) == len(lists.mining_domains) == 0


def test_no_lists_no_cache(settings: Settings, tmp_path: Path) -> None:
    assert is_prepared(settings())
    load_lists(settings())
    assert next_refresh(settings()) == float("inf")
    assert not (tmp_path / "cache").exists()


def test_a_file_that_changes_is_packed_again(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_text(DOMAINS)
    made = settings(malware_domains=[path])
    assert refresh(made) == ["malware_domains"]
    before = load_lists(made)
    assert refresh(made) == []
    path.write_text("new.example\n")
    assert not is_prepared(made)
    assert refresh(made) == ["malware_domains"]
    assert matches(made, "new.example")
    assert not matches(made, "bad.example")
    assert before.malware_domains.match("bad.example"), "who has the old one open keeps it"


@pytest.mark.parametrize("fault", ["removed", "wrong"])
def test_a_file_that_cannot_be_used(settings: Settings, tmp_path: Path, fault: str) -> None:
    path = tmp_path / "names"
    path.write_text(DOMAINS)
    made = settings(malware_domains=[path])
    prepare(made)
    if fault == "removed":
        path.unlink()
        words = f"list {path}: cannot be read: No such file"
    else:
        path.write_text("good.example\n<html>\n")
        words = f"list {path}:2: found '<html>'; allowed is a domain"
    assert not is_prepared(made)
    with pytest.raises(ListError, match=words):
        prepare(made)
    with capture_logs() as logs:
        assert refresh(made) == []
    assert [(entry["event"], entry["kept"]) for entry in logs] == [("list_refresh_failed", 2)]
    assert words in logs[0]["error"]
    assert matches(made, "bad.example")
    (state,) = (Cache(made.cache_directory).packed("malware_domains", [path]),)
    assert (state.failures, words in state.error) == (1, True)
    path.write_text("good.example\n")
    assert refresh(made) == ["malware_domains"]
    assert Cache(made.cache_directory).packed("malware_domains", [path]).error == ""


def test_all_problems_are_told_at_once(settings: Settings, tmp_path: Path) -> None:
    made = settings(malware_domains=[tmp_path / "a"], allow_hosts=[tmp_path / "b"])
    with pytest.raises(ListError) as error:
        prepare(made)
    assert len(str(error.value).splitlines()) == 2


def test_a_cache_that_cannot_be_written(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "names").write_text(DOMAINS)
    (tmp_path / "cache").write_text("a file")
    made = settings(malware_domains=[tmp_path / "names"])
    for step in (prepare, refresh):
        with pytest.raises(ListError, match=r"lists.cache_directory: .*cache: cannot be used: "):
            step(made)
    assert read_lists(made).malware_domains.match("bad.example"), "replay needs no cache"


def test_a_gateway_starts_without_a_cache_but_reloads_with_one_only(
    settings: Settings, tmp_path: Path
) -> None:
    """A disk that is full does not leave a network without its firewall."""
    (tmp_path / "names").write_text(DOMAINS)
    (tmp_path / "cache").write_text("a file")
    made = Config(lists=settings(malware_domains=[tmp_path / "names"]))
    with capture_logs() as logs:
        rehearse(made, starting=True)
    assert [(entry["event"], entry["log_level"]) for entry in logs if entry["log_level"] != "info"] == [
        ("lists_not_packed", "error"), ("list_not_packed", "warning"),
    ]  # fmt: skip
    with pytest.raises(CacheError, match=r"lists.cache_directory: .*cache: cannot be used: "):
        rehearse(made)
    (tmp_path / "names").write_text("this is no domain\n")
    (tmp_path / "cache").unlink()
    with pytest.raises(ListError, match="this is no domain"):
        rehearse(made, starting=True)


# Downloads


def test_urls(settings: Settings, server: ListServer) -> None:
    url = server.put("/names", DOMAINS, headers={"ETag": "1"})
    made = settings(malware_domains=[url])
    prepare(made)
    assert server.asked == [], "a start waits for no download"
    assert not matches(made, "bad.example")
    assert refresh(made) == ["malware_domains"]
    assert matches(made, "www.bad.example")
    assert read_lists(made).malware_domains.match("bad.example")
    assert refresh(made) == []
    assert len(server.asked) == 1, "not due yet"
    assert refresh(made, due_only=False) == []
    assert server.statuses == [200, 304]
    assert is_prepared(made)


def test_the_same_again_is_no_change(settings: Settings, server: ListServer) -> None:
    made = settings(malware_domains=[server.put("/names", DOMAINS)])  # a server that knows no 304
    assert refresh(made) == ["malware_domains"]
    assert refresh(made, due_only=False) == []
    assert server.statuses == [200, 200]


def test_a_url_and_a_file_together(settings: Settings, server: ListServer, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine.example\n")
    made = settings(malware_domains=[tmp_path / "mine", server.put("/names", DOMAINS)])
    refresh(made)
    assert [matches(made, name) for name in ("mine.example", "bad.example")] == [
        "mine.example",
        "bad.example",
    ]
    server.pages.clear()
    (tmp_path / "mine").write_text("other.example\n")
    assert refresh(made, due_only=False) == ["malware_domains"]
    assert [bool(matches(made, name)) for name in ("mine.example", "other.example", "bad.example")] == [
        False,
        True,
        True,
    ]


MANY = "".join(f"n{number}.example\n" for number in range(100))

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gone": ("", {"status": 404}, "404"),
    "empty": ("", {}, "empty"),
    "html": (
        "<!DOCTYPE html>\n<html>\n<body>\nLog in first\n</body>\n</html>\n",
        {},
        "found '<!DOCTYPE html>'",
    ),
    "mostly wrong": ("a.example\n" * 8 + "no entry\n", {}, "1 lines are no entries, such as line 9"),
    "shrunken": (MANY[: len(MANY) // 3], {}, "lists.min_fraction"),
    "only comments": ("# nothing today\n", {}, "it has 0 entries, and had 100"),
    "cut short": (MANY, {"promised": len(MANY) + 9}, "IncompleteRead"),
    "too large": (MANY * 2000, {}, "lists.max_megabytes"),
    "other form": ("192.0.2.1/24\n", {}, "allowed is a domain"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_the_last_good_list_stays(settings: Settings, server: ListServer, fault: str) -> None:
    body, options, words = REFUSED[fault]
    url = server.put("/names", MANY, headers={"ETag": "1"})
    made = settings(malware_domains=[url], max_megabytes=1)
    refresh(made)
    server.put("/names", body, **options)
    with capture_logs() as logs:
        for _ in range(2):
            assert refresh(made, due_only=False) == []
    assert [entry["event"] for entry in logs] == ["list_refresh_failed"] * 2
    assert all(words in entry["error"] for entry in logs), logs
    assert [(entry["kept"], entry["failures"]) for entry in logs] == [(100, 1), (100, 2)]
    assert matches(made, "n99.example")
    assert read_lists(made).malware_domains.match("n99.example")
    state = Cache(made.cache_directory).download("malware_domains", url)
    assert (state.failures, state.failed, state.entries, state.etag) == (2, 2, 100, "1")
    assert words in state.error
    server.put("/names", MANY + "new.example\n")
    assert refresh(made, due_only=False) == ["malware_domains"]
    state = Cache(made.cache_directory).download("malware_domains", url)
    assert (state.failures, state.failed, state.error, state.entries) == (2, 0, "", 101)


@pytest.mark.parametrize(("left", "fraction", "taken"), [(50, 0.5, True), (49, 0.5, False), (1, 0.0, True)])
def test_how_much_may_be_lost(
    settings: Settings, server: ListServer, left: int, fraction: float, taken: bool
) -> None:
    made = settings(malware_domains=[server.put("/names", MANY)], min_fraction=fraction)
    refresh(made)
    server.put("/names", "\n".join(MANY.splitlines()[:left]))
    assert bool(refresh(made, due_only=False)) is taken


def test_what_has_shrunken_is_taken_on_demand(settings: Settings, server: ListServer) -> None:
    made = settings(malware_domains=[server.put("/names", MANY)])
    refresh(made)
    server.put("/names", "left.example\n")
    assert refresh(made, due_only=False, accept_shrunken=True) == ["malware_domains"]
    assert matches(made, "left.example")
    assert not matches(made, "n1.example")


def test_few_wrong_lines_are_counted(settings: Settings, server: ListServer) -> None:
    url = server.put("/names", MANY + "com\n" + "no entry\n")
    made = settings(malware_domains=[url])
    refresh(made)
    state = Cache(made.cache_directory).packed("malware_domains", [url])
    assert (state.entries, state.wrong, state.total) == ([100], [2], 100)
    assert not matches(made, "example.com")


def test_only_the_lists_that_are_named(settings: Settings, server: ListServer) -> None:
    made = settings(
        malware_domains=[server.put("/a", DOMAINS)], mining_domains=[server.put("/b", "mine.example\n")]
    )
    assert refresh(made, ["mining_domains"]) == ["mining_domains"]
    assert len(server.asked) == 1


def test_when_a_server_is_asked_again(settings: Settings, server: ListServer) -> None:
    url = server.put("/names", DOMAINS)
    made = settings(malware_domains=[url], refresh_hours=2)
    assert next_refresh(made) <= time.time()
    refresh(made)

    def wait() -> float:
        return next_refresh(made) - Cache(made.cache_directory).download("malware_domains", url).asked

    assert wait() == pytest.approx(7200)
    server.pages.clear()
    waits = []
    for _ in range(5):
        refresh(made, due_only=False)
        waits.append(wait())
    assert waits == pytest.approx([FIRST_RETRY, 2 * FIRST_RETRY, 4 * FIRST_RETRY, 8 * FIRST_RETRY, 7200])
    assert next_refresh(made.model_copy(update={"refresh_hours": 0})) == float("inf")


def test_when_files_are_looked_at(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "names").write_text(DOMAINS)
    made = settings(malware_domains=[tmp_path / "names"], refresh_hours=2)
    before = time.time()
    refresh(made)
    assert before + 7200 <= next_refresh(made) <= time.time() + 7200
    assert next_refresh(made.model_copy(update={"refresh_hours": 0})) == float("inf")


# The cache


@pytest.mark.parametrize("damage", ["removed", "emptied", "changed", "state removed", "state damaged"])
def test_a_damaged_cache_is_made_good(
    settings: Settings, server: ListServer, tmp_path: Path, damage: str
) -> None:
    (tmp_path / "names").write_text(DOMAINS)
    (tmp_path / "hosts").write_text("192.0.2.0/24\n")
    made = settings(malware_domains=[tmp_path / "names"], malware_hosts=[tmp_path / "hosts"])
    prepare(made)
    for path in (tmp_path / "cache" / "packed").iterdir():
        if path.suffix == (".json" if damage.startswith("state") else ".data"):
            match damage.split()[-1]:
                case "removed":
                    path.unlink()
                case "emptied":
                    path.write_bytes(b"")
                case "changed":
                    content = bytearray(path.read_bytes())
                    content[len(content) // 2] ^= 0xFF
                    path.write_bytes(content)
                case "damaged":
                    path.write_bytes(b'{"inputs": 5, "entries": "x"')
    assert not is_prepared(made)
    if damage in ("removed", "emptied"):  # a worker that starts just then
        with capture_logs() as logs:
            assert matches(made, "bad.example")
        assert {entry["event"] for entry in logs} == {"list_not_packed"}
    prepare(made)
    assert is_prepared(made)
    assert matches(made, "bad.example")
    assert "192.0.2.1" in load_lists(made).malware_hosts


def test_a_download_that_is_lost_is_asked_for_again(settings: Settings, server: ListServer) -> None:
    made = settings(malware_domains=[server.put("/names", DOMAINS, headers={"ETag": "1"})])
    refresh(made)
    for path in made.cache_directory.glob("downloads/*.text"):
        path.unlink()
    refresh(made, due_only=False)
    assert server.statuses == [200, 200]
    assert read_lists(made).malware_domains.match("bad.example")


def test_what_is_used_no_more_is_removed(
    settings: Settings, server: ListServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = settings(malware_domains=[server.put("/old", DOMAINS)])
    refresh(old)
    monkeypatch.setattr(cache_module, "UNUSED_SECONDS", -60)
    refresh(settings())
    left = {path.name for path in old.cache_directory.rglob("*") if path.is_file()}
    assert left == {"lock", "asking"}
    monkeypatch.setattr(cache_module, "UNUSED_SECONDS", 60)
    refresh(old)
    assert matches(old, "bad.example")


def test_others_cannot_read_the_lock_nor_write_the_cache(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "names").write_text(DOMAINS)
    prepare(settings(malware_domains=[tmp_path / "names"]))
    for path in (tmp_path / "cache").rglob("*"):
        assert not path.stat().st_mode & 0o022, path


# In a process of its own


def test_the_job_prepares(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "names").write_text(DOMAINS)
    made = settings(malware_domains=[tmp_path / "names"])
    job.prepare(Config(lists=made))
    assert is_prepared(made)
    (tmp_path / "names").write_text("a b\n")
    with pytest.raises(ListError, match="names:1: found 'a b'"):
        job.prepare(Config(lists=made))


def test_the_job_refreshes(settings: Settings, server: ListServer) -> None:
    made = settings(malware_domains=[server.put("/names", DOMAINS)])
    process = job.start("refresh", Config(lists=made))
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, orjson.loads(output)) == (0, {"changed": ["malware_domains"]})
    assert matches(made, "bad.example")


def test_a_job_that_dies_is_an_error(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names").write_text(DOMAINS)
    made = settings(malware_domains=[tmp_path / "names"])

    def dead(task: job.Task, config: Config) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "import os; os._exit(9)"], stdout=subprocess.PIPE)

    monkeypatch.setattr(job, "start", dead)
    with pytest.raises(ListError, match="exit status 9"):
        job.prepare(Config(lists=made))


def test_two_at_once_wait_for_each_other(settings: Settings, server: ListServer) -> None:
    made = settings(malware_domains=[server.put("/names", MANY, chunk=200)])
    processes = [job.start("refresh", Config(lists=made)) for _ in range(2)]
    answers = [orjson.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert sorted(len(answer["changed"]) for answer in answers) == [0, 1]
    assert len(server.asked) == 1
    assert os.path.exists(made.cache_directory / "lock")


def test_nobody_who_packs_waits_for_a_server(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload packs a file that changed; the gateway must not stand still for a download meanwhile."""
    path = tmp_path / "names"
    path.write_text(DOMAINS)
    ours = settings(malware_domains=[path])
    prepared = []

    def slow(*_: object, **__: object) -> Fetched:
        packer = threading.Thread(target=prepare, args=(ours,), daemon=True)
        packer.start()
        packer.join(20)
        prepared.append(not packer.is_alive())
        return Fetched(DOMAINS.encode())

    monkeypatch.setattr("nedge.lists.refresh.fetch", slow)
    refresh(settings(mining_domains=["http://slow.example/list"]))
    assert prepared == [True]
    assert is_prepared(ours)


@pytest.mark.parametrize("rubbish", [b"[]", b"7", b"null", b"{", b'{"inputs": 1, "looked": "x"}', b"\xff"])
def test_state_that_is_rubbish_is_no_state(settings: Settings, tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "names"
    path.write_text(DOMAINS)
    made = settings(malware_domains=[path, "http://list.example/"])
    prepare(made)
    for file in (tmp_path / "cache" / "packed").glob("*.json"):
        file.write_bytes(rubbish)
    assert next_refresh(made) < time.time()
    assert not is_prepared(made)
    prepare(made)
    assert matches(made, "bad.example")
