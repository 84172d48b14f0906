"""Damage: valid texts, bytes and JSON become others, most of them still much like what they were.

Every function takes its luck from the random.Random that it is given, and from nothing else.
"""

import json
import re
import struct

LONGEST = 100_000  # letters of a mutated text
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
ODD_NUMBERS = (
    *("-0", "-1", "0", "1", "0.0", "1e-400", "1e400", "-1e400", "NaN", "nan", "inf", "-Infinity"),
    *("2147483648", "4294967296", "9223372036854775808", "18446744073709551616", "1" + "0" * 30),
    *("9" * 5000, "1" + "0" * 400, "²", "٣", "１", "1_000", "0x10", "1e3", "3.5", ".5", "1,5"),
)
ODD_LETTERS = (
    *"\0\x01\x07\x08\x0b\x0c\x1b\x1c\x7f\x85\r\n\t \xa0\xad\u061c\u200b\u200f\u2028\u2029\u202e",
    *"\u0301\u0e33\u3000\ufeff\ufffd\ufffe\ud800\udfff\U0001f9ad\U0010ffff",
    *"²Ⅻß\u0130ıŉ中あ한กé'\"’«»`~#*_-+=<>[]{}()\\/|:;,.?!%&$@^0123456789aZ",
)
ODD_TEXTS = ("", " ", "\r\n", "null", "true", "[", "]", "{", "}", "---", "..", "\ud83e", "e\u0301")


def span(rng, n):
    """Two places i <= j in n letters, mostly near each other."""
    i = int(rng.random() * (n + 1))
    reach = n - i if rng.random() < 0.2 else min(n - i, 12)
    return i, i + int(rng.random() * (reach + 1))


def cut(rng, text, words, others):
    i, j = span(rng, len(text))
    return text[:i] + text[j:]


def double(rng, text, words, others):
    i, j = span(rng, len(text))
    return text[:j] + text[i:]


def swap(rng, text, words, others):
    i, j = span(rng, len(text))
    k, m = span(rng, len(text) - j)
    return text[:i] + text[j + k : j + m] + text[j : j + k] + text[i:j] + text[j + m :]


def put(rng, text, words, others):
    """A word of the format, or an odd one, in or in the place of something."""
    i, j = span(rng, len(text))
    word = rng.choice(words if rng.random() < 0.7 else ODD_TEXTS + ODD_NUMBERS)
    return text[:i] + word + text[i if rng.random() < 0.5 else j :]


def letter(rng, text, words, others):
    i = int(rng.random() * (len(text) + 1))
    return text[:i] + rng.choice(ODD_LETTERS) + text[i + (rng.random() < 0.5) :]


def number(rng, text, words, others):
    found = list(NUMBER.finditer(text[:5000]))
    if not found:
        return put(rng, text, words, others)
    one = rng.choice(found)
    return text[: one.start()] + rng.choice(ODD_NUMBERS) + text[one.end() :]


def lines(rng, text, words, others):
    rows = text.split("\n")
    i, j = int(rng.random() * len(rows)), int(rng.random() * len(rows))
    change = int(rng.random() * 4)
    if change == 0:
        del rows[i]
    elif change == 1:
        rows.insert(i, rows[j])
    elif change == 2:
        rows[i], rows[j] = rows[j], rows[i]
    else:
        rows[i : i + 2] = ["".join(rows[i : i + 2])]
    return "\n".join(rows)


def splice(rng, text, words, others):
    other = rng.choice(others)
    return text[: int(rng.random() * (len(text) + 1))] + other[int(rng.random() * len(other)) :]


def repeat(rng, text, words, others):
    i, j = span(rng, len(text))
    piece = text[i:j] or rng.choice(words if rng.random() < 0.5 else ODD_LETTERS)
    return text[:i] + piece * rng.choice((2, 3, 10, 40)) + text[j:]


def flood(rng, text, words, others):
    """One piece thousands of times, as a degenerate model goes on."""
    i, j = span(rng, len(text))
    piece = text[i:j] or rng.choice(words if rng.random() < 0.5 else ODD_LETTERS)
    return (text[:i] + piece * rng.choice((1000, 4000)))[:LONGEST] + text[j:]


def nest(rng, text, words, others):
    i, j = span(rng, len(text))
    opening, closing = rng.choice(("[]", "{}", "()", ('{"a":', "}"), "<>", "**"))
    n = rng.choice((1, 2, 30, 30, 500, 5000))
    return text[:i] + opening * n + text[i:j] + closing * n + text[j:]


CHANGES = (*(cut, double, swap, put, put, letter, number, lines, splice) * 4, repeat, repeat, nest)


def mutate_text(rng, text, words, others):
    """A text, changed in one to five places. words: of its format; others: texts of its kind."""
    words = words or ODD_TEXTS
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        change = flood if rng.random() < 0.002 else rng.choice(CHANGES)
        text = change(rng, text, words, others)[:LONGEST]
    return text


# ---- JSON ----

DEEP = [opening * n + closing * n for n in (100, 3000, 50_000) for opening, closing in ("[]",)]
ODD_JSON = (
    *("null", "true", "false", "[]", "{}", '""', '" "', '"\\u0000"', '"\\ud800"', '"x"', "[[]]"),
    *("0", "-0", "1", "-1", "2", "7", "31", "64", "3.5", "0.0", "1e400", "-1e400", "NaN"),
    *("65536", "1000000", "20000000", "100000000", "1000000000", "0.5", "-1e-9", "1e18", "1e19"),
    *("Infinity", "2147483647", "2147483648", "1099511627776", "9223372036854775808"),
    *("1" + "0" * 400, "9" * 5000, "1e308", "1e-320", '"1"', '"nan"', '"\\u2028\\u001b[31m"'),
    *("[null]", "[1]", "[-1]", "[NaN]", '["a"]', "[[1]]", '{"a": 1}', '{"": null}', '[""]'),
    *('"("', '"[a"', '"(a+)+$"', '"(?<=a+)b"', '"a{99999}"', '"(?R)"', '"\\\\p{No}"', '"(?i"'),
    *('"../x"', '"/dev/stdin"', '"/dev/zero"', '"."', '"a\\nb"', '"%s {0} {x}"', str([1] * 99_999)),
    *('{"type": "x"}', '{"a": 1, "a": 2}', '"' + "long " * 2000 + '"', str([0] * 3000), *DEEP),
)


def somewhere(rng, box):
    """(a list or dict, an index or key): a random walk down, so that what is rare is met too."""
    holder, key = box, 0
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    return holder, key


def retype(rng, value):
    """The same thing as another type, or of another size."""
    ways = [[value], {"a": value}, str(value)[:200], value, None]
    if isinstance(value, bool | int | float):
        ways += [-value, value + 1, value * 2, not value, value * 10**6]
        ways += [int(value), float(value)] if abs(value) < 1e300 else []
    if isinstance(value, str | list):
        ways += [value * 2, value[:-1], value[::-1], value[:1], list(value)]
        ways += [value * 1000] if len(value) < 20 else []
    if isinstance(value, dict):
        ways += [list(value), list(value.values()), list(value.items())]
    return rng.choice(ways)


def change_json(rng, box, words):
    holder, key = somewhere(rng, box)
    luck = rng.random()
    odd = f"@@{int(rng.random() * len(ODD_JSON))}@@"
    odd = rng.choice(words) if words and rng.random() < 0.1 else odd
    if luck < 0.4:
        holder[key] = odd
    elif luck < 0.55 and holder is not box:
        del holder[key]
    elif luck < 0.75:
        holder[key] = retype(rng, holder[key])
    elif luck < 0.85:
        other, there = somewhere(rng, box)
        holder[key], other[there] = other[there], holder[key]  # may stand in itself: refused below
    elif isinstance(holder, dict):
        new = rng.choice(words) if words and rng.random() < 0.8 else rng.choice(ODD_TEXTS)
        holder[new] = holder[key] if rng.random() < 0.5 else odd
    else:
        holder.insert(key, holder[key] if rng.random() < 0.5 else odd)


def mutate_json(rng, text, words):
    """JSON, some of whose values, keys and types are others."""
    box = [json.loads(text)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change_json(rng, box, words)
    try:
        text = json.dumps(box[0], ensure_ascii=rng.random() < 0.5)
    except (ValueError, RecursionError):  # it stands in itself
        return text[: int(rng.random() * len(text))]
    return re.sub(r'"@@(\d+)@@"', lambda found: ODD_JSON[int(found[1]) % len(ODD_JSON)], text)


def mutate_jsonl(rng, text, words):
    """Lines of JSON: some are damaged, doubled, left out, in another order."""
    rows = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 3))):
        i, luck = rng.randrange(len(rows)), rng.random()
        if luck < 0.7:
            try:
                rows[i] = mutate_json(rng, rows[i], words)
            except (ValueError, RecursionError):
                rows[i] = rows[i][:5]
        elif luck < 0.8:
            rows[i] = rng.choice(ODD_JSON)
        else:
            rows = (lines(rng, "\n".join(rows), words, rows) or "{}").split("\n")
    return "\n".join(rows) + "\n" * (rng.random() < 0.9)


# ---- bytes ----


def mutate_bytes(rng, data, words=(), others=(b"",)):
    """Bytes: flipped, cut, doubled, or overwritten by numbers that are too large."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        luck, n = rng.random(), len(data)
        i, j = span(rng, n)
        if luck < 0.3 and n:
            i = rng.randrange(n)
            data[i] ^= 1 << rng.randrange(8)
        elif luck < 0.5 and n:
            data[rng.randrange(n)] = rng.choice((0, 1, 2, 0x20, 0x7F, 0x80, 0xC3, 0xFF))
        elif luck < 0.6:
            del data[i:j]
        elif luck < 0.7:
            data[j:j] = data[i:j]
        elif luck < 0.75:
            del data[rng.randrange(n + 1) :]
        elif luck < 0.95:
            form = rng.choice("<b <H <I <I <Q <Q <d".split())
            bits = 8 * struct.calcsize(form)
            numbers = (0, 1, 2**bits - 1, 2 ** (bits - 1), 2**40, 2**31, 2**24, 10**8, 5, 255)
            value = rng.choice(numbers) % 2**bits
            raw = value.to_bytes(bits // 8, "little")
            data[i : i + len(raw)] = raw
        else:
            data[i:j] = bytes(j - i)
    return bytes(data)


def as_bytes(text):
    """UTF-8; half a character stays half a one, as no editor would write it."""
    return text.encode("utf-8", "surrogatepass")


def mutate_file(rng, data, words=(), others=(b"",), structure=None):
    """A file's bytes: mostly by its structure (a function like mutate_json), else as text, bytes.

    others: files of the same kind.
    """
    luck = rng.random()
    if luck < 0.01:
        return rng.choice((b"", b" ", b"\n", b"\xef\xbb\xbf", b"\xff\xfe", b"5", b"{}", b"[]"))
    if structure is not None and luck < 0.75:
        return as_bytes(structure(rng, data.decode(), words))
    if luck < 0.9:
        texts = [other.decode("latin-1" if structure is None else "utf-8") for other in others]
        return as_bytes(mutate_text(rng, data.decode("utf-8", "replace"), words, texts))
    return mutate_bytes(rng, data)
