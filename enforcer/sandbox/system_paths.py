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
_TRUSTED = (*(place for place in SYSTEM if place != "/opt"), "/boot", "/dev", "/proc", "/run", "/sys")
_TREES = tuple(f"{place}/" for place in (*SYSTEM, "/dev", "/proc", "/run", "/sys"))  # no home directory lies in these
_NO_HOMES = frozenset({"/", "/nonexistent", "/tmp", "/var", "/var/empty"})  # the home of accounts without one


def contains(outer: str, inner: str) -> bool:
    """Whether `inner` is `outer` or lies below it."""
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def outermost(paths: Iterable[str]) -> list[str]:
    """Return the paths that lie in no other one, sorted."""
    found: list[str] = []
    for path in sorted(
        paths, key=lambda path: f"{path.rstrip('/')}/"
    ):  # a path inside another one sorts right behind it
        if not found or not contains(found[-1], path):
            found.append(path)
    return sorted(found)


class ShownPaths:
    """Paths that a task is shown, indexed: each query is a look-up, whatever their number."""

    def __init__(self, places: Iterable[str]) -> None:
        """Take paths without symbolic links."""
        self._below = {f"{place.rstrip('/')}/": place for place in places}
        self._all = tuple(self._below)
        self._sorted = sorted(self._all)

    def hold(self, path: str) -> bool:
        """Whether a shown path contains `path`."""
        return f"{path}/".startswith(self._all)

    def one_in(self, path: str) -> str | None:
        """Return a shown path inside `path`; None if there is none."""
        below = f"{path.rstrip('/')}/"
        at = bisect_left(self._sorted, below)
        there = at < len(self._sorted) and self._sorted[at].startswith(below)
        return self._below[self._sorted[at]] if there else None


def real_paths(paths: Iterable[str]) -> list[str]:
    """Return absolute paths with symbolic links resolved, as os.path.realpath does; looks at common parents once."""
    found = {"": ""}
    return [_real(path, found) or "/" if _is_plain(path) else os.path.realpath(path) for path in paths]


def _is_plain(path: str) -> bool:
    whole = f"{path}/"
    return path.startswith("/") and "//" not in whole and "/./" not in whole and "/../" not in whole


def _real(path: str, found: dict[str, str]) -> str:
    at = found.get(path)
    if at is None:
        above, _, name = path.rpartition("/")
        at = f"{_real(above, found)}/{name}"
        if os.path.islink(at):
            at = os.path.realpath(at).rstrip("/")
        found[path] = at
    return at


def containing_path(path: str, shown: Iterable[str]) -> str | None:
    """Return the path in `shown` that contains `path`, by its name or its target; None if none does."""
    leads = os.path.realpath(path)
    return next((place for place in shown if contains(place, path) or contains(place, leads)), None)


def home_directories() -> frozenset[str]:
    """Return every home directory of this host, resolved: the caller's and those of all accounts (passwd(5))."""
    found = {os.environ.get("HOME", ""), os.path.expanduser("~")}
    try:
        with open("/etc/passwd", encoding="utf-8", errors="surrogateescape") as file:
            found.update(fields[5] for line in file if len(fields := line.split(":")) > 5)
    except OSError:
        pass
    there = {*real_paths(home for home in found if os.path.isabs(home))}
    return frozenset(home for home in there - _NO_HOMES if not f"{home}/".startswith(_TREES))


def refuse_workspace(workspace: str, home: str, others: Iterable[str] | None = None) -> None:
    """Raise UsageError for a directory that no task may write to; `others`: the home directories, if known."""
    for place in (*_NEVER_WORKSPACE, home, *sorted(home_directories() if others is None else others)):
        if contains(workspace, place):
            because = _why_never(workspace, place, home)
            raise UsageError(
                f"a task cannot write to `{workspace}`: {because}; "
                "run from a project's own directory, or name one with --workspace"
            )


def _why_never(workspace: str, place: str, home: str) -> str:
    if workspace == home:
        return "it is your home directory, with your keys and configuration"
    if workspace in _SHARED:
        return "all programs of this machine keep files there"
    return f"it is or contains `{place}`"


def refuse_write(path: str, home: str, others: Iterable[str] | None = None) -> None:
    """Raise UsageError for a file or directory that no task may write to beside its workspace."""
    refuse_workspace(path, home, others)
    for place in _TRUSTED:
        if contains(place, path):
            raise UsageError(f"write: `{path}` lies in `{place}`, whose files other programs of this host trust")


# System-wide: also files that a user reads through a group, which a user namespace keeps.
OF_THE_HOST: Final = (
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
_CLOUDS: Final = (
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
_PROGRAMS: Final = (
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
_TYPED: Final = (
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
OF_A_HOME: Final = (*_KEYS, *_CLOUDS, *_PROGRAMS, *_BROWSERS, *_TYPED)
type _Tree = dict[str, _Tree]


def _tree(names: Iterable[str]) -> _Tree:
    found: _Tree = {}
    for name in names:
        at = found
        for part in name.split("/"):
            at = at.setdefault(part, {})
    return found


_TREE: Final = _tree(OF_A_HOME)


def credential_paths(homes: Iterable[str], shown: ShownPaths) -> Iterator[str]:
    """Yield the existing paths of credentials that may matter for what is shown."""
    yield from filter(os.path.lexists, OF_THE_HOST)
    for home in homes:
        if shown.hold(home) or shown.one_in(home):
            yield from (path for name in OF_A_HOME if os.path.lexists(path := f"{home}/{name}"))
        yield from _elsewhere(home)


def _elsewhere(directory: str, tree: _Tree = _TREE) -> Iterator[str]:
    """Yield the targets of a home's credential paths that are links, or lie behind one."""
    try:
        with os.scandir(directory) as entries:
            there = [entry for entry in entries if entry.name in tree]
    except OSError:
        return
    for entry in there:
        below = tree[entry.name]
        if entry.is_symlink():
            yield from filter(os.path.exists, _ends(os.path.realpath(entry.path), below))
        elif below:
            yield from _elsewhere(entry.path, below)


def _ends(path: str, tree: _Tree) -> Iterator[str]:
    """Yield the resolved paths of the leaves of a tree that begins at `path`."""
    if not tree:
        yield os.path.realpath(path)
    for name, below in tree.items():
        yield from _ends(f"{path}/{name}", below)
