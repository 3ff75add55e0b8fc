"""The lab's servers, as the lab's user sees them: `ServerSet`.

What they received tells whether a request arrived: `assert not servers.received(host="blocked.example")`.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nedge.lab.certificates import make_certificates
from nedge.lab.host import Address, LabError, call
from nedge.lab.ports import SERVICES
from nedge.lab.received import Request, read_received
from nedge.lab.topology import Lab

START_DEADLINE = 20.0
SENTINEL = "sentinel.lab.invalid"

DEFAULT_NAMES = ("www.example", "allowed.example", "blocked.example", "*.lab.example", "*.example.com")
"""What the certificates are valid for. Clients accept wildcards from the third level on."""


class ServerSet:
    """Starts the servers on entry, on all addresses of the lab's server; returns when each port answers."""

    def __init__(
        self,
        lab: Lab,
        *,
        http: bool = True,
        https: bool = True,
        dns: bool = True,
        ssh: bool = True,
        quic: bool = True,
        names: Sequence[str] = DEFAULT_NAMES,
        hosts: Mapping[str, Address] | None = None,
    ) -> None:
        """`names` go into the certificates. `hosts` get addresses of their own from the DNS server.

        Every other name resolves to the server's main address. QUIC is left out where aioquic is missing.
        """
        self._lab = lab
        asked = {"http": http, "https": https, "dns": dns, "ssh": ssh, "quic": quic and has_quic()}
        self.services = tuple(service for service in SERVICES if asked[service])
        self._names = names
        self._hosts = dict(hosts or {})
        self._process: subprocess.Popen[str] | None = None
        self._sentinels = 0
        self.directory = Path()

    @property
    def ca(self) -> Path:
        """The certificate authority, for clients that verify."""
        return self.directory / "ca.pem"

    @property
    def address(self) -> Address:
        """The server's main address."""
        return self._lab.server.address

    def __enter__(self) -> Self:
        self.directory = self._lab.directory / "servers"
        self.directory.mkdir()
        if {"https", "quic"} & set(self.services):
            make_certificates(self.directory, self._names)
        if "ssh" in self.services:
            self._make_ssh_keys()
        (self.directory / "received.jsonl").touch()
        (self.directory / "hosts.json").write_text(json.dumps(self._hosts))
        addresses = [self._lab.server.address, *self._lab.sites]
        with (self.directory / "log").open("w") as log:
            self._process = self._lab.server.popen(
                [
                    *(sys.executable, "-m", "nedge.lab.server_process"),
                    *("--directory", self.directory),
                    *("--services", ",".join(self.services)),
                    *("--addresses", ",".join(each for address in addresses for each in address)),
                ],
                stdout=log,
                stderr=log,
            )
        try:
            self._await_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the servers. What they received can still be read, as long as the lab is there."""
        if self._process is not None:
            self._lab.server.stop(self._process)
            self._process = None

    def received(self, *, proto: str | None = None, host: str | None = None) -> list[Request]:
        """What has arrived so far, oldest first; all of it, or of one protocol, for one name."""
        if self._process is not None and "dns" in self.services:
            self._settle()
        wanted = [request for request in self._read() if proto in (None, request.proto)]
        return [request for request in wanted if host in (None, request.host)]

    def ssh_command(self, *command: str, address: str | None = None) -> list[str]:
        """The client's command line for running a command over SSH, as root with a key."""
        options = {
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "GlobalKnownHostsFile": "/dev/null",
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "ConnectTimeout": "5",
            "LogLevel": "ERROR",
        }
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        target = f"root@{address or self._lab.server.address.v4}"
        return ["ssh", "-F", "none", "-i", str(self.directory / "ssh_client"), *flags, target, *command]

    def _make_ssh_keys(self) -> None:
        call(["dropbearkey", "-t", "ed25519", "-f", str(self.directory / "ssh_host")])
        client = self.directory / "ssh_client"
        call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(client)])
        folder = self._lab.directory / "home" / ".ssh"  # root's home, says the lab's passwd file
        folder.mkdir(mode=0o700)
        keys = folder / "authorized_keys"
        keys.write_text(client.with_suffix(".pub").read_text())
        keys.chmod(0o600)

    def _await_ready(self, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while not (self.directory / "ready").exists():
            log = (self.directory / "log").read_text().strip()
            if process.poll() is not None:
                raise LabError(f"the lab's servers ended with status {process.returncode}:\n{log}")
            if time.monotonic() > deadline:
                raise LabError(f"the lab's servers did not all answer in {START_DEADLINE:.0f} s:\n{log}")
            time.sleep(0.01)

    def _settle(self) -> None:
        """Wait until everything that the DNS server answered is in the log.

        The other servers write before they answer. What dnsmasq logs comes through a pipe, later: so ask it
        something, from its own host, and wait for that to come through.
        """
        self._sentinels += 1
        name = f"{self._sentinels}.{SENTINEL}"
        server = self._lab.server
        server.run(["dig", "+short", "+tries=3", "+time=1", f"@{server.address.v4}", name])
        deadline = time.monotonic() + 5
        while not any(request.host == name for request in self._read(sentinels=True)):
            if time.monotonic() > deadline:
                raise LabError("the lab's DNS server does not answer any more")
            time.sleep(0.005)

    def _read(self, *, sentinels: bool = False) -> list[Request]:
        requests = read_received(self.directory / "received.jsonl")
        return [request for request in requests if sentinels or not request.host.endswith(SENTINEL)]


def has_quic() -> bool:
    """Whether aioquic, which is no dependency of nedge itself, is installed."""
    return importlib.util.find_spec("aioquic") is not None
