"""One name to be let in by, another to get to."""

import subprocess

from .attempts import attempt
from .wire import EVIL, EVIL_NAME, ask, connect, request, tls


@attempt()
def good(host):
    return ask(tls(host), request(host))


@attempt("spliced")
def good_spliced(host):
    return ask(tls(host), request(host))


@attempt()
def good_in_the_clear(host):
    return ask(connect(host, 80), request(host))


@attempt()
def address_literal(host):
    return ask(tls(EVIL, None), request(EVIL))


@attempt()
def address_literal_with_an_allowed_sni(host):
    return ask(tls(EVIL, host), request(host))


@attempt()
def address_literal_with_an_allowed_host(host):
    return ask(connect(EVIL, 80), request(host))


@attempt()
def curl_resolve(host):
    words = ["curl", "-sS", "--max-time", "20", "--resolve", f"{host}:443:{EVIL}", f"https://{host}/echo"]
    done = subprocess.run(words, capture_output=True, text=True)
    return {"status": done.returncode, "said": done.stdout, "error": done.stderr}


@attempt("spliced")
def curl_resolve_spliced(host):
    return curl_resolve(host)


@attempt()
def denied_sni_on_an_allowed_name(host):
    return ask(tls(host, EVIL_NAME), request(EVIL_NAME))


@attempt("spliced")
def denied_sni_on_a_spliced_name(host):
    return ask(tls(host, EVIL_NAME), request(EVIL_NAME))


@attempt()
def another_host_behind_an_allowed_sni(host):
    return ask(tls(host), request(EVIL_NAME))


@attempt()
def another_allowed_host_behind_an_allowed_sni(host):
    return ask(tls(host), request(f"good.{host.partition('.')[2]}"))


@attempt()
def another_host_in_the_clear(host):
    return ask(connect(host, 80), request(EVIL_NAME))


@attempt()
def host_switched_on_a_kept_connection(host):
    stream = tls(host)
    return [ask(stream, request(one)) for one in (host, EVIL_NAME)]


@attempt()
def host_switched_in_the_clear(host):
    stream = connect(host, 80)
    return [ask(stream, request(one)) for one in (host, EVIL_NAME)]


@attempt()
def host_switched_in_one_segment(host):
    stream = tls(host)
    first = ask(stream, request(host) + request(EVIL_NAME))
    return [first, ask(stream, b"")]


@attempt()
def denied_name(host):
    return ask(tls(EVIL_NAME), request(EVIL_NAME))


@attempt("unknown")
def unknown_name(host):
    return ask(tls(host), request(host))


@attempt("reviewed")
def name_that_asks(host):
    return ask(tls(host), request(host))
