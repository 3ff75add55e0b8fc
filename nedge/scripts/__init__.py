"""The user-script platform.

What a script imports:

    from nedge.scripts import Conf, Flow, status_types, define_status  # what every script needs
    from nedge.scripts import DomainSet, NetworkSet  # lists of names, of addresses and networks
    from nedge.scripts import LastUsed, Window  # memory across flows
    from nedge.scripts import RISKS  # numbers of nDPI's flow risks, by name

`api` holds the flow object that hooks get, `loader` finds and checks scripts, `runner` calls them.
"""

from nedge.core.lists import DomainSet, NetworkSet
from nedge.core.risks import RISKS
from nedge.core.status import StatusType, define_status, status_types
from nedge.scripts.api import Conf, Flow
from nedge.scripts.memory import LastUsed, Window

__all__ = [
    "RISKS",
    "Conf",
    "DomainSet",
    "Flow",
    "LastUsed",
    "NetworkSet",
    "StatusType",
    "Window",
    "define_status",
    "status_types",
]
