"""Blocks flows from or to countries that you list.

`countries` has two-letter codes (ISO 3166), in any case: `["KP", "ir"]`. While it is empty, nothing happens.
Countries come from the database that `geoip.country_database` names; an address it does not know has none.

Default score: 100, so listed countries are blocked. With a score below `verdict.drop_score` they only alert.
"""

from nedge.scripts import Conf, Flow, status_types

title = "Blacklisted country"
category = "security"
default_value = {"countries": [], "score": 100, "client_score": 10, "server_score": 10}


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    if not conf["countries"]:
        return
    ends = {"client": flow.getClientCountry(), "server": flow.getServerCountry()}
    listed = {code.upper() for code in conf["countries"]}
    info = {end: country for end, country in ends.items() if country in listed}
    if info:
        flow.triggerStatus(
            status_types.status_blacklisted_country,
            info,
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )
