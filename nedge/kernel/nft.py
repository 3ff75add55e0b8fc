"""What iptables cannot do: undo the table that its nf_tables flavour makes, and tell of changes."""

from __future__ import annotations

import socket

from pyroute2.nftables.main import NFTables

_FAMILY = {"ip": socket.AF_INET, "ip6": socket.AF_INET6}
_ACCEPT = 1
_NETFILTER = 12  # NETLINK_NETFILTER
_NFNLGRP_NFTABLES = 7


def remove_if_empty(family: str, table: str) -> None:
    """Remove an nf_tables table that does nothing: only base chains, without rules, that accept.

    Does nothing where the table is in use, or not there, or belongs to the old iptables (whose tables
    stay until reboot).
    """
    try:
        with NFTables(nfgen_family=_FAMILY[family]) as nft:
            if table not in [one.get_attr("NFTA_TABLE_NAME") for one in nft.get_tables()]:
                return
            chains = [one for one in nft.get_chains() if one.get_attr("NFTA_CHAIN_TABLE") == table]
            if all(_idle(chain) for chain in chains):
                nft.table("del", name=table)
    except OSError:  # a kernel without nf_tables; an empty table does no harm
        return


def _idle(chain: object) -> bool:
    get = chain.get_attr  # type: ignore[attr-defined]
    return (
        not get("NFTA_CHAIN_USE")
        and get("NFTA_CHAIN_HOOK") is not None
        and get("NFTA_CHAIN_POLICY") == _ACCEPT
    )


class RuleNews:
    """Hears of every change of nf_tables rules in this network namespace, whoever makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        self._socket.setblocking(False)
        self._socket.bind((0, 1 << _NFNLGRP_NFTABLES - 1))

    def fileno(self) -> int:
        """Readable after a change."""
        return self._socket.fileno()

    def consume(self) -> None:
        """Take note of all changes so far."""
        while True:
            try:
                self._socket.recv(1)
            except BlockingIOError:
                return
            except OSError:  # more news than fit: that is news enough
                continue

    def close(self) -> None:
        self._socket.close()
