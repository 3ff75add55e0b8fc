"""The user-script platform.

What a script imports:

    from nedge.scripts import Flow, status_types, define_status

`api` holds the flow object that hooks get, `loader` finds and checks scripts, `runner` calls them.
"""

from nedge.core.status import StatusType, define_status, status_types
from nedge.scripts.api import Conf, Flow

__all__ = ["Conf", "Flow", "StatusType", "define_status", "status_types"]
