"""The log: whole lines from several processes, and nobody who fails because it cannot be written."""

from __future__ import annotations

import json
import subprocess
import sys

CHATTER = """
import os
import structlog
from nedge import log
log.configure("info", "json")
os.fork()
os.fork()
for number in range(500):
    structlog.get_logger().info("event", number=number, text="x" * 300)
os._exit(0)
"""
FULL = """
import structlog
from nedge import log
log.configure("info", "json")
structlog.get_logger().info("event")
print(log.lost())
"""


def test_lines_of_several_processes_stay_whole() -> None:
    done = subprocess.run([sys.executable, "-c", CHATTER], stderr=subprocess.PIPE, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(lines) == 4 * 500


def test_a_log_that_cannot_be_written_is_counted() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", FULL], stdout=subprocess.PIPE, stderr=full, check=True)
    assert done.stdout == b"1\n"


def test_without_standard_error() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec 2>&-; exec "$0" -c "$1"', sys.executable, FULL], stdout=subprocess.PIPE, check=True
    )
    assert done.stdout == b"1\n"
