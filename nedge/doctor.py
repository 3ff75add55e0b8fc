"""`nedge doctor`: everything that a gateway depends on, looked at without changing anything.

What keeps `nedge run` from starting is in `kernel.probe.examine`, which both use; here is what concerns a
machine that is to run it for long.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from nedge import assemble
from nedge.config import Config
from nedge.core.marks import Marks
from nedge.dpi import DpiError, NdpiClassifier, load_library
from nedge.dpi.selftest import check as check_dpi
from nedge.errors import ConfigError
from nedge.kernel import state as states
from nedge.kernel import survey
from nedge.kernel.errors import KernelError
from nedge.kernel.frames import FrameRules, Vlans
from nedge.kernel.links import Link, links
from nedge.kernel.listed import Listed, cut_rules
from nedge.kernel.probe import examine, missing_capabilities
from nedge.kernel.problem import Check, Problem
from nedge.kernel.quarantine import Quarantine
from nedge.kernel.queue import PROC_STATS, parse_stats
from nedge.kernel.rules import RuleSet
from nedge.kernel.state import State
from nedge.lists.loading import read_lists
from nedge.lists.refresh import configured

DIRECTORIES = (Path("/var/lib/nedge"), Path("/var/log/nedge"), Path("/var/cache/nedge"))
"""Where an installed gateway keeps what it writes, if they are there."""
_LOW_SPACE = 200 << 20
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_SUNDRY = 256  # bytes, more than a struct timex has

Level = Literal["ok", "warning", "error"]


class Line(NamedTuple):
    """One line of the report."""

    level: Level
    check: str
    text: str


def examine_all(config: Config) -> Iterator[Line]:
    """All checks, one after the other, as they are done."""
    for check in _checks(config):
        if not check.problems:
            yield Line("ok", check.name, check.fine)
        for problem in check.problems:
            for text in problem.text.splitlines():
                yield Line("error" if problem.fatal else "warning", check.name, text)


def _checks(config: Config) -> Iterator[Check]:
    gateway = config.gateway
    yield packages()
    yield from judging(config)
    yield clock()
    yield from storage(config)
    mask = gateway.mark_mask if gateway.offload else 0
    yield from examine(
        gateway.bridge,
        gateway.lan,
        gateway.wan,
        queue=gateway.queue,
        mark_mask=mask,
        max_flows=config.limits.max_flows,
        workers=gateway.workers or os.cpu_count() or 1,
        before_loading=True,
    )
    if missing_capabilities():
        return
    found = links()
    if all(port in found for port in (*gateway.lan, *gateway.wan)):
        yield from cables(config, found)
    yield from gateway_now(config, found)


# Software


def packages() -> Check:
    """The Python packages that nedge requires can be imported."""
    name = "Python"
    version = ".".join(map(str, sys.version_info[:3]))
    try:
        required = importlib.metadata.requires("nedge") or []
    except importlib.metadata.PackageNotFoundError:
        return Check(
            name, "", [Problem("nedge is not installed, but run from its sources: install it", False)]
        )
    wanted = [re.split(r"[^\w.-]", one)[0] for one in required if "extra ==" not in one]
    modules = importlib.metadata.packages_distributions()
    problems = []
    for package in wanted:
        mine = [module for module, owners in modules.items() if _same(package, owners)]
        try:
            if not mine:
                raise ImportError("not installed")
            for module in mine:
                importlib.import_module(module)
        except Exception as error:
            problems.append(
                Problem(f"Python package {package} cannot be used ({error}): install nedge again")
            )
    return Check(name, f"{version}, {len(wanted)} packages", problems)


def _same(package: str, owners: list[str]) -> bool:
    return re.sub(r"[-_.]+", "-", package).lower() in (re.sub(r"[-_.]+", "-", one).lower() for one in owners)


def judging(config: Config) -> Iterator[Check]:
    """libndpi, the lists, the scripts."""
    try:
        dpi = check_dpi(config.dpi.library)
    except DpiError as error:
        yield Check("nDPI", "", [Problem(str(error))])
    else:
        dates = [] if dpi.certificate_dates else [Problem("this build tells no dates of certificates", False)]
        yield Check("nDPI", f"{dpi.version}, {dpi.path}", dates)
        classifier = NdpiClassifier(load_library(config.dpi.library))
        try:
            runner = assemble.make_runner(config, classifier)
        except ConfigError as error:
            yield Check("scripts", "", [Problem(str(error))])
        else:
            yield Check("scripts", f"{len(runner.scripts)} load", [])
            runner.close()
        classifier.close()
    try:
        sets = read_lists(config.lists)
        assemble.make_directory(config, sets, assemble.open_databases(config))
    except ConfigError as error:
        yield Check("lists", "", [Problem(str(error))])
    else:
        count = sum(map(len, configured(config.lists).values()))
        yield Check("lists", f"{count} sources can be used", [])


# The machine


def clock() -> Check:
    """Events have the machine's time, and so does what is decided by the date."""
    libc = ctypes.CDLL(None, use_errno=True)
    wrong = libc.adjtimex(ctypes.create_string_buffer(_SUNDRY)) in (-1, _TIME_ERROR)
    remedy = "not synchronised, so that events may tell wrong times: install chrony or systemd-timesyncd"
    return Check("clock", "synchronised", [Problem(remedy, False)] if wrong else [])


def storage(config: Config) -> Iterator[Check]:
    """Where files are written."""
    wanted = [directory for directory in DIRECTORIES if directory.exists()]
    written = [path for path in (config.eve.path, config.history.path) if path is not None]
    wanted += [path.parent for path in written]
    if configured(config.lists):
        wanted.append(_existing(config.lists.cache_directory))
    for directory in dict.fromkeys((_existing(states.RUN_DIR), *wanted)):
        yield Check(f"disk {directory}", *_room(directory))


def _existing(path: Path) -> Path:
    """The path, or what there is of it."""
    return next(one for one in (path, *path.parents) if one.exists())


def _room(directory: Path) -> tuple[str, list[Problem]]:
    if not directory.is_dir():
        return "", [Problem(f"{directory} is no directory: make it, or change the path in the configuration")]
    if not os.access(directory, os.W_OK):
        return "", [Problem(f"{directory} cannot be written: is it mounted read-only, or another user's?")]
    usage = os.statvfs(directory)
    free = usage.f_bavail * usage.f_frsize
    text = f"{free >> 20} MB free"
    if free < _LOW_SPACE:
        return text, [Problem(f"only {text} on the file system of {directory}: make room", False)]
    return text, []


# Ports


def cables(config: Config, found: dict[str, Link]) -> Iterator[Check]:
    """The links of the ports, and whether LAN and WAN are where they should be."""
    gateway = config.gateway
    ports = (*gateway.lan, *gateway.wan)
    yield Check(
        "cables",
        ", ".join(f"{port} {'has a link' if found[port].up else 'is not set up yet'}" for port in ports),
        [
            Problem(f"interface {port} has no link: is the cable in, and the other end on?", False)
            for port in ports
            if found[port].up and not found[port].carrier
        ],
    )
    yield Check("offloads", "; ".join(map(survey.receive_offloads, ports)), [])
    side = survey.gateway_side(gateway.bridge)
    if side is None:
        fine = "only traffic can tell; nedge run watches it, and logs lan_wan_swapped"
    else:
        fine = f"this machine's own router is behind {side}"
    swapped = f"this machine's own router is behind {side}, a LAN port: swap gateway.lan and gateway.wan"
    yield Check("orientation", fine, [Problem(swapped, False)] if side in gateway.lan else [])


# A gateway that runs


def gateway_now(config: Config, found: dict[str, Link]) -> Iterator[Check]:
    """Whether a gateway runs on the bridge, and then whether all is in place; else, what is in its place."""
    gateway = config.gateway
    state = State(gateway.bridge)
    sections, holder = state.peek()
    count = gateway.workers or os.cpu_count() or 1
    listened = parse_stats(PROC_STATS.read_text()) if PROC_STATS.exists() else {}
    ours = range(gateway.queue, gateway.queue + count)
    if holder is None:
        left = f"one crashed on bridge {gateway.bridge}; nedge run takes over that, nedge cleanup undoes it"
        yield Check("gateway", "not running", [Problem(left, False)] if sections else [])
        taken = [
            Problem(f"queue {number} is taken by another program: stop it or change gateway.queue")
            for number in ours
            if number in listened
        ]
        others = ", ".join(map(str, listened)) or "none"
        yield Check("queue", f"free (others have: {others})", taken)
        return
    yield Check("gateway", f"running (process {holder})", [])
    deaf = [
        Problem(f"nobody listens to queue {number}, though a gateway runs: does its log tell of a worker?")
        for number in ours
        if number not in listened
    ]
    yield Check("queue", "all have their worker", deaf)
    yield Check("rules in place", "all", _rules_in_place(config, sections.get("marks")))
    bridge = found.get(gateway.bridge)
    astray = [
        Problem(f"interface {port} is no port of {gateway.bridge}: the log says why (not_restored)")
        for port in (*gateway.lan, *gateway.wan)
        if bridge is None or port not in found or found[port].master != bridge.index
    ]
    yield Check("bridge in place", f"{gateway.bridge} has all ports", astray)


def _rules_in_place(config: Config, marks: states.Section | None) -> list[Problem]:
    gateway = config.gateway
    listed = gateway.mode == "inline" and config.lists.drop_hosts
    quarantine = listed or (gateway.mode == "inline" and config.verdict.host_drop_score)
    rules = RuleSet(
        gateway.bridge,
        tuple(gateway.lan),
        tuple(gateway.wan),
        gateway.queue,
        bypass=gateway.fail == "open",
        queues=gateway.workers or os.cpu_count() or 1,
        marks=Marks(gateway.mark_mask, marks["generation"]) if marks else None,
        rejecting=config.rejects,
        cuts=cut_rules(
            Quarantine(gateway.bridge) if quarantine else None, Listed(gateway.bridge) if listed else None
        ),
    )
    frames = FrameRules(
        gateway.bridge,
        vlans=Vlans(tuple(dict.fromkeys(gateway.vlans)), gateway.vlan_mask) if gateway.vlans else None,
        drop_arp=gateway.arp == "drop",
        drop_others=gateway.other_frames == "drop",
    )
    try:
        for _ in range(5):  # a reload may be under way, or others change their rules
            if rules.installed() and frames.installed():
                return []
            time.sleep(0.3)
    except KernelError as error:
        return [Problem(str(error))]
    return [
        Problem(
            "the rules in the kernel are not those of this configuration: it was changed (restart nedge), or "
            "somebody changes them again and again (the log says rules_restored)"
        )
    ]
