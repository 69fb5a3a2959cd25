"""The metrics as Prometheus reads them: `exposition` says them, `scrape` serves them, `merging` adds up processes."""
