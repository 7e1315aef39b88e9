"""Makes the sample data of pipelines/fleet.toml, and the alerts that it must give, computed without Trunkline.

    python3 pipelines/fleet/sample.py      # writes positions.log, stops.log, records.jsonl, alerts.jsonl and silent.jsonl

Positions of buses every 20 s. One drives too fast, one reaches its stop late, one leaves the area, and one sends two
positions in the wrong order. Those that have arrived send nothing more.
"""

import json
import math
from datetime import datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

FOLDER = Path(__file__).parent
START = datetime(2026, 11, 28, 6, 0, tzinfo=timezone.utc)
CENTRE = (48.4, 9.99)
AREA_METRES = 5000
EARTH_METRES = 6371008.8
SILENCE = 5 * 60 * 1000
METRES_PER_DEGREE = math.pi * EARTH_METRES / 180


def distance(a, b):
    """The great-circle distance in metres (haversine), with one decimal."""
    (lat1, lon1), (lat2, lon2) = [tuple(map(math.radians, point)) for point in (a, b)]
    h = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return Decimal(f"{2 * EARTH_METRES * math.asin(math.sqrt(h)):.1f}")


def iso(time):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def milliseconds(text):
    return int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


def route(vehicle, lat, lon, metres_per_step, steps, east):
    """Positions along a line to the north or to the east."""
    for step in range(steps):
        moved = metres_per_step(step) / METRES_PER_DEGREE
        lat, lon = (lat, lon + moved / math.cos(math.radians(lat))) if east else (lat + moved, lon)
        yield {"vehicle": vehicle, "lat": round(lat, 6), "lon": round(lon, 6), "at": iso(START + timedelta(seconds=20 * step))}


def positions():
    found = [
        *route("bus-1", 48.38, 9.98, lambda step: 200, 12, False),
        *route("bus-2", 48.40, 9.95, lambda step: 540 if step in (5, 6) else 220, 12, True),
        *route("bus-3", 48.40, 9.96, lambda step: 100 if step < 30 else 0, 32, True),
        *route("bus-4", 48.41, 10.03, lambda step: 260, 12, True),
        *route("bus-5", 48.39, 9.99, lambda step: 150, 8, False),
    ]
    found.sort(key=lambda position: (position["at"], position["vehicle"]))
    late = next(index for index, position in enumerate(found) if position["vehicle"] == "bus-5" and index > 10)
    later = next(index for index in range(late + 1, len(found)) if found[index]["vehicle"] == "bus-5")
    found[late], found[later] = found[later], found[late]
    return found


def stops():
    end = {position["vehicle"]: position for position in sorted(positions(), key=lambda position: position["at"])}
    for vehicle, minutes in (("bus-1", 3), ("bus-3", 3), ("bus-5", 9)):
        at = end[vehicle]
        yield {"vehicle": vehicle, "name": f"stop {vehicle[-1]}", "lat": at["lat"], "lon": at["lon"],
               "due": iso(START + timedelta(minutes=minutes))}


def expected():
    """The alerts, in order."""
    known, timetable = {}, {stop["vehicle"]: stop for stop in stops()}
    for position in positions():
        vehicle, at = position["vehicle"], milliseconds(position["at"])
        here = (position["lat"], position["lon"])
        last = known.get(vehicle)
        previous = last if last is not None and last[1] <= at else None
        if last is None or last[1] <= at:
            known[vehicle] = (here, at)
        stop = timetable.get(vehicle)
        alerts = []
        if previous is not None and at > previous[1]:
            speed = (distance(here, previous[0]) * 3600 / (at - previous[1])).quantize(Decimal("0.1"), ROUND_HALF_UP)
            if speed > 90:
                alerts.append("too fast")
        if stop is not None and distance(here, (stop["lat"], stop["lon"])) <= 50:
            delay = (at - milliseconds(stop["due"])) // 1000
            if delay > 300:
                alerts.append("late at " + stop["name"])
        if previous is not None and distance(here, CENTRE) > AREA_METRES >= distance(previous[0], CENTRE):
            alerts.append("left the area")
        if alerts:
            yield vehicle, at, alerts


def expected_silent():
    """The last position of each bus that is silent for `SILENCE`, and the time of the alert, in the order of these times.

    A bus is silent if the first later position of any bus is that much later than its last one. Compares each pair of
    positions, and uses no timers.
    """
    found = [(position, milliseconds(position["at"])) for position in positions()]
    for index, (position, at) in enumerate(found):
        rest = found[index + 1 :]
        reached = next((place for place, (_, time) in enumerate(rest) if time >= at + SILENCE), None)
        own = [time for other, time in rest[:reached] if other["vehicle"] == position["vehicle"]]
        is_outdated = any(other["vehicle"] == position["vehicle"] and time > at for other, time in found[:index])
        if reached is not None and not is_outdated and all(time < at for time in own):
            yield at + SILENCE, position, at


def main():
    lines = [json.dumps(position) for position in positions()]
    table = [json.dumps(stop) for stop in stops()]
    (FOLDER / "positions.log").write_text("".join(line + "\n" for line in lines))
    (FOLDER / "stops.log").write_text("".join(line + "\n" for line in table))
    records = [f'{{"source":"stops","value":{line}}}\n' for line in table]
    records += [f'{{"source":"positions","value":{line}}}\n' for line in lines]
    (FOLDER / "records.jsonl").write_text("".join(records))
    alerts = [
        json.dumps({"value": {"vehicle": vehicle, "at": at, "alerts": alerts}}) + "\n" for vehicle, at, alerts in expected()
    ]
    (FOLDER / "alerts.jsonl").write_text("".join(alerts))
    silent = [
        {
            "key": position["vehicle"],
            "value": {
                **{name: position[name] for name in ("vehicle", "lat", "lon")},
                "last_seen": at,
                "alerts": ["no position for 5 minutes"],
            },
            "timestamp": due,
        }
        for due, position, at in sorted(expected_silent(), key=lambda found: (found[0], found[1]["vehicle"]))
    ]
    (FOLDER / "silent.jsonl").write_text("".join(json.dumps(record) + "\n" for record in silent))


if __name__ == "__main__":
    main()
