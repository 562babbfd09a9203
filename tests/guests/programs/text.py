"""Strings, containers, hashing, JSON, regular expressions, compression, exceptions and generators."""

import bz2
import collections
import datetime
import hashlib
import heapq
import io
import itertools
import json
import lzma
import random
import re
import string
import unicodedata
import zlib
from array import array

rng = random.Random(7)
words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(3000)]
text = " ".join(words) + " Grüße, 日本語 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ÅÅ"

data = text.encode()
for name in "md5 sha1 sha224 sha256 sha384 sha512 sha3_256 blake2b blake2s".split():
    print(name, hashlib.new(name, data).hexdigest())
print(zlib.crc32(data), zlib.adler32(data), hashlib.pbkdf2_hmac("sha256", b"key", b"salt", 50).hex())

print(collections.Counter(text).most_common(12))
print(sorted(words)[:5], sorted(words, key=lambda w: (len(w), w[::-1]))[-5:])
print(heapq.nsmallest(5, words), len(set(words)), hashlib.sha1("".join(sorted(set(words))).encode()).hexdigest())
numbers = [rng.random() for _ in range(5000)]
print(sum(a < b for a, b in itertools.pairwise(sorted(numbers))), max(numbers), min(numbers))

value = {"a": [1, 2.5, -3e300, None, True], "ü": {"n": "\u2028\"\\\n", "x": numbers[:20]}, "big": 10**30}
encoded = json.dumps(value, sort_keys=True)
print(encoded, json.loads(encoded) == value)
print(json.dumps(value, ensure_ascii=False, indent=1)[:120])

print(re.findall(r"\b(\w)(\w)\w*?\2\1\b", text)[:20], len(re.findall(r"[aeiou]{3,}", text)))
print(re.sub(r"(?P<first>[a-m]+)(?=z)", lambda m: m["first"].upper(), text)[:300])
print(re.split(r"\s*[,;]\s*", "a , b;c ;d"), bool(re.fullmatch(r"(a|b)*abb", "abababb" * 9)))

for form in ("NFC", "NFD", "NFKC"):
    print(form, unicodedata.normalize(form, "ÅÅﬁ²𝔘").encode("utf-16-be").hex())
print(text[-24:].upper(), "ß".casefold(), "%08.3f|%+d|%x|%e" % (3.14159, 42, 255, 1e-7), f"{12345678:,}|{'x':^9}|{0.5:%}")

for module, options in ((zlib, ()), (bz2, ()), (lzma, ())):
    packed = module.compress(data, *options)
    print(module.__name__, len(packed), hashlib.md5(packed).hexdigest(), module.decompress(packed) == data)


class Refused(ValueError):
    pass


def nested(depth):
    try:
        if depth == 0:
            raise Refused("bottom")
        nested(depth - 1)
    except Refused as error:
        if depth % 50 == 0:
            raise Refused(f"{error} {depth}") from error
        raise
    finally:
        trace.append(depth)


trace = []
try:
    nested(200)
except ValueError as error:
    print(repr(error), repr(error.__cause__), len(trace), sum(trace))
for call in (lambda: 1 // 0, lambda: [][3], lambda: {}["k"], lambda: int("x"), lambda: None.x, lambda: 2.0**5000):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)


def recurse(n):
    return recurse(n + 1)


try:
    recurse(0)
except RecursionError as error:
    print(error)


def primes():
    known = []
    for n in itertools.count(2):
        if all(n % p for p in itertools.takewhile(lambda p: p * p <= n, known)):
            known.append(n)
            yield n


print(list(itertools.islice(primes(), 600))[-3:])
table = array("q", [0]) * 5001
table[0] = 1
for coin in (1, 5, 10, 25, 50, 100, 200):
    for total in range(coin, 5001):
        table[total] += table[total - coin]
print(table[5000])
print(datetime.datetime(2024, 2, 29, 12, 30) + datetime.timedelta(days=365.25), datetime.date(1, 1, 1).strftime("%j %U"))
stream = io.StringIO()
for row in itertools.islice(itertools.permutations("abcdef"), 300, 310):
    print(*row, sep="", file=stream)
print(stream.getvalue().split())
