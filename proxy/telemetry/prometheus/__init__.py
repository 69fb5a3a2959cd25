"""Metrics as Prometheus text: `exposition` writes it, `scrape_server` serves it, `totals` adds up processes."""
