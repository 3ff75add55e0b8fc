"""The one thing iptables cannot undo: the table that its nf_tables flavour makes for the first rule."""

from __future__ import annotations

import socket

from pyroute2.nftables.main import NFTables

_FAMILY = {"ip": socket.AF_INET, "ip6": socket.AF_INET6}
_ACCEPT = 1


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
