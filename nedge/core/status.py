"""Status types: what a script can say of a flow. Bit = `status_key` of the flow's 64-bit status bitmap.

Keys, names and alert types are ntopng's (April 2020; 28–35 are those that 4.2 added). 0 is "normal" and is
never set; 1–58 are built in; 59–63 are the user's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "notice", "warning", "error"]

MAX_CALL_SCORE = 1000
"""The highest score one setStatus call can add."""
MAX_TOTAL_SCORE = 65535
"""Where a flow's totals saturate."""
FIRST_USER_KEY, LAST_KEY = 59, 63


@dataclass(frozen=True, slots=True)
class StatusType:
    """One kind of problem that a flow can have."""

    status_key: int
    name: str
    title: str
    severity: Severity = "info"
    alert_type: str = ""
    description: str = ""

    @property
    def bit(self) -> int:
        return 1 << self.status_key


def define_status(
    status_key: int, name: str, title: str, *, severity: Severity = "info", description: str = ""
) -> StatusType:
    """Define one of the five user statuses. Raises ValueError unless 59 <= status_key <= 63.

    A script does this at module level; the loader then refuses two scripts that define one key.
    """
    if not FIRST_USER_KEY <= status_key <= LAST_KEY:
        raise ValueError(
            f"status_key {status_key} is not the user's: allowed are {FIRST_USER_KEY} to {LAST_KEY}"
        )
    return StatusType(status_key, name, title, severity, name.removeprefix("status_"), description)


_T = StatusType


class status_types:  # noqa: N801 (ntopng's name for it)
    """All built-in status types, by name."""

    status_normal = _T(0, "status_normal", "Normal", "info", "alert_none")
    status_blacklisted = _T(
        1, "status_blacklisted", "Client, server or domain is blacklisted", "error", "flow_blacklisted"
    )
    status_blacklisted_country = _T(
        2,
        "status_blacklisted_country",
        "Client or server country is blacklisted",
        "error",
        "blacklisted_country",
    )
    status_blocked = _T(
        3, "status_blocked", "Flow blocked by the configured policies", "info", "flow_blocked"
    )
    status_data_exfiltration = _T(
        4, "status_data_exfiltration", "Data exfiltration (long ICMP payload)", "error", "flow_misbehaviour"
    )
    status_device_protocol_not_allowed = _T(
        5,
        "status_device_protocol_not_allowed",
        "Protocol not allowed for this device type",
        "error",
        "device_protocol_not_allowed",
    )
    status_dns_data_exfiltration = _T(
        6, "status_dns_data_exfiltration", "DNS data exfiltration", "error", "flow_misbehaviour"
    )
    status_dns_invalid_query = _T(
        7, "status_dns_invalid_query", "DNS invalid query", "error", "suspicious_activity"
    )
    status_elephant_local_to_remote = _T(
        8, "status_elephant_local_to_remote", "Elephant flow local to remote", "error", "flow_misbehaviour"
    )
    status_elephant_remote_to_local = _T(
        9, "status_elephant_remote_to_local", "Elephant flow remote to local", "error", "flow_misbehaviour"
    )
    status_external_alert = _T(
        10, "status_external_alert", "Alert from an external IDS", "error", "external_alert"
    )
    status_longlived = _T(11, "status_longlived", "Long-lived flow", "error", "flow_misbehaviour")
    status_low_goodput = _T(12, "status_low_goodput", "Low goodput ratio", "error", "connection_issues")
    status_malicious_signature = _T(
        13, "status_malicious_signature", "Malicious JA3 signature", "warning", "malicious_signature"
    )
    status_not_purged = _T(14, "status_not_purged", "Flow not purged in time", "error", "internals")
    status_potentially_dangerous = _T(
        15,
        "status_potentially_dangerous",
        "Potentially dangerous protocol",
        "error",
        "potentially_dangerous_protocol",
    )
    status_remote_to_remote = _T(
        16, "status_remote_to_remote", "Remote client to remote server", "error", "remote_to_remote"
    )
    status_suspicious_tcp_probing = _T(
        17, "status_suspicious_tcp_probing", "Suspicious TCP probing", "error", "suspicious_activity"
    )
    status_suspicious_tcp_syn_probing = _T(
        18, "status_suspicious_tcp_syn_probing", "Suspicious TCP SYN probing", "error", "suspicious_activity"
    )
    status_tcp_connection_issues = _T(
        19, "status_tcp_connection_issues", "TCP connection issues", "error", "connection_issues"
    )
    status_tcp_connection_refused = _T(
        20, "status_tcp_connection_refused", "TCP connection refused", "error", "suspicious_activity"
    )
    status_tcp_severe_connection_issues = _T(
        21,
        "status_tcp_severe_connection_issues",
        "TCP severe connection issues",
        "error",
        "connection_issues",
    )
    status_tls_certificate_expired = _T(
        22,
        "status_tls_certificate_expired",
        "TLS certificate expired",
        "error",
        "potentially_dangerous_protocol",
    )
    status_tls_certificate_mismatch = _T(
        23,
        "status_tls_certificate_mismatch",
        "TLS certificate does not match the server name",
        "error",
        "potentially_dangerous_protocol",
    )
    status_tls_old_protocol_version = _T(
        24,
        "status_tls_old_protocol_version",
        "TLS version below 1.2",
        "error",
        "potentially_dangerous_protocol",
    )
    status_tls_unsafe_ciphers = _T(
        25, "status_tls_unsafe_ciphers", "TLS unsafe ciphers", "error", "potentially_dangerous_protocol"
    )
    status_udp_unidirectional = _T(
        26, "status_udp_unidirectional", "Unidirectional UDP flow", "info", "udp_unidirectional"
    )
    status_web_mining_detected = _T(
        27, "status_web_mining_detected", "Web mining detected", "error", "web_mining"
    )
    status_tls_certificate_selfsigned = _T(
        28,
        "status_tls_certificate_selfsigned",
        "TLS certificate is self-signed",
        "error",
        "potentially_dangerous_protocol",
    )
    status_suspicious_file_transfer = _T(
        29,
        "status_suspicious_file_transfer",
        "Suspicious file transfer",
        "error",
        "suspicious_file_transfer",
    )
    status_known_proto_on_non_std_port = _T(
        30,
        "status_known_proto_on_non_std_port",
        "Known protocol on a non-standard port",
        "info",
        "known_proto_on_non_std_port",
    )
    status_flow_risk = _T(31, "status_flow_risk", "nDPI flow risk", "warning", "flow_risk")
    status_unexpected_dhcp = _T(
        32, "status_unexpected_dhcp", "Unexpected DHCP server", "error", "unexpected_dhcp_server"
    )
    status_unexpected_dns = _T(
        33, "status_unexpected_dns", "Unexpected DNS server", "error", "unexpected_dns_server"
    )
    status_unexpected_smtp = _T(
        34, "status_unexpected_smtp", "Unexpected SMTP server", "error", "unexpected_smtp_server"
    )
    status_unexpected_ntp = _T(
        35, "status_unexpected_ntp", "Unexpected NTP server", "error", "unexpected_ntp_server"
    )
    status_user_01 = _T(59, "status_user_01", "User status 1")
    status_user_02 = _T(60, "status_user_02", "User status 2")
    status_user_03 = _T(61, "status_user_03", "User status 3")
    status_user_04 = _T(62, "status_user_04", "User status 4")
    status_user_05 = _T(63, "status_user_05", "User status 5")


STATUS_TYPES: dict[str, StatusType] = {
    name: value for name, value in vars(status_types).items() if isinstance(value, StatusType)
}
"""Name -> type."""
STATUS_BY_KEY: dict[int, StatusType] = {status.status_key: status for status in STATUS_TYPES.values()}


def status_keys(status_map: int) -> list[int]:
    """Keys of the bits set in a bitmap, in order."""
    keys = []
    while status_map:
        lowest = status_map & -status_map
        keys.append(lowest.bit_length() - 1)
        status_map ^= lowest
    return keys


def status_names(status_map: int) -> list[str]:
    """Built-in names of the bits set in a bitmap, in key order; a bit without one is `status_<key>`."""
    return [
        STATUS_BY_KEY[key].name if key in STATUS_BY_KEY else f"status_{key}"
        for key in status_keys(status_map)
    ]
