"""Baselines: what tasks of a name usually do, learned from the journal, and anomalies. They decide nothing."""
