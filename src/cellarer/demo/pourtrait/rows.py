"""The tables of the sample product, and what their rows hold, as COPY text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cellarer.demo.pourtrait.dice import Dice, Numbers
from cellarer.demo.pourtrait.words import (
    CUVEES,
    ESTATES,
    FIRST_NAMES,
    FOODS,
    GRAPES,
    LAST_NAMES,
    OCCASIONS,
    REGIONS,
    VINEYARDS,
    Sentences,
)

WINE_TYPES = ("red", "red", "red", "white", "white", "rose", "sparkling", "dessert", "fortified")
LEVELS = ("beginner", "beginner", "intermediate", "intermediate", "advanced", "expert")
CRITICS = ("M. Holm", "The Cellar Review", "R. Okafor", "Vinum Novum", "J. Petit", "Decant Daily")
MODELS = ("sommelier-2", "sommelier-2-mini", "sommelier-3")
TRAITS = ("sweetness", "acidity", "tannin", "body", "oak", "fruit", "earth", "alcohol")
VECTOR_LENGTH = 24
NULL = "\\N"
Columns = list[list[str]]


@dataclass(frozen=True)
class Rows:
    """Which rows of a table to write: their dice numbers, keys and moments, one of each per row.

    `users` and `wines` are empty where the table has no such column.
    """

    numbers: Numbers
    ids: list[str]
    users: list[str]
    wines: list[str]
    created: list[str]
    updated: list[str]


class Writer:
    """Writes the columns that nothing refers to, from a seed's dice and sentences."""

    def __init__(self, seed: int | str, sentence_count: int) -> None:
        self.dice = Dice(seed)
        self.sentences = Sentences(seed, sentence_count)

    def text(self, pool: list[str], fewest: int, most: int, column: str, rows: Rows) -> list[str]:
        """Between `fewest` and `most` sentences of `pool` for each row."""
        numbers = rows.numbers
        lengths = self.dice.below(most - fewest + 1, f"{column}.length", numbers) + np.uint64(
            fewest
        )
        places = np.repeat(numbers * np.uint64(most), most) + np.tile(
            np.arange(most, dtype=np.uint64), len(numbers)
        )
        chosen = self.dice.below(len(pool), column, places).reshape(-1, most).tolist()
        return [
            " ".join([pool[place] for place in line[:length]])
            for line, length in zip(chosen, lengths.tolist(), strict=True)
        ]

    def pick(self, choices: tuple[str, ...] | list[str], column: str, rows: Rows) -> list[str]:
        """One of `choices` for each row."""
        return self.dice.pick(choices, column, rows.numbers)

    def whole(self, fewest: int, most: int, column: str, rows: Rows) -> list[int]:
        """A whole number between `fewest` and `most` for each row."""
        drawn = self.dice.below(most - fewest + 1, column, rows.numbers).tolist()
        return [number + fewest for number in drawn]

    def hexadecimal(self, column: str, rows: Rows) -> list[str]:
        """16 hexadecimal digits for each row, such as foreign keys of other services."""
        text = self.dice.bits(column, rows.numbers).astype(">u8").tobytes().hex()
        return [text[at : at + 16] for at in range(0, len(text), 16)]


@dataclass(frozen=True)
class Table:
    """One table: how many rows a user has there and how large they are in the database.

    `row_bytes` counts the row's share of the indexes too and is measured. `changing` are the
    columns that people edit; `write` gives the columns of a block of rows as COPY text.
    """

    name: str
    columns: tuple[str, ...]
    changing: tuple[str, ...]
    rows_per_user: int
    row_bytes: int
    write: Callable[[Writer, Rows], Columns]


def copy_text(columns: Columns) -> str:
    """Columns side by side: the text that COPY reads."""
    return "\n".join(map("\t".join, zip(*columns, strict=True))) + "\n"


def _users(writer: Writer, rows: Rows) -> Columns:
    first = writer.pick(FIRST_NAMES, "user.first", rows)
    last = writer.pick(LAST_NAMES, "user.last", rows)
    budget = writer.whole(8, 120, "user.budget", rows)
    food = writer.pick(FOODS, "user.food", rows)
    theme = writer.pick(("dark", "dark", "light"), "user.theme", rows)
    named = list(zip(first, last, rows.ids, strict=True))
    return [
        rows.ids,
        [f"{a}.{b}.{key[:8]}{key[9:13]}@example.com" for a, b, key in named],
        [f"{a} {b}" for a, b, _ in named],
        writer.pick(LEVELS, "user.level", rows),
        [f"{capacity}0" for capacity in writer.whole(2, 60, "user.capacity", rows)],
        [
            f'{{"theme": "{a}", "currency": "EUR", "budget": {b}, "favourite_food": "{c}"}}'
            for a, b, c in zip(theme, budget, food, strict=True)
        ],
        rows.created,
        rows.updated,
    ]


def _wines(writer: Writer, rows: Rows) -> Columns:
    vineyard = writer.pick(VINEYARDS, "wine.vineyard", rows)
    cuvee = writer.pick(CUVEES, "wine.cuvee", rows)
    estate = writer.pick(ESTATES, "wine.estate", rows)
    owner = writer.pick(LAST_NAMES, "wine.owner", rows)
    region = writer.dice.pick(REGIONS, "wine.region", rows.numbers)
    cents = writer.whole(590, 18_000, "wine.price", rows)
    slots = writer.whole(0, 1199, "wine.slot", rows)
    return [
        rows.ids,
        rows.users,
        [f"{a} {b}" for a, b in zip(vineyard, cuvee, strict=True)],
        [f"{a} {b}" for a, b in zip(estate, owner, strict=True)],
        [name for name, _ in region],
        [country for _, country in region],
        writer.pick(WINE_TYPES, "wine.type", rows),
        _grapes(writer, rows),
        *_years(writer, rows),
        [f"{price // 100}.{price % 100:02}" if price % 25 else NULL for price in cents],
        [moment[:10] for moment in rows.created],
        [f"rack {a // 100 + 1}, row {a // 10 % 10}, slot {a % 10}" for a in slots],
        list(map(str, writer.whole(0, 12, "wine.quantity", rows))),
        _external_data(writer, rows),
        rows.created,
        rows.updated,
    ]


def _grapes(writer: Writer, rows: Rows) -> list[str]:
    """One grape, or a blend of two."""
    first = writer.pick(GRAPES, "wine.grape.1", rows)
    second = writer.pick(GRAPES, "wine.grape.2", rows)
    pure = writer.pick(("yes", "no", "no"), "wine.pure", rows)
    return [
        f'{{"{a}"}}' if a == b or alone == "yes" else f'{{"{a}","{b}"}}'
        for a, b, alone in zip(first, second, pure, strict=True)
    ]


def _years(writer: Writer, rows: Rows) -> Columns:
    """Vintage, and from when until when to drink it; a few wines have none."""
    vintage = writer.whole(1985, 2023, "wine.vintage", rows)
    wait = writer.whole(1, 6, "wine.wait", rows)
    span = writer.whole(2, 40, "wine.span", rows)
    years = [
        (str(a), str(a + b), str(a + b + c // 2)) if c < 40 else (NULL, NULL, NULL)
        for a, b, c in zip(vintage, wait, span, strict=True)
    ]
    return [list(column) for column in zip(*years, strict=True)]


def _external_data(writer: Writer, rows: Rows) -> list[str]:
    label = writer.hexadecimal("wine.label", rows)
    critic = writer.pick(CRITICS, "wine.critic", rows)
    points = writer.whole(82, 99, "wine.points", rows)
    ratings = writer.whole(11, 9000, "wine.ratings", rows)
    alcohol = writer.whole(110, 155, "wine.alcohol", rows)
    summary = writer.text(writer.sentences.tasting, 1, 2, "wine.summary", rows)
    return [
        f'{{"source": "vinothek", "label": "https://images.example.com/labels/{a}.jpg",'
        f' "alcohol": {e / 10}, "bottle_ml": 750, "average": {c / 22:.2f}, "ratings": {d},'
        f' "scores": [{{"critic": "{b}", "points": {c}}}], "summary": "{f}"}}'
        for a, b, c, d, e, f in zip(label, critic, points, ratings, alcohol, summary, strict=True)
    ]


def _taste_profiles(writer: Writer, rows: Rows) -> Columns:
    loved = writer.pick(GRAPES, "taste.loved", rows)
    avoided = writer.pick(GRAPES, "taste.avoided", rows)
    region = writer.dice.pick(REGIONS, "taste.region", rows.numbers)
    scales = [writer.whole(0, 100, f"taste.{trait}", rows) for trait in TRAITS]
    vector = [
        writer.whole(-10_000, 10_000, f"taste.vector.{place}", rows)
        for place in range(VECTOR_LENGTH)
    ]
    pattern = ", ".join(f'"{trait}": 0.%02d' for trait in TRAITS)
    return [
        rows.ids,
        rows.users,
        [
            f'{{"loved": ["{a}"], "avoided": ["{b}"], "regions": ["{c}"], "scales": {{{d}}}}}'
            for a, b, (c, _), d in zip(
                loved,
                avoided,
                region,
                [pattern % line for line in zip(*scales, strict=True)],
                strict=True,
            )
        ],
        [
            "[" + ", ".join([str(value / 10_000) for value in line]) + "]"
            for line in zip(*vector, strict=True)
        ],
        list(map(str, writer.whole(0, 400, "taste.learned", rows))),
        rows.created,
        rows.updated,
    ]


def _consumption(writer: Writer, rows: Rows) -> Columns:
    first = writer.pick(FIRST_NAMES, "drunk.first", rows)
    second = writer.pick(FIRST_NAMES, "drunk.second", rows)
    company = writer.whole(0, 2, "drunk.company", rows)
    notes = writer.text(writer.sentences.tasting, 0, 3, "drunk.notes", rows)
    return [
        rows.ids,
        rows.wines,
        rows.users,
        [moment[:10] for moment in rows.created],
        [str(half / 2) if half < 11 else NULL for half in writer.whole(2, 11, "drunk.half", rows)],
        [text or NULL for text in notes],
        [
            ("{}", f"{{{a}}}", f"{{{a},{b}}}")[count]
            for a, b, count in zip(first, second, company, strict=True)
        ],
        writer.pick(OCCASIONS, "drunk.occasion", rows),
        writer.pick(FOODS, "drunk.food", rows),
        rows.created,
    ]


def _recommendations(writer: Writer, rows: Rows) -> Columns:
    about_wine = writer.whole(0, 4, "ai.about_wine", rows)
    sure = writer.whole(35, 99, "ai.sure", rows)
    return [
        rows.ids,
        rows.users,
        [wine if about else NULL for wine, about in zip(rows.wines, about_wine, strict=True)],
        writer.pick(MODELS, "ai.model", rows),
        writer.text(writer.sentences.asking, 1, 3, "ai.prompt", rows),
        writer.text(writer.sentences.advice, 2, 6, "ai.explanation", rows),
        _responses(writer, rows),
        [f"0.{percent}" for percent in sure],
        writer.pick(("t", "t", "f", NULL), "ai.accepted", rows),
        rows.created,
    ]


def _responses(writer: Writer, rows: Rows) -> list[str]:
    trace = writer.hexadecimal("ai.trace", rows)
    tokens = writer.whole(180, 2400, "ai.tokens", rows)
    picks = []
    for rank in range(1, 4):
        names = zip(
            writer.pick(VINEYARDS, f"ai.pick.{rank}.name", rows),
            writer.pick(CUVEES, f"ai.pick.{rank}.cuvee", rows),
            writer.whole(40, 99, f"ai.pick.{rank}.score", rows),
            writer.text(writer.sentences.advice, 1, 1, f"ai.pick.{rank}.reason", rows),
            strict=True,
        )
        picks.append(
            [f'{{"wine": "{a} {b}", "score": 0.{c}, "reason": "{d}"}}' for a, b, c, d in names]
        )
    return [
        f'{{"trace": "{a}", "tokens": {b}, "finish": "stop", "picks": [{", ".join(c)}]}}'
        for a, b, c in zip(trace, tokens, zip(*picks, strict=True), strict=True)
    ]


def _notes(writer: Writer, rows: Rows) -> Columns:
    occasion = writer.pick(OCCASIONS, "note.occasion", rows)
    food = writer.pick(FOODS, "note.food", rows)
    tasting = writer.text(writer.sentences.tasting, 2, 9, "note.tasting", rows)
    after = writer.text(writer.sentences.tasting, 2, 5, "note.after", rows)
    # One note in twenty is a report of several pages, too long for a page of the table.
    pages = writer.text(writer.sentences.tasting, 30, 60, "note.pages", _every(20, rows))
    long = iter(pages)
    return [
        rows.ids,
        rows.wines,
        rows.users,
        [f"{a}, {b}" for a, b in zip(occasion, food, strict=True)],
        [
            f"{a}\\n\\n{b}" + (f"\\n\\n{next(long)}" if number % 20 == 0 else "")
            for number, a, b in zip(rows.numbers.tolist(), tasting, after, strict=True)
        ],
        rows.created,
        rows.updated,
    ]


def _every(step: int, rows: Rows) -> Rows:
    """The rows whose number divides by `step`, with nothing but their numbers."""
    return Rows(rows.numbers[rows.numbers % np.uint64(step) == 0], [], [], [], [], [])


USERS = Table(
    "user_profiles",
    (
        *("id", "email", "display_name", "experience", "cellar_capacity", "preferences"),
        *("created_at", "updated_at"),
    ),
    ("experience", "cellar_capacity", "preferences", "updated_at"),
    1,
    1000,
    _users,
)
WINES = Table(
    "wines",
    (
        *("id", "user_id", "name", "producer", "region", "country", "type", "grape_varieties"),
        *("vintage", "drink_from", "drink_until", "price", "purchased_on", "location"),
        *("quantity", "external_data", "created_at", "updated_at"),
    ),
    ("price", "location", "quantity", "external_data", "updated_at"),
    12,
    915,
    _wines,
)
TASTE_PROFILES = Table(
    "taste_profiles",
    (
        *("id", "user_id", "preferences", "flavour_vector", "learned_from"),
        *("created_at", "updated_at"),
    ),
    ("preferences", "flavour_vector", "learned_from", "updated_at"),
    1,
    830,
    _taste_profiles,
)
CONSUMPTION = Table(
    "consumption_history",
    (
        *("id", "wine_id", "user_id", "consumed_on", "rating", "notes", "companions"),
        *("occasion", "food", "created_at"),
    ),
    ("rating", "notes", "companions", "occasion"),
    10,
    378,
    _consumption,
)
RECOMMENDATIONS = Table(
    "ai_recommendations",
    (
        *("id", "user_id", "wine_id", "model", "prompt", "explanation", "response"),
        *("confidence", "accepted", "created_at"),
    ),
    ("explanation", "response", "confidence", "accepted"),
    4,
    1300,
    _recommendations,
)
NOTES = Table(
    "notes",
    ("id", "wine_id", "user_id", "title", "body", "created_at", "updated_at"),
    ("title", "body", "updated_at"),
    5,
    1105,
    _notes,
)
TABLES = (USERS, WINES, TASTE_PROFILES, CONSUMPTION, RECOMMENDATIONS, NOTES)
"""In an order in which every row comes after those that it refers to."""
