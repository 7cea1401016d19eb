"""Measures false alarms and power of the drift checks in simulated years: `python -m benchmarks.drift`."""

import random
from collections import Counter

from trajectory_pipeline.quality.drift import find_drift

YEARS = 200
DAYS = 365
RECENT_DAYS, EARLIER_DAYS = 7, 28
MIXES: dict[str, dict[str, float]] = {
    "outcomes": {"success": 0.55, "partial_success": 0.2, "failure": 0.2, "unknown": 0.05},
    "tool errors": {"with tool error": 0.15, "without tool error": 0.85},
}


def simulated_year(mix: dict[str, float], runs_per_day: int, generator: random.Random) -> int:
    """Return the alarms of one look a day in a year without drift, on independent runs."""
    names, weights = list(mix), list(mix.values())
    days = [
        Counter(generator.choices(names, weights, k=runs_per_day)) for _ in range(DAYS + RECENT_DAYS + EARLIER_DAYS)
    ]
    alarms = 0
    earlier = sum(days[:EARLIER_DAYS], Counter[str]())
    recent = sum(days[EARLIER_DAYS : EARLIER_DAYS + RECENT_DAYS], Counter[str]())
    for day in range(DAYS):
        alarms += find_drift(recent, earlier).found
        middle = days[day + EARLIER_DAYS]
        earlier = earlier - days[day] + middle
        recent = recent - middle + days[day + EARLIER_DAYS + RECENT_DAYS]
    return alarms


def detected(mix: dict[str, float], rising: str, runs_per_day: int, generator: random.Random) -> bool:
    """Return whether a doubled share is found once it lasted a week."""
    raised = {name: share * (1 - 2 * mix[rising]) / (1 - mix[rising]) for name, share in mix.items()}
    raised[rising] = 2 * mix[rising]
    earlier, recent = (
        Counter(generator.choices(list(one), list(one.values()), k=runs_per_day * days))
        for one, days in ((mix, EARLIER_DAYS), (raised, RECENT_DAYS))
    )
    return find_drift(recent, earlier).found


def main() -> None:
    """Print a table."""
    print(f"| mix | runs a day | years with an alarm, of {YEARS} | alarms per look | doubled share found |")
    print("|---|---|---|---|---|")
    for name, mix in MIXES.items():
        rising = "failure" if "failure" in mix else "with tool error"
        for runs_per_day in (8, 20, 100):
            generator = random.Random(14)
            alarms = [simulated_year(mix, runs_per_day, generator) for _ in range(YEARS)]
            found = sum(detected(mix, rising, runs_per_day, generator) for _ in range(YEARS)) / YEARS
            years, rate = sum(map(bool, alarms)), sum(alarms) / YEARS / DAYS
            print(f"| {name} | {runs_per_day} | {years} | {rate:.6f} | {found:.0%} |")


if __name__ == "__main__":
    main()
