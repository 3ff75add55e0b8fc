"""The API as a whole: every function of the contract is there, and takes what the contract says."""

from __future__ import annotations

import inspect

import pytest
from kit import ask, ping

from nedge.scripts import Flow

# Function -> its parameters, from the contract.
CONTRACT: dict[str, tuple[str, ...]] = {
    "getStatus": (),
    "setStatus": ("flow_status_type", "flow_score", "cli_score", "srv_score"),
    "clearStatus": ("flow_status_type",),
    "triggerStatus": ("flow_status_type", "status_info", "flow_score", "cli_score", "srv_score"),
    "isStatusSet": ("status_key",),
    "getFullInfo": (),
    "isClientUnicast": (),
    "isServerUnicast": (),
    "isUnicast": (),
    "isRemoteToRemote": (),
    "isLocalToRemote": (),
    "isRemoteToLocal": (),
    "isLocal": (),
    "isBlacklisted": (),
    "isTwhOK": (),
    "isBidirectional": (),
    "getKey": (),
    "getFirstSeen": (),
    "getLastSeen": (),
    "getDuration": (),
    "getPacketsSent": (),
    "getPacketsRcvd": (),
    "getPackets": (),
    "getBytesSent": (),
    "getBytesRcvd": (),
    "getBytes": (),
    "getGoodputBytes": (),
    "getClientKey": (),
    "getServerKey": (),
    "getnDPICategoryName": (),
    "getnDPIProtocolName": (),
    "getnDPICategoryId": (),
    "getnDPIMasterProtoId": (),
    "getnDPIAppProtoId": (),
    "getDnsQuery": (),
    "getClientCountry": (),
    "getServerCountry": (),
    "getTLSVersion": (),
    "getnDPIMatchPacket": (),
    "getScore": (),
    "isPassVerdict": (),
}
BEYOND = [
    "getInfo",
    "getBlacklistedInfo",
    "isDeviceProtocolNotAllowed",
    "getDeviceProtoAllowedInfo",
    "retrieveExternalAlertInfo",
    "isNotPurged",
    "hasRisk",
    "getRiskInfo",
    "getHTTPInfo",
    "getTLSInfo",
    "getDNSInfo",
    "getSSHInfo",
    "getClientTCPIssues",
    "getServerTCPIssues",
    "getGoodputRatio",
    "getTCPStats",
    "isClientNoIP",
]
ARGUMENTS = {
    "flow_status_type": "status_types.status_user_01",
    "status_info": "'info'",
    "status_key": "1",
    "flow_score": "1",
    "cli_score": "2",
    "srv_score": "3",
}


def test_the_contract_has_41_functions() -> None:
    assert len(CONTRACT) == 41


@pytest.mark.parametrize(("name", "parameters"), CONTRACT.items())
def test_every_function_takes_the_arguments_of_the_contract(name: str, parameters: tuple[str, ...]) -> None:
    arguments = ", ".join(ARGUMENTS[parameter] for parameter in parameters)
    assert len(ask(ping(), f"flow.{name}({arguments})")) == 1


@pytest.mark.parametrize("name", [name for name, parameters in CONTRACT.items() if not parameters])
def test_reads_take_no_argument(name: str) -> None:
    assert list(inspect.signature(getattr(Flow, name)).parameters) == ["self"]


@pytest.mark.parametrize("name", BEYOND)
def test_functions_beyond_the_contract_exist(name: str) -> None:
    assert callable(getattr(Flow, name))


@pytest.mark.parametrize("name", [name for name in dir(Flow) if not name.startswith("_")])
def test_every_function_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(Flow, name))
