"""Reviewed workspaces: keep a task's changes apart, show them, and merge them when somebody accepts them."""
