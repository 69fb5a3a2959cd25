"""Which files of a workspace need an approval to change, whatever a rule file adds to them.

Three lists, for three questions. The first: what does a host run by itself, where nobody reads it first? Git's hooks
and configuration, what editors and direnv start when a directory is opened, what other agents obey, what CI does with a
push. That is protected in both modes, where a project has it. The second: lock files and what package managers are
configured by, which say whose code is installed next time. Those are what a task is often asked to change, and a task
that may write its workspace directly couldn't add a dependency if they were read-only; so they are protected where
changes are reviewed. The third: what is the next agent told? What one was talked into writing there outlives it. People
have agents keep these, so they are protected in a review, too.

No Makefile, no source file: those are what a task is there to write, and a list that had them would have everything.
"""

import os
from typing import Final

# `.git` may lie deeper, for a submodule or a project in a project; in a submodule or a worktree it is a file.
# `commondir` says which directory Git takes its configuration and hooks from (gitrepository-layout(5)); `remotes` and
# `branches` what it pushes to: a repository in the workspace has hooks of its own, which a push to it runs.
_GIT: Final = (
    "config", "config.worktree", "hooks", "info/attributes", "commondir", "remotes", "branches",
    "objects/info/alternates", "objects/info/http-alternates", "modules/**/objects/info/alternates",
    "modules/**/objects/info/http-alternates",
    "worktrees/*/commondir", "worktrees/*/config.worktree", "modules/**/config", "modules/**/config.worktree",
    "modules/**/hooks", "modules/**/info/attributes", "modules/**/commondir", "modules/*/remotes",
    "modules/*/branches",
)  # fmt: skip
# What was begun, and whoever goes on with it does: a rebase has programs to run (`exec`), others have patches to apply.
# What changes which objects Git takes others for. In review only: a task that writes directly may have to finish its
# owner's.
_LEFT: Final = ("rebase-merge", "rebase-apply", "sequencer")
_GIT_LEFT: Final = (
    *_LEFT, *(f"worktrees/*/{name}" for name in _LEFT), *(f"modules/**/{name}" for name in _LEFT),
    "rr-cache", "shallow", "info/grafts", "refs/replace", "reftable", "modules/**/shallow", "modules/**/info/grafts",
    "modules/**/refs/replace", "modules/**/reftable",
)  # fmt: skip
_RUN_BY_ITSELF: Final = (
    # Other systems' configuration, which has hooks and programs in it, and where that is said to be
    ".hg/hgrc", ".hg/hgrc-not-shared", ".hg/sharedpath", ".sl/config", ".sl/sharedpath", ".jj/repo/config.toml",
    # Git and what is hooked into it
    ".husky", ".githooks", ".pre-commit-config.yaml", "lefthook.yml", "lefthook.yaml", ".lefthook",
    # started when a directory is entered or opened
    ".envrc", ".vscode", ".idea", ".devcontainer", ".devcontainer.json", ".zed", ".nvim.lua", ".nvimrc", ".exrc",
    ".mise.toml", "mise.toml", ".mise.local.toml", "mise.local.toml", ".mise", ".config/mise", ".config/mise.toml",
    ".tool-versions", ".helix",
    # obeyed by agents
    ".mcp.json", ".claude/settings.json", ".claude/settings.local.json", ".claude/hooks", ".cursor", ".codex",
    ".gemini/settings.json",
    # run by CI, and who must agree
    ".github/workflows", ".github/actions", ".github/CODEOWNERS", ".github/dependabot.yml", "CODEOWNERS",
    ".gitlab-ci.yml", ".gitlab/ci", ".circleci", "Jenkinsfile", "azure-pipelines.yml", ".azure-pipelines",
    ".travis.yml", ".drone.yml", ".woodpecker.yml", ".woodpecker", ".buildkite", "bitbucket-pipelines.yml", ".tekton",
    ".forgejo/workflows", ".gitea/workflows", "appveyor.yml", "cloudbuild.yaml", ".cirrus.yml",
)  # fmt: skip
_INSTALLED: Final = (
    "package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "bun.lock", "bun.lockb", "deno.lock",
    "uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock", "pixi.lock", "conda-lock.yml", "Cargo.lock", "go.sum",
    "Gemfile.lock", "composer.lock", "mix.lock", "pubspec.lock", "Podfile.lock", "Package.resolved", "flake.lock",
    "gradle.lockfile", "gradle/wrapper", "gradle/verification-metadata.xml", ".mvn", ".terraform.lock.hcl",
    ".npmrc", ".yarnrc", ".yarnrc.yml", ".yarn/releases", ".yarn/plugins", ".pnpmfile.cjs", "bunfig.toml", "uv.toml",
    "pip.conf", ".cargo/config", ".cargo/config.toml", ".gitmodules",
)  # fmt: skip

_TOLD: Final = (
    "CLAUDE.md", "CLAUDE.local.md", "AGENTS.md", "AGENTS.override.md", "GEMINI.md", ".claude/agents",
    ".claude/commands", ".claude/skills", ".cursorrules", ".windsurfrules", ".windsurf", ".clinerules", ".roo",
    ".rules", ".github/copilot-instructions.md", ".github/instructions", ".github/prompts", ".aider.conf.yml",
)  # fmt: skip


def directly(added: tuple[str, ...]) -> tuple[str, ...]:
    """Return the globs of what is protected while a task writes its workspace itself; `added` are a rule file's.

    `HEAD` is what makes a repository of any directory that has the rest (git-config(1), `safe.bareRepository`).
    """
    return (*of_git(".git"), "HEAD", *_RUN_BY_ITSELF, *added)


def of_git(place: str) -> tuple[str, ...]:
    """Return the globs of what is protected in a repository that lies there."""
    return tuple(os.path.normpath(f"{place}/{name}") for name in _GIT)


def reviewed(added: tuple[str, ...]) -> tuple[str, ...]:
    """Return the globs of what is protected when changes are accepted: at any depth, and of all three lists."""
    git = (f"**/.git/{name}" for name in (*_GIT, *_GIT_LEFT))
    return (*git, *(f"**/{glob}" for glob in (*_RUN_BY_ITSELF, *_INSTALLED, *_TOLD)), *added)
