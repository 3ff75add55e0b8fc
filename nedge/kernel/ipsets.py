"""What the modules that keep ipsets have in common."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from nedge.kernel.errors import KernelError

_LIST_HEADER = 4  # IPSET_FLAG_LIST_HEADER


def set_size(kernel: Any, name: str) -> int:
    """The number of entries of a set; -1 from a kernel that does not tell."""
    for part in tuple(kernel.list(name, flags=_LIST_HEADER)):
        size = part.get_attr("IPSET_ATTR_DATA").get_attr("IPSET_ATTR_ELEMENTS")
        return -1 if size is None else int(size)
    raise OSError(errno.ENOENT, name)  # some releases of pyroute2 give an empty list


def remove_sets(kernel: Any, *names: str) -> bool:
    """Destroy sets, as far as there are any. Says if there was one."""
    found = False
    for name in names:
        try:
            kernel.destroy(name)
            found = True
        except (NetlinkError, OSError) as error:
            if not is_error(error, errno.ENOENT):
                raise
    return found


def is_error(error: Exception, *codes: int) -> bool:
    """Whether the kernel refused with one of these codes."""
    return getattr(error, "code", getattr(error, "errno", None)) in codes


@contextlib.contextmanager
def errors(what: str) -> Iterator[None]:
    """Name what could not be done with the sets."""
    try:
        yield
    except (NetlinkError, OSError) as error:
        raise KernelError(
            f"the ipsets could not be {what} ({error}): they take root, and the kernel's "
            "ip_set_hash_ip, ip_set_hash_net and xt_set; `ipset list` shows them"
        ) from error
