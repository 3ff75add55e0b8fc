"""nedge: an open, scriptable inline bridging firewall."""

__version__ = "0.1.0"
