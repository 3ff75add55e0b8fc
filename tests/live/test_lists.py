"""Lists: those from a URL in force at once, and while its server is gone; those that the kernel enforces."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_offload import https, kept, until

from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.servers import ServerSet
from nedge.lab.topology import SERVER, Lab

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


DROPPED = """\
[control]
state = "state"
[lists]
drop_hosts = ["hosts"]
refresh_hours = 0
cache_directory = "cache"
"""


def put(lab: Lab, *hosts: str) -> None:
    directory = lab.directory / "gateway"
    directory.mkdir(exist_ok=True)
    (directory / "hosts").write_text("".join(f"{host}\n" for host in hosts))


def reaches(lab: Lab, address: str) -> bool:
    url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
    return lab.client.run(["curl", "-gsm", "1", "-o", "/dev/null", url]).returncode == 0


def ask(lab: Lab, *arguments: str) -> str:
    return lab.gateway.run([sys.executable, "-m", "nedge", *arguments], check=True).stdout


@pytest.mark.parametrize(("family", "network"), [("v4", "10.99.0.0/30"), ("v6", "fd99::1")])
def test_the_kernel_cuts_listed_networks(lab: Lab, servers: ServerSet, family: str, network: str) -> None:
    other = {"v4": SERVER.v6, "v6": SERVER.v4}[family]
    address = getattr(SERVER, family)
    put(lab, network, "203.0.113.0/24")
    with Gateway(lab, PORTS + EVENTS + DROPPED) as gateway:
        assert not reaches(lab, address)
        assert reaches(lab, other)
        ask(lab, "unblock", address)  # the operator has the last word
        until(lambda: reaches(lab, address))
        ask(lab, "forget", address)
        until(lambda: not reaches(lab, address))
        lab.gateway.run(["ipset", "flush", f"nedge-nedge0-d{family[1]}"], check=True)
        until(lambda: not reaches(lab, address), 20)
        put(lab, "203.0.113.0/24")
        ask(lab, "reload")
        until(lambda: reaches(lab, address))
        assert gateway.stop() == 0
        assert gateway.logged("gateway_totals")[-1]["listed_packets"] > 0
    assert lab.gateway.run(["ipset", "list", "-n"], check=True).stdout == ""


def test_an_open_connection_is_cut_when_its_server_is_listed(lab: Lab, servers: ServerSet) -> None:
    put(lab, "203.0.113.0/24")
    with Gateway(lab, PORTS + EVENTS + DROPPED) as gateway, kept(lab, "www.example") as connection:
        assert connection.ask() == "answered"
        put(lab, SERVER.v4)
        ask(lab, "reload")
        until(lambda: connection.ask() == "silence")
        os.kill(gateway.pid, signal.SIGKILL)  # whoever is listed stays cut off while nedge is away
        assert not reaches(lab, SERVER.v4)
    with Gateway(lab, PORTS + EVENTS + DROPPED):
        assert not reaches(lab, SERVER.v4)


def test_allowed_hosts_are_not_cut(lab: Lab, servers: ServerSet) -> None:
    put(lab, SERVER.v4)
    (lab.directory / "gateway" / "allowed").write_text(f"{SERVER.v4}\n")
    with Gateway(lab, PORTS + EVENTS + DROPPED + 'allow_hosts = ["allowed"]\n'):
        assert reaches(lab, SERVER.v4)
    with Gateway(lab, PORTS + 'mode = "monitor"\n' + EVENTS + DROPPED):
        assert reaches(lab, SERVER.v4)
