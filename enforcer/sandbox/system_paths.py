"""System paths of a host: directories of the system, home directories, and paths of credentials.

No task sees credentials or shell histories in anything it is shown. Sources: bubblewrap, firejail (disable-common.inc),
sandbox-runtime, and the manuals of the programs. A path that is a link is hidden at its target.
"""

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

from enforcer.system.errors import UsageError

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store", "/gnu/store")
_SHARED = ("/tmp", "/var/tmp", "/dev/shm")
# As a workspace, one of these or a directory above one would make the system or a user's credentials writable.
_NEVER_WORKSPACE = (*SYSTEM, "/", "/boot", "/dev", "/home", "/proc", "/root", "/run", "/srv", "/sys", "/var", *_SHARED)
_TRUSTED_BY_OTHERS = (*(place for place in SYSTEM if place != "/opt"), "/boot", "/dev", "/proc", "/run", "/sys")
_SYSTEM_PREFIXES = tuple(
    f"{place}/" for place in (*SYSTEM, "/dev", "/proc", "/run", "/sys")
)  # no home directory lies in these
_NOT_HOMES = frozenset({"/", "/nonexistent", "/tmp", "/var", "/var/empty"})  # the home of accounts without one


def contains(outer: str, inner: str) -> bool:
    """Whether `inner` is `outer` or lies below it."""
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def outermost(paths: Iterable[str]) -> list[str]:
    """Return the paths that lie in no other one, sorted."""
    result: list[str] = []
    for path in sorted(
        paths, key=lambda path: f"{path.rstrip('/')}/"
    ):  # a path inside another one sorts right behind it
        if not result or not contains(result[-1], path):
            result.append(path)
    return sorted(result)


class ShownPaths:
    """Paths that a task is shown, indexed: each query is a look-up, whatever their number."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Take paths without symbolic links."""
        self._by_prefix = {f"{path.rstrip('/')}/": path for path in paths}
        self._prefixes = tuple(self._by_prefix)
        self._sorted = sorted(self._prefixes)

    def contains_path(self, path: str) -> bool:
        """Whether a shown path contains `path`."""
        return f"{path}/".startswith(self._prefixes)

    def find_inside(self, path: str) -> str | None:
        """Return a shown path inside `path`; None if there is none."""
        prefix = f"{path.rstrip('/')}/"
        index = bisect_left(self._sorted, prefix)
        is_inside = index < len(self._sorted) and self._sorted[index].startswith(prefix)
        return self._by_prefix[self._sorted[index]] if is_inside else None


def real_paths(paths: Iterable[str]) -> list[str]:
    """Return absolute paths with symbolic links resolved, as os.path.realpath does; looks at common parents once."""
    cache = {"": ""}
    return [_resolve(path, cache) or "/" if _is_normalised(path) else os.path.realpath(path) for path in paths]


def _is_normalised(path: str) -> bool:
    with_slash = f"{path}/"
    return path.startswith("/") and "//" not in with_slash and "/./" not in with_slash and "/../" not in with_slash


def _resolve(path: str, cache: dict[str, str]) -> str:
    resolved = cache.get(path)
    if resolved is None:
        parent, _, name = path.rpartition("/")
        resolved = f"{_resolve(parent, cache)}/{name}"
        if os.path.islink(resolved):
            resolved = os.path.realpath(resolved).rstrip("/")
        cache[path] = resolved
    return resolved


def containing_path(path: str, shown: Iterable[str]) -> str | None:
    """Return the path in `shown` that contains `path`, by its name or its target; None if none does."""
    target = os.path.realpath(path)
    return next(
        (shown_path for shown_path in shown if contains(shown_path, path) or contains(shown_path, target)), None
    )


def home_directories() -> frozenset[str]:
    """Return every home directory of this host, resolved: the caller's and those of all accounts (passwd(5))."""
    homes = {os.environ.get("HOME", ""), os.path.expanduser("~")}
    try:
        with open("/etc/passwd", encoding="utf-8", errors="surrogateescape") as file:
            homes.update(fields[5] for line in file if len(fields := line.split(":")) > 5)
    except OSError:
        pass
    resolved = {*real_paths(home for home in homes if os.path.isabs(home))}
    return frozenset(home for home in resolved - _NOT_HOMES if not f"{home}/".startswith(_SYSTEM_PREFIXES))


def refuse_workspace(workspace: str, home: str, all_homes: Iterable[str] | None = None) -> None:
    """Raise UsageError for a directory that no task may write to; `all_homes`: the home directories, if known."""
    for place in (*_NEVER_WORKSPACE, home, *sorted(home_directories() if all_homes is None else all_homes)):
        if contains(workspace, place):
            because = _explain_refusal(workspace, place, home)
            raise UsageError(
                f"a task cannot write to `{workspace}`: {because}; "
                "run from a project's own directory, or name one with --workspace"
            )


def _explain_refusal(workspace: str, system_path: str, home: str) -> str:
    if workspace == home:
        return "it is your home directory, with your keys and configuration"
    if workspace in _SHARED:
        return "all programs of this machine keep files there"
    return f"it is or contains `{system_path}`"


def refuse_write(path: str, home: str, all_homes: Iterable[str] | None = None) -> None:
    """Raise UsageError for a file or directory that no task may write to beside its workspace."""
    refuse_workspace(path, home, all_homes)
    for trusted in _TRUSTED_BY_OTHERS:
        if contains(trusted, path):
            raise UsageError(f"write: `{path}` lies in `{trusted}`, whose files other programs of this host trust")


# System-wide: also files that a user reads through a group, which a user namespace keeps.
HOST_CREDENTIALS: Final = (
    "/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/security/opasswd", "/etc/ssl/private",
    "/etc/pki/tls/private", "/etc/pki/private", "/etc/letsencrypt", "/etc/krb5.keytab", "/etc/ipsec.secrets",
    "/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_ecdsa_key", "/etc/ssh/ssh_host_ed25519_key", "/etc/wireguard",
    "/etc/openvpn", "/etc/ppp", "/etc/NetworkManager/system-connections", "/etc/wpa_supplicant", "/etc/iwd",
    "/etc/docker", "/etc/containerd", "/etc/containers/auth.json", "/etc/kubernetes", "/etc/rancher", "/etc/cni",
    "/etc/vault.d", "/etc/credstore", "/etc/credstore.encrypted", "/etc/mysql/debian.cnf", "/etc/msmtprc",
    "/etc/exim4/passwd.client", "/etc/postfix/sasl_passwd", "/etc/samba/private", "/etc/sudoers", "/etc/sudoers.d",
    "/etc/cloud", "/etc/boto.cfg", "/var/lib/cloud", "/var/lib/systemd/credential.secret", "/var/lib/docker",
    "/var/lib/containerd", "/var/lib/containers", "/var/lib/kubelet", "/var/lib/rancher", "/var/lib/lxc",
    "/var/lib/lxd", "/var/lib/libvirt", "/var/lib/NetworkManager", "/var/lib/bluetooth", "/var/lib/sss",
    "/var/lib/samba", "/var/lib/tailscale", "/var/lib/iwd", "/var/spool/cron", "/var/spool/mail", "/var/mail",
    "/var/log/journal", "/var/log/audit", "/var/backups", "/var/snap/lxd", "/var/crash",
)  # fmt: skip
_KEYS: Final = (
    ".ssh", ".gnupg", ".pki", ".local/share/pki", ".putty", ".config/putty", ".rhosts", ".shosts", ".netrc", "_netrc",
    ".authinfo", ".authinfo.gpg", ".k5login", ".config/age", ".config/sops", ".age", ".step", ".cert", ".tsh",
    ".password-store", ".local/share/password-store", ".local/share/gopass", ".config/gopass", ".config/op", ".op",
    ".config/1Password", ".1password", ".config/Bitwarden", ".config/Bitwarden CLI", ".config/keepassxc",
    ".cache/keepassxc", ".keepass", ".config/KeePass", ".lastpass", ".config/lpass", ".local/share/lpass",
    ".local/share/keyrings", ".local/share/kwalletd", ".kde/share/apps/kwallet", ".kde4/share/apps/kwallet",
    ".gnome2/keyrings", ".gnome2_private", ".config/goa-1.0", ".config/libaccounts-glib", ".vault-token",
    ".config/vault", ".Xauthority", ".ICEauthority", ".esd_auth", ".pulse-cookie", ".config/pulse/cookie",
    ".ecryptfs", ".Private", ".fscrypt", ".smbcredentials", ".cifscredentials", ".google_authenticator", ".2fa",
    ".local/share/systemd/credentials",
)  # fmt: skip
_CLOUD_LOGINS: Final = (
    ".aws", ".azure", ".config/gcloud", ".boto", ".gsutil", ".config/configstore", ".s3cfg", ".passwd-s3fs", ".mc",
    ".minio", ".oci", ".aliyun", ".tccli", ".bluemix", ".config/doctl", ".config/hcloud", ".config/scw",
    ".config/linode-cli", ".linode", ".config/exoscale", ".fly", ".config/heroku", ".config/netlify", ".netlify",
    ".local/share/com.vercel.cli", ".vercel", ".wrangler", ".config/.wrangler", ".config/wrangler", ".cloudflared",
    ".railway", ".supabase", ".config/stripe", ".config/rclone", ".rclone.conf", ".terraform.d", ".terraformrc",
    ".config/terraform", ".pulumi", ".config/openstack", ".openstack", ".novarc", ".chef", ".ansible_vault",
    ".vagrant.d", ".config/ngrok", ".ngrok2", ".ngrok", ".kube", ".docker", ".dockercfg", ".config/containers",
    ".config/helm", ".helm", ".minikube", ".k3d", ".rancher", ".config/argocd", ".argocd", ".talos", ".lima",
    ".colima", ".config/github-copilot", ".config/wandb", ".kaggle", ".config/kaggle", ".huggingface",
    ".cache/huggingface/token", ".cache/huggingface/stored_tokens", ".openai", ".config/openai", ".anthropic",
    ".claude/.credentials.json", ".codex/auth.json", ".gemini/oauth_creds.json", ".gemini/google_accounts.json",
    ".config/goose", ".local/share/opencode/auth.json", ".aider.conf.yml", ".snowflake", ".snowsql",
    ".config/snowflake", ".databrickscfg", ".dbt/profiles.yml", ".config/hashicorp",
)  # fmt: skip
_PROGRAM_LOGINS: Final = (
    ".git-credentials", ".config/git/credentials", ".gitcookies", ".config/gh", ".config/hub", ".config/glab-cli",
    ".config/tea", ".config/lab.toml", ".subversion/auth", ".hgauth", ".gerrit", ".arcrc", ".config/jira", ".jira.d",
    ".npmrc", ".yarnrc", ".yarnrc.yml", ".bunfig.toml", ".pypirc", ".config/pip", ".pip", ".config/pypoetry",
    ".local/share/uv/credentials", ".config/hatch", ".gem/credentials", ".local/share/gem/credentials",
    ".bundle/config", ".cargo/credentials", ".cargo/credentials.toml", ".composer/auth.json",
    ".config/composer/auth.json", ".m2/settings.xml", ".m2/settings-security.xml", ".gradle/gradle.properties",
    ".ivy2/.credentials", ".sbt/.credentials", ".nuget/NuGet", ".config/NuGet", ".hex", ".cabal/config", ".conan",
    ".pgpass", ".pg_service.conf", ".my.cnf", ".mylogin.cnf", ".mongorc.js", ".odbc.ini", ".dbeaver4",
    ".local/share/DBeaverData", ".msmtprc", ".config/msmtp", ".fetchmailrc", ".getmail", ".mbsyncrc",
    ".offlineimaprc", ".muttrc", ".mutt", ".config/mutt", ".config/neomutt", ".config/aerc", ".davfs2",
    ".config/remmina", ".local/share/remmina", ".config/filezilla", ".filezilla", ".config/wireguard", ".openvpn",
    ".config/openvpn", ".cisco", ".config/syncthing", ".local/state/syncthing", ".config/kdeconnect",
    ".config/weechat", ".weechat", ".irssi", ".purple", ".bitcoin", ".ethereum", ".electrum", ".config/solana",
    ".config/Ledger Live",
)  # fmt: skip
_BROWSERS: Final = (
    ".mozilla", ".config/mozilla", ".librewolf", ".waterfox", ".zen", ".thunderbird", ".icedove", ".config/evolution",
    ".local/share/evolution", ".config/geary", ".local/share/geary", ".config/google-chrome",
    ".config/google-chrome-beta", ".config/google-chrome-unstable", ".config/google-chrome-for-testing",
    ".config/chromium", ".config/BraveSoftware", ".config/microsoft-edge", ".config/microsoft-edge-beta",
    ".config/microsoft-edge-dev", ".config/opera", ".config/vivaldi", ".config/falkon", ".local/share/falkon",
    ".local/share/epiphany", ".config/epiphany", ".local/share/qutebrowser", ".config/qutebrowser",
    ".local/share/torbrowser", ".config/Slack", ".config/discord", ".config/Signal", ".config/Element",
    ".config/teams-for-linux", ".config/Microsoft", ".config/skypeforlinux", ".local/share/TelegramDesktop", ".zoom",
    ".var/app", "snap/firefox", "snap/chromium", "snap/thunderbird", "snap/bitwarden", ".config/Code",
    ".config/Code - Insiders", ".config/VSCodium", ".config/Cursor", ".config/Windsurf", ".vscode-server",
    ".vscode/cli", ".cursor-server",
)  # fmt: skip
_HISTORIES: Final = (
    ".bash_history", ".bash_sessions", ".zsh_history", ".zhistory", ".zsh_sessions", ".histfile", ".history",
    ".sh_history", ".ksh_history", ".mksh_history", ".ash_history", ".local/share/fish", ".config/fish/fish_history",
    ".config/nushell/history.txt", ".config/nushell/history.sqlite3", ".local/share/powershell", ".local/share/atuin",
    ".python_history", ".ipython/profile_default/history.sqlite", ".jupyter", ".local/share/jupyter/runtime",
    ".node_repl_history", ".irb_history", ".local/share/irb", ".pry_history", ".php_history", ".psysh", ".Rhistory",
    ".ghc/ghci_history", ".scala_history", ".psql_history", ".mysql_history", ".mariadb_history", ".sqlite_history",
    ".dbshell", ".mongodb", ".rediscli_history", ".rediscli_auth", ".lesshst", ".local/state/lesshst",
    ".local/state/bash", ".local/state/zsh", ".viminfo", ".vim/viminfo", ".local/share/nvim/shada",
    ".local/state/nvim", ".gdb_history", ".wget-hsts", ".xsession-errors", ".local/share/recently-used.xbel",
)  # fmt: skip
HOME_CREDENTIALS: Final = (*_KEYS, *_CLOUD_LOGINS, *_PROGRAM_LOGINS, *_BROWSERS, *_HISTORIES)
type _Tree = dict[str, _Tree]


def _tree(names: Iterable[str]) -> _Tree:
    tree: _Tree = {}
    for name in names:
        node = tree
        for component in name.split("/"):
            node = node.setdefault(component, {})
    return tree


_TREE: Final = _tree(HOME_CREDENTIALS)


def credential_paths(homes: Iterable[str], shown: ShownPaths) -> Iterator[str]:
    """Yield the existing paths of credentials that may matter for what is shown."""
    yield from filter(os.path.lexists, HOST_CREDENTIALS)
    for home in homes:
        if shown.contains_path(home) or shown.find_inside(home):
            yield from (path for name in HOME_CREDENTIALS if os.path.lexists(path := f"{home}/{name}"))
        yield from _linked_credentials(home)


def _linked_credentials(directory: str, tree: _Tree = _TREE) -> Iterator[str]:
    """Yield the targets of a home's credential paths that are links, or lie behind one."""
    try:
        with os.scandir(directory) as entries:
            matches = [entry for entry in entries if entry.name in tree]
    except OSError:
        return
    for entry in matches:
        subtree = tree[entry.name]
        if entry.is_symlink():
            yield from filter(os.path.exists, _leaf_targets(os.path.realpath(entry.path), subtree))
        elif subtree:
            yield from _linked_credentials(entry.path, subtree)


def _leaf_targets(path: str, tree: _Tree) -> Iterator[str]:
    """Yield the resolved paths of the leaves of a tree that begins at `path`."""
    if not tree:
        yield os.path.realpath(path)
    for name, subtree in tree.items():
        yield from _leaf_targets(f"{path}/{name}", subtree)
