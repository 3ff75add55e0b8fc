"""nDPI through ctypes: which application a flow belongs to, and what its payload tells.

* `library.py` finds and loads libndpi, and refuses releases it does not know
* `abi.py` is the table of what differs between releases
* `module.py` is one detection module: C functions and the memory given to them
* `flow.py` is one flow under inspection, the hot path; `facts.py` reads what nDPI tells about it
* `names.py` has names and ids of protocols, categories and risks
* `probe.py` finds fields of a flow that nDPI has no function for, with the conversations of `samples.py`
* `classifier.py` puts these together
* `selftest.py` tries a library in a child process first, since a wrong one crashes
"""

from nedge.dpi.classifier import NdpiClassifier
from nedge.dpi.library import DpiError, Library, load_library

__all__ = ["DpiError", "Library", "NdpiClassifier", "load_library"]
