"""What can be configured, as types. `config_file` reads it."""

from __future__ import annotations

import grp
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    field_validator,
    model_validator,
)

from nedge.core.marks import DEFAULT_MASK, is_mask
from nedge.core.status import STATUS_TYPES
from nedge.core.verdict import DEFAULT_DROP_SCORE


def _network(value: Any) -> IPv4Network | IPv6Network:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    try:
        return ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("an IPv4 or IPv6 network such as 192.168.1.0/24, without host bits") from None


def _address(value: str) -> str:
    try:
        return str(ip_address(value))
    except ValueError:
        raise ValueError("an IPv4 or IPv6 address") from None


def _listen(value: str | None) -> str | None:
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        good = (ip_address(host.strip("[]")).version == 6) == bracketed and 0 < int(port) < 65536
    except ValueError:
        good = False
    if not good:
        raise ValueError("an address and a port, such as 127.0.0.1:9750 or [::1]:9750")
    return value


def _source(value: Any) -> Path | str:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("the path of a file, or a URL that starts with http:// or https://")
    scheme, separator, rest = value.partition("://")
    if not separator:
        return Path(value)
    if scheme.lower() not in ("http", "https") or not urlsplit(value).hostname or rest.split() != [rest]:
        raise ValueError("the path of a file, or a URL that starts with http:// or https://")
    return value


Network = Annotated[IPv4Network | IPv6Network, PlainValidator(_network)]
Address = Annotated[str, AfterValidator(_address)]
File = Annotated[Path, Field(strict=False)]
Source = Annotated[Path | str, PlainValidator(_source)]
"""Where a list comes from: a file, or (a string) a URL."""
Listen = Annotated[str | None, AfterValidator(_listen)]
PassOrDrop = Literal["pass", "drop"]
PassDropOrReject = Literal["pass", "drop", "reject"]
Score = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=366 * 86400)]

LOCAL_NETWORKS = (
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "fc00::/7",
    "fe80::/10",
    "::1/128",
)
"""RFC 1918, ULA (RFC 4193), link-local and loopback."""

_IN_PACKAGE = Path(__file__).parent / "policies"
SHIPPED_POLICIES = _IN_PACKAGE if _IN_PACKAGE.is_dir() else Path(__file__).parent.parent / "policies"
"""The scripts that come with nedge: inside an installed package, beside it in a checkout."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Gateway(_Section):
    """The bridge, and how packets of undecided flows reach us."""

    mode: Literal["inline", "monitor"] = "inline"
    """inline: verdicts happen. monitor: flows are judged and logged, every packet passes."""
    bridge: Annotated[str, Field(pattern=r"^[^\s/]{1,15}$")] = "nedge0"
    """The bridge's interface, 1 to 15 characters. Created if it does not exist; adopted, and left as found,
    if it does."""
    lan: list[str] = []
    """Interfaces towards your hosts, one or more. Only traffic between LAN and WAN is judged."""
    wan: list[str] = []
    """Interfaces towards the Internet, one or more."""
    fail: Literal["open", "closed"] = "open"
    """What happens to packets while nobody judges them. open: they pass. closed: they are dropped. Monitor
    mode is always open."""
    queue: Annotated[int, Field(ge=0, le=65000)] = 71
    """The first NFQUEUE's number; each worker has one, counted from there."""
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    """Worker processes; 0 = one per CPU. A pair of hosts always meets the same one."""
    queue_length: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """Packets that wait in a queue at most, each with up to 64 KB of kernel memory; beyond them `fail`
    decides."""
    offload: bool = True
    """The kernel takes over flows that are decided; false: every packet is judged here."""
    mark_mask: int = DEFAULT_MASK
    """The bits of the conntrack mark that are ours: a run of 3 to 8, above the lowest 3. No other bit is
    touched."""
    vlans: list[Annotated[int, Field(ge=1, le=4094)]] = []
    """VLANs that are told apart. The traffic of all others is judged as if it had no tag."""
    vlan_mask: int = 0x0FFF0000
    """With `vlans`: the bits of a packet's mark that bring its VLAN to us, a run of 12."""
    arp: PassOrDrop = "pass"
    """ARP frames between LAN and WAN. Without them there is no IPv4 between hosts that do not know each
    other."""
    other_frames: PassOrDrop = "pass"
    """Frames that carry neither IP nor ARP."""

    @field_validator("vlan_mask")
    @classmethod
    def _holds_a_vlan(cls, mask: int) -> int:
        if not 0 < mask <= 0xFFFFFFFF or mask // (mask & -mask) != 0xFFF:
            raise ValueError("a run of 12 bits within 32, such as 0x0fff0000")
        return mask

    @model_validator(mode="after")
    def _apart(self) -> Gateway:
        if self.vlans and self.vlan_mask & self.mark_mask:
            raise ValueError(
                f"gateway.vlan_mask: found {self.vlan_mask:#x}, which shares bits with gateway.mark_mask "
                f"{self.mark_mask:#x}; allowed are 12 others"
            )
        return self

    @field_validator("mark_mask")
    @classmethod
    def _is_mask(cls, mask: int) -> int:
        if not is_mask(mask):
            raise ValueError("a run of 3 to 8 bits within 32, above the lowest 3, such as 0xf0000000")
        return mask


class NetworkSection(_Section):
    """What is local."""

    local: list[Network] = Field(default_factory=lambda: [_network(text) for text in LOCAL_NETWORKS])
    """Networks whose hosts are local to scripts, without host bits. Name your real subnets to have their
    broadcast addresses known."""
    own_addresses: list[Address] = []
    """Addresses of this box: local too, and exempt from quarantine."""


class VerdictSection(_Section):
    """From statuses and scores to pass or drop."""

    drop_score: Score = DEFAULT_DROP_SCORE
    """Flow score from which a flow is dropped; 0 = never."""
    host_drop_score: Score = 0
    """Live host score from which all of a host's flows are dropped; 0 = never."""
    quarantine_seconds: Seconds = 300
    """How long a host is cut off, in seconds. More than 24 days: until it is released."""
    action: Literal["drop", "reject"] = "drop"
    """What being blocked means. reject: TCP gets a RST at both ends, all else an ICMP error."""
    rejects_per_second: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Packets that one worker answers a second, at most; what is rejected beyond them is dropped."""
    block_statuses: list[str] = ["status_blacklisted"]
    """Statuses that block by themselves, whatever the score."""

    @field_validator("block_statuses")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in STATUS_TYPES or name == "status_normal":
                raise ValueError(f"unknown status {name!r}: allowed are {', '.join(list(STATUS_TYPES)[1:])}")
        return names


class Failures(_Section):
    """What happens to packets when something fails. Each has a counter.

    reject is drop where nobody can be answered: fragments, and bytes that are no packet.
    """

    midstream: PassDropOrReject = "pass"
    """TCP flows whose start was not seen: there before us, or left by a worker that was replaced."""
    unclassified: PassDropOrReject = "pass"
    """Flows that nDPI could not name within the limits."""
    malformed: PassDropOrReject = "pass"
    """Packets with headers that contradict themselves or are cut short."""
    fragment: PassDropOrReject = "pass"
    """Non-first fragments. On a bridge the kernel reassembles before we see them."""
    table_full: PassDropOrReject = "pass"
    """Packets of new flows when max_flows are live."""
    script_error: PassDropOrReject = "pass"
    """Flows on which a script raised."""
    script_timeout: PassDropOrReject = "pass"
    """Flows on which a script took longer than scripts.budget_ms."""
    dpi_error: PassDropOrReject = "pass"
    """Flows whose inspection by nDPI failed."""


class Limits(_Section):
    """Bounds on memory and waiting."""

    max_flows: Annotated[int, Field(ge=1)] = 1_000_000
    """Live flows in one worker, at most; a decided one takes about 1.5 KB. Beyond them `failures.table_full`
    decides."""
    detection_packets: Annotated[int, Field(ge=1, le=32)] = 12
    """Packets after which a flow is judged unclassified."""
    detection_seconds: Seconds = 5
    """Silence after which a flow is judged unclassified, in seconds."""
    idle_seconds: Seconds = 60
    """Silence that ends a flow, in seconds."""
    closed_seconds: Seconds = 15
    """Silence that ends a closed or half-open TCP flow, in seconds."""


class Lists(_Section):
    """Files and URLs with one entry a line. Relative paths: to the configuration file."""

    malware_hosts: list[Source] = []
    """Addresses and networks. A flow with one of them at either end is blacklisted."""
    drop_hosts: list[Source] = []
    """Addresses and networks that the kernel cuts off by itself: no script is asked, no flow recorded; its
    packets are counted (`listed_packets`). What is allowed or unblocked passes all the same."""
    malware_domains: list[Source] = []
    """Domains, each with what is below it. A flow that asks for one is blacklisted."""
    malware_fingerprints: list[Source] = []
    """JA3 and JA4 fingerprints of TLS clients, for the script malicious_signature."""
    mining_domains: list[Source] = []
    """Domains whose flows get nDPI's category Mining, for scripts to look at."""
    advertisement_domains: list[Source] = []
    """Domains whose flows get nDPI's category Advertisement."""
    allow_hosts: list[Source] = []
    """Addresses and networks that are never blocked, except by the operator."""
    allow_domains: list[Source] = []
    """Domains that are never blocked, except by the operator. It is the client who says what it asks for:
    keep this list short."""
    refresh_hours: Annotated[float, Field(ge=0, le=8784)] = 24
    """How often URLs are asked for news, and files looked at, in hours; 0 = only by `nedge lists refresh`,
    or a reload for files."""
    cache_directory: File = Path("/var/cache/nedge")
    """Where downloads are kept, and lists in the form in which workers share them."""
    max_megabytes: Annotated[int, Field(ge=1, le=4096)] = 64
    """The largest download that is taken, unpacked, in megabytes."""
    min_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A download with less than this part of the entries that the one before had is not taken."""


class GeoIP(_Section):
    """Places of addresses. The databases are opened anew with a reload."""

    country_database: File | None = None
    """A database in MaxMind's format with country.iso_code, such as GeoLite2-Country.mmdb. Without it no
    address has a country."""
    asn_database: File | None = None
    """One with autonomous_system_number, such as GeoLite2-ASN.mmdb."""


class Dpi(_Section):
    """How flows are inspected."""

    library: str = "auto"
    """system, nfstream (the shared object in its wheel), auto (the first of these that is there), or the
    path of a libndpi.so."""
    watch_http: bool = True
    """Judge plain HTTP request by request, which keeps such connections in user space; false: by the first
    request only."""
    http_answers: bool = False
    """Look at the first answer of plain-HTTP servers, too, before it passes: for its status code and content
    type, for protocols and categories that only the answer tells (HLS, Media, Download), and for what nDPI
    finds risky in it. false: only if a script asks for it, or with watch_http = false; connections are set up
    faster then."""


class Eve(_Section):
    """Events, a JSON object a line."""

    path: File | None = None
    """The file, in Suricata's EVE format; none: no events."""
    stats_seconds: Annotated[float, Field(ge=0, le=86400)] = 60
    """How often the counters are an event, too, in seconds; 0 = never."""
    rotate_megabytes: Annotated[int, Field(ge=0)] = 0
    """Size at which a new file begins, in megabytes; 0 = never."""
    rotate_hours: Annotated[float, Field(ge=0, le=8784)] = 0
    """Time after which a new file begins, in hours counted from midnight UTC; 0 = never."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 5
    """Rotated files that are kept."""


class History(_Section):
    """What became of flows, in a SQLite file that `nedge history` reads."""

    path: File | None = None
    """The file; none: no history."""
    max_days: Annotated[float, Field(gt=0, le=36525)] = 30
    """Age at which rows are deleted, in days."""
    max_megabytes: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Size of the file, in megabytes, beyond which the oldest rows are deleted. A flow takes about 150
    bytes."""


class Metrics(_Section):
    """For Prometheus."""

    listen: Listen = None
    """Address and port to answer on, such as "127.0.0.1:9750"; none: nowhere. Whoever gets there can read all
    metrics. How long packets take to be judged is only measured if this was set when nedge started."""


class Control(_Section):
    """Who may look at a running gateway and steer it, and where: see deploy/CONTROL.md."""

    socket: File | None = None
    """The unix socket; none: one under /run/nedge, where the commands look for it."""
    group: str | None = None
    """Members of this group may, too; none: only root and the gateway's own user."""
    state: File = Path("/var/lib/nedge")
    """Directory where the operator's orders are kept, so that they outlive a restart."""

    @field_validator("group")
    @classmethod
    def _is_group(cls, name: str | None) -> str | None:
        if name is not None:
            try:
                grp.getgrnam(name)
            except KeyError:
                raise ValueError("the name of a group of this machine") from None
        return name


class Log(_Section):
    """The log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """What is less important than this is left out."""
    format: Literal["auto", "console", "json"] = "auto"
    """auto: console on a terminal, json elsewhere."""


class Scripts(BaseModel):
    """User scripts. Every other key is a table with one script's settings."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    directories: list[File] = [SHIPPED_POLICIES]
    """Directories of scripts, or single scripts, in place of those that come with nedge: name their
    directory, too, to have both."""
    budget_ms: Annotated[int, Field(ge=10, le=900)] = 100
    """What one call of a script may take, in milliseconds; then it is interrupted. (Workers silent for 1 s
    are replaced.)"""
    max_errors: Annotated[int, Field(ge=0)] = 100
    """Errors in a row that put a script aside until reload; 0 = never. An interrupted call counts as 20."""
    lua_memory_mb: Annotated[int, Field(ge=4, le=4096)] = 64
    """Memory that one Lua script may take, in megabytes."""
    lua_allow: list[Literal["io", "os"]] = []
    """Libraries of Lua that scripts get whole: files, programs, all that nedge itself may do."""

    @model_validator(mode="after")
    def _tables(self) -> Scripts:
        for key, value in (self.__pydantic_extra__ or {}).items():
            if not isinstance(value, dict):
                raise ValueError(f"scripts.{key}: found {value!r}; allowed is a table: [scripts.{key}]")
        return self

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Script key -> its table."""
        return dict(self.__pydantic_extra__ or {})


class Config(_Section):
    """Everything. `Config()` is a working default for replay."""

    gateway: Gateway = Gateway()
    network: NetworkSection = Field(default_factory=NetworkSection)
    verdict: VerdictSection = VerdictSection()
    failures: Failures = Failures()
    limits: Limits = Limits()
    lists: Lists = Lists()
    geoip: GeoIP = GeoIP()
    dpi: Dpi = Dpi()
    eve: Eve = Eve()
    history: History = History()
    metrics: Metrics = Metrics()
    control: Control = Control()
    log: Log = Log()
    scripts: Scripts = Scripts()

    @property
    def rejects(self) -> bool:
        """Whether anything is rejected, so that ends of flows are told."""
        return "reject" in (self.verdict.action, *dict(self.failures).values())
