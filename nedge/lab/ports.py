"""Where the lab's servers listen."""

PROBE_NAME = "ready.lab.invalid"
"""What the servers ask themselves for, to find out whether they answer yet."""

SERVICES = ("http", "https", "dns", "ssh", "quic")

SSH = 22
DNS = 53
HTTP = 80
HTTPS = 443
"""TLS 1.2 and 1.3, and HTTP/3 on UDP. Names that begin with `expired.` get an expired certificate."""
HTTPS_TLS12 = 4432
HTTPS_TLS13 = 4433
HTTPS_EXPIRED = 4434
"""The expired certificate, over TLS 1.2: the last version that shows certificates to the wire."""
