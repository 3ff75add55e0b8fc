"""Which functions of the flow are mere questions.

From the API's source: where it is compiled, its functions do not tell what they give.
"""

from __future__ import annotations

import ast
from pathlib import Path

MAY_CHANGE = frozenset(("getScore", "getStatus", "isPassVerdict"))
"""Those whose answer may change while a hook runs, by what scripts do."""


def _reads() -> dict[str, str]:
    module = ast.parse(Path(__file__).with_name("api.py").read_bytes())
    (flow,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Flow")
    return {
        node.name: ast.unparse(node.returns)
        for node in flow.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and ast.unparse(node.args) == "self"
        and node.returns is not None
    }


READS = _reads()
"""Functions of Flow without parameters, and the type that each gives, as it is written there."""
CONDITIONS = (READS.keys() | {"hasRisk"}) - MAY_CHANGE
"""What a script's `needs` may name."""
