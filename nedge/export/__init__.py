"""What leaves the engine for others to read: EVE JSON events, tables."""
