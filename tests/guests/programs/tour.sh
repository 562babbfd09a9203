#!/bin/sh
# Runs every program of this directory; the results go to the directory $1. The same on a host and in a guest.
set -eu
cd "$(dirname "$0")"
out=$1
mkdir -p "$out"
note() {
  # How long each step takes, on stderr.
  printf '%s %s\n' "$(cut -d ' ' -f 1 /proc/uptime 2>/dev/null)" "$1" >&2
}

for program in arithmetic text system; do
  note $program
  python3 -B $program.py >"$out/$program"
done
note perl
perl tour.pl >"$out/perl"

note openssl
seq 1 40000 >"$out/numbers"
head -c 300000 /dev/zero | openssl enc -chacha20 -K "$(printf %064d 1)" -iv "$(printf %032d 2)" >"$out/noise"
for digest in md5 sha1 sha224 sha256 sha384 sha512 sha512-256 sha3-256 sha3-512 shake128 blake2b512 blake2s256 sm3; do
  openssl dgst -$digest "$out/numbers" "$out/noise"
done 2>&1 | sed "s|$out/||" >"$out/digests"
for cipher in aes-128-cbc aes-256-ctr aes-256-ofb aria-128-cbc camellia-256-cbc sm4-ctr chacha20; do
  openssl enc -$cipher -K "$(printf %064d 7 | cut -c 1-64)" -iv "$(printf %032d 9)" -in "$out/numbers" 2>/dev/null |
    openssl dgst -sha256 -r
done >"$out/ciphers"
openssl genrsa -out "$out/.key" 1024 2>/dev/null
openssl rsa -in "$out/.key" -pubout -out "$out/.public" 2>/dev/null
openssl dgst -sha256 -sign "$out/.key" -out "$out/.signature" "$out/noise"
openssl dgst -sha256 -verify "$out/.public" -signature "$out/.signature" "$out/noise" >"$out/rsa"
openssl ecparam -name prime256v1 -genkey -noout -out "$out/.key"
openssl ec -in "$out/.key" -pubout -out "$out/.public" 2>/dev/null
openssl dgst -sha384 -sign "$out/.key" -out "$out/.signature" "$out/noise"
openssl dgst -sha384 -verify "$out/.public" -signature "$out/.signature" "$out/noise" >"$out/ecdsa"
openssl prime 170141183460469231731687303715884105727 >"$out/prime"

note packers
for packer in "gzip -n" "gzip -n9" "xz -1" "xz -3" "bzip2"; do
  for file in numbers noise; do
    $packer <"$out/$file" >"$out/.packed"
    echo "$packer $file $(wc -c <"$out/.packed") $(sha256sum <"$out/.packed")"
    ${packer%% *} -d <"$out/.packed" | cmp - "$out/$file"
  done
done >"$out/packers"

note sqlite
rm -f "$out/data.db"
sqlite3 "$out/data.db" >"$out/sqlite" <<'SQL'
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL, data BLOB);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
INSERT INTO item SELECT i, printf('item %05d', i * 7919 % 3001), i * 1.1 / 3, CAST(printf('%.*c', i % 90, 'x') AS BLOB) FROM n;
COMMIT;
CREATE INDEX by_name ON item (name);
UPDATE item SET price = price * 2 WHERE name LIKE '%7';
DELETE FROM item WHERE id % 11 = 0;
SELECT count(*), sum(price), avg(price), min(name), max(length(data)) FROM item;
SELECT name, price FROM item ORDER BY name LIMIT 5;
SELECT substr(name, -1) AS d, count(*), round(sum(price), 6), group_concat(id % 10, '') FROM item WHERE id < 200 GROUP BY d;
PRAGMA integrity_check;
.sha3sum
SQL

note done
sync
rm "$out"/.[a-z]*
