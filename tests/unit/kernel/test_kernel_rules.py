"""Rule text, and what happens to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nedge.core.flow import Share
from nedge.core.marks import Marks, Note
from nedge.kernel import rules
from nedge.kernel.errors import KernelError
from nedge.kernel.probe import forward_policy
from nedge.kernel.rules import RuleSet, jumps
from nedge.kernel.state import State

JUMP = "-A FORWARD -m physdev --physdev-is-bridged -j NEDGE-br0"


def rule_set(**changes: object) -> RuleSet:
    values: dict[str, object] = {
        "bridge": "br0",
        "lan": ("lan0",),
        "wan": ("wan0",),
        "queue": 71,
        "bypass": True,
    }
    return RuleSet(**(values | changes))  # type: ignore[arg-type]


PAIR = (
    "-A NEDGE-br0 -m physdev --physdev-is-bridged --physdev-in {} --physdev-out {} -j NFQUEUE --queue-num 71"
)


def test_the_transaction_for_ipv4() -> None:
    assert rule_set().render("ip").splitlines() == [
        "*mangle",
        ":NEDGE-br0 - [0:0]",
        "-A NEDGE-br0 -m conntrack --ctstate INVALID",
        "-A NEDGE-br0 -m pkttype ! --pkt-type unicast -j RETURN",
        PAIR.format("lan0", "wan0") + " --queue-bypass",
        PAIR.format("wan0", "lan0") + " --queue-bypass",
        "-I FORWARD 1 -m physdev --physdev-is-bridged -j NEDGE-br0",
        "COMMIT",
    ]


def test_a_syns_answer_comes_up_only_where_both_ends_have_to_be_told() -> None:
    for rejecting in (False, True):
        for family in rules.FAMILIES:
            lines = rule_set(marks=Marks(), rejecting=rejecting).rules(family)
            passed = [line for line in lines if " SYN,ACK " in line.replace("SYN,FIN,RST,ACK", "")]
            assert [line.endswith("-m conntrack --ctdir REPLY -j RETURN") for line in passed] == (
                [True] * (not rejecting)
            )


def test_the_mark_of_what_is_untracked_tells_of_no_decision_and_stays_off_judged_packets() -> None:
    marks = Marks(0x00F00000, 2)
    assert not marks.note(Note.UNTRACKED) & marks.share_mask
    (line,) = (line for line in rule_set(marks=marks).rules("ip") if "INVALID" in line)
    assert line.endswith("-m mark --mark 0x0/0xf00000 -j MARK --set-xmark 0x400000/0xf00000")


def lines_with(lines: list[str], *parts: str) -> list[int]:
    return [number for number, line in enumerate(lines) if all(part in line for part in parts)]


@pytest.mark.parametrize("family", rules.FAMILIES)
def test_a_syn_passes_between_our_ports_once_its_connection_is_marked(family: rules.Family) -> None:
    marks = Marks()
    lines = rule_set(marks=marks, starts=True).rules(family)
    started = f"{marks.started:#x}/{marks.mask:#x}"
    to_started = lines_with(lines, " SYN -m bpf", "--ctstate NEW", f"-j CONNMARK --set-xmark {started}")
    assert [lines[number].count(f"--physdev-in {port}") for number in to_started for port in ("lan0", "wan0")]
    assert len(to_started) == 2
    (passed,) = lines_with(lines, " SYN -m bpf", f"--mark {started}", "-j RETURN")
    assert passed == to_started[-1] + 1
    noted = lines_with(lines, f"--mark {started}", "-j MARK")
    assert noted
    assert passed < min(noted)
    assert max(lines_with(lines, f"--mark {started}")) < min(lines_with(lines, "--physdev-in", "NFQUEUE"))


def test_without_that_what_started_before_is_noted_all_the_same() -> None:
    with_starts, without = (rule_set(marks=Marks(), starts=starts).rules("ip") for starts in (True, False))
    assert len(with_starts) == len(without) + 3
    assert not lines_with(without, " SYN -m bpf", "-j RETURN")
    assert lines_with(without, f"--mark {Marks().started:#x}", "-j MARK")


def test_what_the_server_acknowledges_comes_up_until_it_is_sure_where_the_client_began() -> None:
    lines = rule_set(marks=Marks(), starts=True).rules("ip")
    (up,) = lines_with(lines, " ACK -m bpf", f"--mark {Marks().unsure:#x}/", "--ctdir REPLY", "-j NFQUEUE")
    (passed,) = lines_with(lines, " ACK -m bpf", "-j RETURN")
    assert up < passed


def test_three_bits_are_too_few_to_know_of_starts() -> None:
    marks = Marks(0x7000)
    assert not marks.knows_starts
    lines = rule_set(marks=marks, starts=True).rules("ip")
    assert not lines_with(lines, " SYN -m bpf")
    assert not lines_with(lines, "-j CONNMARK --set-xmark")


@pytest.mark.parametrize("mask", [0xF0000000, 0x00F0, 0x1F00, 0xFF])
def test_no_two_marks_are_the_same(mask: int) -> None:
    for generation in range(4):
        marks = Marks(mask, generation)
        decided = {marks.value(share) for share in Share if share}
        others = {0, marks.started, marks.unsure, marks.nobody}
        assert len(decided) == 3
        assert len(others) == 4
        assert not decided & others
        notes = [marks.note(note) for note in Note]
        assert [(mark & marks.note_mask) // (marks.note_mask & -marks.note_mask) for mark in notes] == [
            0,
            1,
            2,
            3,
        ]
        assert not any(mark & marks.share_mask for mark in (*others, *notes))


def test_fail_closed_has_no_bypass() -> None:
    assert "bypass" not in rule_set(bypass=False).render("ip")


def test_neighbour_discovery_passes_before_the_queue() -> None:
    lines = rule_set().rules("ip6")
    kinds = [line.split("--icmpv6-type ")[1].split()[0] for line in lines if "icmpv6-type" in line]
    assert kinds == ["133", "134", "135", "136", "137"]
    assert "NFQUEUE" in lines[-1]
    assert not any("icmp" in line for line in rule_set().rules("ip"))


def test_every_lan_wan_pair_in_both_directions_and_nothing_else() -> None:
    lines = rule_set(lan=("a", "b"), wan=("c",), bypass=False).rules("ip")
    queued = {f"-A NEDGE-br0 {line}" for line in lines if "NFQUEUE" in line}
    assert queued == {PAIR.format(*pair) for pair in ("ac", "ca", "bc", "cb")}


def test_leftovers_go_in_the_same_transaction() -> None:
    lines = rule_set().render("ip", [JUMP, JUMP]).splitlines()
    assert lines[:3] == ["*mangle", JUMP.replace("-A", "-D", 1), JUMP.replace("-A", "-D", 1)]


@pytest.mark.parametrize("name", ["eth+", "", "a b", "x" * 16, "lan0\nCOMMIT", "a'b"])
def test_names_that_rules_would_misread_are_refused(name: str) -> None:
    with pytest.raises(KernelError, match="interface name"):
        rule_set(lan=(name,))


SAVED = f"""\
# Generated by iptables-save
*filter
-A FORWARD -j NEDGE-br0
COMMIT
*mangle
:FORWARD ACCEPT [1:2]
:NEDGE-br0 - [0:0]
{JUMP}
-A FORWARD -j NEDGE-br00
-A NEDGE-br0 -m conntrack --ctstate INVALID
COMMIT
""".splitlines()


def test_jumps_are_found_in_the_mangle_table_only() -> None:
    assert jumps(SAVED, "NEDGE-br0") == [JUMP]
    assert jumps([], "NEDGE-br0") == []


class Tables:
    """Stands for iptables: what is there, and what is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, saved: list[str], refuses: str = "") -> None:
        self.saved, self.refuses = saved, refuses
        self.done: list[tuple[str, str]] = []
        monkeypatch.setattr(rules, "save", lambda family: self.saved)
        monkeypatch.setattr(rules, "restore", self.restore)

    def restore(self, family: str, text: str) -> None:
        if family == self.refuses:
            raise KernelError("refused")
        self.done.append((family, text))


def test_a_refused_ipv6_takes_ipv4_back_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables(monkeypatch, [], refuses="ip6")

    def restore(family: str, text: str) -> None:
        Tables.restore(tables, family, text)
        tables.saved = ["*mangle", ":NEDGE-br0 - [0:0]", JUMP, "COMMIT"]

    monkeypatch.setattr(rules, "restore", restore)
    with pytest.raises(KernelError):
        rule_set().install()
    assert [family for family, _ in tables.done] == ["ip", "ip"]
    assert tables.done[1][1].splitlines() == [
        "*mangle",
        JUMP.replace("-A", "-D", 1),
        "-F NEDGE-br0",
        "-X NEDGE-br0",
        "COMMIT",
    ]


def test_a_refused_ipv6_puts_back_the_rules_of_a_crashed_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables(monkeypatch, SAVED, refuses="ip6")
    with pytest.raises(KernelError):
        rule_set().install()
    assert tables.done[1][1].splitlines() == [
        "*mangle",
        JUMP.replace("-A", "-D", 1),
        ":NEDGE-br0 - [0:0]",
        "-A NEDGE-br0 -m conntrack --ctstate INVALID",
        JUMP.replace("-A FORWARD", "-I FORWARD 1"),
        "COMMIT",
    ]


def test_nothing_to_remove_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables(monkeypatch, ["*filter", "COMMIT"])
    assert not rules.sweep("br0")
    assert tables.done == []


def test_installed_means_all_rules_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = rule_set()
    tables = Tables(monkeypatch, [])
    assert not ours.installed()

    def saved(family: rules.Family, extra: list[str]) -> list[str]:
        return ["*mangle", *extra, *(f"-A NEDGE-br0 {rule}" for rule in ours.rules(family)), "COMMIT"]

    monkeypatch.setattr(rules, "save", lambda family: saved(family, [JUMP]))
    assert ours.installed()
    monkeypatch.setattr(rules, "save", lambda family: saved(family, [JUMP, JUMP]))
    assert not ours.installed()
    assert tables.done == []


def test_tables_that_were_not_there_are_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = State("br0", tmp_path)
    Tables(monkeypatch, [])
    rule_set(state=state).install()
    assert state.get("rules") == {"tables_made": ["ip", "ip6"]}


def test_the_line_that_iptables_refuses_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "iptables-restore"
    tool.write_text("#!/bin/sh\necho 'iptables-restore: line 2 failed' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(KernelError, match=r"line 2 failed \(-A no sense\)"):
        rules.restore("ip", "*mangle\n-A no sense\nCOMMIT\n")


def test_without_iptables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="iptables-save was not found: install iptables"):
        rules.save("ip")


def test_policy_of_others() -> None:
    assert forward_policy(["*mangle", ":FORWARD DROP [0:0]", "*filter", ":FORWARD ACCEPT [0:0]"]) == "ACCEPT"
    assert forward_policy(["*filter", ":FORWARD DROP [0:0]"]) == "DROP"
    assert forward_policy([]) == "ACCEPT"
