"""Arithmetic of many kinds, printed exactly."""

import math
import random
import struct
import sys
from decimal import Decimal, getcontext
from fractions import Fraction


def integers(rng):
    for bits in (8, 31, 32, 33, 63, 64, 65, 127, 1000):
        for _ in range(20):
            a = rng.getrandbits(bits) - (1 << bits - 1)
            b = rng.getrandbits(bits // 2 + 1) | 1
            print(bits, a + b, a * b, a // b, a % b, a & b, a ^ b, ~a, a >> 3, a << 5, pow(a, 65537, b))
    print(math.factorial(300) % 10**40, math.isqrt(10**81), math.gcd(2**90 - 1, 2**60 - 1))


def floats(rng):
    values = [0.0, -0.0, 1.0, -1.5, math.inf, -math.inf, math.nan, 5e-324, 2.2250738585072014e-308]
    values += [sys.float_info.max, 2.0**53, 2.0**53 - 1, 0.1, 1 / 3]
    values += [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(60)]
    values += [rng.uniform(-1000, 1000) for _ in range(60)]
    for a in values:
        b = rng.choice(values)
        print(repr(a), repr(b), a + b, a - b, a * b, a / b if b else "/0", a < b, a == b, a.hex())
        print(struct.pack("<d", a).hex(), f"{a:.17g} {a:.3e} {a:.20f}"[:400])
        if math.isfinite(a):
            print(round(a), math.floor(a), math.ceil(a), math.trunc(a), a.as_integer_ratio(), math.frexp(a))
            print(float(repr(a)) == a, round(a, 2))
        try:
            print(struct.unpack("<f", struct.pack("<f", a)))
        except OverflowError as error:
            print(error)


def functions(rng):
    for name in "sin cos tan exp log sqrt atan sinh tanh erf gamma cbrt expm1 log1p".split():
        function = getattr(math, name)
        for _ in range(12):
            x = rng.uniform(0.001, 20)
            print(name, repr(x), repr(function(x)))
    for _ in range(40):
        x, y = rng.uniform(0.01, 50), rng.uniform(-9, 9)
        print(repr(x**y), repr(math.fmod(x, y)), repr(math.hypot(x, y)), repr(math.atan2(y, x)), divmod(x, y))
    print(sum(rng.random() for _ in range(20000)), math.fsum(rng.gauss(0, 1) for _ in range(5000)))
    print((1 + 2j) ** (0.5 - 1j), abs(3 - 4j))


def exact():
    getcontext().prec = 60
    print(Decimal(2).sqrt(), Decimal(1) / Decimal(7), Decimal(10).ln())
    print(sum(Fraction(1, n) for n in range(1, 60)))


def pi_digits(count):
    q, r, t, k, n, l = 1, 0, 1, 1, 3, 3
    digits = []
    while len(digits) < count:
        if 4 * q + r - t < n * t:
            digits.append(str(n))
            q, r, n = 10 * q, 10 * (r - n * t), 10 * (3 * q + r) // t - 10 * n
        else:
            q, r, t, k, n, l = q * k, (2 * q + r) * l, t * l, k + 1, (q * (7 * k + 2) + r * l) // (t * l), l + 2
    return "".join(digits)


rng = random.Random(20240607)
integers(rng)
floats(rng)
functions(rng)
exact()
print(pi_digits(250))
