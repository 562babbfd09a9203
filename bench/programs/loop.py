"""Objects, dictionaries, strings and integers of the Python interpreter; prints a checksum."""


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def shifted(self, by):
        return Point(self.x + by, self.y - by)


total = 0
counts = {}
point = Point(0, 0)
for i in range(60000):
    point = point.shifted(i % 7)
    key = f"k{point.x % 97}"
    counts[key] = counts.get(key, 0) + 1
    total = (total * 31 + point.x * point.y) % 1000003
words = sorted(counts, key=lambda name: (counts[name], name))
print(total, len(words), words[0], sum(len(w) for w in words), 3**400 % 10**20)
