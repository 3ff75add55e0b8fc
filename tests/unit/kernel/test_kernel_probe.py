"""What is wrong with a machine, in sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from nedge.kernel import bridge, probe
from nedge.kernel.bridge import check_ports
from nedge.kernel.errors import KernelError
from nedge.kernel.links import Link
from nedge.kernel.probe import Problem, doubtful_links, missing_capabilities, require, touched_bits


def link(name: str, index: int, *, master: int = 0, kind: str = "", mtu: int = 1500) -> Link:
    return Link(name, index, True, master, kind, mtu, {}, False, name == "lo")


def links(*several: Link) -> dict[str, Link]:
    return {one.name: one for one in (link("lo", 1), *several)}


@pytest.fixture(autouse=True)
def _no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "addresses", lambda index: [])


@pytest.mark.parametrize(
    ("held", "missing"), [("3000", False), ("1ffffffffff", False), ("0", True), ("1000", True)]
)
def test_capabilities(tmp_path: Path, held: str, missing: bool) -> None:
    status = tmp_path / "status"
    status.write_text(f"Name:\tx\nCapEff:\t{held.zfill(16)}\n")
    found = missing_capabilities(status)
    assert bool(found) == missing
    if found:
        assert found.text == "nedge run needs root (CAP_NET_ADMIN and CAP_NET_RAW); run it with sudo"


def test_ports_that_can_be_used() -> None:
    check_ports(links(link("lan0", 2), link("wan0", 3)), "br0", ["lan0", "wan0"])
    adopted = links(link("lan0", 2, master=4), link("wan0", 3), link("br0", 4, kind="bridge"))
    check_ports(adopted, "br0", ["lan0", "wan0"])


@pytest.mark.parametrize(
    ("ports", "sentence"),
    [
        (["lan0", "wan9"], "there is no interface wan9; this machine has: lan0, other, taken, wan0"),
        (["lan0", "lan0"], "named twice"),
        (["lan0", "br0"], "named twice"),
        (["lan0", "lo"], "it is the loopback"),
        (["lan0", "other"], "it is bridge"),
        (["lan0", "taken"], r"interface taken belongs to other: use gateway.bridge = 'other', or free it"),
    ],
)
def test_ports_that_cannot(ports: list[str], sentence: str) -> None:
    there = links(
        link("lan0", 2), link("wan0", 3), link("other", 4, kind="bridge"), link("taken", 5, master=4)
    )
    with pytest.raises(KernelError, match=sentence):
        check_ports(there, "br0", ports)


def test_a_port_with_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "addresses", lambda index: ["192.0.2.1/24"])
    with pytest.raises(KernelError, match=r"ip addr del 192\.0\.2\.1/24 dev lan0"):
        check_ports(links(link("lan0", 2)), "br0", ["lan0"])


def test_doubts() -> None:
    there = links(
        link("lan0", 2, master=4, mtu=9000),
        link("wan0", 3, master=4),
        link("br0", 4, kind="bridge"),
        link("extra", 5, master=4),
    )
    texts = [problem.text for problem in doubtful_links(there, "br0", ["lan0"], ["wan0"])]
    assert texts == [
        "ports differ in MTU (lan0 9000, wan0 1500): a bridge drops what is too large",
        "bridge br0 has ports neither LAN nor WAN, not filtered: extra",
    ]
    assert not doubtful_links(links(link("lan0", 2), link("wan0", 3)), "br0", ["lan0"], ["wan0"])


def test_ports_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "missing_capabilities", lambda: None)
    problems = probe.probe("br0", [], ["wan0"])
    assert problems[-1].text == "gateway.lan and gateway.wan must name at least one interface each"


def test_only_fatal_problems_stop() -> None:
    require([Problem("a doubt", fatal=False)])
    with pytest.raises(KernelError, match=r"^the end$"):
        require([Problem("a doubt", fatal=False), Problem("the end")])


def test_missing_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    [problem] = probe.missing_tools()
    assert problem.text.endswith("not found: install iptables")
    assert "ip6tables-restore" in problem.text


@pytest.mark.parametrize(
    ("rule", "bits"),
    [
        ("-A PREROUTING -j MARK --set-xmark 0x10/0xffffffff", 0x10),
        ("-A PREROUTING -i eth0 -j MARK --set-xmark 0x80000000/0xf0000000", 0x80000000),
        ("-A PREROUTING -j MARK --set-xmark 0x0/0xf0000000", 0),
        ("-A PREROUTING -j CONNMARK --set-xmark 0x1/0xffffffff", 0xFFFFFFFF),
        ("-A PREROUTING -j CONNMARK --set-xmark 0x1/0xf", 0xF),
        ("-A FORWARD -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xff", 0xFF),
        ("-A FORWARD -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xf0000000", 0xF0000000),
        ("-A FORWARD -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xffff", 0xFF),
        ("-A NEDGE-br0 -j CONNMARK --save-mark --nfmask 0xf0000000 --ctmask 0xf0000000", 0),
        ("-A FORWARD -m mark --mark 0x80000000/0x80000000 -j ACCEPT", 0),
        (":FORWARD ACCEPT [0:0]", 0),
    ],
)
def test_marks_of_others(rule: str, bits: int) -> None:
    assert touched_bits(rule) == bits
