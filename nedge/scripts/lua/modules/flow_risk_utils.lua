-- nDPI's flow risks: their numbers by the names that ntopng has for them, which are nDPI's in lower case.

local host = select(2, ...)
local flow_risk_utils = {risks = {}, risks_by_id = {}}

local NAMES = {
  [0] = "no_risk",
  "url_possible_xss", "url_possible_sql_injection", "url_possible_rce_injection", "binary_application_transfer",
  "known_protocol_on_non_standard_port", "tls_selfsigned_certificate", "tls_obsolete_version", "tls_weak_cipher",
  "tls_certificate_expired", "tls_certificate_mismatch", "http_suspicious_user_agent", "http_numeric_ip_host",
  "http_suspicious_url", "http_suspicious_header", "tls_not_carrying_https", "suspicious_dga_domain",
  "malformed_packet", "ssh_obsolete_client_version_or_cipher", "ssh_obsolete_server_version_or_cipher",
  "smb_insecure_version", "tls_suspicious_esni_usage", "unsafe_protocol", "dns_suspicious_traffic", "tls_missing_sni",
}
for id, name in pairs(NAMES) do
  flow_risk_utils.risks["ndpi_" .. name], flow_risk_utils.risks_by_id[id] = id, "ndpi_" .. name
end

function flow_risk_utils.risk_id_2_i18n(id)
  host.room()
  return host.raw.risk_name(math.tointeger(tonumber(id)) or -1)
end

return flow_risk_utils
