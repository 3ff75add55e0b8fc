"""Lists from a URL: in force at once, for live flows too, and while the server is gone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from test_offload import https, kept, until

from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

LISTS = """\
[lists]
malware_domains = ["http://127.0.0.1:8099/names"]
cache_directory = "cache"
"""


@contextmanager
def list_server(lab: Lab, directory: Path) -> Iterator[None]:
    """A web server in the gateway's namespace, which is where lists are fetched from."""
    command = [sys.executable, "-m", "http.server", "8099", "--bind", "127.0.0.1", "--directory", directory]
    with (lab.directory / "list-server").open("w") as log:
        process = lab.gateway.popen(command, stdout=log, stderr=log)
    try:
        probe = ["ss", "-Hltn", "sport", "=", "8099"]
        until(lambda: lab.gateway.run(probe).stdout.strip())
        yield
    finally:
        lab.gateway.stop(process, grace=1)


def refresh(lab: Lab, gateway: Gateway) -> int:
    config = gateway.directory / "nedge.toml"
    command = [sys.executable, "-m", "nedge", "lists", "refresh", "--config", config, "--accept-shrunken"]
    return lab.gateway.run(command, timeout=60).returncode


def test_a_refresh_reaches_live_connections(lab: Lab, servers: ServerSet, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("bad.example\n")
    workers = "workers = 2\n"
    with list_server(lab, tmp_path), Gateway(lab, PORTS + workers + EVENTS + LISTS) as gateway:
        until(lambda: "lists_renewed" in gateway.log)  # it was never downloaded, so it was due
        assert not https(lab, "bad.example")
        with kept(lab, "www.example") as connection:
            assert connection.ask() == "answered"
            (tmp_path / "names").write_text("www.example\n" + "other.example\n" * 9)
            assert refresh(lab, gateway) == 0
            until(lambda: gateway.log.count("lists_renewed") == 2)
            until(lambda: connection.ask() == "silence")
            assert https(lab, "bad.example")
            assert not https(lab, "www.example")
            (tmp_path / "names").write_text("bad.example\n")
            assert refresh(lab, gateway) == 0
            until(lambda: gateway.log.count("lists_renewed") == 3)
            until(lambda: https(lab, "www.example"))
            assert not https(lab, "bad.example")
        assert "worker_restarted" not in gateway.log
        assert '"reloaded"' not in gateway.log


def test_the_last_good_list_is_in_force_from_the_start(lab: Lab, servers: ServerSet, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("bad.example\n")
    with Gateway(lab, PORTS + EVENTS + LISTS) as gateway:  # nobody serves the list
        until(lambda: "list_refresh_failed" in gateway.log)
        assert https(lab, "bad.example")
        with list_server(lab, tmp_path):
            assert refresh(lab, gateway) == 0
        until(lambda: not https(lab, "bad.example"))
        assert refresh(lab, gateway) == 1
        assert not https(lab, "bad.example")
    with Gateway(lab, PORTS + EVENTS + LISTS):
        assert not https(lab, "bad.example")
        assert https(lab, "www.example")
