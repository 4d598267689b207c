"""Write the quickstart's data set: dates as people spell them, answered in ISO 8601.

    python recipes/data/make_dates.py          # rewrites the two files beside this script

A row is `{"prompt": "the 3rd of March 1997 = ", "completion": "1997-03-03"}`. Properties, each tested:

- The same bytes for the same arguments, on every Python version and in every locale.
- A held-out date occurs in the training rows under no spelling, so a right answer is no memory.
- Every spelling has the same share of both files, give or take one row.
- One prompt names one date: no spelling leaves the order of day and month open, years have four digits.

Trade-off: spellings that need the calendar (day of the year, week dates, "the last of May") are left out. In the
quickstart's minute a small model sees each too seldom to learn 366 days by heart, and the score would measure that.
"""

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

FIRST_YEAR, LAST_YEAR = 1950, 2049
TRAIN_ROWS, EVAL_ROWS = 8000, 400

# The locale must not reach the bytes, so no name comes from `calendar` or `strftime`.
MONTHS = tuple(
    "January February March April May June July August September October November December".split()  # noqa: SIM905 - twelve words read better than twelve quoted ones
)
ROMAN_MONTHS = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

SPELLINGS = (
    "{d} {month} {y}",
    "{month} {d}, {y}",
    "{d}{th} {month} {y}",
    "{month} {d}{th}, {y}",
    "{month} the {d}{th}, {y}",
    "the {d}{th} of {month} {y}",
    "{d}{th} of {month}, {y}",
    "{d} {mon} {y}",
    "{mon} {d}, {y}",
    "{mon}. {d}, {y}",
    "{d}-{mon}-{y}",
    "{dd}/{mon}/{y}",
    "{dd} {MON} {y}",
    "{d} {MONTH} {y}",
    "{lower} {d} {y}",
    "{weekday}, {d} {month} {y}",
    "{weekday}, {month} {d}, {y}",
    "{wkd} {d} {mon} {y}",
    "{wkd}, {dd} {mon} {y}",
    "{wkd} {mon} {dd} {y}",
    "{y} {month} {d}",
    "{y}-{mon}-{dd}",
    "{y}.{mm}.{dd}",
    "{y}/{mm}/{dd}",
    "{y}/{m}/{d}",
    "{y}{mm}{dd}",
    "{d}/{roman}/{y}",
    "{d}.{roman}.{y}",
    "{y}年{m}月{d}日",
    "day {d} of month {m}, {y}",
    "year {y}, month {m}, day {d}",
)


def ordinal_suffix(day: int) -> str:
    """`st`, `nd`, `rd` or `th`: 1st, 2nd, 3rd, 11th, 12th, 13th, 21st."""
    return "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def spell(day: date, spelling: str) -> str:
    """The date in one spelling, as a prompt: `3 March 1997 = `."""
    month, weekday = MONTHS[day.month - 1], WEEKDAYS[day.weekday()]
    text = spelling.format(
        y=day.year,
        m=day.month,
        mm=f"{day.month:02}",
        month=month,
        lower=month.lower(),
        MONTH=month.upper(),
        mon=month[:3],
        MON=month[:3].upper(),
        roman=ROMAN_MONTHS[day.month - 1],
        d=day.day,
        dd=f"{day.day:02}",
        th=ordinal_suffix(day.day),
        weekday=weekday,
        wkd=weekday[:3],
    )
    return f"{text} = "


def normalise(prompt: str) -> str:
    """What must differ between two prompts: not only case and white space."""
    return " ".join(prompt.casefold().split())


def draw(count: int, days: Sequence[date], *, seen: set[str], rng: random.Random) -> list[dict[str, str]]:
    """`count` rows, the spellings in turn, shuffled; prompts that are in `seen` are drawn again."""
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        day = days[int(rng.random() * len(days))]
        prompt = spell(day, SPELLINGS[len(rows) % len(SPELLINGS)])
        if normalise(prompt) not in seen:
            seen.add(normalise(prompt))
            rows.append({"prompt": prompt, "completion": day.isoformat()})
    # `random.Random.random` is the one method whose stream Python promises to keep.
    return sorted(rows, key=lambda row: rng.random())


def make(train_rows: int = TRAIN_ROWS, eval_rows: int = EVAL_ROWS, seed: int = 0) -> tuple[list[dict[str, str]], ...]:
    """(training rows, held-out rows)."""
    rng = random.Random(seed)
    first, last = date(FIRST_YEAR, 1, 1).toordinal(), date(LAST_YEAR, 12, 31).toordinal()
    days = [date.fromordinal(number) for number in range(first, last + 1)]
    seen: set[str] = set()
    held_out = draw(eval_rows, days, seen=seen, rng=rng)
    dates = {row["completion"] for row in held_out}
    training = draw(train_rows, [day for day in days if day.isoformat() not in dates], seen=seen, rng=rng)
    return training, held_out


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the quickstart's data set.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    training, held_out = make(seed=options.seed)
    write(options.folder / "dates_train.jsonl", training)
    write(options.folder / "dates_eval.jsonl", held_out)


if __name__ == "__main__":
    main()
