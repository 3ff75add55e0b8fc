"""Blocks flows from or to countries that you list.

`countries` has two-letter codes (ISO 3166), in any case: `["KP", "ir"]`. While it is empty, the script is
off. Countries come from the database that `geoip.country_database` names; an address it does not know has
none.

Default score: 100, so listed countries are blocked. With a score below `verdict.drop_score` they only alert.
"""

from nedge.scripts import Conf, Flow, status_types

title = "Blacklisted country"
category = "security"
default_value = {"countries": [], "score": 100, "client_score": 10, "server_score": 10}


listed: set[str] = set()


def setup(conf: Conf) -> bool:
    listed.update(code.upper() for code in conf["countries"])
    for code in listed:
        if len(code) != 2 or not code.isalpha():
            raise ValueError(f"countries: found {code!r}; allowed are codes of two letters")
    return bool(listed)


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    ends = {"client": flow.getClientCountry(), "server": flow.getServerCountry()}
    info = {end: country for end, country in ends.items() if country in listed}
    if info:
        flow.triggerStatus(
            status_types.status_blacklisted_country,
            info,
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )
