
    (tmp_path / "ours").mkdir()
    for group, processes in (tmp_path, ""), (tmp_path / "ours", "1\n2\n"):
        (group / "cgroup.controllers").write_text(" ".join(ALL))
        (group / "cgroup.subtree_control").touch()
        (group / "cgroup.procs").write_text(processes)
    (tmp_path / "ours/cgroup.type").write_text("domain")
    monkeypatch.setattr(os, "mkdir", appear)
    monkeypatch.setattr(os, "rmdir", vanish)
    for module in ("cgroups", "cgroup_places"):
        monkeypatch.setattr(f"enforcer.limits.{module}.put", put)
    found = [Hierarchy(2, ALL, str(tmp_path), str(tmp_path / "ours"))]
    monkeypatch.setattr(cgroups, "hierarchies", lambda: found)
