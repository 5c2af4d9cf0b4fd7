"""A cron expression and its time zone, checked before anything is printed.

The five fields mean the same to every scheduler we print for; what they read differently (a step
in one of the two day fields beside the other day field, seconds, `L`, `#`) is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from pipelines.errors import SettingsError

EXPECTED = "five fields are expected: minute hour day-of-month month day-of-week, as in '0 3 * * *'"
MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
PLAIN = re.compile(r"(\*(/\d+)?|\d+(-\d+(/\d+)?)?(,\d+(-\d+)?)*)")
"""A field that every cron reads alike; another one is written out as numbers."""
DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
FULL = (60, 24, 31, 12, 7)


@dataclass(frozen=True)
class Times:
    """When a job starts: the five fields, and the zone they are read in (None: the machine's)."""

    expression: str
    zone: str | None
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]

    def calendars(self) -> list[str]:
        """The same times as systemd's OnCalendar; two lines where cron means day *or* weekday."""
        month, day = _part(self.months, 12), _part(self.days, 31)
        clock = f"{_part(self.hours, 24)}:{_part(self.minutes, 60)}:00"
        zone = f" {self.zone}" if self.zone else ""
        weekday = ",".join(DAYS[number] for number in self.weekdays)
        by_day, by_weekday = f"*-{month}-{day}", f"{weekday} *-{month}-*"
        if len(self.weekdays) == 7:
            return [f"{by_day} {clock}{zone}"]
        if len(self.days) == 31:
            return [f"{by_weekday} {clock}{zone}"]
        return [f"{by_day} {clock}{zone}", f"{by_weekday} {clock}{zone}"]


def times(expression: str, zone: str | None) -> Times:
    """Check an expression and a zone. SettingsError, in one line, says which part is wrong."""
    fields = MACROS.get(expression.strip().lower(), expression).split()
    shown = f"--cron '{expression}'"
    if len(fields) != 5:
        raise SettingsError(f"{shown} has {len(fields)} fields; {EXPECTED}")
    if any(char in expression for char in "#?") or re.search(r"\d*L|W", " ".join(fields[2:5:2])):
        raise SettingsError(
            f"{shown} uses L, W, # or ?, which not every scheduler knows; {EXPECTED}"
        )
    try:
        found = CronSim(" ".join(fields), datetime.now(UTC).replace(tzinfo=None))
        next(found)
    except (CronSimError, ValueError) as error:
        raise SettingsError(f"{shown}: {str(error).lower()}; {EXPECTED}") from error
    except StopIteration as error:
        raise SettingsError(f"{shown} never comes; name a day that there is") from error
    stepped = [field.startswith("*/") for field in (fields[2], fields[4])]
    if any(stepped) and fields[2] != "*" and fields[4] != "*":
        raise SettingsError(
            f"{shown}: cron programs disagree on */ in one day field beside the other; write the "
            "days out, as in 1,3,5"
        )
    weekdays = {int(day) % 7 for day in found.weekdays if isinstance(day, int)}
    sets = [found.minutes, found.hours, found.days, found.months, weekdays]
    numbers = [tuple(sorted(values)) for values in sets]
    # A range that ends in Sunday as 7 is not known to Kubernetes.
    plain = [
        field if PLAIN.fullmatch(field) and not (place == 4 and "7" in field) else None
        for place, field in enumerate(fields)
    ]
    written = [
        text or ("*" if len(values) == full else ",".join(map(str, values)))
        for text, values, full in zip(plain, numbers, FULL, strict=True)
    ]
    return Times(" ".join(written), known_zone(zone), *numbers)


def known_zone(zone: str | None) -> str | None:
    """The zone if the tz database has it. SettingsError."""
    if zone is None:
        return None
    known = available_timezones()
    if zone in known and zone not in ("localtime", "Factory"):
        ZoneInfo(zone)
        return zone
    by_case = {name.casefold(): name for name in sorted(known)}
    like = by_case.get(zone.casefold()) or next(
        (by_case[name] for name in get_close_matches(zone.casefold(), by_case, 1)), None
    )
    hint = f", did you mean '{like}'?" if like else ""
    raise SettingsError(
        f"--timezone '{zone}' is not in the tz database{hint}: a name such as Europe/Berlin or "
        "Etc/UTC is expected"
    )


def _part(values: tuple[int, ...], full: int) -> str:
    return "*" if len(values) == full else ",".join(f"{value:02d}" for value in values)
