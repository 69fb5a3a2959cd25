"""Which files a host runs or obeys by itself, as data: by category, with where each category is documented.

`PROJECT`, `INSTALLED` and `TOLD` are relative to a project, `HOME` to a home directory. `*` stays within a name. What
names a directory means all below it. What is protected of a Git repository is in `repository_scan`.
"""

from typing import Final, NamedTuple


class Category(NamedTuple):
    """One kind of files, and the documentation that names them."""

    name: str
    sources: str
    globs: tuple[str, ...]


PROJECT: Final = (
    Category(
        "version control",
        "Mercurial: hgrc(5); Sapling: configuration; Jujutsu: config.md; Arcanist: .arcconfig; darcs: prefs; "
        "Pijul: hooks",
        (
            ".hg/hgrc", ".hg/hgrc-not-shared", ".hg/sharedpath", ".sl/config", ".sl/sharedpath", ".jj/repo/config.toml",
            ".jj/config.toml", ".svn/hooks", ".bzr/branch/branch.conf", ".git/arc/config", ".arcconfig", "_darcs/prefs",
            ".pijul/config*",
        ),
    ),
    Category(
        "hooks",
        "the manuals of husky, pre-commit, prek, lefthook, overcommit, simple-git-hooks, lint-staged, "
        "CaptainHook, GrumPHP, hk, cargo-husky, rusty-hook",
        (
            ".husky", ".githooks", ".git-hooks", ".pre-commit-config.yaml", ".pre-commit-config.yml", "prek.toml",
            "lefthook.*", ".lefthook*", "lefthook-local.*", ".overcommit.yml", ".simple-git-hooks.*",
            "simple-git-hooks.*", ".lintstagedrc*", "lint-staged.config.*", "captainhook.json", "grumphp.yml",
            ".huskyrc*", ".config/lefthook*", "hk.pkl", ".config/hk.pkl", ".cargo-husky", ".rusty-hook.toml",
            ".captainhook.json", "grumphp.yml.dist", ".grumphp.yml",
        ),
    ),
    Category(
        "shells and environments",
        "direnv(1); mise: configuration; asdf; autoenv; Nix: devenv, devbox",
        (
            ".envrc", ".mise.toml", "mise.toml", ".mise.*.toml", "mise.*.toml", ".mise", ".config/mise",
            ".config/mise.toml", ".rtx.toml", ".tool-versions", ".autoenv.zsh", ".autoenv_leave.zsh", ".autoenv",
            "mise/config*.toml",
        ),
    ),
    Category(
        "debuggers and interpreters",
        "gdb: Auto-loading; lldb(1); pdb; R: Startup; irb; pry; ghci; Octave: Startup Files; utop; IEx; erl(1); "
        "latexmk(1); Jupyter: config files",
        (
            ".gdbinit", ".lldbinit", ".pdbrc", ".pdbrc.py", ".Rprofile", ".Renviron", ".irbrc", "_irbrc", ".pryrc",
            ".ghci", ".octaverc", ".ocamlinit", ".iex.exs", ".perldb", ".rdbgrc", ".byebugrc", ".erlang", ".latexmkrc",
            "latexmkrc", "jupyter_*config.py", "jupyter_*config.json", "ipython_config.py",
        ),
    ),
    Category(
        "editors",
        "Vim: 'exrc'; Neovim: trust; VS Code: tasks, workspaces; JetBrains: .idea; Emacs: Directory "
        "Variables; Zed; Helix; Eclipse: external builders; Sublime Text: projects; development containers; "
        "Gitpod; Firebase Studio; Replit; the Build Server Protocol; hie-bios; YouCompleteMe; lua-language-server; "
        "lazy.nvim; NetBeans; Kate; Qt Creator; Solargraph; Spyder; RStudio; devfile",
        (
            ".vimrc", "_vimrc", ".gvimrc", "_gvimrc", ".vim", ".lvimrc", ".local.vimrc", ".nvim.lua", ".nvimrc",
            ".nvim", ".exrc", "_exrc", ".neoconf.json", ".vscode", "*.code-workspace", ".idea", "*.ipr", "*.iws",
            ".fleet", ".run", ".dir-locals.el", ".dir-locals-2.el", ".projectile", ".zed", ".helix", ".kak", ".lapce",
            ".nova", ".theia", ".vs", ".externalToolBuilders", ".project", "*.sublime-project", ".devcontainer",
            ".devcontainer.json", ".gitpod.yml", ".gitpod.Dockerfile", ".ona", ".idx", ".replit", "replit.nix",
            ".codesandbox", ".stackblitzrc", ".bsp", "hie.yaml", ".hie-bios", ".ycm_extra_conf.py", ".vimspector.json",
            ".luarc.json*", ".lazy.lua", ".settings", ".classpath", ".factorypath", "*.iml", "nbproject",
            ".kateproject", "*.pro.user", "CMakeUserPresets.json", ".sourcekit-lsp", ".solargraph.yml", ".clangd",
            ".ccls", ".spyproject", "*.Rproj", ".devfile.yaml", "devfile.yaml", ".che",
        ),
    ),
    Category(
        "agents",
        "Claude Code: settings, hooks, MCP; Codex: config; Gemini CLI; Qwen Code; OpenCode: config, plugins; "
        "Kiro: hooks, MCP, steering; Amazon Q Developer: agents; Roo Code; Kilo Code; Cline: hooks; Windsurf; "
        "Cursor: hooks, MCP; Continue; Junie; Augment; Trae; Crush; Goose; OpenHands; Factory; Aider; "
        "Copilot: MCP; Amp; Warp; Zencoder; Rovo Dev",
        (
            ".mcp.json", "mcp.json", ".mcp", ".claude/settings.json", ".claude/settings.local.json", ".claude/hooks",
            ".claude/plugins", ".claude-plugin", ".cursor", ".codex", ".gemini/settings.json", ".gemini/extensions",
            ".gemini/hooks", ".qwen/settings.json", ".qwen/extensions", "opencode.json", "opencode.jsonc",
            ".opencode.json", ".opencode", ".kiro", ".amazonq", ".roo", ".roomodes", ".kilocode", ".kilocodemodes",
            ".kilo", "kilo.json*", ".cline", ".clinerules", ".windsurf", ".continue", ".continuerc.json", ".junie",
            ".augment", ".trae", ".crush.json", "crush.json", ".crush", ".goose", ".openhands", ".factory",
            ".aider.conf.yml", ".copilot", ".github/hooks", ".github/mcp.json", ".github/copilot", ".amp", ".warp",
            ".zencoder", ".rovodev", ".agents/hooks", ".agent/hooks", ".antigravity", ".forge", "forge.yaml", ".void",
            ".pi", ".vibe", ".kimi", ".iflow", ".codebuddy", ".firebender", ".qoder", ".lingma", ".tabnine", ".tabby",
            ".refact", ".serena/project*.yml", ".mux", ".conductor", "conductor.json", ".superset", ".emdash.json",
            ".grok", ".droid", ".ampcode", ".stakpak", ".eca", ".ruler", ".rulesync", "rulesync.jsonc", ".nanocoder",
            "agents.config.json", "gptme.toml", ".mentatconfig.json", ".cody", "cagent.y*ml", ".cagent",
        ),
    ),
    Category(
        "CI",
        "the reference of each service for its configuration files; CODEOWNERS: GitHub, GitLab",
        (
            ".github/workflows", ".github/actions", ".github/CODEOWNERS", ".github/dependabot.y*ml",
            ".github/settings.yml", ".github/renovate.json*", ".github/mergify.yml", ".mergify.yml", ".mergify",
            "CODEOWNERS", "docs/CODEOWNERS", ".gitlab/CODEOWNERS", ".gitlab-ci.yml", ".gitlab-ci.yaml", ".gitlab/ci",
            ".gitlab/.gitlab-ci.yml", ".circleci", "circle.yml", "Jenkinsfile*", ".jenkins", "jenkins-x.yml",
            ".lighthouse", "azure-pipelines*.y*ml", ".azure-pipelines", ".azure-pipelines.y*ml", ".azuredevops",
            ".pipelines", ".vsts-ci.yml", ".travis.yml", ".drone.*", ".woodpecker.y*ml", ".woodpecker", ".buildkite",
            "buildkite.y*ml", "bitbucket-pipelines.yml", ".tekton", ".forgejo", ".gitea", "appveyor.yml",
            ".appveyor.yml", "cloudbuild.y*ml", "cloudbuild.json", ".cirrus.*", "buildspec*.y*ml", ".codebuild",
            ".codepipeline", "appspec.y*ml", ".semaphore", ".semaphore.yml", ".zuul.yaml", ".zuul.d", "zuul.yaml",
            "zuul.d", ".teamcity", ".teamcity.yml", "codefresh.y*ml", ".codefresh", "wercker.yml", "bitrise.yml",
            "codemagic.yaml", "ci_scripts", ".scrutinizer.yml", "shippable.yml", ".harness", "screwdriver.yaml",
            "bamboo-specs", "*.gocd.y*ml", "*.gocd.json", ".onedev-buildspec.yml", ".space.kts", ".builds",
            ".build.yml", ".packit.y*ml", "packit.y*ml", ".prow.yaml", ".ci-operator.yaml", ".evergreen.yml",
            ".taskcluster.yml", ".readthedocs.y*ml", "readthedocs.y*ml", "netlify.toml", "vercel.json", "amplify.yml",
            "render.yaml", ".sourcecraft", ".cnb.yml", ".dagger", "dagger.json", "concourse.y*ml", ".platform.app.yaml",
            ".platform", ".upsun", ".do/app.yaml", "bors.toml", ".github/labeler.y*ml", ".github/stale.y*ml",
            ".github/auto*.y*ml", ".github/config.y*ml", ".github/release-drafter.y*ml", ".github/codeql",
            ".github/linters", ".github/scripts", ".gitlab/agents", ".gitlab/duo", ".gitlab/security-policies", ".ci",
            ".cicd", ".copr", ".werft", ".spacelift", "atlantis.y*ml", "buddy.y*ml", ".buddy", ".agola", ".cds",
            "garnix.y*ml", ".hercules-ci", ".workflow", ".aone", ".abstruse.yml", "Layerfile", ".trunk", ".kodiak.toml",
            ".bulldozer.yml", ".policy.yml", ".pullapprove.yml", ".aviator", "railway.json", "railway.toml",
            "heroku.yml", "now.json", "apphosting.y*ml", ".coderabbit.y*ml", ".pr_agent.toml", ".sweep.y*ml",
            "sweep.y*ml", ".greptile", "greptile.json", ".ellipsis",
        ),
    ),
)  # fmt: skip
INSTALLED: Final = (
    Category(
        "lock files",
        "the manual of each package manager",
        (
            "package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "bun.lock", "bun.lockb",
            "deno.lock", "uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock", "pixi.lock", "pylock*.toml",
            "conda-lock.yml", "Cargo.lock", "go.sum", "go.work.sum", "Gemfile.lock", "composer.lock", "mix.lock",
            "pubspec.lock", "Podfile.lock", "Package.resolved", "Cartfile.resolved", "flake.lock", "devenv.lock",
            "devbox.lock", "gradle.lockfile", "packages.lock.json", "paket.lock", "rebar.lock", "stack.yaml.lock",
            "cabal.project.freeze", "conan.lock", "MODULE.bazel.lock", ".terraform.lock.hcl", "mise.lock", "Chart.lock",
            "buf.lock", ".gitmodules",
        ),
    ),
    Category(
        "build",
        "npm, Yarn, pnpm, Bun, uv, pip, Cargo, Bundler, Maven, Gradle, sbt, Bazel, Buck, NuGet, MSBuild, "
        "Conda, Git LFS",
        (
            "gradle/wrapper", "gradle/verification-metadata.xml", "gradle/gradle-daemon-jvm.properties",
            "gradle.properties", "gradlew", "gradlew.bat", "mvnw", "mvnw.cmd", ".mvn", ".npmrc", ".yarnrc",
            ".yarnrc.yml", ".yarn/releases", ".yarn/plugins", ".yarn/sdks", ".pnpmfile.*js", "pnpm-workspace.yaml",
            ".pnp.*js", "bunfig.toml", "uv.toml", "pip.conf", "pip.ini", ".pydistutils.cfg", ".condarc",
            ".cargo/config", ".cargo/config.toml", "rust-toolchain", "rust-toolchain.toml", ".bundle/config", ".gemrc",
            ".sbtopts", ".jvmopts", ".bazelrc", ".bazelversion", ".bazeliskrc", "tools/bazel", ".buckconfig",
            ".buckconfig.local", ".buckversion", "nuget.config", "NuGet.Config", ".config/dotnet-tools.json",
            "global.json", "Directory.Build.*", "Directory.Packages.props", "Directory.Solution.*", ".lfsconfig",
            ".swiftpm", "renovate.json*", ".renovaterc*", ".corepack.env", ".terraformrc", ".tflint.hcl", "ansible.cfg",
            "poetry.toml", ".pdm.toml", "pdm.toml", ".mambarc", ".pixi/config.toml", ".buckconfig.d", "user.bazelrc",
            ".mill-opts", ".mill-jvm-opts", ".mill-version", ".paket", "vcpkg-configuration.json",
        ),
    ),
)  # fmt: skip
TOLD: Final = (
    Category(
        "instructions for agents",
        "AGENTS.md; Claude Code: memory, skills; Gemini CLI; Cursor and Windsurf: rules; Copilot: "
        "instructions; Goose",
        (
            "CLAUDE.md", "CLAUDE.local.md", "AGENTS.md", "AGENTS.override.md", "AGENT.md", "GEMINI.md", "QWEN.md",
            "WARP.md", "CRUSH.md", "CONVENTIONS.md", ".agents", ".agent", ".cursorrules", ".windsurfrules",
            ".roorules*", ".goosehints", ".openhands_instructions", ".rules", ".github/copilot-instructions.md",
            ".github/instructions", ".github/prompts", ".github/chatmodes", ".github/agents", ".github/skills",
            ".aider.conf.yml", ".claude/agents", ".claude/commands", ".claude/skills", ".claude/rules",
            ".claude/output-styles", ".claude/CLAUDE.md", ".gemini/commands", ".gemini/agents", ".qwen/commands",
            ".roo", ".windsurf", ".clinerules", "JULES.md", "DEVIN.md", "replit.md", ".aiassistant", ".blackboxrules",
            ".continuerules", "avante.md", "AGENTS.local.md", ".bmad-core",
        ),
    ),
)  # fmt: skip
HOME: Final = (
    Category(
        "shells",
        "bash(1), zsh(1), fish(1), ksh(1), csh(1), nu, xonsh, readline(3), sensible-editor(1), tmux(1); terminals",
        (
            ".bashrc", ".bash_profile", ".bash_login", ".bash_logout", ".bash_aliases", ".bashrc.d", ".profile",
            ".zshrc", ".zshenv", ".zprofile", ".zlogin", ".zlogout", ".zsh", ".config/zsh", ".oh-my-zsh", ".oh-my-bash",
            ".kshrc", ".mkshrc", ".cshrc", ".tcshrc", ".login", ".logout", ".inputrc", ".config/fish",
            ".config/nushell", ".config/powershell", ".xonshrc", ".config/xonsh", ".config/direnv", ".direnvrc",
            ".local/share/direnv/allow", ".config/mise", ".config/starship.toml", ".tmux.conf", ".config/tmux",
            ".screenrc", ".config/zellij", ".bash_completion", ".local/share/bash-completion", ".config/bash", ".shrc",
            ".p10k.zsh", ".fzf.bash", ".fzf.zsh", ".zinit", ".local/share/zinit", ".zplug", ".antigen",
            ".config/elvish", ".config/user-dirs.dirs", ".selected_editor", ".config/thefuck", ".tmux", ".config/byobu",
            ".byobu", ".config/kitty", ".config/wezterm", ".wezterm.lua", ".config/alacritty", ".config/ghostty",
            ".config/foot",
        ),
    ),
    Category(
        "sessions and services",
        "systemd.unit(5), environment.d(5), the Desktop Application Autostart Specification, dbus-daemon(1), "
        "startx(1); window managers and their bars; PipeWire; mutt, msmtp, mbsync; pass(1); browsers: native messaging",
        (
            ".config/systemd", ".local/share/systemd", ".config/environment.d", ".config/autostart",
            ".config/autostart-scripts", ".local/share/applications", ".local/share/dbus-1", ".local/share/kservices5",
            ".local/share/nautilus/scripts", ".config/plasma-workspace", ".config/i3", ".config/sway", ".config/hypr",
            ".config/openbox", ".config/awesome", ".config/mimeapps.list", ".mailcap", ".xprofile", ".xinitrc",
            ".xsession", ".xsessionrc", ".pam_environment", ".forward", ".procmailrc", ".ssh", ".gnupg",
            ".config/bspwm", ".config/qtile", ".config/herbstluftwm", ".config/river", ".config/niri", ".config/xmonad",
            ".xmonad", ".fluxbox", ".fvwm", ".icewm", ".config/sxhkd", ".xbindkeysrc", ".Xresources", ".Xdefaults",
            ".urxvt", ".gnomerc", ".vnc/xstartup", ".config/waybar", ".config/polybar", ".config/rofi", ".config/dunst",
            ".config/autorandr", ".config/pipewire", ".config/wireplumber", ".config/pulse", ".config/xfce4",
            ".config/lxsession", ".local/share/gnome-shell/extensions", ".local/share/kio", ".local/share/plasma",
            ".local/share/kwin", ".local/share/cinnamon", ".local/share/nemo", ".local/share/nautilus-python",
            ".config/libvirt/hooks", ".muttrc", ".mutt", ".config/mutt", ".config/neomutt", ".config/aerc", ".msmtprc",
            ".config/msmtp", ".mbsyncrc", ".offlineimaprc", ".config/mpv", ".config/weechat", ".irssi",
            ".password-store", ".mozilla/native-messaging-hosts", ".config/*/NativeMessagingHosts",
        ),
    ),
    Category(
        "programs",
        "file-hierarchy(7) on ~/.local/bin; the install directories of cargo, go, npm, bun, deno, pyenv, nvm "
        "and others; pre-commit and npx: caches; Helm, Terraform, Pulumi: plugins",
        (
            "bin", ".local/bin", ".local/lib", ".cargo/bin", "go/bin", ".npm-global", ".bun/bin", ".deno/bin", ".pyenv",
            ".nvm", ".rbenv", ".asdf", ".sdkman", ".volta", ".rustup", ".local/share/mise", ".local/share/pipx",
            ".local/share/uv", ".dotnet/tools", ".juliaup", ".ghcup", ".local/sbin", ".local/opt", ".yarn/bin",
            ".config/yarn", ".local/share/pnpm", ".composer", ".config/composer", ".local/share/gem", ".gem", ".opam",
            ".cabal", ".mix", ".nix-profile", ".local/share/virtualenvs", ".virtualenvs", ".cache/pre-commit",
            ".npm/_npx", ".krew", ".local/share/flatpak", ".jbang", ".foundry/bin", ".pulumi", ".terraform.d",
            ".local/share/helm", ".azure/cliextensions", "Applications",
        ),
    ),
    Category(
        "version control",
        "git-config(1), githooks(5), hgrc(5), jj, Subversion: runtime configuration",
        (
            ".gitconfig", ".config/git", ".git-templates", ".gittemplate", ".githooks", ".hgrc", ".config/hg",
            ".config/jj", ".jjconfig.toml", ".config/gh", ".config/lazygit", ".config/tig", ".tigrc", ".arcrc",
            ".config/gitui", ".config/glab-cli", ".subversion", ".bazaar",
        ),
    ),
    Category(
        "editors",
        "Vim, Neovim, Emacs, VS Code, Cursor, Windsurf, Zed, Helix, JetBrains, nano(1)",
        (
            ".vimrc", ".vim", ".gvimrc", ".exrc", ".config/vim", ".config/nvim", ".local/share/nvim", ".emacs",
            ".emacs.d", ".emacs.el", ".config/emacs", ".vscode", ".vscode-server", ".config/Code", ".config/VSCodium",
            ".config/Cursor", ".config/Windsurf", ".config/zed", ".config/helix", ".config/JetBrains", ".ideavimrc",
            ".nanorc", ".config/nano", ".config/kak", ".config/sublime-text", ".vscode-insiders", ".vscode-oss",
            ".cursor-server", ".windsurf", ".windsurf-server", ".trae", ".trae-server", ".config/Trae",
            ".config/code-server", ".local/share/code-server", ".local/share/zed", ".local/share/JetBrains",
            ".spacemacs", ".SpaceVim.d", ".doom.d", ".config/doom", ".config/lvim", ".config/micro", ".config/lite-xl",
            ".config/lf", ".config/ranger", ".config/nnn", ".config/yazi", ".config/mc",
        ),
    ),
    Category(
        "debuggers, interpreters and tools",
        "gdb, lldb, R, irb, psql(1), sqlite3(1), curl(1), wget(1), less(1), ssh_config(5), latexmk(1), Jupyter; AWS: "
        "credential_process; nix.conf(5)",
        (
            ".gdbinit", ".gdbearlyinit", ".config/gdb", ".lldbinit", ".Rprofile", ".Renviron", ".pythonrc",
            ".pythonstartup", ".pdbrc", ".irbrc", ".pryrc", ".ghci", ".octaverc", ".psqlrc", ".sqliterc", ".my.cnf",
            ".curlrc", ".wgetrc", ".lesskey", ".lessfilter", ".ackrc", ".perldb", ".iex.exs", ".aws/config",
            ".aws/credentials", ".jupyter", ".ipython", ".mongorc.js", ".mongoshrc.js", ".radare2rc", ".latexmkrc",
            ".config/latexmk", ".erlang", ".julia/config", ".config/lesskey", ".guile", ".sbclrc", ".racketrc",
            ".config/nix", ".config/nixpkgs", ".nixpkgs", ".config/home-manager", ".nix-channels", ".config/guix",
        ),
    ),
    Category(
        "build",
        "npm, Yarn, pip, uv, Cargo, Maven, Gradle, sbt, Conda, RubyGems, Bundler, Docker, NuGet",
        (
            ".npmrc", ".yarnrc", ".yarnrc.yml", ".bunfig.toml", ".config/pip", ".pip", ".config/uv", ".pydistutils.cfg",
            ".cargo/config", ".cargo/config.toml", ".cargo/env", ".m2/settings.xml", ".m2/extensions.xml", ".mavenrc",
            ".gradle/init.gradle", ".gradle/init.gradle.kts", ".gradle/init.d", ".gradle/gradle.properties", ".sbt",
            ".condarc", ".gemrc", ".bundle/config", ".docker/config.json", ".docker/cli-plugins", ".nuget/NuGet",
            ".config/NuGet", ".config/containers", ".kube/config", ".terraformrc", ".ansible.cfg", ".bazelrc",
            ".buckconfig.local", ".config/pypoetry", ".config/pdm", ".config/hatch", ".config/pnpm", ".config/conda",
            ".mambarc", ".config/go", ".config/helm", ".docker/daemon.json", ".docker/plugins", ".tofurc",
            ".bazeliskrc", ".gradle/wrapper", ".m2/wrapper", ".m2/toolchains.xml", ".vagrant.d", ".ansible",
        ),
    ),
    Category(
        "agents",
        "as for a project; Claude Code, Codex, Gemini CLI, OpenCode, Cursor, Kiro, Copilot CLI: the user's "
        "settings",
        (
            ".claude/settings.json", ".claude/settings.local.json", ".claude/hooks", ".claude/plugins",
            ".claude/agents", ".claude/commands", ".claude/skills", ".claude/rules", ".claude/output-styles",
            ".claude/CLAUDE.md", ".claude/keybindings.json", ".claude.json", ".codex/config.toml",
            ".codex/*.config.toml", ".codex/hooks.json", ".codex/hooks", ".codex/rules", ".codex/prompts",
            ".codex/skills", ".codex/plugins", ".codex/agents", ".codex/AGENTS.md", ".codex/AGENTS.override.md",
            ".codex/requirements.toml", ".codex/managed_config.toml", ".gemini/settings.json", ".gemini/GEMINI.md",
            ".gemini/extensions", ".gemini/commands", ".gemini/policies", ".gemini/hooks",
            ".gemini/trustedFolders.json", ".qwen/settings.json", ".qwen/extensions", ".qwen/QWEN.md",
            ".config/opencode", ".opencode", ".cursor/mcp.json", ".cursor/hooks.json", ".cursor/cli-config.json",
            ".cursor/extensions", ".cursor/rules", ".cursor/commands", ".kiro/settings", ".kiro/hooks", ".kiro/agents",
            ".kiro/steering", ".aws/amazonq", ".copilot/mcp-config.json", ".copilot/config.json", ".copilot/hooks",
            ".copilot/agents", ".copilot/skills", ".config/goose", ".config/crush", ".config/amp", ".continue/config.*",
            ".codeium/windsurf/mcp_config.json", ".codeium/windsurf/hooks.json", ".factory/mcp.json",
            ".factory/settings.json", ".factory/hooks", ".roo", ".aider.conf.yml", ".augment/settings.json",
            ".junie/mcp", ".agents", ".openhands", ".amazonq", ".cline", ".crush.json", ".config/Claude",
            ".config/claude", ".claude-code-router", ".codeium", ".config/github-copilot", ".kilocode", ".config/kilo",
            ".lmstudio/mcp.json", ".config/mcphub", ".config/mcp", ".mcp.json", ".grok", ".iflow/settings.json",
            ".vibe/config.toml", ".qoder", ".zencoder", ".rovodev", ".config/aichat", ".config/io.datasette.llm",
            ".config/fabric", ".config/shell_gpt", ".augment", ".gemini/antigravity",
        ),
    ),
)  # fmt: skip


def globs_of(categories: tuple[Category, ...]) -> tuple[str, ...]:
    """Return what is in some categories, each once."""
    return tuple(dict.fromkeys(glob for category in categories for glob in category.globs))
