"""Names: what a sandbox's lookups are answered with, and how this host finds the addresses behind them."""
