"""Bybit V5 linear perpetuals as a venue: `codec` (pure), `connections` (sockets and REST), `account`."""
